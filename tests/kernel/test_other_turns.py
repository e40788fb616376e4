"""Turns that are not the loop's own: asyncio's, one that runs a callback at a time, and turns of ours inside ours."""

import asyncio
import heapq
import socket
import time

import pytest

from iocp_loop._transports import _writer

from .watched import WatchedLoop, here

PATIENCE_S = 20


class AsyncioTurns(WatchedLoop):
    """Turns as BaseEventLoop does."""

    _run_once = asyncio.BaseEventLoop._run_once


def turn_by_one(loop):
    """A turn that runs one callback, and may be called by any."""
    timers = loop._scheduled
    timeout = None if not loop._ready else 0
    if timeout is None and timers:
        timeout = max(0, timers[0].when() - loop.time())
    loop._process_events(loop._selector.select(timeout))
    while timers and timers[0].when() <= loop.time():
        loop._ready.append(heapq.heappop(timers))
    if loop._ready:
        handle = loop._ready.popleft()
        if not handle.cancelled():
            handle._run()


class TurnsByOne(WatchedLoop):
    """Turns as `turn_by_one` does."""

    def _run_once(self):
        turn_by_one(self)


def wait_inside(loop, future, turn=turn_by_one):
    """In a callback: run the loop until the future is done."""
    ends = time.monotonic() + PATIENCE_S
    while not future.done():
        assert time.monotonic() < ends, "it does not come"
        turn(loop)
    return future.result()


def run_on(loop_class, main):
    loop = loop_class()
    try:
        return loop.run_until_complete(asyncio.wait_for(main(loop), PATIENCE_S))
    finally:
        loop.close()
        assert loop.left == []


class Collector(asyncio.Protocol):
    """Keeps what comes; `came` is the next message."""

    def __init__(self):
        self.data = bytearray()
        self.came = here().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        if not self.came.done():
            self.came.set_result(bytes(data))


async def pair(factory=Collector):
    """A transport and its protocol, and the other end, a blocking socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(PATIENCE_S)
    transport, protocol = await here().create_connection(factory, sock=ours)
    return transport, protocol, theirs


def received(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(65536)
    return data


@pytest.mark.parametrize("loop_class", [AsyncioTurns, TurnsByOne])
def test_each_timer_runs_once_and_none_early(loop_class):
    """Among many that are cancelled, of which asyncio's turn makes a new list."""

    async def main(loop):
        fired, early = [], []

        def fire(number, when):
            fired.append(number)
            if loop.time() + loop._clock_resolution < when:
                early.append(number)
            if number < 10:
                loop.call_soon(loop.call_later, 0.001, fired.append, 100 + number)

        now = loop.time()
        for number in range(30):
            loop.call_at(now + number * 0.003, fire, number, now + number * 0.003)
        dropped = [loop.call_later(1000 + number, fired.append, "cancelled") for number in range(300)]
        for handle in dropped:
            handle.cancel()
        await asyncio.sleep(0.2)
        return sorted(fired), early, len(loop._scheduled)

    fired, early, left = run_on(loop_class, main)
    assert fired == [*range(30), *range(100, 110)]
    assert not early
    assert left < 100 or loop_class is TurnsByOne  # It drops none.


