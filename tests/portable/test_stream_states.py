"""One connection, step by step: what is outstanding in the kernel, and what is told to whom, in each of its states.

The schedules of test_stream_orders.py say that the whole is right; these tests say what each step is.
"""

import asyncio
import gc
import socket
import warnings

import pytest
from fakes.kernel import Chances
from fakes.network import FakeSocket
from fakes.recorders import Recorder, StreamStage, wait_until_connected

from iocp_loop._asyncio import _private as private
from iocp_loop._core._operation import IoType
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._transports import _idle, _reader, _writer
from iocp_loop._transports._buffered import DIRECT_ROUNDS_MAX
from iocp_loop._transports._joining import JoinBuffer
from iocp_loop._transports._reader import RECEIVE_SIZES, SHRINK_AFTER
from iocp_loop._transports._stream import StreamTransport
from iocp_loop._win32 import sockaddr

CALM = {"inline": 0, "would_block": 0, "partial_send": 0, "idle": 0, "reorder": 0, "slow_cancel": 0, "late_success": 0}


class Stage(StreamStage):
    """One end that is ours, and a raw peer."""

    def __init__(self, *, buffered=False, **chances):
        super().__init__(0, Chances(**CALM | chances))
        self.sock, self.peer = self.kernel.socketpair()
        self.sock.capacity = self.peer.capacity = 10_000_000
        self.ours = self.end(self.sock, buffered=buffered, skip_port=True)

    @property
    def receives(self):
        """How many receives are outstanding."""
        return sum(operation.io_type is IoType.READ for operation in self.loop.proactor.pending.values())

    def play(self, scenario):
        async def whole():
            await wait_until_connected(self.ours)
            await quiet()
            await scenario()
            self.ours.transport.abort()
            await self.ours.lost
            self.peer.close()

        self.run(whole())


async def quiet():
    """The fake clock moves when nothing else can happen."""
    await asyncio.sleep(0.001)


# -- reading ---------------------------------------------------------------------------------------------------


def test_paused_in_its_callback_a_protocol_has_no_receive_outstanding():
    """What comes stays in the kernel, where it holds the peer back, until reading goes on."""
    stage = Stage()

    async def scenario():
        stage.ours.meddle = lambda: stage.ours.transport.pause_reading()
        assert stage.receives == 1
        stage.peer.deliver(b"one")
        await quiet()
        assert (stage.ours.received, stage.receives) == (b"one", 0)
        stage.peer.deliver(b"two")
        await quiet()
        assert (stage.sock.inbound, stage.receives) == (b"two", 0)
        assert "reader=idle+paused" in repr(stage.ours.transport)
        stage.ours.transport.resume_reading()
        await quiet()
        assert stage.ours.received == b"onetwo"

    stage.play(scenario)


def test_what_came_while_reading_was_paused_is_held_and_told_in_the_turn_after_resuming():
    """The receive was out already. resume_reading() itself calls nobody."""
    stage = Stage()

    async def scenario():
        stage.ours.transport.pause_reading()
        stage.peer.deliver(b"held")
        await quiet()
        assert (stage.ours.received, stage.receives) == (b"", 0)
        assert "reader=held+paused" in repr(stage.ours.transport)
        stage.ours.transport.resume_reading()
        assert stage.ours.received == b""
        stage.ours.transport.pause_reading()
        await quiet()
        assert stage.ours.received == b""
        stage.ours.transport.resume_reading()
        await quiet()
        assert (stage.ours.received, stage.receives) == (b"held", 1)

    stage.play(scenario)


def test_after_the_end_of_file_nothing_is_received_any_more():
    """eof_received() has kept the transport open; a receive would bring the end again and again."""
    stage = Stage()

    async def scenario():
        stage.peer.shutdown(socket.SHUT_WR)
        await quiet()
        assert stage.ours.eof.done()
        calls = stage.kernel.calls["WSARecv"]
        for _ in range(3):
            stage.ours.transport.pause_reading()
            stage.ours.transport.resume_reading()
            await quiet()
        assert (stage.receives, stage.kernel.calls["WSARecv"]) == (0, calls)
        assert "reader=ended+straight" in repr(stage.ours.transport)
        stage.ours.write(b"still")
        await quiet()
        assert stage.peer.inbound == b"still"

    stage.play(scenario)


