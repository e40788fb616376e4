"""Every name of asyncio's that we use and that begins with an underscore, or lives in an undocumented module.

Checked on CPython 3.11, 3.12, 3.13 and 3.14. No other module imports such a name. HOOKS lists the hooks that
BaseEventLoop calls on its subclasses, ATTRIBUTES its attributes that we use, and FIELDS those of other objects, in
whichever module we use them, so that tests can tell which of them a new Python has changed.
"""

import asyncio
import inspect
import sys
import threading
from asyncio import base_events, base_subprocess, constants, events, exceptions, format_helpers, sslproto, trsock
from asyncio.base_events import Server
from asyncio.log import logger
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    from asyncio import windows_utils

# Overridden by IocpEventLoop, called by BaseEventLoop or by asyncio's subprocess and TLS code.
HOOKS = (
    "_make_datagram_transport",
    "_make_read_pipe_transport",
    "_make_socket_transport",
    "_make_ssl_transport",
    "_make_subprocess_transport",
    "_make_write_pipe_transport",
    "_process_events",
    "_run_once",
    "_sendfile_fallback",
    "_sendfile_native",
    "_sock_sendfile_native",
    "_start_serving",
    "_stop_serving",
    "_write_to_self",
)
# Read or set by IocpEventLoop.
ATTRIBUTES = (
    "_asyncgen_finalizer_hook",
    "_asyncgen_firstiter_hook",
    "_check_callback",
    "_check_closed",
    "_check_running",
    "_check_thread",
    "_clock_resolution",
    "_closed",
    "_current_handle",
    "_debug",
    "_ensure_resolved",
    "_ready",
    "_scheduled",
    "_selector",
    "_set_coroutine_origin_tracking",
    "_stopping",
    "_thread_id",
    "_timer_cancelled_count",
)

LOG_THRESHOLD = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
ACCEPT_RETRY_DELAY_S = constants.ACCEPT_RETRY_DELAY
SendfileMode = constants._SendfileMode  # pyright: ignore[reportPrivateUsage]
SendfileNotAvailableError = exceptions.SendfileNotAvailableError
BaseSubprocessTransport = base_subprocess.BaseSubprocessTransport
SSLProtocol = sslproto.SSLProtocol
# Up to Python 3.15. From 3.14 on, the public name warns on access; setting a policy warns anyway.
BasePolicy: Any = getattr(events, "_BaseDefaultEventLoopPolicy", None) or getattr(
    events, "BaseDefaultEventLoopPolicy", None
)
if sys.platform == "win32":
    # The portable tests import this package elsewhere; they have no pipes and no processes.
    PipeHandle = windows_utils.PipeHandle

    def popen(*args: Any, **kwargs: Any) -> "windows_utils.Popen[bytes]":
        """Start a process. Looks `Popen` up at each call, because tests replace it in that module."""
        return windows_utils.Popen(*args, **kwargs)


def begin_running(loop: Any) -> None:
    """Do what BaseEventLoop.run_forever does before its first turn."""
    loop._set_coroutine_origin_tracking(loop._debug)
    loop._thread_id = threading.get_ident()
    sys.set_asyncgen_hooks(firstiter=loop._asyncgen_firstiter_hook, finalizer=loop._asyncgen_finalizer_hook)
    events._set_running_loop(loop)


def end_running(loop: Any, hooks: Any) -> None:
    """Do what it does after its last turn. `hooks` are the previous hooks for asynchronous generators. Idempotent."""
    loop._stopping = False
    loop._thread_id = None
    events._set_running_loop(None)
    loop._set_coroutine_origin_tracking(False)
    sys.set_asyncgen_hooks(*hooks)


def forget_stop(ready: Any) -> None:
    """After a `run_until_complete` that an exception ended, drop the callback that would stop the next run."""
    for handle in tuple(ready):
        # `getattr`, because a program may have queued objects of its own.
        if getattr(handle, "_callback", None) is base_events._run_until_complete_cb:  # type: ignore[attr-defined]
            handle.cancel()


TransportSocket = trsock.TransportSocket

