"""Delivery to a BufferedProtocol.

get_buffer() is called when data has arrived and not before, as on asyncio's other loops: a protocol may resize or
replace its buffer whenever it is not being filled. Received data are copied into that buffer. While receives fill our
own buffer of 128 KiB or more, what has arrived beyond it is received directly into the protocol's.
"""

from collections.abc import Callable
from typing import Any, Protocol

from ._connection import Connection

# How often data are received directly in a row before other connections get their turn.
DIRECT_ROUNDS_MAX = 8


class FedReader(Protocol):
    """The part of a `Reader` that this module uses."""

    transport: Connection
    protocol: Any
    unfed: int

    @property
    def feeds(self) -> bool:
        """Whether the protocol may be given data by the socket's own call."""
        ...

    def keep_for_later(self, rest: bytes) -> None:
        """Keep the bytes that an interrupted protocol has not been given; the next delivery begins with them."""


def deliver(reader: FedReader, data: bytes, receive_into: Callable[[Any], int] | None) -> None:
    """Give the reader's BufferedProtocol all of `data`. If it raises, the connection ends.

    Args:
        reader: the reader that received them.
        data: the received bytes.
        receive_into: the socket's own call, if more has probably arrived than the reader's buffer held; else None.
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
    """Receive what has arrived into the protocol's own buffer, without a copy.

    Args:
        reader: the reader, without an outstanding receive.
        receive_into: the socket's own call.
    """
    for _ in range(DIRECT_ROUNDS_MAX):
        if not reader.feeds:
            return
        target = _buffer_of(reader.protocol, -1)
        try:
            byte_count = receive_into(target)
        except OSError:
            # Nothing has arrived, or the connection broke: the next receive waits, or reports it.
            return
        if not byte_count:
            # End of file; the next receive reports it again.
            return
        reader.protocol.buffer_updated(byte_count)
        if byte_count < len(target):
            return


def _buffer_of(protocol: Any, hint: int) -> Any:
    target = protocol.get_buffer(hint)
    if not len(target):
        raise RuntimeError("get_buffer() returned an empty buffer")
    return target
