"""Listening: no client and no protocol factory silences a listener, and a server ends when and how it is asked to."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import socket
import sys

import pytest

from iocp_loop._asyncio import _private as private
from iocp_loop._core._operation import IoType
from iocp_loop._transports import _listener
from iocp_loop._transports._acceptor import ERRORS_AT_ONCE_MAX
from iocp_loop._transports._listener import ACCEPTS_MAX, ACCEPTS_MIN
from iocp_loop._transports._stream import StreamTransport
from iocp_loop._win32.constants import WsaError
from iocp_loop.lowlevel import CompletionPort

from .peers import LOCALHOST, Echo, Recorder, client, receive_exactly, reset, serving
from .watched import failed, here, pending, turns, until, wait_until

NEW_IN_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio has it from 3.13 on")


async def still_serves(address):
    """The proof that a listener is not deaf: a new client gets its echo."""
    with client(address) as sock:
        sock.sendall(b"ping")
        assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_clients_that_reset_before_they_are_accepted_do_not_silence_the_listener(data):
    """More of them than accepts are outstanding, all gone before the loop takes its next turn."""
    async with serving(Echo) as (_, address):
        await turns()
        for _ in range(3 * ACCEPTS_MIN):
            sock = client(address)
            sock.sendall(data)
            reset(sock)
        await still_serves(address)
        await until(lambda: len(pending(IoType.ACCEPT)) >= ACCEPTS_MIN)
        assert not here().reports


async def test_clients_that_reset_right_after_they_are_accepted_do_not_either():
    """Reset from within the protocol factory, before there is a transport."""
    clients = []

    def factory():
        reset(clients.pop(0))
        return Echo()

    async with serving(lambda: factory() if clients else Echo()) as (_, address):
        for _ in range(5):
            sock = socket.socket()
            clients.append(sock)
            sock.connect(address)
            await until(lambda: not clients)
        await still_serves(address)


async def test_a_protocol_factory_that_raises_loses_its_client_only():
    calls = 0

    def factory():
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise ZeroDivisionError("no protocol today")
        return Echo()

    async with serving(factory) as (_, address):
        for _ in range(3):
            with client(address) as sock:
                name = sock.getsockname()
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(sock.recv, 1) == b""
            report = here().expect_report("no protocol today")
            assert report["peername"] == name
        await still_serves(address)


async def test_a_burst_of_200_connects_is_served_whole():
    """All connect before the server takes a turn; each says its number, and hears it."""
    async with serving(Echo, backlog=250) as (_, address):
        clients = [client(address) for _ in range(200)]
        for n, sock in enumerate(clients):
            sock.sendall(b"%3d" % n)
        echoes = await asyncio.to_thread(lambda: [receive_exactly(sock, 3) for sock in clients])
        assert echoes == [b"%3d" % n for n in range(200)]
        assert ACCEPTS_MIN < len(pending(IoType.ACCEPT)) <= ACCEPTS_MAX
        for sock in clients:
            sock.close()
        await until(lambda: len(here().outstanding()) <= ACCEPTS_MAX + 1)


async def test_a_small_backlog_keeps_few_accepts_outstanding():
    async with serving(Echo, backlog=1) as (_, address):
        assert len(pending(IoType.ACCEPT)) == 1
        for _ in range(3):
            await still_serves(address)
        assert len(pending(IoType.ACCEPT)) == 1


async def test_closing_with_accepts_outstanding_closes_their_sockets_and_the_listener():
    server = await here().create_server(Echo, LOCALHOST, 0)
    address = server.sockets[0].getsockname()
    accepting = [op.arriving for op in pending(IoType.ACCEPT)]
    assert len(accepting) == ACCEPTS_MIN
    server.close()
    await server.wait_closed()
    await until(lambda: not here().outstanding())
    assert all(sock.fileno() == -1 for sock in accepting)
    with pytest.raises(ConnectionRefusedError):
        client(address)


async def test_a_client_that_connects_just_before_close_is_dropped_and_nothing_is_left():
    """Its accept has succeeded in the kernel when the listener closes."""
    server = await here().create_server(Echo, LOCALHOST, 0)
    with client(server.sockets[0].getsockname()) as sock:
        wait_until(lambda: any(op.Internal == 0 for op in pending(IoType.ACCEPT)))
        server.close()
        await until(lambda: not here().outstanding())
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    await server.wait_closed()


# -- faults of the kernel --------------------------------------------------------------------------------------


@pytest.fixture
def quick_retry(monkeypatch):
    monkeypatch.setattr(private, "ACCEPT_RETRY_DELAY_S", 0.02)


@pytest.mark.usefixtures("quick_retry")
async def test_accepts_that_cannot_be_posted_are_reported_once_and_tried_again_later():
    """The kernel has no buffers left while the server starts."""
    here().watched.fail("AcceptEx", WsaError.NOBUFS, times=ACCEPTS_MIN)
    async with serving(Echo) as (server, address):
        await turns()
        report = here().expect_report("cannot be posted")
        assert report["exception"].winerror == WsaError.NOBUFS
        assert report["socket"].getsockname() == address
        assert server.sockets
        await until(lambda: len(pending(IoType.ACCEPT)) == ACCEPTS_MIN)
        await still_serves(address)


@pytest.mark.usefixtures("quick_retry")
async def test_an_accept_that_cannot_be_posted_again_is_tried_again_later():
    """The server runs for a while before the kernel is short of buffers; the client that came is served all the same."""
    async with serving(Echo) as (_, address):
        await still_serves(address)
        here().watched.fail("AcceptEx", WsaError.NOBUFS, times=1)
        await still_serves(address)
        here().expect_report("cannot be posted")
        await until(lambda: len(pending(IoType.ACCEPT)) >= ACCEPTS_MIN)


@pytest.mark.usefixtures("quick_retry")
async def test_a_socket_that_cannot_be_made_for_an_accept_is_tried_again_later(monkeypatch):
    """As when the process has no handles left: socket() itself fails."""
    async with serving(Echo) as (_, address):
        real = socket.socket
        failures = 1

        def scarce(*args, **kwargs):
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(errno.EMFILE, "too many open files")
            return real(*args, **kwargs)

        sock = client(address)
        monkeypatch.setattr("iocp_loop._transports._listener.socket.socket", scarce)
        await until(lambda: here().reports)
        monkeypatch.undo()
        here().expect_report("too many open files")
        with sock:
            sock.sendall(b"ping")
            assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"
        await until(lambda: len(pending(IoType.ACCEPT)) >= ACCEPTS_MIN)
        await still_serves(address)


async def test_an_accept_that_tells_of_a_dead_client_at_once_is_posted_again_without_delay():
    """AcceptEx itself may answer WSAECONNRESET: it took a client from the queue that was gone. Not the listener's fault."""
    async with serving(Echo) as (_, address):
        here().watched.fail("AcceptEx", WsaError.CONNRESET, times=2)
        for _ in range(ACCEPTS_MIN):
            await still_serves(address)
        await until(lambda: len(pending(IoType.ACCEPT)) >= ACCEPTS_MIN)
        assert not here().reports


