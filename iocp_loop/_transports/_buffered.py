"""How a BufferedProtocol gets its bytes.

Its buffer is asked for when data has arrived and not before, as on asyncio's other loops: a protocol may resize or
replace its buffer whenever it is not being filled. What came is copied into it; while receives fill 128 KiB, the rest
of each is received straight into the protocol's.
"""

from collections.abc import Callable
from typing import Any, Protocol

from ._connection import Connection

# Rounds of direct reading before other connections get their turn.
DIRECT_ROUNDS_MAX = 8


class FedReader(Protocol):
    """A reader, as far as its BufferedProtocol is concerned; see `Reader`."""

    transport: Connection
    protocol: Any
    unfed: int

    @property
    def feeds(self) -> bool:
        """Whether the protocol wants data now, by the socket's own call."""

    def keep_for_later(self, rest: bytes) -> None:
        """The protocol was interrupted: what it has not taken comes first, the next time."""


def deliver(reader: FedReader, data: bytes, receive_into: Callable[[Any], int] | None) -> None:
    """Give the reader's BufferedProtocol all of `data`; what it raises ends the connection.

    Args:
        reader: whose protocol it is for.
        data: what was received.
        receive_into: the socket's own call, where more is waiting than the reader's buffer held.
    """
    try:
        _feed(reader, data)
        if receive_into is not None:
            receive_directly(reader, receive_into)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        reader.transport.fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")


def _feed(reader: FedReader, data: bytes) -> None:
    """Copy data into the protocol's buffer, in as many rounds as its buffers need."""
    protocol, rest = reader.protocol, memoryview(data)
    try:
        while rest:
            target = _buffer_of(protocol, len(rest))
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            rest = rest[count:]
            reader.unfed = len(rest)
            protocol.buffer_updated(count)
    except (SystemExit, KeyboardInterrupt):
        if rest:
            reader.keep_for_later(bytes(rest))
        raise


def receive_directly(reader: FedReader, receive_into: Callable[[Any], int]) -> None:
    """More than the reader's buffer held is waiting: receive it where the protocol wants it, without a copy.

    Args:
        reader: whose protocol it is for; nothing of its own is outstanding.
        receive_into: the socket's own call.
    """
    for _ in range(DIRECT_ROUNDS_MAX):
        if not reader.feeds:
            return
        target = _buffer_of(reader.protocol, -1)
        try:
            byte_count = receive_into(target)
        except OSError:
            # Nothing there yet, or the connection broke: the next receive waits, or says so.
            return
        if not byte_count:
            # End of file; the next receive says so again.
            return
        reader.protocol.buffer_updated(byte_count)
        if byte_count < len(target):
            return


def _buffer_of(protocol: Any, hint: int) -> Any:
    target = protocol.get_buffer(hint)
    if not len(target):
        raise RuntimeError("get_buffer() returned an empty buffer")
    return target
