"""The TCP sockets of the fake kernel, and the requests that programs leave with them.

A `FakeSocket` offers what the package uses of Python's socket, with one difference: where the real one would answer
by chance (how much of a send is taken, whether it would block), this one asks the kernel's seeded generator.
"""

import ctypes
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from iocp_loop._win32 import sockaddr
from iocp_loop._win32.constants import SocketOption, Status, WsaError
from iocp_loop._win32.types import OVERLAPPED

from .handles import FakeSocketBase, Request, Result, connection_reset, os_error, would_block

if TYPE_CHECKING:
    from .kernel import FakeKernel


class FakeSocket(FakeSocketBase):
    """One end of a TCP connection, or a listener, or a socket that is neither yet. Made by `FakeKernel`."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        super().__init__(kernel, handle)
        self.peer: FakeSocket | None = None
        self.inbound = bytearray()  # arrived, not received
        self.capacity = kernel.random.choice((1, 7, 64, 1000, 65536))  # of `inbound`
        self.receives: deque[Request] = deque()
        self.sends: deque[Request] = deque()
        self.backlog: deque[FakeSocket] | None = None  # of a listener: clients that wait to be accepted
        self.write_closed = False
        self.receive_cancelled = False  # ever
        self.was_reset = False
        self.context_updated = True  # False between AcceptEx/ConnectEx and the SO_UPDATE_..._CONTEXT after it
        self.connect_failed = False
        self.sent = bytearray()  # every byte that ever entered the connection here, for the tests
        self.received_count = 0  # and how many left it here

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<FakeSocket {self.handle:#x} {state} inbound={len(self.inbound)}>"

    # -- what a program calls ----------------------------------------------------------------------------------

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        super().setsockopt(level, option, value)
        is_gone = self.peer is not None and self.peer.closed
        if option == SocketOption.UPDATE_ACCEPT_CONTEXT and is_gone and self.kernel.random.random() < 0.5:
            # The client went meanwhile, and sometimes the stack knows.
            raise os_error(OSError, errno.ENOTCONN, WsaError.NOTCONN)
        if option in (SocketOption.UPDATE_ACCEPT_CONTEXT, SocketOption.UPDATE_CONNECT_CONTEXT):
            self.context_updated = True

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if option == socket.SO_ERROR and self.connect_failed:
            return int(WsaError.CONNREFUSED)
        return super().getsockopt(level, option, size)

    def getpeername(self) -> tuple[str, int]:
        self.check_open()
        if self.peer is None or not self.context_updated:
            raise os_error(OSError, errno.ENOTCONN, WsaError.NOTCONN)
        return self.peer.name or ("0.0.0.0", 0)

    def send(self, data: Any, flags: int = 0) -> int:
        """As on a non-blocking socket: takes some of it, or raises BlockingIOError."""
        kernel = self.kernel
        kernel.count("send")
        # Released: the real call keeps nothing of it, not even when it raises.
        with memoryview(data) as given, given.cast("B") as view:
            return self._send(view)

    def _send(self, view: memoryview) -> int:
        kernel = self.kernel
        self.check_open()
        self.check_not_blocking()
        if self.sends:
            kernel.violation(f"{self!r} sends past an overlapped send in flight: the bytes may change places")
        if self.write_closed:
            raise os_error(BrokenPipeError, errno.ESHUTDOWN, WsaError.SHUTDOWN)
        if self.was_reset or self.peer is None:
            raise connection_reset()
        if self.peer.closed:
            return self._send_to_closed_peer(len(view))
        kernel.largest_send = max(kernel.largest_send, len(view))
        if kernel.chance("no_buffers"):
            raise os_error(OSError, errno.ENOBUFS, WsaError.NOBUFS)
        room = self.room_for(len(view))
        if not room or kernel.chance("would_block"):
            raise would_block()
        self.deliver(view[:room])
        return room

    def room_for(self, size: int) -> int:
        """How much of `size` bytes the kernel takes now."""
        peer, profile = self.peer, self.kernel.profile
        assert peer is not None
        room = peer.capacity - len(peer.inbound)
        if profile.sends_whole:
            return size if room > 0 else 0
        count = max(min(room, size), 0)
        if count > 1 and self.kernel.chance("partial_send"):
            count = self.kernel.random.randrange(1, count)
        return count

    def _send_to_closed_peer(self, count: int) -> int:
        # The first send after the peer went often succeeds: its reset is still on the way.
        if self.kernel.random.random() < 0.5:
            self.was_reset = True
            raise connection_reset()
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As on a non-blocking socket."""
        self.check_open()
        if self.receives:
            raise would_block()  # It does not steal from an overlapped receive in flight.
        if self.inbound:
            return self.take(size)
        if self.was_reset:
            raise connection_reset()
        if self.at_end:
            return b""
        raise would_block()

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        chunk = self.recv(min(size or len(view), len(view)))
        view[: len(chunk)] = chunk
        return len(chunk)

    def listen(self, backlog: int = 100) -> None:
        if self.backlog is None:
            self.backlog = deque()

    def accept(self) -> tuple["FakeSocket", Any]:
        """As on a non-blocking socket."""
        self.check_open()
        self.check_not_blocking()
        if not self.backlog:
            raise would_block()
        client = self.backlog.popleft()
        if client.closed or client.was_reset:
            raise connection_reset()
        accepted = self.kernel.accepting_socket()
        accepted.join(client, self.name)
        return accepted, client.name

    def join(self, client: "FakeSocket", name: Any) -> None:
        """Become the end of a connection that nobody has had yet."""
        assert client.peer is not None
        self.name, self.peer, self.inbound = name, client, client.peer.inbound
        client.peer = self

    def connect_ex(self, address: Any) -> int:
        """As on a non-blocking socket: how it ends is told by a poll, and by SO_ERROR."""
        self.check_not_blocking()
        listener = self.kernel.listener_at(address)
        if listener is None:
            self.connect_failed = True
        else:
            self.arrive_at(listener)
        return WsaError.WOULDBLOCK

    def shutdown(self, how: int) -> None:
        self.check_open()
        if self.peer is None or not self.context_updated:
            raise os_error(OSError, errno.ENOTCONN, WsaError.NOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self.write_closed = True

    def close(self) -> None:
        """Close the handle: with a reset if `SO_LINGER` (1, 0) asks for it, or if something was not received."""
        if self.closed:
            return
        super().close()
        resets = self.kernel.profile.a_cancelled_receive_resets and self.receive_cancelled and not self.write_closed
        self.write_closed = True
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        rude = linger is not None and bytes(linger)[:1] != b"\0" and not any(bytes(linger)[len(linger) // 2 :])
        if self.peer is not None and (rude or self.inbound or resets):
            self.peer.reset_arrives()
        for client in self.backlog or ():
            client.reset_arrives()

    # -- what the network does ---------------------------------------------------------------------------------

    def arrive_at(self, listener: "FakeSocket") -> None:
        """Join a listener's backlog: connected from here on, to an end that nobody has yet."""
        assert listener.backlog is not None
        self.peer = FakeSocket(self.kernel, 0)
        self.peer.name, self.peer.peer = listener.name, self
        listener.backlog.append(self)

    @property
    def at_end(self) -> bool:
        """Whether the peer has finished writing; what it wrote before comes first."""
        peer = self.peer
        return peer is not None and peer.write_closed and not peer.sends

    def deliver(self, chunk: Any) -> None:
        """Bytes travel to the peer."""
        peer = self.peer
        assert peer is not None
        self.sent += chunk
        peer.inbound += chunk

    def take(self, size: int) -> bytes:
        """Bytes leave the connection here."""
        chunk = bytes(self.inbound[:size])
        del self.inbound[:size]
        self.received_count += len(chunk)
        return chunk

    def reset_arrives(self) -> None:
        """The peer reset the connection. What was not received yet is lost, as on Windows."""
        self.was_reset = True
        self.inbound.clear()


class Receive(Request):
    """WSARecv: something, or the end, or a reset."""

    def __init__(self, sock: FakeSocket, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        super().__init__(sock, overlapped, ranges)
        self.pieces = ranges[1:]

    def progress(self) -> Result | None:
        sock = self.sock
        if sock.inbound:
            for address, size in self.pieces:
                chunk = sock.take(size)
                ctypes.memmove(address, chunk, len(chunk))
                self.moved += len(chunk)
            return Status.SUCCESS, self.moved
        if sock.was_reset:
            return Status.CONNECTION_RESET, 0
        if sock.at_end:
            return Status.SUCCESS, 0
        return None


class Send(Request):
    """WSASend: over when the last byte has left; the data are read from the caller's memory bit by bit."""

    def __init__(self, sock: FakeSocket, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        super().__init__(sock, overlapped, ranges)
        self.pieces = deque(ranges[1:])

    @property
    def line(self) -> "deque[Request]":
        return self.sock.sends

    def progress(self) -> Result | None:
        sock = self.sock
        peer = sock.peer
        if sock.was_reset or peer is None or peer.closed:
            return Status.CONNECTION_RESET, self.moved
        whole = sum(size for _, size in self.pieces)
        if sock.kernel.profile.sends_whole and not sock.room_for(whole):
            return None
        while self.pieces:
            address, size = self.pieces.popleft()
            room = size if sock.kernel.profile.sends_whole else sock.room_for(size)
            sock.deliver(ctypes.string_at(address, room))
            self.moved += room
            if room < size:
                self.pieces.appendleft((address + room, size - room))
                return (Status.SUCCESS, self.moved) if self.moved and sock.kernel.chance("short_send") else None
            if sock.kernel.chance("short_send"):
                break
        return Status.SUCCESS, self.moved


class Accept(Request):
    """AcceptEx: both addresses are written behind the OVERLAPPED."""

    def __init__(self, sock: FakeSocket, overlapped: int, ranges: list[tuple[int, int]], accepted: FakeSocket) -> None:
        super().__init__(sock, overlapped, ranges)
        self.accepted = accepted

    def progress(self) -> Result | None:
        kernel, backlog = self.sock.kernel, self.sock.backlog
        if kernel.accepts_fail or (backlog and kernel.chance("accept_failure")):
            return kernel.random.choice((Status.INSUFFICIENT_RESOURCES, Status.CONNECTION_RESET)), 0
        if not backlog:
            return None
        client, accepted = backlog.popleft(), self.accepted
        if client.closed or client.was_reset:
            # QUIRK(wine): so it ends where the client went before it was accepted; Windows may say that it was reset.
            return kernel.random.choice((Status.INVALID_CONNECTION, Status.CONNECTION_RESET)), 0
        accepted.join(client, self.sock.name)
        accepted.context_updated = False
        start, size = self.ranges[1]
        for index, name in enumerate((self.sock.name, client.name)):
            packed = sockaddr.encode(socket.AF_INET, name)
            ctypes.memmove(start + index * (size // 2), packed, len(packed))
        return Status.SUCCESS, 0


class Connect(Request):
    """ConnectEx: to a listener of this kernel, or refused."""

    def __init__(self, sock: FakeSocket, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        super().__init__(sock, overlapped, ranges)
        self.target = sockaddr.decode(ctypes.string_at(*ranges[1]))

    def progress(self) -> Result | None:
        sock = self.sock
        listener = sock.kernel.listener_at(self.target)
        if listener is None or listener.backlog is None:
            return Status.CONNECTION_REFUSED, 0
        sock.arrive_at(listener)
        sock.context_updated = False
        return Status.SUCCESS, 0


class StreamCalls:
    """The calls of `FakeKernel` that are about TCP."""

    def socket(self: Any) -> FakeSocket:
        """A new socket, neither bound nor connected."""
        return self.make(FakeSocket)

    def socketpair(self: Any) -> tuple[FakeSocket, FakeSocket]:
        """Two connected non-blocking sockets."""
        left, right = self.socket(), self.socket()
        left.peer, right.peer = right, left
        for sock in (left, right):
            sock.name = ("127.0.0.1", self.new_tcp_port())
            sock.setblocking(False)
        return left, right

    def listen(self: Any) -> FakeSocket:
        """A non-blocking listener; clients come by ConnectEx or by `connect_to`."""
        sock = self.socket()
        sock.name = ("127.0.0.1", self.new_tcp_port())
        sock.listen()
        sock.setblocking(False)
        return sock

    def accepting_socket(self: Any) -> FakeSocket:
        """What `socket.socket()` gives to a listener; there may be none."""
        self.count("socket")
        if self.chance("no_handle"):
            raise os_error(OSError, errno.EMFILE, WsaError.MFILE)
        return self.socket()  # type: ignore[no-any-return]

    def connect_to(self: Any, listener: FakeSocket) -> FakeSocket:
        """A client in the listener's backlog."""
        client = self.socket()
        client.setblocking(False)
        client.name = ("127.0.0.1", self.new_tcp_port())
        client.arrive_at(listener)
        return client

    def listener_at(self: Any, address: Any) -> FakeSocket | None:
        for thing in self._handles.values():
            if isinstance(thing, FakeSocket) and thing.backlog is not None and thing.name == address:
                return thing
        return None

    def closesocket(self: Any, handle: int, /) -> int:
        """Of a handle that no socket object has any more."""
        self.count("closesocket")
        sock = self.thing(handle, FakeSocket)
        if not sock.detached:
            self.violation(f"{sock!r} is closed behind the back of its object")
        sock.close()
        return 0

    def WSARecv(self: Any, *args: Any) -> int:
        handle, array, array_length, count_at, _flags, overlapped, routine = self._arguments("WSARecv", args)
        self._check_pointers("WSARecv", count_at, routine)
        sock = self.thing(handle, FakeSocket)
        return self._start(Receive(sock, overlapped, self._ranges(overlapped, array, array_length)), -1)

    def WSASend(self: Any, *args: Any) -> int:
        handle, array, array_length, count_at, _flags, overlapped, routine = self._arguments("WSASend", args)
        self._check_pointers("WSASend", count_at, routine)
        sock = self.thing(handle, FakeSocket)
        if sock.write_closed:
            return self._fail(WsaError.SHUTDOWN, -1)
        ranges = self._ranges(overlapped, array, array_length)
        self.largest_send = max(self.largest_send, sum(size for _, size in ranges[1:]))
        return self._start(Send(sock, overlapped, ranges), -1)

    def AcceptEx(self: Any, *args: Any) -> int:
        handle, accepting, block, first_bytes, local, remote, count_at, overlapped = self._arguments("AcceptEx", args)
        self._check_pointers("AcceptEx", count_at, first_bytes)
        accepted = self.thing(accepting, FakeSocket)
        if accepted.peer is not None:
            return self._fail(WsaError.INVAL, 0)
        ranges = [(overlapped, ctypes.sizeof(OVERLAPPED)), (block, local + remote)]
        return self._start(Accept(self.thing(handle, FakeSocket), overlapped, ranges, accepted), 0)

    def GetAcceptExSockaddrs(self: Any, block: int, first: int, local: int, remote: int, *where: int) -> None:
        for index, (at, length_at) in enumerate(zip(where[::2], where[1::2], strict=True)):
            ctypes.c_size_t.from_address(at).value = block + first + index * local
            ctypes.c_int32.from_address(length_at).value = 16

    def ConnectEx(self: Any, *args: Any) -> int:
        handle, target, length, _data, _size, count_at, overlapped = self._arguments("ConnectEx", args)
        self._check_pointers("ConnectEx", count_at, 0)
        sock = self.thing(handle, FakeSocket)
        if sock.name is None:
            return self._fail(WsaError.INVAL, 0)
        ranges = [(overlapped, ctypes.sizeof(OVERLAPPED)), (target, length)]
        return self._start(Connect(sock, overlapped, ranges), 0)