@pytest.mark.usefixtures("quick_retry")
async def test_closing_while_waiting_to_try_again_leaves_nothing():
    here().watched.fail("AcceptEx", WsaError.NOBUFS, times=ACCEPTS_MIN)
    server = await here().create_server(Echo, LOCALHOST, 0)
    await turns()
    here().expect_report("cannot be posted")
    server.close()
    await server.wait_closed()
    await until(lambda: not here().outstanding())
    assert not pending(IoType.ACCEPT)


# -- kinds of listeners ----------------------------------------------------------------------------------------


async def test_ipv6_connections_are_served_and_named():
    if not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    async with serving(Recorder, host="::1") as (server, address):
        assert server.sockets[0].family == socket.AF_INET6
        transport, protocol = await here().create_connection(Recorder, "::1", address[1])
        assert transport.get_extra_info("peername")[:2] == ("::1", address[1])
        transport.close()
        await protocol.gone()


async def test_a_server_without_a_host_listens_on_both_families():
    loop = here()
    server = await loop.create_server(Echo, None, _free_port())
    try:
        families = {sock.family for sock in server.sockets}
        assert socket.AF_INET in families
        port = server.sockets[0].getsockname()[1]
        await still_serves((LOCALHOST, port))
        if _has_ipv6():
            assert socket.AF_INET6 in families
            await still_serves(("::1", port))
    finally:
        server.close()
        await server.wait_closed()


