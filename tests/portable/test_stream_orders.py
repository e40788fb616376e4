"""The stream transport on the real loop over the fake kernel, through thousands of schedules.

What must hold in each: the bytes received are the bytes written, in order; nothing is delivered while reading is
paused; pause_writing and resume_writing alternate; connection_lost comes exactly once and last; the exception handler
is told of the protocol's own exceptions and of nothing else; at the end nothing is pending and no handle is open.
"""

import asyncio
import contextlib
import gc
import socket
import weakref

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.loop import FakeLoop

from iocp_loop._operation import GATHER_MAX
from iocp_loop._transports import _reader, _writer


class Recorder(asyncio.Protocol):
    """Writes down what happens to it, and checks the order.

    `meddle` is called in every callback, as a user's protocol would act there.
    """

    def __init__(self, loop):
        self.transport = None
        self.received = bytearray()
        self.kept = []  # what came, piece by piece, not copied
        self.written = bytearray()
        self.eof = loop.create_future()
        self.lost = loop.create_future()
        self.writing_paused = False
        self.ended = False  # write_eof() was called
        self.meddle = lambda: None

    def connection_made(self, transport):
        assert self.transport is None, "connection_made twice"
        self.transport = transport
        self.meddle()

    def data_received(self, data):
        self.note_received(data)
        self.meddle()

    def note_received(self, data):
        assert self.transport is not None, "data before connection_made"
        assert self.transport.is_reading(), "data while reading is paused, or after close()"
        assert not self.eof.done(), "data after the end of the stream"
        assert not self.lost.done(), "data after connection_lost"
        assert data
        self.received += data
        self.kept.append(data)

    def eof_received(self):
        assert not self.lost.done()
        self.eof.set_result(None)  # Raises if it comes twice.
        self.meddle()
        return True

    def pause_writing(self):
        assert not self.writing_paused
        assert self.transport.get_write_buffer_size() > self.transport.get_write_buffer_limits()[1]
        self.writing_paused = True
        self.meddle()

    def resume_writing(self):
        assert self.writing_paused
        assert self.transport.get_write_buffer_size() <= self.transport.get_write_buffer_limits()[0]
        self.writing_paused = False
        self.meddle()

    def connection_lost(self, exc):
        self.lost.set_result(exc)  # Raises if it comes twice.
        self.meddle()

    # What the scenarios do with it.

    def write(self, data):
        if self.may_write():
            self.written += data  # Before the call: pause_writing may write, too, and comes from inside it.
            self.transport.write(data)

    def may_write(self):
        return self.transport is not None and not self.transport.is_closing() and not self.ended

    def write_eof(self):
        self.ended = True
        self.transport.write_eof()


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same, receiving into a buffer of its own that changes its size all the time."""

    def __init__(self, loop, random):
        super().__init__(loop)
        self.random = random
        self.buffer = bytearray()

    def get_buffer(self, sizehint):
        self.buffer = bytearray(self.random.choice((1, 7, 100, 5000)))
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        assert 0 < nbytes <= len(self.buffer)
        # One packet may fill several buffers, so reading may have been paused meanwhile.
        self.received += self.buffer[:nbytes]
        self.meddle()


class Stage:
    """One seed: a kernel, a loop, and connections with a Recorder at each end."""

    def __init__(self, seed, chances=None):
        self.kernel = FakeKernel(seed, chances)
        self.random = self.kernel.random
        self.loop = FakeLoop(self.kernel)
        self.ends = []
        self.budget = 60  # how often protocols may act by themselves
        self.serial = 0  # of messages

    def connection(self, *, buffered=False):
        """Two ends, each a transport with a Recorder."""
        return [self.end(sock, buffered=buffered) for sock in self.kernel.socketpair()]

    def end(self, sock, *, buffered=False, skip_port=None):
        skip_port = self.random.random() < 0.7 if skip_port is None else skip_port
        end = BufferedRecorder(self.loop, self.random) if buffered else Recorder(self.loop)
        self.loop.transport(sock, end, skip_port=skip_port)
        end.sock = sock
        self.ends.append(end)
        return end

    def run(self, scenario):
        """Run it, close the loop, and look at what is left."""
        try:
            self.loop.run_until_complete(scenario)
        except BaseException:
            self.loop.take_apart()
            raise
        self.loop.close()
        self.kernel.settle_all()  # A raw peer reads what is left for it.
        proactor = self.loop.proactor
        assert (proactor.pending, proactor.endpoints) == ({}, {})
        self.kernel.check()
        self.loop.arena.check()
        assert self.kernel.open_sockets == []

    def run_through_interrupts(self, scenario):
        """`run`, gone on with after each KeyboardInterrupt and SystemExit, as an interactive session would."""
        task = self.loop.create_task(scenario)
        while not task.done():
            try:
                self.loop.run_until_complete(task)
            except (KeyboardInterrupt, SystemExit):
                continue
            except BaseException:
                break
        self.run(task)

    def act(self):
        """One random thing, on a random connection."""
        random = self.random
        end = random.choice(self.ends)
        transport = end.transport
        if transport is None or end.lost.done():
            return
        match random.randrange(9):
            case 0 | 1:
                end.write(self.message())
            case 2:
                chunks = [self.message() for _ in range(random.randrange(4))]
                if end.may_write():
                    end.written += b"".join(chunks)
                    transport.writelines(chunks)
            case 3:
                message = bytearray(self.message())
                end.write(message)
                message[:] = b"!" * len(message)  # It is the caller's again.
            case 4:
                transport.pause_reading()
            case 5:
                transport.resume_reading()
            case 6:
                # Twice in one turn: nothing is delivered, and nothing is asked for twice.
                transport.pause_reading()
                transport.resume_reading()
            case 7:
                transport.set_write_buffer_limits(random.choice((0, 10, 1000)))
            case 8:
                self.loop.idle_rounds.go()

    def meddle(self):
        if self.budget and self.random.random() < 0.3:
            self.budget -= 1
            self.act()

    def message(self):
        self.serial += 1
        # Long ones only where they travel in long pieces, so that a schedule stays cheap.
        narrowest = min(end.sock.capacity for end in self.ends)
        size = self.random.choice((1, 10, 10, 10, min(300, 40 * narrowest), min(5000, 20 * narrowest)))
        return (f"{self.serial}.".encode() * size)[:size]

    async def act_for_a_while(self, steps=25):
        for _ in range(steps):
            self.act()
            if self.random.random() < 0.5:
                await asyncio.sleep(0)


def play_in_order(seed, chances=None):
    """Both ends of two connections write, pause and resume at random, also in callbacks; then all is ended in order."""
    stage = Stage(seed, chances)
    for buffered in (False, seed % 4 == 0):
        for end in stage.connection(buffered=buffered):
            end.meddle = stage.meddle

    async def orderly():
        await stage.act_for_a_while()
        await finish_in_order(stage)

    stage.run(orderly())
    assert stage.loop.reports == []


def test_every_byte_written_is_received_in_order(schedules):
    schedules(play_in_order, 700)


def test_the_same_with_buffers_and_limits_that_every_message_reaches(schedules, monkeypatch):
    """Receives grow to the largest buffer and fill it; what is gathered in a turn becomes too much in the turn."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)
    monkeypatch.setattr(_writer, "JOIN_MAX", 50)
    schedules(lambda seed: play_in_order(seed, Chances(would_block=0.2)), 500)


