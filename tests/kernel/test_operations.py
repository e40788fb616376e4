"""Operations on the proactor over the real kernel: what each ending looks like, and that it comes once."""

import socket
import threading

import pytest

from iocp_loop._cli import _demo
from iocp_loop._core._operation import CANCELLING, IDLE, PENDING, SETTLED
from iocp_loop._core._proactor import INLINE_TURNS_MAX
from iocp_loop._handles._base import error_of, winerror_of
from iocp_loop._win32.constants import Error, Status, WsaError
from iocp_loop.lowlevel import IoType

from .peers import reset
from .receiving import Receiver, deliver, deliver_until
from .watched import failed, wait_until


def test_a_receive_with_data_waiting_is_delivered_once(receiver, proactor):
    """On a skipping handle it succeeds inline and posts nothing; on another the packet follows. Same path after that."""
    receiver.peer.send(b"ready")
    wait_until(lambda: _peek(receiver.sock))
    receiver.submit()
    assert receiver.results == []  # Never delivered from within submit.
    deliver_until(proactor, lambda: receiver.results)
    for _ in range(3):
        deliver(proactor)
    assert receiver.results == [(0, b"ready")]
    assert receiver.operation.state is SETTLED


def _peek(sock):
    try:
        return sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def test_an_inline_success_on_a_skipping_handle_needs_no_wait(proactor):
    with Receiver(proactor, skip=True) as receiver:
        receiver.peer.send(b"ready")
        wait_until(lambda: _peek(receiver.sock))
        waits = proactor.kernel.counts["GetQueuedCompletionStatusEx"]
        receiver.submit()
        assert proactor.pending == {}
        deliver(proactor, None)
        assert receiver.results == [(0, b"ready")]
        assert proactor.kernel.counts["GetQueuedCompletionStatusEx"] == waits


def test_inline_successes_do_not_hide_the_port_for_ever(proactor):
    """A receive that always finds data is delivered and submitted again, while another endpoint waits for its packet."""
    with Receiver(proactor, skip=True) as busy, Receiver(proactor, skip=True) as quiet:
        quiet.submit()
        quiet.peer.send(b"q")
        busy.peer.sendall(b"b" * 64 * (INLINE_TURNS_MAX + 5))
        wait_until(lambda: len(busy.sock.recv(1 << 20, socket.MSG_PEEK)) >= 64 * (INLINE_TURNS_MAX + 5))
        busy.submit()
        for _ in range(INLINE_TURNS_MAX + 2):
            deliver(proactor)
            if busy.results and not busy.operation.pending and busy.operation.state is not IDLE:
                busy.submit()
        assert quiet.results == [(0, b"q")]
        deliver(proactor)


def test_a_pended_receive_is_the_kernels_until_its_packet_is_dequeued(receiver, proactor):
    receiver.submit()
    assert receiver.operation.state is PENDING
    assert proactor.pending == {receiver.operation.address: receiver.operation}
    assert receiver.endpoint.operations == [receiver.operation]
    receiver.peer.send(b"later")
    deliver_until(proactor, lambda: receiver.results)
    assert receiver.results == [(0, b"later")]
    assert proactor.pending == {}
    assert receiver.endpoint.operations == []


def test_one_operation_serves_many_receives(receiver, proactor):
    for n in range(20):
        receiver.submit()
        receiver.peer.send(b"%d" % n)
        deliver_until(proactor, lambda: len(receiver.results) > n)
    assert receiver.results == [(0, b"%d" % n) for n in range(20)]


def test_cancelling_ends_a_pended_receive_with_a_packet(receiver, proactor):
    receiver.submit()
    proactor.cancel(receiver.operation)
    assert receiver.operation.state is CANCELLING
    assert receiver.operation.pending
    proactor.cancel(receiver.operation)  # Asked already: nothing happens.
    deliver_until(proactor, lambda: receiver.results)
    assert receiver.results == [(Status.CANCELLED, b"")]
    assert proactor.kernel.counts["CancelIoEx"] == 1


def test_cancelling_what_the_kernel_does_not_have_does_nothing(receiver, proactor):
    proactor.cancel(receiver.operation)
    assert receiver.operation.state is IDLE
    receiver.submit()
    receiver.peer.send(b"x")
    deliver_until(proactor, lambda: receiver.results)
    proactor.cancel(receiver.operation)
    assert receiver.operation.state is SETTLED
    assert proactor.kernel.counts["CancelIoEx"] == 0


def test_a_cancel_after_the_kernel_finished_keeps_the_bytes(receiver, proactor):
    """The packet is in the port already when the cancel is asked for: the kernel answers NOT_FOUND."""
    receiver.submit()
    receiver.peer.send(b"kept")
    wait_until(lambda: receiver.operation.Internal != Status.PENDING)
    proactor.cancel(receiver.operation)
    assert receiver.operation.state is CANCELLING
    deliver_until(proactor, lambda: receiver.results)
    assert receiver.results == [(0, b"kept")]


