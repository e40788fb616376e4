"""Verbs on sockets that belong to another port, loop or process: the same names as in `_sockets.py`.

A handle is associated with one port for life, and so are its duplicates, in whatever process (MSDN,
CreateIoCompletionPort). No overlapped operation on it can ever report to ours. But it can be polled through ours, and
once it is ready the ordinary call of the socket does not wait. So an operation here stands in a queue of its endpoint,
one for each direction, until the socket is ready; then it is performed, and settled like any other. The layers above
see no difference but in speed, one poll more per operation.

Whoever shares the socket may be quicker: then the call would block after all, and the operation stays in its queue.

The operations are in the proactor's pending table like all others, but the kernel never sees them: it owns the poll,
and writes into buffers only during the call.
"""

import contextlib
import functools
import socket
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .._core._endpoint import Endpoint
from .._core._operation import Deliver, IoType, OverlappedEx, PerformedOperation
from .._core._proactor import Proactor
from .._win32 import sockaddr
from .._win32.constants import LENGTH_MAX, Status, WsaError
from .._win32.errors import os_error, status_from_winerror
from .._win32.layers import base_handle
from . import _readiness, _sockets
from ._readiness import Interest, Registration

# TransmitFile is overlapped or waits; files are read and sent instead.
CAN_TRANSMIT = False

# How accept() says that a client was gone before it was accepted (MSDN, accept, WSAECONNRESET).
# QUIRK(wine): it says "not connected".
_CLIENT_GONE = frozenset({WsaError.CONNRESET, WsaError.CONNABORTED, WsaError.NOTCONN})

receive_outcome = _sockets.receive_outcome


class ForeignEndpoint(Endpoint):
    """A socket of another port, served through readiness.

    It does not keep the socket object alive: its owner does, and so does each operation.
    """

    __slots__ = ("reading", "sock", "writing")

    def __init__(self, proactor: Proactor, sock: socket.socket, owner: Any) -> None:
        super().__init__(sock.fileno(), owner, "socket")
        self.verbs = sys.modules[__name__]
        self.sock = weakref.ref(sock)
        base = base_handle(proactor.kernel, self.handle)
        self.reading = _Queue(proactor, self.handle, base, Interest.READ)
        self.writing = _Queue(proactor, self.handle, base, Interest.WRITE)


class _Queue:
    """The operations of one direction, in order, until the socket is ready for them."""

    __slots__ = ("_base", "_handle", "_interest", "_proactor", "_registration", "_waiting")

    def __init__(self, proactor: Proactor, handle: int, base: int, interest: Interest) -> None:
        self._proactor = proactor
        self._handle = handle
        self._base = base
        self._interest = interest
        self._registration: Registration | None = None
        self._waiting: deque[PerformedOperation] = deque()

    def join(self, address: int) -> int:
        """`start` of an operation whose socket is probably not ready."""
        operation: Any = self._proactor.pending[address]
        operation.stop = functools.partial(self._give_up, operation.address)
        if operation not in self._waiting:  # It is, where an interrupt has ended the first call: see `in_kernel`.
            self._waiting.append(operation)
        if self._registration is None:
            readiness = _readiness.of(self._proactor)
            try:
                self._registration = readiness.watch(self._handle, self._interest, self._on_ready, self._base)
            except (OSError, MemoryError) as exc:
                self._waiting.remove(operation)
                is_memory = isinstance(exc, MemoryError)
                return Status.NO_MEMORY if is_memory else status_from_winerror(getattr(exc, "winerror", None) or 0)
        return Status.PENDING

    def perform_or_join(self, address: int) -> int:
        """`start` of an operation that begins with a call of its own."""
        operation: Any = self._proactor.pending[address]
        return Status.PENDING if self._perform(operation) else self.join(address)

    def _on_ready(self, closed: bool, reset: bool) -> None:
        if closed:
            self._registration = None
        waiting = self._waiting
        while waiting and self._perform(waiting[0], closed, reset):
            waiting.popleft()
        self._leave_if_empty()

    def _perform(self, operation: PerformedOperation, closed: bool = False, reset: bool = False) -> bool:
        """True if the operation is over."""
        status = byte_count = 0
        try:
            byte_count = operation.perform(operation)
            if reset and operation.io_type is IoType.READ and not byte_count:
                # QUIRK(wine): Wine 8 lets recv() call a reset the end of the stream; AFD knows better.
                status = Status.CONNECTION_RESET
        except (BlockingIOError, InterruptedError):
            if not closed:
                return False  # Somebody else was quicker, or there was room for a part only.
            status = status_from_winerror(WsaError.NOTSOCK)
        except MemoryError:
            status = Status.NO_MEMORY  # As the kernel itself would say it.
        except OSError as exc:
            status = status_from_winerror(getattr(exc, "winerror", None) or 0)
        self._proactor.complete(operation, status, byte_count)
        return True

    def _give_up(self, address: int) -> None:
        """`stop` of an operation: nobody but us has it."""
        operation: Any = self._proactor.pending[address]
        self._waiting.remove(operation)
        self._leave_if_empty()
        self._proactor.complete(operation, Status.CANCELLED, 0)

    def _leave_if_empty(self) -> None:
        if not self._waiting and self._registration is not None:
            registration, self._registration = self._registration, None
            _readiness.of(self._proactor).unwatch(registration)


