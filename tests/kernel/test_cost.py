"""What things cost, counted at the Kernel seam: calls, not time. A figure here is a promise of the README's."""

import asyncio
import socket
from collections import Counter

import pytest

from iocp_loop._core._operation import SEND_MAX
from iocp_loop._transports._reader import HELD

from .peers import LOCALHOST, Buffered, Echo, Recorder, client, receive_exactly, serving
from .watched import here, turns, until, wait_until

WAIT, RECEIVE, SEND = "GetQueuedCompletionStatusEx", "WSARecv", "WSASend"


class CountedSends(Echo):
    """Counts the C calls of socket.send behind its transport."""

    sends = 0

    def connection_made(self, transport):
        super().connection_made(transport)
        writer = transport._writer
        real = writer._send_now

        def send(data):
            type(self).sends += 1
            return real(data)

        writer._send_now = send


def spent(loop, before):
    """The kernel calls since `before`."""
    return Counter({name: count - before[name] for name, count in loop.counts.items() if count != before[name]})


def exchange(sock, count, size):
    for n in range(count):
        message = bytes([n & 0xFF]) * size
        sock.sendall(message)
        assert receive_exactly(sock, size) == message


@pytest.mark.parametrize("size", [1, 1024])
@pytest.mark.parametrize("factory", [CountedSends, type("BufferedSends", (CountedSends,), {})])
async def test_an_echoed_message_costs_one_receive_and_one_send_and_at_most_one_wait(factory, size):
    """A thread sends the next message when it has the echo of the last: the loop falls idle in between."""
    count = 100
    async with serving(factory) as (_, address):
        with client(address) as sock:
            await asyncio.to_thread(exchange, sock, 10, size)
            factory.sends = 0
            before = here().counts.copy()
            # Nothing else may run on the loop meanwhile, so the exchange is waited for by one future.
            await asyncio.to_thread(exchange, sock, count, size)
            cost = spent(here(), before)
            assert factory.sends == count
            assert cost[SEND] == 0
            assert count <= cost[RECEIVE] <= count + 1
            assert cost[WAIT] <= 2 * count + 5
            assert cost["CreateIoCompletionPort"] == cost["CancelIoEx"] == 0


async def test_an_echo_with_nobody_else_about_costs_exactly_one_receive_one_send_and_one_wait():
    """No thread: the peer's bytes are sent before the loop looks, so what a message costs can be counted to the call."""
    count = 50
    async with serving(CountedSends) as (_, address):
        with client(address) as sock:
            exchanged = 0

            async def one():
                nonlocal exchanged
                sock.sendall(b"x" * 100)
                receives, sends = here().counts[RECEIVE], CountedSends.sends
                while here().counts[RECEIVE] == receives or CountedSends.sends == sends:
                    await asyncio.sleep(0)
                assert receive_exactly(sock, 100) == b"x" * 100
                exchanged += 1

            for _ in range(3):
                await one()
            await turns()  # Until the last receive is out again.
            CountedSends.sends = 0
            before = here().counts.copy()
            for _ in range(count):
                await one()
            cost = spent(here(), before)
            assert CountedSends.sends == count
            assert cost[RECEIVE] == count
            assert set(cost) <= {RECEIVE, WAIT}


async def test_one_wait_brings_the_packets_of_many_connections():
    """64 connections have data before the loop looks: it waits once, and receives once and sends once for each."""
    protocols = []

    class Kept(CountedSends):
        def connection_made(self, transport):
            super().connection_made(transport)
            protocols.append(self)

    async with serving(Kept, backlog=100) as (_, address):
        clients = [client(address) for _ in range(64)]
        await until(lambda: len(protocols) == 64)
        await turns(5)
        Kept.sends = 0
        for sock in clients:
            sock.sendall(b"x")
        pending = [p.transport._reader._operation for p in protocols]
        wait_until(lambda: all(op.Internal != 0x103 for op in pending))
        before = here().counts.copy()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cost = spent(here(), before)
        assert all(protocol.received == b"x" for protocol in protocols)
        assert Kept.sends == 64
        # One wait per turn of the loop, and two turns.
        assert cost[WAIT] <= 3
        # This task is among the callbacks that the receives wait for.
        await asyncio.sleep(0)
        assert spent(here(), before)[RECEIVE] == 64
        for sock in clients:
            sock.close()
        await until(lambda: all(protocol.lost.done() for protocol in protocols))


