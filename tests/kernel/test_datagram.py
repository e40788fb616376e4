"""UDP: nothing the network says silences an endpoint, nothing is lost in the loop, and connection_lost always comes."""

import asyncio
import contextlib
import contextvars
import gc
import socket

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._transports import _datagram
from iocp_loop._transports._datagram import BURST_MAX, HEADER_SIZE, DatagramTransport
from iocp_loop._win32.constants import Status, WsaError

from .peers import LOCALHOST, pattern
from .platforms import UNDER_WINE, not_under_wine
from .watched import PATIENCE_S, failed, here, turns, until, wait_until

FAMILIES = [pytest.param(socket.AF_INET, LOCALHOST, id="IPv4"), pytest.param(socket.AF_INET6, "::1", id="IPv6")]


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what it is told."""

    def __init__(self):
        self.events = []
        self.received = []
        self.senders = []
        self.errors = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def datagram_received(self, data, addr):
        self.received.append(data)
        self.senders.append(addr)

    def error_received(self, exc):
        self.errors.append(exc)

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)

    async def gone(self):
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.lost)

    async def receives(self, count):
        await until(lambda: len(self.received) >= count, f"{count} datagrams")
        return self.received


class EchoDatagrams(Datagrams):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


class Reluctant(socket.socket):
    """A socket that takes no datagram at once while `refusing`: each has to go by an overlapped send."""

    refusing = True

    def send(self, *args):
        if self.refusing:
            raise BlockingIOError
        return super().send(*args)

    def sendto(self, *args):
        if self.refusing:
            raise BlockingIOError
        return super().sendto(*args)


@contextlib.asynccontextmanager
async def endpoint(factory=Datagrams, **options):
    """(transport, protocol) of one endpoint; aborted, and its connection_lost awaited, at the end."""
    if not options:
        options = {"local_addr": (LOCALHOST, 0)}
    transport, protocol = await here().create_datagram_endpoint(factory, **options)
    try:
        yield transport, protocol
    finally:
        transport.abort()
        await protocol.gone()
        assert protocol.events.count("lost") == 1


def bare(host=LOCALHOST, family=socket.AF_INET, kind=socket.socket):
    """A bound socket, for the other end or to be given to the loop."""
    sock = kind(family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.bind((host, 0))
    return sock


def name_of(transport):
    return transport.get_extra_info("sockname")


def dead_address():
    """Where nobody listens."""
    with bare() as sock:
        return sock.getsockname()


# -- kinds of endpoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), FAMILIES)
async def test_datagrams_go_both_ways_and_name_their_sender(family, host):
    async with (
        endpoint(EchoDatagrams, local_addr=(host, 0)) as (server, echo),
        endpoint(remote_addr=name_of(server)[:2]) as (client, protocol),
    ):
        client.sendto(b"one")
        client.sendto(bytearray(b"two"), None)
        client.sendto(memoryview(b"three"), name_of(server))
        assert await protocol.receives(3) == [b"one", b"two", b"three"]
        assert protocol.senders == [name_of(server)] * 3
        assert echo.senders == [name_of(client)] * 3
        assert client.get_extra_info("peername") == name_of(server)
        assert client.get_extra_info("socket").family == family


async def test_an_endpoint_with_both_addresses_hears_its_peer_only():
    with bare() as peer, bare() as stranger:
        async with endpoint(local_addr=(LOCALHOST, 0), remote_addr=peer.getsockname()) as (transport, protocol):
            stranger.sendto(b"stranger", name_of(transport))
            peer.sendto(b"peer", name_of(transport))
            assert await protocol.receives(1) == [b"peer"]
            with pytest.raises(ValueError, match="Invalid address"):
                transport.sendto(b"x", stranger.getsockname())


@pytest.mark.parametrize(("family", "host"), FAMILIES)
async def test_an_endpoint_without_any_address_can_send_and_is_answered(family, host):
    """WSARecvFrom refuses a socket that was never bound: WinError 10022 in the stdlib's loop."""
    with bare(host, family) as peer:
        async with endpoint(family=family) as (transport, protocol):
            assert name_of(transport)[1]
            transport.sendto(b"ping", peer.getsockname())
            data, sender = peer.recvfrom(100)
            peer.sendto(data + b" pong", sender)
            assert await protocol.receives(1) == [b"ping pong"]