def register(proactor: Proactor, sock: socket.socket, owner: Any = None) -> ForeignEndpoint:
    """The endpoint of a socket that cannot be associated; `_sockets.register` comes here by itself.

    Raises:
        RuntimeError: a transport or server of this very port owns the socket.
        ValueError: the socket is blocking; whoever shares it could make us wait.
        OSError: not a socket.
    """
    _readiness.refuse_owned(proactor, sock.fileno())
    if sock.gettimeout() != 0:
        raise ValueError(f"the socket must be non-blocking: socket {sock.fileno()} belongs to another port")
    endpoint = ForeignEndpoint(proactor, sock, owner)
    proactor.enrol(endpoint)
    return endpoint


def _operation(
    proactor: Proactor,
    endpoint: ForeignEndpoint,
    io_type: IoType,
    perform: Callable[[PerformedOperation], int],
    start: Callable[[int], int],
) -> PerformedOperation:
    operation = proactor.arena.operation(PerformedOperation, io_type)
    operation.endpoint = endpoint
    operation.perform = perform
    operation.start = start
    operation.args = (operation.address,)
    operation.progress = 0
    operation.target = None
    return operation


def _socket_of(operation: PerformedOperation) -> socket.socket:
    sock: socket.socket | None = operation.endpoint.sock()  # type: ignore[attr-defined]
    if sock is None:
        raise os_error(WsaError.NOTSOCK, operation.io_type.name, operation.endpoint.subject)
    return sock


# -- streams ---------------------------------------------------------------------------------------------------


def receive_buffer(proactor: Proactor, size: int) -> Any:
    """As in `_sockets`: an array, because it is Python that fills it."""
    return proactor.arena.buffer(size)


def receive_operation(
    proactor: Proactor, endpoint: ForeignEndpoint, deliver: Deliver, buffer: Any
) -> PerformedOperation:
    """As in `_sockets`."""
    operation = _operation(proactor, endpoint, IoType.READ, _receive, endpoint.reading.join)
    operation.deliver = deliver
    set_receive_buffer(operation, buffer)
    return operation


def set_receive_buffer(operation: PerformedOperation, buffer: Any, size: int | None = None) -> None:
    """As in `_sockets`."""
    operation.buffer = buffer if size is None else memoryview(buffer).cast("B")[:size]


def _receive(operation: PerformedOperation) -> int:
    return _socket_of(operation).recv_into(operation.buffer, 0, operation.flags)


def send_operation(proactor: Proactor, endpoint: ForeignEndpoint, deliver: Deliver) -> PerformedOperation:
    """As in `_sockets`: it is over when all is sent, or the stream is broken."""
    operation = _operation(proactor, endpoint, IoType.WRITE, _send, endpoint.writing.join)
    operation.deliver = deliver
    return operation


def set_send_vector(
    operation: PerformedOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX
) -> None:
    """As in `_sockets`."""
    operation.buffer = chunks
    operation.target = skip, skip + limit
    operation.progress = skip


def set_send_buffer(operation: PerformedOperation, buffer: Any) -> None:
    """As in `_sockets`."""
    set_send_vector(operation, [memoryview(buffer).cast("B")])  # type: ignore[list-item]


def _send(operation: PerformedOperation) -> int:
    sock, skip, (first, end) = _socket_of(operation), operation.progress, operation.target
    for chunk in operation.buffer:
        view = memoryview(chunk)[skip:]
        skip = max(0, skip - len(chunk))
        while view and operation.progress < end:
            sent = sock.send(view[: end - operation.progress])
            operation.progress += sent
            view = view[sent:]
    return operation.progress - int(first)


# -- connections -----------------------------------------------------------------------------------------------


class _Arrival:
    """The place of a connection that has not come yet, where `_sockets` has a socket made in advance."""

    __slots__ = ("conn", "peer")

    def __init__(self) -> None:
        self.conn: socket.socket | None = None
        self.peer: Any = None

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()