def test_the_receive_buffer_grows_with_full_receives_and_shrinks_with_small_ones():
    """One size up for each that came back full; one down after SHRINK_AFTER in a row that the smaller one would hold."""
    stage = Stage()

    async def sizes_after(*pieces):
        sizes = []
        for piece in pieces:
            stage.peer.deliver(bytes(piece))
            await quiet()
            (operation,) = [op for op in stage.loop.proactor.pending.values() if op.io_type is IoType.READ]
            assert operation.wsabuf.len == len(operation.buffer)
            sizes.append(RECEIVE_SIZES.index(operation.wsabuf.len))
        return sizes

    async def scenario():
        assert await sizes_after(*RECEIVE_SIZES) == [1, 2, 3, 3]
        held = RECEIVE_SIZES[2]
        assert await sizes_after(held, *[held - 1] * SHRINK_AFTER) == [3] * SHRINK_AFTER + [2]
        few = SHRINK_AFTER - 1
        assert await sizes_after(*[1] * few, RECEIVE_SIZES[1], *[1] * SHRINK_AFTER) == [2] * (few + 1 + few) + [1]
        assert await sizes_after(*[1] * SHRINK_AFTER) == [1] * few + [0]
        assert await sizes_after(*[1] * SHRINK_AFTER) == [0] * SHRINK_AFTER

    stage.play(scenario)


class Keeper(asyncio.BufferedProtocol):
    """Counts what it is given, in a buffer of one size."""

    def __init__(self, size):
        self.buffer = bytearray(size)
        self.counts = []
        self.hints = []

    def get_buffer(self, hint):
        self.hints.append(hint)
        return self.buffer

    def buffer_updated(self, count):
        self.counts.append(count)


def test_a_buffered_protocol_receives_much_directly_but_not_for_ever():
    """The receive fills 128 KiB: what comes behind it is received into the protocol's own buffer, a bounded time."""
    stage = Stage()
    keeper = Keeper(50_000)

    async def scenario():
        for size in RECEIVE_SIZES[:2]:
            stage.peer.deliver(bytes(size))
            await quiet()
        stage.ours.transport.set_protocol(keeper)
        stage.peer.deliver(bytes(RECEIVE_SIZES[2] + 50_000 * DIRECT_ROUNDS_MAX + 10))
        await quiet()
        copied = keeper.hints.index(-1)
        assert sum(keeper.counts[:copied]) == RECEIVE_SIZES[2]
        assert keeper.counts[copied:] == [50_000] * DIRECT_ROUNDS_MAX + [10]
        assert keeper.hints[copied:] == [-1] * DIRECT_ROUNDS_MAX + [10]
        # Less than the buffer holds was there: no second look.
        stage.peer.deliver(bytes(RECEIVE_SIZES[2] + 70_000))
        await quiet()
        assert keeper.counts[-2:] == [50_000, 20_000]
        assert keeper.hints.count(-1) == DIRECT_ROUNDS_MAX + 2
        stage.ours.transport.set_protocol(stage.ours)

    stage.play(scenario)


@pytest.mark.parametrize("ending", ["pause", "end", "reset", "nothing"])
def test_receiving_directly_ends_with_what_there_is(ending):
    """The protocol pauses; the stream ends, or is reset; or there is nothing yet, and the next receive waits."""
    stage = Stage()
    keeper = Keeper(RECEIVE_SIZES[2])
    lost = stage.loop.create_future()
    keeper.connection_lost = lost.set_result

    async def scenario():
        for size in RECEIVE_SIZES[:2]:
            stage.peer.deliver(bytes(size))
            await quiet()
        stage.ours.transport.set_protocol(keeper)
        if ending == "pause":
            keeper.buffer_updated = lambda count: (keeper.counts.append(count), stage.ours.transport.pause_reading())
        stage.peer.deliver(bytes(RECEIVE_SIZES[2]))
        if ending == "pause":
            stage.peer.deliver(b"for later")
        if ending == "end":
            stage.peer.shutdown(socket.SHUT_WR)
        elif ending == "reset":
            receive = stage.sock.recv_into

            def receive_into(buffer):
                stage.sock.reset_arrives()
                return receive(buffer)

            stage.ours.transport._reader._direct = receive_into
        await quiet()
        assert keeper.counts == [RECEIVE_SIZES[2]]
        if ending == "reset":
            assert isinstance(await lost, ConnectionResetError)
        elif ending == "end":
            assert await lost is None  # Its eof_received() did not ask to keep the transport open.
        else:
            assert stage.receives == (ending == "nothing")
            assert stage.sock.inbound == (b"for later" if ending == "pause" else b"")
            stage.ours.transport.set_protocol(stage.ours)

    if ending in ("reset", "end"):
        stage.ours.lost.set_result(None)  # Another is told.
    stage.play(scenario)