async def test_a_given_bound_socket_is_used():
    sock = bare()
    name = sock.getsockname()
    async with endpoint(EchoDatagrams, sock=sock) as (transport, _):
        assert name_of(transport) == name
        with bare() as peer:
            peer.sendto(b"hello", name)
            assert await asyncio.to_thread(peer.recv, 100) == b"hello"
    assert sock.fileno() == -1


async def test_a_given_unbound_socket_is_bound_to_any_address():
    async with endpoint(sock=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as (transport, protocol):
        port = transport.get_extra_info("socket").getsockname()[1]
        with bare() as peer:
            peer.sendto(b"x", (LOCALHOST, port))
            assert await protocol.receives(1) == [b"x"]


async def test_a_given_connected_socket_sends_to_its_peer():
    with bare() as peer:
        sock = bare()
        sock.connect(peer.getsockname())
        async with endpoint(sock=sock) as (transport, protocol):
            transport.sendto(b"ping")
            data, sender = peer.recvfrom(100)
            peer.sendto(data, sender)
            assert await protocol.receives(1) == [b"ping"]
            assert protocol.senders == [peer.getsockname()]


async def test_broadcasts_are_sent_only_where_they_were_allowed():
    everybody = ("255.255.255.255", dead_address()[1])
    async with endpoint() as (transport, protocol):
        transport.sendto(b"x", everybody)
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], PermissionError)
    async with endpoint(local_addr=(LOCALHOST, 0), allow_broadcast=True) as (transport, protocol):
        assert transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        transport.sendto(b"x", everybody)
        await turns()
        assert not any(isinstance(error, PermissionError) for error in protocol.errors)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("local", [None, (LOCALHOST, 0)])
async def test_a_remote_address_of_an_endpoint_that_may_broadcast_is_sent_to(local, is_full, monkeypatch):
    """asyncio does not connect its socket; the stdlib's ProactorEventLoop sends to nobody, and says WinError 10057."""
    monkeypatch.setattr(Reluctant, "refusing", is_full)
    with bare() as peer:
        monkeypatch.setattr(socket, "socket", Reluctant)
        options = {"local_addr": local, "remote_addr": peer.getsockname(), "allow_broadcast": True}
        async with endpoint(**options) as (transport, protocol):
            for address in (None, peer.getsockname()):
                transport.sendto(b"ping", address)
                data, sender = await asyncio.to_thread(peer.recvfrom, 100)
            assert transport.get_extra_info("peername") is None
            peer.sendto(data, sender)
            assert await protocol.receives(1) == [b"ping"]
            with pytest.raises(ValueError, match="Invalid address"):
                transport.sendto(b"x", dead_address())
            assert not protocol.errors


async def test_a_local_address_in_use_is_an_error_and_leaves_no_socket():
    with bare() as taken:
        with pytest.raises(OSError) as caught:
            await here().create_datagram_endpoint(Datagrams, local_addr=taken.getsockname())
        assert caught.value.winerror in (WsaError.ADDRINUSE, WsaError.ACCES)
    gc.collect()
    assert not here().outstanding()


async def test_a_protocol_factory_that_raises_leaves_no_socket():
    def factory():
        raise ZeroDivisionError

    sock = bare()
    with pytest.raises(ZeroDivisionError):
        await here().create_datagram_endpoint(factory, sock=sock)
    sock.close()
    assert not here().outstanding()


# -- receiving -------------------------------------------------------------------------------------------------


async def test_empty_datagrams_are_sent_and_received():
    """The stdlib's loop of 3.11 and 3.12 drops them on both sides."""
    async with (
        endpoint(EchoDatagrams) as (server, _),
        endpoint(remote_addr=name_of(server)) as (client, protocol),
    ):
        for datagram in (b"", b"x", b""):
            client.sendto(datagram)
        assert await protocol.receives(3) == [b"", b"x", b""]


async def test_the_largest_datagram_arrives_whole():
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            largest = pattern(65_507)
            peer.sendto(largest, name_of(transport))
            assert await protocol.receives(1) == [largest]


