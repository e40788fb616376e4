"""Named pipes as asyncio transports, and the server that accepts them.

A read pipe, a write pipe and a duplex pipe are all stream transports over a pipe's handle; they differ in what the end
means. A write pipe keeps a read outstanding, which only serves to notice that the other end was closed.
"""

from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._endpoint import Endpoint
from .._core._operation import OverlappedEx
from .._handles import _pipes
from .._handles._base import error_of, winerror_of
from .._handles._threaded import ThreadedHandle
from .._win32.constants import Error
from ._acceptor import Acceptor
from ._messages import MessageReader, MessageWriter
from ._repeatable import repeatable
from ._services import Services
from ._stream import StreamTransport

# Instances that wait for a client. With only one, a client that comes after another, before the next instance is made,
# would find no pipe at all.
INSTANCES_WAITING = 2

# TransmitFile works for sockets only; asyncio's own pipe transports refuse loop.sendfile() too.
_NO_SENDFILE = private.SendfileMode.UNSUPPORTED


class _Absent:
    """Hides an inherited attribute: reading it raises AttributeError, so `hasattr` is False."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}")


class ReadPipeTransport(StreamTransport):
    """The reading end of a pipe. Like an `asyncio.ReadTransport`, it has no methods for writing."""

    # No slots: pipes are few, and tests replace methods of the instance when they imitate a subprocess's stream.

    writelines: Any = _Absent()
    write_eof: Any = _Absent()
    can_write_eof: Any = _Absent()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.write


class DuplexPipeTransport(StreamTransport):
    """A pipe for reading and writing: the client's end, or a server's instance, of a named pipe."""

    __slots__ = ()

    _sendfile_compatible = _NO_SENDFILE

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("a pipe has no end of file of its own: close it instead")


class MessagePipeTransport(DuplexPipeTransport):
    """A named pipe in message mode: each write is one message, and arrives as one `data_received`."""

    __slots__ = ()

    _reader_type = MessageReader
    _writer_type = MessageWriter


class WritePipeTransport(StreamTransport):
    """The writing end of a pipe. Closing it is the only end of file."""

    __slots__ = ()

    _sendfile_compatible = _NO_SENDFILE

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        # The other end is expected to send nothing, only to close.
        self._reader.set_protocol(_PeerWatch(self))
        kernel, endpoint = self.services.proactor.kernel, self._endpoint
        if isinstance(endpoint, ThreadedHandle) or not _pipes.is_readable(kernel, endpoint.handle):
            # No read is possible, so only a failed write shows that the other end is closed. On a handle that is not
            # overlapped, a pending read would even block the writes.
            self._reader.expect_nothing()

    def peer_closed(self) -> None:
        """Close, because the reading end is gone; with an error if bytes still wait to be written."""
        if self.get_write_buffer_size():
            self._force_close(BrokenPipeError("the reading end of the pipe was closed"))
        else:
            self.close()


class _PeerWatch:
    """The protocol of a write pipe's own reader."""

    __slots__ = ("_transport",)

    def __init__(self, transport: WritePipeTransport) -> None:
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        """Drop the data: nothing should come from the reading end."""

    def eof_received(self) -> bool:
        self._transport.peer_closed()
        return True


class PipeServer(Acceptor):
    r"""Serves a named pipe until `close`; `loop.start_serving_pipe` returns one. Used from the loop's thread only.

    Args:
        connect: called with (pipe object, its endpoint) in a context of its own; makes protocol and transport, and
            returns the transport. An exception is reported, and closes that connection only.
        name: ``\\.\pipe\...``
        on_closed: called with the server by its `close`.
        message_mode, remote: as for `_pipes.create_instance`.

    Raises:
        PermissionError: the name is taken (FILE_FLAG_FIRST_PIPE_INSTANCE).
    """

    def __init__(
        self,
        services: Services,
        connect: Callable[["private.PipeHandle", Any], StreamTransport],
        name: str,
        on_closed: Callable[["PipeServer"], object],
        *,
        message_mode: bool = False,
        remote: bool = False,
    ) -> None:
        super().__init__(services, connect)
        self._on_closed = on_closed
        self._name = name
        self._options = {"message_mode": message_mode, "remote": remote}
        self._waiting: dict[int, tuple[OverlappedEx, private.PipeHandle]] = {}  # by the operation's address
        self._arrived: dict[Endpoint, StreamTransport] = {}  # transports whose connection_made() is still to come
        self._closed = False
        self._add_instance(first=True)
        self._arm_all()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {'closed' if self._closed else 'serving'}>"

    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop serving and free the name. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._stop_waiting()
        self._on_closed(self)
        for operation, _ in list(self._waiting.values()):
            self._proactor.close_endpoint(operation.endpoint)
        # As on asyncio's own loop, a client that has only just arrived is not served.
        for transport in self._arrived.values():
            transport.abort()
        self._take_what_was_cancelled()  # This closes the instances, which frees the name.

    @repeatable
    def _arm_all(self) -> None:
        self._retry = None
        try:
            while not self._closed and len(self._waiting) < INSTANCES_WAITING:
                self._add_instance(first=False)
        except Exception as exc:
            self._arm_all_after(exc, "Pipe instance cannot be made", pipe=self._name)

    def _add_instance(self, *, first: bool) -> None:
        pipe = private.PipeHandle(
            _pipes.create_instance(self._proactor.kernel, self._name, first=first, **self._options)
        )
        try:
            endpoint = _pipes.open_overlapped(self._proactor, pipe.fileno(), pipe)
        except BaseException:
            pipe.close()
            raise
        try:
            operation = endpoint.connect_operation(self._on_connected)
        except BaseException:
            self._proactor.close_endpoint(endpoint)
            raise
        operation.context = self._context
        self._waiting[operation.address] = (operation, pipe)
        self._proactor.submit(operation)

    def _on_connected(self, operation: OverlappedEx, status: int, _byte_count: int) -> None:
        _, pipe = self._waiting.pop(operation.address)
        endpoint = operation.endpoint
        code = winerror_of(operation, status)
        self._proactor.release(operation)
        if endpoint.closing:
            return
        is_gone = code not in (Error.SUCCESS, Error.PIPE_CONNECTED)
        if pause := self._pause_after(failed=is_gone):
            self._arm_all_in(pause)
        else:
            # So that another instance waits before any code of the program runs.
            self._arm_all_before_serving(endpoint)
        if is_gone:
            # The client came and went (ERROR_NO_DATA), or the instance broke. No other instance is affected.
            private.logger.debug("a pipe client was gone before it was accepted: %r", error_of(operation, status))
            self._proactor.close_endpoint(endpoint)
            return
        transport = self._make_connection(endpoint, pipe, endpoint)
        if transport is not None:
            self._arrived[endpoint] = transport
            self._loop.call_soon(self._arrived.pop, endpoint)

    def _report_lost(self, exc: BaseException, *_accepted: Any) -> None:
        self._report("Error on transport creation for incoming pipe connection", exc, pipe=self._name)

    def _arm_all_before_serving(self, endpoint: Endpoint) -> None:
        try:
            self._arm_all()
        except BaseException:
            # An interrupt: close the client, which would wait for ever, and make the instances that are missing.
            self._proactor.close_endpoint(endpoint)
            self._loop.call_soon(self._arm_all)
            raise
