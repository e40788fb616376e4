"""One turn of the loop: wait; run what was queued before; deliver what was settled; run the timers that are due.

Results go straight to their sinks (a transport's reader, a future), in the sink's context; nothing is allocated per
packet but the bytes it brought. A turn is written out here, and not left to BaseEventLoop, because there it costs more
than the delivery of a message; its semantics are asyncio's, and the contract tests hold it to them:

* callbacks added during a turn run in the next one. Where nothing was queued when the turn began, those that the
  deliveries add are run at once: the order is the same, and one look at the port is saved. So is the look of a turn
  with callbacks queued, while no operation is outstanding;
* what was queued before a packet was dequeued runs before the packet is delivered;
* a receive whose data asked for callbacks is submitted again when these have run, in this turn or the next one: what
  they sent is on the way then, and a quick peer's next message may be there already;
* a timer is due when the clock has reached its time, never before;
* cancelled timers are dropped when they reach the head of the heap, or all at once when they are many.

A callback may run the loop again, where a program has allowed that: then what is left of a turn is done by the turn
inside it. Turns that are not ours find in `_other_turns` what they need.
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

# Longer waits end early and are begun again: what asyncio does, so that no clock is trusted for longer than a day.
WAIT_MAX_S = 24 * 3600
# Every so many turns (a power of two) the port is looked at, though nothing is outstanding that could bring a packet.
TURNS_WITHOUT_LOOK_MAX = 64
_Handle, _TimerHandle = private.Handle, private.TimerHandle


class TurningLoop(SchedulingLoop):
    """What makes IocpEventLoop turn: wake-ups, signals and the delivery of results."""

    def __init__(self, *, kernel: Kernel | None = None) -> None:
        self.proactor = Proactor(kernel=kernel)
        super().__init__()  # Which sets debug mode.
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
        self._due: deque[Any] = deque()  # timers whose time has come; emptied in the same turn, unless one raises

    def set_debug(self, enabled: bool) -> None:
        """As asyncio's; and packets whose key is not their operation's are reported, and not believed."""
        super().set_debug(enabled)
        # The hot path asks for nothing of this.
        self.__dict__.pop("_deliver", None)
        if not self.proactor.port.closed:
            self.proactor.check_keys(enabled)
            if enabled:
                self._deliver = self._deliver_slowly  # type: ignore[method-assign]

    def close(self) -> None:
        super().close()
        self.__dict__.pop("_deliver", None)  # Which is a cycle.

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
            # Not in a `finally`: an interrupt may come in the middle of the end as well. Twice is once.
            self._end_running(hooks)
            self._finish_call_soon(exc)
            private.forget_stop(self._ready)
            if isinstance(exc, KeyboardInterrupt):
                self._signals.interrupted = False  # Told by this one.
            raise
        finally:
            self._signals.deliver_interrupt()  # One that has not had its turn.

    def _end_running(self, hooks: Any) -> None:
        self._turn.number = 0
        private.end_running(self, hooks)
        self._signals.uninstall()

    def _end_turn_before(self) -> None:
        """For a turn that is not ours: do what is left of the one before."""
        self._turn.number = 0
        self._end_turn(len(self._turn.unarmed))

    def _time_to_wait(self, timeout: float | None) -> float | None:
        """For a turn that is not ours: how long, when what was left of the turn before has been done."""
        self._lend_timers()
        while self._due:
            # Of a turn of ours that runs around this one, or was ended by an interrupt.
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
            # Corked: written before the loop ran, while the turn before was uncorking, or when a KeyboardInterrupt
            # ended it.
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
            waiting = len(turn.unarmed)  # their callbacks are among those that are queued
            # Only what was there: a callback that adds another must not keep the packets waiting.
            self._run_first(ready, queued)
        if settled:
            self._deliver(settled)
        added = 0 if queued else len(ready)
        if self._due:
            self._run_first(self._due, len(self._due))
        if added and not self._stopping:
            self._run_first(ready, added)
        if turn.corked or turn.unarmed:
            # The callbacks of what was delivered have run; but where others were queued, they run in the next turn.
            self._end_turn(waiting if queued else len(turn.unarmed))

    def _end_turn(self, receives: int) -> None:
        """Send what writers have gathered; then the first `receives` of those that waited for that are submitted."""
        self._uncork()
        unarmed = self._turn.unarmed
        for _ in range(min(receives, len(unarmed))):
            try:
                # Taken out when it is done: a KeyboardInterrupt leaves it for the next turn.
                unarmed[0].arm()
                unarmed.popleft()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                # A bug of ours; as wherever a receive is submitted, it concerns one connection and not the loop.
                self._report_arming(unarmed.popleft(), exc)

    def _report_arming(self, reader: Receiver, exc: BaseException) -> None:
        message = f"Exception in callback: submitting the next receive of {reader.transport!r}"
        self.call_exception_handler({"message": message, "exception": exc, "transport": reader.transport})

    def _needs_no_look(self) -> bool:
        # No operation is outstanding but the one that signals wake the loop by, and their handlers the interpreter runs
        # by itself. What another thread posts says that something is queued, which is known.
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
                # A bug of ours, or of a socket that is not Python's: it concerns one connection and not the loop.
                writer.transport.fatal_error(exc, "Fatal write error on transport")
            # Taken out when it is done, as in `end_turn`; a turn inside of resume_writing() may have done it.
            if corked and corked[0] is writer:
                corked.popleft()

    def _run_first(self, handles: deque[Any], count: int) -> None:
        run: Any = self._run_timed if self._debug else private.replaced_run()
        handle: Any
        begun: Any
        handle = begun = None
        take = handles.popleft
        for _ in range(count):
            # The `try` stands before anything is taken: CPython protects the line of no `try` by the one around it.
            try:
                try:
                    handle = take()
                except IndexError:
                    break  # A turn inside one of them has run the rest.
                if handle._cancelled:
                    continue
                kind = handle.__class__
                if run is not None:
                    run(begun := handle)
                elif kind is _Handle or kind is _TimerHandle:
                    (begun := handle)._context.run(handle._callback, *handle._args)
                else:
                    # Made in debug mode, by another thread, or by a program with handles of its own.
                    (begun := handle)._run()
            except (SystemExit, KeyboardInterrupt):
                # An interrupt before it began, or in one of ours that goes on where it was: it is still the next one.
                if handle is not begun or getattr(getattr(handle, "_callback", None), "repeatable", False):
                    handles.appendleft(handle)
                raise
            except BaseException as exc:
                if handle is begun and private.leave_entered_context(handle):
                    handles.appendleft(handle)  # Not begun: this turn runs inside a callback of the same context's.
                else:
                    private.report_callback(self, handle, exc)
        handle = begun = None  # Of a callback that raised, the traceback holds this frame: nothing may live on with it.

    def _run_timed(self, handle: asyncio.Handle) -> None:
        """Debug mode: say which callback took long."""
        self._current_handle = handle
        started = self.time()
        try:
            handle._run()
        finally:
            self._current_handle = None
        elapsed = self.time() - started
        if elapsed >= self.slow_callback_duration:
            private.logger.warning("Executing %s took %.3f seconds", private.format_handle(handle), elapsed)
        handle = None  # type: ignore[assignment]  # As in `_run_first`.

    def _write_to_self(self) -> None:
        try:
            self.proactor.wake()
        except ValueError:
            # The loop was closed meanwhile, by another thread: call_soon_threadsafe has said so already, or will.
            pass

    def _process_events(self, settled: deque[Settled]) -> None:
        """For turns that are not ours: it calls nobody, as asyncio's, and queues what does."""
        if settled:
            self._ready.append(asyncio.Handle(self._deliver, (settled,), self, contextvars.Context()))

    def _deliver(self, settled: deque[Settled]) -> None:
        operation: Any
        begun: Any
        context: Any
        operation = begun = None
        take = settled.popleft
        # Only what is there now: what user code adds by inline completions waits for the next turn.
        for _ in range(len(settled)):
            try:
                operation, status, byte_count = take()
                context = operation.context
                if context is None:
                    (begun := operation).deliver(operation, status, byte_count)
                else:
                    context.run((begun := operation).deliver, operation, status, byte_count)
            except (SystemExit, KeyboardInterrupt):
                # An interrupt, and its sink knows nothing of it: it is still the next one.
                if operation is not None and (operation is not begun or _is_undelivered(operation)):
                    settled.appendleft((operation, status, byte_count))
                raise
            except BaseException as exc:
                if isinstance(exc, IndexError) and _is_of_this_frame(exc):
                    break  # `take`: a turn inside one of the deliveries has made the others.
                if context is not None and private.is_entered(context):
                    # Not begun: this turn runs inside a callback of the same transport's.
                    self._deliver_inside(context, operation, status, byte_count)
                else:
                    self._report_delivery(operation, exc)
        operation = begun = context = None  # As in `_run_first`.

    def _deliver_inside(self, context: contextvars.Context, operation: Any, status: int, byte_count: int) -> None:
        try:
            context.copy().run(operation.deliver, operation, status, byte_count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report_delivery(operation, exc)

    def _deliver_slowly(self, settled: deque[Settled]) -> None:
        """Debug mode: one by one, each timed, because no Handle does it for a directly delivered callback."""
        one: Any
        operation: Any
        deliver: Any
        context: Any
        for _ in range(len(settled)):
            if not settled:
                break  # As in `_run_first`.
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
        one = operation = deliver = context = None  # As in `_run_first`.

    def _report_delivery(self, operation: OverlappedEx, exc: BaseException) -> None:
        sink: Any = getattr(operation.deliver, "__self__", None)
        if hasattr(sink, "rescue") and sink.rescue(operation, exc):
            return
        context: dict[str, Any] = {
            "message": f"Exception in callback: delivering {operation.io_type.name} on {operation.endpoint.subject}",
            "exception": exc,
        }
        transport = getattr(sink, "transport", sink)  # A stream's reader or writer names the transport it belongs to.
        if isinstance(transport, asyncio.BaseTransport):
            context["transport"] = transport
            context["protocol"] = transport.get_protocol()  # type: ignore[attr-defined, unused-ignore]
        self.call_exception_handler(context)

    def _on_stray(self, error: LifetimeError) -> None:
        self.call_exception_handler({"message": str(error), "exception": error})


def _is_of_this_frame(exc: BaseException) -> bool:
    """Whether an exception came out of no other Python function than the one that has caught it."""
    trace = exc.__traceback__
    return trace is None or trace.tb_next is None


def _is_undelivered(operation: OverlappedEx) -> bool:
    """Whether an interrupt has ended a delivery before its sink had taken the result."""
    sink: Any = getattr(operation.deliver, "__self__", None)
    return hasattr(sink, "awaits") and bool(sink.awaits(operation))
