"""The stream transport on the real loop over the fake kernel, through thousands of schedules.

What must hold in each: the bytes received are the bytes written, in order; nothing is delivered while reading is
paused; pause_writing and resume_writing alternate; connection_lost comes exactly once and last; the exception handler
is told of the protocol's own exceptions and of nothing else; at the end nothing is pending and no handle is open.
"""

import asyncio
import gc
import socket
import weakref

import pytest
from fakes.kernel import Chances
from fakes.recorders import StreamStage as Stage
from fakes.recorders import finish_in_order, pairs, wait_until_connected
from fakes.stage import Interrupted

from iocp_loop._core._operation import GATHER_MAX, SEND_MAX
from iocp_loop._transports import _reader, _writer
from iocp_loop._transports._send_queue import SendQueue


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
    return stage


def test_every_byte_written_is_received_in_order(schedules):
    schedules(play_in_order, 700)


def test_the_same_with_buffers_and_limits_that_every_message_reaches(schedules, monkeypatch):
    """Receives grow to the largest buffer and fill it; what is gathered in a turn becomes too much in the turn."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)
    monkeypatch.setattr(_writer, "JOIN_MAX", 50)
    schedules(lambda seed: play_in_order(seed, Chances(would_block=0.2)), 500)


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

    schedules(run, 500)


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
        for buffered in (False, seed % 2 == 0):
            for end in stage.connection(buffered=buffered):
                end.sock.capacity = stage.random.choice((64, 500, 5000))
        stage.play_wildly()

    schedules(run, 1500)


def test_memory_that_is_missing_now_and_then_deafens_no_connection(schedules, monkeypatch):
    """Any call may raise MemoryError, WSARecv, WSASend and CancelIoEx included, and so may each piece of memory."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.4))
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_short_of_memory()

    schedules(run, 300)


def test_an_interrupt_at_any_call_of_the_kernel_loses_no_byte_and_no_connection(schedules, monkeypatch):
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.4))
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_through_kernel_interrupts()

    schedules(run, 300)


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
        end.transport.endpoint.unread += b"old,"
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


def test_a_kernel_without_memory_costs_time_and_no_connection(schedules):
    """WSARecv, WSASend or the socket's own call answer WSAENOBUFS now and then."""

    def run(seed):
        play_in_order(seed, Chances(submit_failure=0.3, late_failure=0.2, no_buffers=0.3))

    schedules(run, 250)


def test_no_call_is_given_more_than_a_piece_whatever_is_written(schedules, monkeypatch):
    """Windows takes a send of any size whole: what one call is given is all that flow control can count on."""
    monkeypatch.setattr(_writer, "SEND_MAX", 150)
    monkeypatch.setattr(SendQueue, "send_max", 150)
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 100)

    def run(seed):
        stage = play_in_order(seed, Chances(would_block=0.3))
        assert stage.kernel.largest_send <= 150

    schedules(run, 300)


def test_a_peer_that_does_not_read_pauses_the_protocol_where_the_kernel_takes_sends_of_any_size():
    """Of 50 MiB, one call's worth is in the kernel, and all the rest is counted."""
    stage = Stage(0, Chances(would_block=0))
    sock, peer = stage.kernel.socketpair()
    end = stage.end(sock)
    data = bytes(50 * 1024 * 1024)

    async def scenario():
        await wait_until_connected(end)
        end.transport.write(data)
        await asyncio.sleep(1)
        assert len(peer.inbound) <= SEND_MAX
        assert end.transport.get_write_buffer_size() == len(data) - len(peer.inbound)
        assert end.writing_paused
        end.transport.abort()
        await end.lost
        peer.close()

    stage.run(scenario())


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
    """A hundred messages, each echoed: at the Kernel seam, the receive is armed once more than messages came."""
    stage = Stage(0, Chances(inline=0, would_block=0, partial_send=0, idle=0, reorder=0))
    client, server = stage.connection()
    for end in (client, server):
        end.sock.capacity = 10_000
    server.meddle = lambda: server.write(bytes(server.received[len(server.written) :]))
    before = {}

    async def echo():
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
    stage = Stage(0, Chances(inline=0, would_block=1))
    sock, peer = stage.kernel.socketpair()
    end = stage.end(sock)
    stage.kernel.act(slow_reader(peer, bytearray(), stage.random))
    operations = []

    async def open_and_close():
        await asyncio.sleep(0)
        end.write(b"x" * 100_000)
        operations.extend(map(weakref.ref, stage.loop.proactor.pending.values()))
        end.transport.close()
        await end.lost
        while stage.loop._services.lingerings:  # Until the peer has closed, too.
            await asyncio.sleep(0.01)

    gc.disable()
    try:
        stage.run(open_and_close())
        assert len(operations) == 2
        assert [operation() for operation in operations] == [None, None]
    finally:
        gc.enable()
