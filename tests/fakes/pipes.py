"""The named pipes of the fake kernel: byte mode and message mode, server instances and clients."""

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any

from iocp_loop._win32.constants import INVALID_HANDLE_VALUE, Error, PipeMode, Status
from iocp_loop._win32.errors import status_from_winerror
from iocp_loop._win32.types import DWORD, OVERLAPPED

from .handles import FakeHandle, Request, Result

if TYPE_CHECKING:
    from .kernel import FakeKernel

_FILE_ACCESS_INFORMATION = 8
_FILE_READ_DATA = 1


class FakePipeEnd(FakeHandle):
    """One end of a named pipe. It is its own pipe object: what `PipeHandle` is to the real one.

    Attributes:
        inbound: what was written and not read: one entry for each write in message mode, and for each piece that there
            was room for in byte mode.
        read_mode: PipeMode.READMODE_*.
    """

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        super().__init__(kernel, handle)
        self.name: str | None = None
        self.peer: FakePipeEnd | None = None
        self.inbound: deque[bytes] = deque()
        self.capacity = kernel.random.choice((1, 7, 64, 1000, 65536))  # of `inbound`, in bytes
        self.receives: deque[Request] = deque()
        self.sends: deque[Request] = deque()
        self.message_mode = False
        self.read_mode = PipeMode.READMODE_BYTE
        self.is_instance = False  # the server's end

    @property
    def is_free(self) -> bool:
        """An instance that no client has found yet."""
        return self.is_instance and self.peer is None and not self.closed

    @property
    def room(self) -> int:
        return self.capacity - sum(map(len, self.inbound))

    # What a raw client, which is no program of ours, does.

    def write(self, data: bytes) -> int:
        """How much of it was taken; in message mode all or nothing. Raises BrokenPipeError."""
        peer = self.peer
        if peer is None or peer.closed:
            raise BrokenPipeError
        count = len(data) if self.message_mode else min(len(data), max(peer.room, 0))
        if self.message_mode and peer.inbound and peer.room < len(data):
            return 0
        if count:
            peer.inbound.append(data[:count])
        return count

    def read(self, size: int) -> bytes | None:
        """None if nothing has come; b"" at the end."""
        if self.inbound:
            return take(self, size)[0]
        return b"" if self.peer is None or self.peer.closed else None


def take(end: FakePipeEnd, size: int) -> tuple[bytes, bool]:
    """Read: what came, and whether it is the beginning of a longer message."""
    inbound = end.inbound
    data = inbound.popleft()
    if end.read_mode == PipeMode.READMODE_BYTE:
        while data and inbound and inbound[0] and len(data) < size:
            data += inbound.popleft()
    if len(data) > size:
        inbound.appendleft(data[size:])
        return data[:size], end.read_mode != PipeMode.READMODE_BYTE
    return data, False


class ReadPipe(Request):
    """ReadFile: something, or the end."""

    def progress(self) -> Result | None:
        end = self.sock
        if end.inbound:
            address, size = self.ranges[1]
            data, goes_on = take(end, size)
            ctypes.memmove(address, data, len(data))
            return Status.BUFFER_OVERFLOW if goes_on else Status.SUCCESS, len(data)
        return (Status.PIPE_BROKEN, 0) if end.peer is None or end.peer.closed else None


