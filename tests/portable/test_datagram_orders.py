"""The datagram transport on the real loop over the fake kernel, through seeded schedules.

What must hold in each: a datagram that was accepted leaves once and in its place, unless its sender was told of an
error or aborted; one that arrived is received once and in its place, unless its receiver was closed or told that it
was too long; nothing is received after close(); pause_writing and resume_writing alternate; connection_lost comes
exactly once and last; whatever the network says, and whatever a callback does, the next datagram is received.
"""

import asyncio
import contextlib
import itertools

import pytest
from fakes.datagrams import PAYLOAD_MAX
from fakes.kernel import Chances
from fakes.stage import BaseStage, Interrupted

from iocp_loop._transports import _datagram
from iocp_loop._win32.constants import Status, WsaError

NOBODY = ("127.0.0.1", 9)  # Where ICMP says that no port is open.
# What a receive may bring beside datagrams: the network's fault, or a driver's.
ICMP = (Status.PORT_UNREACHABLE, Status.HOPLIMIT_EXCEEDED, Status.HOST_UNREACHABLE, Status.NETWORK_UNREACHABLE)
TROUBLE = (*ICMP, Status.INSUFFICIENT_RESOURCES, Status.INVALID_PARAMETER)


class Party(asyncio.DatagramProtocol):
    """Writes down what happens to it, and checks the order. `meddle` is called in every callback."""

    def __init__(self, stage, sock):
        self.stage = stage
        self.sock = sock
        self.name = sock.getsockname()
        self.transport = None
        self.lost = stage.loop.create_future()
        self.accepted = []  # (address, data) that the transport was given
        self.received = []  # (sender, data)
        self.told = []
        self.writing_paused = False
        self.aborted = False

    def connection_made(self, transport):
        assert self.transport is None, "connection_made twice"
        self.transport = transport
        self.stage.meddle(self)

    def datagram_received(self, data, sender):
        assert not self.transport.is_closing(), "a datagram after close()"
        assert not self.lost.done(), "a datagram after connection_lost"
        assert type(data) is bytes
        self.received.append((sender, data))
        self.stage.meddle(self)

    def error_received(self, exc):
        assert not self.lost.done(), "an error after connection_lost"
        self.told.append(exc)
        self.stage.meddle(self)

    def pause_writing(self):
        assert not self.writing_paused
        assert self.transport.get_write_buffer_size() > self.transport.get_write_buffer_limits()[1]
        self.writing_paused = True
        self.stage.meddle(self)

    def resume_writing(self):
        assert self.writing_paused
        assert self.transport.get_write_buffer_size() <= self.transport.get_write_buffer_limits()[0]
        self.writing_paused = False
        self.stage.meddle(self)

    def connection_lost(self, exc):
        self.lost.set_result(exc)  # Raises if it comes twice.
        self.stage.meddle(self)

    # What the scenarios do with it.

    @property
    def live(self):
        return self.transport is not None and not self.transport.is_closing() and not self.lost.done()

    def send(self, data, address):
        if self.live:
            # Before the call: error_received may send, too, and comes from inside it.
            self.accepted.append((self.sock.peer or address, bytes(data)))
            self.transport.sendto(data, None if self.sock.peer else address)

    def count_told(self, code, *calls):
        """How many errors with that code came from one of these calls."""
        told = [exc for exc in self.told if exc.winerror == code]
        return len([exc for exc in told if exc.args[1].startswith(calls)])