def test_an_empty_buffer_of_the_protocols_ends_its_connection_with_the_reason():
    stage = Stage()
    keeper = Keeper(0)
    lost = stage.loop.create_future()
    keeper.connection_lost = lost.set_result

    async def scenario():
        stage.ours.transport.set_protocol(keeper)
        stage.peer.deliver(b"x")
        assert "get_buffer() returned an empty buffer" in str(await lost)
        stage.ours.lost.set_result(None)

    stage.play(scenario)
    (report,) = stage.loop.reports
    assert "buffer_updated() call failed" in report["message"]


# -- while nothing comes ---------------------------------------------------------------------------------------


def with_buffers(stage):
    """Readers that have a receive outstanding into a buffer of their own."""
    sinks = [(op.deliver.__self__, op) for op in stage.loop.proactor.pending.values() if op.io_type is IoType.READ]
    return [sink for sink, op in sinks if isinstance(sink, _reader.Reader) and len(op.buffer)]


def test_silent_connections_give_their_buffers_back_and_take_one_when_something_comes(monkeypatch):
    """After two rounds; who was heard of in between keeps its own. The loop counts those that have one."""
    monkeypatch.setattr(_idle, "BUFFERS_MIN", 4)
    stage = StreamStage(0, Chances(**CALM))
    pairs = [stage.kernel.socketpair() for _ in range(6)]
    ends = [stage.end(sock, skip_port=True) for sock, _ in pairs]
    rounds = stage.loop._services.idle_rounds

    async def scenario():
        await quiet()
        assert len(with_buffers(stage)) == len(rounds) == 6
        await asyncio.sleep(_idle.ROUND_S + 1)
        pairs[0][1].deliver(b"here")
        await asyncio.sleep(_idle.ROUND_S)
        assert len(with_buffers(stage)) == len(rounds) == 1
        assert ends[0].received == b"here"
        # A few have one: no timer wakes the loop for them.
        await asyncio.sleep(2 * _idle.ROUND_S)
        assert stage.loop._timer_heap == []
        for end, (_, peer) in zip(ends, pairs, strict=True):
            peer.deliver(b"again")
            await quiet()
            assert end.received.endswith(b"again")
        assert len(with_buffers(stage)) == len(rounds) == 6
        # The rounds go on, and find them silent again.
        await asyncio.sleep(3 * _idle.ROUND_S)
        assert len(with_buffers(stage)) == len(rounds) == 0
        pairs[1][1].deliver(b"awake")
        await quiet()
        assert len(rounds) == 1
        for end, (_, peer) in zip(ends, pairs, strict=True):
            end.transport.abort()
            await end.lost
            peer.close()
        assert len(rounds) == 0

    stage.run(scenario())


def test_a_round_cancels_a_few_in_each_turn(monkeypatch):
    """Ten thousand at once would hold up everybody else."""
    monkeypatch.setattr(_idle, "CANCELS_AT_ONCE_MAX", 2)
    stage = StreamStage(0, Chances(**CALM))
    pairs = [stage.kernel.socketpair() for _ in range(5)]
    ends = [stage.end(sock, skip_port=True) for sock, _ in pairs]

    async def scenario():
        await quiet()
        stage.loop._services.idle_rounds.go()
        counts = []
        stage.loop._services.idle_rounds.go()
        for _ in range(4):
            counts.append(stage.kernel.calls.get("CancelIoEx", 0))
            await asyncio.sleep(0)
        assert counts == [2, 4, 5, 5]
        for end, (_, peer) in zip(ends, pairs, strict=True):
            end.transport.abort()
            await end.lost
            peer.close()

    stage.run(scenario())


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_out_of_eof_received_closes_the_connection(exc):
    """It has given no answer, and nobody asks for one a second time: the connection must not stay half open."""
    stage = Stage()

    async def scenario():
        def interrupted():
            raise exc

        await wait_until_connected(stage.ours)
        stage.ours.eof_received = interrupted
        stage.peer.close()
        assert await stage.ours.lost is None

    stage.run_through_interrupts(scenario())


def test_a_cancel_without_memory_is_asked_before_the_next_wait(monkeypatch):
    """Of one receive, by an idle round; and of all, by a close."""
    monkeypatch.setattr(_idle, "BUFFERS_MIN", 1)
    stage = Stage()

    async def scenario():
        await asyncio.sleep(_idle.ROUND_S + 1)
        stage.kernel.chances.memory_error = 1
        stage.loop._services.idle_rounds._go_on_time()
        stage.kernel.chances.memory_error = 0
        await asyncio.sleep(0)
        assert not with_buffers(stage)
        stage.kernel.chances.memory_error = 1
        stage.ours.transport.abort()
        stage.kernel.chances.memory_error = 0
        assert await stage.ours.lost is None

    stage.play(scenario)


