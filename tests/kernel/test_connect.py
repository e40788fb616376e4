"""Connecting: every ending of a connection attempt, and errors that say what to do."""

import asyncio
import contextlib
import errno
import os
import socket
import sys
import tempfile

import pytest

from iocp_loop import IocpEventLoop
from iocp_loop._core._operation import IoType
from iocp_loop._handles._pipes import OverlappedPipe
from iocp_loop._win32.constants import Error, Ioctl, Status, WsaError

from .peers import LOCALHOST, Echo, Recorder, serving
from .watched import failed, here, pending, turns, until


def free_port():
    with socket.create_server((LOCALHOST, 0)) as sock:
        return sock.getsockname()[1]


def nonblocking(*args):
    sock = socket.socket(*args)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def unanswered():
    """An address where a connect hangs: the kernel says "pending", and the test decides how it ends."""
    kernel = here().watched
    kernel.swallow("ConnectEx")
    yield (LOCALHOST, free_port())
    del kernel.faults["ConnectEx"]


def end_connect(loop, status=Status.CANCELLED):
    """What the kernel would do at the end of a connect that it swallowed: a packet."""
    (operation,) = pending(IoType.CONNECT, loop)
    loop.proactor.settle([(operation.endpoint.key, operation.address, status, 0)], loop.proactor.settled.append)
    loop.proactor.wake()


async def test_a_refused_connection_is_a_connection_refused_error():
    with pytest.raises(ConnectionRefusedError) as caught:
        await here().create_connection(Recorder, LOCALHOST, free_port())
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("status", "winerror", "cls"),
    [
        (Status.NETWORK_UNREACHABLE, WsaError.NETUNREACH, OSError),
        (Status.HOST_UNREACHABLE, WsaError.HOSTUNREACH, OSError),
        (Status.IO_TIMEOUT, WsaError.TIMEDOUT, TimeoutError),
        (Status.CONNECTION_REFUSED, WsaError.CONNREFUSED, ConnectionRefusedError),
    ],
)
async def test_a_connection_that_fails_later_has_the_error_of_its_status(status, winerror, cls):
    """The real network will not fail so on demand: the packet is made by hand."""
    with unanswered() as address, nonblocking() as sock:
        task = asyncio.ensure_future(here().sock_connect(sock, address))
        await until(lambda: pending(IoType.CONNECT))
        end_connect(here(), status)
        with pytest.raises(cls) as caught:
            await task
        assert caught.value.winerror == winerror
        assert "CONNECT" in str(caught.value)


async def test_a_cancelled_connect_ends_when_the_kernel_has_let_go_and_leaves_no_socket():
    with unanswered() as address:
        task = asyncio.ensure_future(here().create_connection(Recorder, *address))
        await until(lambda: pending(IoType.CONNECT))
        (operation,) = pending(IoType.CONNECT)
        task.cancel()
        await turns(5)
        assert not task.done()  # The memory is the kernel's until its packet comes.
        end_connect(here())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not operation.pending
        await until(lambda: not here().outstanding())


async def test_a_connect_that_times_out_leaves_no_socket():
    with unanswered() as address:
        here().call_later(0.05, end_connect, here())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(here().create_connection(Recorder, *address), 0.01)
        await until(lambda: not here().outstanding())


async def test_a_connect_that_succeeds_although_it_was_cancelled_is_closed():
    """The packet says success: the peer sees a connection, and then its end."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        here().watched.faults["CancelIoEx"] = lambda _function, _args: 1
        task = asyncio.ensure_future(here().create_connection(Recorder, *listener.getsockname()))
        await turns(1)
        while not pending(IoType.CONNECT) and not task.done():
            await turns(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del here().watched.faults["CancelIoEx"]
        peer, _ = listener.accept()
        with peer, contextlib.suppress(ConnectionResetError):
            peer.settimeout(10)
            assert peer.recv(1) == b""


async def test_the_local_address_asked_for_is_used():
    """A port that is still free when it is asked for: the listener is there first, so that it cannot take it."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        local = (LOCALHOST, free_port())
        transport, protocol = await here().create_connection(Recorder, *listener.getsockname(), local_addr=local)
        peer, address = listener.accept()
    with peer:
        assert address == local
        assert transport.get_extra_info("sockname") == local
        transport.close()
        await protocol.gone()


