"""Who owns an operation's memory when, against the real kernel: submit, release, close, and what goes wrong."""

import contextlib
import gc
import socket
import struct
import sys

import pytest

from iocp_loop._core._arena import HeapArena
from iocp_loop._core._operation import RELEASED, PlainOperation
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles._base import error_of
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Error, NotificationMode, Status
from iocp_loop.lowlevel import IoType, LifetimeError

from .receiving import Receiver, deliver, deliver_until
from .watched import WatchedKernel, orphans_expected, wait_until

SKIP_SETTING = "SetFileCompletionNotificationModes"


def test_an_operation_in_the_kernels_hands_is_not_submitted_again(receiver):
    receiver.submit()
    with pytest.raises(LifetimeError, match="submitted while pending"):
        receiver.submit()
    receiver.proactor.cancel(receiver.operation)
    with pytest.raises(LifetimeError, match="submitted while cancelling"):
        receiver.submit()


def test_an_operation_in_the_kernels_hands_is_not_released(receiver, proactor):
    receiver.submit()
    with pytest.raises(LifetimeError, match="released while the kernel owned it"):
        proactor.release(receiver.operation)
    receiver.peer.send(b"x")
    deliver_until(proactor, lambda: receiver.results)
    proactor.release(receiver.operation)
    assert receiver.operation.state is RELEASED
    proactor.release(receiver.operation)


def test_a_released_operation_is_not_submitted(receiver, proactor):
    proactor.release(receiver.operation)
    with pytest.raises(LifetimeError, match="submitted while released"):
        receiver.submit()


def test_closing_an_endpoint_waits_for_its_operations(receiver, proactor):
    closed = []
    receiver.submit()
    proactor.close_endpoint(receiver.endpoint, lambda: closed.append(receiver.operation.pending))
    assert closed == []
    assert receiver.sock.fileno() != -1
    with pytest.raises(OSError, match="closing"):
        proactor.submit(receiver.endpoint.receive_operation(receiver.deliver, proactor.arena.buffer(8)))
    proactor.close_endpoint(receiver.endpoint, lambda: closed.append("twice"))
    deliver_until(proactor, lambda: closed)
    assert closed == [False]
    assert receiver.sock.fileno() == -1
    assert receiver.results == [(Status.CANCELLED, b"")]


def test_a_dead_connections_receive_never_takes_a_new_connections_data(proactor):
    """Closing a handle at once gives its value to the next socket; a receive left behind would read from that one."""
    with Receiver(proactor) as old:
        filler = _fill(proactor, old)
        old.submit()
        proactor.close_endpoint(old.endpoint)
        with Receiver(proactor) as new:
            new.peer.send(b"for the new one")
            new.submit()
            deliver_until(proactor, lambda: new.results and old.endpoint.key not in proactor.endpoints)
            assert new.results == [(0, b"for the new one")]
        assert old.results == [(Status.CANCELLED, b"")]
        assert not filler.pending


def _fill(proactor, receiver):
    """A send that stays pending, because the peer reads nothing."""
    sent = receiver.endpoint.send_operation(lambda *_: None)
    for _ in range(200):
        sent.endpoint.set_send_vector(sent, [bytes(1 << 20)])
        proactor.submit(sent)
        if sent.pending:
            return sent
        deliver(proactor)
    raise AssertionError("200 MiB were taken at once")


def test_a_handle_closed_behind_our_back_still_ends_its_operations(proactor):
    """The owner closes the socket without telling; the kernel ends the receive, and cancelling says nothing."""
    with Receiver(proactor) as receiver:
        receiver.submit()
        receiver.sock.close()
        proactor.cancel(receiver.operation)
        deliver_until(proactor, lambda: receiver.results)
        ((status, _),) = receiver.results
        assert isinstance(error_of(receiver.operation, status), ConnectionAbortedError)


def test_an_operation_lost_while_the_kernel_owns_it_is_revived_and_reported(proactor, monkeypatch):
    """Someone empties the pending table: the worst bug we could have. Its memory must live on, and a packet find it."""
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(repr(report.exc_value)))
    strays = []
    proactor.on_stray.append(strays.append)
    with Receiver(proactor) as receiver, orphans_expected(1):
        operation = receiver.endpoint.receive_operation(receiver.deliver, proactor.arena.buffer(8))
        proactor.submit(operation)
        receiver.endpoint.operations.remove(operation)
        del proactor.pending[operation.address]
        del operation
        gc.collect()
        assert len(reports) == 1
        assert "LifetimeError" in reports[0]
        assert "lost its last reference" in reports[0]
        receiver.peer.send(b"x")
        deliver(proactor, 1)
        assert strays == []  # Its packet is known to be an orphan's.


