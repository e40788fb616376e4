"""What stands at the other end: bare sockets, and protocols that write down what happens to them."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

from .watched import PATIENCE_S, until

LOCALHOST = "127.0.0.1"


class Recorder(asyncio.Protocol):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.transport: Any = None
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.keep_open_after_eof = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.events.append("data")

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open_after_eof

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Any) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    async def gone(self) -> Any:
        """Wait for connection_lost; the exception it brought, or None."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.lost)

    async def receives(self, size: int) -> bytes:
        """Wait until `size` bytes have come; all that came, which the next call begins without."""
        await until(lambda: len(self.received) >= size, f"{size} bytes")
        data = bytes(self.received)
        self.received.clear()
        return data


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Buffered(Recorder, asyncio.BufferedProtocol):
    """As Recorder, with a buffer of its own of `size` bytes."""

    size = 1024

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(self.size)
        self.updates: list[int] = []

    def get_buffer(self, sizehint: int) -> Any:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.updates.append(nbytes)


@contextlib.asynccontextmanager
async def connected(factory: Any = Recorder, **options: Any) -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """(transport, protocol, peer): a client connection of our loop, and the bare blocking socket it leads to."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(factory, *listener.getsockname(), **options)
        peer, _ = listener.accept()
    peer.settimeout(PATIENCE_S)
    try:
        yield transport, protocol, peer
    finally:
        with peer:
            transport.abort()
        if isinstance(protocol, Recorder):
            await protocol.gone()


@contextlib.asynccontextmanager
async def serving(factory: Any, **options: Any) -> AsyncIterator[tuple[Any, tuple[str, int]]]:
    """(server, address) of a server on our loop, closed at the end; its connections must be gone by then."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, options.pop("host", LOCALHOST), 0, **options)
    try:
        yield server, server.sockets[0].getsockname()
    finally:
        server.close()
        async with asyncio.timeout(PATIENCE_S):
            await server.wait_closed()


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees a reset: lingering, for no time."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh", 1, 0))
    sock.close()


def client(address: Any) -> socket.socket:
    """A bare blocking connection."""
    sock = socket.create_connection(address[:2], timeout=PATIENCE_S)
    sock.settimeout(PATIENCE_S)
    return sock


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes from a blocking socket."""
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        assert part, f"the stream ended after {len(parts)} of {size} bytes"
        parts += part
    return bytes(parts)


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = bytearray()
    while part := sock.recv(1 << 20):
        parts += part
    return bytes(parts)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every shift, loss or doubling shows."""
    step = b"".join((n * 2654435761 + seed & 0xFFFFFFFF).to_bytes(4, "little") for n in range(4096))
    block = b"".join(bytes([page & 0xFF]) + step[1:] for page in range(min(size // len(step) + 1, 256)))
    return (block * (size // len(block) + 1))[:size]
