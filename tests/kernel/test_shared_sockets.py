"""Sockets that belong to another port, loop or process: CreateIoCompletionPort refuses them, and we serve them all the same."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import iocp_loop
from iocp_loop._core._operation import IoType
from iocp_loop._handles import _readiness
from iocp_loop._handles._shared_sockets import SharedSocket
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import WsaError
from iocp_loop.lowlevel import CompletionPort

from .peers import LOCALHOST, Buffered, Echo, Recorder, client, pattern, receive_all, receive_exactly, reset
from .watched import PATIENCE_S, WatchedLoop, here, pending, running, turns, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def other():
    """A completion port that is not our loop's: `other.associate` makes a socket shared."""
    with CompletionPort() as port:
        yield port


def made_shared(other, sock):
    """The socket, associated with the other port and not blocking."""
    sock.setblocking(False)
    other.associate(sock.fileno(), 1)
    return sock


def pair(other):
    """(a shared socket, its blocking peer)."""
    ours, peer = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    return made_shared(other, ours), peer


def listener(other):
    return made_shared(other, socket.create_server((LOCALHOST, 0)))


@contextlib.asynccontextmanager
async def stream(other, factory=Recorder):
    """(transport, protocol, blocking peer) of a connection whose socket is shared."""
    sock, peer = pair(other)
    with peer:
        transport, protocol = await here().create_connection(factory, sock=sock)
        assert isinstance(transport.endpoint, SharedSocket)
        try:
            yield transport, protocol, peer
        finally:
            transport.abort()
            await protocol.gone()


async def nothing_polled():
    """Wait until nothing is left of any registration."""
    await until(lambda: not _readiness.of(here().proactor)._watches, "the last watch to go")
    assert not pending(IoType.POLL)


# -- streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_a_stream_receives_sends_and_ends_as_on_a_socket_of_our_own(other, factory):
    async with stream(other, factory) as (transport, protocol, peer):
        for size in (1, 1000, 300_000):
            question, answer = pattern(size, 1), pattern(size, 2)
            sending = asyncio.create_task(asyncio.to_thread(peer.sendall, question))
            assert await protocol.receives(size) == question
            await sending
            transport.write(answer)
            assert await asyncio.to_thread(receive_exactly, peer, size) == answer
        peer.shutdown(socket.SHUT_WR)
        assert await protocol.gone() is None
        assert "eof" in protocol.events
    await nothing_polled()


async def test_a_close_sends_what_was_written_before_it(other):
    data = pattern(5_000_000)
    async with stream(other) as (transport, protocol, peer):
        transport.write(data)
        transport.write(b"the last")
        transport.close()
        assert await asyncio.to_thread(receive_all, peer) == data + b"the last"
        assert await protocol.gone() is None
        assert "pause" in protocol.events
    await nothing_polled()


async def test_a_stream_that_is_paused_receives_nothing_and_goes_on_when_resumed(other):
    async with stream(other) as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        peer.sendall(b"held back")
        await turns(10)
        assert not protocol.received
        transport.resume_reading()
        assert await protocol.receives(9) == b"held back"
    await nothing_polled()


async def test_a_reset_is_told_to_the_protocol(other):
    async with stream(other) as (_, protocol, peer):
        await turns()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)
    await nothing_polled()


async def test_a_reset_while_much_is_waiting_to_be_sent_is_told_too(other):
    async with stream(other) as (transport, protocol, peer):
        transport.write(pattern(5_000_000))
        await turns()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionError)
    await nothing_polled()


async def test_closing_a_transport_leaves_the_duplicate_to_whoever_has_it(other):
    """The request must be taken back: a duplicate keeps the socket open, and then nothing ends it."""
    sock, peer = pair(other)
    with peer, sock.dup() as duplicate:
        transport, protocol = await here().create_connection(Recorder, sock=sock)
        await turns()
        transport.close()
        await protocol.gone()
        await nothing_polled()
        peer.sendall(b"still there")
        await until(lambda: duplicate.recv(100, socket.MSG_PEEK) == b"still there")


