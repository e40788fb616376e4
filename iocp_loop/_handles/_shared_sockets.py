"""Shared sockets, which belong to another port, loop or process: the operations of `_sockets`, by readiness.

A handle and its duplicates in any process belong to one port for life (MSDN, CreateIoCompletionPort). No overlapped
operation on such a handle can ever report to ours. But we can poll it through our port, and once it is ready, the
socket's ordinary call does not wait. So an operation stands in a queue of its endpoint, one for each direction, until
the socket is ready; then we perform it, and settle it like any other. The layers above see no difference except in
speed: one poll more per operation.

Another owner of the socket may read or write first. Then the call would block, and the operation stays in its queue.

The operations are in the proactor's pending table like all others, but the kernel never sees them. It owns only the
poll, and writes into buffers only during the call.
"""

import contextlib
import functools
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from .._core._endpoint import Kind
from .._core._operation import Deliver, IoType, OverlappedEx
from .._core._proactor import Proactor
from .._win32 import sockaddr
from .._win32.constants import LENGTH_MAX, Status, WsaError
from .._win32.errors import os_error, status_from_winerror
from .._win32.layers import base_handle
from .._win32.types import DWORD
from . import _readiness
from ._readiness import Interest, Registration
from ._sockets import SocketHandle

# The errors of accept() for a client that was gone before it was accepted (MSDN, accept, WSAECONNRESET).
# QUIRK(wine): it says "not connected".
_CLIENT_GONE = frozenset({WsaError.CONNRESET, WsaError.CONNABORTED, WsaError.NOTCONN})


class PerformedOperation(OverlappedEx):
    """An operation that waits until its socket is ready, and is then performed by a call that does not wait.

    The kernel never sees it: `pending` means that we have not performed it yet. Otherwise it is like all others.

    Attributes:
        perform: makes the call and returns the byte count; raises BlockingIOError to be called again when the socket
            is ready.
        target: the address to send or connect to, or the sender's. For a send on a stream, see `set_send_vector`; for
            an accept, the arrival that was filled.
        progress: for a send, the bytes already sent; for a connect, 1 once it is under way.
        arriving: for an accept, the place for the new connection; None while there is none.
    """

    answers_status: ClassVar[bool] = True
    in_kernel: ClassVar[bool] = False
    _fields_ = [("flags", DWORD)]
    __slots__ = ("arriving", "perform", "progress", "target")

    perform: Callable[["PerformedOperation"], int]
    progress: int
    target: Any
    arriving: "_Arrival | None"

    def prepare(self, io_type: IoType) -> None:
        super().prepare(io_type)
        self.progress, self.target, self.arriving = 0, None, None

    def let_go(self) -> None:
        super().let_go()
        self.target = self.arriving = None


class _Arrival:
    """The place for a connection that has not come yet, as the socket made in advance is for AcceptEx."""

    __slots__ = ("conn", "peer")

    def __init__(self) -> None:
        self.conn: socket.socket | None = None
        self.peer: Any = None

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()


