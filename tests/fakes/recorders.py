"""Protocols that write down what happens to them, and a stage with connections that have one at each end."""

import asyncio
import contextlib

from .stage import BaseStage, Interrupted


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
        assert self.may_receive(), "data while reading is paused, or after close()"
        assert not self.eof.done(), "data after the end of the stream"
        assert not self.lost.done(), "data after connection_lost"
        assert data
        self.received += data
        self.kept.append(data)

    def may_receive(self):
        # Where memory for the next receive is missing, that is the end; what was received before comes all the same.
        return self.transport.is_reading() or isinstance(getattr(self.transport, "_exception", None), MemoryError)

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
        self.note_written(data, self.transport and self.transport.write, data)

    def writelines(self, chunks):
        self.note_written(b"".join(chunks), self.transport and self.transport.writelines, chunks)

    def note_written(self, data, call, argument):
        if not self.may_write():
            return
        size = len(self.written)
        self.written += data  # Before the call: pause_writing may write, too, and comes from inside it.
        try:
            call(argument)
        except MemoryError:
            if not self.transport.is_closing():
                del self.written[size:]  # Who is told so has written nothing; or this was the end of the connection.
            raise

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


class StreamStage(BaseStage):
    """One seed: a kernel, a loop, and connections with a Recorder at each end."""

    def __init__(self, seed, chances=None):
        super().__init__(seed, chances)
        self.ends = []
        self.budget = 60  # how often protocols may act by themselves
        self.serial = 0  # of messages
        self.raised = []  # by callbacks, on purpose

    def connection(self, *, buffered=False):
        """Two ends, each a transport with a Recorder."""
        return [self.end(sock, buffered=buffered) for sock in self.kernel.socketpair()]

    def end(self, sock, *, buffered=False, skip_port=None):
        skip_port = self.random.random() < 0.7 if skip_port is None else skip_port
        end = BufferedRecorder(self.loop, self.random) if buffered else Recorder(self.loop)
        self.make_transport(sock, end, skip_port)
        end.sock = sock
        self.ends.append(end)
        return end

    def make_transport(self, sock, end, skip_port):
        self.loop.transport(sock, end, skip_port=skip_port)

    def act(self):
        """One random thing, on a random connection."""
        self.act_on(self.random.choice(self.ends))

    def act_on(self, end):
        random = self.random
        transport = end.transport
        if transport is None or end.lost.done():
            return
        match random.randrange(9):
            case 0 | 1:
                end.write(self.message())
            case 2:
                end.writelines([self.message() for _ in range(random.randrange(4))])
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
                self.loop._services.idle_rounds.go()

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

    # -- whatever a program can do in a callback ------------------------------------------------------------------

    def play_wildly(self):
        """Every callback writes (more than the mark, more than is gathered), closes, aborts, ends or raises as it
        likes, or leaves its transport to another protocol. Every connection ends, and no byte overtakes another.
        """
        for end in self.ends:
            end.random, end.buffer = self.random, bytearray()
            end.meddle = lambda end=end: self.meddle_wildly(end)
        self.run_through_interrupts(self.until_all_are_over())
        told = [report["exception"] for report in self.loop.reports]
        assert all(exception in self.raised for exception in told)

    def meddle_wildly(self, end):
        if not self.budget or self.random.random() < 0.6:
            return
        self.budget -= 1
        match self.random.randrange(13):
            case 12 if not end.lost.done():
                end.transport.set_protocol(self.successor(end))
            case 0 if not end.lost.done():
                end.transport.close()
            case 1 if not end.lost.done():
                end.transport.abort()
            case 2 if end.may_write() and end.transport.can_write_eof():
                end.write_eof()
            case 3:
                self.raised.append(self.random.choice((MemoryError, RuntimeError, OSError))("from a callback"))
                raise self.raised[-1]
            case 4:
                raise self.random.choice((Interrupted, SystemExit))
            case 5:
                self.act()
            case _ if end.may_write() and not end.lost.done():
                for _ in range(self.random.randrange(1, 4)):
                    end.write(self.message())

    # -- memory that is missing ------------------------------------------------------------------------------------

    def play_short_of_memory(self):
        """Any call of the kernel may raise MemoryError, and so may each piece of memory that is asked for. Whoever
        cannot be helped ends, and its protocol is told; every other connection delivers every byte.
        """
        for end in self.ends:
            end.meddle = self.meddle
        self.run_through_interrupts(self.until_memory_is_back())
        told = [report["exception"] for report in self.loop.reports]
        assert [exc for exc in told if not isinstance(exc, MemoryError)] == []

    async def until_memory_is_back(self):
        self.kernel.chances.memory_error = 0.03
        for _ in range(25):
            with contextlib.suppress(MemoryError):
                self.act()
            await asyncio.sleep(0)
        self.kernel.chances.memory_error = 0
        self.budget = 0
        for end in self.ends:
            await wait_until_connected(end)
            if not end.lost.done():
                end.transport.resume_reading()
        await asyncio.sleep(1)
        for left, right in zip(self.ends[::2], self.ends[1::2], strict=True):
            await self.check_one_that_was_short_of_memory(left, right)

    async def check_one_that_was_short_of_memory(self, left, right):
        if not left.lost.done() and not right.lost.done():
            assert (left.received, right.received) == (right.written, left.written), (left.transport, right.transport)
        for end, other in ((left, right), (right, left)):
            assert other.written[: len(end.received)] == end.received
            end.transport.close()
            exc = await asyncio.wait_for(end.lost, 1)
            assert exc is None or isinstance(exc, MemoryError | OSError)

    # -- interrupts in the middle of our own code ------------------------------------------------------------------

    def play_through_kernel_interrupts(self):
        """Ctrl+C just before or just after any call of the kernel; the loop is run again each time. No connection ends
        by that, and every byte arrives.
        """
        for end in self.ends:
            end.meddle = self.meddle
        self.run_through_interrupts(self.until_nobody_interrupts())
        assert self.loop.reports == []

    async def until_nobody_interrupts(self):
        self.kernel.chances.interrupt = 0.05
        for _ in range(25):
            with contextlib.suppress(Interrupted):
                self.act()
            await asyncio.sleep(0)
        self.kernel.chances.interrupt = 0
        self.budget = 0
        for end in self.ends:
            await wait_until_connected(end)
            end.transport.resume_reading()
        await asyncio.sleep(1)
        for end, other in pairs(self.ends):
            assert end.received == other.written, (end.transport, other.transport)
        self.kernel.chances.interrupt = 0.05
        for end in self.ends:
            with contextlib.suppress(Interrupted):
                self.random.choice((end.transport.close, end.transport.abort))()
            await asyncio.sleep(0)
        self.kernel.chances.interrupt = 0
        for end in self.ends:
            await asyncio.wait_for(end.lost, 1)

    def successor(self, end):
        """Another protocol, of either kind, that goes on where this one is."""
        successor = object.__new__(self.random.choice((Recorder, BufferedRecorder)))
        successor.__dict__ = end.__dict__
        return successor

    async def until_all_are_over(self):
        for _ in range(25):
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # Out of pause_writing(), through write().
                self.act()
            if self.random.random() < 0.5:
                await asyncio.sleep(0)
        self.budget = 0
        for end in self.ends:
            await wait_until_connected(end)
            end.transport.resume_reading()
        for end in self.ends:
            await asyncio.wait([end.eof, end.lost], return_when=asyncio.FIRST_COMPLETED, timeout=1)
            end.transport.close()
        await asyncio.sleep(1)
        for end in self.ends:
            # Two ends that were closed before all was out send, do not read, and wait for each other.
            end.transport.abort()
        for end, other in pairs(self.ends):
            await end.lost
            assert other.written[: len(end.received)] == end.received


async def wait_until_connected(end):
    while end.transport is None:
        await asyncio.sleep(0)


def pairs(ends):
    for left, right in zip(ends[::2], ends[1::2], strict=True):
        yield left, right
        yield right, left


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
