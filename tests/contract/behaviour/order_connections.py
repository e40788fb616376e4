"""Scenarios for the table of orders: TCP and TLS, either side, and servers."""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from kernel.peers import LOCALHOST, receive_all, reset
from kernel.watched import PATIENCE_S

from .orders import Noting

MIB = 1 << 20
CERTIFICATE = Path(__file__).parents[2] / "kernel" / "data" / "localhost.pem"


# -- how a connection is made ----------------------------------------------------------------------------------
# Each: (protocol, peer) of a new connection, whose peer is a bare blocking socket, for threads where it is TLS. The
# peer has sent what `first` says before the transport is made, or as early as it can.


@contextlib.asynccontextmanager
async def client(journal, first=b"", **on):
    with socket.create_server((LOCALHOST, 0)) as listener:
        peers = []

        def factory():
            journal.note("factory")
            peers.append(listener.accept()[0])
            peers[0].settimeout(PATIENCE_S)
            if first:
                peers[0].sendall(first)
            return Noting(journal, **on)

        _, protocol = await asyncio.get_running_loop().create_connection(factory, *listener.getsockname())
        journal.note("await")
        async with ended(protocol, peers[0]):
            yield protocol, peers[0]


@contextlib.asynccontextmanager
async def over_socket(journal, first=b"", connect=asyncio.BaseEventLoop.create_connection, **on):
    sock, peer = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    if first:
        peer.sendall(first)

    def factory():
        journal.note("factory")
        return Noting(journal, **on)

    _, protocol = await connect(asyncio.get_running_loop(), factory, sock=sock)
    journal.note("await")
    async with ended(protocol, peer):
        yield protocol, peer


def accepted(journal, first=b"", **on):
    return over_socket(journal, first, asyncio.BaseEventLoop.connect_accepted_socket, **on)


@contextlib.asynccontextmanager
async def server(journal, first=b"", **on):
    made = []

    def factory():
        journal.note("factory")
        made.append(Noting(journal, **on))
        return made[0]

    serving = await asyncio.get_running_loop().create_server(factory, LOCALHOST, 0)
    with socket.create_connection(serving.sockets[0].getsockname(), PATIENCE_S) as peer:
        if first:
            peer.sendall(first)
        await journal.has("made")
        serving.close()
        async with ended(made[0], peer):
            yield made[0], peer


@contextlib.asynccontextmanager
async def tls_client(journal, first=b"", **on):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with socket.create_server((LOCALHOST, 0)) as listener:

        def factory():
            journal.note("factory")
            return Noting(journal, **on)

        def accept():
            sock, _ = listener.accept()
            sock.settimeout(PATIENCE_S)
            return secured(context, sock, first, server_side=True)

        accepting = asyncio.ensure_future(asyncio.to_thread(accept))
        _, protocol = await asyncio.get_running_loop().create_connection(
            factory,
            *listener.getsockname(),
            ssl=ssl.create_default_context(cafile=CERTIFICATE),
            server_hostname="localhost",
        )
        journal.note("await")
        peer = await accepting
        async with ended(protocol, peer):
            yield protocol, peer


@contextlib.asynccontextmanager
async def tls_server(journal, first=b"", **on):
    made = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def factory():
        journal.note("factory")
        made.append(Noting(journal, **on))
        return made[0]

    def connect(address):
        sock = socket.create_connection(address, PATIENCE_S)
        return secured(ssl.create_default_context(cafile=CERTIFICATE), sock, first, server_hostname="localhost")

    serving = await asyncio.get_running_loop().create_server(factory, LOCALHOST, 0, ssl=context)
    peer = await asyncio.to_thread(connect, serving.sockets[0].getsockname())
    await journal.has("made")
    serving.close()
    async with ended(made[0], peer):
        yield made[0], peer


def secured(context, sock, first, **options):
    """The TLS peer of a connection, which has sent what comes first; its socket, where the handshake was broken off."""
    peer = context.wrap_socket(sock, do_handshake_on_connect=False, **options)
    with contextlib.suppress(OSError):
        peer.do_handshake()
        if first:
            peer.sendall(first)
    return peer


@contextlib.asynccontextmanager
async def ended(protocol, peer):
    """The connection is gone at the end of the block, however far its scenario has come."""
    try:
        yield
    finally:
        # What only reads cannot be aborted on the stdlib's loop.
        if not protocol.journal.noted("lost"):
            getattr(protocol.transport, "abort" if hasattr(protocol.transport, "write") else "close")()
            await protocol.journal.has("lost")
        peer.close()


CLIENTS = (client, over_socket, accepted)
PLAIN = (*CLIENTS, server)
SECURE = (tls_client, tls_server)


# -- what happens to it ----------------------------------------------------------------------------------------


async def opens_and_receives(journal, kind):
    async with kind(journal, b"x") as (protocol, _):
        await journal.has("data")
        protocol.transport.abort()


