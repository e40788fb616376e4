"""Bytes that wait to be sent, in order. No socket and no loop, so it can be tested with bytes alone."""

from collections import deque
from collections.abc import Iterable
from itertools import accumulate, islice
from typing import Any

from .._core._operation import GATHER_MAX, SEND_MAX
from .._win32.constants import LENGTH_MAX


class SendQueue:
    """The pieces of one stream that were accepted and are not known to be sent, including those in flight.

    Attributes:
        send_max: the most bytes in one send.
        pieces: bytes objects, which nobody can change; the oldest first.
        skip: how many bytes of the first piece were sent.
        size: the number of bytes that wait.
    """

    __slots__ = ("pieces", "size", "skip")

    send_max = SEND_MAX

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.skip = 0
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)

    def add_all(self, pieces: Iterable[bytes], size: int) -> None:
        """Add several pieces, of `size` bytes in all."""
        self.pieces.extend(pieces)
        self.size += size

    def vector(self) -> list[bytes]:
        """The pieces for one gathered send, which begins after `skip` bytes and takes at most `send_max` bytes."""
        pieces = self.pieces
        if len(pieces) <= GATHER_MAX and self.size <= self.send_max:
            return list(pieces)
        first = list(islice(pieces, GATHER_MAX))
        end = self.skip + self.send_max
        whole = sum(1 for length in accumulate(map(len, first)) if length < end)
        return first[: whole + 1]

    def forget(self, byte_count: int) -> None:
        """Remove bytes that were sent. A send may take only a part; the rest stays."""
        self.size -= byte_count
        done = self.skip + byte_count
        pieces = self.pieces
        while pieces and done >= len(pieces[0]):
            done -= len(pieces.popleft())
        self.skip = done

    def keep_only(self, rest: bytes) -> None:
        """Replace all pieces by `rest`, the only bytes that were not sent."""
        self.clear()
        self.add(rest)

    def clear(self) -> None:
        self.pieces.clear()
        self.skip = self.size = 0


class MessageQueue(SendQueue):
    """A queue of messages: each piece is one, may be empty, and is sent by itself, whole or not at all."""

    __slots__ = ()

    send_max = LENGTH_MAX

    def forget(self, byte_count: int) -> None:
        self.pieces.popleft()
        self.size -= byte_count


def as_bytes_like(data: Any) -> Any:
    """Return data as bytes, bytearray, or a memoryview of single bytes; raise TypeError if it is none of these."""
    if isinstance(data, bytes | bytearray):
        return data
    if isinstance(data, memoryview):
        view: memoryview[Any] = data  # pyright: ignore[reportUnknownVariableType]
        return view if view.format == "B" and view.contiguous and view.ndim == 1 else view.tobytes()
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