@pytest.mark.parametrize("waiting", [True, False])
async def test_a_datagram_longer_than_the_buffer_is_reported_and_the_next_ones_are_received(waiting, monkeypatch):
    """It arrives while a receive waits; and among others, that are there before one is armed or come in a burst."""
    monkeypatch.setattr(DatagramTransport, "datagram_size", 16)
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            if waiting:
                await turns()
                peer.sendto(b"long" * 100, name_of(transport))
                await until(lambda: protocol.errors)
            for n in range(5):
                peer.sendto(b"short %d" % n, name_of(transport))
                peer.sendto(b"long" * 100, name_of(transport))
            await until(lambda: len(protocol.errors) == 5 + waiting)
            assert await protocol.receives(5) == [b"short %d" % n for n in range(5)]
            assert {error.winerror for error in protocol.errors} == {WsaError.MSGSIZE}
            assert not transport.is_closing()


async def test_a_burst_of_10_000_datagrams_loses_none():
    """In slices that the socket's buffer holds, each sent while the loop does nothing else."""
    slice_size, total = 200, 10_000
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            for first in range(0, total, slice_size):
                for n in range(first, first + slice_size):
                    peer.sendto(n.to_bytes(4), name_of(transport))
                await protocol.receives(first + slice_size)
            assert protocol.received == [n.to_bytes(4) for n in range(total)]


async def test_a_burst_gives_other_sockets_their_turn():
    """More datagrams than are taken in one go: a callback scheduled by the first runs before the last."""
    total = 3 * _datagram.BURST_MAX
    seen = []

    class Scheduling(Datagrams):
        def datagram_received(self, data, addr):
            if not self.received:
                here().call_soon(lambda: seen.append(len(self.received)))
            super().datagram_received(data, addr)

    with bare() as peer:
        async with endpoint(Scheduling) as (transport, protocol):
            for _ in range(total):
                peer.sendto(b"x", name_of(transport))
            await protocol.receives(total)
    assert seen[0] <= _datagram.BURST_MAX + 2


@pytest.mark.parametrize("times", [1, 5])
async def test_a_protocol_that_raises_in_datagram_received_is_reported_and_reception_goes_on(times):
    class Raising(Datagrams):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"bad":
                raise ZeroDivisionError(len(self.received))

    with bare() as peer:
        async with endpoint(Raising) as (transport, protocol):
            for _ in range(times):
                peer.sendto(b"bad", name_of(transport))
                peer.sendto(b"good", name_of(transport))
            assert await protocol.receives(2 * times) == [b"bad", b"good"] * times
            for n in range(times):
                report = here().expect_report(f"ZeroDivisionError({2 * n + 1})")
                assert report["transport"] is transport
                assert report["protocol"] is protocol


async def test_callbacks_run_in_the_context_that_made_the_endpoint():
    variable = contextvars.ContextVar("variable", default="wrong")
    seen = []

    class Seeing(Datagrams):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            seen.append(variable.get())

    variable.set("right")
    with bare() as peer:
        async with endpoint(Seeing) as (transport, protocol):
            variable.set("too late")
            for _ in range(3):
                peer.sendto(b"x", name_of(transport))
            await protocol.receives(3)
    assert seen == ["right"] * 3


# -- what the network says -------------------------------------------------------------------------------------


@not_under_wine("one ICMP answer wakes a receive at most (10.0), no further one does; on no loop", since=10)
async def test_a_port_where_nobody_listens_is_reported_and_reception_goes_on():
    """A real ICMP answer, again and again; then somebody listens there, and is heard."""
    address = dead_address()
    async with endpoint(remote_addr=address) as (transport, protocol):
        for n in range(3):
            while (
                len(protocol.errors) <= n
            ):  # An answer may be reported by the send after it, which it takes the place of.
                transport.sendto(b"anybody?")
                await asyncio.sleep(0.01)
        assert all(isinstance(error, ConnectionRefusedError | ConnectionResetError) for error in protocol.errors)
        assert not transport.is_closing()
        assert IoType.READ_FROM in {operation.io_type for operation in here().proactor.pending.values()}
        assert not here().reports
        if UNDER_WINE:
            # QUIRK(wine): no receive that waits on such a socket is ever woken again (8.0); a bare WSARecvFrom neither.
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(address)
            peer.sendto(b"me", name_of(transport))
            assert await protocol.receives(1) == [b"me"]


RECOVERABLE = [WsaError.CONNRESET, WsaError.NETRESET, WsaError.HOSTUNREACH, WsaError.NETUNREACH, WsaError.CONNREFUSED]


