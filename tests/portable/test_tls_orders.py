"""TLS over the fake network: asyncio's own TLS protocol on our transports, through seeded schedules.

What must hold in each: the handshake ends; what was written is received in order; connection_lost comes exactly once;
a connection that is ended in the middle of anything ends on both sides. A seed is not quite one schedule here: keys are
new each time, and with them, by a byte or two, the lengths of records.
"""

import asyncio
import contextlib
import functools
import ssl
from pathlib import Path

from fakes.kernel import Chances
from fakes.recorders import Recorder, StreamStage, pairs, wait_until_connected
from fakes.stage import BaseStage, Interrupted

from iocp_loop._handles._sockets import OverlappedSocket

CERTIFICATE = Path(__file__).parents[1] / "kernel" / "data" / "localhost.pem"


@functools.cache
def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@functools.cache
def client_context():
    return ssl.create_default_context(cafile=CERTIFICATE)


def tls_options(index):
    """Of the left end, which is the client, or of the right one."""
    if index == 0:
        return client_context(), {"server_hostname": "localhost"}
    return server_context(), {"server_side": True}


class Plain(asyncio.Protocol):
    """What is there before TLS: the client asks for it, and the server agrees."""

    def __init__(self, stage, index):
        self.is_client = index == 0
        self.received = b""
        self.transport = None
        self.is_lost = False
        self.agreed = stage.loop.create_future()

    def connection_made(self, transport):
        self.transport = transport
        if self.is_client:
            transport.write(b"STARTTLS")

    def data_received(self, data):
        self.received += data
        if self.is_client:
            assert b"OK".startswith(self.received)
            if self.received == b"OK":
                self.agreed.set_result(None)
        else:
            assert b"STARTTLS".startswith(self.received)
            if self.received == b"STARTTLS":
                # What comes next is the handshake, and for another protocol.
                self.transport.pause_reading()
                self.transport.write(b"OK")
                self.agreed.set_result(None)

    def connection_lost(self, exc):
        self.is_lost = True
        if not self.agreed.done():
            self.agreed.set_exception(exc or ConnectionAbortedError())


class Application(Recorder):
    """As Recorder; TLS has an end of file only together with its end, and what it buffers is its own business."""

    def pause_writing(self):
        assert not self.writing_paused
        self.writing_paused = True
        self.meddle()

    def resume_writing(self):
        assert self.writing_paused
        self.writing_paused = False
        self.meddle()

    def eof_received(self):
        super().eof_received()
        return False


class TlsStage(StreamStage):
    """Connections that become TLS, at once or after some plain words."""

    def connect(self):
        """The tasks of both ends' handshakes."""
        upgrades = self.random.random() < 0.5
        ends, tasks = [], []
        for index, sock in enumerate(self.kernel.socketpair()):
            # Small enough that a handshake comes in pieces, large enough that it does not take for ever.
            sock.capacity = self.random.choice((64, 500, 5000))
            end = Application(self.loop)
            end.sock = sock
            ends.append(end)
            tasks.append(self.loop.create_task((self.upgrade if upgrades else self.begin)(end, index)))
        self.ends += ends
        return tasks

    async def begin(self, end, index):
        context, options = tls_options(index)
        waiter = self.loop.create_future()
        self.loop._stdlib_proactor.adopt(
            end.sock, self.loop.proactor.register(OverlappedSocket(end.sock.fileno()), skip_port=True)
        )
        self.loop._make_ssl_transport(end.sock, end, context, waiter, **options)
        await waiter

    async def upgrade(self, end, index):
        plain = Plain(self, index)
        transport = self.loop.transport(end.sock, plain)
        await plain.agreed
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if plain.is_lost:
            # asyncio's start_tls() waits for ever for one that is closed: nobody tells it once more.
            raise ConnectionAbortedError
        context, options = tls_options(index)
        end.transport = await self.loop.start_tls(transport, end, context, **options)

    def act(self):
        """As a stream's; but no rounds of the idle, and no writes from outside once TLS is ending."""
        end = self.random.choice(self.ends)
        if end.transport is None or end.lost.done() or end.transport.is_closing():
            return
        match self.random.randrange(6):
            case 0 | 1 | 2:
                end.write(self.message())
            case 3:
                end.writelines([self.message() for _ in range(self.random.randrange(4))])
            case 4:
                end.transport.pause_reading()
            case 5:
                end.transport.resume_reading()


