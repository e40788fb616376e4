"""The proactor over the fake kernel: thousands of schedules of submit, cancel, close and completion.

What must hold in each of them: every submitted operation is delivered exactly once; nothing is pending and no endpoint
is left at the end; no byte is lost, doubled or moved. The fake kernel checks the lifetime of every operation itself.
"""

import ctypes
import sys
import weakref

import pytest
from fakes.arena import PatternArena
from fakes.kernel import Chances, FakeKernel, Violation

from iocp_loop._core._endpoint import Key
from iocp_loop._core._kept import ORPHANS
from iocp_loop._core._operation import CANCELLING, GATHER_MAX, IDLE, PENDING, RELEASED, SETTLED, LifetimeError
from iocp_loop._core._port import PACKETS_MAX
from iocp_loop._core._proactor import INLINE_TURNS_MAX, Proactor
from iocp_loop._handles import _sockets
from iocp_loop._handles._base import winerror_of
from iocp_loop._handles._opening import open_socket
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Error, Status, WsaError


def new_proactor(kernel):
    proactor = Proactor(kernel=kernel, arena=PatternArena())
    kernel.watch(proactor)
    return proactor


def close(proactor, kernel, *, timeout=5.0):
    """The end of every scenario: close, and nothing may be left."""
    stuck = proactor.close(timeout)
    assert proactor.pending == {}
    assert proactor.endpoints == {}
    assert proactor.port.closed
    kernel.check(stuck=len(stuck))
    proactor.arena.check()
    return stuck


class Connection:
    """One end of a connection, driven by hand: what it received, what it sent, and what is outstanding.

    It stands where a transport will: it submits, it takes deliveries, and it counts both.
    """

    def __init__(self, proactor, sock, *, skip_port):
        self.proactor = proactor
        self.sock = sock
        self.endpoint = proactor.register(OverlappedSocket(sock.fileno(), sock), skip_port=skip_port)
        self.buffer = proactor.arena.buffer(16)
        self.receive = self.endpoint.receive_operation(self.on_received, self.buffer)
        self.send = self.endpoint.send_operation(self.on_sent)
        self.submitted = self.delivered = 0
        self.received = bytearray()
        self.written = bytearray()
        self.at_end = self.closed = False
        self.errors = []

    def submit(self, operation):
        self.proactor.submit(operation)
        self.submitted += 1

    def start_receive(self):
        if not self.receive.pending and not self.waiting(self.receive) and not self.endpoint.closing:
            self.submit(self.receive)

    def start_send(self, chunks):
        if not self.send.pending and not self.waiting(self.send) and not self.endpoint.closing:
            self.send.endpoint.set_send_vector(self.send, chunks)
            self.submit(self.send)

    def waiting(self, operation):
        """Settled, and not delivered yet: its memory still holds the result."""
        return any(entry[0] is operation for entry in self.proactor.settled)

    def cancel(self, operation):
        self.proactor.cancel(operation)

    def close(self):
        self.proactor.close_endpoint(self.endpoint, self.on_closed)

    def on_closed(self):
        assert not self.closed, "the endpoint was closed twice"
        assert self.sock.closed
        assert not self.receive.pending
        assert not self.send.pending
        self.closed = True

    def on_received(self, operation, status, byte_count):
        self.delivered += 1
        winerror = winerror_of(operation, status)
        if winerror:
            self.errors.append(winerror)
        else:
            self.received += self.buffer[:byte_count]
            self.at_end |= byte_count == 0

    def on_sent(self, operation, status, byte_count):
        self.delivered += 1
        winerror = winerror_of(operation, status)
        if winerror:
            self.errors.append(winerror)
        # A cancelled send may have taken some of it: the packet says how much.
        data = b"".join(operation.buffer)
        assert winerror or byte_count == len(data)
        self.written += data[:byte_count]


def deliver_some(proactor, kernel):
    settled = proactor.select(0)
    for _ in range(kernel.random.randrange(len(settled) + 1)):
        deliver(settled.popleft())


def deliver_all(proactor):
    while proactor.settled:
        deliver(proactor.settled.popleft())