@pytest.mark.parametrize("code", RECOVERABLE, ids=lambda code: code.name)
async def test_what_the_network_says_of_an_earlier_datagram_is_told_and_reception_goes_on(code):
    """WSARecvFrom answers it instead of receiving: three times, in place of an arming."""
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            await turns()
            here().watched.fail("WSARecvFrom", code, times=3)
            peer.sendto(b"one", name_of(transport))
            await until(lambda: len(protocol.errors) == 3)
            assert {error.winerror for error in protocol.errors} == {code}
            peer.sendto(b"two", name_of(transport))
            assert await protocol.receives(2) == [b"one", b"two"]


async def test_a_kernel_without_memory_costs_no_datagram_and_nobody_is_told():
    """WSARecvFrom says WSAENOBUFS for a while: it is asked less and less often, and then again."""
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            here().watched.fail("WSARecvFrom", WsaError.NOBUFS, times=8)
            peer.sendto(b"one", name_of(transport))
            peer.sendto(b"two", name_of(transport))
            peer.sendto(b"three", name_of(transport))
            assert await protocol.receives(3) == [b"one", b"two", b"three"]
            assert protocol.errors == []


@pytest.mark.parametrize("code", [WsaError.CONNRESET, WsaError.FAULT], ids=lambda code: code.name)
async def test_an_error_that_comes_at_once_for_ever_is_waited_out_and_not_spun_on(code, monkeypatch):
    """While it lasts there are few calls; when it is over, reception goes on."""
    monkeypatch.setattr(_datagram, "_RETRY_DELAY_S", 0.02)
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            here().watched.fail("WSARecvFrom", code, times=1_000_000)
            peer.sendto(b"one", name_of(transport))
            await asyncio.sleep(0.3)
            assert 2 <= len(protocol.errors) <= _datagram._ERRORS_IN_A_ROW_MAX + 20
            del here().watched.faults["WSARecvFrom"]
            peer.sendto(b"two", name_of(transport))
            assert await protocol.receives(2) == [b"one", b"two"]


async def test_closing_while_an_error_is_waited_out_leaves_nothing():
    async with endpoint() as (transport, protocol):
        here().watched.fail("WSARecvFrom", WsaError.FAULT, times=10)
        transport.sendto(b"x", name_of(transport))
        await until(lambda: protocol.errors)
        transport.close()
        assert await protocol.gone() is None
    assert not here().outstanding()


async def test_a_socket_that_is_none_any_more_ends_the_endpoint():
    """WSARecvFrom says 10038: somebody closed the handle behind our back. connection_lost names it."""
    with bare() as peer:
        transport, protocol = await here().create_datagram_endpoint(Datagrams, local_addr=(LOCALHOST, 0))
        here().watched.fail("WSARecvFrom", WsaError.NOTSOCK)
        with contextlib.suppress(OSError):
            peer.sendto(b"x", name_of(transport))
        error = await protocol.gone()
        assert error.winerror == WsaError.NOTSOCK


async def test_a_protocol_that_raises_in_error_received_is_reported_and_reception_goes_on():
    class Raising(Datagrams):
        def error_received(self, exc):
            super().error_received(exc)
            raise ZeroDivisionError("in error_received")

    with bare() as peer:
        async with endpoint(Raising) as (transport, protocol):
            here().watched.fail("WSARecvFrom", WsaError.CONNRESET)
            peer.sendto(b"one", name_of(transport))
            await protocol.receives(1)
            here().expect_report("in error_received")


async def test_a_protocol_that_closes_in_error_received_loses_the_connection_once():
    class Closing(Datagrams):
        def error_received(self, exc):
            super().error_received(exc)
            self.transport.close()

    async with endpoint(Closing) as (transport, protocol):
        here().watched.fail("WSARecvFrom", WsaError.CONNRESET)
        transport.sendto(b"x", name_of(transport))
        await until(lambda: protocol.errors)
        assert await protocol.gone() is None


# -- sending ---------------------------------------------------------------------------------------------------


async def test_a_datagram_too_large_to_send_is_reported_and_sending_goes_on():
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            transport.sendto(bytes(70_000), peer.getsockname())
            assert [error.winerror for error in protocol.errors] == [WsaError.MSGSIZE]
            transport.sendto(b"fine", peer.getsockname())
            assert peer.recv(100) == b"fine"