# From Python 3.13 on, Server._attach takes the transport, because close_clients() and abort_clients() need it.
_ATTACH_TAKES_TRANSPORT = len(inspect.signature(Server._attach).parameters) > 1  # type: ignore[attr-defined]


# Attributes of asyncio's other objects that we read, set or call.
FIELDS: dict[type, tuple[str, ...]] = {
    # `_scheduling` fills these in, and `_turn` runs them.
    asyncio.Handle: (
        "_args",
        "_callback",
        "_cancelled",
        "_context",
        "_loop",
        "_repr",
        "_run",
        "_source_traceback",
    ),
    asyncio.TimerHandle: ("_scheduled", "_when"),
    asyncio.BaseTransport: ("_extra",),
    asyncio.StreamReader: ("_buffer",),
    asyncio.StreamReaderProtocol: ("_stream_reader",),
    sslproto.SSLProtocol: ("_app_transport", "_incoming", "_process_outgoing"),
    base_subprocess.BaseSubprocessTransport: (
        "_exit_waiters",
        "_loop",
        "_proc",
        "_process_exited",
        "_start",
        "_wait",
    ),
}


class BaseLoop(asyncio.BaseEventLoop):
    """asyncio.BaseEventLoop with a type for each of ATTRIBUTES; typeshed leaves them out."""

    if TYPE_CHECKING:
        _clock_resolution: float
        _closed: bool
        _current_handle: asyncio.Handle | None
        _debug: bool
        _ready: deque[Any]
        _selector: Any
        _stopping: bool
        _thread_id: int | None
        _timer_cancelled_count: int

        def _check_callback(self, callback: Any, method: str) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _write_to_self(self) -> None: ...
        async def _ensure_resolved(self, address: Any, **options: Any) -> list[Any]: ...
        async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int: ...


def is_entered(context: Context) -> bool:
    """Whether code is running in a context, so that no other code can enter it."""
    try:
        context.run(bool)
    except RuntimeError:
        return True
    return False


def enterable(context: Context) -> Context:
    """The context, or a copy of it if code is running in it."""
    return context.copy() if is_entered(context) else context


def leave_entered_context(handle: Any) -> bool:
    """Give a handle a copy of its context if code is running in it. False if none is, so that the handle could run."""
    context = getattr(handle, "_context", None)
    if context is None or not is_entered(context):
        return False
    handle._context = context.copy()
    return True


class Handle(asyncio.Handle):
    """`asyncio.Handle` without debug mode. `call_soon` sets its fields in place of `__init__`."""

    __slots__ = ()
    _source_traceback = None

    def _run(self) -> None:
        """For turns that are not ours, which may run inside a callback in the same context."""
        leave_entered_context(self)
        super()._run()


class TimerHandle(asyncio.TimerHandle):
    """`asyncio.TimerHandle` without debug mode. Its `cancel` is one function in place of asyncio's four.

    Most timers are time-outs, which end by being cancelled.
    """

    __slots__ = ()
    _source_traceback = None

    def cancel(self) -> None:
        timer: Any = self
        loop = timer._loop
        if loop._debug:
            super().cancel()
        elif not timer._cancelled:
            if timer._scheduled:
                loop._timer_cancelled_count += 1
            timer._cancelled = True
            timer._callback = timer._args = None


_run_as_made = asyncio.Handle._run


def replaced_run() -> Any:
    """The function with which a program has replaced `Handle._run`, to time callbacks for example; usually None."""
    return None if asyncio.Handle._run is _run_as_made else asyncio.Handle._run


if hasattr(events, "_ThreadSafeHandle"):
    # From Python 3.14 on: a handle that another thread may cancel.
    class ThreadsafeHandle(events._ThreadSafeHandle):  # type: ignore[name-defined, misc]
        """A `Handle` with a lock, which is set after the other fields."""

        __slots__ = ()
        _source_traceback = None

    def lock_handle(handle: Any) -> None:
        """Give a ThreadsafeHandle its lock."""
        handle._lock = threading.RLock()
else:
    ThreadsafeHandle = Handle  # type: ignore[misc, assignment]
    lock_handle = None  # type: ignore[assignment]

_format_source = format_helpers._format_callback_source  # pyright: ignore[reportPrivateUsage]
_FORMAT_TAKES_DEBUG = "debug" in inspect.signature(_format_source).parameters


