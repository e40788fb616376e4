"""Named pipes on the real loop over the fake kernel, through seeded schedules: duplex, one way, message mode, servers.

What must hold in each is what must hold for a stream; of a message also that it arrives whole, empty ones included, and
alone; of a server that a client finds an instance as long as it serves, and is served unless its own factory or
transport did otherwise.
"""

import asyncio

import pytest
from fakes import pipes
from fakes.kernel import Chances
from fakes.recorders import Recorder, StreamStage, pairs, wait_until_connected
from fakes.servers import Client, ServerStage
from fakes.stage import Interrupted

from iocp_loop._asyncio import _private as private
from iocp_loop._transports import _pipe, _reader

NAME = r"\\.\pipe\fake"


class PipeStage(StreamStage):
    """Connections that are pipes, in byte mode."""

    transport_type = _pipe.DuplexPipeTransport
    message_mode = False

    def connection(self, *, buffered=False):
        return [self.end(pipe, buffered=buffered) for pipe in self.kernel.pipe_pair(message_mode=self.message_mode)]

    def make_transport(self, sock, end, skip_port):
        self.loop.pipe_transport(self.transport_type, sock, end)

    async def finish_in_order(self):
        """All that was written arrives; then one end after the other is closed."""
        self.budget = 0
        for end in self.ends:
            await wait_until_connected(end)
        for _ in range(2000):
            for end in self.ends:
                end.transport.resume_reading()
            if all(end.received == other.written for end, other in pairs(self.ends)):
                break
            await asyncio.sleep(0.01)
        for end, other in pairs(self.ends):
            assert end.received == other.written
            assert not end.writing_paused
            assert end.transport.get_write_buffer_size() == 0
        for left, right in zip(self.ends[::2], self.ends[1::2], strict=True):
            left.transport.close()
            assert await left.lost is None
            await right.eof
            right.transport.close()
            assert await right.lost is None


class OneWayStage(PipeStage):
    """A reading end, and then a writing one."""

    def make_transport(self, sock, end, skip_port):
        cls = _pipe.WritePipeTransport if self.ends else _pipe.ReadPipeTransport
        self.loop.pipe_transport(cls, sock, end)


class MessageRecorder(Recorder):
    """As Recorder; what is received and written are lists of messages."""

    def __init__(self, loop):
        super().__init__(loop)
        self.received, self.written = [], []

    def data_received(self, data):
        assert self.may_receive(), "a message while reading is paused, or after close()"
        assert not self.eof.done()
        self.received.append(data)
        self.meddle()

    def note_written(self, data, call, argument):
        super().note_written([bytes(data)], call, argument)


class MessageStage(PipeStage):
    """Pipes in message mode."""

    transport_type = _pipe.MessagePipeTransport
    message_mode = True

    def end(self, sock, *, buffered=False, skip_port=None):
        end = MessageRecorder(self.loop)
        self.make_transport(sock, end, skip_port)
        end.sock = sock
        self.ends.append(end)
        return end

    def message(self):
        return b"" if self.random.random() < 0.1 else super().message()

    def successor(self, end):
        successor = object.__new__(MessageRecorder)
        successor.__dict__ = end.__dict__
        return successor


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_all_that_is_written_is_received_in_order(schedules, stage_type, monkeypatch):
    """Both ends of two pipes write, pause and resume at random; messages are longer than the buffer, or empty."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = stage_type(seed)
        for buffered in (False, seed % 2 == 0):
            for end in stage.connection(buffered=buffered):
                end.meddle = stage.meddle

        async def orderly():
            await stage.act_for_a_while()
            await stage.finish_in_order()

        stage.run(orderly())
        assert stage.loop.reports == []

    schedules(run, 60)


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_a_protocol_that_raises_loses_no_byte_and_no_connection(schedules, stage_type):
    """data_received, pause_writing, resume_writing and connection_made raise now and then."""

    def run(seed):
        stage = stage_type(seed)

        def raise_sometimes():
            # connection_lost and eof_received are other claims: what they raise ends the connection.
            if stage.budget and stage.random.random() < 0.3:
                stage.budget -= 1
                stage.raised.append(RuntimeError("from a callback"))
                raise stage.raised[-1]

        for end in stage.connection():
            end.meddle = raise_sometimes

        async def orderly():
            await stage.act_for_a_while()
            await stage.finish_in_order()

        stage.run(orderly())
        assert [report["exception"] for report in stage.loop.reports] == stage.raised

    schedules(run, 60)


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_whatever_a_callback_does_or_raises_concerns_its_own_pipe(schedules, stage_type, monkeypatch):
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = stage_type(seed, Chances(inline=0.7))
        for buffered in (False, seed % 2 == 0):
            for end in stage.connection(buffered=buffered):
                end.sock.capacity = stage.random.choice((64, 500, 5000))
        stage.play_wildly()

    schedules(run, 80)


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_a_submit_that_fails_ends_the_connection_with_its_error(schedules, stage_type):
    """ReadFile or WriteFile fail at once, for want of resources."""

    def run(seed):
        stage = stage_type(seed, Chances(submit_failure=0.2))
        left, right = stage.connection()

        async def until_broken():
            await stage.act_for_a_while(10)
            for end in (left, right):
                await wait_until_connected(end)
                end.transport.resume_reading()
            await asyncio.sleep(1)
            for end, other in pairs(stage.ends):
                end.transport.abort()
                exc = await end.lost
                assert exc is None or isinstance(exc, OSError)
                assert other.written[: len(end.received)] == end.received

        stage.run(until_broken())
        assert stage.loop.reports == []

    schedules(run, 60)


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_memory_that_is_missing_now_and_then_deafens_no_pipe(schedules, stage_type, monkeypatch):
    """Any call may raise MemoryError, ReadFile and WriteFile included, and so may each buffer that is asked for."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = stage_type(seed)
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_short_of_memory()

    schedules(run, 60)