async def finish_in_order(stage):
    stage.budget = 0
    for end in stage.ends:
        await wait_until_connected(end)
        end.transport.resume_reading()
        end.write_eof()
    for end in stage.ends:
        await end.eof
    for end, other in pairs(stage.ends):
        assert end.received == other.written
        assert not end.kept or b"".join(end.kept) == end.received  # Nothing was received into what the protocol keeps.
        assert not end.writing_paused
        assert end.transport.get_write_buffer_size() == 0
        end.transport.close()
        assert await end.lost is None
        assert end.received == other.written


async def wait_until_connected(end):
    while end.transport is None:
        await asyncio.sleep(0)


def pairs(ends):
    for left, right in zip(ends[::2], ends[1::2], strict=True):
        yield left, right
        yield right, left


def test_close_sends_what_was_written_before(schedules):
    """Writes of all sizes and then close() at once; the peer reads slowly and must get every byte and then the end."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.5))
        sock, peer = stage.kernel.socketpair()
        end = stage.end(sock)
        received = bytearray()
        stage.kernel.act(slow_reader(peer, received, stage.random))
        stage.run(write_and_close(stage, end))
        assert received == end.written
        assert stage.loop.reports == []

    async def write_and_close(stage, end):
        await wait_until_connected(end)
        for _ in range(stage.random.randrange(6)):
            end.write(stage.message())
            if stage.random.random() < 0.3:
                await asyncio.sleep(0)
        if stage.random.random() < 0.3:
            end.write_eof()
        end.transport.close()
        end.transport.close()
        assert end.transport.is_closing()
        assert await end.lost is None

    schedules(run, 700)


def slow_reader(sock, received, random):
    """Receives until the end of the stream, in pieces, then closes."""
    while True:
        try:
            chunk = sock.recv(random.choice((1, 100, 10_000)))
        except BlockingIOError:
            yield False
            continue
        received += chunk
        if not chunk:
            break
        yield True
    sock.close()


def test_an_overlapped_send_that_takes_less_goes_on_from_there(schedules):
    """MSDN says all or an error, for a stream. If it is ever otherwise, no byte is lost and none sent twice."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.5, short_send=0.5))
        sock, peer = stage.kernel.socketpair()
        end = stage.end(sock)
        received = bytearray()
        stage.kernel.act(slow_reader(peer, received, stage.random))
        stage.run(write_and_close(stage, end))
        assert received == end.written

    async def write_and_close(stage, end):
        await wait_until_connected(end)
        for _ in range(6):
            end.write(stage.message())
        end.transport.close()
        assert await end.lost is None

    schedules(run, 100)