async def test_a_queue_of_small_writes_leaves_in_one_gathered_send():
    """While one send is in flight 40 writes queue up; they cost one WSASend together."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = await here().create_connection(Recorder, *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        peer.settimeout(10)
        size = 0
        while not transport.get_write_buffer_size():
            transport.write(bytes(SEND_MAX))  # What one call may be given.
            size += SEND_MAX
            await asyncio.sleep(0)
        assert here().counts[SEND] == 1
        for _ in range(40):
            transport.write(b"small")
        await asyncio.to_thread(receive_exactly, peer, size + 200)
        await until(lambda: not transport.get_write_buffer_size())
        assert here().counts[SEND] == 2
        transport.close()
        await protocol.gone()


async def test_a_connection_made_and_lost_costs_no_more_than_it_must():
    """Accept, associate, set the skip mode, receive; cancel at the end. Nothing is asked for twice."""
    async with serving(Echo) as (_, address):
        with client(address) as sock:
            await asyncio.to_thread(exchange, sock, 1, 10)
        await until(lambda: len(here().proactor.pending) <= 6)
        before = here().counts.copy()
        for _ in range(10):
            with client(address) as sock:
                await asyncio.to_thread(exchange, sock, 1, 10)
        await until(lambda: here().counts[RECEIVE] - before[RECEIVE] >= 20)
        cost = spent(here(), before)
        assert cost["AcceptEx"] <= 10 + 32
        assert cost["CreateIoCompletionPort"] == 10
        assert cost["SetFileCompletionNotificationModes"] == 10
        assert cost["WSAIoctl"] == 0


async def test_a_large_message_into_a_buffered_protocol_costs_few_receives():
    """64 KiB waiting: one WSARecv brings the first part, the rest comes by the C call straight into the protocol's buffer."""

    class Big(Buffered):
        size = 64 * 1024

    with socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = await here().create_connection(Big, *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        await turns(5)
        transport.pause_reading()
        peer.sendall(bytes(64 * 1024))
        await until(lambda: transport._reader.receive is HELD)
        before = here().counts[RECEIVE]
        transport.resume_reading()
        await protocol.receives(64 * 1024)
        await turns()
        assert here().counts[RECEIVE] - before <= 3
        transport.close()
        await protocol.gone()


async def test_an_idle_loop_makes_no_calls():
    """Open connections, nothing to do for a while: one wait, for the one timer."""
    async with serving(Echo) as (_, address):
        with client(address):
            await turns(20)
            await until(lambda: here().counts["AcceptEx"] >= 5)
            await turns(5)
            before = here().counts.copy()
            await asyncio.sleep(0.1)
            cost = spent(here(), before)
            assert set(cost) == {WAIT}
            assert cost[WAIT] <= 4


async def test_turns_while_nothing_is_outstanding_hardly_touch_the_port():
    """A signal wakes the loop by a receive of its own; what else could come is in the queue already."""
    before = here().counts[WAIT]
    for _ in range(256):
        await asyncio.sleep(0)
    assert here().counts[WAIT] - before <= 256 // 64 + 1


async def test_a_turn_looks_at_the_port_once_while_something_is_outstanding():
    async with serving(Echo):
        await turns(5)
        before = here().counts[WAIT]
        for _ in range(100):
            await asyncio.sleep(0)
        assert 100 <= here().counts[WAIT] - before <= 101


class Answers(CountedSends):
    """Answers each request with head and body, as web servers do; or with both in one, when the request says so."""

    def data_received(self, data):
        if data == b"two":
            self.transport.write(b"head")
            self.transport.write(b"body")
        else:
            self.transport.write(b"headbody")


async def test_an_answer_in_two_writes_costs_one_send_once_the_connection_is_known_for_it():
    async with serving(Answers) as (_, address):
        with client(address) as sock:

            async def sends_for(request):
                Answers.sends = 0
                sock.sendall(request)
                assert await asyncio.to_thread(receive_exactly, sock, 8) == b"headbody"
                return Answers.sends

            assert [await sends_for(b"two") for _ in range(4)] == [2, 1, 1, 1]
            # One write in a turn: sent at the end of this one, and at once from the next one on.
            assert [await sends_for(b"one") for _ in range(3)] == [1, 1, 1]
            assert [await sends_for(b"two") for _ in range(3)] == [2, 1, 1]


class Crumbs(asyncio.Protocol):
    """Writes crumbs from resume_writing, until it is asked to pause or has written all."""

    def __init__(self, size, limit):
        self.left, self.limit = size, limit
        self.depth = self.depth_max = 0
        self.paused = True

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=self.limit)
        self.resume_writing()

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        self.depth += 1
        self.depth_max = max(self.depth, self.depth_max)
        while self.left and not self.paused:
            self.transport.write(self.left.to_bytes(4, "little") * 25)
            self.left -= 1
        self.depth -= 1


@pytest.mark.parametrize("limit", [0, 1000, 64 * 1024, 1 << 20])
async def test_a_protocol_that_writes_as_long_as_it_may_is_not_called_from_inside_its_own_writes(limit):
    """Each write would go one call deeper, until the kernel's buffer is full or the stack is."""
    count = 50_000
    with socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = await here().create_connection(lambda: Crumbs(count, limit), *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        peer.settimeout(10)
        received = await asyncio.to_thread(receive_exactly, peer, 100 * count)
        assert received == b"".join(n.to_bytes(4, "little") * 25 for n in range(count, 0, -1))
        assert protocol.depth_max == 1
        transport.abort()
        await turns(5)
