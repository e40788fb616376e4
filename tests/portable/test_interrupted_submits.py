"""What becomes of a submit that an exception has cut short: each row of the table in _interrupted.py, one by one."""

import contextlib
from collections import deque

import pytest
from fakes.arena import PatternArena
from fakes.kernel import Chances, FakeKernel
from fakes.rules import Interrupted

from iocp_loop._core._operation import (
    CANCELLING,
    IDLE,
    PENDING,
    SETTLED,
    UNSUBMITTED,
    IoType,
    ReadOperation,
    ThreadOperation,
)
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles._base import winerror_of
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Error, Status, WsaError
from iocp_loop._win32.prototypes import argument
from iocp_loop._win32.types import POINTER_TO


class Connection:
    """A receive on one end of a connection, whose results are kept."""

    def __init__(self, *, skip_port=True, **chances):
        self.kernel = FakeKernel(0, Chances(**{"inline": 0, "idle": 0, "slow_cancel": 0, "late_success": 0} | chances))
        self.proactor = Proactor(kernel=self.kernel, arena=PatternArena())
        self.kernel.watch(self.proactor)
        self.sock, self.peer = self.kernel.socketpair()
        self.endpoint = self.proactor.register(OverlappedSocket(self.sock.fileno(), self.sock), skip_port=skip_port)
        self.buffer = self.proactor.arena.buffer(16)
        self.receive = self.endpoint.receive_operation(self.on_received, self.buffer)
        self.results = []

    def on_received(self, operation, status, byte_count):
        code = winerror_of(operation, status)
        assert not code or not byte_count
        self.results.append(code or self.buffer[:byte_count])

    def submit_interrupted(self, *, after):
        """KeyboardInterrupt before the call of the kernel's, or after it."""
        call = self.receive.start

        def start(*args):
            if after:
                call(*args)
            self.receive.start = call
            raise Interrupted

        self.receive.start = start
        with pytest.raises(Interrupted):
            self.proactor.submit(self.receive)
        assert self.receive.state is PENDING
        assert self.proactor.holds(self.receive)

    def deliver(self, timeout=None):
        settled = self.proactor.select(timeout)
        while settled:
            operation, status, byte_count = settled.popleft()
            operation.deliver(operation, status, byte_count)

    def close(self):
        self.proactor.close_endpoint(self.endpoint)
        assert self.proactor.close() == []
        self.kernel.check()
        self.proactor.arena.check()
        assert self.sock.closed


@pytest.fixture
def connection():
    """A connection with some chances; closed at the end, with nothing left."""
    made = []

    def make(**chances):
        made.append(Connection(**chances))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_call_that_was_never_made_is_made_before_the_next_wait(connection):
    it = connection()
    it.submit_interrupted(after=False)
    assert "WSARecv" not in it.kernel.calls
    it.peer.deliver(b"data")
    it.deliver()
    assert (it.results, it.kernel.calls["WSARecv"]) == ([b"data"], 1)
    assert "CancelIoEx" not in it.kernel.calls, "the status block says it: nobody need be asked"


def test_a_call_that_was_made_is_not_made_again(connection):
    it = connection()
    it.submit_interrupted(after=True)
    it.peer.deliver(b"data")
    it.deliver()
    assert (it.results, it.kernel.calls["WSARecv"]) == ([b"data"], 1)


@pytest.mark.parametrize("skip_port", [True, False])
def test_a_call_that_has_succeeded_at_once_is_found_out(connection, skip_port):
    """With a packet in the port, or without one."""
    it = connection(inline=1, skip_port=skip_port)
    it.peer.deliver(b"data")
    it.submit_interrupted(after=True)
    it.deliver()
    assert (it.results, it.kernel.calls["WSARecv"]) == ([b"data"], 1)


def test_a_call_that_was_refused_is_settled_by_its_error(connection):
    """The status block says "pending" all the same; the thread's last error says what it was."""
    it = connection(submit_failure=1)
    it.submit_interrupted(after=True)
    it.deliver()
    assert (it.results, it.kernel.now_ms) == ([WsaError.NOBUFS], 0)


