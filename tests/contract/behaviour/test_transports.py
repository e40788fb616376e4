"""Transports and protocols: the order of callbacks, flow control, endings, exceptions."""

import asyncio
import socket

import pytest
from kernel.peers import (
    LOCALHOST,
    Buffered,
    Echo,
    Recorder,
    client,
    connected,
    pattern,
    receive_all,
    receive_exactly,
    reset,
    serving,
)
from kernel.watched import turns, until


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_data_arrives_whole_and_in_order(factory):
    message = pattern(1 << 20)
    async with connected(factory) as (_, protocol, peer):
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, message))
        assert await protocol.receives(len(message)) == message
        await sending


async def test_callbacks_come_in_order_and_the_end_of_the_stream_closes():
    async with connected() as (transport, protocol, peer):
        peer.sendall(b"x")
        await protocol.receives(1)
        peer.shutdown(socket.SHUT_WR)
        assert await protocol.gone() is None
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert transport.is_closing()


async def test_eof_received_may_keep_the_connection_open_for_writing():
    async with connected() as (transport, protocol, peer):
        protocol.keep_open_after_eof = True
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.events)
        transport.write(b"goodbye")
        transport.close()
        assert await protocol.gone() is None
        assert receive_all(peer) == b"goodbye"


async def test_nothing_is_delivered_while_paused_and_nothing_is_lost():
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.sendall(b"while paused")
        await asyncio.sleep(0.02)
        assert protocol.received == b""
        transport.resume_reading()
        assert await protocol.receives(12) == b"while paused"
        assert transport.is_reading()


async def test_flow_control_pauses_and_resumes_the_protocol_once():
    async with connected() as (transport, protocol, peer):
        size = 0
        while not transport.get_write_buffer_size():
            transport.write(bytes(4 << 20))
            size += 4 << 20
        assert protocol.events == ["made", "pause"]
        await asyncio.to_thread(receive_exactly, peer, size)
        await until(lambda: "resume" in protocol.events)
        assert protocol.events == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() == 0


async def test_close_flushes_and_abort_does_not_wait():
    async with connected() as (transport, protocol, peer):
        message = pattern(8 << 20)
        transport.write(message)
        transport.close()
        assert await asyncio.to_thread(receive_all, peer) == message
        assert await protocol.gone() is None
    async with connected() as (transport, protocol, peer):
        transport.write(bytes(32 << 20))
        transport.abort()
        assert await protocol.gone() is None


async def test_a_reset_reaches_connection_lost():
    async with connected() as (_, protocol, peer):
        await turns()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)


async def test_a_reset_while_paused_reaches_connection_lost_at_once():
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        await turns()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)


async def test_writing_after_write_eof_raises_and_writing_after_close_does_not():
    async with connected() as (transport, protocol, peer):
        transport.write_eof()
        with pytest.raises(RuntimeError):
            transport.write(b"x")
        transport.close()
        await protocol.gone()
        assert receive_all(peer) == b""
    async with connected() as (transport, protocol, _peer):
        transport.close()
        transport.write(b"x")
        await protocol.gone()


@pytest.mark.parametrize("wrong", ["text", 5, None])
async def test_what_is_no_buffer_is_a_type_error(wrong):
    async with connected() as (transport, _, _peer):
        with pytest.raises(TypeError):
            transport.write(wrong)


async def test_limits_are_checked_and_worked_out_alike():
    async with connected() as (transport, _, _peer):
        default = transport.get_write_buffer_limits()
        assert default == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        with pytest.raises(ValueError):
            transport.set_write_buffer_limits(high=1, low=2)


async def test_an_exception_in_data_received_is_reported_and_the_connection_goes_on(reports):
    def broken(_data):
        raise ZeroDivisionError

    async with connected() as (_, protocol, peer):
        protocol.data_received = broken
        peer.sendall(b"x")
        await until(reports)
        assert isinstance(reports().pop()["exception"], ZeroDivisionError)
        del protocol.data_received
        peer.sendall(b"y")
        assert await protocol.receives(1) == b"y"


async def test_an_exception_in_buffer_updated_ends_the_connection(reports):
    class Broken(Buffered):
        def buffer_updated(self, nbytes):
            raise ZeroDivisionError

    async with connected(Broken) as (_, protocol, peer):
        peer.sendall(b"x")
        assert isinstance(await protocol.gone(), ZeroDivisionError)
        report = reports().pop()
        assert report["protocol"] is protocol
        assert "transport" in report


async def test_an_exception_in_connection_lost_is_reported(reports):
    async with connected() as (transport, protocol, _peer):

        def lost(exc):
            Recorder.connection_lost(protocol, exc)
            raise ZeroDivisionError

        protocol.connection_lost = lost
        transport.close()
        await protocol.gone()
        await until(reports)
        assert isinstance(reports().pop()["exception"], ZeroDivisionError)


# BaseEventLoop leaves the socket to the collector then; that is asyncio's, and the same on both.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_a_protocol_factory_that_raises_fails_create_connection():
    def broken():
        raise ZeroDivisionError

    with socket.create_server((LOCALHOST, 0)) as listener:
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().create_connection(broken, *listener.getsockname())


async def test_refused_connections_raise_alike():
    with socket.create_server((LOCALHOST, 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError) as caught:
        await asyncio.get_running_loop().create_connection(Recorder, *address)
    assert caught.value.errno


async def test_a_server_serves_and_can_be_closed_twice():
    async with serving(Echo) as (server, address):
        assert server.is_serving()
        with client(address) as sock:
            sock.sendall(b"x")
            assert await asyncio.to_thread(receive_exactly, sock, 1) == b"x"
        server.close()
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()


async def test_extra_info_is_the_same():
    async with connected() as (transport, _, peer):
        assert transport.get_extra_info("peername") == peer.getsockname()
        assert transport.get_extra_info("sockname") == peer.getpeername()
        assert transport.get_extra_info("socket").fileno() > 0
        assert transport.get_extra_info("nonsense", 7) == 7


async def test_writelines_joins_in_order():
    async with connected() as (transport, _, peer):
        transport.writelines([b"a", bytearray(b"b"), memoryview(b"c"), b""])
        assert receive_exactly(peer, 3) == b"abc"


async def test_set_protocol_takes_effect_with_the_next_data():
    async with connected() as (transport, first, peer):
        peer.sendall(b"1")
        assert await first.receives(1) == b"1"
        second = Recorder()
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        peer.sendall(b"2")
        assert await second.receives(1) == b"2"
        transport.set_protocol(first)
