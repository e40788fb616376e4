"""A system that is short of memory, on the real kernel: calls are refused with WSAENOBUFS and its kin, by name and number.

Nothing is lost, nobody is told, and no connection ends for it.
"""

import asyncio
import contextlib
import socket

import pytest

from iocp_loop._core._operation import SEND_MAX
from iocp_loop._win32.constants import Error, WsaError

from .peers import LOCALHOST, Recorder, connected, pattern, receive_exactly
from .watched import here

PLENTY = 16 << 20


class Crowded(socket.socket):
    """Takes no send of more than `limit` bytes; `asked` is what its sends were given."""

    limit = SEND_MAX

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def send(self, data, flags=0):
        self.asked.append(len(data))
        if len(data) > self.limit:
            raise OSError(0, "no buffer space", None, int(WsaError.NOBUFS))
        return super().send(data, flags)


async def crowded_connection(limit):
    """(transport, its protocol, its socket, the peer)."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = Crowded(socket.AF_INET, socket.SOCK_STREAM)
        sock.limit = limit
        sock.setblocking(False)
        await here().sock_connect(sock, listener.getsockname())
        peer, _ = listener.accept()
    transport, protocol = await here().create_connection(Recorder, sock=sock)
    return transport, protocol, sock, peer


@pytest.mark.parametrize("limit", [SEND_MAX, 0], ids=["takes pieces", "takes nothing"])
async def test_a_write_of_any_size_is_given_to_the_kernel_in_pieces(limit):
    """Where its own calls are all refused, overlapped sends take it."""
    transport, protocol, sock, peer = await crowded_connection(limit)
    message = pattern(PLENTY)
    transport.write(message)
    assert max(sock.asked) == SEND_MAX
    assert await asyncio.to_thread(receive_exactly, peer, PLENTY) == message
    transport.writelines([message[:100], b"", message[100:]])
    transport.write(b"end")
    assert await asyncio.to_thread(receive_exactly, peer, PLENTY + 3) == message + b"end"
    assert max(sock.asked) == SEND_MAX
    assert protocol.events == ["made", "pause", "resume", "pause", "resume"]
    transport.close()
    await protocol.gone()
    peer.close()


@pytest.mark.parametrize("code", [WsaError.NOBUFS, Error.NOT_ENOUGH_MEMORY, Error.WORKING_SET_QUOTA])
async def test_an_overlapped_send_that_is_refused_is_tried_again(code):
    async with connected() as (transport, protocol, peer):
        here().watched.fail("WSASend", code, times=5)
        message = pattern(PLENTY)
        transport.write(message)
        assert transport.get_write_buffer_size()
        transport.write(b"behind it")
        assert await asyncio.to_thread(receive_exactly, peer, PLENTY + 9) == message + b"behind it"
        assert protocol.events[0] == "made"
        assert "lost" not in protocol.events


async def test_close_waits_for_memory_too_and_abort_does_not():
    for end in ("close", "abort"):
        async with connected() as (transport, protocol, peer):
            here().watched.fail("WSASend", WsaError.NOBUFS, times=3 if end == "close" else 1_000_000)
            message = pattern(PLENTY)
            transport.write(message)
            getattr(transport, end)()
            if end == "close":
                assert await asyncio.to_thread(receive_exactly, peer, PLENTY) == message
            assert await protocol.gone() is None
            del here().watched.faults["WSASend"]


async def test_a_receive_that_is_refused_is_tried_again():
    async with connected() as (_, protocol, peer):
        peer.sendall(b"first")
        await protocol.receives(5)
        here().watched.fail("WSARecv", WsaError.NOBUFS, times=5)
        peer.sendall(b"second")
        assert await protocol.receives(6) == b"second"
        assert protocol.events == ["made", "data", "data"]


async def test_sock_methods_wait_for_memory():
    loop = here()
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = Crowded(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        await loop.sock_connect(sock, listener.getsockname())
        peer, _ = listener.accept()
    sock.limit = 0
    with sock, peer:
        message = pattern(5 * SEND_MAX + 1)
        loop.watched.fail("WSASend", WsaError.NOBUFS, times=3)
        loop.watched.fail("WSARecv", WsaError.NOBUFS, times=3)
        peer.sendall(b"to us")
        received = asyncio.to_thread(receive_exactly, peer, len(message))
        _, given, whole = await asyncio.gather(loop.sock_sendall(sock, message), loop.sock_recv(sock, 10), received)
        assert (given, whole) == (b"to us", message)
        assert max(sock.asked) == SEND_MAX


@contextlib.asynccontextmanager
async def piped(name):
    """(transport of the client's end, the server's protocol once it is there)."""
    arrived = here().create_future()

    def serve():
        arrived.set_result(Recorder())
        return arrived.result()

    [server] = await here().start_serving_pipe(serve, rf"\\.\pipe\iocp_loop-test-{name}")
    transport, protocol = await here().create_pipe_connection(Recorder, rf"\\.\pipe\iocp_loop-test-{name}")
    try:
        yield transport, arrived
    finally:
        transport.close()
        await protocol.gone()
        server.close()
        await (await arrived).gone()


async def test_a_pipe_waits_for_memory():
    async with piped("shortages") as (transport, arrived):
        here().watched.fail("WriteFile", Error.NO_SYSTEM_RESOURCES, times=3)
        here().watched.fail("ReadFile", Error.NOT_ENOUGH_QUOTA, times=3)
        message = pattern(3 * SEND_MAX)
        transport.write(message)
        assert await (await arrived).receives(len(message)) == message


async def test_no_call_on_a_pipe_is_given_more_than_a_piece():
    """Of a pipe that is not one of messages."""
    async with piped("pieces") as (transport, arrived):
        before = here().counts["WriteFile"]
        transport.write(bytes(3 * SEND_MAX + 1))
        await (await arrived).receives(3 * SEND_MAX + 1)
        assert here().counts["WriteFile"] - before == 4
