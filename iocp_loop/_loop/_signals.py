"""Wakes a waiting loop when a signal arrives (Ctrl+C above all).

Python notes a signal in a C handler, which cannot end a wait on the port; but it writes a byte to the wake-up socket,
and that ends it. The socketpair exists for nothing else: threads wake the loop by posting to the port. The wake-up
descriptor is ours only while the loop runs in the main thread; before and after it is whatever it was before, so
neither another loop in the process nor a closed one leaves Ctrl+C deaf.

Ctrl+C raises KeyboardInterrupt between any two bytecodes. Where these are the loop's own, it waits and becomes the
first of the callbacks that are queued: nothing of ours is interrupted in the middle of anything. In the program's code
it is raised at once, as ever; and so is the second one, wherever it comes, because a callback may never end. This is
done to Python's own handler and to the one that asyncio.Runner sets, while the loop runs; a handler of the program's is
left alone.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._asyncio import _private as private
from .._core._operation import OverlappedEx
from .._handles._opening import open_socket

if TYPE_CHECKING:
    from .._core._proactor import Proactor


# What Windows delivers to a handler at all (MSDN, signal).
HANDLED = frozenset(getattr(signal, name) for name in ("SIGINT", "SIGBREAK", "SIGTERM") if hasattr(signal, name))

_PACKAGE = __name__.partition(".")[0] + "."
# What of the standard library runs on behalf of ours: in the middle of it, we are in the middle of something too.
_HELPERS = frozenset({"socket", "enum", "weakref", "threading", "_weakrefset", "ctypes", "contextlib"})


class SignalWakeup:
    """The wake-up socketpair of one loop, made when the loop first runs in the main thread.

    Attributes:
        receives_pending: how many operations of its own are outstanding: 1 or 0.
        interrupted: Ctrl+C came in the middle of the loop's own code, and waits for `deliver_interrupt`.

    Args:
        proactor: the loop's.
        call_first: makes the loop call something before all else that is queued.
    """

    def __init__(self, proactor: "Proactor", call_first: Callable[[Callable[[], None]], None]) -> None:
        self._proactor = proactor
        self._call_first = call_first
        self._sender: socket.socket | None = None
        self._receiver: socket.socket | None = None
        self._operation: OverlappedEx | None = None
        self.receives_pending = 0
        self.interrupted = False
        self._on_interrupt: Any = None  # ours, in place of `_interrupt_handler`; None while it is not
        self._interrupt_handler: Any = None
        self._previous: int | None = None
        self._handlers: dict[int, tuple[asyncio.Handle, Any]] = {}

    @property
    def installed(self) -> bool:
        """Whether ours is the process's wake-up descriptor."""
        return self._previous is not None

    def install(self) -> None:
        """Become the process's wake-up descriptor, where that is allowed: else the loop runs without signals.

        Python allows it to the main thread of the main interpreter. Which thread that is, `threading` does not know for
        certain: it takes for it whichever imported it first, or runs a sub-interpreter.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            previous = signal.set_wakeup_fd(-1)
        except ValueError:
            return
        try:
            if self._sender is None:
                self._open()
        except BaseException:
            signal.set_wakeup_fd(previous)
            raise
        assert self._sender is not None
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._previous = previous
        self._defer_interrupts()

    def uninstall(self) -> None:
        """Put the previous wake-up descriptor back, unless somebody has replaced ours meanwhile."""
        if self._previous is None:
            return
        self._stop_deferring()
        previous, self._previous = self._previous, None
        assert self._sender is not None
        current = signal.set_wakeup_fd(-1)
        if current != self._sender.fileno():
            previous = current
        try:
            signal.set_wakeup_fd(previous)
        except (OSError, ValueError):
            # Its owner, another loop say, has closed it meanwhile. Then there is nothing to go back to.
            pass

    def close(self) -> None:
        """Take the handlers back and close both sockets; the receiving one when its pending receive has ended."""
        if threading.current_thread() is threading.main_thread():
            for sig in list(self._handlers):
                self.remove_handler(sig)
        self._close_sockets()
        self._call_first = _ignore

    def _close_sockets(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        operation, self._operation = self._operation, None
        if operation is not None:

            def on_closed() -> None:
                operation.deliver = _ignore  # Breaks the cycle with this object.
                self._proactor.release(operation)

            self._proactor.close_endpoint(operation.endpoint, on_closed)

    # -- Ctrl+C ------------------------------------------------------------------------------------------------

    def _defer_interrupts(self) -> None:
        handler = _unwrapped(signal.getsignal(signal.SIGINT))
        if handler is not signal.default_int_handler and _runner_of(handler) is None:
            return

        def on_interrupt(number: int, frame: Any) -> None:
            if self.interrupted or self._on_interrupt is None or not _is_ours(frame):
                self.interrupted = False
                handler(number, frame)
            else:
                self.interrupted = True
                self._call_first(self.deliver_interrupt)  # The wake-up descriptor ends a wait.

        on_interrupt.iocp_loop_handler = handler  # type: ignore[attr-defined]
        self._interrupt_handler, self._on_interrupt = handler, on_interrupt
        signal.signal(signal.SIGINT, on_interrupt)

    def _stop_deferring(self) -> None:
        ours, self._on_interrupt = self._on_interrupt, None
        if ours is not None and signal.getsignal(signal.SIGINT) is ours:
            signal.signal(signal.SIGINT, self._interrupt_handler)

    def deliver_interrupt(self) -> None:
        """Between two callbacks: call the handler that was kept from being called in the middle of something."""
        if self.interrupted:
            self.interrupted = False
            self._interrupt_handler(signal.SIGINT, None)

    # -- handlers ----------------------------------------------------------------------------------------------

    def add_handler(self, loop: Any, sig: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """As `IocpEventLoop.add_signal_handler`."""
        if sig not in HANDLED:
            raise ValueError(f"signal {sig!r} cannot be handled on Windows; SIGINT, SIGBREAK and SIGTERM can")
        handle = asyncio.Handle(callback, args, loop)

        def on_signal(_number: int, _frame: Any) -> None:
            # Runs between any two bytecodes of the main thread: only hand over, and wake. The handler may be removed
            # before the loop comes to it, and is not called then.
            loop.call_soon_threadsafe(private.run_soon, loop, handle)

        try:
            previous = signal.signal(sig, on_signal)
        except ValueError as exc:
            raise RuntimeError("a signal handler can only be added in the main thread") from exc
        previous = _unwrapped(previous)
        known = self._handlers.get(sig)
        if known is not None:
            known[0].cancel()
            previous = known[1]
        self._handlers[sig] = (handle, previous)

    def remove_handler(self, sig: int) -> bool:
        """As `IocpEventLoop.remove_signal_handler`."""
        known = self._handlers.get(sig)
        if known is None:
            return False
        handle, previous = known
        if _is_stale(previous):
            previous = signal.default_int_handler
        if self._on_interrupt is not None and previous is self._interrupt_handler:
            previous = self._on_interrupt
        try:
            signal.signal(sig, signal.SIG_DFL if previous is None else previous)
        except ValueError as exc:
            raise RuntimeError("a signal handler can only be removed in the main thread") from exc
        handle.cancel()
        del self._handlers[sig]
        return True

    def _open(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        handle = open_socket(self._proactor, self._receiver, self._receiver)
        buffer = self._proactor.arena.buffer(64)
        operation = self._operation = handle.receive_operation(self._on_signal, buffer)
        self._submit(operation)

    def _submit(self, operation: OverlappedEx) -> None:
        self.receives_pending = 1
        self._proactor.submit(operation)

    def _on_signal(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Being woken was the point: the interpreter runs the Python handlers by itself."""
        self.receives_pending = 0
        if operation.endpoint.closing:
            return
        if status or not byte_count:
            # QUIRK(windows): sleep, a VPN or a security product may break loopback connections. A new pair, rather
            # than reading a dead one for ever.
            self._replace()
            return
        self._submit(operation)

    def _replace(self) -> None:
        installed = self.installed
        self.uninstall()
        self._close_sockets()
        self._open()
        if installed:
            self.install()


def _is_ours(frame: Any) -> bool:
    """Whether an interrupted frame runs the loop's own code, or something on its behalf."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(_PACKAGE):
            return True
        if name not in _HELPERS:
            return False
        frame = frame.f_back
    return False


def _unwrapped(handler: Any) -> Any:
    """The handler that one of ours, of whatever loop, stands in for; any other as it is."""
    return getattr(handler, "iocp_loop_handler", handler)


def _runner_of(handler: Any) -> asyncio.Runner | None:
    """The Runner that has set a handler for Ctrl+C."""
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _is_stale(handler: Any) -> bool:
    """Whether it is what asyncio.Runner sets for Ctrl+C, of a main task that has ended.

    The Runner takes it back only where it is still in place, which it is not while ours is. Put back later, it would
    interrupt the next run, whose own Runner sets nothing where something else than Python's own handler is set.
    """
    if _runner_of(handler) is None:
        return False
    task = handler.keywords.get("main_task")
    return task is not None and bool(task.done())


def _ignore(*_args: object) -> None:
    """What a loop that is closed is asked to do for signals."""
