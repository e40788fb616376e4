"""What a program does from inside pause_writing() and resume_writing(), and what fails in the middle of a send."""

import asyncio
import contextvars
import gc
import socket
import sys
from unittest import mock

import pytest

from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._transports import _stream, _writer
from iocp_loop._transports._joining import JoinBuffer

from .peers import LOCALHOST, Echo, Recorder, connected, pattern, receive_all, receive_exactly, serving
from .test_tls import client_context, server_context, tls_client
from .watched import PATIENCE_S, WatchedLoop, here, turns, until

KIB = 1024
MIB = 1 << 20
# More than any socket buffer takes at once, so that the rest is queued.
PLENTY = 16 * MIB


class Acting(Recorder):
    """Calls `on_resume` in resume_writing()."""

    on_resume = None
    depth = 0  # of calls into the protocol

    def resume_writing(self):
        super().resume_writing()
        assert self.depth == 0, "resume_writing() inside a write"
        if self.on_resume is not None:
            self.on_resume()

    def write(self, data):
        self.depth += 1
        self.transport.write(data)
        self.depth -= 1


def small_buffer(transport):
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)


@pytest.mark.parametrize("size", [10, 64 * KIB, 100 * KIB, 384 * KIB, PLENTY])
@pytest.mark.parametrize("small", [False, True], ids=["", "small send buffer"])
async def test_three_writes_in_one_turn_over_tls_arrive(size, small):
    """asyncio's TLS writes again in resume_writing(), whatever the program does."""
    async with serving(Echo, ssl=server_context()) as (_, address):
        transport, protocol = await here().create_connection(
            Recorder, *address, ssl=client_context(), server_hostname="localhost"
        )
        if small:
            small_buffer(transport)
        parts = [pattern(size, seed) for seed in range(3)]
        for part in parts:
            transport.write(part)
        async with asyncio.timeout(6 * PATIENCE_S):
            while len(protocol.received) < 3 * size:
                await asyncio.sleep(0.01)
        assert protocol.received == b"".join(parts)
        transport.abort()
        await protocol.gone()


async def test_a_server_that_streams_large_pieces_over_tls_goes_on():
    """100 KiB pieces, written and drained, with a small send buffer, to a client that reads them all."""
    total = 60 * 100 * KIB

    async def stream(_reader, writer):
        small_buffer(writer.transport)
        for number in range(60):
            writer.write(pattern(100 * KIB, number))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0, ssl=server_context())

    def read():
        with tls_client(server.sockets[0].getsockname()) as sock:
            return receive_exactly(sock, total)

    async with asyncio.timeout(6 * PATIENCE_S):
        received = await asyncio.to_thread(read)
    assert received == b"".join(pattern(100 * KIB, number) for number in range(60))
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("size", [1, 100 * KIB, 4 * MIB])
async def test_what_resume_writing_writes_follows_what_was_written_before(size):
    async with connected(Acting) as (transport, protocol, peer):
        parts = [pattern(PLENTY, 1)]
        left = [pattern(size, seed) for seed in range(5)]

        def on_resume():
            while left:
                for part in (left.pop(), b"|"):
                    parts.append(part)
                    protocol.write(part)

        protocol.on_resume = on_resume
        protocol.write(parts[0])
        receiving = asyncio.create_task(asyncio.to_thread(receive_all, peer))
        await until(lambda: not left)
        await until(lambda: not transport.get_write_buffer_size())
        transport.close()
        assert await receiving == b"".join(parts)


@pytest.mark.parametrize("how", ["close", "abort", "write_eof"])
async def test_resume_writing_may_end_the_connection(how):
    async with connected(Acting) as (transport, protocol, peer):
        protocol.on_resume = lambda: getattr(transport, how)()
        protocol.write(pattern(PLENTY))
        assert await asyncio.to_thread(receive_all, peer) == pattern(PLENTY)
        peer.close()
        assert await protocol.gone() is None or how == "write_eof"


