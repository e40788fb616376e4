"""Reading on a TCP transport: echo, pauses, buffers that follow the traffic, BufferedProtocol, exceptions."""

import asyncio
import socket

import pytest

from iocp_loop._core._operation import State
from iocp_loop._transports._buffered import DIRECT_ROUNDS_MAX
from iocp_loop._transports._reader import DIRECT_CLASS, HELD, RECEIVE_SIZES, SHRINK_AFTER

from .peers import Buffered, Echo, Recorder, client, connected, pattern, receive_exactly, reset, serving
from .watched import here, turns, until, wait_until


async def test_each_message_comes_back():
    """A server that echoes, and a bare client that sends messages of many sizes, one after the other."""
    async with serving(Echo) as (_, address):
        with client(address) as sock:
            for size in (1, 100, 2047, 2048, 2049, 50_000):
                message = pattern(size, seed=size)
                sock.sendall(message)
                answer = await asyncio.to_thread(receive_exactly, sock, size)
                assert answer == message


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_large_transfers_both_ways_at_once_arrive_whole(factory):
    """Two transports of one loop send each other 8 MiB while they receive as much."""
    size = 8 << 20
    servers = []

    def serve():
        servers.append(factory())
        return servers[0]

    async with serving(serve) as (_, address):
        transport, protocol = await here().create_connection(factory, *address)
        await until(lambda: servers and servers[0].transport)
        there, back = pattern(size, 1), pattern(size, 2)
        transport.write(there)
        servers[0].transport.write(back)
        assert await servers[0].receives(size) == there
        assert await protocol.receives(size) == back
        transport.close()
        assert await protocol.gone() is None
        assert await servers[0].gone() is None


async def test_while_paused_nothing_is_delivered_and_on_resume_all_of_it_in_order():
    """The receive is out when the protocol pauses: what it brings is held back, and comes first on resume."""
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.sendall(b"held,")
        await until(lambda: transport._reader.receive is HELD)
        peer.sendall(b"newer")
        await turns(10)
        assert protocol.received == b""
        transport.resume_reading()
        assert transport.is_reading()
        assert protocol.received == b""  # Never from within resume_reading().
        assert await protocol.receives(10) == b"held,newer"


async def test_pausing_again_before_the_held_data_is_handed_out_keeps_it():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await turns()
        transport.resume_reading()
        await turns()
        transport.pause_reading()
        peer.sendall(b"held")
        await until(lambda: transport._reader.receive is HELD)
        transport.resume_reading()
        transport.pause_reading()
        await turns(10)
        assert protocol.received == b""
        for _ in range(3):
            transport.resume_reading()
            transport.pause_reading()
        transport.resume_reading()
        assert await protocol.receives(4) == b"held"
        await turns(5)
        assert protocol.received == b""


