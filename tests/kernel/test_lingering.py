"""A server that answers before its client has said everything: the answer arrives, and so does the end of the stream."""

import asyncio
import contextlib
import socket
import ssl

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._transports._lingering import LINGER_S, SILENCE_S

from .peers import Recorder, client, connected, pattern, receive_all, reset, serving
from .test_tls import client_context, server_context
from .watched import WatchedLoop, here, pending, until

ANSWER = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + pattern(100_000)
UPLOAD = pattern(8 << 20)


class Refusing(asyncio.Protocol):
    """Answers the first bytes, and closes."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(ANSWER)
        self.transport.close()


def send_all_and_then_read(sock):
    """As a client that cannot do both at a time."""
    sock.sendall(UPLOAD)
    return receive_all(sock)


async def test_a_client_that_sends_everything_first_gets_the_answer():
    async with serving(Refusing) as (_, address):
        with client(address) as sock:
            assert await asyncio.to_thread(send_all_and_then_read, sock) == ANSWER


async def test_so_does_one_over_tls():
    async with serving(Refusing, ssl=server_context()) as (_, address):
        assert await asyncio.to_thread(send_over_tls, address) == ANSWER


def send_over_tls(address):
    received = bytearray()
    with client(address) as plain, client_context().wrap_socket(plain, server_hostname="localhost") as sock:
        for start in range(0, len(UPLOAD), 1 << 16):
            sock.sendall(UPLOAD[start : start + (1 << 16)])
        with contextlib.suppress(ssl.SSLError):  # The server need not wait for our close_notify.
            while part := sock.recv(1 << 16):
                received += part
    return received


async def test_a_client_that_is_told_before_it_has_asked_gets_the_answer():
    """A server that is overloaded says so in connection_made()."""

    class Overloaded(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"503")
            transport.close()

    async with serving(Overloaded) as (_, address):
        with client(address) as sock:
            await until(lambda: here()._services.lingerings)
            assert await asyncio.to_thread(send_all_and_then_read, sock) == b"503"


async def test_a_server_that_had_paused_does_so_too():
    class Pausing(asyncio.Protocol):
        def connection_made(self, transport):
            transport.pause_reading()
            here().call_later(0.05, transport.write, ANSWER)
            here().call_later(0.05, transport.close)

    async with serving(Pausing) as (_, address):
        with client(address) as sock:
            assert await asyncio.to_thread(send_all_and_then_read, sock) == ANSWER


async def test_closing_shuts_down_for_sending_and_cancels_no_receive():
    """On Windows, closing after a cancelled receive may reset what the peer has not read yet."""
    calls = []

    class Noting(socket.socket):
        def shutdown(self, how):
            calls.append(how)
            super().shutdown(how)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = Noting()
        sock.setblocking(False)
        await here().sock_connect(sock, listener.getsockname())
        peer, _ = listener.accept()
    transport, protocol = await here().create_connection(Recorder, sock=sock)
    await until(lambda: pending(IoType.READ))
    before = here().counts["CancelIoEx"]
    transport.write(b"all")
    transport.close()
    assert await protocol.gone() is None
    assert sock.fileno() == -1
    assert calls == [socket.SHUT_WR]
    assert receive_all(peer) == b"all"
    peer.close()
    await until(lambda: not here().outstanding())
    assert here().counts["CancelIoEx"] == before


async def test_abort_does_not_shut_down():
    async with connected() as (transport, protocol, _):
        transport.abort()
        assert await protocol.gone() is None
        assert not here()._services.lingerings


async def test_a_silent_peer_costs_a_handle_for_a_moment_only():
    async with connected() as (transport, protocol, peer):
        begun = here().time()
        transport.close()
        assert await protocol.gone() is None
        assert len(here()._services.lingerings) == 1
        await until(lambda: not here().outstanding())
        assert SILENCE_S <= here().time() - begun < LINGER_S
        assert receive_all(peer) == b""


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_peer_that_goes_ends_it_at_once(how):
    async with connected() as (transport, protocol, peer):
        transport.close()
        assert await protocol.gone() is None
        begun = here().time()
        (reset if how == "reset" else socket.socket.close)(peer)
        await until(lambda: not here().outstanding())
        assert here().time() - begun < SILENCE_S


def test_a_loop_that_closes_closes_what_lingers():
    loop = WatchedLoop()
    left, right = socket.socketpair()
    left.setblocking(False)

    async def main():
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        transport.write(b"last words")
        transport.close()
        await protocol.gone()
        assert loop._services.lingerings

    loop.run_until_complete(main())
    super(WatchedLoop, loop).close()
    assert receive_all(right) == b"last words"
    right.close()