class Stage(BaseStage):
    """Three parties, the last of them connected to the first."""

    def __init__(self, seed, chances=None, *, shared=False):
        super().__init__(seed, chances)
        self.budget = 40  # how often protocols may act by themselves
        self.serial = 0
        self.raised = []
        self.meddle = lambda party: None
        self.parties = [Party(self, self.kernel.datagram_socket()) for _ in range(3)]
        connected = self.parties[2].sock
        connected.connect(self.parties[0].name)
        for party in self.parties:
            if shared and self.random.random() < 0.8:
                self.kernel.give_away(party.sock)
            self.loop.datagram_transport(party.sock, party, party.sock.peer)

    def message(self):
        self.serial += 1
        size = self.random.choice((0, 5, 20, 100, 299, 300, 301, 800, PAYLOAD_MAX, PAYLOAD_MAX + 1))
        data = (f"{self.serial}.".encode() * size)[:size]
        return self.random.choice((bytes, bytearray, memoryview))(data)

    def somebody(self):
        return self.random.choice([*(party.name for party in self.parties), NOBODY])

    def act(self):
        """One random thing that endangers nobody."""
        random, party = self.random, self.random.choice(self.parties)
        match random.randrange(8):
            case 0 if party.live:
                party.transport.set_write_buffer_limits(random.choice((0, 10, 1000)))
            case 1 if not party.sock.closed:
                party.sock.fail(random.choice(TROUBLE))
            case 2 if party.live:
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    # Of a connected endpoint: it is for another address.
                    party.transport.sendto(b"x", random.choice(((), ("127.0.0.1", 65536), "nowhere", 5)))
            case _:
                for _ in range(random.choice((1, 1, 2, 5))):
                    party.send(self.message(), self.somebody())

    def meddle_mildly(self, party):
        if self.budget and self.random.random() < 0.3:
            self.budget -= 1
            self.act()

    def meddle_wildly(self, party):
        """Close, abort, raise, leave the endpoint to another protocol: whatever a program can do in a callback."""
        if not self.budget or self.random.random() < 0.6:
            return
        self.budget -= 1
        match self.random.randrange(14):
            case 0 if party.live and self.random.random() < 0.3:
                party.transport.close()
            case 1 if party.live and self.random.random() < 0.3:
                party.aborted = True
                party.transport.abort()
            case 2 | 3:
                self.raised.append(
                    self.random.choice((MemoryError, RuntimeError, OSError, BlockingIOError))("from a callback")
                )
                raise self.raised[-1]
            case 4:
                raise self.random.choice((Interrupted, SystemExit))
            case 5 if not party.lost.done():
                successor = object.__new__(Party)
                successor.__dict__ = party.__dict__
                party.transport.set_protocol(successor)
            case _:
                self.act()

    async def act_for_a_while(self, steps=25):
        for _ in range(steps):
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # Out of pause_writing(), through sendto().
                self.act()
            if self.random.random() < 0.5:
                await asyncio.sleep(0)

    async def finish(self):
        """Everybody who can still receive gets all that is on its way, and is closed."""
        self.budget = 0
        self.kernel.chances.submit_failure = self.kernel.chances.memory_error = 0
        await self.until_quiet()
        for party in self.parties:
            assert not self.waits(party), f"{party.transport!r}: {party.sock.inbound} wait, and are not received"
            party.transport.close()
            assert await party.lost is None
            assert not party.writing_paused or party.aborted

    async def until_quiet(self):
        quiet = 0
        for _ in range(1000):
            # Several times in a row: the last packet may still be in the port.
            quiet = 0 if any(map(self.waits, self.parties)) else quiet + 1
            if quiet == 5:
                break
            await asyncio.sleep(0.01)

    def waits(self, party):
        if party.transport is None:
            return True
        return (party.live and party.sock.inbound) or party.transport.get_write_buffer_size()

    def check_books(self):
        """Every datagram accounted for."""
        for party in self.parties:
            assert is_in_order(party.sock.sent, party.accepted), "sent twice, or out of order, or made up"
            missing = len(party.accepted) - len(party.sock.sent)
            refused = party.count_told(WsaError.NOBUFS, "WRITE_TO")
            refused += party.count_told(WsaError.MSGSIZE, "WRITE_TO", "sendto")
            assert missing == refused or (party.aborted and missing > refused)
            for other in self.parties:
                arrived = [data for address, data in other.sock.sent if address == party.name]
                arrived = [data for data in arrived if data not in party.sock.truncated]
                received = [data for sender, data in party.received if sender == other.name]
                assert received == arrived[: len(received)]
                assert len(received) == len(arrived) or party.closed_early
            told = party.count_told(WsaError.MSGSIZE, "READ_FROM", "recvfrom")
            assert told == len(party.sock.truncated) or (party.closed_early and told < len(party.sock.truncated))


def is_in_order(some, all_of_them):
    rest = iter(all_of_them)
    return all(any(one == other for other in rest) for one in some)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    """So that datagrams longer than the buffer are no rare thing, and that a queue is longer than a turn's share."""
    monkeypatch.setattr(_datagram.DatagramTransport, "datagram_size", 300)
    monkeypatch.setattr(_datagram, "BURST_MAX", 3)


def play(seed, *, wildly, chances=None, shared=False):
    stage = Stage(seed, chances or Chances(inline=0.7, would_block=0.5), shared=shared)
    stage.meddle = stage.meddle_wildly if wildly else stage.meddle_mildly

    async def scenario():
        await stage.act_for_a_while()
        for party in stage.parties:
            party.closed_early = party.transport is not None and not party.live
        await stage.finish()

    stage.run_through_interrupts(scenario())
    stage.check_books()
    return stage


def test_every_datagram_is_received_in_its_place_whatever_the_network_says(schedules):
    """Empty ones, long ones, ICMP's answers, errors of a driver; sent at once, queued, taken in bursts."""

    def run(seed):
        stage = play(seed, wildly=False)
        assert stage.loop.reports == []

    schedules(run, 120)


