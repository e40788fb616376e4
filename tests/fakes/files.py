"""Files that the fake kernel sends: TransmitFile."""

import ctypes
from collections import deque
from typing import Any

from iocp_loop._win32.constants import Status
from iocp_loop._win32.types import OVERLAPPED

from .handles import Request, Result
from .network import FakeSocket


class Transmit(Request):
    """TransmitFile: over when the last byte has left, or the file has ended."""

    def __init__(self, sock: FakeSocket, overlapped: int, rest: bytes) -> None:
        super().__init__(sock, overlapped, [(overlapped, ctypes.sizeof(OVERLAPPED))])
        self.rest = rest

    @property
    def line(self) -> "deque[Request]":
        return self.sock.sends  # type: ignore[no-any-return]

    def progress(self) -> Result | None:
        sock = self.sock
        peer = sock.peer
        if sock.was_reset or peer is None or peer.closed:
            return Status.CONNECTION_RESET, self.moved
        count = min(len(self.rest), max(peer.capacity - len(peer.inbound), 0))
        if count > 1 and sock.kernel.chance("partial_send"):
            count = sock.kernel.random.randrange(1, count)
        sock.deliver(self.rest[:count])
        self.rest = self.rest[count:]
        self.moved += count
        return None if self.rest else (Status.SUCCESS, self.moved)


class FileCalls:
    """The calls of `FakeKernel` that are about files."""

    def TransmitFile(self: Any, *args: Any) -> int:
        handle, file, count, _per_send, overlapped, buffers, _reserved = self._arguments("TransmitFile", args)
        self._check_pointers("TransmitFile", 0, buffers)
        where = OVERLAPPED.from_address(overlapped)
        start = where.Offset | where.OffsetHigh << 32
        content = self.files[file][start:]
        return self._start(Transmit(self.thing(handle, FakeSocket), overlapped, content[: count or None]), 0)
