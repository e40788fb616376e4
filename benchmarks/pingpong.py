"""An echo with both ends on one loop, in one thread: the same calls in the same order in every run.

Each connection is a client that sends its next message when the last one has come back. With N connections the loop
serves N messages a turn, so what a turn costs is shared by N. One round trip is two messages received and two sent.
"""

import _socket
import asyncio
import gc
import socket
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
WARM_UP = 20


class Server(asyncio.Protocol):
    """Echo."""

    def __init__(self, conductor: "Conductor") -> None:
        self.conductor = conductor

    def connection_made(self, transport: Any) -> None:
        self.write = transport.write
        self.conductor.ends += 1

    def connection_lost(self, _exc: BaseException | None) -> None:
        self.conductor.ends -= 1

    def data_received(self, data: bytes) -> None:
        self.write(data)


class Client(Server):
    """Sends again what comes back, and tells the conductor."""

    def data_received(self, data: bytes) -> None:
        conductor = self.conductor
        conductor.left -= 1
        if not conductor.left:
            conductor.next_part()
        if conductor.going:
            self.write(data)


class Conductor:
    """Counts round trips; `begin` and `end` are called around those that are to be counted."""

    def __init__(self, round_trips: int, warm_up: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.parts = [(round_trips, begin), (0, end)]
        self.left = warm_up
        self.going = True
        self.ends = 0  # open, servers and clients
        self.done = asyncio.get_running_loop().create_future()

    def next_part(self) -> None:
        self.left, call = self.parts.pop(0)
        call()
        if not self.parts:
            self.going = False
            self.done.set_result(None)


async def echo(
    connections: int, size: int, round_trips: int, begin: Callable[[], None], end: Callable[[], None]
) -> None:
    """So many round trips in all, on so many connections, between `begin()` and `end()`."""
    loop = asyncio.get_running_loop()
    conductor = Conductor(round_trips, WARM_UP * connections, begin, end)
    server = await loop.create_server(lambda: Server(conductor), HOST, 0, backlog=connections)
    port = server.sockets[0].getsockname()[1]
    ends = [await loop.create_connection(lambda: Client(conductor), HOST, port) for _ in range(connections)]
    gc.collect()
    gc.disable()  # A collection falls where it likes.
    try:
        for transport, _ in ends:
            transport.write(bytes(size))
        await conductor.done
    finally:
        gc.enable()
        for transport, _ in ends:
            transport.abort()
        server.close()
        while conductor.ends:  # noqa: ASYNC110  # an event would be work that is counted
            await asyncio.sleep(0)


class Visitor(asyncio.Protocol):
    """The server's side of a connection that is made and dropped; the end of one begins the next."""

    def __init__(self, next_visit: Callable[[], None]) -> None:
        self.next_visit = next_visit

    def connection_lost(self, _exc: BaseException | None) -> None:
        self.next_visit()


async def visits(count: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """So many connections accepted and closed one by one; the client is a plain socket."""
    loop = asyncio.get_running_loop()
    left = count + WARM_UP
    done = loop.create_future()

    def visit() -> None:
        nonlocal left
        if left == count:
            begin()
        if not left:
            end()
            done.set_result(None)
            return
        left -= 1
        # The C type, so that all that Python does for a socket is the server's.
        client = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        client.connect(address)
        client.close()

    server = await loop.create_server(lambda: Visitor(visit), HOST, 0)
    address = server.sockets[0].getsockname()
    loop.call_soon(visit)
    await done
    server.close()
    await asyncio.sleep(0)


async def wake_ups(count: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """So many `call_soon_threadsafe` from the loop's own thread, each found by the look at the port of its own turn.

    A receive is outstanding meanwhile, on a connection where nothing comes: a loop with nothing to wait for need not
    look at all.
    """
    loop = asyncio.get_running_loop()
    left = count
    done = loop.create_future()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
        peer, _ = listener.accept()
    await asyncio.sleep(0.01)

    def woken() -> None:
        nonlocal left
        if not left:
            end()
            done.set_result(None)
            return
        left -= 1
        loop.call_soon_threadsafe(woken)

    begin()
    woken()
    await done
    transport.abort()
    peer.close()