def test_half_close_lets_the_other_direction_go_on(schedules):
    """A client writes a request and its end of file; the server answers after that, in full."""

    def run(seed):
        stage = Stage(seed)
        client, server = stage.connection()
        stage.run(request_and_answer(stage, client, server))
        assert stage.loop.reports == []

    async def request_and_answer(stage, client, server):
        await wait_until_connected(client)
        client.write(stage.message())
        client.write_eof()
        client.write_eof()
        with pytest.raises(RuntimeError, match=r"write_eof\(\) already called"):
            client.transport.write(b"more")
        await server.eof
        assert server.received == client.written
        for _ in range(4):
            server.write(stage.message())
            await asyncio.sleep(0)
        server.transport.close()
        await client.eof
        assert client.received == server.written
        client.transport.close()
        assert [await client.lost, await server.lost] == [None, None]

    schedules(run, 500)


def test_abort_and_reset_at_any_moment_end_the_connection_once(schedules):
    """One end aborts, or its peer's machine resets, in the middle of writes, pauses and flushes."""

    def run(seed):
        stage = Stage(seed)
        for _ in range(2):
            for end in stage.connection():
                end.meddle = stage.meddle
        stage.run(violent(stage))
        assert stage.loop.reports == []

    async def violent(stage):
        await stage.act_for_a_while(stage.random.randrange(25))
        victims = []
        for left, right in zip(stage.ends[::2], stage.ends[1::2], strict=True):
            victim = stage.random.choice((left, right))
            await wait_until_connected(victim)
            if stage.random.random() < 0.5:
                victim.transport.abort()
                victims.append(victim)
            else:
                victim.sock.reset_arrives()
                left.sock.reset_arrives()
                right.sock.reset_arrives()
            await stage.act_for_a_while(3)
        stage.budget = 0
        for end, other in pairs(stage.ends):
            await wait_until_connected(end)
            end.transport.resume_reading()
            # Over by itself, or by our close; in either case once.
            await asyncio.wait([end.eof, end.lost], return_when=asyncio.FIRST_COMPLETED)
            end.transport.close()
            exc = await end.lost
            assert exc is None or isinstance(exc, ConnectionResetError | ConnectionAbortedError)
            assert other.written.startswith(end.received)
            if end in victims:
                assert exc is None
            end.transport.abort()
            end.transport.close()

    schedules(run, 800)