async def test_a_file_is_sent_by_reading_it(other, tmp_path):
    data = pattern(700_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    async with stream(other) as (transport, _, peer):
        with path.open("rb") as file:
            sending = asyncio.create_task(here().sendfile(transport, file))
            assert await asyncio.to_thread(receive_exactly, peer, len(data)) == data
            assert await sending == len(data)
        assert not here().counts["TransmitFile"]


async def test_a_message_costs_one_request_and_no_overlapped_call(other):
    async with stream(other, Echo) as (_, _, peer):
        await turns()
        before = here().counts.copy()
        for _ in range(20):
            peer.sendall(b"ping")
            assert await asyncio.to_thread(receive_exactly, peer, 4) == b"ping"
        await turns()
        spent = here().counts - before
        assert spent["NtDeviceIoControlFile"] == 20
        assert not {"WSARecv", "WSASend", "CancelIoEx", "WSAIoctl"} & set(spent)


# -- bare sockets ----------------------------------------------------------------------------------------------


async def test_bare_sockets_receive_and_send(other):
    sock, peer = pair(other)
    with sock, peer:
        receiving = asyncio.create_task(here().sock_recv(sock, 100))
        await turns()
        peer.sendall(b"question")
        assert await receiving == b"question"
        buffer = bytearray(4)
        peer.sendall(b"abcdef")
        assert await here().sock_recv_into(sock, buffer) == 4
        assert buffer == b"abcd"
        assert await here().sock_recv(sock, 100) == b"ef"
        data = pattern(3_000_000)
        sending = asyncio.create_task(here().sock_sendall(sock, data))
        assert await asyncio.to_thread(receive_exactly, peer, len(data)) == data
        await sending
        peer.shutdown(socket.SHUT_WR)
        assert await here().sock_recv(sock, 100) == b""
    await nothing_polled()


async def test_a_receive_given_up_loses_no_byte(other):
    sock, peer = pair(other)
    with sock, peer:
        for n in range(10):
            receiving = asyncio.create_task(here().sock_recv(sock, 100))
            await turns(n)
            receiving.cancel()
            peer.sendall(b"x%d" % n)
            with contextlib.suppress(asyncio.CancelledError):
                assert await receiving == b"x%d" % n
                continue
            assert await here().sock_recv(sock, 100) == b"x%d" % n
    await nothing_polled()


async def test_of_two_receives_the_one_that_finds_nothing_waits_on(other):
    """As when the other loop or process was quicker: the socket was ready, and the call would block after all."""
    sock, peer = pair(other)
    with sock, peer:
        first = asyncio.create_task(here().sock_recv(sock, 100))
        second = asyncio.create_task(here().sock_recv(sock, 100))
        await turns()
        peer.sendall(b"one")
        assert await first == b"one"
        await turns(10)
        assert not second.done()
        peer.sendall(b"two")
        assert await second == b"two"
    await nothing_polled()


async def test_a_socket_closed_under_its_receive_ends_it(other):
    sock, peer = pair(other)
    with peer:
        receiving = asyncio.create_task(here().sock_recv(sock, 100))
        await until(lambda: here().proactor.attached)
        await turns()
        sock.close()
        with pytest.raises(OSError, match="socket") as caught:
            await asyncio.wait_for(receiving, PATIENCE_S)
        assert caught.value.winerror == WsaError.NOTSOCK
    await nothing_polled()


async def test_bare_sockets_accept_and_connect(other):
    with listener(other) as listening, made_shared(other, socket.socket()) as sock:
        accepting = asyncio.create_task(here().sock_accept(listening))
        await turns()
        await here().sock_connect(sock, listening.getsockname())
        conn, address = await accepting
        with conn:
            assert address == sock.getsockname()
            assert conn.gettimeout() == 0
            await here().sock_sendall(conn, b"hello")
            assert await here().sock_recv(sock, 100) == b"hello"
            # What was accepted is nobody's yet, and so it is ours.
            assert isinstance(here()._stdlib_proactor.endpoint(conn), OverlappedSocket)
    await nothing_polled()


async def test_a_connect_that_is_refused_says_so(other):
    with socket.create_server((LOCALHOST, 0)) as listening:
        address = listening.getsockname()
    with made_shared(other, socket.socket()) as sock, pytest.raises(ConnectionRefusedError, match="CONNECT"):
        await here().sock_connect(sock, address)
    await nothing_polled()


async def test_an_accept_given_up_leaves_the_client_to_the_next(other):
    with listener(other) as listening:
        accepting = asyncio.create_task(here().sock_accept(listening))
        await turns()
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        with client(listening.getsockname()) as sock:
            conn, address = await here().sock_accept(listening)
            assert address == sock.getsockname()
            conn.close()
    await nothing_polled()


async def test_bare_datagram_sockets_receive_and_send(other):
    with (
        made_shared(other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        sock.bind((LOCALHOST, 0))
        peer.bind((LOCALHOST, 0))
        peer.settimeout(PATIENCE_S)
        for data in (b"datagram", b""):
            receiving = asyncio.create_task(here().sock_recvfrom(sock, 100))
            await turns()
            peer.sendto(data, sock.getsockname())
            assert await receiving == (data, peer.getsockname())
        buffer = bytearray(8)
        peer.sendto(b"into", sock.getsockname())
        assert await here().sock_recvfrom_into(sock, buffer, 4) == (4, peer.getsockname())
        assert await here().sock_sendto(sock, b"answer", peer.getsockname()) == 6
        assert peer.recv(100) == b"answer"
    await nothing_polled()


async def test_a_datagram_endpoint_receives_and_sends(other):
    class Collector(asyncio.DatagramProtocol):
        def __init__(self):
            self.received = []
            self.lost = here().create_future()

        def datagram_received(self, data, addr):
            self.received.append((data, addr))

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    sock = made_shared(other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind((LOCALHOST, 0))
    transport, protocol = await here().create_datagram_endpoint(Collector, sock=sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((LOCALHOST, 0))
        peer.settimeout(PATIENCE_S)
        for n in range(50):
            peer.sendto(b"%d" % n, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 50)
        assert protocol.received == [(b"%d" % n, peer.getsockname()) for n in range(50)]
        transport.sendto(b"answer", peer.getsockname())
        assert await asyncio.to_thread(peer.recv, 100) == b"answer"
        transport.close()
        assert await protocol.lost is None
    await nothing_polled()


# -- servers ---------------------------------------------------------------------------------------------------


async def test_a_server_on_a_listener_of_another_port_serves_many_clients_and_closes(other):
    listening = listener(other)
    server = await here().create_server(Echo, sock=listening)
    address = listening.getsockname()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(address)) for _ in range(30)]
        for n, sock in enumerate(clients):
            sock.sendall(b"%4d" % n)
        for n, sock in enumerate(clients):
            assert await asyncio.to_thread(receive_exactly, sock, 4) == b"%4d" % n
    server.close()
    await asyncio.wait_for(server.wait_closed(), PATIENCE_S)
    assert listening.fileno() == -1
    await nothing_polled()


async def test_a_client_that_resets_before_it_is_accepted_does_not_silence_such_a_server(other):
    listening = listener(other)
    server = await here().create_server(Echo, sock=listening)
    for _ in range(10):
        reset(client(listening.getsockname()))
    with client(listening.getsockname()) as sock:
        sock.sendall(b"ping")
        assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"
    server.close()
    await asyncio.wait_for(server.wait_closed(), PATIENCE_S)
    await nothing_polled()


def test_two_loops_in_two_threads_serve_one_listening_socket():
    """The second has it by share(), as a worker process would. Each client is answered by one of them, and both answer:
    the first stops serving half-way."""
    answered = []

    class Named(asyncio.Protocol):
        def connection_made(self, transport):
            name = threading.current_thread().name
            answered.append(name)
            transport.write(name.encode().ljust(10))
            transport.close()

    def serve(sock, ready, stop):
        async def main():
            server = await here().create_server(Named, sock=sock)
            here().call_soon(ready.set)
            await asyncio.to_thread(stop.wait)
            server.close()
            await server.wait_closed()

        with running() as loop:
            loop.run_until_complete(main())

    first = socket.create_server((LOCALHOST, 0))
    second = socket.fromshare(first.share(os.getpid()))
    address = first.getsockname()
    stops, threads = [], []
    for name, sock in (("first", first), ("second", second)):
        ready, stop = threading.Event(), threading.Event()
        thread = threading.Thread(target=serve, args=(sock, ready, stop), name=name)
        thread.start()
        assert ready.wait(PATIENCE_S)
        stops.append(stop)
        threads.append(thread)
    try:
        for n in range(60):
            if n == 30:
                stops[0].set()
                threads[0].join(PATIENCE_S)
            with client(address) as sock:
                assert receive_all(sock).strip() in (b"first", b"second")
    finally:
        for stop, thread in zip(stops, threads, strict=True):
            stop.set()
            thread.join(PATIENCE_S)
    assert answered[-1] == "second"
    assert len(answered) == 60
    gc.collect()


CHILD = """
import asyncio, os, socket, sys
sys.path.insert(0, {root!r})
import iocp_loop

class Named(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"child")
        transport.close()

async def main():
    sock = socket.fromshare(bytes.fromhex(sys.stdin.readline().strip()))
    server = await asyncio.get_running_loop().create_server(Named, sock=sock)
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    server.close()
    await server.wait_closed()

iocp_loop.run(main())
print("done", flush=True)
"""


async def test_a_worker_process_serves_the_listening_socket_of_its_parent():
    """As uvicorn's workers do. The parent serves it first, then both, then the child alone."""

    class Named(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"parent")
            transport.close()

    def ask():
        with client(address) as sock:
            return receive_all(sock)

    listening = socket.create_server((LOCALHOST, 0))
    address = listening.getsockname()
    server = await here().create_server(Named, sock=listening)
    assert await asyncio.to_thread(ask) == b"parent"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(root=str(ROOT))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        child.stdin.write(listening.share(child.pid).hex() + "\n")
        child.stdin.flush()
        assert await asyncio.to_thread(child.stdout.readline) == "serving\n"
        for _ in range(20):
            assert await asyncio.to_thread(ask) in (b"parent", b"child")
        server.close()
        await asyncio.wait_for(server.wait_closed(), PATIENCE_S)
        for _ in range(5):
            assert await asyncio.to_thread(ask) == b"child"
        child.stdin.write("\n")
        child.stdin.flush()
        assert await asyncio.to_thread(child.stdout.read) == "done\n"
    assert child.returncode == 0


def test_a_socket_of_a_loop_that_was_closed_is_served_by_the_next():
    """A handle stays with its port for life, also when that is gone."""
    sock, peer = socket.socketpair()
    with sock, peer:
        sock.setblocking(False)
        for n in range(3):
            with running() as loop:
                peer.sendall(b"%d" % n)
                assert loop.run_until_complete(loop.sock_recv(sock, 10)) == b"%d" % n
                loop.run_until_complete(loop.sock_sendall(sock, b"ok"))
                assert receive_exactly(peer, 2) == b"ok"
                with pytest.raises(asyncio.TimeoutError):
                    loop.run_until_complete(asyncio.wait_for(loop.sock_recv(sock, 10), 0.01))
                loop.proactor.forget(loop._stdlib_proactor.endpoint(sock))


def test_the_standard_loop_with_our_proactor_serves_such_sockets_too(other):
    async def main():
        server = await asyncio.start_server(lambda _, writer: writer.close(), sock=listener(other))
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        shared, peer = pair(other)
        with peer:
            reader, writer = await asyncio.open_connection(sock=shared)
            writer.write(b"question")
            assert peer.recv(100) == b"question"
            peer.sendall(b"answer")
            assert await reader.readexactly(6) == b"answer"
            writer.close()
            await writer.wait_closed()

    loop = asyncio.ProactorEventLoop(iocp_loop.IocpProactor())
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


# -- what is refused, and the end ------------------------------------------------------------------------------


async def test_the_socket_of_a_transport_of_this_loop_is_refused():
    """Two receivers would take each other's data; the transport was here first."""
    sock, peer = socket.socketpair()
    with peer:
        transport, protocol = await here().create_connection(Recorder, sock=sock)
        with pytest.raises(RuntimeError, match="used by transport"):
            await here().sock_recv(sock, 10)
        transport.close()
        await protocol.gone()


async def test_a_blocking_socket_of_another_port_is_refused(other):
    """Whoever shares it may be quicker, and then the call would block the loop."""
    sock, peer = pair(other)
    with sock, peer:
        sock.setblocking(True)
        with pytest.raises(ValueError, match="non-blocking"):
            here()._stdlib_proactor.recv(sock, 10)


def test_closing_a_loop_with_such_operations_outstanding_is_quick_and_leaves_nothing(other):
    async def main():
        for _ in range(20):
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=keep(pair(other)))
            transport.write(pattern(1_000_000))
            transports.append(transport)
        await loop.create_server(asyncio.Protocol, sock=listener(other))
        await turns()

    def keep(sockets):
        peers.append(sockets[1])
        return sockets[0]

    peers, transports = [], []
    loop = iocp_loop.new_event_loop()
    loop.run_until_complete(main())
    before = time.perf_counter()
    loop.close()
    assert time.perf_counter() - before < 2
    assert not loop.proactor.pending
    assert not loop.proactor.endpoints
    for sock in peers:
        sock.close()
    for transport in transports:
        assert transport.handle is None or transport.handle.fileno() == -1
        transport._handle = None  # Nobody told it: its loop was closed under it.
    assert not WatchedLoop.made
