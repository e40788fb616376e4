"""Turns that are not ours: the program, or a library it imports, has replaced the loop's `_run_once`.

nest_asyncio does, so that a callback may run the loop again. Such a turn follows BaseEventLoop: it takes the timers
from `_scheduled`, waits in `_selector.select()`, passes the result to `_process_events()`, and runs the handles in
`_ready`. It does not do the other work of our turns. So `OtherTurns.select` does that before it waits, as if a turn of
ours ended there:

    work                                where it is done
    ----------------------------------  ------------------------------------------------------------------------------
    running each timer once             `_scheduled` lends the timers, and our next turn takes them back (`_scheduling`)
    sending what is written             at once, because the end of such a turn is not known, and no wait follows the
                                        last one of a run (`Turn.number` is 0). What was gathered before: in `select`
    receives that wait for callbacks    in `select`
    receives of deliveries under way    in `select`: a callback that runs the loop may wait for its own next message
    timers that are due in a turn       in `select`: they are queued
      of ours, around this one
    waking on signals                   in `select`, unless a `run_forever` of ours does it
    delivering results                  in a callback that `_process_events` queues. In asyncio's loops that method
                                        calls no user code, and such a turn keeps the current task right for callbacks
                                        only

None of this costs a turn of ours anything.
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .._core._operation import OverlappedEx
from .._core._proactor import Proactor, Settled
from ._signals import SignalWakeup


class OtherTurns:
    """The loop's `_selector`, for such turns. It passes everything but `select` on to the proactor.

    Args:
        loop: the loop. Its `proactor` is looked up at each use.
        signals: wakes the loop on signals, unless the loop's own `run_forever` has installed it.
        end_turn: does the rest of the previous turn.
        time_to_wait: called with a time-out; returns it, or the time until the loop has something to do, if less.
        deliver: the loop's methods that deliver results. Each has the operation in a local variable `operation`.
    """

    def __init__(
        self,
        loop: Any,
        signals: SignalWakeup,
        end_turn: Callable[[], None],
        time_to_wait: Callable[[float | None], float | None],
        *deliver: Any,
    ) -> None:
        self._loop = loop
        self._signals = signals
        self._end_turn = end_turn
        self._time_to_wait = time_to_wait
        self._delivering = {each.__code__ for each in deliver}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop.proactor, name)

    def select(self, timeout: float | None = None) -> deque[Settled]:
        """Do the rest of the previous turn, then wait in `Proactor.select`."""
        self._end_turn()
        for operation in list(self._deliveries_under_way()):
            sink: Any = getattr(operation.deliver, "__self__", None)
            if hasattr(sink, "arm_ahead"):
                sink.arm_ahead(operation)
        timeout = self._time_to_wait(timeout)
        proactor: Proactor = self._loop.proactor
        if self._signals.installed:
            return proactor.select(timeout)
        self._signals.install()
        try:
            return proactor.select(timeout)
        finally:
            self._signals.uninstall()

    def _deliveries_under_way(self) -> Iterator[OverlappedEx]:
        """The operations whose results are being delivered to callbacks that run this turn inside them."""
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code in self._delivering and (local := frame.f_locals)["self"] is self._loop:
                yield local["operation"]
            frame = frame.f_back