class WritePipe(Request):
    """WriteFile: over when all of it is where the other end can read it."""

    def __init__(self, end: FakePipeEnd, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        super().__init__(end, overlapped, ranges)
        self.fails_at_once = end.peer is None or end.peer.closed

    @property
    def line(self) -> "deque[Request]":
        return self.sock.sends  # type: ignore[no-any-return]

    def progress(self) -> Result | None:
        end, (address, size) = self.sock, self.ranges[1]
        peer = end.peer
        if peer is None or peer.closed:
            return Status.PIPE_CLOSING if self.fails_at_once else Status.PIPE_BROKEN, 0
        if end.message_mode:
            if peer.inbound and peer.room < size:
                return None
            peer.inbound.append(ctypes.string_at(address, size))
            return Status.SUCCESS, size
        count = min(max(peer.room, 0), size - self.moved)
        if count > 1 and end.kernel.chance("partial_send"):
            count = end.kernel.random.randrange(1, count)
        if count or not size:
            peer.inbound.append(ctypes.string_at(address + self.moved, count))
            self.moved += count
        return (Status.SUCCESS, size) if self.moved == size else None


class ConnectPipe(Request):
    """ConnectNamedPipe: a client has come; one that was there first is a failure that means success."""

    def __init__(self, end: FakePipeEnd, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        super().__init__(end, overlapped, ranges)
        self.fails_at_once = end.peer is not None

    def progress(self) -> Result | None:
        peer = self.sock.peer
        if peer is None:
            return None
        if not self.fails_at_once:
            return Status.SUCCESS, 0
        if peer.closed:
            return status_from_winerror(Error.NO_DATA), 0
        return status_from_winerror(Error.PIPE_CONNECTED), 0


class PipeCalls:
    """The calls of `FakeKernel` that are about pipes."""

    def pipe_pair(self: Any, *, message_mode: bool = False) -> tuple[FakePipeEnd, FakePipeEnd]:
        """Both ends of a pipe."""
        left, right = self.make(FakePipeEnd), self.make(FakePipeEnd)
        left.peer, right.peer = right, left
        for end in (left, right):
            end.message_mode = message_mode
            end.read_mode = PipeMode.READMODE_MESSAGE if message_mode else PipeMode.READMODE_BYTE
        return left, right

    def open_pipe(self: Any, name: str) -> FakePipeEnd | None:
        """A raw client of a named pipe; None while every instance is busy. Raises FileNotFoundError."""
        instances = [thing for thing in self.open_handles if isinstance(thing, FakePipeEnd) and thing.name == name]
        instances = [thing for thing in instances if thing.is_instance]
        if not instances:
            raise FileNotFoundError(name)
        free = [thing for thing in instances if thing.is_free]
        if not free:
            return None
        instance = self.random.choice(free)
        client: FakePipeEnd = self.make(FakePipeEnd)
        client.peer, instance.peer = instance, client
        client.message_mode = instance.message_mode
        return client

    def CreateNamedPipeW(self: Any, name: str, _open_mode: int, mode: int, *_rest: int) -> int:
        self.count("CreateNamedPipeW")
        if self.chance("no_handle"):
            return self._fail(Error.NOT_ENOUGH_MEMORY, INVALID_HANDLE_VALUE)
        end = self.make(FakePipeEnd)
        end.name, end.is_instance = name, True
        end.message_mode = bool(mode & PipeMode.TYPE_MESSAGE)
        end.read_mode = mode & PipeMode.READMODE_MESSAGE
        return end.handle

    def CreateFileW(self: Any, name: str, *_rest: int) -> int:
        self.count("CreateFileW")
        try:
            client = self.open_pipe(name)
        except FileNotFoundError:
            return self._fail(Error.FILE_NOT_FOUND, INVALID_HANDLE_VALUE)
        return client.handle if client is not None else self._fail(Error.PIPE_BUSY, INVALID_HANDLE_VALUE)

    def WaitNamedPipeW(self: Any, name: str, _timeout_ms: int, /) -> int:
        self.count("WaitNamedPipeW")
        return int(any(isinstance(thing, FakePipeEnd) and thing.is_free for thing in self.open_handles))

    def GetConsoleMode(self: Any, handle: int, mode_at: int, /) -> int:
        return self._fail(Error.INVALID_HANDLE)

    def GetNamedPipeHandleStateW(self: Any, handle: int, state_at: int, *_rest: int) -> int:
        DWORD.from_address(state_at).value = self.thing(handle, FakePipeEnd).read_mode
        return 1

    def SetNamedPipeHandleState(self: Any, handle: int, mode_at: int, *_rest: int) -> int:
        self.thing(handle, FakePipeEnd).read_mode = PipeMode(DWORD.from_address(mode_at).value)
        return 1

    def NtQueryInformationFile(self: Any, handle: int, _iosb: int, where: int, _size: int, what: int, /) -> int:
        self.thing(handle, FakePipeEnd)
        # Opened for overlapped I/O (no bit says otherwise), to be read and written.
        DWORD.from_address(where).value = _FILE_READ_DATA if what == _FILE_ACCESS_INFORMATION else 0
        return Status.SUCCESS

    def ReadFile(self: Any, *args: Any) -> int:
        return self._transfer("ReadFile", ReadPipe, args)

    def WriteFile(self: Any, *args: Any) -> int:
        return self._transfer("WriteFile", WritePipe, args)

    def _transfer(self: Any, name: str, cls: Any, args: tuple[Any, ...]) -> int:
        handle, address, size, count_at, overlapped = self._arguments(name, args)
        self._check_pointers(name, count_at, 0)
        ranges = [(overlapped, ctypes.sizeof(OVERLAPPED)), (address, size)]
        return self._start(cls(self.thing(handle, FakePipeEnd), overlapped, ranges), 0)

    def ConnectNamedPipe(self: Any, *args: Any) -> int:
        handle, overlapped = self._arguments("ConnectNamedPipe", args)
        end = self.thing(handle, FakePipeEnd)
        return self._start(ConnectPipe(end, overlapped, [(overlapped, ctypes.sizeof(OVERLAPPED))]), 0)
