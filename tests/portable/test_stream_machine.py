"""The stream transport as a state machine: hypothesis chooses the steps, and shrinks a failing schedule to the few that matter.

The schedules of test_stream_orders.py are many and long; these are short and readable. What a step asks for is done by
the program; what `turn` and `peer_*` bring comes from the kernel, which answers in the order that the seed says.
"""

import asyncio
import contextlib
import os
import socket

import pytest
from fakes.kernel import Chances
from fakes.recorders import StreamStage
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iocp_loop._core._operation import IoType
from iocp_loop._transports import _reader, _writer

STEPS_MAX = 30
# By default the same ones each time, as the seeds of the other tests: a failure in CI is a failure here.
EXAMPLES = int(os.environ.get("IOCP_LOOP_EXAMPLES", 300))

SIZES = st.sampled_from((1, 7, 100, 300))


class StreamMachine(RuleBasedStateMachine):
    """One end is ours; the other is a raw peer without a loop, whom this machine moves."""

    @initialize(
        seed=st.integers(0, 1000),
        buffered=st.booleans(),
        inline=st.sampled_from((0, 0.5, 1)),
        capacity=st.sampled_from((1, 50, 5000)),
        skip_port=st.booleans(),
        lasts=st.sampled_from((0, 15, STEPS_MAX)),
    )
    def connect(self, seed, buffered, inline, capacity, skip_port, lasts):
        self.stage = StreamStage(seed, Chances(inline=inline, would_block=0.3))
        sock, self.peer = self.stage.kernel.socketpair()
        sock.capacity = self.peer.capacity = capacity
        self.end = self.stage.end(sock, buffered=buffered, skip_port=skip_port)
        self.sent = bytearray()  # by the peer
        self.heard = bytearray()  # by the peer
        self.serial = 0
        self.closed = None  # how
        self.lasts = lasts  # so many steps before anything may end: most schedules would be over after a few
        self.receives_at_pause = self.receives_at_end = None
        self.turn()

    def turn(self):
        """One turn of the loop, which may find nothing."""
        self.stage.loop.call_soon(self.stage.loop.stop)
        self.stage.loop.run_forever()

    @property
    def transport(self):
        return self.end.transport

    @property
    def receives(self):
        """How many were submitted so far."""
        return self.stage.kernel.calls.get("WSARecv", 0)

    def message(self, size):
        self.serial += 1
        return (b"%d." % self.serial * size)[:size]

    # -- the program -------------------------------------------------------------------------------------------

    @rule(size=SIZES, count=st.integers(1, 3))
    def write(self, size, count):
        for _ in range(count):
            self.end.write(self.message(size))

    @rule(sizes=st.lists(SIZES, max_size=3))
    def writelines(self, sizes):
        self.end.writelines([self.message(size) for size in sizes])

    @rule(high=st.sampled_from((None, 0, 10, 1000)))
    def set_write_buffer_limits(self, high):
        if not self.end.lost.done():
            self.transport.set_write_buffer_limits(high)

    @rule()
    def pause_reading(self):
        self.transport.pause_reading()
        self.receives_at_pause = self.receives

    @rule()
    def resume_reading(self):
        self.receives_at_pause = None
        before = bytes(self.end.received)
        self.transport.resume_reading()
        assert self.end.received == before, "delivered from inside resume_reading()"

    @precondition(lambda self: self.lasts <= 0)
    @rule()
    def write_eof(self):
        if not self.transport.is_closing():
            self.end.write_eof()

    @precondition(lambda self: self.lasts <= 0)
    @rule()
    def close(self):
        self.closed = self.closed or "close"
        self.transport.close()
        assert self.transport.is_closing()

    @precondition(lambda self: self.lasts <= 0)
    @rule()
    def abort(self):
        if not self.end.lost.done():
            self.closed = "abort"
        self.transport.abort()

    @rule()
    def an_idle_round(self):
        self.stage.loop._services.idle_rounds.go()

    # -- the kernel and the peer -------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def turns(self, count):
        for _ in range(count):
            self.turn()

    @rule(size=SIZES)
    def peer_sends(self, size):
        with contextlib.suppress(OSError):  # There is no room, or the connection is gone.
            data = self.message(size)
            self.sent += data[: self.peer.send(data)]

    @rule(size=SIZES)
    def peer_receives(self, size):
        with contextlib.suppress(OSError):
            self.heard += self.peer.recv(size)

    @rule()
    def peer_shuts_down(self):
        if not self.peer.write_closed:
            self.peer.shutdown(socket.SHUT_WR)

    # -- what holds after each step ----------------------------------------------------------------------------

    @invariant()
    def a_step_has_passed(self):
        self.lasts -= 1

    @invariant()
    def nothing_is_asked_for_while_reading_is_paused_or_after_the_end(self):
        if self.end.eof.done() and self.receives_at_end is None:
            self.receives_at_end = self.receives
        if not self.transport.is_closing():  # What is closed lingers: it drops what still comes.
            assert self.receives_at_pause in (None, self.receives)
        assert self.receives_at_end in (None, self.receives)

    @invariant()
    def no_byte_is_out_of_place(self):
        assert self.sent.startswith(self.end.received)
        assert self.end.written.startswith(self.heard)
        assert self.stage.kernel.violations == []
        assert self.stage.loop.reports == []

    @invariant()
    def at_most_one_receive_and_one_send_are_out(self):
        types = [operation.io_type for operation in self.stage.loop.proactor.pending.values()]
        assert types.count(IoType.READ) <= 1
        assert types.count(IoType.WRITE) <= 1
        if not self.transport.is_closing():
            size = self.transport.get_write_buffer_size()
            # What is out already counts until it is known to be.
            assert size >= len(self.end.written) - len(self.end.sock.sent)
            # Who is asked to stop writing has something to wait for; what is gathered in a turn is no reason to ask.
            assert not self.end.writing_paused or size or self.is_in_a_turn
            _, high = self.transport.get_write_buffer_limits()
            assert self.end.writing_paused or size <= high or self.is_in_a_turn

    @property
    def is_in_a_turn(self):
        return bool(self.stage.loop._turn.corked) or bool(self.stage.loop._turn.callbacks)

    def teardown(self):
        """Everything that is on its way arrives; then the connection is closed, and nothing is left."""
        if not hasattr(self, "stage"):
            return
        try:
            self.finish()
        except BaseException:
            self.stage.loop.take_apart()
            raise
        self.peer.close()
        self.stage.look_at_what_is_left()

    def finish(self):
        if self.closed is None:
            self.transport.resume_reading()
            self.end.write_eof()
        self.settle()
        if self.closed != "abort" and not self.peer.was_reset:  # It is, where close() left what the peer had sent.
            assert self.heard == self.end.written
            assert self.peer.at_end
        if self.closed is None:
            assert self.end.received == self.sent
            assert not self.end.writing_paused
            assert self.transport.get_write_buffer_size() == 0
            self.transport.close()
            self.settle()
        assert self.end.lost.done()
        assert self.end.lost.result() is None

    def settle(self):
        """The peer reads what there is, until nothing moves any more."""

        async def rounds():
            for _ in range(40):
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    while chunk := self.peer.recv(10_000):
                        self.heard += chunk
                        await asyncio.sleep(0.001)
                await asyncio.sleep(0.001)

        self.stage.loop.run_until_complete(rounds())


StreamMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS_MAX,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class TestStreamTransport(StreamMachine.TestCase):
    """What unittest runs; pytest's fixtures reach it all the same."""

    @pytest.fixture(autouse=True)
    def small_buffers(self, monkeypatch):
        monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
        monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)
        monkeypatch.setattr(_writer, "JOIN_MAX", 50)
