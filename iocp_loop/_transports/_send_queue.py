"""Bytes that wait to be sent, in order. No socket, no loop: what it does is seen by looking at it."""

from collections import deque
from collections.abc import Iterable
from itertools import accumulate, islice
from typing import Any

from .._core._operation import GATHER_MAX, SEND_MAX
from .._win32.constants import LENGTH_MAX


class SendQueue:
    """The pieces of one stream that were accepted and are not known to be sent; those in flight are among them.

    Attributes:
        send_max: bytes that one send may take.
        pieces: bytes objects, which nobody else can change; the oldest first.
        skip: bytes of the first piece that were sent already.
        size: bytes that wait, in all.
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
        """Add several; `size` is their length in all."""
        self.pieces.extend(pieces)
        self.size += size

    def vector(self) -> list[bytes]:
        """What one gathered send takes. Its first piece goes without `skip`, its last as far as `send_max` allows."""
        pieces = self.pieces
        if len(pieces) <= GATHER_MAX and self.size <= self.send_max:
            return list(pieces)
        first = list(islice(pieces, GATHER_MAX))
        end = self.skip + self.send_max
        whole = sum(1 for length in accumulate(map(len, first)) if length < end)
        return first[: whole + 1]

    def forget(self, byte_count: int) -> None:
        """So many bytes were sent. A send may take less than it was given: the rest stays, from there on."""
        self.size -= byte_count
        done = self.skip + byte_count
        pieces = self.pieces
        while pieces and done >= len(pieces[0]):
            done -= len(pieces.popleft())
        self.skip = done

    def keep_only(self, rest: bytes) -> None:
        """All has been sent but this, which is one piece from now on."""
        self.clear()
        self.add(rest)

    def clear(self) -> None:
        self.pieces.clear()
        self.skip = self.size = 0


class MessageQueue(SendQueue):
    """As `SendQueue`, where each piece is a message: sent by itself, all of it or none, and it may be empty."""

    __slots__ = ()

    send_max = LENGTH_MAX

    def forget(self, byte_count: int) -> None:
        self.pieces.popleft()
        self.size -= byte_count


def as_bytes_like(data: Any) -> Any:
    """bytes, bytearray, or a memoryview of single bytes."""
    if isinstance(data, bytes | bytearray):
        return data
    if isinstance(data, memoryview):
        view: memoryview[Any] = data  # pyright: ignore[reportUnknownVariableType]
        return view if view.format == "B" and view.contiguous and view.ndim == 1 else view.tobytes()
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