async def test_what_is_no_buffer_is_a_type_error():
    async with endpoint() as (transport, _):
        with pytest.raises(TypeError):
            transport.sendto("text", name_of(transport))


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    "address", ["nonsense", ("host", "port"), (LOCALHOST, 1_000_000), (LOCALHOST, 1, 2, 3), (1, 2)]
)
async def test_an_address_that_is_none_raises_and_the_endpoint_goes_on(address, is_full):
    """Whether the socket is free or full: an address is bad by itself."""
    with bare() as peer:
        async with endpoint(sock=bare(kind=Reluctant if is_full else socket.socket)) as (transport, protocol):
            transport.sendto(b"before", peer.getsockname())
            assert bool(transport.get_write_buffer_size()) is is_full
            with pytest.raises((TypeError, OverflowError)):
                transport.sendto(b"x", address)
            transport.sendto(b"after", peer.getsockname())
            assert [await asyncio.to_thread(peer.recv, 100) for _ in range(2)] == [b"before", b"after"]
            assert not protocol.errors


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_host_name_is_an_address_whether_the_socket_is_free_or_full(is_full):
    with bare() as peer:
        async with endpoint(sock=bare(kind=Reluctant if is_full else socket.socket)) as (transport, protocol):
            for n in range(3):
                transport.sendto(b"%d" % n, ("localhost", peer.getsockname()[1]))
            assert [await asyncio.to_thread(peer.recv, 100) for _ in range(3)] == [b"0", b"1", b"2"]
            transport.sendto(b"first", peer.getsockname())
            transport.sendto(b"lost", ("no such host.invalid", 1))
            await until(lambda: protocol.errors)
            assert isinstance(protocol.errors[0], socket.gaierror)
            assert not transport.is_closing()


@pytest.mark.parametrize("is_full", [False, True])
async def test_broadcasting_without_leave_is_told_and_with_it_is_not(is_full):
    for allowed in (False, True):
        sock = bare(kind=Reluctant if is_full else socket.socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, allowed)
        async with endpoint(sock=sock) as (transport, protocol):
            transport.sendto(b"x", ("<broadcast>", 9))
            await until(lambda transport=transport: not transport.get_write_buffer_size())
            assert [type(error) for error in protocol.errors] == ([] if allowed else [PermissionError])
            assert not transport.is_closing()


async def test_empty_datagrams_pause_the_protocol_too():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, protocol):
            transport.set_write_buffer_limits(high=10 * HEADER_SIZE)
            for _ in range(11):
                transport.sendto(b"", peer.getsockname())
            assert protocol.events == ["made", "pause"]
            await until(lambda: "resume" in protocol.events)


async def test_many_that_wait_go_out_over_several_turns():
    """What else is due gets its turn between them, although the socket takes everything."""
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, _):
            sizes = []

            def look():
                sizes.append(transport.get_write_buffer_size())
                if sizes[-1]:
                    here().call_soon(look)

            for _ in range(4 * BURST_MAX):
                transport.sendto(b"", peer.getsockname())
            sock.refusing = False
            look()
            await until(lambda: not transport.get_write_buffer_size())
            steps = [before - after for before, after in zip(sizes, sizes[1:], strict=False)]
            assert max(steps) <= (BURST_MAX + 1) * HEADER_SIZE


async def test_without_memory_for_a_receive_the_next_datagram_comes_all_the_same():
    with bare() as peer:
        async with endpoint() as (transport, protocol):
            await until(lambda: transport._receive)
            submit = here().proactor.submit

            def no_memory(_operation):
                here().proactor.submit = submit
                raise MemoryError("provoked")

            here().proactor.submit = no_memory
            peer.sendto(b"one", name_of(transport))
            await protocol.receives(1)
            here().expect_report("provoked")
            peer.sendto(b"two", name_of(transport))
            await protocol.receives(2)


async def test_sending_without_an_address_from_an_unconnected_endpoint_is_an_error_and_not_fatal():
    async with endpoint() as (transport, protocol):
        transport.sendto(b"x")
        (error,) = protocol.errors
        assert error.winerror in (WsaError.NOTCONN, WsaError.INVAL)  # QUIRK(wine): the second.
        assert not transport.is_closing()