def report_callback(loop: Any, handle: asyncio.Handle, exc: BaseException) -> None:
    """Report that a handle's callback raised, as `Handle._run` does."""
    options = {"debug": loop.get_debug()} if _FORMAT_TAKES_DEBUG else {}
    callback = format_helpers._format_callback_source(handle._callback, handle._args, **options)  # type: ignore[attr-defined]
    loop.call_exception_handler({"message": f"Exception in callback {callback}", "exception": exc, "handle": handle})


# Returns None if the calling thread runs no loop.
current_loop: Any = events._get_running_loop
# Raises TypeError for a socket that is already wrapped in TLS.
check_ssl_socket: Any = base_events._check_ssl_socket  # type: ignore[attr-defined]
# Describes a slow callback in debug mode.
format_handle: Any = base_events._format_handle  # type: ignore[attr-defined]


def attach(server: Any, transport: Any) -> None:
    """Tell a server of a new connection."""
    if _ATTACH_TAKES_TRANSPORT:
        server._attach(transport)
    else:
        server._attach()


def detach(server: Any, transport: Any) -> None:
    """Tell a server that a connection is gone."""
    if _ATTACH_TAKES_TRANSPORT:
        server._detach(transport)
    else:
        server._detach()


def take_unread(protocol: Any) -> bytes:
    """Take the bytes that a stream's reader has received and nobody has read."""
    buffer = getattr(getattr(protocol, "_stream_reader", None), "_buffer", None)
    if not buffer:
        return b""
    data = bytes(buffer)
    buffer.clear()
    return data


def give_unread(protocol: Any, data: bytes) -> None:
    """Put back what `take_unread` took, in front of bytes that have come meanwhile."""
    protocol._stream_reader._buffer[:0] = data


def begin_tls_with(transport: Any, before: Any, data: bytes) -> None:
    """If a TLS protocol has replaced `before` on a transport, let it begin with `data`."""
    protocol = transport.get_protocol()
    if protocol is not before:
        protocol._incoming.write(data)


def has_said_goodbye(protocol: Any, exc: BaseException | None) -> bool:
    """Whether asyncio's TLS ends its connection only because the peer goes on sending after our close_notify.

    Then close_notify and all that the program wrote before it are written here, and the connection may be closed in
    order.
    """
    # OpenSSL's name for that error (Python's documentation, ssl.SSLSocket.unwrap).
    if getattr(exc, "reason", None) != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" or not isinstance(protocol, SSLProtocol):
        return False
    protocol._process_outgoing()  # type: ignore[attr-defined]
    return True


def run_soon(loop: Any, handle: asyncio.Handle) -> None:
    """Queue an `asyncio.Handle` that was made earlier. `call_soon` would make a new one each time."""
    if not handle.cancelled():
        loop._ready.append(handle)


def run_handle(handle: asyncio.Handle) -> None:
    """Run the callback of an `asyncio.Handle`, in its context. An exception is reported and not raised."""
    if not handle.cancelled():
        handle._run()


def set_result_unless_cancelled(future: "asyncio.Future[None]", result: Any) -> None:
    """Set a waiter's result, unless its owner has cancelled it."""
    if not future.done():
        future.set_result(result)


__all__ = [
    "ACCEPT_RETRY_DELAY_S",
    "ATTRIBUTES",
    "FIELDS",
    "HOOKS",
    "LOG_THRESHOLD",
    "BaseLoop",
    "BasePolicy",
    "BaseSubprocessTransport",
    "Handle",
    "PipeHandle",
    "SSLProtocol",
    "SendfileMode",
    "SendfileNotAvailableError",
    "Server",
    "ThreadsafeHandle",
    "TimerHandle",
    "TransportSocket",
    "attach",
    "begin_tls_with",
    "check_ssl_socket",
    "current_loop",
    "detach",
    "enterable",
    "format_handle",
    "give_unread",
    "has_said_goodbye",
    "is_entered",
    "leave_entered_context",
    "logger",
    "popen",
    "replaced_run",
    "report_callback",
    "run_handle",
    "run_soon",
    "set_result_unless_cancelled",
    "take_unread",
]