async def queues_a_callback_when_made(journal, kind):
    """It runs before anything is received, although that was there before."""

    def queue(protocol):
        asyncio.get_running_loop().call_soon(journal.note, "soon")

    async with kind(journal, b"x", made=queue) as (protocol, _):
        await journal.has("data")
        protocol.transport.abort()


async def is_closed_when_made(journal, kind):
    async with kind(journal, made=lambda protocol: protocol.transport.close()) as (_, peer):
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


async def is_aborted_when_made(journal, kind):
    async with kind(journal, made=lambda protocol: protocol.transport.abort()):
        await journal.has("lost")


async def opened(journal):
    """Forget how it was made: another row's business."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    journal.events.clear()


async def peer_ends(journal, kind, **on):
    async with kind(journal, **on) as (_, peer):
        await opened(journal)
        await asyncio.to_thread(end, peer)
        await journal.has("lost")


def end(peer):
    """Say something and goodbye; of TLS, without waiting for an answer."""
    peer.sendall(b"x")
    if isinstance(peer, ssl.SSLSocket):
        peer.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.unwrap()
        peer.settimeout(PATIENCE_S)
    else:
        peer.shutdown(socket.SHUT_WR)


def listen(peer):
    """Receive up to the end, and of TLS answer it: its close() waits for that."""
    with contextlib.suppress(OSError):
        receive_all(peer)
        if isinstance(peer, ssl.SSLSocket):
            peer.unwrap()


async def peer_ends_and_is_answered(journal, kind):
    def answer(protocol):
        protocol.transport.write(b"goodbye")
        protocol.transport.close()
        journal.note("closed")
        return True

    await peer_ends(journal, kind, eof=answer)


async def peer_resets(journal, kind):
    async with kind(journal) as (_, peer):
        await opened(journal)
        reset(peer)
        await journal.has("lost")


async def closes(journal, kind, how="close"):
    async with kind(journal) as (protocol, peer):
        await opened(journal)
        getattr(protocol.transport, how)()
        journal.note(how)
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


def aborts(journal, kind):
    return closes(journal, kind, "abort")


async def closes_when_data_come(journal, kind):
    async with kind(journal, data=lambda protocol: protocol.transport.close()) as (_, peer):
        await opened(journal)
        await asyncio.to_thread(peer.sendall, b"x")
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


async def aborts_when_data_come(journal, kind):
    async with kind(journal, data=lambda protocol: protocol.transport.abort()) as (_, peer):
        await opened(journal)
        await asyncio.to_thread(peer.sendall, b"x")
        await journal.has("lost")


async def closes_and_aborts(journal, kind):
    async with kind(journal) as (protocol, _):
        await opened(journal)
        protocol.transport.close()
        protocol.transport.abort()
        journal.note("aborted")
        await journal.has("lost")


async def changes_protocol_when_data_come(journal, kind):
    second = Noting(journal, "second ")
    async with kind(journal, data=lambda protocol: protocol.transport.set_protocol(second)) as (protocol, peer):
        await opened(journal)
        await asyncio.to_thread(peer.sendall, b"x")
        await journal.has("data")
        await asyncio.to_thread(peer.sendall, b"y")
        await journal.has("second data")
        protocol.transport.abort()
        await journal.has("second lost")
        journal.note("lost")  # Of the first one, `ended` need not wait.


async def is_paused_when_made(journal, kind):
    async with kind(journal, b"x", made=lambda protocol: protocol.transport.pause_reading()) as (protocol, _):
        await asyncio.to_thread(int)
        protocol.transport.resume_reading()
        journal.note("resume_reading")
        await journal.has("data")
        protocol.transport.abort()


async def is_paused_and_resumed(journal, kind):
    """What came before that is delivered after it."""
    async with kind(journal) as (protocol, peer):
        await opened(journal)
        protocol.transport.pause_reading()
        await asyncio.to_thread(peer.sendall, b"x")
        # Another message through the loop from another thread: what the kernel had for us has been fetched.
        await asyncio.to_thread(int)
        protocol.transport.resume_reading()
        journal.note("resume_reading")
        await journal.has("data")
        protocol.transport.abort()


async def peer_ends_while_reading_is_paused(journal, kind):
    async with kind(journal) as (protocol, peer):
        await opened(journal)
        protocol.transport.pause_reading()
        await asyncio.to_thread(end, peer)
        protocol.transport.resume_reading()
        journal.note("resume_reading")
        await journal.has("lost")


def write_much(protocol):
    """More than the kernel takes."""
    while not (protocol.transport.get_write_buffer_size() or protocol.transport.is_closing()):
        protocol.transport.write(bytes(4 * MIB))
    protocol.journal.note("written")


async def writes_much(journal, kind):
    async with kind(journal) as (protocol, peer):
        await opened(journal)
        write_much(protocol)
        reading = asyncio.ensure_future(asyncio.to_thread(receive_all, peer))
        await journal.has("resume")
        protocol.transport.write_eof() if protocol.transport.can_write_eof() else protocol.transport.close()
        await reading
        protocol.transport.abort()
        await journal.has("lost")


async def closes_when_asked_to_pause(journal, kind, how="close"):
    async with kind(journal, pause=lambda protocol: getattr(protocol.transport, how)()) as (protocol, peer):
        await opened(journal)
        write_much(protocol)
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


def aborts_when_asked_to_pause(journal, kind):
    return closes_when_asked_to_pause(journal, kind, "abort")


async def closes_when_asked_to_resume(journal, kind):
    async with kind(journal, resume=lambda protocol: protocol.transport.close()) as (protocol, peer):
        await opened(journal)
        write_much(protocol)
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


async def writes_much_and_closes(journal, kind):
    async with kind(journal) as (protocol, peer):
        await opened(journal)
        write_much(protocol)
        protocol.transport.close()
        journal.note("close")
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")


async def writes_much_and_aborts(journal, kind):
    async with kind(journal) as (protocol, _):
        await opened(journal)
        write_much(protocol)
        protocol.transport.abort()
        journal.note("abort")
        await journal.has("lost")


# -- programs with bugs ----------------------------------------------------------------------------------------


async def raises_when_made(journal, kind):
    async with kind(journal, b"x", made=Noting.raising) as (protocol, _):
        await journal.has("data")
        protocol.transport.abort()


async def raises_when_data_come(journal, kind):
    """The first of two messages; the connection goes on, or not."""
    async with kind(journal, data=lambda protocol: journal.noted("data") > 1 or protocol.raising()) as (_, peer):
        await opened(journal)
        await asyncio.to_thread(peer.sendall, b"x")
        await journal.has("report")
        with contextlib.suppress(OSError):
            await asyncio.to_thread(end, peer)
        await journal.has("lost")


async def raises_at_the_end_of_the_stream(journal, kind):
    await peer_ends(journal, kind, eof=Noting.raising)


async def raises_when_lost(journal, kind):
    async with kind(journal, lost=Noting.raising) as (protocol, _):
        await opened(journal)
        protocol.transport.abort()
        await journal.has("lost")


async def raises_when_asked_to_pause(journal, kind):
    async with kind(journal, pause=Noting.raising) as (protocol, _):
        await opened(journal)
        write_much(protocol)
        protocol.transport.abort()
        await journal.has("lost")


# -- servers ---------------------------------------------------------------------------------------------------


async def server_is_closed_and_waited_for(journal):
    """wait_closed() waits for the connections, from 3.12 on."""
    async with serving(journal) as (server, peer, protocol):
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        waiting.add_done_callback(lambda _: journal.note("waited"))
        journal.note("close server")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        protocol.transport.close()
        journal.note("close")
        await journal.has("lost")
        await journal.has("waited")


async def server_is_closed_without_connections(journal):
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, LOCALHOST, 0)
    server.close()
    waiting = asyncio.ensure_future(server.wait_closed())
    waiting.add_done_callback(lambda _: journal.note("waited"))
    journal.note("close server")
    await journal.has("waited")


@contextlib.asynccontextmanager
async def serving(journal):
    made = []

    def factory():
        made.append(Noting(journal))
        return made[0]

    server = await asyncio.get_running_loop().create_server(factory, LOCALHOST, 0)
    with socket.create_connection(server.sockets[0].getsockname(), PATIENCE_S) as peer:
        await journal.has("made")
        journal.events.clear()
        yield server, peer, made[0]


async def clients_queue_up(journal):
    """Whether the first one's connection_made() comes before the second's factory is called, is the kernel's business."""
    names = iter("ab")
    protocols = []

    def factory():
        name = next(names)
        journal.note(f"factory {name}")
        protocols.append(Noting(journal, f"{name} "))
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(factory, LOCALHOST, 0)
    with contextlib.ExitStack() as peers:
        for _ in range(2):
            peers.enter_context(socket.create_connection(server.sockets[0].getsockname(), PATIENCE_S))
        await journal.has("b made")
        for protocol in protocols:
            protocol.transport.abort()
        await journal.has("b lost")
    server.close()


# -- start_tls -------------------------------------------------------------------------------------------------


async def upgrades(journal):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with client(journal) as (protocol, sock):
        await opened(journal)
        securing = asyncio.ensure_future(asyncio.to_thread(secured, context, sock, b"x", server_side=True))
        inner = Noting(journal)
        transport = await asyncio.get_running_loop().start_tls(
            protocol.transport, inner, ssl.create_default_context(cafile=CERTIFICATE), server_hostname="localhost"
        )
        journal.note("await")
        inner.transport = transport
        await journal.has("data")
        peer = await securing
        transport.close()
        journal.note("close")
        await asyncio.to_thread(listen, peer)
        await journal.has("lost")
        protocol.transport = transport
        peer.close()
