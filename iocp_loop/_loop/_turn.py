"""One turn of the loop: wait; run the queued callbacks; deliver the settled results; run the timers that are due.

A result goes straight to its sink (a transport's reader, a future), in the sink's context; a packet allocates nothing
but the bytes it brought. The turn is written out here, because BaseEventLoop's costs more than the delivery of a
message. Its semantics are asyncio's, and the contract tests check them:

* a callback that is added during a turn runs in the next one. If nothing was queued when the turn began, callbacks that
  deliveries add run in the same turn: the order is the same, and one look at the port is saved. A turn with queued
  callbacks and no outstanding operation does not look at the port either;
* callbacks that were queued before a packet was dequeued run before it is delivered;
* if the data of a receive queued callbacks, the receive is re-armed after they have run, in this turn or the next. By
  then their answer is on its way, and a quick peer's next message may have arrived;
* a timer is due when the clock has reached its time, never before;
* cancelled timers are dropped when they reach the head of the heap, or all at once when there are many.

If a program allows it, a callback may run the loop again. The inner turn then does the rest of the outer one's work.
`_other_turns` serves turns that are not ours.
"""

import asyncio
import contextvars
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._operation import LifetimeError, OverlappedEx
from .._core._proactor import Proactor, Settled
from .._transports._turns import Receiver, Turn
from .._win32.kernel import Kernel
from ._other_turns import OtherTurns
from ._scheduling import SchedulingLoop
from ._signals import SignalWakeup

# Longer waits end early and begin again, as in asyncio, so that no clock is trusted for longer than a day.
WAIT_MAX_S = 24 * 3600
# In one turn of so many (a power of two) the loop looks at the port even if no operation could bring a packet.
TURNS_WITHOUT_LOOK_MAX = 64
_Handle, _TimerHandle = private.Handle, private.TimerHandle


