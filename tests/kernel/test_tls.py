"""TLS on our transports, both sides: nothing lost on the way into it, every end bounded, and no fault that hangs."""

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._transports._reader import HELD

from .peers import LOCALHOST, Echo, Recorder, pattern, receive_exactly, reset, serving
from .watched import PATIENCE_S, here, pending, turns, until

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
MIB = 1 << 20


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_context():
    return ssl.create_default_context(cafile=CERTIFICATE)


@contextlib.asynccontextmanager
async def bare_peers():
    """(transport, protocol, peer) as `connected`, for a connection whose TLS the test does itself."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = await here().create_connection(Recorder, *listener.getsockname())
        peer, _ = listener.accept()
    peer.settimeout(PATIENCE_S)
    try:
        yield transport, protocol, peer
    finally:
        peer.close()
        transport.abort()
        await protocol.gone()


@contextlib.asynccontextmanager
async def tls_connected(address, factory=Recorder, **options):
    transport, protocol = await here().create_connection(
        factory, *address, ssl=client_context(), server_hostname="localhost", **options
    )
    try:
        yield transport, protocol
    finally:
        transport.abort()
        await protocol.gone()


def tls_client(address):
    """A bare blocking TLS connection; for a thread."""
    sock = socket.create_connection(address, timeout=PATIENCE_S)
    return client_context().wrap_socket(sock, server_hostname="localhost")


async def in_thread(function, *args):
    async with asyncio.timeout(2 * PATIENCE_S):
        return await asyncio.to_thread(function, *args)


# -- both sides ------------------------------------------------------------------------------------------------


async def test_both_sides_on_our_loop_exchange_and_know_what_they_agreed_on():
    async with serving(Echo, ssl=server_context()) as (_, address), tls_connected(address) as (transport, protocol):
        transport.write(b"hello")
        transport.writelines([b" ", b"world"])
        assert await protocol.receives(11) == b"hello world"
        assert transport.get_extra_info("peername") == address
        assert transport.get_extra_info("cipher")
        assert ("commonName", "localhost") in transport.get_extra_info("peercert")["subject"][0]
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert isinstance(transport.get_extra_info("socket").fileno(), int)


async def test_a_blocking_client_is_served():
    def exchange():
        with tls_client(address) as sock:
            sock.sendall(pattern(100_000))
            return receive_exactly(sock, 100_000)

    async with serving(Echo, ssl=server_context()) as (_, address):
        assert await in_thread(exchange) == pattern(100_000)


async def test_a_blocking_server_is_talked_to():
    def serve():
        conn, _ = listener.accept()
        with server_context().wrap_socket(conn, server_side=True) as sock:
            sock.sendall(receive_exactly(sock, 100_000))
            return sock.recv(1)

    with socket.create_server((LOCALHOST, 0)) as listener:
        served = asyncio.ensure_future(in_thread(serve))
        async with tls_connected(listener.getsockname()) as (transport, protocol):
            transport.write(pattern(100_000))
            assert await protocol.receives(100_000) == pattern(100_000)
            transport.close()
            assert await served == b""
            assert await protocol.gone() is None


async def test_large_transfers_both_ways_at_once_arrive_whole():
    size = 2 * MIB
    servers = []

    class Server(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            servers.append(self)
            transport.write(pattern(size, seed=1))

    async with serving(Server, ssl=server_context()) as (_, address), tls_connected(address) as (transport, protocol):
        transport.write(pattern(size, seed=2))
        assert await protocol.receives(size) == pattern(size, seed=1)
        assert await servers[0].receives(size) == pattern(size, seed=2)


async def test_streams_over_tls_close_in_order():
    """wait_closed() returns, and the other side sees the end after the last byte."""

    async def serve(reader, writer):
        writer.write(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, LOCALHOST, 0, ssl=server_context())
    async with asyncio.timeout(2 * PATIENCE_S):
        with pytest.raises(NotImplementedError):
            # TLS has no half-closed connections in asyncio.
            _, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=client_context(), server_hostname="localhost"
            )
            try:
                writer.write_eof()
            finally:
                writer.close()
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def test_a_peers_end_is_an_end_of_file_and_the_data_before_it_arrive():
    def exchange():
        with tls_client(address) as sock:
            sock.sendall(b"last words")
            with contextlib.suppress(OSError):
                sock.unwrap()

    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    async with serving(factory, ssl=server_context()) as (_, address):
        await in_thread(exchange)
        assert await protocols[0].gone() is None
        assert protocols[0].received == b"last words"
        assert protocols[0].events[-2:] == ["eof", "lost"]


# -- start_tls -------------------------------------------------------------------------------------------------


async def test_start_tls_on_both_sides_of_a_plain_connection():
    class Upgrading(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if self.received == b"STARTTLS\n":
                self.received.clear()
                self.transport.write(b"OK\n")
                self.upgrading = asyncio.ensure_future(self.upgrade())

        async def upgrade(self):
            self.transport = await here().start_tls(self.transport, self, server_context(), server_side=True)

    servers = []

    def factory():
        servers.append(Upgrading())
        return servers[-1]

    async with serving(factory) as (_, address):
        transport, protocol = await here().create_connection(Recorder, *address)
        transport.write(b"STARTTLS\n")
        assert await protocol.receives(3) == b"OK\n"
        transport = await here().start_tls(transport, protocol, client_context(), server_hostname="localhost")
        await servers[0].upgrading
        transport.write(b"secret")
        assert await servers[0].receives(6) == b"secret"
        servers[0].transport.write(pattern(100_000))
        assert await protocol.receives(100_000) == pattern(100_000)
        transport.close()
        assert await protocol.gone() is None


async def test_a_handshake_that_begins_before_start_tls_loses_no_byte_of_it():
    """The client's first record arrives while the server still reads plain text: it is held, and given to TLS."""
    async with bare_peers() as (transport, protocol, peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        await until(lambda: pending(IoType.READ))  # The first receive is submitted a turn after the return.
        transport.pause_reading()
        peer.sendall(outgoing.read())
        await until(lambda: transport._reader.receive is HELD)

        def client():
            handshake_over(tls, incoming, outgoing, peer)
            tls.write(b"hello")
            peer.sendall(outgoing.read())

        talking = asyncio.ensure_future(in_thread(client))
        async with asyncio.timeout(PATIENCE_S):
            transport = await here().start_tls(transport, protocol, server_context(), server_side=True)
        assert await protocol.receives(5) == b"hello"
        await talking


def handshake_over(tls, incoming, outgoing, sock):
    """The rest of a handshake, by hand."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            if data := outgoing.read():
                sock.sendall(data)
            incoming.write(sock.recv(100_000))
        else:
            sock.sendall(outgoing.read())
            return


@pytest.mark.parametrize("outer", ["plain", "TLS"])
async def test_a_handshake_that_begins_in_the_same_segment_as_the_last_line_before_loses_no_byte_of_it(outer):
    """asyncio's streams read ahead: the client's first record waits in the StreamReader when start_tls is called."""
    received = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        await until(lambda: reader._buffer)
        with pytest.raises(TypeError):
            await writer.start_tls("no context")  # Nor does this.
        await writer.start_tls(server_context())
        received.set_result(await reader.readexactly(5))
        writer.close()

    def client():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        with tls_client(address) if outer == "TLS" else socket.create_connection(address, timeout=PATIENCE_S) as sock:
            sock.sendall(b"STARTTLS\n" + outgoing.read())
            handshake_over(tls, incoming, outgoing, sock)
            tls.write(b"hello")
            sock.sendall(outgoing.read())
            # To the end: closed with the tickets of TLS 1.3 unread, it is reset, and what it has sent is lost with it.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(100_000):
                pass

    server = await asyncio.start_server(serve, LOCALHOST, 0, ssl=server_context() if outer == "TLS" else None)
    address = server.sockets[0].getsockname()
    async with asyncio.timeout(PATIENCE_S):
        talking = asyncio.ensure_future(in_thread(client))
        assert await received == b"hello"
        await talking
    server.close()
    await server.wait_closed()
    await until(lambda: not here().outstanding())


async def test_plain_text_behind_the_request_for_tls_is_not_taken_for_secret_text():
    """A command injected by a man in the middle must end in a failed handshake, and never reach the protocol."""
    failed = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        await reader.readline()
        try:
            await writer.start_tls(server_context())
        except (OSError, ssl.SSLError) as exc:
            failed.set_result(exc)
        else:
            failed.set_result(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, LOCALHOST, 0)
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        sock.sendall(b"STARTTLS\nDELETE EVERYTHING, PLEASE\n")
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await failed, ssl.SSLError)
    server.close()
    await server.wait_closed()
    await until(lambda: not here().outstanding())


# -- faults ----------------------------------------------------------------------------------------------------


async def test_a_server_that_never_answers_the_handshake_times_out_the_client():
    with socket.create_server((LOCALHOST, 0)) as listener:
        with pytest.raises(ConnectionAbortedError, match="handshake"):
            await here().create_connection(
                Recorder,
                *listener.getsockname(),
                ssl=client_context(),
                server_hostname="localhost",
                ssl_handshake_timeout=0.1,
            )
    await until(lambda: not here().outstanding())


async def test_a_client_that_never_begins_the_handshake_is_dropped_and_the_server_serves_on():
    async with serving(Echo, ssl=server_context(), ssl_handshake_timeout=0.2) as (_, address):
        with socket.create_connection(address, timeout=PATIENCE_S) as silent:
            with contextlib.suppress(ConnectionResetError):
                assert await in_thread(silent.recv, 1) == b""
        await still_serves(address)


async def still_serves(address):
    """The handshake's own time-out must not cut this one short, so it is bounded by the patience of all tests."""

    def exchange():
        with tls_client(address) as sock:
            sock.sendall(b"ping")
            return receive_exactly(sock, 4)

    assert await in_thread(exchange) == b"ping"


async def test_a_peer_that_never_answers_the_shutdown_does_not_hold_the_connection():
    """It reads nothing more and closes nothing: the shutdown time-out ends the connection."""
    served = threading.Event()

    def serve():
        conn, _ = listener.accept()
        with server_context().wrap_socket(conn, server_side=True):
            served.wait(PATIENCE_S)

    with socket.create_server((LOCALHOST, 0)) as listener:
        serving_one = asyncio.ensure_future(in_thread(serve))
        async with tls_connected(listener.getsockname(), ssl_shutdown_timeout=0.1) as (transport, protocol):
            transport.write(b"x")
            transport.close()
            assert isinstance(await protocol.gone(), TimeoutError | None)
        served.set()
        await serving_one


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_a_client_that_speaks_no_tls_is_dropped_and_the_server_serves_on(garbage):
    async with serving(Echo, ssl=server_context()) as (_, address):
        with socket.create_connection(address, timeout=PATIENCE_S) as sock:
            sock.sendall(garbage)
            with contextlib.suppress(ConnectionResetError, ConnectionAbortedError):
                while await in_thread(sock.recv, 1000):
                    pass
        await still_serves(address)
        here().reports.clear()  # asyncio's own SSLProtocol reports a failed handshake, on every loop.


async def test_a_client_that_resets_in_the_handshake_is_dropped_and_the_server_serves_on():
    async with serving(Echo, ssl=server_context()) as (_, address):
        for data in (b"", b"\x16\x03\x01"):
            sock = socket.create_connection(address, timeout=PATIENCE_S)
            sock.sendall(data)
            await turns()
            reset(sock)
        await still_serves(address)
        here().reports.clear()  # As above.


async def test_a_server_that_resets_in_the_handshake_is_an_error_of_create_connection():
    def serve():
        conn, _ = listener.accept()
        conn.recv(10)
        reset(conn)

    with socket.create_server((LOCALHOST, 0)) as listener:
        serving_one = asyncio.ensure_future(in_thread(serve))
        with pytest.raises((ConnectionResetError, ConnectionAbortedError)):
            await here().create_connection(
                Recorder, *listener.getsockname(), ssl=client_context(), server_hostname="localhost"
            )
        await serving_one
    await until(lambda: not here().outstanding())


async def test_a_certificate_that_nobody_vouches_for_is_refused():
    async with serving(Echo, ssl=server_context()) as (_, address):
        with pytest.raises(ssl.SSLCertVerificationError):
            await here().create_connection(
                Recorder, *address, ssl=ssl.create_default_context(), server_hostname="localhost"
            )
        with pytest.raises(ssl.SSLCertVerificationError):
            await here().create_connection(Recorder, *address, ssl=client_context(), server_hostname="example.com")
        await still_serves(address)
        here().reports.clear()  # The server's side of the refused handshakes, reported by asyncio's own SSLProtocol.


async def test_a_corrupted_record_ends_the_connection_with_an_ssl_error():
    """After a good one: what was good arrives, what was not does not."""
    async with bare_peers() as (transport, protocol, peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        talking = asyncio.ensure_future(in_thread(handshake_over, tls, incoming, outgoing, peer))
        transport = await here().start_tls(transport, protocol, server_context(), server_side=True)
        await talking
        tls.write(b"good")
        peer.sendall(outgoing.read())
        assert await protocol.receives(4) == b"good"
        tls.write(b"corrupted")
        record = bytearray(outgoing.read())
        record[-3] ^= 0xFF
        peer.sendall(record)
        assert isinstance(await protocol.gone(), ssl.SSLError)
        assert not protocol.received
        here().reports.clear()  # asyncio's own SSLProtocol may report it besides.


async def test_a_reset_in_the_middle_ends_the_connection_with_its_error():
    async with bare_peers() as (transport, protocol, peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        talking = asyncio.ensure_future(in_thread(handshake_over, tls, incoming, outgoing, peer))
        transport = await here().start_tls(transport, protocol, server_context(), server_side=True)
        await talking
        # Wine 8 tells a reset only to a receive that is out already (docs/wine.md), and ours is submitted when the
        # callbacks of what came before have run: those of this very task.
        await until(lambda: pending(IoType.READ))
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)


async def test_a_write_that_fails_under_tls_ends_the_connection_with_its_error():
    """gh-118950. Which call meets a real reset first, the send or the receive, is for the kernel to say: so, provoked."""
    async with serving(Echo, ssl=server_context()) as (_, address):
        _reader, writer = await asyncio.open_connection(*address, ssl=client_context(), server_hostname="localhost")
        below = writer.transport._ssl_protocol._transport._writer

        def refuse(_data):
            raise ConnectionResetError("no way")

        below._send_now = refuse
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    writer.write(b"An interesting message")
                    await writer.drain()
                    # While asyncio's SSLProtocol has lost its transport and not told its own protocol yet, drain()
                    # neither waits nor raises, on any loop.
                    await asyncio.sleep(0)
        writer.close()
        with pytest.raises(ConnectionResetError, match="no way"):
            await writer.wait_closed()


async def test_a_cancelled_handshake_leaves_nothing():
    with socket.create_server((LOCALHOST, 0)) as listener:
        connecting = asyncio.ensure_future(
            here().create_connection(
                Recorder, *listener.getsockname(), ssl=client_context(), server_hostname="localhost"
            )
        )
        peer, _ = await in_thread(listener.accept)
        with peer:
            assert await in_thread(peer.recv, 1)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await until(lambda: not here().outstanding())


async def test_abort_ends_a_tls_connection_at_once():
    async with serving(Echo, ssl=server_context()) as (_, address), tls_connected(address) as (transport, protocol):
        transport.write(pattern(4 * MIB))
        transport.abort()
        assert await protocol.gone() is None


async def test_a_peer_that_speaks_an_older_version_is_talked_to():
    """TLS 1.2: the last one whose peers may renegotiate, which OpenSSL does below us."""
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(Echo, ssl=context) as (_, address), tls_connected(address) as (transport, protocol):
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.2"
        transport.write(pattern(300_000))
        assert await protocol.receives(300_000) == pattern(300_000)