def test_a_cancel_that_comes_too_late_to_stop_it_keeps_the_bytes(receiver, proactor):
    """The cancel is accepted but never takes effect, as Windows may do; the data comes after it."""
    proactor.kernel.faults["CancelIoEx"] = lambda _function, _args: 1
    receiver.submit()
    proactor.cancel(receiver.operation)
    receiver.peer.send(b"late")
    deliver_until(proactor, lambda: receiver.results)
    assert receiver.results == [(0, b"late")]
    del proactor.kernel.faults["CancelIoEx"]


def test_cancels_that_race_with_data_lose_and_double_nothing(proactor):
    """A thread sends while the main thread cancels; whoever wins, there is one delivery and every byte comes once."""
    rounds = 200
    with Receiver(proactor) as receiver:
        go = threading.Semaphore(0)

        def send():
            for n in range(rounds):
                go.acquire()
                receiver.peer.send(n.to_bytes(2, "little"))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        received = b""
        for n in range(rounds):
            receiver.submit()
            go.release()
            proactor.cancel(receiver.operation)
            deliver_until(proactor, lambda: receiver.results)
            ((status, data),) = receiver.results
            assert status in (0, Status.CANCELLED)
            received += data
            receiver.results.clear()
        sender.join(20)
        while len(received) < 2 * rounds:
            receiver.submit()
            deliver_until(proactor, lambda: receiver.results)
            received += receiver.results.pop()[1]
    assert received == b"".join(n.to_bytes(2, "little") for n in range(rounds))


def test_the_end_of_the_stream_is_a_success_of_no_bytes(receiver, proactor):
    receiver.submit()
    receiver.peer.close()
    deliver_until(proactor, lambda: receiver.results)
    assert receiver.results == [(0, b"")]


def test_a_reset_is_a_connection_reset_error(receiver, proactor):
    receiver.submit()
    reset(receiver.peer)
    deliver_until(proactor, lambda: receiver.results)
    ((status, _),) = receiver.results
    error = error_of(receiver.operation, status)
    assert isinstance(error, ConnectionResetError)
    assert error.winerror == WsaError.CONNRESET
    assert f"socket {receiver.endpoint.handle}" in str(error)


def test_a_call_that_fails_at_once_is_settled_and_not_raised(receiver, proactor):
    """WSARecv on a socket whose receiving half is shut down fails inline; no packet comes."""
    receiver.sock.shutdown(socket.SHUT_RD)
    receiver.submit()
    assert proactor.pending == {}
    assert receiver.results == []
    deliver(proactor)
    ((status, data),) = receiver.results
    assert winerror_of(receiver.operation, status) == WsaError.SHUTDOWN
    assert data == b""


def test_a_call_that_fails_without_a_code_is_still_a_failure(receiver, proactor):
    """Another library reset the last error between the call and our look at it."""
    proactor.kernel.faults["WSARecv"] = lambda _function, _args: failed("WSARecv", 0)
    operation = receiver.endpoint.receive_operation(receiver.deliver, proactor.arena.buffer(8))
    proactor.submit(operation)
    deliver(proactor)
    ((status, _),) = receiver.results
    assert winerror_of(operation, status) == Error.INVALID_PARAMETER


def test_packets_of_a_batch_survive_an_exception_in_the_middle_of_it(proactor):
    """KeyboardInterrupt between two packets, with a wake-up among the rest."""

    class Interrupted(type(proactor.settled)):
        armed = True

        def append(self, entry):
            super().append(entry)
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt

    with Receiver(proactor) as first, Receiver(proactor) as second:
        for receiver in (first, second):
            receiver.submit()
            receiver.peer.send(b"x")
        wait_until(lambda: all(r.operation.Internal != Status.PENDING for r in (first, second)))
        proactor.wake()
        proactor.settled = Interrupted(proactor.settled)
        with pytest.raises(KeyboardInterrupt):
            proactor.select(1)
        deliver_until(proactor, lambda: first.results and second.results)
        assert first.results == second.results == [(0, b"x")]
        proactor.wake()
        proactor.select(None)  # Woken again: the flag that coalesces wake-ups was taken back.


def test_waking_many_times_costs_one_packet(proactor):
    for _ in range(100):
        proactor.wake()
    assert proactor.kernel.counts["PostQueuedCompletionStatus"] == 1
    proactor.select(None)
    proactor.wake()
    assert proactor.kernel.counts["PostQueuedCompletionStatus"] == 2
    proactor.select(None)


def test_the_demo_counts_operations_by_their_type(receiver, proactor):
    counts = _demo._count_operations(proactor)
    receiver.submit()
    receiver.peer.send(b"x")
    deliver_until(proactor, lambda: receiver.results)
    assert counts == {IoType.READ: 1}