def test_a_refused_call_whose_error_another_call_has_replaced_is_found_out_by_a_cancel(connection):
    """The kernel cancels only what it has; what it has, and was cancelled, is asked for again by whoever wants it."""
    it = connection()
    it.submit_interrupted(after=True)
    it.proactor.interrupted.codes[it.receive.address] = int(Error.INVALID_PARAMETER)
    it.deliver()
    assert it.results == [Error.OPERATION_ABORTED]


@pytest.mark.parametrize("after", [False, True])
def test_a_cancel_that_comes_before_it_is_known_ends_it(connection, after):
    """cancel(), while nobody knows whether the kernel has it."""
    it = connection()
    it.submit_interrupted(after=after)
    it.proactor.cancel(it.receive)
    assert it.receive.state is CANCELLING
    it.deliver()
    assert it.results == [Error.OPERATION_ABORTED]
    assert it.kernel.calls.get("WSARecv", 0) == after


@pytest.mark.parametrize("after", [False, True])
def test_an_endpoint_that_is_closed_before_it_is_known_closes(connection, after):
    it = connection()
    it.submit_interrupted(after=after)
    it.proactor.close_endpoint(it.endpoint)
    it.deliver(0)
    it.deliver(0)
    assert it.sock.closed
    assert it.results == [Error.OPERATION_ABORTED]


def test_an_argument_that_ctypes_refuses_leaves_the_operation_as_if_it_had_not_been_submitted(connection):
    """An Exception comes before the call: nothing is in the kernel, and it may be submitted again."""
    it = connection()
    call, it.receive.start = it.receive.start, None
    with pytest.raises(TypeError):
        it.proactor.submit(it.receive)
    assert it.receive.state is IDLE
    assert (it.proactor.pending, it.endpoint.operations) == ({}, [])
    it.receive.start = call
    it.peer.deliver(b"data")
    it.proactor.submit(it.receive)
    it.deliver()
    assert it.results == [b"data"]


def test_memory_that_is_missing_is_a_failure_like_the_kernels_own(connection):
    it = connection()
    it.kernel.chances.memory_error = 1
    assert it.proactor.submit(it.receive) is False
    it.kernel.chances.memory_error = 0
    assert it.receive.state is SETTLED
    it.deliver(0)
    assert it.results == [WsaError.NOBUFS]


@pytest.mark.parametrize("exc", [MemoryError, ValueError])
def test_an_exception_behind_the_call_takes_nothing_from_the_kernel(connection, exc):
    """No memory for its answer, say: the call was made."""
    it = connection()
    call = it.receive.start

    def start(*args):
        call(*args)
        it.receive.start = call
        raise exc

    it.receive.start = start
    with contextlib.suppress(ValueError):
        it.proactor.submit(it.receive)
    assert (it.receive.state, list(it.proactor.settled)) == (PENDING, [])
    it.peer.deliver(b"data")
    it.deliver()
    assert (it.results, it.kernel.calls["WSARecv"]) == ([b"data"], 1)


@pytest.mark.parametrize("made", [True, False])
def test_a_native_call_that_has_left_the_block_alone_is_made_once(connection, made):
    """The kernel is asked, by a cancel, whether it has it; whoever wants it asks for it again when that has come."""
    it = connection(slow_cancel=1)

    class NativeReceive(ReadOperation):
        answers_status = True
        __slots__ = ()

    operation = NativeReceive(IoType.READ)
    operation.endpoint, operation.deliver = it.endpoint, it.on_received
    call = it.endpoint.receive_operation(it.on_received, it.buffer)

    def receive():
        operation.start = receive
        wsabuf = argument(POINTER_TO, operation.address + NativeReceive.wsabuf.offset)
        it.kernel.WSARecv(
            *call.args[:1], wsabuf, *call.args[2:5], argument(POINTER_TO, operation.address), call.args[6]
        )
        return Status.PENDING

    def start():
        operation.start = receive
        if made:
            receive()
        operation.Internal = UNSUBMITTED
        raise Interrupted

    operation.endpoint.set_receive_buffer(operation, it.buffer)
    operation.start, operation.args = start, ()
    with pytest.raises(Interrupted):
        it.proactor.submit(operation)
    for _ in range(9):
        it.deliver(0.001)
    if not made:
        it.peer.deliver(b"data")
        it.deliver()
    assert it.results == [Error.OPERATION_ABORTED if made else b"data"]
    assert it.kernel.calls["WSARecv"] == 1