def test_a_packet_nobody_submitted_is_reported_and_the_batch_goes_on(receiver, proactor):
    strays = []
    proactor.on_stray.append(strays.append)
    receiver.submit()
    receiver.peer.send(b"mine")
    wait_until(lambda: receiver.operation.Internal != Status.PENDING)
    proactor.port.post(receiver.endpoint.key, 0xDEAD0)
    proactor.port.post(receiver.endpoint.key, 0)
    deliver_until(proactor, lambda: strays and receiver.results)
    assert receiver.results == [(0, b"mine")]
    assert len(strays) == 1
    assert "0xdead0" in str(strays[0])


def test_a_stray_packet_is_printed_where_nobody_listens(proactor, monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_value))
    proactor.port.post(99, 0xDEAD0)
    deliver(proactor, 1)
    assert [type(report) for report in reports] == [LifetimeError]


def test_a_handle_that_cannot_skip_has_a_packet_for_every_completion(proactor):
    proactor.kernel.fail(SKIP_SETTING, Error.INVALID_PARAMETER)
    with socket.socket() as sock:
        endpoint = proactor.register(OverlappedSocket(sock.fileno()), skip_port=True)
        assert not endpoint.skips_port
        proactor.close_endpoint(endpoint)
    assert proactor.endpoints == {}


def test_skipping_packets_is_asked_for_only_where_it_is_safe(proactor):
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        assert proactor.kernel.skips_port_safely(stream)
        assert not proactor.kernel.skips_port_safely(datagram)


def test_a_failed_registration_keeps_no_record(proactor):
    with socket.socket() as sock, contextlib.closing(Proactor()) as other:
        other.register(OverlappedSocket(sock.fileno()))
        with pytest.raises(OSError):
            proactor.register(OverlappedSocket(sock.fileno()))
        assert proactor.endpoints == {}


def test_closing_a_proactor_ends_everything_and_says_nothing_is_stuck():
    proactor = Proactor(kernel=WatchedKernel())
    receivers = [Receiver(proactor) for _ in range(10)]
    for receiver in receivers:
        receiver.submit()
    assert proactor.close() == []
    assert proactor.close() == []
    assert proactor.pending == {}
    assert all(receiver.sock.fileno() == -1 for receiver in receivers)
    for receiver in receivers:
        receiver.peer.close()


def test_closing_gives_up_on_what_never_ends_and_keeps_its_memory():
    """The kernel says "pending" and then nothing more, whatever it is asked."""
    kernel = WatchedKernel()
    kernel.swallow("WSARecv")
    proactor = Proactor(kernel=kernel)
    receiver = Receiver(proactor)
    receiver.submit()
    with orphans_expected(1):
        assert proactor.close(timeout=0.05) == [receiver.operation]
    assert proactor.port.closed
    assert receiver.sock.fileno() != -1  # Closing it would give its value to another socket.
    assert receiver.operation.pending
    receiver.sock.close()
    receiver.peer.close()


def test_the_structure_begins_with_its_overlapped_and_then_its_type():
    operation = PlainOperation(IoType.WAIT)
    raw = bytes(operation)
    size = struct.calcsize("PPIIP")
    assert PlainOperation.overlapped.offset == 0
    assert int.from_bytes(raw[size : size + 4], sys.byteorder) == IoType.WAIT
    assert "WAIT idle" in repr(operation)


def test_the_skip_mode_is_the_documented_one(proactor):
    with Receiver(proactor, skip=True) as receiver:
        assert receiver.endpoint.skips_port
    expected = NotificationMode.SKIP_COMPLETION_PORT_ON_SUCCESS | NotificationMode.SKIP_SET_EVENT_ON_HANDLE
    assert expected == 3
    assert proactor.kernel.counts[SKIP_SETTING] == 1


def test_the_heap_arena_gives_what_the_kernel_may_write():
    arena = HeapArena()
    buffer = arena.buffer(10)
    assert len(buffer) == 10
    assert buffer[:] == bytes(10)
    arena.release_buffer(buffer)