async def test_what_the_socket_does_not_take_at_once_goes_in_order():
    """Each datagram by an overlapped send; then, in the middle, the socket takes them again."""
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, _):
            for n in range(20):
                transport.sendto(b"%d" % n, peer.getsockname())
            assert transport.get_write_buffer_size() == sum(len(b"%d" % n) + HEADER_SIZE for n in range(20))
            await until(lambda: here().counts["WSASendTo"] > 5)
            sock.refusing = False
            assert [await asyncio.to_thread(peer.recv, 100) for _ in range(20)] == [b"%d" % n for n in range(20)]
            await until(lambda: not transport.get_write_buffer_size())


async def test_a_buffer_may_be_changed_as_soon_as_sendto_returns():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, _):
            buffer = bytearray(b"before")
            transport.sendto(buffer, peer.getsockname())
            transport.sendto(buffer, peer.getsockname())
            buffer[:] = b"after!"
            assert [await asyncio.to_thread(peer.recv, 100) for _ in range(2)] == [b"before"] * 2


async def test_queued_datagrams_pause_the_protocol_and_resume_it():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, protocol):
            transport.set_write_buffer_limits(high=10 * (10 + HEADER_SIZE), low=20)
            assert transport.get_write_buffer_limits() == (20, 180)
            for _ in range(10):
                transport.sendto(bytes(10), peer.getsockname())
            assert protocol.events == ["made"]
            transport.sendto(b"x", peer.getsockname())
            assert protocol.events == ["made", "pause"]
            await until(lambda: "resume" in protocol.events)
            assert transport.get_write_buffer_size() <= 20
            sizes = [len(await asyncio.to_thread(peer.recv, 100)) for _ in range(11)]
            assert sizes == [10] * 10 + [1]
            assert protocol.events == ["made", "pause", "resume"]


async def test_close_sends_what_waits_and_receives_nothing_more():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, protocol):
            for n in range(10):
                transport.sendto(b"%d" % n, peer.getsockname())
            transport.close()
            assert transport.is_closing()
            transport.sendto(b"ignored", peer.getsockname())
            peer.sendto(b"too late", sock.getsockname())
            assert await protocol.gone() is None
            assert [peer.recv(100) for _ in range(10)] == [b"%d" % n for n in range(10)]
            assert not protocol.received


async def test_abort_forgets_what_waits():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        peer.settimeout(0)
        async with endpoint(sock=sock) as (transport, protocol):
            for n in range(10):
                transport.sendto(b"%d" % n, peer.getsockname())
            transport.close()
            transport.abort()
            assert await protocol.gone() is None
            assert transport.get_write_buffer_size() == 0
            with pytest.raises(BlockingIOError):
                for _ in range(3):  # The one in flight may have gone out.
                    peer.recv(100)


async def test_an_overlapped_send_that_fails_is_told_and_the_next_ones_go_out():
    def refuse_second(function, args):
        if here().counts["WSASendTo"] == 2:
            return failed("WSASendTo", WsaError.HOSTUNREACH)
        return function(*args)

    sock = bare(kind=Reluctant)
    with bare() as peer:
        here().watched.faults["WSASendTo"] = refuse_second
        async with endpoint(sock=sock) as (transport, protocol):
            for n in range(4):
                transport.sendto(b"%d" % n, peer.getsockname())
            transport.close()
            assert await protocol.gone() is None
            assert [error.winerror for error in protocol.errors] == [WsaError.HOSTUNREACH]
            assert [peer.recv(100) for _ in range(3)] == [b"0", b"2", b"3"]


@pytest.mark.parametrize("reaction", ["raises", "sends", "aborts"])
async def test_a_send_from_the_queue_that_fails_at_once_strands_nothing_whatever_the_protocol_does(reaction):
    """One overlapped send, then the socket takes the rest at once, but refuses the second: it is too large."""

    class Reacting(Datagrams):
        def error_received(self, exc):
            super().error_received(exc)
            if reaction == "raises":
                raise ZeroDivisionError("in error_received")
            if reaction == "sends":
                self.transport.sendto(b"from error_received", peer.getsockname())
            if reaction == "aborts":
                self.transport.abort()

    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(Reacting, sock=sock) as (transport, protocol):
            datagrams = [b"first", bytes(70_000), b"third", b"fourth"]
            for datagram in datagrams:
                transport.sendto(datagram, peer.getsockname())
            sock.refusing = False
            await until(lambda: protocol.errors)
            transport.close()
            assert await protocol.gone() is None
            expected = {
                "raises": [b"first", b"third", b"fourth"],
                "sends": [b"first", b"third", b"fourth", b"from error_received"],
                "aborts": [b"first"],
            }[reaction]
            got = [peer.recv(100) for _ in expected]
            if reaction == "sends":
                expected.sort()
                got.sort()
            assert got == expected
            peer.settimeout(0)
            with pytest.raises(BlockingIOError):
                peer.recv(100)
            if reaction == "raises":
                here().expect_report("in error_received")