def test_a_round_that_fails_is_reported_and_the_next_one_comes(monkeypatch):
    """A cancel raises."""
    monkeypatch.setattr(_idle, "BUFFERS_MIN", 1)
    stage = Stage()

    def refuse(*_args):
        raise RuntimeError("from the kernel")

    async def scenario():
        await asyncio.sleep(_idle.ROUND_S + 1)
        with monkeypatch.context() as now:
            now.setattr(stage.kernel, "CancelIoEx", refuse)
            with pytest.raises(RuntimeError, match="from the kernel"):
                stage.loop._services.idle_rounds._go_on_time()
        assert with_buffers(stage)
        await asyncio.sleep(2 * _idle.ROUND_S)
        assert not with_buffers(stage)

    stage.play(scenario)


# -- writing ---------------------------------------------------------------------------------------------------


def test_an_abort_tells_whoever_waits_for_the_writes_to_go_out():
    """loop.sendfile waits for its turn behind a write that the kernel has not taken."""
    stage = Stage()
    stage.peer.capacity = 0

    async def send_file():
        async with stage.ours.transport.behind_all_writes():
            raise AssertionError("the writes are not out")

    async def scenario():
        stage.ours.write(b"more than there is room for")
        sending = asyncio.create_task(send_file())
        await quiet()
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            stage.ours.transport.write(b"x")
        with pytest.raises(RuntimeError, match="already set"):
            async with stage.ours.transport.behind_all_writes():
                pass
        assert "writer=flushing+sendfile" in repr(stage.ours.transport)
        stage.ours.transport.abort()
        with pytest.raises(ConnectionAbortedError):
            await asyncio.wait_for(sending, 1)

    stage.play(scenario)


def test_a_shutdown_that_fails_ends_the_connection_with_the_reason():
    """write_eof() on a connection that the stack has lost meanwhile."""
    stage = Stage()

    async def scenario():
        stage.sock.context_updated = False
        stage.ours.transport.write_eof()
        exc = await stage.ours.lost
        assert isinstance(exc, OSError)
        assert exc.errno == 107 or exc.winerror == 10057

    stage.play(scenario)


def test_the_pieces_of_a_join_are_in_one_row_and_the_memory_is_used_again():
    buffer = JoinBuffer()
    with buffer.join([b"a" * 1000, b"b"]) as view:
        assert bytes(view) == b"a" * 1000 + b"b"
    with buffer.join([b"c", b"d"]) as view:
        # Of what was longer before, nothing shows.
        assert bytes(view) == b"cd"


def test_whoever_keeps_what_was_joined_keeps_it_as_it_was():
    """A send() that is a Python function, or an error's traceback, holds the memory while the next join comes."""
    buffer = JoinBuffer()
    kept = buffer.join([b"first"])
    with buffer.join([b"second", b" one"]) as view:
        assert bytes(view) == b"second one"
        assert bytes(kept) == b"first"
    with buffer.join([b"third"]) as view:
        assert bytes(view) == b"third"
    assert bytes(kept) == b"first"


# -- what a transport says of itself ---------------------------------------------------------------------------


def test_a_transport_shows_its_state_from_open_to_closed():
    stage = Stage(would_block=1)
    stage.peer.capacity = 1

    async def scenario():
        transport = stage.ours.transport
        assert repr(transport) == (
            f"<StreamTransport open fd={stage.sock.handle} reader=out+straight writer=direct bufsize=0>"
        )
        stage.ours.write(b"12345")
        assert "writer=flushing bufsize=5" in repr(transport)
        transport.close()
        assert "StreamTransport closing" in repr(transport)
        assert "reader=out+stopped writer=flushing+closing" in repr(transport)
        transport.abort()
        await stage.ours.lost
        await quiet()
        assert repr(transport) == "<StreamTransport closed>"

    stage.play(scenario)


class Server:
    """What a transport asks of the server that has accepted it, on every version of Python."""

    def __init__(self, *, refuses=False):
        self.refuses = refuses
        self.attached = 0

    def _attach(self, *_transport):
        if self.refuses:
            raise RuntimeError("it is closed")
        self.attached += 1

    def _detach(self, *_transport):
        self.attached -= 1


