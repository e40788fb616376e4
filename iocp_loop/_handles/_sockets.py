"""Verbs on sockets: what to submit, and how to read the result. The layer above sees operations, never an address.

Each `*_operation` function makes one operation, with its kernel call and arguments prepared, ready for
`Proactor.submit`. An operation may be submitted again as often as its maker likes ("cast the rod again"): a receive
is prepared once per connection and not once per packet.
"""

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

from .._core._endpoint import Endpoint
from .._core._operation import (
    ACCEPT_ADDRESS_SIZE,
    AcceptOperation,
    ConnectOperation,
    Deliver,
    IoType,
    OverlappedEx,
    PlainOperation,
    ReadFromOperation,
    ReadOperation,
    WriteOperation,
    WriteToOperation,
)
from .._core._proactor import Proactor
from .._win32 import sockaddr
from .._win32.constants import LENGTH_MAX, Error, SocketOption, WsaError
from .._win32.errors import os_error, status_error, winerror_from_status
from .._win32.memory import address_of, address_of_bytes
from .._win32.prototypes import argument
from .._win32.types import DWORD, HANDLE, INT, POINTER_TO, SOCKET

# Arguments that are the same for every call.
_NULL = argument(POINTER_TO, 0)
_ZERO = argument(DWORD, 0)
_ONE = argument(DWORD, 1)
# One TransmitFile sends at most this many bytes (MSDN, TransmitFile: 2,147,483,646).
TRANSMIT_MAX = 2_147_483_646
CAN_TRANSMIT = True
_ADDRESS_SIZE = argument(DWORD, ACCEPT_ADDRESS_SIZE)


def register(proactor: Proactor, sock: socket.socket, owner: Any = None) -> Endpoint:
    """Associate a socket with the proactor's port, skipping packets for inline successes where that is safe.

    A socket that belongs to another port, loop or process is served through readiness instead; which verbs an
    endpoint understands, `verbs_of` tells. Raises as `Proactor.register` and `_shared_sockets.register`.
    """
    skip = proactor.kernel.skips_port_safely(sock)
    try:
        return proactor.register(sock.fileno(), owner, kind="socket", skip_port=skip)
    except OSError as exc:
        if getattr(exc, "winerror", None) != Error.INVALID_PARAMETER:
            raise
    from . import _shared_sockets

    return _shared_sockets.register(proactor, sock, owner)


def verbs_of(endpoint: Endpoint) -> Any:
    """The module whose verbs serve an endpoint: this one, unless it says otherwise."""
    return endpoint.verbs or sys.modules[__name__]


def error_of(operation: OverlappedEx, status: int) -> OSError:
    """The exception for a failed operation, naming call, handle and WinError."""
    endpoint = operation.endpoint
    return status_error(status, operation.io_type.name, endpoint.subject, is_socket=endpoint.is_socket)


def winerror_of(operation: OverlappedEx, status: int) -> int:
    """The WinError of a result; 0 if it is a success."""
    return winerror_from_status(status, is_socket=operation.endpoint.is_socket)


def closed_error(conn: Any) -> OSError:
    """The exception for I/O on a socket or pipe object that was closed already."""
    return os_error(WsaError.NOTSOCK, "CreateIoCompletionPort", f"closed {type(conn).__name__}")


# Kept: an array type that is made anew for each call is garbage that only the cycle collector finds.
_TwoAddresses, _TwoSizes = ctypes.c_size_t * 2, INT * 2


def _at(operation: OverlappedEx, field: Any) -> Any:
    return argument(POINTER_TO, operation.address + field.offset)


class Outcome(Enum):
    """What a receive that brought an error or no bytes means."""

    DATA = "data"
    END = "end of file"
    FAILED = "failed"


# -- streams ---------------------------------------------------------------------------------------------------