def accept_operation(
    proactor: Proactor, endpoint: ForeignEndpoint, _listener: socket.socket, deliver: Deliver
) -> PerformedOperation:
    """As in `_sockets`."""
    operation = _operation(proactor, endpoint, IoType.ACCEPT, _accept, endpoint.reading.join)
    operation.deliver = deliver
    return operation


def prepare_accept(operation: PerformedOperation, _listener: socket.socket) -> None:
    """As in `_sockets`; no socket is made in advance."""
    operation.target = operation.keepalive = _Arrival()


def _accept(operation: PerformedOperation) -> int:
    arrival: _Arrival = operation.target
    while arrival.conn is None:
        try:
            conn, arrival.peer = _socket_of(operation).accept()
            if arrival.peer is None:
                conn.close()  # QUIRK(wine): so Wine 10 says that the client was gone.
            else:
                arrival.conn = conn
        except OSError as exc:
            if getattr(exc, "winerror", None) not in _CLIENT_GONE:
                raise
            # The next one, please.
    arrival.conn.setblocking(False)
    return 0


def accepted_addresses(
    _proactor: Proactor, operation: PerformedOperation, _listener: socket.socket
) -> tuple[bytes, bytes]:
    """As in `_sockets`."""
    arrival: _Arrival = operation.target
    assert arrival.conn is not None
    family, local = arrival.conn.family, b""
    with contextlib.suppress(OSError):  # Gone again: registering it will tell.
        local = sockaddr.encode(family, arrival.conn.getsockname())
    return local, sockaddr.encode(family, arrival.peer)


def finish_accept(_operation: PerformedOperation, _listener: socket.socket, arrival: _Arrival) -> socket.socket:
    """As in `_sockets`: accept() has done it already."""
    assert arrival.conn is not None
    return arrival.conn


def connect_operation(
    proactor: Proactor, endpoint: ForeignEndpoint, sock: socket.socket, address: Any
) -> PerformedOperation:
    """As in `_sockets`."""
    sockaddr.encode(sock.family, address)  # Raises for what is no address.
    operation = _operation(proactor, endpoint, IoType.CONNECT, _connect, endpoint.writing.perform_or_join)
    operation.target = address
    return operation


def _connect(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    if operation.progress:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    else:
        operation.progress = 1  # From here on it is under way, and readiness says how it ended.
        code = sock.connect_ex(operation.target)
    if code == WsaError.WOULDBLOCK:
        raise BlockingIOError
    if code:
        raise os_error(code, "connect", operation.endpoint.subject)
    return 0


def finish_connect(_sock: socket.socket) -> None:
    """As in `_sockets`: connect() has done it already."""


def transmit_operation(
    _proactor: Proactor, endpoint: ForeignEndpoint, _sock: socket.socket, _file: Any, _offset: int, _count: int
) -> PerformedOperation:
    """As in `_sockets`, but never available."""
    raise os_error(
        WsaError.OPNOTSUPP, "TransmitFile", endpoint.subject, "the socket belongs to another port; read and send"
    )


# -- datagrams -------------------------------------------------------------------------------------------------


def receive_from_operation(
    proactor: Proactor, endpoint: ForeignEndpoint, deliver: Deliver, buffer: Any
) -> PerformedOperation:
    """As in `_sockets`."""
    operation = _operation(proactor, endpoint, IoType.READ_FROM, _receive_from, endpoint.reading.join)
    operation.deliver = deliver
    set_receive_buffer(operation, buffer)
    return operation


def _receive_from(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    byte_count, operation.target = sock.recvfrom_into(operation.buffer, 0, operation.flags)
    return byte_count


def sender_of(operation: PerformedOperation) -> Any:
    """As in `_sockets`."""
    return operation.target


def set_sender(operation: PerformedOperation, sender: Any) -> None:
    """As in `_sockets`."""
    operation.target = sender


def send_to_operation(
    proactor: Proactor, endpoint: ForeignEndpoint, data: bytes, packed_address: bytes
) -> PerformedOperation:
    """As in `_sockets`."""
    operation = _operation(proactor, endpoint, IoType.WRITE_TO, _send_to, endpoint.writing.join)
    operation.buffer = data
    operation.target = sockaddr.decode(packed_address) if packed_address else None
    return operation


def _send_to(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    if operation.target is None:
        return sock.send(operation.buffer)
    return sock.sendto(operation.buffer, operation.target)


def error_of(operation: OverlappedEx, status: int) -> OSError:
    """As in `_sockets`."""
    return _sockets.error_of(operation, status)