def test_whatever_a_callback_does_or_raises_silences_no_endpoint(schedules):
    """Every callback sends, closes, aborts, raises or leaves its endpoint to another protocol."""

    def run(seed):
        stage = play(seed, wildly=True)
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    schedules(run, 250)


@pytest.mark.parametrize("wildly", [False, True])
def test_the_same_with_sockets_that_belong_to_another_port(schedules, wildly):
    """Served by readiness; some of them, among others that are not."""

    def run(seed):
        stage = play(seed, wildly=wildly, shared=True)
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    schedules(run, 80)


def test_a_kernel_without_memory_costs_no_datagram(schedules):
    """WSARecvFrom, WSASendTo or the socket's own call answer WSAENOBUFS now and then: it is tried again, and nobody
    is told."""

    def run(seed):
        chances = Chances(inline=0.7, would_block=0.3, submit_failure=0.2, late_failure=0.2, no_buffers=0.2)
        stage = play(seed, wildly=seed % 2 == 0, chances=chances)
        assert not any(party.count_told(WsaError.NOBUFS, "WRITE_TO", "sendto", "READ_FROM") for party in stage.parties)

    schedules(run, 120)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fault", ["memory_error", "interrupt"])
def test_exceptions_out_of_the_kernel_silence_no_endpoint(schedules, fault, shared):
    """Any call may raise MemoryError, and so may each piece of memory that is asked for; or KeyboardInterrupt, and then
    the loop is run again. Whoever cannot be helped ends.
    """

    def run(seed):
        stage = Stage(seed, Chances(inline=0.7, would_block=0.5), shared=shared)

        async def scenario():
            setattr(stage.kernel.chances, fault, 0.05)
            for _ in range(25):
                with contextlib.suppress(MemoryError, Interrupted):
                    stage.act()
                await asyncio.sleep(0)
            setattr(stage.kernel.chances, fault, 0)
            await end_all(stage)

        stage.run_through_interrupts(scenario())
        for party in stage.parties:
            assert is_in_order(party.sock.sent, party.accepted)
            for other in stage.parties:
                arrived = [data for address, data in other.sock.sent if address == party.name]
                assert is_in_order([data for sender, data in party.received if sender == other.name], arrived)

    async def end_all(stage):
        await stage.until_quiet()
        for party in stage.parties:
            assert not stage.waits(party), f"{party.transport!r} waits for ever"
            party.transport.close()
            exc = await party.lost
            assert exc is None or (isinstance(exc, MemoryError) and fault == "memory_error")

    schedules(run, 60)


@pytest.mark.parametrize(
    ("status", "waits"),
    [(Status.CONNECTION_RESET, False), (Status.PORT_UNREACHABLE, False), (Status.ACCESS_VIOLATION, True)],
)
def test_an_answer_of_icmp_costs_reception_no_time_and_trouble_of_its_own_a_while(status, waits):
    """The one is about a datagram that was sent, the other about the socket, and asking at once would be no use."""
    stage = Stage(0, Chances(inline=0, idle=0, late_success=0))
    receiver, sender = stage.parties[:2]
    arrived = stage.loop.create_future()
    stage.meddle = lambda party: arrived.set_result(None) if party.received else None

    async def scenario():
        await asyncio.sleep(0)
        receiver.sock.fail(status)
        stage.kernel.settle_all()
        sender.send(b"behind it", receiver.name)
        await arrived
        assert len(receiver.told) == 1
        assert (stage.kernel.now_ms > 0) is waits
        for party in stage.parties:
            party.transport.close()
            await party.lost

    stage.run(scenario())


def test_of_many_datagrams_that_wait_a_bounded_number_goes_out_in_a_turn():
    """Others run between, however much the socket takes."""
    stage = Stage(0, Chances(would_block=1, inline=0, idle=0))
    sender, receiver = stage.parties[:2]

    async def scenario():
        await asyncio.sleep(0)
        for number in range(5 * _datagram.BURST_MAX):
            sender.transport.sendto(str(number).encode(), receiver.name)
        stage.kernel.chances.would_block = 0
        seen = [0]
        while sender.transport.get_write_buffer_size():
            await asyncio.sleep(0)
            seen.append(len(sender.sock.sent))
        assert max(after - before for before, after in itertools.pairwise(seen)) <= _datagram.BURST_MAX + 1
        assert seen[-1] == 5 * _datagram.BURST_MAX
        for party in stage.parties:
            party.transport.close()
            await party.lost

    stage.run(scenario())