async def test_resume_writing_runs_in_the_connections_context_at_the_end_of_a_turn():
    """What was gathered passed the mark and went out when the turn ended: no packet, and nobody's context but ours."""
    name = contextvars.ContextVar("name", default="nobody's")
    name.set("the connection's")
    seen = []
    async with connected(Acting) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=10)
        protocol.on_resume = lambda: seen.append(name.get())
        name.set("the writer's")
        written = 0
        while "pause" not in protocol.events:
            protocol.write(bytes(20))
            written += 20
        await until(lambda: seen)
        assert seen == ["the connection's"]
        assert receive_exactly(peer, written) == bytes(written)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_out_of_resume_writing_leaves_a_connection_that_writes(interrupt):
    loop = WatchedLoop()

    async def begin():
        stack = connected(Acting)
        return stack, await stack.__aenter__()

    stack, (transport, protocol, peer) = loop.run_until_complete(begin())

    def on_resume():
        protocol.on_resume = None
        raise interrupt

    async def write_plenty():
        protocol.on_resume = on_resume
        protocol.write(pattern(PLENTY))
        assert await asyncio.to_thread(receive_exactly, peer, PLENTY) == pattern(PLENTY)
        await until(lambda: protocol.events[-1] == "resume")

    async def write_again():
        protocol.write(pattern(PLENTY, 2))
        protocol.write(b"the end")
        assert await asyncio.to_thread(receive_exactly, peer, PLENTY + 7) == pattern(PLENTY, 2) + b"the end"
        await stack.__aexit__(None, None, None)

    task = loop.create_task(write_plenty())
    with pytest.raises(interrupt):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    loop.run_until_complete(write_again())
    loop.close()


async def test_no_memory_to_join_in_costs_speed_and_nothing_else(monkeypatch):
    def refuse(self, pieces):
        raise MemoryError

    async with connected() as (transport, protocol, peer):
        monkeypatch.setattr(JoinBuffer, "join", refuse)
        parts = [pattern(1000, seed) for seed in range(100)]
        for part in parts:
            transport.write(part)
        assert await asyncio.to_thread(receive_exactly, peer, 100_000) == b"".join(parts)


async def test_no_memory_for_a_send_ends_its_own_connection_only(monkeypatch):
    def refuse(*_args):
        raise MemoryError

    async with connected() as (transport, protocol, peer), connected() as (other, _, other_peer):
        refusing = type("Refusing", (OverlappedSocket,), {"__slots__": (), "send_operation": refuse})
        transport.endpoint.__class__ = refusing
        transport.write(pattern(PLENTY))
        assert isinstance(await protocol.gone(), MemoryError)
        here().expect_report("MemoryError")
        other.write(b"alive")
        assert receive_exactly(other_peer, 5) == b"alive"


async def test_a_writer_that_fails_at_the_end_of_a_turn_ends_its_own_connection_only():
    async with connected() as (transport, protocol, _), connected() as (other, _, other_peer):

        def fail(_data):
            raise ZeroDivisionError

        for each in (transport, other):
            each.write(b"first")
            each.write(b"second")
        transport._writer._send_now = fail
        assert isinstance(await protocol.gone(), ZeroDivisionError)
        here().expect_report("ZeroDivisionError")
        assert receive_exactly(other_peer, 11) == b"firstsecond"


async def test_a_drain_lets_others_run_however_much_the_kernel_takes():
    """The bytes written within one turn are bounded, with a peer that takes all of them."""
    async with connected(asyncio.Protocol) as (transport, _, peer):
        taking = asyncio.create_task(asyncio.to_thread(receive_all, peer))
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, here())
        in_one_turn, most, turn = 0, 0, here()._turn.number
        for _ in range(2000):
            writer.write(bytes(4 * KIB))
            await writer.drain()
            if here()._turn.number != turn:
                in_one_turn, turn = 0, here()._turn.number
            in_one_turn += 4 * KIB
            most = max(most, in_one_turn)
        assert most <= _writer.TURN_SIZE_MAX + _writer.CORKED_SIZE_MAX + 2 * 64 * KIB
        transport.close()
        assert await taking == bytes(2000 * 4 * KIB)
        await turns(2)


# -- one handle, and the loop ------------------------------------------------------------------------------------


async def test_the_socket_is_known_after_the_end_and_a_note_on_a_transport_is_kept():
    async with connected() as (transport, protocol, _):
        transport.note = "ours"
        with mock.patch.object(transport, "close") as close, mock.patch.object(transport, "write") as write:
            transport.close()
            transport.write(b"not sent")
        assert close.called and write.called and not transport.is_closing()
        transport.abort()
        await protocol.gone()
        assert transport.get_extra_info("socket").fileno() == -1
        assert transport.note == "ours"