async def test_a_local_address_in_use_is_an_error_that_names_it():
    async with serving(Echo) as (_, address):
        with pytest.raises(OSError, match=str(address[1])):
            await here().create_connection(Recorder, *address, local_addr=address)


@pytest.mark.parametrize("options", [{}, {"happy_eyeballs_delay": 0.25}])
async def test_of_several_addresses_the_first_that_answers_is_taken(monkeypatch, options):
    """The first address refuses, with and without happy eyeballs."""
    async with serving(Echo) as (_, address):
        infos = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOCALHOST, free_port())),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address),
        ]
        monkeypatch.setattr(here(), "_ensure_resolved", _resolver(infos), raising=True)
        transport, protocol = await here().create_connection(Recorder, "two-addresses.test", 1, **options)
        assert transport.get_extra_info("peername") == address
        transport.close()
        await protocol.gone()


async def test_when_all_addresses_refuse_every_error_can_be_told():
    if sys.version_info < (3, 12):
        pytest.skip("asyncio has all_errors from 3.12 on")
    with pytest.raises(ExceptionGroup) as caught:
        await here().create_connection(Recorder, LOCALHOST, free_port(), all_errors=True)
    assert caught.value.subgroup(ConnectionRefusedError)


async def test_happy_eyeballs_does_not_wait_for_an_address_that_hangs(monkeypatch):
    """The first connect is never answered; the second starts after the delay, wins, and the first is cancelled."""
    async with serving(Echo) as (_, address):
        kernel = here().watched
        swallowed = []

        def hang_once(function, args):
            if swallowed:
                return function(*args)
            swallowed.append(args)
            return failed("ConnectEx", Error.IO_PENDING)

        def cancel(function, args):
            end_connect(here())
            return 1

        kernel.faults["ConnectEx"] = hang_once
        kernel.faults["CancelIoEx"] = cancel
        infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOCALHOST, free_port()))]
        infos.append((*infos[0][:4], address))
        monkeypatch.setattr(here(), "_ensure_resolved", _resolver(infos), raising=True)
        transport, protocol = await here().create_connection(Recorder, "slow.test", 1, happy_eyeballs_delay=0.01)
        kernel.faults.clear()
        assert swallowed
        assert transport.get_extra_info("peername") == address
        transport.close()
        await protocol.gone()


def _resolver(infos):
    real = IocpEventLoop._ensure_resolved

    async def resolve(address, **options):
        if isinstance(address[0], str) and address[0].endswith(".test"):
            return infos
        return await real(here(), address, **options)

    return resolve


async def test_names_are_resolved():
    async with serving(Echo) as (_, address):
        transport, protocol = await here().create_connection(Recorder, "localhost", address[1])
        assert transport.get_extra_info("peername")[1] == address[1]
        transport.close()
        await protocol.gone()


# -- sockets given by the caller -------------------------------------------------------------------------------


async def test_a_connected_socket_becomes_a_transport():
    left, peer = socket.socketpair()
    transport, protocol = await here().create_connection(Recorder, sock=left)
    with peer:
        peer.sendall(b"x")
        assert await protocol.receives(1) == b"x"
        transport.close()
        await protocol.gone()
    assert left.fileno() == -1


async def test_an_accepted_socket_becomes_a_server_side_transport():
    with socket.create_server((LOCALHOST, 0)) as listener:
        with socket.create_connection(listener.getsockname()) as sock:
            conn, _ = listener.accept()
            transport, protocol = await here().connect_accepted_socket(Recorder, conn)
            sock.sendall(b"x")
            assert await protocol.receives(1) == b"x"
            transport.close()
            await protocol.gone()