class SharedSocket(SocketHandle):
    """A socket of another port, served through readiness. It does not keep the socket object alive: its owner does."""

    __slots__ = ("_reading", "_sock", "_writing")

    tells_without_memory = False
    # TransmitFile is either overlapped or blocks, so the layers above read a file and send its bytes.
    transmits = False

    def __init__(self, proactor: Proactor, sock: socket.socket, owner: Any = None) -> None:
        super().__init__(sock.fileno(), owner, Kind.SOCKET)
        self._sock = weakref.ref(sock)
        base = base_handle(proactor.kernel, self.handle)
        self._reading = _Queue(proactor, self.handle, base, Interest.READ)
        self._writing = _Queue(proactor, self.handle, base, Interest.WRITE)

    def sock(self, io_type: IoType) -> socket.socket:
        """The socket object. Raises OSError, naming that operation, if it is gone."""
        sock = self._sock()
        if sock is None:
            raise os_error(WsaError.NOTSOCK, io_type.name, self.subject)
        return sock

    def _operation(
        self,
        io_type: IoType,
        deliver: Deliver,
        perform: Callable[[PerformedOperation], int],
        start: Callable[[int], int],
    ) -> PerformedOperation:
        operation = self.proactor.arena.operation(PerformedOperation, io_type)
        operation.endpoint = self
        operation.deliver = deliver
        operation.perform = perform
        operation.start = start
        operation.args = (operation.address,)
        return operation

    # -- streams -----------------------------------------------------------------------------------------------

    def receive_buffer(self, size: int) -> Any:
        """An array, because Python fills it."""
        return self.proactor.arena.buffer(size)

    def receive_operation(self, deliver: Deliver, buffer: Any) -> PerformedOperation:
        operation = self._operation(IoType.READ, deliver, _receive, self._reading.join)
        self.set_receive_buffer(operation, buffer)
        return operation

    def set_receive_buffer(self, operation: PerformedOperation, buffer: Any) -> None:
        operation.buffer = buffer

    def send_operation(self, deliver: Deliver) -> PerformedOperation:
        """A send that is over when all bytes are sent, or the stream is broken."""
        return self._operation(IoType.WRITE, deliver, _send, self._writing.join)

    def set_send_vector(
        self, operation: PerformedOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX
    ) -> None:
        operation.buffer = chunks
        operation.target = skip, skip + limit
        operation.progress = skip

    # -- connections -------------------------------------------------------------------------------------------

    def accept_operation(self, deliver: Deliver, listener: socket.socket) -> PerformedOperation:
        return self._operation(IoType.ACCEPT, deliver, _accept, self._reading.join)

    def prepare_accept(self, operation: PerformedOperation) -> None:
        """Make an empty place: accept() itself makes the socket."""
        operation.arriving = _Arrival()

    def accepted_addresses(self, operation: PerformedOperation) -> tuple[bytes, bytes]:
        arrival = operation.target
        family, local = arrival.conn.family, b""
        with contextlib.suppress(OSError):  # The client is gone again: registering the socket will fail and say so.
            local = sockaddr.encode(family, arrival.conn.getsockname())
        return local, sockaddr.encode(family, arrival.peer)

    def finish_accept(self, arriving: Any, listener: socket.socket) -> socket.socket:
        """Return the socket, which accept() completed."""
        arrival: _Arrival = arriving
        assert arrival.conn is not None
        return arrival.conn

    def connect_operation(self, deliver: Deliver, sock: socket.socket, address: Any) -> PerformedOperation:
        sockaddr.encode(sock.family, address)  # Raises if it is not an address.
        operation = self._operation(IoType.CONNECT, deliver, _connect, self._writing.perform_or_join)
        operation.target = address
        return operation

    def finish_connect(self, sock: socket.socket) -> None:
        """Do nothing: connect() completed the socket."""

    def transmit_operation(
        self, deliver: Deliver, sock: socket.socket, file: Any, offset: int, count: int
    ) -> PerformedOperation:
        raise os_error(
            WsaError.OPNOTSUPP, "TransmitFile", self.subject, "the socket belongs to another port; read and send"
        )

    # -- datagrams ---------------------------------------------------------------------------------------------

    def receive_from_operation(self, deliver: Deliver, buffer: Any) -> PerformedOperation:
        operation = self._operation(IoType.READ_FROM, deliver, _receive_from, self._reading.join)
        self.set_receive_buffer(operation, buffer)
        return operation

    def sender_of(self, operation: PerformedOperation) -> Any:
        return operation.target

    def set_sender(self, operation: PerformedOperation, sender: Any) -> None:
        operation.target = sender

    def send_to_operation(self, deliver: Deliver, data: bytes, packed_address: bytes) -> PerformedOperation:
        operation = self._operation(IoType.WRITE_TO, deliver, _send_to, self._writing.join)
        operation.buffer = data
        operation.target = sockaddr.decode(packed_address) if packed_address else None
        return operation


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
        """The `start` of an operation whose socket is probably not ready."""
        operation: Any = self._proactor.pending[address]
        operation.stop = functools.partial(self._give_up, operation.address)
        if operation not in self._waiting:  # It may be: after an interrupt, `start` is called again (see `in_kernel`).
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
        """The `start` of an operation whose call must be made before it waits."""
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
        """Try the operation. True if it is over."""
        status = byte_count = 0
        try:
            byte_count = operation.perform(operation)
            if reset and operation.io_type is IoType.READ and not byte_count:
                # QUIRK(wine): after a reset, recv() in Wine 8 returns the end of the stream; AFD reports the reset.
                status = Status.CONNECTION_RESET
        except (BlockingIOError, InterruptedError):
            if not closed:
                return False  # Another owner was quicker, or there was room for only a part.
            status = status_from_winerror(WsaError.NOTSOCK)
        except MemoryError:
            status = Status.NO_MEMORY  # The status with which the kernel itself reports a lack of memory.
        except OSError as exc:
            status = status_from_winerror(getattr(exc, "winerror", None) or 0)
        self._proactor.complete(operation, status, byte_count)
        return True

    def _give_up(self, address: int) -> None:
        """The `stop` of an operation: settle it, since the kernel does not have it."""
        operation: Any = self._proactor.pending[address]
        self._waiting.remove(operation)
        self._leave_if_empty()
        self._proactor.complete(operation, Status.CANCELLED, 0)

    def _leave_if_empty(self) -> None:
        if not self._waiting and self._registration is not None:
            registration, self._registration = self._registration, None
            _readiness.of(self._proactor).unwatch(registration)


