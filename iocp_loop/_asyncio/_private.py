"""Every name of asyncio's that begins with an underscore, or lives in an undocumented module, and that we touch.

Checked on CPython 3.11, 3.12, 3.13 and 3.14. Nothing outside this page imports such a name. The hooks that
BaseEventLoop calls on its subclasses are listed in HOOKS, the attributes we read of it in ATTRIBUTES, and those of
other objects in FIELDS, wherever they are touched, so that tests can say which of them a new Python has changed.
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
# Up to 3.15. From 3.14 on the public name warns on access; who asks for a policy was warned by what brought them here.
BasePolicy: Any = getattr(events, "_BaseDefaultEventLoopPolicy", None) or getattr(
    events, "BaseDefaultEventLoopPolicy", None
)
if sys.platform == "win32":
    # The portable tests import this package elsewhere; they have no pipes and no processes.
    PipeHandle = windows_utils.PipeHandle

    def popen(*args: Any, **kwargs: Any) -> "windows_utils.Popen[bytes]":
        """Start a process. Looked up when it is called: that is where tests put a Popen of their own."""
        return windows_utils.Popen(*args, **kwargs)


def begin_running(loop: Any) -> None:
    """What BaseEventLoop.run_forever does before its first turn."""
    loop._set_coroutine_origin_tracking(loop._debug)
    loop._thread_id = threading.get_ident()
    sys.set_asyncgen_hooks(firstiter=loop._asyncgen_firstiter_hook, finalizer=loop._asyncgen_finalizer_hook)
    events._set_running_loop(loop)


def end_running(loop: Any, hooks: Any) -> None:
    """And after its last one: `hooks` are those for asynchronous generators that were there before. Twice is once."""
    loop._stopping = False
    loop._thread_id = None
    events._set_running_loop(None)
    loop._set_coroutine_origin_tracking(False)
    sys.set_asyncgen_hooks(*hooks)


def forget_stop(ready: Any) -> None:
    """Of a `run_until_complete` that ended by an exception, drop the callback that would stop the next run."""
    for handle in tuple(ready):
        # A program may have handles of its own.
        if getattr(handle, "_callback", None) is base_events._run_until_complete_cb:  # type: ignore[attr-defined]
            handle.cancel()


TransportSocket = trsock.TransportSocket

# Server._attach takes the transport from 3.13 on, where close_clients() and abort_clients() need to know it.
_ATTACH_TAKES_TRANSPORT = len(inspect.signature(Server._attach).parameters) > 1  # type: ignore[attr-defined]


# Read, set or called, of other objects of asyncio's.
FIELDS: dict[type, tuple[str, ...]] = {
    # A turn is made of handles: `_scheduling` fills them in, `_turn` runs them.
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
    """Whether something runs in a context already, so that nothing else can."""
    try:
        context.run(bool)
    except RuntimeError:
        return True
    return False


def enterable(context: Context) -> Context:
    """The context, or a copy of it where something runs in it."""
    return context.copy() if is_entered(context) else context


def leave_entered_context(handle: Any) -> bool:
    """Let a handle whose context something runs in have a copy of it. False if it could have run."""
    context = getattr(handle, "_context", None)
    if context is None or not is_entered(context):
        return False
    handle._context = context.copy()
    return True


class Handle(asyncio.Handle):
    """asyncio.Handle as it is outside debug mode, whose fields `call_soon` sets in place of `__init__`."""

    __slots__ = ()
    _source_traceback = None

    def _run(self) -> None:
        """For turns that are not ours, which may run inside a callback of the same context's."""
        leave_entered_context(self)
        super()._run()


class TimerHandle(asyncio.TimerHandle):
    """As `Handle`. Most timers are time-outs, and end by being cancelled: one function in place of asyncio's four."""

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
    """What a program has put in the place of `Handle._run`, to time callbacks say; None as a rule."""
    return None if asyncio.Handle._run is _run_as_made else asyncio.Handle._run


if hasattr(events, "_ThreadSafeHandle"):
    # From 3.14 on: one that another thread may cancel.
    class ThreadsafeHandle(events._ThreadSafeHandle):  # type: ignore[name-defined, misc]
        """As `Handle`, with a lock, which is set after the other fields."""

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
    """Say that a handle's callback raised, as `Handle._run` does."""
    options = {"debug": loop.get_debug()} if _FORMAT_TAKES_DEBUG else {}
    callback = format_helpers._format_callback_source(handle._callback, handle._args, **options)  # type: ignore[attr-defined]
    loop.call_exception_handler({"message": f"Exception in callback {callback}", "exception": exc, "handle": handle})


# None where the calling thread runs no loop.
current_loop: Any = events._get_running_loop
# Raises TypeError for a socket that is wrapped in TLS already.
check_ssl_socket: Any = base_events._check_ssl_socket  # type: ignore[attr-defined]
# How debug mode names a slow callback.
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
    """What a stream's reader has received and nobody has read: taken from it."""
    buffer = getattr(getattr(protocol, "_stream_reader", None), "_buffer", None)
    if not buffer:
        return b""
    data = bytes(buffer)
    buffer.clear()
    return data


def give_unread(protocol: Any, data: bytes) -> None:
    """Put back what `take_unread` took, in front of what has come meanwhile."""
    protocol._stream_reader._buffer[:0] = data


def begin_tls_with(transport: Any, before: Any, data: bytes) -> None:
    """Let the TLS that has taken over a transport from `before` find data in front of all that the transport brings."""
    protocol = transport.get_protocol()
    if protocol is not before:
        protocol._incoming.write(data)


def has_said_goodbye(protocol: Any, exc: BaseException | None) -> bool:
    """Whether asyncio's TLS ends its connection only because the peer goes on sending behind our close_notify.

    That is written then, as all that the program wrote before; the connection may be closed in order.
    """
    # OpenSSL's name for it (Python's documentation, ssl.SSLSocket.unwrap).
    if getattr(exc, "reason", None) != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" or not isinstance(protocol, SSLProtocol):
        return False
    protocol._process_outgoing()  # type: ignore[attr-defined]
    return True


def run_soon(loop: Any, handle: asyncio.Handle) -> None:
    """Let a Handle made earlier run in this turn: what `call_soon` does, without making a new one each time."""
    if not handle.cancelled():
        loop._ready.append(handle)


def run_handle(handle: asyncio.Handle) -> None:
    """Run a Handle's callback now, in its context; an exception is reported and goes no further."""
    if not handle.cancelled():
        handle._run()


def set_result_unless_cancelled(future: "asyncio.Future[None]", result: Any) -> None:
    """Settle a waiter that its owner may have cancelled meanwhile."""
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