def deliver(entry):
    operation, status, byte_count = entry
    assert operation.state is SETTLED
    operation.deliver(operation, status, byte_count)


def random_chunks(random, serial):
    count = random.choice((1, 1, 2, 3)) if serial else GATHER_MAX
    return [f"<{serial}.{index}>".encode() for index in range(count)]


EXPECTED_ERRORS = {Error.OPERATION_ABORTED, WsaError.NOBUFS, WsaError.CONNRESET}


def test_every_operation_is_delivered_once_and_no_byte_is_lost(schedules):
    """Both ends of one connection submit, cancel and select at random; then all that was sent is received."""

    def scenario(seed):
        kernel = FakeKernel(seed, Chances(submit_failure=0.05))
        random = kernel.random
        proactor = new_proactor(kernel)
        ends = [Connection(proactor, sock, skip_port=random.random() < 0.5) for sock in kernel.socketpair()]
        for serial in range(30):
            end = random.choice(ends)
            action = random.randrange(8)
            if action <= 1:
                end.start_receive()
            elif action <= 3:
                end.start_send(random_chunks(random, serial))
            elif action == 4:
                end.cancel(random.choice((end.receive, end.send)))
            else:
                deliver_some(proactor, kernel)
        finish_sending(proactor, ends)
        for end, other in (ends, reversed(ends)):
            assert end.received == other.written == other.sock.sent
            assert set(end.errors) <= EXPECTED_ERRORS
        for end in ends:
            end.close()
        close(proactor, kernel)
        deliver_all(proactor)
        assert all(end.closed for end in ends)
        assert [end.submitted for end in ends] == [end.delivered for end in ends]

    schedules(scenario, 1500)


def finish_sending(proactor, ends):
    """Receive on both sides until nothing is on its way."""
    deliver_all(proactor)
    for _ in range(100_000):
        if all(not end.send.pending and not end.sock.inbound and not end.waiting(end.send) for end in ends):
            break
        for end in ends:
            end.start_receive()
        proactor.select(None)
        deliver_all(proactor)
    # A receive that is still out may have its bytes in a packet that was not dequeued.
    for end in ends:
        proactor.cancel(end.receive)
    while any(end.receive.pending for end in ends):
        proactor.select(None)
    deliver_all(proactor)


def test_closing_endpoints_at_any_moment_loses_no_operation(schedules):
    """Several connections; ends are closed, shut down, or reset by their raw peers in the middle of everything."""

    def scenario(seed):
        kernel = FakeKernel(seed, Chances(slow_cancel=0.8))
        random = kernel.random
        proactor = new_proactor(kernel)
        ends, peers = [], []
        for _ in range(3):
            sock, peer = kernel.socketpair()
            ends.append(Connection(proactor, sock, skip_port=random.random() < 0.5))
            peers.append(peer)
            kernel.act(raw_peer(peer, random))
        for serial in range(30):
            end = random.choice(ends)
            action = random.randrange(9)
            if action <= 1:
                end.start_receive()
            elif action <= 3 and not end.sock.write_closed:
                end.start_send(random_chunks(random, serial))
            elif action == 4:
                end.cancel(random.choice((end.receive, end.send)))
            elif action == 5 and random.random() < 0.4:
                end.close()
            elif action == 6 and random.random() < 0.4 and not end.endpoint.closing:
                proactor.cancel_all(end.endpoint)
            else:
                deliver_some(proactor, kernel)
        for end in ends:
            end.close()
        while proactor.endpoints:
            proactor.select(None)
            deliver_all(proactor)
        deliver_all(proactor)
        for end, peer in zip(ends, peers, strict=True):
            assert end.closed
            assert end.submitted == end.delivered
            assert set(end.errors) <= EXPECTED_ERRORS
            assert peer.sent.startswith(end.received)
            assert end.sock.sent == end.written
        close(proactor, kernel)

    schedules(scenario, 2000)


