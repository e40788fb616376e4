"""The UDP sockets of the fake kernel.

The network here loses nothing and keeps the order of what one socket sends to another, so that a test can account for
every datagram; what real ones do beside that, it does: answers of ICMP, datagrams longer than the buffer, errors that
a driver makes up.
"""

import ctypes
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from iocp_loop._win32 import sockaddr
from iocp_loop._win32.constants import Status, WsaError
from iocp_loop._win32.errors import status_error
from iocp_loop._win32.types import INT

from .handles import FakeSocketBase, Request, Result, connection_reset, os_error, would_block

if TYPE_CHECKING:
    from .kernel import FakeKernel

Address = tuple[str, int]
PAYLOAD_MAX = 2000  # What is longer cannot be sent. Of real UDP 65,507: here it is to happen often.


class FakeDatagramSocket(FakeSocketBase):
    """A UDP socket. Made by `FakeKernel.datagram_socket`.

    Attributes:
        inbound: what has arrived and was not received: (data, sender), or (None, NTSTATUS) for an error.
        sent: every datagram that left, with its receiver's address, for the tests.
        truncated: those that were longer than the buffer they were received into.
        too_long: how WSASendTo ends where the datagram is longer than any may be.
    """

    family = socket.AF_INET
    type = socket.SOCK_DGRAM
    proto = socket.IPPROTO_UDP

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        super().__init__(kernel, handle)
        self.peer: Address | None = None
        self.inbound: deque[tuple[bytes | None, Any]] = deque()
        self.receives: deque[Request] = deque()
        self.sends: deque[Request] = deque()
        self.sent: list[tuple[Address, bytes]] = []
        self.truncated: list[bytes] = []
        # QUIRK(wine): a warning, so its packet comes although the call fails (measured). Windows' is an error.
        self.too_long = kernel.random.choice((Status.BUFFER_OVERFLOW, Status.INVALID_BUFFER_SIZE))

    def getpeername(self) -> Address:
        self.check_open()
        if self.peer is None:
            raise os_error(OSError, errno.ENOTCONN, WsaError.NOTCONN)
        return self.peer

    def connect(self, address: Address) -> None:
        self.peer = address

    def send(self, data: Any, flags: int = 0) -> int:
        return self.sendto(data, self.peer)

    def sendto(self, data: Any, *where: Any) -> int:
        """As on a non-blocking socket: takes all of it, or raises. Arguments: [flags,] address."""
        address = where[-1]
        kernel = self.kernel
        kernel.count("sendto")
        self.check_open()
        self.check_not_blocking()
        if self.sends:
            kernel.violation(f"{self!r} sends past an overlapped send in flight: two datagrams may change places")
        with memoryview(data) as given, given.cast("B") as view:
            if address is None:
                raise os_error(OSError, errno.ENOTCONN, WsaError.NOTCONN)
            sockaddr.resolve(self.family, address)  # Raises for what is no address, as the real one does.
            if len(view) > PAYLOAD_MAX:
                raise status_error(Status.INVALID_BUFFER_SIZE, "sendto", f"socket {self.handle}", is_socket=True)
            if kernel.chance("no_buffers"):
                raise os_error(OSError, errno.ENOBUFS, WsaError.NOBUFS)
            if kernel.chance("would_block"):
                raise would_block()
            self.transmit(bytes(view), address)
            return len(view)

    def recvfrom_into(self, buffer: Any, size: int = 0, flags: int = 0) -> tuple[int, Address]:
        """As on a non-blocking socket."""
        self.kernel.count("recvfrom_into")
        self.check_open()
        self.check_not_blocking()
        if self.receives or not self.inbound:
            raise would_block()  # It does not steal from an overlapped receive in flight.
        data, sender = self.inbound.popleft()
        if data is None:
            raise connection_reset() if sender == Status.PORT_UNREACHABLE else self._receive_error(sender)
        view = memoryview(buffer).cast("B")[: size or None]
        view[: len(data)] = data[: len(view)]
        if len(data) > len(view):
            self.truncated.append(data)
            raise self._receive_error(Status.BUFFER_OVERFLOW)
        return len(data), sender

    def _receive_error(self, status: int) -> OSError:
        return status_error(status, "recvfrom", f"socket {self.handle}", is_socket=True)

    # -- what the network does ---------------------------------------------------------------------------------

    def transmit(self, data: bytes, address: Address) -> None:
        """A datagram leaves. Where nobody has its address, ICMP says so."""
        if self.name is None:
            self.bind(("127.0.0.1", 0))
        self.sent.append((address, data))
        receiver = self.kernel.datagram_socket_at(address)
        if receiver is not None:
            receiver.inbound.append((data, self.name))
        else:
            self.fail(Status.PORT_UNREACHABLE)

    def fail(self, status: int) -> None:
        """A receive, when its turn comes, will bring this."""
        self.inbound.append((None, status))