# -- the end ---------------------------------------------------------------------------------------------------


async def test_closing_before_the_first_turn_makes_and_then_loses_the_connection():
    protocol = Datagrams()
    sock = bare()
    sock.setblocking(False)
    transport = here()._make_datagram_transport(sock, protocol)
    transport.close()
    assert await protocol.gone() is None
    assert protocol.events == ["made", "lost"]
    assert sock.fileno() == -1


async def test_close_inside_datagram_received_delivers_nothing_more():
    class Closing(Datagrams):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    with bare() as peer:
        async with endpoint(Closing) as (transport, protocol):
            for n in range(5):
                peer.sendto(b"%d" % n, name_of(transport))
            assert await protocol.gone() is None
            await turns()
            assert protocol.received == [b"0"]


async def test_closing_twice_is_once_and_repr_tells_the_state():
    transport, protocol = await here().create_datagram_endpoint(Datagrams, local_addr=(LOCALHOST, 0))
    assert "fd=" in repr(transport)
    transport.close()
    transport.close()
    transport.abort()
    assert "closing" in repr(transport)
    await protocol.gone()
    await turns()
    assert "closed" in repr(transport)
    assert protocol.events == ["made", "lost"]
    transport.close()


async def test_repr_tells_where_the_receive_is():
    class Looking(Datagrams):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.seen = [repr(transport)]

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.seen.append(repr(self.transport))

    with bare() as peer:
        async with endpoint(Looking) as (transport, protocol):
            assert "open" in protocol.seen[0]
            assert "receive=new" in protocol.seen[0]
            await until(lambda: "receive=out" in repr(transport))
            for _ in range(3):
                peer.sendto(b"x", name_of(transport))
            await protocol.receives(3)
            # The first one's packet was waited for; by then the others were there.
            assert "receive=out" in protocol.seen[1]
            assert "receive=burst" in protocol.seen[2]
            here().watched.fail("WSARecvFrom", WsaError.FAULT)
            peer.sendto(b"x", name_of(transport))
            await until(lambda: "receive=waiting" in repr(transport))
            await until(lambda: "receive=out" in repr(transport))
            transport.close()
            assert "closing" in repr(transport)
            assert "receive=stopped send=direct" in repr(transport)
    assert repr(transport) == "<DatagramTransport closed>"


async def test_repr_tells_where_the_datagrams_are():
    sock = bare(kind=Reluctant)
    with bare() as peer:
        async with endpoint(sock=sock) as (transport, protocol):
            assert "send=direct bufsize=0" in repr(transport)
            for _ in range(2 * BURST_MAX):
                transport.sendto(b"", peer.getsockname())
            assert f"send=flushing bufsize={transport.get_write_buffer_size()}" in repr(transport)
            sock.refusing = False
            async with asyncio.timeout(PATIENCE_S):
                while "send=draining" not in repr(transport):
                    await asyncio.sleep(0)  # It is for a turn or two.
            # One that is added meanwhile waits behind the others.
            transport.sendto(b"last", peer.getsockname())
            assert "send=flushing" in repr(transport)
            await until(lambda: "send=direct" in repr(transport))
            received = [await asyncio.to_thread(peer.recv, 100) for _ in range(2 * BURST_MAX + 1)]
            assert received == [b""] * 2 * BURST_MAX + [b"last"]
            sock.refusing = True
            transport.sendto(b"x", peer.getsockname())
            transport.close()
            assert "receive=stopped send=flushing" in repr(transport)
            transport.abort()
            assert "send=lost bufsize=0" in repr(transport)


async def test_an_exception_in_connection_lost_is_reported_and_everything_is_given_back():
    class Raising(Datagrams):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            raise ZeroDivisionError("in connection_lost")

    async with endpoint(Raising) as (transport, protocol):
        transport.close()
        await protocol.gone()
        await turns()
        here().expect_report("in connection_lost")
        assert not here().outstanding()