def raw_peer(sock, random):
    """A peer without a proactor: receives, sends, and in the end shuts down, closes, or resets."""
    for serial in range(random.randrange(20)):
        try:
            if random.random() < 0.5:
                sock.recv(random.choice((1, 10, 1000)))
            else:
                sock.send(f"[{serial}]".encode())
        except BlockingIOError:
            yield False
        except OSError:
            break  # Reset by the side under test.
        else:
            yield True
    if random.random() < 0.5:
        sock.close()
    elif random.random() < 0.5:
        sock.write_closed = True


def test_cancel_after_the_kernel_finished_keeps_the_bytes():
    """The receive is done, its packet is in the port, and then it is cancelled: NOT_FOUND, and the data."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    peer.deliver(b"x")
    kernel.settle_all()
    end.cancel(end.receive)
    assert kernel.last_error() == Error.NOT_FOUND
    assert end.receive.state is CANCELLING
    proactor.select(None)
    deliver_all(proactor)
    assert (bytes(end.received), end.errors) == (b"x", [])
    end.close()
    close(proactor, kernel)


def test_a_cancelled_receive_that_succeeds_hands_over_its_data():
    """CancelIoEx found the operation, and data came before the cancel was acted on."""
    kernel = FakeKernel(0, Chances(inline=0, late_success=1, slow_cancel=1))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    end.cancel(end.receive)
    peer.deliver(b"y")
    proactor.select(None)
    deliver_all(proactor)
    assert (bytes(end.received), end.errors) == (b"y", [])
    end.close()
    close(proactor, kernel)


def test_cancel_gives_nothing_back():
    """Right after the cancel the operation is still pending: no second submit, no release."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    end.cancel(end.receive)
    assert proactor.pending == {end.receive.address: end.receive}
    with pytest.raises(LifetimeError, match="submitted while cancelling"):
        proactor.submit(end.receive)
    with pytest.raises(LifetimeError, match="released while the kernel owned it"):
        proactor.release(end.receive)
    end.close()
    close(proactor, kernel)
    deliver_all(proactor)
    assert end.errors == []  # close() clears what nobody was waiting for any more.


def test_inline_success_without_skip_mode_is_delivered_once():
    """The call succeeds, and the packet comes all the same: the call's success must not be taken as the result."""
    kernel = FakeKernel(0, Chances(inline=1))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=False)
    peer.deliver(b"z")
    end.start_receive()
    assert end.receive.state is PENDING
    assert not proactor.settled
    proactor.select(None)
    deliver_all(proactor)
    assert (end.delivered, bytes(end.received)) == (1, b"z")
    end.close()
    close(proactor, kernel)


def test_inline_success_in_skip_mode_needs_no_packet():
    """The call succeeds and the port stays empty: the result is there at once, through `settled` like any other."""
    kernel = FakeKernel(0, Chances(inline=1))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    peer.deliver(b"z")
    end.start_receive()
    assert end.receive.state is SETTLED
    deliver_all(proactor)
    assert (end.delivered, bytes(end.received)) == (1, b"z")
    end.close()
    close(proactor, kernel)


def test_a_call_that_fails_at_once_is_settled_and_ours_again():
    """WSARecv answers WSAENOBUFS; no packet will come, and the status block goes on saying "pending"."""
    kernel = FakeKernel(0, Chances(submit_failure=1))
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=False)
    end.start_receive()
    assert end.receive.Internal == Status.PENDING
    assert proactor.pending == {}
    deliver_all(proactor)
    assert end.errors == [WsaError.NOBUFS]
    end.close()
    close(proactor, kernel)


