"""A connection as an asyncio transport: a TCP socket or a named pipe, with a reader and a writer of its own.

Closing: close() stops reading, lets the writer finish, then gives the endpoint to the proactor: cancel, wait for zero,
close the handle, and connection_lost by call_soon. abort() does not wait for the writer.
"""

import asyncio
import contextvars
import socket
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import _asyncio_private as private
from .. import _sockets
from .._endpoint import Endpoint
from .._win32 import sockaddr
from ._reader import Reader
from ._writer import Writer

if TYPE_CHECKING:
    from .._loop import IocpEventLoop


class StreamTransport(asyncio.Transport):
    """One connected socket or pipe; made by the loop, never by users. Not thread-safe, as all of asyncio."""

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_endpoint",
        "_exception",
        "_handle",
        "_is_overdue",
        "_protocol",
        "_reader",
        "_server",
        "_writer",
        "context",
        "loop",
        "write",
    )

    # The names that asyncio's sendfile and TLS code look for.
    _sendfile_compatible = private.SendfileMode.TRY_NATIVE
    _start_tls_compatible = True

    _reader_type = Reader
    _writer_type = Writer
    # The writer's own method, not a wrapper of it: one call less per message.
    write: Callable[[Any], None]  # type: ignore[assignment]

    def __init__(
        self,
        loop: "IocpEventLoop",
        endpoint: Endpoint,
        handle: Any,
        protocol: Any,
        *,
        waiter: "asyncio.Future[None] | None" = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        addresses: tuple[bytes, bytes] | None = None,
        verbs: ModuleType | None = None,
    ) -> None:
        super().__init__(extra)
        if server is not None:
            # First: a server that its own protocol factory closed refuses, and this is no transport yet.
            private.attach(server, self)
        if verbs is None:
            verbs = _sockets.verbs_of(endpoint)
        self.loop = loop
        self.context = contextvars.copy_context()
        self._endpoint = endpoint
        self._handle = handle
        self._server = server
        self._addresses = addresses
        self._exception: BaseException | None = None
        self._is_overdue = False  # connection_lost had its turn before the kernel had let go of the endpoint
        self._reader = self._reader_type(self, endpoint, verbs, getattr(handle, "recv_into", None))
        self._writer = self._writer_type(self, endpoint, verbs, getattr(handle, "send", _never_at_once))
        self.write = self._writer.write
        self.set_protocol(protocol)
        loop.call_soon(self._start, waiter, context=self.context)

    def _start(self, waiter: "asyncio.Future[None] | None") -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # As on asyncio's own loops: reported, and the connection goes on.
            self._report("Exception in callback protocol.connection_made()", exc)
        self._reader.arm()
        if waiter is not None:
            private.set_result_unless_cancelled(waiter, None)

    def __repr__(self) -> str:
        parts = [type(self).__name__]
        if self._handle is None:
            parts.append("closed")
        else:
            parts.append("closing" if self.is_closing() else "open")
            parts.append(f"fd={self._endpoint.handle}")
            parts.append("paused" if self._reader.paused else "reading")
            parts.append(f"bufsize={self._writer.queued_size}")
        return f"<{' '.join(parts)}>"

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            # Nothing is pending: an operation of ours would have kept us alive. If a proactor that was closed has kept
            # the handle open, it must stay so: a call that could not be interrupted is still using it.
            self.loop.proactor.close_endpoint(self._endpoint)

    # -- what a protocol may ask -------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio.BaseTransport; `socket`, `sockname` and `peername` are worked out when first asked for."""
        extra: dict[str, Any] = self._extra  # type: ignore[attr-defined]
        if name not in extra:
            if name == "socket" and isinstance(self._handle, socket.socket):
                extra["socket"] = private.TransportSocket(self._handle)
            elif name in ("sockname", "peername") and self._addresses is not None:
                local, remote = self._addresses
                extra["sockname"], extra["peername"] = sockaddr.decode(local), sockaddr.decode(remote)
        return extra.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        self._reader.set_protocol(protocol)

    def get_protocol(self) -> Any:
        return self._protocol

    def is_closing(self) -> bool:
        return self._reader.stopped

    def is_reading(self) -> bool:
        return not self._reader.paused and not self._reader.stopped

    def pause_reading(self) -> None:
        if not self._reader.stopped:
            self._reader.pause()

    def resume_reading(self) -> None:
        self._reader.resume()

    def writelines(self, list_of_data: Any) -> None:
        self._writer.writelines(list_of_data)

    def can_write_eof(self) -> bool:
        return self._endpoint.is_socket

    def write_eof(self) -> None:
        if not self.can_write_eof():
            raise NotImplementedError("a pipe has no end of file of its own; close it instead")
        self._writer.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._writer.flow.set_limits(high, low)
        self._writer.flow.grown(self._writer.queued_size)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._writer.flow.limits()

    def get_write_buffer_size(self) -> int:
        return self._writer.queued_size

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._reader.stopped:
            return
        if self._writer.finish():
            self._reader.stop(cancel=False)
            self.close_endpoint(None)
        else:
            # The writer calls close_endpoint when the last byte is out. Nothing more will be read.
            self._reader.stop(cancel=True)

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._endpoint.closing:
            return
        self._reader.stop(cancel=False)
        self._writer.abandon(exc)
        self.close_endpoint(exc)

    def _on_closed(self) -> None:
        if self._is_overdue:
            self.loop.call_soon(self._call_connection_lost, context=self.context)

    def _call_connection_lost(self) -> None:
        if self._endpoint.operations:
            # The packet of a cancelled operation is still on its way; _on_closed will call again.
            self._is_overdue = True
            return
        exc, self._exception = self._exception, None
        protocol, server = self._protocol, self._server
        try:
            protocol.connection_lost(exc)
        finally:
            self._handle = self._server = self._protocol = None
            self._reader.release()
            self._writer.release()
            if server is not None:
                private.detach(server, self)

    # -- for the reader and the writer -------------------------------------------------------------------------

    def fatal_error(self, exc: BaseException, message: str) -> None:
        """End the connection because of `exc`: reported if it is the program's fault, else for connection_lost."""
        if isinstance(exc, OSError):
            if self.loop.get_debug():
                private.logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self._report(message, exc)
        self._force_close(exc)

    def close_endpoint(self, exc: BaseException | None) -> None:
        """Give the endpoint to the proactor to be closed; connection_lost(exc) follows."""
        if not self._endpoint.closing:
            self._exception = exc
            # Queued now, not when the handle is closed, so that connection_lost keeps its place among the callbacks as
            # on asyncio's other loops. By its turn the cancelled receive's packet has come, as a rule.
            self.loop.call_soon(self._call_connection_lost, context=self.context)
            self.loop.proactor.close_endpoint(self._endpoint, self._on_closed)

    def shutdown_writing(self) -> None:
        """Send the end of file."""
        try:
            self._handle.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.fatal_error(exc, "Fatal error on shutting down a socket for writing")

    def tell_protocol(self, what: str) -> None:
        """Call `pause_writing` or `resume_writing`."""
        try:
            getattr(self._protocol, what)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(f"protocol.{what}() failed", exc)

    def _report(self, message: str, exc: BaseException) -> None:
        self.loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    # -- for loop.sendfile -------------------------------------------------------------------------------------

    def make_empty_waiter(self) -> "asyncio.Future[None]":
        """Refuse writes; the future is done when all earlier ones have gone out."""
        return self._writer.make_empty_waiter()

    def reset_empty_waiter(self) -> None:
        """Accept writes again."""
        self._writer.reset_empty_waiter()

    @property
    def endpoint(self) -> Endpoint:
        """The record of the handle under this transport."""
        return self._endpoint

    @property
    def handle(self) -> Any:
        """The socket or pipe object under this transport; None once it is closed."""
        return self._handle


def _never_at_once(_data: Any) -> int:
    """What a pipe takes without an overlapped call: nothing."""
    return 0