def accepted(stage, server, protocol, **options):
    sock, peer = stage.kernel.socketpair()
    endpoint = stage.loop.proactor.register(OverlappedSocket(sock.fileno(), sock), skip_port=True)
    return StreamTransport(stage.loop._services, endpoint, sock, protocol, server=server, **options), sock, peer


def test_names_come_from_the_accept_and_the_server_knows_its_connections():
    """AcceptEx has brought both addresses, packed: no call asks for them, and none is unpacked that nobody wants."""
    stage = StreamStage(0, Chances(**CALM))
    end = Recorder(stage.loop)
    packed = tuple(sockaddr.encode(socket.AF_INET, ("127.0.0.1", port)) for port in (80, 4711))
    server = Server()

    async def scenario():
        transport, sock, peer = accepted(stage, server, end, addresses=packed)
        assert server.attached == 1
        assert transport.get_extra_info("sockname") == ("127.0.0.1", 80)
        assert transport.get_extra_info("peername") == ("127.0.0.1", 4711)
        assert transport.get_extra_info("compression", "none") == "none"
        await quiet()
        transport.close()
        await end.lost
        await quiet()
        assert server.attached == 0
        peer.close()

    stage.run(scenario())


def test_a_server_that_is_closed_refuses_the_transport_which_then_has_nothing_to_close():
    """Its own protocol factory has closed it: whoever makes the transport closes the socket."""
    stage = StreamStage(0, Chances(**CALM))

    async def scenario():
        with pytest.raises(RuntimeError, match="it is closed"):
            accepted(stage, Server(refuses=True), asyncio.Protocol())
        for endpoint in list(stage.loop.proactor.endpoints.values()):
            if isinstance(endpoint.owner, FakeSocket):
                endpoint.owner.peer.close()
                stage.loop.proactor.close_endpoint(endpoint)

    stage.run(scenario())
    assert stage.loop.reports == []


def test_a_real_socket_is_shown_as_asyncio_shows_it():
    """It must not be used past the transport; and the transport knows it for life."""
    stage = StreamStage(0, Chances(**CALM))
    end = stage.end(stage.kernel.socketpair()[0], skip_port=True)

    async def scenario():
        await wait_until_connected(end)
        with socket.socket() as real:
            end.transport._extra.handle = real
            shown = end.transport.get_extra_info("socket")
            assert isinstance(shown, private.TransportSocket)
            assert end.transport.get_extra_info("socket") is shown
        end.sock.peer.close()
        end.transport.abort()
        await end.lost

    stage.run(scenario())


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("size", [4096, 512 * 1024])
def test_a_program_that_writes_as_long_as_it_may_lets_others_run(size, alone, monkeypatch):
    """The kernel takes everything, and yet the protocol is paused within the turn; and goes on in the next one.

    Of large pieces the turn takes more while nobody else is queued.
    """
    monkeypatch.setattr(_writer, "ALONE_FACTOR", 4)  # The fake network takes not as much as a kernel.
    stage = Stage()

    async def scenario():
        for _ in range(3):
            written = 0
            if not alone:
                asyncio.get_running_loop().call_soon(bool)
            while not stage.ours.writing_paused and written < 2 * _writer.ALONE_FACTOR * _writer.TURN_SIZE_MAX:
                stage.ours.write(bytes(size))
                written += size
            # Of large pieces the first, the last and the one that exceeds the turn's share come to it.
            is_large = size >= _writer.CORKED_SIZE_MAX
            share = _writer.TURN_SIZE_MAX * (_writer.ALONE_FACTOR if alone and is_large else 1)
            assert share // 2 < written <= share + (3 * size if is_large else _writer.TURN_SIZE_MAX + size)
            await asyncio.sleep(0)
            assert not stage.ours.writing_paused
        stage.ours.write_eof()
        while stage.peer.recv(1 << 20):
            await asyncio.sleep(0)

    stage.play(scenario)


def test_a_schedule_that_fails_leaves_no_transport_to_be_reported_by_the_next_one():
    """One that was closing, with its receive still in the kernel: its wreck failed whichever test came next."""

    def fail():
        stage = Stage(slow_cancel=1)

        async def scenario():
            await wait_until_connected(stage.ours)
            await quiet()
            stage.kernel.chances.idle = 1  # The cancel is not answered yet.
            stage.ours.transport.abort()
            await asyncio.sleep(0)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stage.run(scenario())

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fail()
        gc.collect()
    assert [str(each.message) for each in told] == []