def test_a_closing_endpoint_takes_no_new_operation():
    """Submitting after close_endpoint raises, and the handle closes all the same."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    end.close()
    with pytest.raises(ConnectionAbortedError, match="it is closing"):
        proactor.submit(end.send)
    assert end.send.state is IDLE
    close(proactor, kernel)
    assert end.closed


def test_closing_twice_closes_once():
    """close_endpoint, close_endpoint; close, close."""
    kernel = FakeKernel(0)
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.close()
    end.close()
    assert end.closed
    close(proactor, kernel)
    assert proactor.close() == []


def test_an_operation_that_never_completes_does_not_hold_up_close():
    """A driver that answers no cancel: close is bounded, and the operation is kept for ever and reported."""
    kernel = FakeKernel(0, Chances(stuck=1))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    stuck = close(proactor, kernel, timeout=0.005)
    assert stuck == [end.receive]
    assert end.receive in ORPHANS
    assert not sock.closed, "its handle must live as long as the operation"
    # The driver wakes up, too late for anybody: it writes into memory that is still there.
    kernel.unstick()
    peer.deliver(b"late")
    kernel.chances.late_success = 1
    kernel.settle_all()
    assert end.buffer[:4] == b"late"
    kernel.check()
    end.receive.state = SETTLED
    ORPHANS.remove(end.receive)


def test_a_packet_of_an_earlier_orphan_is_not_a_stray():
    """An operation that a closed proactor gave up on comes home to the port of the next one, say."""
    kernel = FakeKernel(0, Chances(stuck=1))
    first = new_proactor(kernel)
    end = Connection(first, kernel.socketpair()[0], skip_port=True)
    end.start_receive()
    close(first, kernel, timeout=0.001)
    second = Proactor(kernel=kernel, arena=PatternArena())
    strays = []
    second.on_stray.append(strays.append)
    kernel.inject(end.endpoint.key, end.receive.address)
    second.select(0)
    assert strays == []
    second.close()
    end.receive.state = SETTLED
    ORPHANS.remove(end.receive)


def test_a_packet_that_names_no_operation_is_reported_and_its_batch_is_settled():
    """The packet of a released operation comes a second time, in one batch with a good one."""
    kernel = FakeKernel(0, Chances(inline=0, idle=0))
    proactor = new_proactor(kernel)
    strays = []
    proactor.on_stray.append(strays.append)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    kernel.inject(end.endpoint.key, end.send.address)
    end.start_receive()
    peer.deliver(b"good")
    kernel.settle_all()
    proactor.select(None)
    deliver_all(proactor)
    assert bytes(end.received) == b"good"
    assert [type(stray) for stray in strays] == [LifetimeError]
    assert f"{end.send.address:#x}" in str(strays[0])
    end.close()
    close(proactor, kernel)


def test_a_packet_of_a_closed_endpoint_finds_nobody():
    """Keys are never used twice: a late packet of a closed handle is reported, and nobody else gets it."""
    kernel = FakeKernel(0, Chances(idle=0))
    proactor = new_proactor(kernel)
    strays = []
    proactor.on_stray.append(strays.append)
    first = Connection(proactor, kernel.socketpair()[0], skip_port=True)
    address = first.receive.address
    first.close()
    second = Connection(proactor, kernel.socketpair()[0], skip_port=True)
    assert second.endpoint.key != first.endpoint.key
    kernel.inject(first.endpoint.key, address)
    proactor.select(0)
    assert len(strays) == 1
    assert (first.delivered, second.delivered) == (0, 0)
    second.close()
    close(proactor, kernel)


def test_an_operation_freed_in_the_kernels_hands_is_revived_and_reported(monkeypatch):
    """Its entry is taken out of the pending table, as a bug of ours would, and the last reference goes."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(raised.exc_value))
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = Proactor(kernel=kernel, arena=PatternArena())
    sock, _ = kernel.socketpair()
    endpoint = proactor.register(OverlappedSocket(sock.fileno(), sock))
    operation = endpoint.receive_operation(None, proactor.arena.buffer(8))
    proactor.submit(operation)
    address = operation.address
    del proactor.pending[address], endpoint.operations[:], operation
    assert [type(error) for error in reported] == [LifetimeError]
    revived = ORPHANS.pop()
    assert revived.address == address
    proactor.pending[address] = revived
    endpoint.operations.append(revived)
    proactor.close_endpoint(endpoint)
    close(proactor, kernel)