def _free_port():
    with socket.create_server((LOCALHOST, 0)) as sock:
        return sock.getsockname()[1]


def _has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def test_a_given_socket_is_served():
    sock = socket.create_server((LOCALHOST, 0))
    server = await here().create_server(Echo, sock=sock)
    await still_serves(sock.getsockname())
    server.close()
    await server.wait_closed()
    await until(lambda: sock.fileno() == -1)


async def test_a_port_in_use_is_an_error_that_says_so():
    async with serving(Echo) as (_, address):
        with pytest.raises(OSError) as caught:
            await here().create_server(Echo, *address)
        assert caught.value.errno in (errno.EADDRINUSE, errno.EACCES, 10013, 10048)


async def test_a_server_that_does_not_start_serving_accepts_nobody_until_it_does():
    server = await here().create_server(Echo, LOCALHOST, 0, start_serving=False)
    assert not server.is_serving()
    assert not pending(IoType.ACCEPT)
    await server.start_serving()
    assert server.is_serving()
    await still_serves(server.sockets[0].getsockname())
    server.close()
    await server.wait_closed()


async def test_serve_forever_ends_when_cancelled():
    server = await here().create_server(Echo, LOCALHOST, 0)
    serving_task = asyncio.ensure_future(server.serve_forever())
    await still_serves(server.sockets[0].getsockname())
    serving_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving_task
    assert not server.is_serving()
    await until(lambda: not here().outstanding())


# -- the end of a server ---------------------------------------------------------------------------------------


async def test_a_factory_that_closes_its_server_loses_its_client_and_nothing_else():
    server = None

    def factory():
        server.close()
        return Recorder()

    server = await here().create_server(factory, LOCALHOST, 0)
    with client(server.sockets[0].getsockname()) as sock:
        await until(lambda: here().reports)
        here().reports.clear()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    gc.collect()
    await until(lambda: not here().outstanding())


async def test_connections_outlive_their_server_and_wait_closed_waits_for_them():
    protocols = []

    def factory():
        protocols.append(Echo())
        return protocols[-1]

    server = await here().create_server(factory, LOCALHOST, 0)
    with client(server.sockets[0].getsockname()) as sock:
        await until(lambda: protocols and protocols[0].transport)
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        sock.sendall(b"ping")
        assert await asyncio.to_thread(receive_exactly, sock, 4) == b"ping"
        if sys.version_info >= (3, 12):
            assert not waiting.done()
    await protocols[0].gone()
    async with asyncio.timeout(10):
        await waiting


@NEW_IN_3_13
@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_a_server_can_end_its_clients(how):
    protocols = []

    def factory():
        protocols.append(Echo())
        return protocols[-1]

    async with serving(factory) as (server, address):
        clients = [client(address) for _ in range(3)]
        await until(lambda: len(protocols) == 3 and all(protocol.transport for protocol in protocols))
        getattr(server, how)()
        for protocol in protocols:
            assert await protocol.gone() is None
        for sock in clients:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            sock.close()
        await still_serves(address)


