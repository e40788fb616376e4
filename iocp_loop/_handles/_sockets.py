"""Sockets that are associated with our port: how to make their operations, and how to read the results."""

import ctypes
import socket
import struct
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from .._core._endpoint import Kind
from .._core._operation import (
    ACCEPT_ADDRESS_SIZE,
    AcceptOperation,
    ConnectOperation,
    Deliver,
    IoType,
    OverlappedEx,
    ReadFromOperation,
    ReadOperation,
    TransmitOperation,
    WriteOperation,
    WriteToOperation,
)
from .._win32 import sockaddr
from .._win32.constants import LENGTH_MAX, SocketOption, WsaError
from .._win32.errors import os_error
from .._win32.memory import address_of, address_of_bytes
from .._win32.prototypes import argument
from .._win32.types import DWORD, HANDLE, INT, POINTER_TO, SOCKET
from ._base import DatagramHandle, ListenerHandle, Outcome, StreamHandle

# Arguments that are the same for every call.
_NULL = argument(POINTER_TO, 0)
_ZERO = argument(DWORD, 0)
_ONE = argument(DWORD, 1)
_ADDRESS_SIZE = argument(DWORD, ACCEPT_ADDRESS_SIZE)
# Made once: an array type made for each call would be garbage that only the cycle collector frees.
_TwoAddresses, _TwoSizes = ctypes.c_size_t * 2, INT * 2


class SocketHandle(StreamHandle, DatagramHandle, ListenerHandle):
    """A socket of any type; its user must know which operations fit that type.

    It does not hold the socket object. A method that needs it has it as an argument.
    """

    __slots__ = ()

    speaks_winsock = True
    sends_at_once = True
    half_closes = True
    # Whether there is a `transmit_operation`.
    transmits: bool

    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """A receive that brings no bytes is the end of the stream."""
        return Outcome.FAILED if status else Outcome.END

    @abstractmethod
    def connect_operation(self, deliver: Deliver, sock: socket.socket, address: Any) -> OverlappedEx:
        """Make a connect.

        Args:
            deliver: as for `StreamHandle.receive_operation`. No byte count.
            sock: the socket that this is the handle of. It must have a local address; `bind_to_any` gives it one.
            address: where to, resolved: `(host, port)` with a numeric host; IPv6 may add flow information and scope.

        Raises:
            TypeError: the address is no such tuple.
            ValueError: the host is not numeric, or the socket's family has no such addresses.
            OverflowError: the port is outside 0 to 65535.

        Source: MSDN, ConnectEx.
        """

    @abstractmethod
    def finish_connect(self, sock: socket.socket) -> None:
        """Complete a connected socket, so that getpeername and shutdown work.

        Args:
            sock: the socket whose connect has succeeded.

        Raises:
            OSError: the connection has gone.

        Source: MSDN, ConnectEx, SO_UPDATE_CONNECT_CONTEXT.
        """

    @abstractmethod
    def transmit_operation(
        self, deliver: Deliver, sock: socket.socket, file: Any, offset: int, count: int
    ) -> OverlappedEx:
        """Make a send of a part of a file, which the kernel reads by itself.

        Args:
            deliver: as for `StreamHandle.receive_operation`. The byte count says how many bytes went.
            sock: the socket that this is the handle of.
            file: open for reading, with a descriptor; it must stay open until the operation is over.
            offset: in bytes from the beginning of the file.
            count: in bytes, 1 to 2,147,483,646.

        Raises:
            OSError: this socket cannot send files, because it belongs to another port.

        Source: MSDN, TransmitFile.
        """


