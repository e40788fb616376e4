"""Wakes a waiting loop when a signal arrives, Ctrl+C above all.

Python's C handler for a signal cannot end a wait on the port. But it writes a byte to the wake-up socket, and the
receive on that socket ends the wait. The socketpair serves nothing else: threads wake the loop by posting to the port.
The process's wake-up descriptor is ours only while the loop runs in the main thread. Afterwards the previous one is put
back, so neither another loop in the process nor a closed one makes Ctrl+C ineffective.

Ctrl+C raises KeyboardInterrupt between any two bytecodes. If these belong to the loop's own code, we defer the
interrupt and make it the first queued callback, so that nothing of ours is interrupted half-way. In the program's code
it is raised at once, as usual. A second Ctrl+C is raised at once anywhere, because a callback may never end. While the
loop runs, we do this to Python's own handler and to the one that asyncio.Runner sets; a handler of the program is left
alone.
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


# The signals for which Windows calls a handler (MSDN, signal).
HANDLED = frozenset(getattr(signal, name) for name in ("SIGINT", "SIGBREAK", "SIGTERM") if hasattr(signal, name))

_PACKAGE = __name__.partition(".")[0] + "."
# Modules of the standard library that our code calls: an interrupt there may be in the middle of our code too.
_HELPERS = frozenset({"socket", "enum", "weakref", "threading", "_weakrefset", "ctypes", "contextlib"})


class SignalWakeup:
    """The wake-up socketpair of one loop, made when the loop first runs in the main thread.

    Attributes:
        receives_pending: the number of its operations outstanding, 1 or 0.
        interrupted: Ctrl+C came in the loop's own code, and waits for `deliver_interrupt`.

    Args:
        proactor: the loop's.
        call_first: makes the loop call a function before all queued callbacks.
    """

    def __init__(self, proactor: "Proactor", call_first: Callable[[Callable[[], None]], None]) -> None:
        self._proactor = proactor
        self._call_first = call_first
        self._sender: socket.socket | None = None
        self._receiver: socket.socket | None = None
        self._operation: OverlappedEx | None = None
        self.receives_pending = 0
        self.interrupted = False
        self._on_interrupt: Any = None  # our handler, while it is set in place of `_interrupt_handler`; else None
        self._interrupt_handler: Any = None
        self._previous: int | None = None
        self._handlers: dict[int, tuple[asyncio.Handle, Any]] = {}

    @property
    def installed(self) -> bool:
        """Whether the process's wake-up descriptor is ours."""
        return self._previous is not None

    def install(self) -> None:
        """Make ours the process's wake-up descriptor, if Python allows it; otherwise the loop runs without signals.

        Python allows it in the main thread of the main interpreter only. `threading` may be wrong about which thread
        that is: it names the one that imported it first, or that runs a subinterpreter. Hence the ValueError below.
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
        """Put the previous wake-up descriptor back, unless somebody has replaced ours."""
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
            # Its owner, another loop for example, has closed it: there is nothing to put back.
            pass

    def close(self) -> None:
        """Remove the handlers and close both sockets; the receiving one when its pending receive has ended."""
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
                self._call_first(self.deliver_interrupt)  # If the loop waits, the wake-up descriptor ends that.

        on_interrupt.iocp_loop_handler = handler  # type: ignore[attr-defined]
        self._interrupt_handler, self._on_interrupt = handler, on_interrupt
        signal.signal(signal.SIGINT, on_interrupt)

    def _stop_deferring(self) -> None:
        ours, self._on_interrupt = self._on_interrupt, None
        if ours is not None and signal.getsignal(signal.SIGINT) is ours:
            signal.signal(signal.SIGINT, self._interrupt_handler)

    def deliver_interrupt(self) -> None:
        """Call the handler whose interrupt was deferred. Between two callbacks."""
        if self.interrupted:
            self.interrupted = False
            self._interrupt_handler(signal.SIGINT, None)

    # -- handlers ----------------------------------------------------------------------------------------------

    def add_handler(self, loop: Any, sig: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Let the loop call `callback(*args)` when the signal arrives. Replaces an earlier handler of the loop's."""
        if sig not in HANDLED:
            raise ValueError(f"signal {sig!r} cannot be handled on Windows; SIGINT, SIGBREAK and SIGTERM can")
        handle = asyncio.Handle(callback, args, loop)

        def on_signal(_number: int, _frame: Any) -> None:
            # This runs between any two bytecodes of the main thread, so it only queues the handle and wakes the loop.
            # If the handler is removed before the loop comes to it, it is not called.
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
        """Put the previous handling back; False if the loop has no handler for the signal."""
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
        """Re-arm the receive. It has woken the loop, and the interpreter runs the Python handlers itself."""
        self.receives_pending = 0
        if operation.endpoint.closing:
            return
        if status or not byte_count:
            # QUIRK(windows): sleep, a VPN or a security product may break loopback connections. Make a new pair, since
            # a dead one would never wake the loop.
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
    """Whether an interrupted frame runs this package's code, or a helper module that it called."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(_PACKAGE):
            return True
        if name not in _HELPERS:
            return False
        frame = frame.f_back
    return False


def _unwrapped(handler: Any) -> Any:
    """The handler that ours was set in place of, if it is ours, of any loop; otherwise the handler itself."""
    return getattr(handler, "iocp_loop_handler", handler)


def _runner_of(handler: Any) -> asyncio.Runner | None:
    """The Runner that set this handler for Ctrl+C; None if no Runner did."""
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _is_stale(handler: Any) -> bool:
    """Whether it is a handler that asyncio.Runner set for Ctrl+C, for a main task that has ended.

    The Runner removes its handler only if it is still set, which it is not while ours is. If we put it back later, it
    would interrupt the next run, because that run's own Runner sets a handler only in place of Python's own.
    """
    if _runner_of(handler) is None:
        return False
    task = handler.keywords.get("main_task")
    return task is not None and bool(task.done())


def _ignore(*_args: object) -> None:
    """Do nothing: stands in for the functions of a closed loop."""