@pytest.mark.parametrize("loop_class", [AsyncioTurns, TurnsByOne])
def test_streams_flow(loop_class):
    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data[:1])
            writer.write(data[1:])
            await writer.drain()
        writer.close()

    async def main(loop):
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for size in (1, 2, 3, 100_000, 2, 2_000_000, 5):
            question = bytes(range(256)) * (size // 256) + bytes(size % 256)
            writer.writelines([question[:1], question[1:]])
            assert await reader.readexactly(size) == question
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run_on(loop_class, main)


async def test_what_a_turn_of_ours_had_left_to_do_is_done_by_a_turn_inside_it():
    """A callback writes twice, of which the second is gathered, and waits for the answer; others are queued and due."""
    loop = here()
    transport, protocol, peer = await pair()
    order, over = [], loop.create_future()

    def ask():
        transport.write(b"one")
        transport.write(b"two")
        order.append(received(peer, 3))
        peer.send(b"answer")
        order.append(wait_inside(loop, protocol.came))
        order.append(received(peer, 3))
        over.set_result(None)

    loop.call_soon(ask)
    loop.call_soon(order.append, "queued behind it")
    loop.call_at(0, order.append, "due")
    await over
    assert order[0] == b"one"
    assert order.index("queued behind it") < order.index(b"answer")
    assert order.index("due") < order.index(b"answer")
    assert order[-1] == b"two"
    transport.close()
    peer.close()


@pytest.mark.parametrize("turn", [turn_by_one, WatchedLoop._run_once], ids=["by one", "ours"])
async def test_a_turn_inside_a_turn_takes_nothing_twice_and_leaves_nothing(turn):
    """Inside a queued callback, a due timer and a delivery, of many that their turn was about to run."""
    loop = here()
    ran, pairs = [], [await pair() for _ in range(5)]

    def run_inside(name):
        ran.append(name)
        for _ in range(20):
            loop.call_soon(int)  # So that it does not wait.
            turn(loop)

    class Nests(Collector):
        def data_received(self, data):
            super().data_received(data)
            run_inside(bytes(data))

    for transport, _, _ in pairs:
        transport.set_protocol(Nests())
    for number, (_, _, peer) in enumerate(pairs):
        peer.send(b"delivery %d" % number)
    for number in range(5):
        loop.call_soon(run_inside, f"callback {number}")
        loop.call_at(0, run_inside, f"timer {number}")
    await asyncio.sleep(0.05)
    wanted = [f"{kind} {number}" for kind in ("callback", "timer") for number in range(5)]
    assert sorted(map(str, ran)) == sorted([*wanted, *(str(b"delivery %d" % number) for number in range(5))])
    for transport, _, peer in pairs:
        # Each goes on.
        protocol = Collector()
        transport.set_protocol(protocol)
        peer.send(b"more")
        assert await protocol.came == b"more"
        transport.close()
        peer.close()


@pytest.mark.parametrize("turn", [turn_by_one, WatchedLoop._run_once], ids=["by one", "ours"])
async def test_resume_writing_may_run_a_turn(turn, monkeypatch):
    """It is called where the turn sends what several writers have gathered, because they had sent enough in it."""
    loop = here()
    monkeypatch.setattr(_writer, "TURN_SIZE_MAX", 1)

    class Nests(Collector):
        resumed = 0

        def resume_writing(self):
            self.resumed += 1
            loop.call_soon(int)
            turn(loop)

    pairs = [await pair(Nests) for _ in range(4)]
    for transport, _, _ in pairs:
        transport.set_write_buffer_limits(high=4)
    for transport, _, _ in pairs:
        for _ in range(5):
            transport.write(b"abc")
    await asyncio.sleep(0)
    for transport, protocol, peer in pairs:
        # The turn that is under way may be one inside, and what waits for its end is not out yet.
        assert await loop.run_in_executor(None, received, peer, 15) == b"abc" * 5
        assert protocol.resumed
        transport.close()
        peer.close()


async def test_a_buffered_protocol_gets_its_bytes_in_order_though_it_runs_turns():
    """With a buffer that takes several rounds, between which later bytes have come."""
    loop = here()

    class Slow(asyncio.BufferedProtocol):
        def __init__(self):
            self.data, self.buffer, self.depth = bytearray(), bytearray(3), 0

        def get_buffer(self, _hint):
            return self.buffer

        def buffer_updated(self, count):
            self.data += self.buffer[:count]
            if self.data == b"abc":
                peer.send(b"ijkl")
            if len(self.data) < 8:
                for _ in range(5):
                    loop.call_soon(int)
                    turn_by_one(loop)

    transport, protocol, peer = await pair(Slow)
    peer.send(b"abcdefgh")
    while len(protocol.data) < 12:
        await asyncio.sleep(0.001)
    assert protocol.data == b"abcdefghijkl"
    transport.close()
    peer.close()


async def test_timers_that_somebody_has_looked_at_keep_their_order():
    loop, ran = here(), []
    when = loop.time() + 0.02
    for number in range(5):
        loop.call_at(when, ran.append, number)
    looked_at = list(loop._scheduled)
    for number in range(5, 10):
        loop.call_at(when, ran.append, number)
    assert len(looked_at) == 5
    assert len(loop._scheduled) == 10
    await asyncio.sleep(0.05)
    assert ran == list(range(10))


async def test_timers_are_taken_out_and_put_in_where_asyncio_has_them():
    loop, ran = here(), []
    for number in range(3):
        loop.call_later(0.01, ran.append, number)
    heapq.heappop(loop._scheduled)
    handle = asyncio.TimerHandle(loop.time() + 0.01, ran.append, ("put in",), loop)
    heapq.heappush(loop._scheduled, handle)
    await asyncio.sleep(0.05)
    assert len(ran) == 3
    assert "put in" in ran
    loop._scheduled = []
    loop.call_later(0.01, ran.append, "later")
    await asyncio.sleep(0.03)
    assert ran[-1] == "later"


def test_what_is_written_between_two_runs_is_sent_at_once():
    loop = WatchedLoop()
    transport, _, peer = loop.run_until_complete(pair())
    for text in (b"one", b"two", b"three"):
        transport.write(text)
        assert received(peer, len(text)) == text
    transport.close()
    peer.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert loop.left == []