class TurningLoop(SchedulingLoop):
    """The turn of IocpEventLoop, with wake-ups, signals and the delivery of results."""

    def __init__(self, *, kernel: Kernel | None = None) -> None:
        self.proactor = Proactor(kernel=kernel)
        super().__init__()  # It sets debug mode, which needs the proactor.
        self.proactor.on_stray.append(self._on_stray)
        self._outstanding = self.proactor.pending
        self._signals = SignalWakeup(self.proactor, self._call_first)
        self._selector = OtherTurns(
            self,
            self._signals,
            self._end_turn_before,
            self._time_to_wait,
            TurningLoop._deliver,
            TurningLoop._deliver_slowly,
        )
        self._turn = Turn(self._ready)
        self._due: deque[Any] = deque()  # due timers; emptied in the same turn, unless an exception ends it

    def set_debug(self, enabled: bool) -> None:
        """As in `asyncio.BaseEventLoop.set_debug`; also, a packet with a wrong key is reported and dropped."""
        super().set_debug(enabled)
        # By replacing methods, so that the hot path has no branch for it.
        self.__dict__.pop("_deliver", None)
        if not self.proactor.port.closed:
            self.proactor.check_keys(enabled)
            if enabled:
                self._deliver = self._deliver_slowly  # type: ignore[method-assign]

    def close(self) -> None:
        super().close()
        self.__dict__.pop("_deliver", None)  # A bound method of this object: a cycle.

    def run_forever(self) -> None:
        """Run until `stop` is called; signals wake the loop while it runs in the main thread."""
        self._check_closed()
        self._check_running()
        hooks = sys.get_asyncgen_hooks()
        try:
            self._signals.install()
            private.begin_running(self)
            while True:
                self._run_once()
                if self._stopping:
                    break
            self._end_running(hooks)
        except BaseException as exc:
            # Not in a `finally`: an interrupt may come in the middle of `_end_running` too. It may run twice.
            self._end_running(hooks)
            self._finish_call_soon(exc)
            private.forget_stop(self._ready)
            if isinstance(exc, KeyboardInterrupt):
                self._signals.interrupted = False  # This exception reports it.
            raise
        finally:
            self._signals.deliver_interrupt()  # A deferred interrupt that no turn has delivered.

    def _end_running(self, hooks: Any) -> None:
        self._turn.number = 0
        private.end_running(self, hooks)
        self._signals.uninstall()

    def _end_turn_before(self) -> None:
        """For a turn that is not ours: do the rest of the previous turn."""
        self._turn.number = 0
        self._end_turn(len(self._turn.unarmed))

    def _time_to_wait(self, timeout: float | None) -> float | None:
        """For a turn that is not ours: how long it may wait, after the rest of the previous turn was done."""
        self._lend_timers()
        while self._due:
            # Left by a turn of ours that runs around this one, or that an interrupt ended.
            self._ready.append(self._due.popleft())
        if self._ready:
            return 0
        if self._lent:
            remaining: float = max(0, self._lent[0]._when - self.time())
            return remaining if timeout is None else min(timeout, remaining)
        return timeout

    def _call_first(self, callback: Callable[[], None]) -> None:
        self._ready.appendleft(asyncio.Handle(callback, (), self, contextvars.Context()))

    def _run_once(self) -> None:
        turn, ready, timers = self._turn, self._ready, self._timer_heap
        turn.number += 1
        if self._timer_cancelled_count:
            self._drop_cancelled_timers()
        queued = len(ready)
        if queued or self._due or self._stopping or turn.corked or turn.unarmed:
            # `corked` may have writers here: a program wrote before the loop ran, or while the previous turn sent what
            # was gathered, or a KeyboardInterrupt ended that turn.
            timeout: float | None = 0
        elif timers:
            timeout = min(timers[0][0] - self.time(), WAIT_MAX_S)
        else:
            timeout = None
        if queued and len(self._outstanding) <= self._signals.receives_pending and self._needs_no_look():
            settled = self.proactor.settled
        else:
            settled = self.proactor.select(timeout)
        if timers:
            self._take_due_timers(self._due)
        if queued:
            waiting = len(turn.unarmed)  # readers whose callbacks are among the `queued`; later ones wait a turn
            # Only these: a callback that adds another must not keep the packets waiting.
            self._run_first(ready, queued)
        if settled:
            self._deliver(settled)
        added = 0 if queued else len(ready)
        if self._due:
            self._run_first(self._due, len(self._due))
        if added and not self._stopping:
            self._run_first(ready, added)
        if turn.corked or turn.unarmed:
            # If nothing was queued, the callbacks of this turn's deliveries have run; otherwise they run in the next.
            self._end_turn(waiting if queued else len(turn.unarmed))

    def _end_turn(self, receives: int) -> None:
        """Send what writers have gathered; then submit the first `receives` of the receives that waited for that."""
        self._uncork()
        unarmed = self._turn.unarmed
        for _ in range(min(receives, len(unarmed))):
            try:
                # Removed after it was armed, so that a KeyboardInterrupt leaves it for the next turn.
                unarmed[0].arm()
                unarmed.popleft()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                # A bug of ours. It concerns one connection, and must not end the loop.
                self._report_arming(unarmed.popleft(), exc)

    def _report_arming(self, reader: Receiver, exc: BaseException) -> None:
        message = f"Exception in callback: submitting the next receive of {reader.transport!r}"
        self.call_exception_handler({"message": message, "exception": exc, "transport": reader.transport})

    def _needs_no_look(self) -> bool:
        # Only the signal wake-up's receive is outstanding. It can wait, because the interpreter runs signal handlers
        # itself. A packet of another thread would only say that callbacks are queued, which is known.
        return not self.proactor.before_wait and self._turn.number % TURNS_WITHOUT_LOOK_MAX != 0

    def _uncork(self) -> None:
        """Send what writers have gathered during the turn."""
        corked = self._turn.corked
        for writer in tuple(corked):
            try:
                writer.uncork()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                # A bug of ours, or of a socket that is not Python's. It concerns one connection, and must not end the
                # loop.
                writer.transport.fatal_error(exc, "Fatal write error on transport")
            # Removed after it has sent, as in `_end_turn`. A turn inside resume_writing() may have removed it.
            if corked and corked[0] is writer:
                corked.popleft()

    def _run_first(self, handles: deque[Any], count: int) -> None:
        run: Any = self._run_timed if self._debug else private.replaced_run()
        handle: Any
        begun: Any
        handle = begun = None
        take = handles.popleft
        plain: Any = _Handle if run is None else None  # the class of nearly all of them; asked first
        for _ in range(count):
            # The inner `try` stands before anything is taken, because CPython protects the line of a `try` by no `try`,
            # not even by the outer one.
            try:
                try:
                    handle = take()
                except IndexError:
                    break  # A turn inside one of the callbacks has run the rest.
                if handle._cancelled:
                    continue
                if handle.__class__ is plain:
                    (begun := handle)._context.run(handle._callback, *handle._args)
                elif run is not None:
                    run(begun := handle)
                elif handle.__class__ is _TimerHandle:
                    (begun := handle)._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                else:
                    # Made in debug mode, by another thread, or by a program with its own subclass of `asyncio.Handle`.
                    (begun := handle)._run()
            except (SystemExit, KeyboardInterrupt):
                # An interrupt came before it began, or it is a callback of ours that may run again: it runs next.
                if handle is not begun or getattr(getattr(handle, "_callback", None), "repeatable", False):
                    handles.appendleft(handle)
                raise
            except BaseException as exc:
                if handle is begun and private.leave_entered_context(handle):
                    handles.appendleft(handle)  # It did not begin: this turn runs inside a callback in its context.
                else:
                    private.report_callback(self, handle, exc)
        handle = begun = None  # If a callback raised, its traceback holds this frame, which must keep nothing alive.

    def _run_timed(self, handle: asyncio.Handle) -> None:
        """Run a callback in debug mode, and log it if it is slow."""
        self._current_handle = handle
        started = self.time()
        try:
            handle._run()
        finally:
            self._current_handle = None
        elapsed = self.time() - started
        if elapsed >= self.slow_callback_duration:
            private.logger.warning("Executing %s took %.3f seconds", private.format_handle(handle), elapsed)
        handle = None  # type: ignore[assignment]  # For the reason given in `_run_first`.

    def _write_to_self(self) -> None:
        try:
            self.proactor.wake()
        except ValueError:
            # Another thread has closed the loop: call_soon_threadsafe has raised for that, or will.
            pass

    def _process_events(self, settled: deque[Settled]) -> None:
        """For turns that are not ours: queue the delivery. As in asyncio, user code is not called here."""
        if settled:
            self._ready.append(asyncio.Handle(self._deliver, (settled,), self, contextvars.Context()))

    def _deliver(self, settled: deque[Settled]) -> None:
        operation: Any
        begun: Any
        context: Any
        operation = begun = None
        take = settled.popleft
        # Only the results that are there: inline completions that user code adds wait for the next turn.
        for _ in range(len(settled)):
            try:
                operation, status, byte_count = take()
                context = operation.context
                if context is None:
                    (begun := operation).deliver(operation, status, byte_count)
                else:
                    context.run((begun := operation).deliver, operation, status, byte_count)
            except (SystemExit, KeyboardInterrupt):
                # An interrupt came before the sink had the result: it is delivered next.
                if operation is not None and (operation is not begun or _is_undelivered(operation)):
                    settled.appendleft((operation, status, byte_count))
                raise
            except BaseException as exc:
                if isinstance(exc, IndexError) and _is_of_this_frame(exc):
                    break  # `take` raised it: a turn inside one of the deliveries has delivered the rest.
                if context is not None and private.is_entered(context):
                    # It did not begin: this turn runs inside a callback of the same transport.
                    self._deliver_inside(context, operation, status, byte_count)
                else:
                    self._report_delivery(operation, exc)
        operation = begun = context = None  # For the reason given in `_run_first`.

    def _deliver_inside(self, context: contextvars.Context, operation: Any, status: int, byte_count: int) -> None:
        try:
            context.copy().run(operation.deliver, operation, status, byte_count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report_delivery(operation, exc)

    def _deliver_slowly(self, settled: deque[Settled]) -> None:
        """Deliver in debug mode: time each delivery here, because no `asyncio.Handle` does."""
        one: Any
        operation: Any
        deliver: Any
        context: Any
        for _ in range(len(settled)):
            if not settled:
                break  # A turn inside one of the deliveries has delivered the rest.
            one = settled.popleft()
            operation = one[0]
            deliver, context = operation.deliver, private.enterable(operation.context or contextvars.copy_context())
            started = self.time()
            try:
                context.run(deliver, *one)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._report_delivery(operation, exc)
            elapsed = self.time() - started
            if elapsed >= self.slow_callback_duration:
                private.logger.warning("Delivering %r to %r took %.3f seconds", operation, deliver, elapsed)
        one = operation = deliver = context = None  # For the reason given in `_run_first`.

    def _report_delivery(self, operation: OverlappedEx, exc: BaseException) -> None:
        sink: Any = getattr(operation.deliver, "__self__", None)
        if hasattr(sink, "rescue") and sink.rescue(operation, exc):
            return
        context: dict[str, Any] = {
            "message": f"Exception in callback: delivering {operation.io_type.name} on {operation.endpoint.subject}",
            "exception": exc,
        }
        transport = getattr(sink, "transport", sink)  # A stream's reader or writer has its transport there.
        if isinstance(transport, asyncio.BaseTransport):
            context["transport"] = transport
            context["protocol"] = transport.get_protocol()  # type: ignore[attr-defined, unused-ignore]
        self.call_exception_handler(context)

    def _on_stray(self, error: LifetimeError) -> None:
        self.call_exception_handler({"message": str(error), "exception": error})


def _is_of_this_frame(exc: BaseException) -> bool:
    """Whether an exception was raised in the function that caught it, and in no function that this one called."""
    trace = exc.__traceback__
    return trace is None or trace.tb_next is None


def _is_undelivered(operation: OverlappedEx) -> bool:
    """Whether an interrupt ended a delivery before its sink had the result."""
    sink: Any = getattr(operation.deliver, "__self__", None)
    return hasattr(sink, "awaits") and bool(sink.awaits(operation))