def receive_buffer(proactor: Proactor, size: int) -> Any:
    """Memory for a receive; once full, it may be handed on as the message itself: see `Arena.message_buffer`."""
    return proactor.arena.message_buffer(size)


def receive_operation(proactor: Proactor, endpoint: Endpoint, deliver: Deliver, buffer: Any) -> ReadOperation:
    """A WSARecv into `buffer`: an array of chars, or `receive_buffer`'s. The result is its byte count, 0 at the end."""
    operation = proactor.arena.operation(ReadOperation, IoType.READ)
    operation.endpoint = endpoint
    operation.deliver = deliver
    operation.start = proactor.kernel.WSARecv
    operation.args = (
        argument(SOCKET, endpoint.handle),
        _at(operation, ReadOperation.wsabuf),
        _ONE,
        _NULL,
        _at(operation, ReadOperation.flags),
        argument(POINTER_TO, operation.address),
        _NULL,
    )
    set_receive_buffer(operation, buffer)
    return operation


def receive_outcome(_operation: OverlappedEx, status: int, _byte_count: int) -> Outcome:
    """How to read a receive that failed or brought no bytes: on a socket, no bytes is the end of the stream."""
    return Outcome.FAILED if status else Outcome.END


def set_receive_buffer(operation: ReadOperation | ReadFromOperation, buffer: Any, size: int | None = None) -> None:
    """Let the next submit of `operation` fill `buffer`. The operation must not be pending."""
    wsabuf, address = operation.wsabuf, address_of(buffer)
    length = min(len(buffer) if size is None else size, LENGTH_MAX)
    # SAFETY: one statement, without a call: no interrupt may come between what is kept and where the kernel writes.
    operation.buffer, wsabuf.buf, wsabuf.len = buffer, address, length


def send_operation(proactor: Proactor, endpoint: Endpoint, deliver: Deliver) -> WriteOperation:
    """A WSASend; `set_send_vector` says of what. Its result is the byte count, all of it or the stream is broken."""
    operation = proactor.arena.operation(WriteOperation, IoType.WRITE)
    operation.endpoint = endpoint
    operation.deliver = deliver
    operation.start = proactor.kernel.WSASend
    return operation


def set_send_vector(operation: WriteOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX) -> None:
    """Let the next submit gather `chunks`; its result is how many bytes of them it has sent.

    They are sent from where they are: `operation.buffer` keeps them, nothing is copied.

    Args:
        operation: of `send_operation`; not pending.
        chunks: bytes objects, 1 to GATHER_MAX of them.
        skip: bytes of the first one that are left out.
        limit: bytes to send at most, LENGTH_MAX or less: what is beyond is left out.
    """
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
    _set_send_arguments(operation, count)


def set_send_buffer(operation: WriteOperation, buffer: Any) -> None:
    """Let the next submit send one ctypes array that pins its memory."""
    operation.buffer = buffer
    operation.wsabufs[0].buf = ctypes.addressof(buffer)
    operation.wsabufs[0].len = min(len(buffer), LENGTH_MAX)
    _set_send_arguments(operation, 1)


def _set_send_arguments(operation: WriteOperation, count: int) -> None:
    operation.args = (
        argument(SOCKET, operation.endpoint.handle),
        _at(operation, WriteOperation.wsabufs),
        argument(DWORD, count),
        _NULL,
        _ZERO,
        argument(POINTER_TO, operation.address),
        _NULL,
    )


# -- connections -----------------------------------------------------------------------------------------------


def accept_operation(
    proactor: Proactor, endpoint: Endpoint, listener: socket.socket, deliver: Deliver
) -> AcceptOperation:
    """An AcceptEx on `listener`; `set_accepting_socket` before each submit.

    No first bytes are waited for (`dwReceiveDataLength` 0): a client that connects and says nothing would hold the
    accept open (MSDN, AcceptEx).
    """
    operation = proactor.arena.operation(AcceptOperation, IoType.ACCEPT)
    operation.endpoint = endpoint
    operation.deliver = deliver
    operation.start = proactor.kernel.extension(listener, "AcceptEx")
    operation.read_addresses = proactor.kernel.extension(listener, "GetAcceptExSockaddrs")
    operation.provider = int(listener.family), int(listener.type), listener.proto
    return operation