async def test_pausing_in_connection_made_starts_no_receive_until_resume():
    class Paused(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async with connected(Paused) as (transport, protocol, peer):
        peer.sendall(b"early")
        await turns(10)
        assert protocol.received == b""
        assert here().counts["WSARecv"] <= 1  # The loop's own, for signals.
        transport.resume_reading()
        assert await protocol.receives(5) == b"early"


async def test_pausing_and_resuming_inside_data_received_loses_and_doubles_nothing():
    """With more data waiting than a buffer holds, the receive that resume() starts is done before the callback returns."""

    class Restless(Recorder):
        def data_received(self, data):
            self.transport.pause_reading()
            self.transport.resume_reading()
            super().data_received(data)

    for size in (10, 2048, 300_000):
        async with connected(Restless) as (transport, protocol, peer):
            message = pattern(size, seed=size)
            sending = asyncio.to_thread(peer.sendall, message)
            await asyncio.gather(sending, until(lambda: len(protocol.received) >= size))
            peer.sendall(b"end")
            await until(lambda: protocol.received.endswith(b"end"))
            assert bytes(protocol.received) == message + b"end"


async def test_pausing_and_resuming_between_an_inline_receive_and_its_delivery_changes_nothing():
    """The next receive has succeeded inline and waits in the queue when another callback pauses and resumes."""
    async with connected() as (transport, protocol, peer):
        first = here().create_future()

        def deliver(data):
            Recorder.data_received(protocol, data)
            # Before this callback returns, the next part is there: the receive armed after it succeeds inline. And
            # before that one is delivered, a third part is there for a receive that should not happen yet.
            if not first.done():
                peer.sendall(b"second")
                _wait_readable(transport)
                here().call_soon(toggle)
                first.set_result(None)

        def toggle():
            peer.sendall(b"third")
            _wait_readable(transport)
            transport.pause_reading()
            transport.resume_reading()

        protocol.data_received = deliver
        peer.sendall(b"first")
        await first
        await until(lambda: len(protocol.received) >= 16)
        await turns(5)
        assert protocol.received == b"firstsecondthird"


def _wait_readable(transport):
    import select

    sock = transport.get_extra_info("socket")
    assert select.select([sock.fileno()], [], [], 10)[0]


async def test_a_random_storm_of_pauses_keeps_the_stream_whole():
    """200 pauses and resumes at seeded moments while 2 MiB come in."""
    import random

    chance = random.Random(7)
    message = pattern(2 << 20)
    async with connected() as (transport, protocol, peer):
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, message))
        while len(protocol.received) < len(message):
            (transport.pause_reading if chance.random() < 0.5 else transport.resume_reading)()
            await asyncio.sleep(0 if chance.random() < 0.9 else 0.001)
            if chance.random() < 0.3:
                transport.resume_reading()
        await sending
        assert bytes(protocol.received) == message
        transport.resume_reading()


async def test_a_reset_is_told_at_once_also_while_paused():
    """A protocol that pauses because its own consumer is slow must learn that the connection is gone."""
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)
        assert "eof" not in protocol.events


async def test_the_end_of_the_stream_while_paused_waits_for_resume():
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: transport._reader.receive is HELD)
        await turns(5)
        assert "eof" not in protocol.events
        transport.resume_reading()
        assert await protocol.gone() is None
        assert protocol.events == ["made", "eof", "lost"]


async def test_a_reset_while_reading_ends_the_connection_with_its_error():
    async with connected() as (_, protocol, peer):
        await turns()
        reset(peer)
        error = await protocol.gone()
        assert isinstance(error, ConnectionResetError)
        assert error.winerror == 10054


# -- buffers ---------------------------------------------------------------------------------------------------


async def test_the_buffer_grows_while_receives_come_back_full_and_shrinks_after():
    """A megabyte sent at once, then single bytes."""
    async with connected() as (transport, protocol, peer):
        reader = transport._reader
        await turns()
        assert len(reader._operation.buffer) == RECEIVE_SIZES[0]
        sizes = []
        protocol.data_received = lambda data: (sizes.append(len(data)), Recorder.data_received(protocol, data))
        transport.pause_reading()
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, bytes(1 << 20)))
        await until(lambda: reader.receive is HELD)
        transport.resume_reading()
        await protocol.receives(1 << 20)
        await sending
        assert max(sizes) > RECEIVE_SIZES[1]
        for _ in range(SHRINK_AFTER * len(RECEIVE_SIZES)):
            peer.sendall(b"x")
            await protocol.receives(1)
        await turns()
        assert len(reader._operation.buffer) == RECEIVE_SIZES[0]


async def test_a_buffered_protocol_gets_the_rest_straight_into_its_buffer():
    """64 KiB are waiting, and the protocol's buffer takes 16 KiB: after the first receive no more copies are made."""

    class Big(Buffered):
        size = 16 * 1024

    async with connected(Big) as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        await asyncio.to_thread(peer.sendall, pattern(64 * 1024))
        await until(lambda: transport._reader.receive is HELD)
        transport.resume_reading()
        received = await protocol.receives(64 * 1024)
        assert received == pattern(64 * 1024)
        assert protocol.updates[0] == RECEIVE_SIZES[0]
        assert max(protocol.updates) == Big.size