# -- bare sockets ----------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """Two non-blocking sockets that can send to each other."""
    with bare() as one, bare() as other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@pytest.mark.parametrize("size", [0, 1, 65_507])
async def test_bare_sockets_send_and_receive_datagrams(pair, size):
    one, other = pair
    data = pattern(size) if size else b""
    receiving = asyncio.ensure_future(here().sock_recvfrom(other, 70_000))
    await turns()
    assert await here().sock_sendto(one, data, other.getsockname()) == size
    assert await receiving == (data, one.getsockname())


async def test_a_datagram_is_received_into_a_buffer_and_no_more_than_asked_for(pair):
    """The stdlib's loop takes the buffer's size for the datagram's."""
    one, other = pair
    buffer = bytearray(b"." * 100)
    for nbytes in (0, 100, 10):
        one.sendto(b"0123456789", other.getsockname())
        assert await here().sock_recvfrom_into(other, buffer, nbytes) == (10, one.getsockname())
        assert buffer == b"0123456789" + b"." * 90
        buffer[:] = b"." * 100  # It may be written, and resized, again.
    for nbytes in (-1, 101):
        with pytest.raises(ValueError, match="the buffer holds 100"):
            await here().sock_recvfrom_into(other, buffer, nbytes)


async def test_a_datagram_longer_than_a_bare_receive_asked_for_is_an_error_and_the_next_one_comes(pair):
    one, other = pair
    for waiting in (True, False):
        receiving = asyncio.ensure_future(here().sock_recvfrom(other, 4))
        if waiting:
            await turns()
        one.sendto(b"too long", other.getsockname())
        with pytest.raises(OSError) as caught:
            await receiving
        assert caught.value.winerror == WsaError.MSGSIZE
        one.sendto(b"next", other.getsockname())
        assert await here().sock_recvfrom(other, 4) == (b"next", one.getsockname())


async def test_a_bare_receive_cancelled_after_its_datagram_came_loses_none(pair):
    """Cancelled when the kernel has finished already: the datagram goes to the next receive."""
    one, other = pair
    for into in (False, True):
        receiving = asyncio.ensure_future(here().sock_recvfrom(other, 100))
        await turns()
        one.sendto(b"kept", other.getsockname())
        operation = next(op for op in here().proactor.pending.values() if op.endpoint.handle == other.fileno())
        wait_until(lambda: operation.Internal != Status.PENDING)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        if into:
            buffer = bytearray(100)
            assert await here().sock_recvfrom_into(other, buffer) == (4, one.getsockname())
            assert buffer[:4] == b"kept"
        else:
            assert await here().sock_recvfrom(other, 100) == (b"kept", one.getsockname())


async def test_a_cancelled_bare_receive_gives_the_callers_buffer_back(pair):
    _, other = pair
    buffer = bytearray(100)
    receiving = asyncio.ensure_future(here().sock_recvfrom_into(other, buffer))
    await turns()
    with pytest.raises(BufferError):
        buffer.clear()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    del receiving
    gc.collect()
    buffer.clear()


async def test_a_bare_send_that_must_wait_goes_by_an_overlapped_send(pair):
    _, other = pair
    with bare(kind=Reluctant) as sock:
        sock.setblocking(False)
        assert await here().sock_sendto(sock, b"waited", other.getsockname()) == 6
        assert here().counts["WSASendTo"] == 1
        assert await here().sock_recvfrom(other, 100) == (b"waited", sock.getsockname())


async def test_a_blocking_socket_cannot_hold_the_loop_up_by_a_bare_send(pair):
    """Its own call would wait for room; the overlapped one returns at once."""
    one, other = pair
    one.setblocking(True)
    assert await here()._proactor.sendto(one, b"overlapped", 0, other.getsockname()) == 10
    assert here().counts["WSASendTo"] == 1
    assert await here().sock_recvfrom(other, 100) == (b"overlapped", one.getsockname())


async def test_bare_datagram_sockets_connect_and_hear_their_peer(pair):
    one, other = pair
    await here().sock_connect(one, other.getsockname())
    await here().sock_sendall(one, b"to my peer")
    assert await here().sock_recvfrom(other, 100) == (b"to my peer", one.getsockname())
    await here().sock_sendto(other, b"back", one.getsockname())
    assert await here().sock_recv(one, 100) == b"back"
