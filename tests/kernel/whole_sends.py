"""Sends as Windows takes them: whole, of whatever size, while less than a buffer's worth is on its way.

Wine hands a send to Linux, which takes what fits (KB 214397; Wine's conformance tests say it of Windows). Here a thread
keeps what is on its way and sends it. An overlapped send waits for its turn there; its packet is posted by hand, and a
cancel of it is answered as Windows may answer: by success.
"""

import ctypes
import queue
import select
import socket
import threading
from typing import Any

from iocp_loop._win32.constants import Error, WsaError
from iocp_loop._win32.types import WSABUF

from .watched import WatchedLoop, failed, number_of

BUFFER = 64 * 1024  # What SO_SNDBUF is on Windows.


class WholeSocket(socket.socket):
    """A socket with such a buffer, for one connection of a watched loop.

    Attributes:
        taken: the sizes of the sends that were taken.
        on_its_way: bytes taken and not sent.
        cancelled: how many overlapped sends were cancelled.
    """

    def begin(self, loop: WatchedLoop) -> None:
        self.taken: list[int] = []
        self.on_its_way = self.cancelled = 0
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._overlapped: dict[int, Any] = {}  # by address: key of its packet
        self._loop = loop
        self._thread = threading.Thread(target=self._send_all)
        self._thread.start()
        loop.watched.faults["WSASend"] = self._send_overlapped
        loop.watched.faults["CancelIoEx"] = self._cancel

    def end(self) -> None:
        """After the connection is closed."""
        for name in ("WSASend", "CancelIoEx"):
            del self._loop.watched.faults[name]
        self._waiting.put(None)
        self._thread.join()

    def send(self, data: Any, flags: int = 0) -> int:
        with self._lock:
            if self.on_its_way >= BUFFER:
                raise BlockingIOError(WsaError.WOULDBLOCK, "the buffer is full")
            self.on_its_way += len(data)
        self.taken.append(len(data))
        self._waiting.put((bytes(data), 0))
        return len(data)

    def _send_overlapped(self, _function: Any, args: tuple[Any, ...]) -> int:
        vector, count, address = number_of(args[1]), number_of(args[2]), number_of(args[5])
        buffers = (WSABUF * count).from_address(vector)
        # SAFETY: copied; the operation stays in the pending table until its packet comes.
        data = b"".join(ctypes.string_at(each.buf, each.len) for each in buffers)
        with self._lock:
            self._overlapped[address] = self._loop.proactor.pending[address].endpoint.key
        self._waiting.put((data, address))
        return failed("WSASend", Error.IO_PENDING)

    def _cancel(self, function: Any, args: tuple[Any, ...]) -> int:
        for address in list(self._overlapped):
            if args[1] in (0, address):
                self.cancelled += 1
                self._complete(address, 0)
        return int(function(*args)) or 1

    def _complete(self, address: int, byte_count: int) -> None:
        with self._lock:
            key = self._overlapped.pop(address, None)
        if key is not None:
            self._loop.proactor.port.post(key, address, byte_count)

    def _send_all(self) -> None:
        while (given := self._waiting.get()) is not None:
            data, address = given
            view = memoryview(data)
            try:
                while view and (not address or address in self._overlapped):
                    if not select.select([], [self], [], 0.05)[1]:
                        continue
                    sent = super().send(view[:BUFFER])
                    view = view[sent:]
                    if not address:
                        with self._lock:
                            self.on_its_way -= sent
            except (OSError, ValueError):
                pass  # Closed, or the peer is gone: nobody is told of bytes that were taken.
            if address:
                self._complete(address, len(data))