@NEW_IN_3_13
async def test_keep_alive_is_set_on_the_listener_and_inherited():
    protocols = []

    def factory():
        protocols.append(Echo())
        return protocols[-1]

    async with serving(factory, keep_alive=True) as (server, address):
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        with client(address):
            await until(lambda: protocols and protocols[0].transport)
            accepted = protocols[0].transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await protocols[0].gone()


async def test_accepts_that_fail_all_the_time_do_not_keep_the_loop_busy_and_end_with_the_error():
    """Each is posted again after a pause that grows; when one succeeds, the listener serves as ever."""
    async with serving(Echo) as (_, address):
        with client(address) as sock:
            sock.sendall(b"one")
            assert await asyncio.to_thread(sock.recv, 3) == b"one"
        loop = here()
        loop.watched.faults["AcceptEx"] = lambda _function, _args: failed("AcceptEx", WsaError.CONNRESET)
        for _ in range(ACCEPTS_MIN):
            # Each takes one of the accepts that are outstanding; what is posted in its place fails.
            client(address).close()
        await until(lambda: loop.counts["AcceptEx"] > ACCEPTS_MIN + ERRORS_AT_ONCE_MAX)
        before = loop.counts["AcceptEx"]
        turns_then = loop._turn.number
        await asyncio.sleep(0.3)
        # 1, 2, 4, 8 ms and so on, each time all that are not posted.
        assert loop.counts["AcceptEx"] - before < 150
        assert loop._turn.number - turns_then < 150
        del loop.watched.faults["AcceptEx"]
        with client(address) as sock:
            sock.sendall(b"two")
            assert await asyncio.to_thread(sock.recv, 3) == b"two"


async def test_the_protocol_factory_runs_in_the_context_that_the_server_names():
    """asyncio's servers name one from 3.15 on."""
    variable = contextvars.ContextVar("variable", default="the loop's")
    context = contextvars.copy_context()
    context.run(variable.set, "the server's")
    seen = []

    def make():
        seen.append(variable.get())
        return Echo()

    sock = socket.create_server((LOCALHOST, 0))
    sock.setblocking(False)
    here()._start_serving(make, sock, context=context)
    await still_serves(sock.getsockname())
    here()._stop_serving(sock)
    assert seen == ["the server's"]


# -- every step between a packet and the next accept, on our own listener and on one of another port ------------------

STEPS = {
    "addresses": "accepted_addresses",
    "the next accept": "prepare_accept",
    "the socket": "finish_accept",
    "the association": "open_socket",
    "the transport": None,
}


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(
    "raised", [OSError(0, "no", None, 10055), MemoryError(), ValueError(), RuntimeError()], ids=repr
)
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_fails_between_a_packet_and_the_next_accept_the_listener_goes_on(
    step, raised, shared, monkeypatch
):
    """Each step raises once. It costs one client at most, and nothing of it is kept."""
    monkeypatch.setattr(private, "ACCEPT_RETRY_DELAY_S", 0.01)
    loop, listener = here(), socket.create_server((LOCALHOST, 0))
    listener.setblocking(False)
    with contextlib.ExitStack() as stack:
        if shared:
            stack.enter_context(CompletionPort()).associate(listener.fileno(), 1)
        server = await loop.create_server(Echo, sock=listener)
        await turns()
        serving = _listener if step == "the association" else type(loop._listeners[listener]._endpoint)
        owner, name = (serving, STEPS[step]) if STEPS[step] else (StreamTransport, "set_protocol")
        function, failures = getattr(owner, name), [raised]

        def once(*args, **options):
            if failures:
                raise failures.pop()
            return function(*args, **options)

        monkeypatch.setattr(owner, name, once)
        with client(server.sockets[0].getsockname()) as sock:
            await until(lambda: not failures)
            sock.close()
        await still_serves(server.sockets[0].getsockname())
        for report in loop.reports:
            assert report["exception"] is raised
        loop.reports.clear()
        server.close()
        await server.wait_closed()
