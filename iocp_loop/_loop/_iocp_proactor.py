"""IocpProactor: the methods of the stdlib's proactor, each returning a future, over our operations.

`asyncio.ProactorEventLoop(iocp_loop.IocpProactor())` works, and IocpEventLoop's `sock_*` methods use it. Transports do
not: they avoid a future per packet.

Cancelling one of these futures loses nothing: see `_futures`.
"""

import asyncio
import socket
import weakref
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._asyncio._futures import (
    Convert,
    OperationFuture,
    ReadyFuture,
    SendFuture,
    keep_bytes,
    keep_datagram,
    undelivered,
)
from .._core._operation import SEND_MAX, IoType, OverlappedEx, ReadOperation
from .._core._proactor import Proactor
from .._handles import _pipes, _waits
from .._handles._base import IoHandle, StreamHandle
from .._handles._opening import open_socket
from .._handles._shared_sockets import PerformedOperation
from .._handles._sockets import SocketHandle, bind_to_any, closed_error, is_this_machine
from .._win32 import sockaddr
from .._win32.constants import LENGTH_MAX, Error, WsaError
from .._win32.errors import is_shortage, os_error

# One call of WaitNamedPipe blocks a worker thread for at most this long. After it the task may have been cancelled.
_PIPE_WAIT_MS = 200