async def test_a_method_that_a_program_replaces_on_asyncios_base_class_is_replaced_here_too():
    """As test suites do it, for transports of every kind."""
    datagram, _ = await here().create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOCALHOST, 0))
    async with connected() as (stream, _, peer):
        with mock.patch("asyncio.BaseTransport.get_extra_info", return_value="mocked"):
            assert stream.get_extra_info("peername") == datagram.get_extra_info("sockname") == "mocked"
        assert stream.get_extra_info("peername") == peer.getsockname()
    datagram.close()


async def test_a_transport_whose_making_an_interrupt_cuts_short_closes_its_socket(monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    reports, made = [], []
    take = here()._stdlib_proactor.take
    monkeypatch.setattr(here()._stdlib_proactor, "take", lambda sock: made.append(sock) or take(sock))
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_value))
    monkeypatch.setattr(_stream.StreamTransport, "_reader_type", interrupt)
    with socket.create_server((LOCALHOST, 0)) as listener, pytest.warns(ResourceWarning, match="unclosed transport"):
        with pytest.raises(KeyboardInterrupt):  # Caught here: out of a task it would end the loop.
            await here().create_connection(Recorder, *listener.getsockname())
        await turns()
        gc.collect()
    assert not reports
    assert [sock.fileno() for sock in made] == [-1]


async def test_a_descriptor_closed_behind_a_transport_concerns_nobody_else():
    """Closed by hand and aborted in the same turn: closing it once more fails, while its last packet is settled."""
    async with connected() as (other, _, other_peer), connected() as (transport, protocol, _):
        socket.close(transport.handle.fileno())
        transport.abort()
        await protocol.gone()
        other.write(b"alive")
        assert receive_exactly(other_peer, 5) == b"alive"


async def test_the_exception_handler_finds_a_connection_that_is_over():
    """It is the program's, and may use the transport: not in the middle of ending it."""
    seen = []
    async with connected() as (transport, protocol, _):

        def look(_loop, report):
            seen.append(report["transport"].is_closing())
            report["transport"].write(b"too late")

        here().set_exception_handler(look)
        transport._writer._send_now = lambda _data: 1 // 0
        with pytest.raises(ZeroDivisionError):
            transport.write(b"first")  # As on asyncio's loops: what is no OSError is the caller's.
        transport.fatal_error(ZeroDivisionError(), "provoked")
        assert isinstance(await protocol.gone(), ZeroDivisionError)
        assert seen == [True]


async def test_start_tls_that_refuses_an_argument_gives_the_bytes_back():
    async def serve(reader, writer):
        with pytest.raises(TypeError):
            await writer.start_tls("no context")
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"before\n")
    assert await reader.readline() == b"before\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


# -- what comes first ----------------------------------------------------------------------------------------------


async def order_of_a_connection(make):
    """What happens first, the return of what made the transport or the first data, which are there already."""
    happened = []

    class Noting(Recorder):
        def data_received(self, data):
            super().data_received(data)
            happened.append("data")

    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    peer.sendall(b"there already")
    sock.setblocking(False)
    while True:
        try:
            if sock.recv(1, socket.MSG_PEEK):
                break
        except BlockingIOError:
            await asyncio.sleep(0)
    transport, protocol = await make(Noting, sock)
    happened.append("returned")
    await protocol.receives(13)
    transport.abort()
    await protocol.gone()
    peer.close()
    listener.close()
    return happened


@pytest.mark.parametrize("how", ["create_connection", "connect_accepted_socket"])
async def test_whoever_waits_for_a_connection_has_it_before_its_first_data(how):
    def make(factory, sock):
        if how == "create_connection":
            return here().create_connection(factory, sock=sock)
        return here().connect_accepted_socket(factory, sock)

    assert await order_of_a_connection(make) == ["returned", "data"]


async def test_the_context_that_newer_pythons_pass_is_the_connections():
    """CPython's main says whose context the callbacks of a new connection are to run in (python/cpython#153134)."""
    name = contextvars.ContextVar("name", default="nobody's")
    context = contextvars.copy_context()
    context.run(name.set, "given")
    seen = here().create_future()

    class Telling(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.set_result(name.get())

    left, right = socket.socketpair()
    left.setblocking(False)
    protocol = Telling()
    transport = here()._make_socket_transport(left, protocol, context=context)
    assert await seen == "given"
    transport.abort()
    await protocol.gone()
    right.close()