def test_a_protocol_that_raises_loses_no_byte_and_no_connection(schedules):
    """data_received, pause_writing, resume_writing and connection_made raise now and then."""

    class Bad(Exception):
        pass

    def run(seed):
        stage = Stage(seed)
        raised = []

        def meddle():
            # connection_lost and eof_received are other claims: what they raise ends the connection.
            if stage.budget and stage.random.random() < 0.2:
                stage.budget -= 1
                raised.append(Bad())
                raise raised[-1]

        for end in stage.connection():
            end.meddle = meddle
        stage.run(orderly(stage))
        assert [report["exception"] for report in stage.loop.reports] == raised

    async def orderly(stage):
        for end in stage.ends:
            await wait_until_connected(end)
            end.transport.set_write_buffer_limits(10)
        for _ in range(20):
            stage.random.choice(stage.ends).write(stage.message())
            await asyncio.sleep(0)
        await finish_in_order(stage)

    schedules(run, 250)


class Interrupted(KeyboardInterrupt):
    """Ctrl+C, in a callback."""


def replace_protocol(end):
    """Give the transport another protocol, of either kind, that goes on where this one is."""
    successor = object.__new__(end.random.choice((Recorder, BufferedRecorder)))
    successor.__dict__ = end.__dict__
    end.transport.set_protocol(successor)


def test_whatever_a_callback_does_or_raises_concerns_its_own_connection(schedules, monkeypatch):
    """Every callback writes (more than the mark, more than is gathered), closes, aborts, ends or raises as it likes,
    or leaves its transport to another protocol.

    The loop goes on, or can be run again after a KeyboardInterrupt; no byte overtakes another; every connection ends.
    """
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)
    monkeypatch.setattr(_writer, "CORKED_SIZE_MIN", 60)
    monkeypatch.setattr(_writer, "JOIN_MAX", 50)

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.5, inline=0.7))
        raised = []

        def meddle(end):
            if not stage.budget or stage.random.random() < 0.6:
                return
            stage.budget -= 1
            match stage.random.randrange(13):
                case 12 if not end.lost.done():
                    replace_protocol(end)
                case 0 if not end.lost.done():
                    end.transport.close()
                case 1 if not end.lost.done():
                    end.transport.abort()
                case 2 if end.may_write():
                    end.write_eof()
                case 3:
                    raised.append(stage.random.choice((MemoryError, RuntimeError, OSError))("from a callback"))
                    raise raised[-1]
                case 4:
                    raise stage.random.choice((Interrupted, SystemExit))
                case 5:
                    stage.act()
                case _ if end.may_write() and not end.lost.done():
                    for _ in range(stage.random.randrange(1, 4)):
                        end.write(stage.message())

        for buffered in (False, seed % 2 == 0):
            for end in stage.connection(buffered=buffered):
                end.random, end.buffer = stage.random, bytearray()
                end.sock.capacity = stage.random.choice((64, 500, 5000))
                end.meddle = lambda end=end: meddle(end)
        stage.run_through_interrupts(until_all_are_over(stage))
        told = [report["exception"] for report in stage.loop.reports]
        assert all(exception in raised for exception in told)

    async def until_all_are_over(stage):
        for _ in range(25):
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # Out of pause_writing(), through write().
                stage.act()
            if stage.random.random() < 0.5:
                await asyncio.sleep(0)
        stage.budget = 0
        for end, other in pairs(stage.ends):
            await wait_until_connected(end)
            end.transport.resume_reading()
        for end, other in pairs(stage.ends):
            await asyncio.wait([end.eof, end.lost], return_when=asyncio.FIRST_COMPLETED, timeout=1)
            end.transport.close()
        await asyncio.sleep(1)
        for end, other in pairs(stage.ends):
            # Two ends that were closed before all was out send, do not read, and wait for each other.
            end.transport.abort()
        for end, other in pairs(stage.ends):
            await end.lost
            assert other.written.startswith(end.received)

    schedules(run, 1500)


