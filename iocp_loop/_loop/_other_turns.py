"""Turns that are not ours: a program, or a library it imports, has put another `_run_once` in the place of the loop's.

nest_asyncio does, so that a callback may run the loop again. What such a turn is made of is BaseEventLoop's: it takes
the timers from `_scheduled`, waits in `_selector.select()`, hands what that returns to `_process_events()`, and runs
what is in `_ready`. It knows nothing of what our turns do besides; so each of its waits does that first, as if a turn
of ours ended there:

    what                                where it is done
    ----------------------------------  ------------------------------------------------------------------------------
    timers, once each                   `_scheduled` lends them, and our next turn takes them back (`_scheduling`)
    sending what was written            at once: it is not known when such a turn ends, and after the last one of a run
                                        no wait follows (`turn` is 0). What had been gathered before: by the wait
    receives that wait for callbacks    by the wait
    receives of deliveries under way    by the wait: a callback that runs the loop may wait for its own next message
    timers that were due in a turn      by the wait: they are queued
      of ours, around this one
    waking by signals                   by the wait, where no `run_forever` of ours has seen to it
    delivering results                  by a callback that `_process_events` queues, because that calls nobody in
                                        asyncio's loops; and such a turn looks after the current task of callbacks only

Nothing of this costs a turn of ours anything.
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .._core._operation import OverlappedEx
from .._core._proactor import Proactor, Settled
from ._signals import SignalWakeup


class OtherTurns:
    """What such turns find as the loop's `_selector`; for all but waiting it is the proactor.

    Args:
        loop: whose; its `proactor` is looked up each time, because closing takes it away.
        signals: which wake the loop where its own `run_forever` has not seen to that.
        end_turn: does what is left of the turn before.
        time_to_wait: called with a time-out; how long until the loop has something to do, if that is less.
        deliver: the loop's methods that deliver results; each has a local variable `operation`, which is what it is at.
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
        """Do what is left of the turn before; then wait, as `Proactor.select`."""
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
        """Operations whose result a callback of the program's has been told, which runs this turn inside it."""
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code in self._delivering and (local := frame.f_locals)["self"] is self._loop:
                yield local["operation"]
            frame = frame.f_back