def test_every_byte_written_is_received_in_order(schedules):
    """Both ends write, pause and resume at random, also in callbacks; then one is closed, and the other follows."""

    def run(seed):
        stage = TlsStage(seed, Chances(would_block=0.4))
        tasks = stage.connect()

        async def orderly():
            await asyncio.gather(*tasks)
            for end in stage.ends:
                await wait_until_connected(end)
                end.meddle = stage.meddle
            await stage.act_for_a_while()
            stage.budget = 0
            for _ in range(3000):
                for end in stage.ends:
                    end.transport.resume_reading()
                if all(end.received == other.written for end, other in pairs(stage.ends)):
                    break
                await asyncio.sleep(0.01)
            for end, other in pairs(stage.ends):
                assert end.received == other.written
                assert not end.writing_paused
            left, right = stage.ends if stage.random.random() < 0.5 else reversed(stage.ends)
            left.transport.close()
            assert await left.lost is None
            assert await right.lost is None

        stage.run(orderly())
        assert stage.loop.reports == []

    schedules(run, 40)


def test_whatever_a_callback_does_or_raises_ends_its_own_connection_at_most(schedules):
    """Close, abort and raise, also during the handshake; the loop is run again after KeyboardInterrupt."""

    def run(seed):
        stage = TlsStage(seed, Chances(would_block=0.4))
        tasks = stage.connect() + stage.connect()
        stage.budget = 12
        for end in stage.ends:
            end.meddle = lambda end=end: meddle(stage, end)

        async def wild():
            for _ in range(30):
                with contextlib.suppress(KeyboardInterrupt, SystemExit):
                    stage.act()
                await asyncio.sleep(stage.random.choice((0, 0.01)))
            stage.budget = 0
            await end_all(stage, tasks)

        stage.run_through_interrupts(wild())
        for end, other in pairs(stage.ends):
            assert other.written.startswith(end.received)

    schedules(run, 40)


def test_memory_that_is_missing_now_and_then_leaves_no_handshake_and_no_connection_waiting(schedules):
    """Any call of the kernel may raise MemoryError under asyncio's TLS: each end is told, or works."""

    def run(seed):
        stage = TlsStage(seed, Chances(would_block=0.4))
        tasks = stage.connect() + stage.connect()

        async def short_of_memory():
            stage.kernel.chances.memory_error = 0.02
            for _ in range(30):
                with contextlib.suppress(MemoryError):
                    stage.act()
                await asyncio.sleep(stage.random.choice((0, 0.01)))
            stage.kernel.chances.memory_error = 0
            await end_all(stage, tasks)

        stage.run_through_interrupts(short_of_memory())
        for end, other in pairs(stage.ends):
            assert other.written.startswith(end.received)

    schedules(run, 40)


class SuddenTlsStage(StreamStage):
    """Plain connections, of which any callback may make a TLS one, whatever is on its way."""

    def __init__(self, seed, chances=None):
        super().__init__(seed, chances)
        self.tasks = []

    def meddle_wildly(self, end):
        if self.budget and self.random.random() < 0.15:
            self.budget -= 1
            self.start_tls(end)
        else:
            super().meddle_wildly(end)

    def start_tls(self, end):
        # asyncio's TLS protocol is reported an error when it is resumed and was not paused, its predecessor was.
        if not end.may_write() or end.lost.done() or end.writing_paused:
            return
        application = Application(self.loop)
        application.meddle = lambda: None
        end.ended = True  # From here on it is not for the plain protocol to write.
        end.meddle = lambda: None
        context, options = tls_options(self.ends.index(end) % 2)
        start = self.loop.start_tls(end.transport, application, context, ssl_handshake_timeout=5, **options)
        self.tasks.append(self.loop.create_task(start))