def test_the_kernel_notices_an_operation_that_left_the_pending_table():
    """The same bug, seen from the kernel's side: the request finishes and nobody holds its operation."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    del proactor.pending[end.receive.address]
    peer.deliver(b"x")
    with pytest.raises(Violation, match="not in the pending table"):
        kernel.settle_all()
    end.receive.state = SETTLED


def test_the_kernel_notices_a_buffer_that_nobody_keeps():
    """The operation lives, and what it receives into was let go."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    end.receive.buffer = None
    peer.deliver(b"x")
    with pytest.raises(Violation, match="keeps the 16 bytes"):
        kernel.settle_all()
    end.receive.state = SETTLED


def test_the_kernel_notices_a_handle_closed_under_its_operations():
    """`sock.close()` with a receive outstanding: on Wine it would steal the next connection's data."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    with pytest.raises(Violation, match="cancel, and wait for the packets"):
        sock.close()
    end.receive.state = SETTLED


def test_the_kernel_notices_one_overlapped_used_twice():
    """The state says "idle" although the kernel has it: the address is in two requests."""
    kernel = FakeKernel(0, Chances(inline=0))
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    end.start_receive()
    end.receive.state = IDLE
    with pytest.raises(Violation, match="submitted again while it is in flight"):
        proactor.submit(end.receive)
    end.receive.state = SETTLED


def test_a_write_into_released_memory_is_noticed():
    """The kernel writes to a buffer after it was given back: the pattern there is broken."""
    arena = PatternArena()
    kernel = FakeKernel(0)
    proactor = Proactor(kernel=kernel, arena=arena)
    buffer = arena.buffer(8)
    address = ctypes.addressof(buffer)
    arena.release_buffer(buffer)
    arena.check()
    ctypes.memmove(address + 3, b"late", 4)
    with pytest.raises(AssertionError, match="was written to"):
        arena.check()
    proactor.close()


def test_a_released_operation_is_not_submitted_again():
    """release, then submit."""
    kernel = FakeKernel(0)
    proactor = new_proactor(kernel)
    sock, _ = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    proactor.release(end.receive)
    assert end.receive.state is RELEASED
    assert end.receive.buffer is None
    with pytest.raises(LifetimeError, match="submitted while released"):
        proactor.submit(end.receive)
    end.close()
    close(proactor, kernel)


def test_a_settled_operation_keeps_no_endpoint_busy():
    """Delivered, not submitted again: the endpoint closes at once, and the operation is garbage like any object."""
    kernel = FakeKernel(0, Chances(inline=1))
    proactor = new_proactor(kernel)
    sock, peer = kernel.socketpair()
    end = Connection(proactor, sock, skip_port=True)
    peer.deliver(b"x")
    end.start_receive()
    deliver_all(proactor)
    end.close()
    assert end.closed
    gone = weakref.ref(end.receive)
    end.receive.deliver = None
    end.receive = None
    assert gone() is None
    close(proactor, kernel)


def test_a_batch_is_bounded_and_the_rest_comes_with_the_next():
    """PACKETS_MAX packets and one more are in the port."""
    kernel = FakeKernel(0, Chances(idle=0, reorder=0))
    proactor = new_proactor(kernel)
    for number in range(PACKETS_MAX + 1):
        proactor.port.post(Key.FIRST_ENDPOINT - 1, 0, number)
    assert len(proactor.port.wait(0)) == PACKETS_MAX
    assert [packet.byte_count for packet in proactor.port.wait(0)] == [PACKETS_MAX]
    assert proactor.port.wait(0) == []
    proactor.close()


def test_many_wakes_cost_one_packet_and_none_is_lost():
    """wake, wake, select; wake, select: the second select must not wait for ever (it would raise Deadlock)."""
    kernel = FakeKernel(0)
    proactor = new_proactor(kernel)
    for _ in range(3):
        proactor.wake()
    assert kernel.calls["PostQueuedCompletionStatus"] == 1
    proactor.select(None)
    proactor.wake()
    proactor.select(None)
    assert kernel.calls["PostQueuedCompletionStatus"] == 2
    proactor.close()


@pytest.mark.parametrize("fault", [OSError, MemoryError, KeyboardInterrupt])
def test_a_wake_that_fails_leaves_nobody_deaf_to_the_next_one(fault):
    """The packet could not be posted, or an interrupt came in between: the next call posts one."""
    kernel = FakeKernel(0)
    proactor = new_proactor(kernel)
    post = kernel.PostQueuedCompletionStatus

    def fail(*_args):
        kernel.PostQueuedCompletionStatus = post
        if fault is OSError:
            return kernel._fail(Error.NOT_ENOUGH_MEMORY)
        raise fault

    kernel.PostQueuedCompletionStatus = fail
    with pytest.raises(fault):
        proactor.wake()
    proactor.wake()
    proactor.select(None)  # Raises Deadlock if nothing was posted.
    proactor.close()


def test_a_wake_that_meets_the_closing_of_the_port_says_that_it_is_closed():
    """Another thread closes the loop between the look at the port and the post: ValueError, as a moment later."""
    kernel = FakeKernel(0)
    proactor = new_proactor(kernel)

    def close_first(*_args):
        proactor.close()
        return kernel._fail(Error.INVALID_HANDLE)

    kernel.PostQueuedCompletionStatus = close_first
    with pytest.raises(ValueError, match="closed"):
        proactor.wake()


def test_inline_completions_do_not_hide_the_port_for_ever():
    """A peer that always has data: after INLINE_TURNS_MAX turns the port is looked at, and another's packet seen."""
    kernel = FakeKernel(0, Chances(inline=1, idle=0))
    proactor = new_proactor(kernel)
    fast, peer = kernel.socketpair()
    fast.capacity = 1_000_000
    peer.deliver(b"x" * 10_000)
    end = Connection(proactor, fast, skip_port=True)
    proactor.wake()
    for turn in range(1, INLINE_TURNS_MAX + 1):
        end.start_receive()
        assert proactor.select(None)
        deliver_all(proactor)
        looked = kernel.calls.get("GetQueuedCompletionStatusEx", 0)
        assert looked == (turn == INLINE_TURNS_MAX)
    end.close()
    close(proactor, kernel)


