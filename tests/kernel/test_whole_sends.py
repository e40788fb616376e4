"""Where the kernel takes sends whole, of whatever size: flow control begins all the same, and nothing is lost."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from iocp_loop._core._operation import SEND_MAX
from iocp_loop._transports._writer import CORKED_SIZE_MAX

from .peers import LOCALHOST, Recorder, pattern, receive_exactly
from .watched import here, until
from .whole_sends import BUFFER, WholeSocket

PLENTY = 4 << 20
PIECES = 32


@asynccontextmanager
async def connection(protocol_factory=Recorder):
    """(transport, its protocol, its socket, the peer)."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = WholeSocket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
    sock.setblocking(False)
    sock.begin(here())
    transport, protocol = await here().create_connection(protocol_factory, sock=sock)
    try:
        yield transport, protocol, sock, peer
    finally:
        transport.abort()
        peer.close()
        await until(lambda: sock.fileno() == -1)
        sock.end()


async def test_a_write_of_any_size_waits_with_us_and_not_in_the_kernel():
    message = pattern(PLENTY)
    async with connection() as (transport, protocol, sock, peer):
        transport.write(message)
        assert max(sock.taken) <= SEND_MAX
        assert sum(sock.taken) < SEND_MAX + BUFFER
        assert transport.get_write_buffer_size() >= PLENTY - SEND_MAX - BUFFER
        assert protocol.events == ["made", "pause"]
        assert await asyncio.to_thread(receive_exactly, peer, PLENTY) == message
        await until(lambda: protocol.events[-1] == "resume")
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize(("mark", "most"), [(None, CORKED_SIZE_MAX), (BUFFER, BUFFER), (0, 0)])
async def test_a_program_that_writes_and_drains_is_never_far_ahead_of_its_peer(mark, most):
    """Unless it has set a mark of its own, what is gathered in a turn does not count."""
    piece, most_with_us, most_on_its_way = pattern(BUFFER), 0, 0
    async with connection(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader())) as (
        transport,
        protocol,
        sock,
        peer,
    ):
        writer = asyncio.StreamWriter(transport, protocol, None, here())
        if mark is not None:
            transport.set_write_buffer_limits(high=mark)
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, PIECES * BUFFER))
        for _ in range(PIECES):
            writer.write(piece)
            most_with_us = max(most_with_us, transport.get_write_buffer_size())
            most_on_its_way = max(most_on_its_way, sock.on_its_way)
            await writer.drain()
        assert await receiving == piece * PIECES
    # And the piece that passes the mark.
    assert most_with_us <= most + BUFFER
    assert most_on_its_way < BUFFER + max(most, BUFFER)


async def test_what_was_written_before_close_arrives_and_the_end_behind_it():
    message = pattern(3 * SEND_MAX)
    async with connection() as (transport, protocol, sock, peer):
        transport.write(message)
        transport.write(b"end")
        transport.close()
        assert await asyncio.to_thread(receive_exactly, peer, len(message) + 3) == message + b"end"
        assert await asyncio.to_thread(peer.recv, 1) == b""
        await protocol.gone()
        assert protocol.events[-1] == "lost"
        assert sock.cancelled == 0


async def test_an_aborted_send_whose_cancel_is_answered_by_success_ends_the_connection_once():
    async with connection() as (transport, protocol, sock, _):
        transport.write(pattern(PLENTY))
        assert transport.get_write_buffer_size()
        transport.abort()
        await protocol.gone()
        assert sock.cancelled == 1
        assert protocol.events.count("lost") == 1