@pytest.mark.parametrize("first", [Interrupted, MemoryError, ValueError])
@pytest.mark.parametrize("answer", [Status.SUCCESS, Status.PENDING, Status.CONNECTION_RESET, MemoryError])
def test_a_function_of_ours_is_called_again(connection, first, answer):
    """The kernel has nothing to do with it; what it answers the second time counts."""
    it = connection()
    operation = ThreadOperation(IoType.WAIT)
    operation.endpoint, operation.args = it.endpoint, ()
    operation.deliver = lambda _operation, *result: it.results.append(result)
    operation.InternalHigh = 5
    answers = [answer, first]

    def start():
        if isinstance(now := answers.pop(), type):
            raise now
        return now

    operation.start = start
    operation.stop = lambda: it.proactor.complete(operation, Status.CANCELLED, 0)
    with contextlib.suppress(Interrupted, ValueError):
        it.proactor.submit(operation)
    it.deliver(0)
    assert answers == []
    assert operation.pending is (answer is Status.PENDING)
    expected = {MemoryError: [(Status.NO_MEMORY, 5)], Status.PENDING: []}.get(answer, [(answer, 5)])
    assert it.results == expected


class InterruptedQueue(deque):
    """A deque whose first append is interrupted, before or after it."""

    def __init__(self, *, after):
        super().__init__()
        self.after = after
        self.is_over = False

    def append(self, entry):
        is_first, self.is_over = not self.is_over, True
        if is_first and not self.after:
            raise Interrupted
        super().append(entry)
        if is_first:
            raise Interrupted


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_while_a_result_is_taken_back_tells_it_once(connection, after):
    """The call has succeeded at once; between two of the steps that make the operation ours again."""
    it = connection(inline=1)
    it.peer.deliver(b"data")
    it.proactor.settled = InterruptedQueue(after=after)
    with pytest.raises(Interrupted):
        it.proactor.submit(it.receive)
    assert it.proactor.holds(it.receive)
    it.deliver(0)
    assert it.results == [b"data"]
    assert (it.proactor.pending, it.endpoint.operations) == ({}, [])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("closing", [False, True])
def test_an_interrupt_while_a_packet_is_settled_tells_it_once(connection, after, closing):
    """Its packet was dequeued; also where it is the last one of an endpoint that is being closed."""
    it = connection()
    it.proactor.submit(it.receive)
    it.peer.deliver(b"data")
    it.kernel.settle_all()
    if closing:
        it.proactor.close_endpoint(it.endpoint)
    it.proactor.settled = InterruptedQueue(after=after)
    with pytest.raises(Interrupted):
        it.proactor.select(0)
    it.deliver(0)
    it.deliver(0)
    assert it.results == [b"data"]
    assert it.sock.closed is closing


@pytest.mark.parametrize("during", ["cancel", "close"])
def test_an_interrupt_while_an_endpoint_is_closed_closes_it_once(connection, during):
    """In the cancel, or in the closing of the handle itself: close_endpoint() has been called, so it is closed."""
    it = connection()
    told = []
    if during == "cancel":
        it.proactor.submit(it.receive)
        cancel = it.kernel.CancelIoEx

        def interrupted(*args):
            it.kernel.CancelIoEx = cancel
            raise Interrupted

        it.kernel.CancelIoEx = interrupted
    else:
        close = it.sock.close

        def interrupted():
            it.sock.close = close
            raise Interrupted

        it.sock.close = interrupted
    with pytest.raises(Interrupted):
        it.proactor.close_endpoint(it.endpoint, lambda: told.append("closed"))
    it.deliver(0)
    it.deliver(0)
    assert it.sock.closed
    assert told == ["closed"]