@pytest.mark.parametrize("stage_type", [PipeStage, MessageStage])
def test_an_interrupt_at_any_call_of_the_kernel_loses_nothing_and_no_pipe(schedules, stage_type, monkeypatch):
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = stage_type(seed)
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_through_kernel_interrupts()

    schedules(run, 60)


def test_a_one_way_pipe_is_read_to_its_end_and_its_writer_learns_of_a_reader_that_went(schedules):
    """A ReadPipeTransport and a WritePipeTransport; either may end it."""

    def run(seed):
        stage = OneWayStage(seed)
        reading, writing = stage.kernel.pipe_pair()
        reader, writer = stage.end(reading), stage.end(writing)

        async def write_and_end():
            for end in (reader, writer):
                await wait_until_connected(end)
            for _ in range(stage.random.randrange(8)):
                writer.write(stage.message())
                await asyncio.sleep(stage.random.choice((0, 0.01)))
            if stage.random.random() < 0.6:
                writer.write_eof()
                await reader.eof
                assert reader.received == writer.written
                assert await writer.lost is None
            else:
                reader.transport.close()
                exc = await writer.lost
                assert exc is None or isinstance(exc, BrokenPipeError)
                assert writer.written.startswith(reader.received)
            reader.transport.close()
            await reader.lost

        stage.run(write_and_end())
        assert stage.loop.reports == []

    schedules(run, 80)


class PipeClient(Client):
    def steps(self):
        random = self.stage.random
        for _ in range(random.randrange(6)):
            yield True
        pipe = None
        while pipe is None and not self.stage.server.closed():
            try:
                pipe = self.stage.kernel.open_pipe(NAME)
            except FileNotFoundError:
                self.stage.not_found += not self.stage.server.closed()
            yield pipe is not None
        if pipe is not None:
            yield from self.converse(pipe, None if self.stays else random.randrange(4))
            pipe.close()
        self.is_over = True

    def converse(self, pipe, leaves_after):
        rest = self.message
        while len(self.heard) < len(self.message) and leaves_after != 0:
            try:
                count = pipe.write(rest) if rest else 0
            except BrokenPipeError:
                return
            rest = rest[count:]
            chunk = pipe.read(100)
            if chunk == b"":
                return
            self.heard += chunk or b""
            if leaves_after is not None:
                leaves_after -= 1
            yield bool(count or chunk or leaves_after is not None)


class PipeServerStage(ServerStage):
    """One pipe server."""

    client_type = PipeClient

    def __init__(self, seed, chances=None, *, message_mode=False):
        super().__init__(seed, chances)
        self.not_found = 0  # clients that found no pipe of the name
        self.message_mode = message_mode

    def is_closed(self):
        return self.server.closed()

    async def serve(self):
        (self.server,) = await self.loop.start_serving_pipe(self.make_echo, NAME, message_mode=self.message_mode)

    async def finish(self):
        """Then the name is free."""
        await super().finish()
        await self.until(lambda: not self.kernel.open_handles)