class IocpProactor:
    """The stdlib proactor's interface over `Proactor`.

    Args:
        core: the proactor to work on; a new one if None.

    Used from the loop's thread only. Every method that starts an operation returns a future of the loop that was passed
    to `set_loop`, and raises OSError if the handle cannot be associated with the port.
    """

    def __init__(self, *, core: Proactor | None = None) -> None:
        self.core = Proactor() if core is None else core
        self._loop: Any = None
        self._known: dict[int, tuple[weakref.ref[Any], IoHandle]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.core!r}>"

    def set_loop(self, loop: Any) -> None:
        """Set the loop whose futures the methods return."""
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait, and deliver every result, as a stdlib loop expects. Returns an empty list."""
        settled = self.core.select(timeout)
        for _ in range(len(settled)):
            operation, status, byte_count = settled.popleft()
            operation.deliver(operation, status, byte_count)
        return []

    def close(self) -> None:
        """Cancel everything, wait for the packets, close the port. Bounded in time (see `Proactor.close`).

        A second call does nothing.
        """
        if self.core.port.closed:
            return
        if self._loop is not None and not self._loop.is_closed():
            for operation in list(self.core.pending.values()):
                self.core.cancel(operation)
        stuck = self.core.close()
        if stuck and self._loop is not None:
            self._loop.call_exception_handler(
                {"message": f"{len(stuck)} operations did not end in time; their memory is kept: {stuck!r}"}
            )
        self._loop = None

    # -- endpoints ---------------------------------------------------------------------------------------------

    def endpoint(self, conn: Any) -> Any:
        """The endpoint of a socket or pipe object that somebody else owns. It is associated on first use.

        Raises:
            OSError: it is closed, or cannot be associated with the port.
            TypeError, ValueError: a pipe object has no handle, or an ambiguous one (see `_pipes.handle_of`).
        """
        is_socket = isinstance(conn, socket.socket)
        handle = conn.fileno() if is_socket else _pipes.handle_of(conn)
        known = self._known.get(handle)
        if known is not None and known[0]() is conn:
            return known[1]
        if handle < 0:
            raise closed_error(conn)
        endpoint: IoHandle = open_socket(self.core, conn) if is_socket else _pipes.open_overlapped(self.core, handle)

        def forget(_reference: Any) -> None:
            self.core.forget(endpoint)
            if (current := self._known.get(handle)) is not None and current[1] is endpoint:
                del self._known[handle]

        if known is not None:
            # The owner closed the handle and the system reused its value, but the old object still exists, in a
            # traceback for example.
            self.core.forget(known[1])
        self._known[handle] = (weakref.ref(conn, forget), endpoint)
        return endpoint

    def adopt(self, conn: Any, endpoint: IoHandle) -> None:
        """Remember the endpoint of an object that was associated elsewhere, an accepted socket for example."""
        self._known[conn.fileno()] = (weakref.ref(conn), endpoint)

    def take(self, conn: Any) -> Any:
        """Give a socket's endpoint to a transport, which must close socket and endpoint."""
        endpoint = self.endpoint(conn)
        del self._known[conn.fileno()]
        endpoint.owner = conn
        return endpoint

    def _submit(self, operation: OverlappedEx, conn: Any, convert: Convert) -> OperationFuture:
        return self._begin(OperationFuture(self.core, operation, convert, self._loop, conn))

    def _begin(self, future: OperationFuture) -> OperationFuture:
        try:
            future.begin()
            return future
        except BaseException:
            future.cancel()  # An interrupt: nobody gets this future. Data that it brings go to the next receive.
            raise

    def _result(self, value: Any) -> "asyncio.Future[Any]":
        future = ReadyFuture(loop=self._loop)
        future.set_result(value)
        return future

    # -- streams -----------------------------------------------------------------------------------------------

    def recv(self, conn: Any, nbytes: int, flags: int = 0) -> "asyncio.Future[bytes]":
        """Receive up to `nbytes` bytes from a socket or pipe; b"" at the end of the stream."""
        handle: StreamHandle = self.endpoint(conn)
        if handle.unread:
            return self._result(_take_unread(handle, nbytes))
        operation = self._receive(handle, _receive_buffer(handle, nbytes), flags)
        return self._submit(operation, conn, lambda operation, count: operation.buffer[:count])

    def recv_into(self, conn: Any, buf: Any, flags: int = 0) -> "asyncio.Future[int]":
        """Receive into a writable buffer, which is pinned until the future is done. The result is the byte count."""
        handle: StreamHandle = self.endpoint(conn)
        view = memoryview(buf).cast("B")
        if handle.unread:
            return self._result(_copy_into(view, _take_unread(handle, len(view))))
        operation = self._receive(handle, view, flags)
        return self._submit(operation, conn, lambda _operation, count: count)

    def give_back(self, conn: Any, data: bytes) -> None:
        """Put received bytes back, because the task that waited was cancelled. The next receive begins with them."""
        keep_bytes(self.core, self.endpoint(conn), data, first=True)

    def give_back_datagram(self, conn: Any, data: bytes, sender: Any) -> None:
        """Put a received datagram back, because the task that waited was cancelled. The next receive returns it."""
        keep_datagram(self.core, self.endpoint(conn), data, sender, first=True)

    def _receive(self, handle: StreamHandle, buffer: Any, flags: int) -> OverlappedEx:
        operation = handle.receive_operation(undelivered, buffer)
        if isinstance(operation, (ReadOperation, PerformedOperation)):
            operation.flags = flags
        return operation

    def send(self, conn: Any, buf: Any, flags: int = 0) -> "asyncio.Future[int]":
        """Send all of a buffer. The result is the byte count. The sends of several tasks run one after the other."""
        handle: StreamHandle = self.endpoint(conn)
        with memoryview(buf).cast("B") as view:
            size, sent = len(view), 0
            # Not on a blocking socket, where this call would block the loop; an overlapped send returns at once.
            if (
                handle.sends_at_once
                and conn.gettimeout() == 0
                and not handle.sends
                and not any(op.io_type is IoType.WRITE for op in handle.operations)
            ):
                sent = _send_now(conn, view, flags)
                if sent == size:
                    return self._result(sent)
            rest = bytes(view[sent:])
        operation = handle.send_operation(undelivered)
        # A pipe may be in message mode, where each call sends one message, so one call must send as much as it can.
        limit = SEND_MAX if handle.sends_at_once else LENGTH_MAX
        return self._begin(SendFuture(self.core, operation, self._loop, conn, handle, rest, sent, limit))

    # -- datagrams ---------------------------------------------------------------------------------------------

    def recvfrom(self, conn: Any, nbytes: int, flags: int = 0) -> "asyncio.Future[tuple[bytes, Any]]":
        """Receive one datagram and its sender's address."""
        handle: SocketHandle = self.endpoint(conn)
        if handle.unread_datagrams:
            return self._kept_datagram(handle, nbytes, lambda data: data)
        operation = self._receive_from(handle, _receive_buffer(handle, nbytes), flags)
        return self._submit(operation, conn, lambda op, count: (op.buffer[:count], handle.sender_of(op)))

    def recvfrom_into(self, conn: Any, buf: Any, nbytes: int = 0, flags: int = 0) -> "asyncio.Future[tuple[int, Any]]":
        """Receive one datagram into a writable buffer, at most `nbytes` of it (0: as many as it holds)."""
        view = memoryview(buf).cast("B")
        if not 0 <= nbytes <= len(view):
            raise ValueError(f"nbytes is {nbytes}, but the buffer holds {len(view)}")
        handle: SocketHandle = self.endpoint(conn)
        if handle.unread_datagrams:
            return self._kept_datagram(handle, nbytes or len(view), lambda data: _copy_into(view, data))
        operation = self._receive_from(handle, view[:nbytes] if nbytes else view, flags)
        return self._submit(operation, conn, lambda op, count: (count, handle.sender_of(op)))

    def _receive_from(self, handle: SocketHandle, buffer: Any, flags: int) -> Any:
        operation: Any = handle.receive_from_operation(undelivered, buffer)
        operation.flags = flags
        return operation

    def _kept_datagram(self, handle: SocketHandle, nbytes: int, take: Callable[[bytes], Any]) -> "asyncio.Future[Any]":
        data, sender = handle.unread_datagrams.pop(0)  # type: ignore[union-attr]
        if len(data) <= nbytes:
            return self._result((take(data), sender))
        # The kernel's answer to a datagram that is longer than the buffer.
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(os_error(WsaError.MSGSIZE, IoType.READ_FROM.name, handle.subject))
        return future

    def sendto(self, conn: Any, buf: Any, flags: int = 0, addr: Any = None) -> "asyncio.Future[int]":
        """Send one datagram to an address. The result is the byte count."""
        if conn.gettimeout() == 0:  # Not on a blocking socket; see `send`.
            try:
                return self._result(conn.sendto(buf, flags, addr))
            except (BlockingIOError, InterruptedError):
                pass  # The socket's buffer is full: an overlapped send waits for room.
            except OSError as exc:
                if not is_shortage(exc):
                    raise
        packed = sockaddr.resolve(conn.family, addr)
        handle: SocketHandle = self.endpoint(conn)
        operation = handle.send_to_operation(undelivered, bytes(buf), packed)
        return self._submit(operation, conn, lambda _operation, count: count)

    # -- connections -------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> "asyncio.Future[tuple[socket.socket, Any]]":
        """Accept one connection. The result is the new socket, with its listener's time-out, and the peer's address."""
        handle: SocketHandle = self.endpoint(listener)
        operation: Any = handle.accept_operation(undelivered, listener)
        handle.prepare_accept(operation)

        def finish(operation: Any, _count: int) -> tuple[socket.socket, Any]:
            conn = handle.finish_accept(operation.arriving, listener)
            conn.settimeout(listener.gettimeout())
            return conn, conn.getpeername()

        return self._submit(operation, listener, finish)

    def connect(self, conn: Any, address: Any) -> "asyncio.Future[None]":
        """Connect a socket to a resolved address."""
        if conn.type == socket.SOCK_DGRAM:
            sockaddr.encode(conn.family, address)  # Raises TypeError if it is not an address.
            conn.connect(address)  # Sets the peer and returns at once.
            return self._result(None)
        handle: SocketHandle = self.endpoint(conn)
        bind_to_any(conn)
        operation = handle.connect_operation(undelivered, conn, address)
        if is_this_machine(address):
            self.core.kernel.hasten_refusal(conn)

        def finish(_operation: OverlappedEx, _count: int) -> None:
            handle.finish_connect(conn)

        return self._submit(operation, conn, finish)

    def sendfile(self, sock: Any, file: Any, offset: int, count: int) -> "asyncio.Future[int]":
        """Send `count` bytes of a file from `offset` (TransmitFile). The result is the byte count."""
        handle: SocketHandle = self.endpoint(sock)
        operation = handle.transmit_operation(undelivered, sock, file, offset, count)
        return self._submit(operation, sock, lambda _operation, sent: sent)

    # -- pipes -------------------------------------------------------------------------------------------------

    def accept_pipe(self, pipe: Any) -> "asyncio.Future[Any]":
        """Wait for a client on a pipe server instance. The result is the pipe object."""
        handle: _pipes.OverlappedPipe = self.endpoint(pipe)
        operation = handle.connect_operation(undelivered)
        return self._submit(operation, pipe, lambda _operation, _count: pipe)

    async def connect_pipe(self, address: str) -> Any:
        """Open a named pipe as a client. While every instance is busy, wait until one is free."""
        kernel = self.core.kernel
        while True:
            try:
                return private.PipeHandle(_pipes.open_client(kernel, address))
            except OSError as exc:
                if getattr(exc, "winerror", None) != Error.PIPE_BUSY:
                    raise
            # If the task is cancelled, the worker thread goes on until its own time-out, but it holds no handle.
            await self._loop.run_in_executor(None, _pipes.wait_for_instance, kernel, address, _PIPE_WAIT_MS)

    # -- other handles -----------------------------------------------------------------------------------------

    def wait_for_handle(self, handle: Any, timeout: float | None = None) -> "asyncio.Future[bool]":
        """Wait until a handle is signalled. True, or False after `timeout` seconds (None: for ever)."""
        return self._wait(handle, timeout)

    def _wait_cancel(self, event: Any, done_callback: Callable[[Any], object]) -> "asyncio.Future[bool]":
        # The stdlib's own wait futures use this to cancel; ours do not, but the method is part of the interface.
        future = self._wait(event, None)
        future.add_done_callback(done_callback)
        return future

    def _wait(self, handle: Any, timeout: float | None) -> OperationFuture:
        operation = _waits.wait_operation(self.core, int(handle), undelivered, timeout)
        return self._submit(operation, None, _waits.is_signalled)

    # -- other methods that a stdlib loop calls ----------------------------------------------------------------

    def _stop_serving(self, obj: Any) -> None:
        """Cancel the outstanding accepts of a listener that its owner is about to close."""
        known = self._known.get(obj.fileno())
        if known is not None and known[0]() is obj:
            self.core.cancel_all(known[1])

    def _unregister(self, operation: OverlappedEx) -> None:
        """Do nothing: our operations are taken back when their packets are dequeued, and not before."""


def _send_now(conn: Any, view: memoryview, flags: int) -> int:
    """Send by the socket's own call, SEND_MAX at a time, until it would wait. Returns how many bytes were sent."""
    sent = 0
    try:
        while sent < len(view):
            with view[sent : sent + SEND_MAX] as piece:
                taken = conn.send(piece, flags)
                sent += taken
                if taken < len(piece):
                    break
    except (BlockingIOError, InterruptedError):
        pass  # The caller sends the rest by an overlapped send.
    except OSError as exc:
        if not is_shortage(exc):
            raise
    return sent


def _receive_buffer(handle: StreamHandle, size: int) -> Any:
    if size < 0:
        raise ValueError(f"the number of bytes to receive must be 0 or more, not {size}")
    return handle.receive_buffer(size)


def _copy_into(view: memoryview, data: bytes) -> int:
    view[: len(data)] = data
    return len(data)


def _take_unread(handle: IoHandle, nbytes: int) -> bytes:
    data, handle.unread = handle.unread[:nbytes], handle.unread[nbytes:]
    return data


__all__ = ["IocpProactor"]