def set_accepting_socket(operation: AcceptOperation, conn: socket.socket) -> None:
    """Let the next submit accept into `conn`: new, unbound, of the listener's family."""
    args = (
        argument(SOCKET, operation.endpoint.handle),
        argument(SOCKET, conn.fileno()),
        _at(operation, AcceptOperation.addresses),
        _ZERO,
        _ADDRESS_SIZE,
        _ADDRESS_SIZE,
        _NULL,
        argument(POINTER_TO, operation.address),
    )
    # SAFETY: one statement, as for a receive.
    operation.keepalive, operation.args = conn, args


def prepare_accept(operation: AcceptOperation, _listener: socket.socket) -> None:
    """`set_accepting_socket` with a new one, not blocking. Raises OSError where none can be had."""
    conn = socket.socket(*operation.provider)
    conn.setblocking(False)
    set_accepting_socket(operation, conn)


def finish_accept(_operation: AcceptOperation, listener: socket.socket, conn: socket.socket) -> socket.socket:
    """Make an accepted socket a full one: it inherits the listener's options, and getpeername works. May raise.

    Args:
        listener: whose connection it is.
        conn: what `operation.keepalive` was when the operation was submitted.

    Returns:
        The connected socket.
    """
    conn.setsockopt(socket.SOL_SOCKET, SocketOption.UPDATE_ACCEPT_CONTEXT, struct.pack("P", listener.fileno()))
    return conn


def accepted_addresses(_proactor: Proactor, operation: AcceptOperation, _sock: socket.socket) -> tuple[bytes, bytes]:
    """The local and the remote SOCKADDR that AcceptEx brought, still packed; no kernel call."""
    where, sizes = _TwoAddresses(), _TwoSizes()
    base, lengths = ctypes.addressof(where), ctypes.addressof(sizes)
    step = ctypes.sizeof(ctypes.c_size_t)
    block = operation.address + AcceptOperation.addresses.offset
    operation.read_addresses(
        block, 0, ACCEPT_ADDRESS_SIZE, ACCEPT_ADDRESS_SIZE, base, lengths, base + step, lengths + 4
    )
    return ctypes.string_at(where[0], sizes[0]), ctypes.string_at(where[1], sizes[1])


def connect_operation(proactor: Proactor, endpoint: Endpoint, sock: socket.socket, address: Any) -> ConnectOperation:
    """A ConnectEx of a bound socket to a resolved address. Raises as `sockaddr.encode`."""
    packed = sockaddr.encode(sock.family, address)
    operation = proactor.arena.operation(ConnectOperation, IoType.CONNECT)
    operation.endpoint = endpoint
    operation.start = proactor.kernel.extension(sock, "ConnectEx")
    ctypes.memmove(operation.address + ConnectOperation.target.offset, packed, len(packed))
    operation.args = (
        argument(SOCKET, endpoint.handle),
        _at(operation, ConnectOperation.target),
        argument(INT, len(packed)),
        _NULL,
        _ZERO,
        _NULL,
        argument(POINTER_TO, operation.address),
    )
    return operation


def is_this_machine(address: Any) -> bool:
    """Whether a resolved address is a loopback one."""
    host = str(address[0]).removeprefix("::ffff:")
    return host.startswith("127.") or host == "::1"


def finish_connect(sock: socket.socket) -> None:
    """Make a connected socket a full one: getpeername and shutdown work."""
    sock.setsockopt(socket.SOL_SOCKET, SocketOption.UPDATE_CONNECT_CONTEXT, b"")


