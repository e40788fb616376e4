"""What users of asyncio.ProactorEventLoop know as its failures, provoked again, each under its own name.

Those that belong to one subject stand with it:
    UDP deaf after one ICMP error, empty datagrams dropped,
    sock_recvfrom_into with a wrong size                      test_datagram.py
    100 % CPU after the wake-up socket broke,
    Ctrl+C deaf after another loop was closed                 test_signal_handlers.py
    data lost by cancelling a receive                         test_sock_methods.py
    a socket that belongs to another port (WinError 87)       test_sock_methods.py, and below for listeners
    sockets left open after a failed connect                  test_connect.py
    an exception in the protocol factory                      test_accept.py
    close() without a bound                                   test_close.py
    early timers                                              test_timers.py
    start_tls() loses what the StreamReader had read          test_tls.py
"""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import warnings

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._win32.constants import Error

from .peers import LOCALHOST, Echo, Recorder, client, connected, receive_exactly, reset, serving
from .watched import here, running, turns, until


async def test_a_listener_is_not_deaf_after_winerror_64():
    """AcceptEx answers ERROR_NETWORK_NAME_DELETED, as for a client that is gone: python/cpython#93821."""
    async with serving(Echo) as (server, address):
        for _ in range(3):
            here().watched.fail("AcceptEx", Error.NETNAME_DELETED, times=5)
            with client(address) as sock:
                sock.sendall(b"ping")
                assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"
        assert server.sockets


async def test_a_reset_connection_ends_without_a_traceback(caplog):
    """Fifty peers reset at once, idle or with something on its way to them: no report, nothing in the log."""
    protocols = []

    class Server(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            protocols.append(self)
            if len(protocols) % 2:
                transport.write(bytes(100_000))

    with caplog.at_level(logging.WARNING, "asyncio"):
        async with serving(Server) as (_, address):
            peers = [client(address) for _ in range(50)]
            await until(lambda: len(protocols) == 50)
            for peer in peers:
                reset(peer)
            for protocol in protocols:
                assert isinstance(await protocol.gone(), ConnectionError | None)
                protocol.transport.write(b"too late")
                protocol.transport.close()
    assert not here().reports
    assert not caplog.records


def test_one_listening_socket_is_served_by_two_loops_one_after_the_other_and_at_once(nothing_left):
    """A handle belongs to one completion port for life (WinError 87): the second loop serves it through readiness."""

    async def serve_one(listener):
        server = await asyncio.get_running_loop().create_server(Echo, sock=listener.dup())
        with client(listener.getsockname()) as sock:
            sock.sendall(b"ping")
            assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"
        server.close()
        await server.wait_closed()

    with socket.create_server((LOCALHOST, 0)) as listener:
        with running() as first:
            first.run_until_complete(serve_one(listener))
            with running() as second:
                second.run_until_complete(serve_one(listener))
        with running() as third:
            third.run_until_complete(serve_one(listener))


def test_running_and_stopping_the_loop_for_every_frame_frees_nothing_that_is_pending(nothing_left):
    """A game's main loop: two hundred run_forever() calls of one turn each, with receives pending: python/cpython#116773."""
    with running() as loop, socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, *listener.getsockname()))
        peer, _ = listener.accept()
        pending = set()
        with peer:
            for n in range(200):
                loop.call_soon(loop.stop)
                loop.run_forever()
                pending |= {op.address for op in loop.proactor.pending.values() if op.io_type is IoType.READ}
                if n % 10 == 0:
                    gc.collect()
                    peer.send(b"x")
            loop.run_until_complete(protocol.receives(20))
            transport.close()
            loop.run_until_complete(protocol.gone())
        assert len(pending) <= 2  # One receive of the transport's, one of the wake-up socket's: never made anew.


async def test_a_future_that_was_settled_behind_the_loops_back_does_not_end_the_loop():
    """The operation's packet finds its future done: InvalidStateError in the stdlib's loop: python/cpython#149123."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        future = here()._stdlib_proactor.recv(ours, 100)
        await turns()
        future.set_result(b"mine")
        theirs.send(b"theirs")
        await until(lambda: not any(op.endpoint.handle == ours.fileno() for op in here().proactor.pending.values()))
        await turns()
        assert future.result() == b"mine"
        assert await here().sock_recv(ours, 100) == b"theirs"


async def test_an_exception_in_a_batch_of_results_loses_none_of_the_others():
    """Twenty connections have data in one batch; the protocols of ten raise."""

    class Raising(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if data == b"bad":
                raise ZeroDivisionError("while dispatching")

    async with serving(Raising) as (_, address):
        peers = [client(address) for _ in range(20)]
        for n, peer in enumerate(peers):
            peer.sendall(b"bad" if n % 2 else b"good")
        await until(lambda: len(here().reports) == 10)
        for peer in peers:
            peer.sendall(b"again")
            peer.shutdown(socket.SHUT_WR)
        for peer in peers:
            assert await asyncio.to_thread(peer.recv, 1) == b""
            peer.close()
        here().reports.clear()


@pytest.mark.parametrize("kind", ["stream", "server", "datagram", "pipe", "process"])
def test_what_is_left_open_when_the_loop_closes_warns_and_makes_no_other_noise(kind, nothing_left):
    """Finalizers run after close(): a ResourceWarning at most, and never 'Event loop is closed'."""
    noise = []
    hook, sys.unraisablehook = sys.unraisablehook, noise.append
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            with running() as loop, socket.create_server((LOCALHOST, 0)) as listener:
                left = loop.run_until_complete(leave_open(loop, kind, listener.getsockname()))
                loop._settle = lambda: asyncio.sleep(0)
            loop.left.clear()
            process = left if kind == "process" else None
            del left
            gc.collect()
    finally:
        sys.unraisablehook = hook
    if process is not None:
        process.wait(20)
    assert not [entry.exc_value for entry in noise]


async def leave_open(loop, kind, address):
    if kind == "stream":
        return await asyncio.open_connection(*address)
    if kind == "server":
        server = await asyncio.start_server(lambda *_: None, LOCALHOST, 0)
        return server, await asyncio.open_connection(*server.sockets[0].getsockname())
    if kind == "datagram":
        return await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOCALHOST, 0))
    if kind == "pipe":
        name = rf"\\.\pipe\iocp_loop-left-{id(loop)}"
        await loop.start_serving_pipe(asyncio.Protocol, name)
        return await loop.create_pipe_connection(asyncio.Protocol, name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", "pass", stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    return process._transport.get_extra_info("subprocess")


async def test_a_connection_that_fails_to_be_made_leaves_no_socket_open():
    """Refused, on every address: ResourceWarnings are errors here, and the ledger of endpoints is empty."""
    with socket.create_server((LOCALHOST, 0)) as sock:
        address = sock.getsockname()
    for _ in range(5):
        with pytest.raises(OSError):
            await here().create_connection(Recorder, *address)
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
    gc.collect()
    assert not here().outstanding()


async def test_an_abort_from_within_a_callback_of_the_same_batch_is_no_use_after_close():
    """One connection's data_received() aborts another whose data is in the same batch."""
    async with connected() as (one, first, peer_one), connected() as (other, second, peer_other):
        first.data_received = lambda _data: other.abort()
        second.data_received = lambda _data: one.abort()
        one.set_protocol(first)
        other.set_protocol(second)
        peer_one.sendall(b"x")
        peer_other.sendall(b"x")
        await until(lambda: first.lost.done() or second.lost.done())
        await turns()
        assert not here().reports