async def test_direct_receives_give_others_a_turn():
    """One connection has a megabyte waiting in small pieces; between two rounds of it a callback gets to run."""

    class Small(Buffered):
        size = 1024

    async with connected(Small) as (transport, protocol, peer):
        await turns()
        longest = 0
        before = 0
        running = True

        def watch():
            nonlocal longest, before
            longest = max(longest, len(protocol.updates) - before)
            before = len(protocol.updates)
            if running:
                here().call_soon(watch)

        watch()
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, bytes(1 << 20)))
        await protocol.receives(1 << 20)
        await sending
        running = False
        await turns()
        # One receive of ours in as many pieces as it needs, and the direct ones after it, on each turn.
        assert longest <= 2 * (DIRECT_ROUNDS_MAX + RECEIVE_SIZES[DIRECT_CLASS] // Small.size)


async def test_a_buffered_protocol_may_resize_its_buffer_whenever_it_is_not_being_filled():
    class Resizing(Buffered):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            # A bytearray with an exported view would raise BufferError here.
            self.buffer += bytes(100)
            del self.buffer[: len(self.buffer) // 2]

    async with connected(Resizing) as (_, protocol, peer):
        message = pattern(100_000)
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, message))
        assert await protocol.receives(len(message)) == message
        protocol.buffer.extend(bytes(10))
        await sending


async def test_a_buffered_protocol_with_a_buffer_of_one_byte_gets_everything():
    class Tiny(Buffered):
        size = 1

    async with connected(Tiny) as (_, protocol, peer):
        message = pattern(5000)
        peer.sendall(message)
        assert await protocol.receives(5000) == message


@pytest.mark.parametrize("size", [10, 10_000])
async def test_a_buffered_protocol_that_raises_ends_its_connection_and_is_reported(size):
    class Broken(Buffered):
        def get_buffer(self, sizehint):
            raise ZeroDivisionError("get_buffer")

    async with connected(Broken) as (_, protocol, peer):
        peer.sendall(bytes(size))
        assert isinstance(await protocol.gone(), ZeroDivisionError)
        report = here().expect_report("buffer_updated() call failed")
        assert report["protocol"] is protocol


async def test_a_buffered_protocol_without_room_ends_its_connection_and_is_reported():
    class Full(Buffered):
        size = 0

    async with connected(Full) as (_, protocol, peer):
        peer.sendall(b"x")
        assert isinstance(await protocol.gone(), RuntimeError)
        here().expect_report("empty buffer")


async def test_a_protocol_set_while_data_is_held_gets_the_data():
    """First another Protocol, then a BufferedProtocol, each while paused."""
    async with connected() as (transport, first, peer):
        await turns()
        for factory in (Recorder, Buffered):
            transport.pause_reading()
            peer.sendall(b"for the next one")
            await until(lambda: transport._reader.receive is HELD)
            second = factory()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            transport.resume_reading()
            assert await second.receives(16) == b"for the next one"
            assert first.received == b""
        transport.set_protocol(first)


async def test_a_protocol_replaced_inside_data_received_gets_what_follows():
    """A handshake protocol hands over to a buffered one, as TLS and websockets do."""

    class Handshake(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.next = Buffered()
            self.transport.set_protocol(self.next)

    async with connected(Handshake) as (transport, first, peer):
        peer.sendall(b"hello")
        await first.receives(5)
        peer.sendall(pattern(10_000))
        assert await first.next.receives(10_000) == pattern(10_000)
        transport.set_protocol(first)


async def test_bytes_of_a_cancelled_sock_recv_go_to_the_transport_made_of_the_socket():
    """The receive had succeeded when it was cancelled: its bytes are the beginning of the transport's stream."""
    left, peer = socket.socketpair()
    left.setblocking(False)
    with peer:
        task = asyncio.ensure_future(here().sock_recv(left, 100))
        await turns()
        operation = next(op for op in here().proactor.pending.values() if op.endpoint.handle == left.fileno())
        peer.sendall(b"first,")
        # Until the kernel has finished, without letting the loop see it.
        wait_until(lambda: operation.Internal != 0x103)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert operation.state is State.RELEASED
        transport, protocol = await here().create_connection(Recorder, sock=left)
        peer.sendall(b"second")
        assert await protocol.receives(12) == b"first,second"
        transport.close()
        await protocol.gone()
