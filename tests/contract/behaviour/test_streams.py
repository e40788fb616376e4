"""asyncio's streams API: StreamReader, StreamWriter, start_server, open_connection."""

import asyncio
import socket

import pytest
from kernel.peers import LOCALHOST, client, pattern, receive_all, reset


class Serving:
    """A stream server for one test; its handlers must have ended when the block does."""

    def __init__(self, handler, **options):
        self.handler, self.options = handler, options
        self.running = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.handle, LOCALHOST, 0, **self.options)
        return self.server.sockets[0].getsockname()

    async def __aexit__(self, *exc_info):
        self.server.close()
        while self.running:
            await asyncio.wait(self.running, timeout=10)
        await self.server.wait_closed()

    async def handle(self, reader, writer):
        self.running.add(asyncio.current_task())
        try:
            await self.handler(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass  # The peer was gone first.
            self.running.discard(asyncio.current_task())


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def test_lines_come_back_in_order():
    async with Serving(echo) as address:
        reader, writer = await asyncio.open_connection(*address)
        for n in range(100):
            writer.write(b"line %d\n" % n)
            assert await reader.readline() == b"line %d\n" % n
        writer.close()
        await writer.wait_closed()


async def test_many_clients_at_once_each_hear_their_own():
    async def talk(address, number):
        reader, writer = await asyncio.open_connection(*address)
        for n in range(10):
            message = b"%d:%d\n" % (number, n)
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        writer.close()
        await writer.wait_closed()

    async with Serving(echo) as address:
        await asyncio.gather(*(talk(address, number) for number in range(50)))


async def test_large_data_goes_through_with_drain_on_both_sides():
    message = pattern(4 << 20)
    async with Serving(echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        async def send():
            for n in range(0, len(message), 100_000):
                writer.write(message[n : n + 100_000])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        assert await reader.read() == message
        await sending
        writer.close()
        await writer.wait_closed()


async def test_readexactly_says_what_it_has_when_the_stream_ends():
    async def short(_reader, writer):
        writer.write(b"abc")

    async with Serving(short) as address:
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(10)
        assert caught.value.partial == b"abc"
        writer.close()
        await writer.wait_closed()


async def test_readuntil_enforces_its_limit():
    async def long_line(_reader, writer):
        writer.write(b"x" * 5000 + b"\n")

    async with Serving(long_line) as address:
        reader, writer = await asyncio.open_connection(*address, limit=1000)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"\n")
        writer.close()
        await writer.wait_closed()


async def test_a_cancelled_read_loses_no_byte():
    go = asyncio.Event()

    async def later(_reader, writer):
        await go.wait()
        writer.write(b"after")

    async with Serving(later) as address:
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(10), 0.01)
        go.set()
        assert await reader.read(10) == b"after"
        writer.close()
        await writer.wait_closed()


async def test_a_reset_is_raised_by_the_read_that_waits():
    with socket.create_server((LOCALHOST, 0)) as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        peer, _ = listener.accept()
    reading = asyncio.create_task(reader.read(1))
    await asyncio.sleep(0.01)
    reset(peer)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reading, 10)
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_half_close_works_both_ways():
    async def answer_at_the_end(reader, writer):
        received = await reader.read()
        writer.write(received[::-1])
        await writer.drain()

    async with Serving(answer_at_the_end) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"abc")
        assert writer.can_write_eof()
        writer.write_eof()
        assert await reader.read() == b"cba"
        assert reader.at_eof()
        writer.close()
        await writer.wait_closed()


async def test_a_bare_client_is_served_and_named():
    names = []

    async def name(_reader, writer):
        names.append((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
        writer.write(b"bye")

    async with Serving(name) as address:
        with client(address) as sock:
            assert await asyncio.to_thread(receive_all, sock) == b"bye"
            assert names == [(sock.getsockname(), address)]


async def test_an_exception_in_a_handler_is_reported_and_the_server_goes_on(reports):
    calls = []

    async def handler(reader, writer):
        calls.append(1)
        if len(calls) == 1:
            writer.close()
            raise ZeroDivisionError("a bug of the handler's")
        await echo(reader, writer)
        writer.close()

    server = await asyncio.start_server(handler, LOCALHOST, 0)
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    while not reports():
        await asyncio.sleep(0.001)
    assert isinstance(reports().pop()["exception"], ZeroDivisionError)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
