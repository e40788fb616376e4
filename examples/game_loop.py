"""A game server's heart: a tick so many times a second, and clients on TCP and UDP who are told of each.

    python examples/game_loop.py [--hz 60] [--clients 100] [--seconds 5] [--loop iocp|stdlib]
    python examples/game_loop.py --compare    60 and 240 Hz, on this loop and on the standard library's, one table

Each client sends its position every tick it hears of; the server answers all with the state of the world. What is
measured is the jitter: by how much a tick began later than it should have. Ticks are planned from the first one on, so
that a late one makes no other late.
"""

import argparse
import asyncio
import struct
import sys
import time

import iocp_loop

POSITION = struct.Struct("<HII")  # client, tick, position
STATE = struct.Struct("<II")  # tick, clients heard of


class World:
    """Who is connected, and what they have said since the last tick."""

    def __init__(self):
        self.streams = set()
        self.addresses = {}  # of UDP clients
        self.heard = set()
        self.datagrams = None

    def hear(self, message):
        client, _tick, _position = POSITION.unpack(message)
        self.heard.add(client)

    def tell_all(self, tick):
        state = STATE.pack(tick, len(self.heard))
        self.heard.clear()
        for stream in self.streams:
            stream.write(state)
        for address in self.addresses:
            self.datagrams.sendto(state, address)


class StreamSide(asyncio.Protocol):
    """A TCP client, as the server sees it."""

    def __init__(self, world):
        self.world, self.unread = world, b""

    def connection_made(self, transport):
        self.transport = transport
        self.world.streams.add(transport)

    def data_received(self, data):
        data = self.unread + data
        whole = len(data) // POSITION.size * POSITION.size
        for start in range(0, whole, POSITION.size):
            self.world.hear(data[start : start + POSITION.size])
        self.unread = data[whole:]

    def connection_lost(self, exc):
        self.world.streams.discard(self.transport)


class DatagramSide(asyncio.DatagramProtocol):
    """All UDP clients, as the server sees them."""

    def __init__(self, world):
        self.world = world

    def connection_made(self, transport):
        self.world.datagrams = transport

    def datagram_received(self, data, address):
        self.world.addresses[address] = None
        self.world.hear(data)


class StreamClient(asyncio.Protocol):
    def __init__(self, number):
        self.number, self.unread = number, b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(POSITION.pack(self.number, 0, 0))

    def data_received(self, data):
        data = self.unread + data
        whole = len(data) // STATE.size * STATE.size
        for start in range(0, whole, STATE.size):
            tick, _heard = STATE.unpack(data[start : start + STATE.size])
            self.transport.write(POSITION.pack(self.number, tick, tick * 3))
        self.unread = data[whole:]


class DatagramClient(asyncio.DatagramProtocol):
    def __init__(self, number):
        self.number = number

    def connection_made(self, transport):
        self.transport = transport
        transport.sendto(POSITION.pack(self.number, 0, 0))

    def datagram_received(self, data, address):
        tick, _heard = STATE.unpack(data)
        self.transport.sendto(POSITION.pack(self.number, tick, tick * 3))


async def tick_for(world, hz, seconds):
    """The lateness of each tick, in milliseconds."""
    late = []
    first = time.perf_counter()
    for tick in range(1, round(hz * seconds) + 1):
        planned = first + tick / hz
        await asyncio.sleep(planned - time.perf_counter())
        late.append((time.perf_counter() - planned) * 1000)
        world.tell_all(tick)
    return sorted(late)


async def play(hz, clients, seconds):
    loop, world = asyncio.get_running_loop(), World()
    server = await loop.create_server(lambda: StreamSide(world), "127.0.0.1", 0)
    stream_address = server.sockets[0].getsockname()
    datagrams, _ = await loop.create_datagram_endpoint(lambda: DatagramSide(world), ("127.0.0.1", 0))
    datagram_address = datagrams.get_extra_info("sockname")
    ends = [datagrams]
    for number in range(clients):
        if number % 2:
            end, _ = await loop.create_connection(lambda number=number: StreamClient(number), *stream_address)
        else:
            end, _ = await loop.create_datagram_endpoint(
                lambda number=number: DatagramClient(number), remote_addr=datagram_address
            )
        ends.append(end)
    late = await tick_for(world, hz, seconds)
    told = len(world.streams) + len(world.addresses)
    for end in ends:
        end.close()
    server.close()
    await asyncio.sleep(0.1)  # For the clients' goodbyes.
    if told != clients:
        raise SystemExit(f"{told} of {clients} clients were told of the ticks")
    return late


LOOPS = {"iocp": iocp_loop.new_event_loop, "stdlib": asyncio.ProactorEventLoop}


def measure(name, hz, clients, seconds):
    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        late = runner.run(play(hz, clients, seconds))
    median, p99, most = late[len(late) // 2], late[min(len(late) - 1, len(late) * 99 // 100)], late[-1]
    print(f"{name:8} {hz:4} Hz  {len(late):5} ticks  late by {median:6.2f} {p99:7.2f} {most:7.2f} ms", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hz", type=int, default=60, help="ticks a second")
    parser.add_argument("--clients", type=int, default=100, help="half of them on TCP, half on UDP")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--loop", choices=LOOPS, default="iocp")
    parser.add_argument("--compare", action="store_true", help="60 and 240 Hz, on each loop")
    options = parser.parse_args()
    print(f"{options.clients} clients, {sys.version.split()[0]}; median, p99, most")
    rates, names = ([60, 240], list(LOOPS)) if options.compare else ([options.hz], [options.loop])
    for hz in rates:
        for name in names:
            measure(name, hz, options.clients, options.seconds)


if __name__ == "__main__":
    main()
