"""Bytes that wait to be sent, in order. No socket, no loop: what it does is seen by looking at it."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from .._operation import GATHER_MAX


class SendQueue:
    """The pieces of one stream that were accepted and are not known to be sent; those in flight are among them.

    Attributes:
        pieces: bytes objects, which nobody else can change; the oldest first.
        skip: bytes of the first piece that were sent already.
        size: bytes that wait, in all.
    """

    __slots__ = ("pieces", "size", "skip")

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
        """What one gathered send takes. Its first piece goes without `skip`."""
        pieces = self.pieces
        return list(pieces) if len(pieces) <= GATHER_MAX else [pieces[i] for i in range(GATHER_MAX)]

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

    def forget(self, byte_count: int) -> None:
        self.pieces.popleft()
        self.size -= byte_count


def as_bytes_like(data: Any) -> Any:
    """bytes, bytearray, or a memoryview of single bytes."""
    if isinstance(data, bytes | bytearray):
        return data
    if isinstance(data, memoryview):
        return data if data.format == "B" and data.contiguous and data.ndim == 1 else data.tobytes()
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