@pytest.fixture
def pipe_objects(monkeypatch):
    """`PipeHandle` is Windows' own, and `handle_of` asks by type who has a handle: here each end is its own object."""

    def open_stage(*args, **options):
        stage = PipeServerStage(*args, **options)
        monkeypatch.setattr(
            private, "PipeHandle", lambda handle: stage.kernel.thing(handle, pipes.FakePipeEnd), raising=False
        )
        return stage

    return open_stage


def test_every_client_that_stays_is_served(schedules, pipe_objects):
    """Others leave before they are served, or meanwhile. As long as the server is open, its name is there."""

    def run(seed):
        stage = pipe_objects(seed, message_mode=seed % 2 == 0)

        async def scenario():
            await stage.serve()
            await stage.clients_come()
            await stage.finish()

        stage.run(scenario())
        assert stage.unserved() == []
        assert stage.not_found == 0
        assert stage.loop.reports == []

    schedules(run, 60)


def test_a_factory_or_callback_that_raises_or_closes_loses_its_own_client(schedules, pipe_objects):
    """Also MemoryError, KeyboardInterrupt and SystemExit, after which the loop is run again."""

    def run(seed):
        stage = pipe_objects(seed)
        stage.budget, stage.meddle = 10, stage.meddle_wildly

        async def scenario():
            await stage.serve()
            await stage.clients_come()
            await stage.finish()

        stage.run_through_interrupts(scenario())
        assert len(stage.unserved()) <= stage.dropped
        assert stage.not_found == 0
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    schedules(run, 60)


@pytest.mark.parametrize("fault", ["submit_failure", "no_handle", "memory_error", "interrupt"])
def test_what_runs_out_now_and_then_does_not_silence_the_server(schedules, pipe_objects, fault):
    """ConnectNamedPipe fails, an instance cannot be made or associated, memory is missing, Ctrl+C comes."""

    def run(seed):
        stage = pipe_objects(seed)

        async def scenario():
            await stage.serve()
            setattr(stage.kernel.chances, fault, 0.1)
            await stage.clients_come()
            await stage.finish()

        stage.run_through_interrupts(scenario())

    schedules(run, 30)


def test_a_server_that_is_closed_at_any_moment_leaves_nothing(schedules, pipe_objects):
    """Closed in the middle of a rush, also by its own factory and by a callback."""

    def run(seed):
        stage = pipe_objects(seed, Chances(slow_cancel=0.8))

        def close_sometimes(*_):
            if stage.random.random() < 0.1:
                stage.server.close()

        stage.raise_something = stage.meddle = close_sometimes

        async def scenario():
            await stage.serve()
            await stage.clients_come()
            stage.raise_something = stage.meddle = lambda *_: (
                None
            )  # Who comes last is served, by a server that is open.
            await stage.finish()

        stage.run(scenario())

    schedules(run, 60)


def test_instances_that_fail_for_ever_keep_nobody_busy(pipe_objects):
    """Ten seconds in which no instance can wait for a client; then the system has recovered, and a client is served."""
    stage = pipe_objects(0, Chances(inline=0))
    connect = stage.kernel.ConnectNamedPipe

    def connect_not_too_often(*args):
        if stage.kernel.chances.submit_failure and stage.kernel.calls.get("ConnectNamedPipe", 0) > 200:
            stage.kernel.violation("instances that fail are made again and again")
        return connect(*args)

    stage.kernel.ConnectNamedPipe = connect_not_too_often

    async def scenario():
        await stage.serve()
        PipeClient(stage, stays=True)
        stage.kernel.chances.submit_failure = 1
        await asyncio.sleep(10)
        await stage.finish()

    stage.run(scenario())


def test_a_message_whose_delivery_an_interrupt_has_ended_is_delivered_whole():
    """Between its parts and the call of the protocol."""
    stage = MessageStage(0, Chances(idle=0))
    left, _ = stage.connection()

    class OnceInterrupted(list):
        def __iter__(self):
            left.transport._reader._parts = []
            raise Interrupted

    async def scenario():
        await wait_until_connected(left)
        reader = left.transport._reader
        parts = reader._parts = OnceInterrupted([b"one ", b"whole"])
        with pytest.raises(Interrupted):
            reader._deliver_message()
        assert reader._parts is parts
        reader._parts = list.copy(parts)
        reader._deliver_message()
        assert left.received == [b"one whole"]
        left.received.clear()
        await stage.finish_in_order()

    stage.run(scenario())