def bind_to_any(sock: socket.socket) -> None:
    """Give an unbound socket a local address; ConnectEx and WSARecvFrom refuse one without (MSDN, ConnectEx)."""
    any_address = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
    try:
        sock.bind((any_address, 0))
    except OSError as exc:
        if getattr(exc, "winerror", None) != WsaError.INVAL:  # It has one already, which is what we wanted.
            raise


def transmit_operation(
    proactor: Proactor, endpoint: Endpoint, sock: socket.socket, file: Any, offset: int, count: int
) -> PlainOperation:
    """A TransmitFile of `count` bytes from `offset`; at most TRANSMIT_MAX at a time (MSDN, TransmitFile)."""
    from msvcrt import get_osfhandle

    operation = proactor.arena.operation(PlainOperation, IoType.TRANSMIT_FILE)
    operation.endpoint = endpoint
    operation.start = proactor.kernel.extension(sock, "TransmitFile")
    operation.Offset, operation.OffsetHigh = offset & 0xFFFF_FFFF, offset >> 32
    operation.keepalive = file
    operation.args = (
        argument(SOCKET, endpoint.handle),
        argument(HANDLE, get_osfhandle(file.fileno())),
        argument(DWORD, count),
        _ZERO,
        argument(POINTER_TO, operation.address),
        _NULL,
        _ZERO,
    )
    return operation


# -- datagrams -------------------------------------------------------------------------------------------------


def receive_from_operation(proactor: Proactor, endpoint: Endpoint, deliver: Deliver, buffer: Any) -> ReadFromOperation:
    """A WSARecvFrom of one datagram into `buffer`; `sender_of` tells from whom."""
    operation = proactor.arena.operation(ReadFromOperation, IoType.READ_FROM)
    operation.endpoint = endpoint
    operation.deliver = deliver
    operation.start = proactor.kernel.WSARecvFrom
    operation.args = (
        argument(SOCKET, endpoint.handle),
        _at(operation, ReadFromOperation.wsabuf),
        _ONE,
        _NULL,
        _at(operation, ReadFromOperation.flags),
        _at(operation, ReadFromOperation.sender),
        _at(operation, ReadFromOperation.address_length),
        argument(POINTER_TO, operation.address),
        _NULL,
    )
    set_receive_buffer(operation, buffer)
    operation.address_length = sockaddr.SOCKADDR_MAX
    return operation


def sender_of(operation: ReadFromOperation) -> Any:
    """The address of the datagram's sender, and room for the next one's."""
    start = operation.address + ReadFromOperation.sender.offset
    raw = ctypes.string_at(start, operation.address_length)
    operation.address_length = sockaddr.SOCKADDR_MAX
    return sockaddr.decode(raw)


def set_sender(operation: ReadFromOperation, sender: Any) -> None:
    """Let `sender_of` tell this address, as if the kernel had written it. The operation must not be pending."""
    if sender is None:  # As of a connected socket's peer, whom the kernel need not name.
        operation.address_length = 0
        return
    family = socket.AF_INET if len(sender) == 2 else socket.AF_INET6
    packed = sockaddr.encode(family, sender)
    ctypes.memmove(operation.address + ReadFromOperation.sender.offset, packed, len(packed))
    operation.address_length = len(packed)


def send_to_operation(proactor: Proactor, endpoint: Endpoint, data: bytes, packed_address: bytes) -> WriteToOperation:
    """A WSASendTo of one datagram to a packed address (`b""` for the connected peer)."""
    operation = proactor.arena.operation(WriteToOperation, IoType.WRITE_TO)
    operation.endpoint = endpoint
    operation.start = proactor.kernel.WSASendTo
    operation.buffer = data
    operation.wsabuf.buf = address_of_bytes(data)
    operation.wsabuf.len = len(data)
    ctypes.memmove(operation.address + WriteToOperation.receiver.offset, packed_address, len(packed_address))
    operation.args = (
        argument(SOCKET, endpoint.handle),
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