def test_an_interrupt_in_the_middle_of_a_delivery_loses_none_of_its_bytes():
    """A BufferedProtocol gets one packet in many pieces; Ctrl+C comes with one of them, and the loop is run again."""
    stage = Stage(0, Chances(would_block=0, partial_send=0))
    sock, peer = stage.kernel.socketpair()
    sock.capacity = 10_000
    end = stage.end(sock, buffered=True)
    message = bytes(range(256)) * 20
    interrupts = [200, 1000, 4000]

    def interrupt():
        if interrupts and len(end.received) >= interrupts[0]:
            del interrupts[0]
            raise Interrupted

    end.meddle = interrupt

    async def receive():
        await wait_until_connected(end)
        peer.send(message)
        peer.shutdown(socket.SHUT_WR)
        await end.eof
        end.transport.close()
        await end.lost
        peer.close()

    stage.run_through_interrupts(receive())
    assert (end.received, interrupts) == (message, [])


def test_older_bytes_come_first_and_never_from_inside_resume_reading(schedules):
    """What start_tls() took back waits while reading is paused; newer bytes are in the port when it is resumed."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0, partial_send=0, inline=0.5))
        sock, peer = stage.kernel.socketpair()
        sock.capacity = 10_000
        end = stage.end(sock, buffered=seed % 2 == 0)
        stage.run(pause_and_resume(stage, end, peer))
        assert end.received == b"old,new"

    async def pause_and_resume(stage, end, peer):
        await wait_until_connected(end)
        for _ in range(stage.random.randrange(4)):
            await asyncio.sleep(0)
        end.transport.pause_reading()
        end.transport.endpoint.leftover += b"old,"
        peer.send(b"new")
        for _ in range(stage.random.randrange(4)):
            await asyncio.sleep(0)
        for _ in range(stage.random.randrange(1, 3)):
            end.transport.resume_reading()
            assert not end.received
            if stage.random.random() < 0.3:
                end.transport.pause_reading()
        end.transport.resume_reading()
        while len(end.received) < len(b"old,new"):
            await asyncio.sleep(0)
        end.transport.close()
        await end.lost
        peer.close()

    schedules(run, 200)


def test_an_exception_in_eof_received_closes_the_connection(schedules):
    """It is reported, and connection_lost gets it."""

    def run(seed):
        stage = Stage(seed)
        left, right = stage.connection()
        bad = RuntimeError("bad eof_received")

        def raise_it():
            if left.eof.done() and not left.lost.done():
                raise bad

        left.meddle = raise_it
        stage.run(one_eof(left, right, bad))
        assert [report["exception"] for report in stage.loop.reports] == [bad]

    async def one_eof(left, right, bad):
        await wait_until_connected(right)
        right.write_eof()
        assert await left.lost is bad
        right.transport.close()
        await right.lost

    schedules(run, 100)


def test_a_write_from_resume_writing_keeps_its_place(schedules):
    """The protocol fills up again in resume_writing, as a file sender does; the last chunks end with close()."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.4))
        sock, peer = stage.kernel.socketpair()
        peer.capacity = stage.random.choice((64, 500, 5000))
        received = bytearray()
        stage.kernel.act(slow_reader(peer, received, stage.random))
        sender = stage.end(sock)
        messages = [b"%d;" % number * 50 for number in range(60)]

        def fill():
            while messages and not sender.writing_paused and sender.transport is not None:
                sender.write(messages.pop(0))
            if not messages and sender.transport is not None:
                sender.transport.close()

        stage.run(send_all(sender, fill))
        assert received == sender.written == b"".join(b"%d;" % number * 50 for number in range(60))
        assert stage.loop.reports == []

    async def send_all(sender, fill):
        await wait_until_connected(sender)
        sender.transport.set_write_buffer_limits(500)
        resumed = sender.resume_writing
        sender.resume_writing = lambda: (resumed(), fill())
        fill()
        assert await sender.lost is None

    schedules(run, 300)


def test_a_gather_longer_than_the_vector_goes_out_in_several_sends():
    """More chunks wait than one WSASend takes: GATHER_MAX and one more, in a peer's full buffer."""
    stage = Stage(0, Chances(inline=0, would_block=1))
    sock, peer = stage.kernel.socketpair()
    peer.capacity = 10_000
    end = stage.end(sock)
    received = bytearray()
    stage.kernel.act(slow_reader(peer, received, stage.random))

    async def write_many():
        await wait_until_connected(end)
        for number in range(1 + GATHER_MAX + 1):
            end.write(b"%d," % number)
        end.transport.close()
        await end.lost

    stage.run(write_many())
    assert received == end.written
    # The first write alone; then, behind it, as many as the vector holds; then the last one.
    assert stage.kernel.calls["WSASend"] == 3