def test_start_tls_in_any_callback_ends_well_or_tells_why(schedules):
    """In the middle of writes, pauses and closes, on one end or on both; the other may not know what it is told."""

    def run(seed):
        stage = SuddenTlsStage(seed, Chances(would_block=0.4))
        for _ in range(2):
            for end in stage.connection():
                end.sock.capacity = stage.random.choice((64, 500, 5000))
                end.random, end.buffer = stage.random, bytearray()
                end.meddle = lambda end=end: stage.meddle_wildly(end)

        async def wild():
            for _ in range(25):
                with contextlib.suppress(KeyboardInterrupt, SystemExit):
                    end = stage.random.choice(stage.ends)
                    if end.may_write() and not end.lost.done():
                        stage.start_tls(end) if stage.random.random() < 0.1 else stage.act_on(end)
                await asyncio.sleep(stage.random.choice((0, 0.01)))
            stage.budget = 0
            if stage.tasks:
                await asyncio.wait(stage.tasks, timeout=100)  # More than the handshake's time-out.
            for transport in list(stage.loop.transports):
                transport.abort()
            await asyncio.sleep(1)
            for task in stage.tasks:
                assert task.done(), "a handshake waits for ever"
                assert task.cancelled() or isinstance(task.exception(), OSError | RuntimeError | TypeError | None)
            assert [repr(transport) for transport in stage.loop.transports if transport.handle is not None] == []

        stage.run_through_interrupts(wild())
        told = [report for report in stage.loop.reports if report["exception"] not in stage.raised]
        assert [report for report in told if not isinstance(report["exception"], OSError)] == []

    schedules(run, 80)


def meddle(stage, end):
    if not stage.budget or stage.random.random() < 0.5:
        return
    stage.budget -= 1
    match stage.random.randrange(8):
        case 0 if not end.lost.done():
            end.transport.close()
        case 1 if not end.lost.done():
            end.transport.abort()
        case 2:
            raise stage.random.choice((RuntimeError, OSError))("from a callback")
        case 3:
            raise stage.random.choice((MemoryError, Interrupted, SystemExit))("from a callback")
        case _:
            stage.act()


async def end_all(stage, tasks):
    """Whatever state it is in: every handshake and every connection can be ended, and then is over."""
    for end in stage.ends:
        if end.transport is not None and not end.lost.done():
            end.transport.close()
    await asyncio.wait(tasks, timeout=100)  # More than asyncio's time-outs for TLS.
    for end in stage.ends:
        if end.transport is not None:
            # One that was interrupted in connection_made(), or paused, may wait for its reader.
            end.transport.abort()
            await asyncio.wait_for(end.lost, 1)
    for transport in list(stage.loop.transports):
        transport.abort()
    done, waiting = await asyncio.wait(tasks, timeout=1)
    assert not waiting, [(transport, transport.get_protocol()) for transport in stage.loop.transports]
    for task in done:
        assert task.cancelled() or isinstance(task.exception(), OSError | MemoryError | RuntimeError | None)
    await asyncio.sleep(1)


def test_a_handshake_that_comes_with_the_last_plain_bytes_is_not_lost(schedules):
    """asyncio's streams: the client does not wait for an answer before it begins, and the server has read ahead."""

    def run(seed):
        stage = BaseStage(seed, Chances(would_block=0.3))
        client, server = stage.kernel.socketpair()
        client.capacity = stage.random.choice((64, 5000))
        server.capacity = stage.random.choice((64, 5000))
        served = stage.loop.create_future()

        async def serve(reader, writer):
            for _ in range(stage.random.randrange(4)):
                await asyncio.sleep(0)
            assert await reader.readline() == b"STARTTLS\n"
            for _ in range(stage.random.randrange(4)):
                await asyncio.sleep(0)
            await writer.start_tls(server_context())
            writer.write(await reader.readexactly(5000))
            await writer.drain()
            assert await reader.read() == b""
            writer.close()
            served.set_result(None)

        async def ask():
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport = stage.loop.transport(client, protocol)
            writer = asyncio.StreamWriter(transport, protocol, reader, stage.loop)
            await asyncio.sleep(0)
            writer.write(b"STARTTLS\n")
            await writer.start_tls(client_context(), server_hostname="localhost")
            writer.write(b"x" * 5000)
            assert await reader.readexactly(5000) == b"x" * 5000
            writer.close()

        async def both():
            # Who has a callback for connections is the server.
            stage.loop.transport(server, asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve))
            await ask()
            await served
            await asyncio.sleep(1)

        stage.run(both())

    schedules(run, 40)