def test_accepts_and_connects_in_any_order_meet_each_other_once(schedules):
    """Several AcceptEx outstanding, clients by ConnectEx, some accepts cancelled: every pair matches."""

    def scenario(seed):
        kernel = FakeKernel(seed)
        random = kernel.random
        proactor = new_proactor(kernel)
        listener = kernel.listen()
        listening = open_socket(proactor, listener, listener)
        results = []

        def keep(operation, status, byte_count):
            results.append((operation, status))

        sockets = []
        for _ in range(4):
            accept = listening.accept_operation(keep, listener)
            listening.set_accepting_socket(accept, kernel.socket())
            sockets.append(accept.arriving)
            proactor.submit(accept)
        clients = []
        for _ in range(3):
            sock = kernel.socket()
            _sockets.bind_to_any(sock)
            connect = open_socket(proactor, sock, sock).connect_operation(keep, sock, listener.name)
            proactor.submit(connect)
            clients.append(connect)
            if random.random() < 0.3:
                proactor.cancel(connect)
        while any(connect.pending for connect in clients):
            proactor.select(None)
        proactor.close_endpoint(listening)
        while listening.key in proactor.endpoints:
            proactor.select(None)
        settled = list(proactor.settled)
        proactor.settled.clear()
        for entry in settled:
            deliver(entry)
        assert len(results) == len({operation.address for operation, _ in results}) == 7
        accepted = [op.arriving for op, status in results if op.io_type.name == "ACCEPT" and status == 0]
        for op, status in results:
            if op.io_type.name == "ACCEPT" and status == 0:
                local, remote = op.endpoint.accepted_addresses(op)
                op.endpoint.finish_accept(op.arriving, listener)
                assert _sockets.sockaddr.decode(local) == listener.name
                assert _sockets.sockaddr.decode(remote) == op.arriving.getpeername()
        assert len({sock.peer for sock in accepted}) == len(accepted)
        for sock in sockets:
            sock.close()
        close(proactor, kernel)

    schedules(scenario, 500)