def test_a_submit_that_fails_ends_the_connection_with_its_error(schedules):
    """WSARecv or WSASend answer WSAENOBUFS at once."""

    def run(seed):
        stage = Stage(seed, Chances(submit_failure=0.2))
        ends = stage.connection()
        stage.run(until_broken(stage, ends))
        assert stage.loop.reports == []

    async def until_broken(stage, ends):
        await stage.act_for_a_while(10)
        left, right = ends
        for end in ends:
            await wait_until_connected(end)
            end.transport.resume_reading()
        left.transport.close()
        # Not before: two ends that flush and do not read would wait for each other.
        await asyncio.wait([right.eof, right.lost], return_when=asyncio.FIRST_COMPLETED)
        right.transport.close()
        for end, other in pairs(ends):
            exc = await end.lost
            assert exc is None or isinstance(exc, OSError)
            assert other.written.startswith(end.received)

    schedules(run, 500)


def test_pause_and_resume_while_a_finished_receive_waits_for_its_delivery():
    """The receive was armed and succeeded inline; before its turn comes, a callback pauses and resumes.

    It is not pending any more, and not free yet either: armed again, it would lose what it brought.
    """
    stage = Stage(0, Chances(inline=1, idle=0, would_block=0, partial_send=0))
    sock, peer = stage.kernel.socketpair()
    sock.capacity = 100
    end = stage.end(sock, skip_port=True)

    def pause_and_resume():
        peer.send(b"three,")
        end.transport.pause_reading()
        end.transport.resume_reading()

    def once():
        if end.received == b"one,":
            peer.send(b"two,")  # Which the receive that follows this callback takes at once.
            stage.loop.call_soon(pause_and_resume)

    async def receive():
        await wait_until_connected(end)
        end.meddle = once
        peer.send(b"one,")
        await asyncio.wait([end.lost], timeout=1)
        assert end.received == b"one,two,three,"
        end.transport.close()
        await end.lost
        peer.close()

    stage.run(receive())


def test_one_echo_costs_one_receive_and_one_send():
    """A hundred messages, each echoed: at the Kernel seam, the receive is cast once more than messages came."""
    stage = Stage(0, Chances(inline=0, would_block=0, partial_send=0, idle=0, reorder=0))
    client, server = stage.connection()
    for end in (client, server):
        end.sock.capacity = 10_000
    server.meddle = lambda: server.write(bytes(server.received[len(server.written) :]))
    before = {}

    async def echo():
        for _ in range(2):  # The first receive is submitted when the callbacks have run that were queued before.
            await asyncio.sleep(0)
        before.update(stage.kernel.calls)
        for number in range(100):
            client.write(b"%03d" % number)
            while len(client.received) < len(client.written):
                await asyncio.sleep(0)
        await asyncio.sleep(0)  # The last receive is submitted when the callbacks of its turn have run: this task's.
        for name, calls in stage.kernel.calls.items():
            before[name] = calls - before.get(name, 0)
        for end in (client, server):
            end.transport.close()
            await end.lost

    stage.run(echo())
    assert client.received == client.written
    assert (before["WSARecv"], before["send"], before.get("WSASend", 0)) == (200, 200, 0)


def test_a_closed_transport_keeps_no_operation():
    """Its memory goes back when it is closed, whoever still holds the transport, and without the garbage collector."""
    stage = Stage(0, Chances(inline=0))
    sock, peer = stage.kernel.socketpair()
    end = stage.end(sock)
    stage.kernel.act(slow_reader(peer, bytearray(), stage.random))
    operations = []

    async def open_and_close():
        for _ in range(2):  # The first receive is submitted when the callbacks have run that were queued before.
            await asyncio.sleep(0)
        end.write(b"x" * 100_000)
        operations.extend(map(weakref.ref, stage.loop.proactor.pending.values()))
        end.transport.close()
        await end.lost

    gc.disable()
    try:
        stage.run(open_and_close())
        assert len(operations) == 2
        assert [operation() for operation in operations] == [None, None]
    finally:
        gc.enable()