def open_shared(proactor: Proactor, sock: socket.socket, owner: Any = None) -> SharedSocket:
    """Serve a socket that cannot be associated.

    Raises:
        RuntimeError: a transport or server of this very port owns the socket.
        ValueError: the socket is blocking, so that another owner could make us wait.
        OSError: it is not a socket.
    """
    _readiness.refuse_owned(proactor, sock.fileno())
    if sock.gettimeout() != 0:
        raise ValueError(f"the socket must be non-blocking: socket {sock.fileno()} belongs to another port")
    handle = SharedSocket(proactor, sock, owner)
    proactor.add_endpoint(handle)
    return handle


# -- what is done when the socket is ready -------------------------------------------------------------------------


def _socket_of(operation: PerformedOperation) -> socket.socket:
    handle = operation.endpoint
    assert isinstance(handle, SharedSocket)
    return handle.sock(operation.io_type)


def _receive(operation: PerformedOperation) -> int:
    return _socket_of(operation).recv_into(operation.buffer, 0, operation.flags)


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


def _accept(operation: PerformedOperation) -> int:
    arrival = operation.target = operation.arriving
    assert arrival is not None
    while arrival.conn is None:
        try:
            conn, arrival.peer = _socket_of(operation).accept()
            if arrival.peer is None:
                conn.close()  # QUIRK(wine): Wine 10 returns no address if the client was gone.
            else:
                arrival.conn = conn
        except OSError as exc:
            if getattr(exc, "winerror", None) not in _CLIENT_GONE:
                raise
            # That client is gone: try the next one.
    arrival.conn.setblocking(False)
    return 0


def _connect(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    if operation.progress:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    else:
        operation.progress = 1  # It is under way; when the socket is ready, SO_ERROR has the result.
        code = sock.connect_ex(operation.target)
    if code == WsaError.WOULDBLOCK:
        raise BlockingIOError
    if code:
        raise os_error(code, "connect", operation.endpoint.subject)
    return 0


def _receive_from(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    byte_count, operation.target = sock.recvfrom_into(operation.buffer, 0, operation.flags)
    return byte_count


def _send_to(operation: PerformedOperation) -> int:
    sock = _socket_of(operation)
    if operation.target is None:
        return sock.send(operation.buffer)
    return sock.sendto(operation.buffer, operation.target)