class OverlappedSocket(SocketHandle):
    """A socket of our port, with the kernel's overlapped operations."""

    __slots__ = ()

    tells_without_memory = True
    transmits = True

    def __init__(self, handle: int, owner: Any = None) -> None:
        super().__init__(handle, owner, Kind.SOCKET)

    # -- streams -----------------------------------------------------------------------------------------------

    def receive_buffer(self, size: int) -> Any:
        """A buffer that is itself the received message once it is full: see `Arena.message_buffer`."""
        return self.proactor.arena.message_buffer(size)

    def receive_operation(self, deliver: Deliver, buffer: Any) -> ReadOperation:
        """A WSARecv. Its result is 0 at the end of the stream."""
        operation = self.proactor.arena.operation(ReadOperation, IoType.READ)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.WSARecv
        operation.args = (
            argument(SOCKET, self.handle),
            _at(operation, ReadOperation.wsabuf),
            _ONE,
            _NULL,
            _at(operation, ReadOperation.flags),
            argument(POINTER_TO, operation.address),
            _NULL,
        )
        self.set_receive_buffer(operation, buffer)
        return operation

    def set_receive_buffer(self, operation: ReadOperation | ReadFromOperation, buffer: Any) -> None:
        wsabuf, address = operation.wsabuf, address_of(buffer)
        length = min(len(buffer), LENGTH_MAX)
        # SAFETY: the kernel writes at the address, and `operation.buffer` keeps it alive. One statement without a call,
        # so that no interrupt can set one and not the other.
        operation.buffer, wsabuf.buf, wsabuf.len = buffer, address, length

    def send_operation(self, deliver: Deliver) -> WriteOperation:
        """A WSASend. It sends all bytes, or the stream is broken."""
        operation = self.proactor.arena.operation(WriteOperation, IoType.WRITE)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.WSASend
        return operation

    def set_send_vector(
        self, operation: WriteOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX
    ) -> None:
        operation.buffer = chunks
        vector, count = operation.wsabufs, 0
        for wsabuf, chunk in zip(vector, chunks, strict=False):
            length = len(chunk) - skip
            wsabuf.buf = address_of_bytes(chunk) + skip
            wsabuf.len = length if length < limit else limit
            skip = 0
            count += 1
            limit -= length
            if limit <= 0:
                break
        operation.args = (
            argument(SOCKET, self.handle),
            _at(operation, WriteOperation.wsabufs),
            argument(DWORD, count),
            _NULL,
            _ZERO,
            argument(POINTER_TO, operation.address),
            _NULL,
        )

    # -- connections -------------------------------------------------------------------------------------------

    def accept_operation(self, deliver: Deliver, listener: socket.socket) -> AcceptOperation:
        """An AcceptEx.

        It does not wait for first bytes (`dwReceiveDataLength` 0): a client that connects and sends nothing would keep
        the accept pending (MSDN, AcceptEx).
        """
        operation = self.proactor.arena.operation(AcceptOperation, IoType.ACCEPT)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.extension(listener, "AcceptEx")
        operation.read_addresses = self.proactor.kernel.extension(listener, "GetAcceptExSockaddrs")
        operation.provider = int(listener.family), int(listener.type), listener.proto
        return operation

    def set_accepting_socket(self, operation: AcceptOperation, conn: socket.socket) -> None:
        """Let the next submit accept into `conn`: new, unbound, of the listener's family."""
        args = (
            argument(SOCKET, self.handle),
            argument(SOCKET, conn.fileno()),
            _at(operation, AcceptOperation.addresses),
            _ZERO,
            _ADDRESS_SIZE,
            _ADDRESS_SIZE,
            _NULL,
            argument(POINTER_TO, operation.address),
        )
        # SAFETY: one statement without a call, so that the socket in the arguments is always the one that is kept.
        operation.arriving, operation.args = conn, args

    def prepare_accept(self, operation: AcceptOperation) -> None:
        """Make the next connection's socket, non-blocking."""
        conn = socket.socket(*operation.provider)
        conn.setblocking(False)
        self.set_accepting_socket(operation, conn)

    def accepted_addresses(self, operation: AcceptOperation) -> tuple[bytes, bytes]:
        """Read what AcceptEx wrote; no kernel call."""
        where, sizes = _TwoAddresses(), _TwoSizes()
        base, lengths = ctypes.addressof(where), ctypes.addressof(sizes)
        step = ctypes.sizeof(ctypes.c_size_t)
        block = operation.address + AcceptOperation.addresses.offset
        operation.read_addresses(
            block, 0, ACCEPT_ADDRESS_SIZE, ACCEPT_ADDRESS_SIZE, base, lengths, base + step, lengths + 4
        )
        return ctypes.string_at(where[0], sizes[0]), ctypes.string_at(where[1], sizes[1])

    def finish_accept(self, arriving: Any, listener: socket.socket) -> socket.socket:
        """Let the socket inherit the listener's options; then getpeername works too."""
        conn: socket.socket = arriving
        conn.setsockopt(socket.SOL_SOCKET, SocketOption.UPDATE_ACCEPT_CONTEXT, struct.pack("P", listener.fileno()))
        return conn

    def connect_operation(self, deliver: Deliver, sock: socket.socket, address: Any) -> ConnectOperation:
        """A ConnectEx."""
        packed = sockaddr.encode(sock.family, address)
        operation = self.proactor.arena.operation(ConnectOperation, IoType.CONNECT)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.extension(sock, "ConnectEx")
        ctypes.memmove(operation.address + ConnectOperation.target.offset, packed, len(packed))
        operation.args = (
            argument(SOCKET, self.handle),
            _at(operation, ConnectOperation.target),
            argument(INT, len(packed)),
            _NULL,
            _ZERO,
            _NULL,
            argument(POINTER_TO, operation.address),
        )
        return operation

    def finish_connect(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SocketOption.UPDATE_CONNECT_CONTEXT, b"")

    def transmit_operation(
        self, deliver: Deliver, sock: socket.socket, file: Any, offset: int, count: int
    ) -> TransmitOperation:
        """A TransmitFile of at most 2,147,483,646 bytes (MSDN, TransmitFile)."""
        from msvcrt import get_osfhandle

        operation = self.proactor.arena.operation(TransmitOperation, IoType.TRANSMIT_FILE)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.extension(sock, "TransmitFile")
        operation.Offset, operation.OffsetHigh = offset & 0xFFFF_FFFF, offset >> 32
        operation.file = file
        operation.args = (
            argument(SOCKET, self.handle),
            argument(HANDLE, get_osfhandle(file.fileno())),
            argument(DWORD, count),
            _ZERO,
            argument(POINTER_TO, operation.address),
            _NULL,
            _ZERO,
        )
        return operation

    # -- datagrams ---------------------------------------------------------------------------------------------

    def receive_from_operation(self, deliver: Deliver, buffer: Any) -> ReadFromOperation:
        """A WSARecvFrom."""
        operation = self.proactor.arena.operation(ReadFromOperation, IoType.READ_FROM)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.WSARecvFrom
        operation.args = (
            argument(SOCKET, self.handle),
            _at(operation, ReadFromOperation.wsabuf),
            _ONE,
            _NULL,
            _at(operation, ReadFromOperation.flags),
            _at(operation, ReadFromOperation.sender),
            _at(operation, ReadFromOperation.address_length),
            argument(POINTER_TO, operation.address),
            _NULL,
        )
        self.set_receive_buffer(operation, buffer)
        operation.address_length = sockaddr.SOCKADDR_MAX
        return operation

    def sender_of(self, operation: ReadFromOperation) -> Any:
        """Decode the address, and make room for the next one."""
        start = operation.address + ReadFromOperation.sender.offset
        raw = ctypes.string_at(start, operation.address_length)
        operation.address_length = sockaddr.SOCKADDR_MAX
        return sockaddr.decode(raw)

    def set_sender(self, operation: ReadFromOperation, sender: Any) -> None:
        if sender is None:  # The socket is connected, and the kernel need not name the peer.
            operation.address_length = 0
            return
        family = socket.AF_INET if len(sender) == 2 else socket.AF_INET6
        packed = sockaddr.encode(family, sender)
        ctypes.memmove(operation.address + ReadFromOperation.sender.offset, packed, len(packed))
        operation.address_length = len(packed)

    def send_to_operation(self, deliver: Deliver, data: bytes, packed_address: bytes) -> WriteToOperation:
        """A WSASendTo."""
        operation = self.proactor.arena.operation(WriteToOperation, IoType.WRITE_TO)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.WSASendTo
        operation.buffer = data
        operation.wsabuf.buf = address_of_bytes(data)
        operation.wsabuf.len = len(data)
        ctypes.memmove(operation.address + WriteToOperation.receiver.offset, packed_address, len(packed_address))
        operation.args = (
            argument(SOCKET, self.handle),
            _at(operation, WriteToOperation.wsabuf),
            _ONE,
            _NULL,
            _ZERO,
            _at(operation, WriteToOperation.receiver) if packed_address else _NULL,
            argument(INT, len(packed_address)),
            argument(POINTER_TO, operation.address),
            _NULL,
        )
        return operation


def closed_error(conn: Any) -> OSError:
    """The exception for I/O on a closed socket or pipe object."""
    return os_error(WsaError.NOTSOCK, "CreateIoCompletionPort", f"closed {type(conn).__name__}")


def is_this_machine(address: Any) -> bool:
    """Whether a resolved address is a loopback one."""
    host = str(address[0]).removeprefix("::ffff:")
    return host.startswith("127.") or host == "::1"


def bind_to_any(sock: socket.socket) -> None:
    """Give a socket a local address if it has none; ConnectEx and WSARecvFrom need one.

    Args:
        sock: an IPv4 or IPv6 socket.

    Raises:
        OSError: it cannot be bound.

    Thread-safe. Source: MSDN, ConnectEx.
    """
    any_address = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
    try:
        sock.bind((any_address, 0))
    except OSError as exc:
        if getattr(exc, "winerror", None) != WsaError.INVAL:  # INVAL: it already has one, which is what we wanted.
            raise


def _at(operation: OverlappedEx, field: Any) -> Any:
    return argument(POINTER_TO, operation.address + field.offset)