class ReceiveFrom(Request):
    """WSARecvFrom: a datagram, or an error."""

    def __init__(self, sock: FakeDatagramSocket, overlapped: int, ranges: list[tuple[int, int]], buffers: int) -> None:
        super().__init__(sock, overlapped, ranges)
        (self.buffer,) = ranges[1 : 1 + buffers]
        self.sender_at, self.length_at = ranges[-2][0], ranges[-1][0]

    def progress(self) -> Result | None:
        sock = self.sock
        if not sock.inbound:
            return None
        data, sender = sock.inbound.popleft()
        if data is None:
            return sender, 0
        packed = sockaddr.encode(sock.family, sender)
        room = INT.from_address(self.length_at)
        ctypes.memmove(self.sender_at, packed, min(len(packed), room.value))
        room.value = len(packed)
        address, size = self.buffer
        ctypes.memmove(address, data, min(size, len(data)))
        if len(data) > size:
            sock.truncated.append(data)
            return Status.BUFFER_OVERFLOW, size
        return Status.SUCCESS, len(data)


class SendTo(Request):
    """WSASendTo: all of it, when its turn comes."""

    def __init__(
        self, sock: FakeDatagramSocket, overlapped: int, ranges: list[tuple[int, int]], address: Address | None
    ) -> None:
        super().__init__(sock, overlapped, ranges)
        self.receiver = address
        self.fails_at_once = ranges[1][1] > PAYLOAD_MAX or address is None

    @property
    def line(self) -> "deque[Request]":
        return self.sock.sends  # type: ignore[no-any-return]

    def progress(self) -> Result | None:
        if self.receiver is None:
            return Status.INVALID_CONNECTION, 0
        address, size = self.ranges[1]
        if size > PAYLOAD_MAX:
            return self.sock.too_long, 0
        self.sock.transmit(ctypes.string_at(address, size), self.receiver)
        return Status.SUCCESS, size


class DatagramCalls:
    """The calls of `FakeKernel` that are about datagrams."""

    def datagram_socket(self: Any) -> FakeDatagramSocket:
        """A new non-blocking socket with a local address."""
        sock: FakeDatagramSocket = self.make(FakeDatagramSocket)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def datagram_socket_at(self: Any, address: Address) -> FakeDatagramSocket | None:
        for thing in self.open_handles:
            if isinstance(thing, FakeDatagramSocket) and thing.name == address:
                return thing
        return None

    def WSARecvFrom(self: Any, *args: Any) -> int:
        handle, array, length, count_at, flags, sender, sender_length, overlapped, routine = self._arguments(
            "WSARecvFrom", args
        )
        self._check_pointers("WSARecvFrom", count_at, routine)
        sock = self.thing(handle, FakeDatagramSocket)
        if sock.name is None:
            return self._fail(WsaError.INVAL, -1)  # MSDN: it must be bound.
        ranges = self._ranges(overlapped, array, length)
        room = INT.from_address(sender_length).value
        # All of that may be written until the packet is dequeued, and must live as long.
        written = [(flags, 4), (sender, room), (sender_length, 4)]
        return self._start(ReceiveFrom(sock, overlapped, [*ranges, *written], length), -1)

    def WSASendTo(self: Any, *args: Any) -> int:
        handle, array, length, count_at, _flags, receiver, receiver_length, overlapped, routine = self._arguments(
            "WSASendTo", args
        )
        self._check_pointers("WSASendTo", count_at, routine)
        sock = self.thing(handle, FakeDatagramSocket)
        ranges = self._ranges(overlapped, array, length)
        # The address is read during the call.
        address = sockaddr.decode(ctypes.string_at(receiver, receiver_length)) if receiver else sock.peer
        return self._start(SendTo(sock, overlapped, ranges, address), -1)