async def test_a_socket_that_is_connected_bare_first_becomes_a_transport_with_the_same_endpoint():
    """sock_connect and sock_sendall first: the handle is associated already, and only once for life."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = nonblocking()
        await here().sock_connect(sock, listener.getsockname())
        await here().sock_sendall(sock, b"bare")
        transport, protocol = await here().create_connection(Recorder, sock=sock)
        peer, _ = listener.accept()
        with peer:
            transport.write(b"+transport")
            peer.settimeout(10)
            assert peer.recv(4) == b"bare"
            assert peer.recv(10) == b"+transport"
            transport.close()
            await protocol.gone()


async def test_a_blocking_socket_is_refused_in_debug_mode_and_the_message_says_what_to_do():
    here().set_debug(True)
    with socket.socket() as sock:
        for call in (
            here().sock_connect(sock, (LOCALHOST, 1)),
            here().sock_recv(sock, 1),
            here().sock_recv_into(sock, bytearray(1)),
            here().sock_sendall(sock, b"x"),
            here().sock_accept(sock),
        ):
            with pytest.raises(ValueError, match=rf"must be non-blocking.*{sock.fileno()}.*setblocking"):
                await call


async def test_a_closed_socket_is_refused():
    sock = nonblocking()
    sock.close()
    with pytest.raises(OSError):
        await here().sock_recv(sock, 1)


async def test_a_datagram_socket_cannot_become_a_stream():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="Stream Socket"):
            await here().create_connection(Recorder, sock=sock)


async def test_a_closed_sockets_record_goes_when_its_handles_value_comes_back():
    """The old socket object is still referenced, as by a traceback."""
    old, peer = socket.socketpair()
    old.setblocking(False)
    peer.sendall(b"x")
    assert await here().sock_recv(old, 1) == b"x"
    handle = old.fileno()
    old.close()
    peer.close()
    others = []
    while not any(sock.fileno() == handle for sock in others):
        assert len(others) < 100, "the handle's value did not come back"
        others.extend(socket.socketpair())
    (new,) = (sock for sock in others if sock.fileno() == handle)
    new.setblocking(False)
    await here().sock_sendall(new, b"y")
    assert [endpoint.handle for endpoint in here().proactor.endpoints.values()].count(handle) == 1
    for sock in others:
        sock.close()
    assert old.fileno() == -1


def test_a_handle_that_was_not_opened_for_overlapped_io_says_so(proactor):
    """An ordinary file, as open() makes them."""
    import msvcrt

    handle, name = tempfile.mkstemp()
    try:
        with pytest.raises(OSError, match="FILE_FLAG_OVERLAPPED") as caught:
            proactor.register(OverlappedPipe(msvcrt.get_osfhandle(handle)))
        assert caught.value.winerror == Error.INVALID_PARAMETER
    finally:
        os.close(handle)
        os.unlink(name)


async def test_connecting_twice_is_an_error_of_the_second_call_only():
    async with serving(Echo) as (_, address):
        with nonblocking() as sock:
            await here().sock_connect(sock, address)
            with pytest.raises(OSError) as caught:
                await here().sock_connect(sock, address)
            assert caught.value.winerror == WsaError.ISCONN
            await here().sock_sendall(sock, b"x")
            assert await here().sock_recv(sock, 1) == b"x"


@pytest.mark.parametrize("address", ["text", (LOCALHOST,), (LOCALHOST, "http-nonsense-service"), (LOCALHOST, 70000)])
async def test_what_is_no_address_is_an_error_and_not_a_crash(address):
    with nonblocking() as sock:
        with pytest.raises((TypeError, ValueError, OverflowError, OSError)):
            await here().sock_connect(sock, address)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, LOCALHOST), (socket.AF_INET6, "::1")])
async def test_a_connect_to_this_machine_is_told_not_to_repeat_what_is_refused(family, host):
    """Windows takes two seconds to believe a refusal; it is told before the connect, and whether it obeys or not."""
    calls = []
    here().watched.faults["WSAIoctl"] = lambda function, args: (calls.append(args[1]), function(*args))[1]
    here().watched.faults["ConnectEx"] = lambda function, args: (calls.append("ConnectEx"), function(*args))[1]
    with socket.socket(family) as sock:
        sock.setblocking(False)
        with socket.socket(family) as nobody, pytest.raises(ConnectionRefusedError):
            nobody.bind((host, 0))
            await here().sock_connect(sock, nobody.getsockname())
    assert calls.index(Ioctl.SIO_TCP_INITIAL_RTO) < calls.index("ConnectEx")


async def test_a_system_that_cannot_hasten_refusals_is_asked_once():
    calls = []

    def refuse(function, args):
        if args[1] != Ioctl.SIO_TCP_INITIAL_RTO:
            return function(*args)
        calls.append(args[1])
        return failed("WSAIoctl", WsaError.OPNOTSUPP)

    here().watched.faults["WSAIoctl"] = refuse
    async with serving(Echo) as (_, address):
        for _ in range(2):
            transport, protocol = await here().create_connection(Recorder, *address)
            transport.close()
            await protocol.gone()
    assert len(calls) == 1
