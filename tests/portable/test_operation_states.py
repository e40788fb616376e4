"""Who owns an operation's memory: every state, every step between them, and every step that must be refused.

The states and their meaning are in the header of iocp_loop/_core/_operation.py.
"""

import ctypes
import gc
import sys
import weakref

import pytest
from fakes.arena import PatternArena
from fakes.kernel import Chances, FakeKernel

from iocp_loop._core import _arena, _operation
from iocp_loop._core._arena import HeapArena
from iocp_loop._core._endpoint import Endpoint, Key, Kind
from iocp_loop._core._kept import ORPHANS
from iocp_loop._core._operation import (
    CANCELLING,
    IDLE,
    KERNEL_OWNED,
    PENDING,
    RELEASED,
    SETTLED,
    IoType,
    LifetimeError,
    OverlappedEx,
    State,
)
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles import _readiness, _shared_sockets, _threaded, _waits
from iocp_loop._handles._base import winerror_of
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Error

ARENAS = [HeapArena, PatternArena]


@pytest.fixture(params=ARENAS, ids=lambda arena: arena.__name__)
def proactor(request):
    kernel = FakeKernel(0, Chances(inline=0, slow_cancel=1, idle=0))
    proactor = Proactor(kernel=kernel, arena=request.param())
    kernel.watch(proactor)
    yield proactor
    proactor.close()
    kernel.check()


@pytest.fixture
def connection(proactor):
    """(a receive that was not submitted, the socket it runs on, the peer)."""
    sock, peer = proactor.kernel.socketpair()
    endpoint = proactor.register(OverlappedSocket(sock.fileno(), sock))
    buffer = proactor.arena.buffer(16)
    return endpoint.receive_operation(None, buffer), sock, peer


def in_state(proactor, connection, state):
    """Bring the receive there by real steps."""
    operation, _, peer = connection
    if state is not IDLE and state is not RELEASED:
        proactor.submit(operation)
    if state is CANCELLING:
        proactor.cancel(operation)
    if state is SETTLED:
        peer.deliver(b"x")
        proactor.select(None)
    if state is RELEASED:
        proactor.release(operation)
    assert operation.state is state
    return operation


@pytest.mark.parametrize("state", State)
def test_pending_is_what_the_kernel_owns(proactor, connection, state):
    """And what is pending is in the table and on its endpoint; nothing else is."""
    operation = in_state(proactor, connection, state)
    owned = state in (PENDING, CANCELLING)
    assert operation.pending is owned is (state in KERNEL_OWNED)
    assert list(proactor.pending.values()) == [operation] * owned
    assert operation.endpoint.operations == [operation] * owned


@pytest.mark.parametrize("state", [IDLE, SETTLED])
def test_what_is_ours_can_be_submitted(proactor, connection, state):
    operation = in_state(proactor, connection, state)
    proactor.submit(operation)
    assert operation.state is PENDING


@pytest.mark.parametrize("state", [PENDING, CANCELLING, RELEASED])
def test_what_is_not_ours_is_refused(proactor, connection, state):
    operation = in_state(proactor, connection, state)
    calls = dict(proactor.kernel.calls)
    with pytest.raises(LifetimeError, match=f"submitted while {state.value}"):
        proactor.submit(operation)
    assert operation.state is state
    assert proactor.kernel.calls == calls, "the kernel was asked all the same"


@pytest.mark.parametrize("state", [PENDING, CANCELLING])
def test_what_the_kernel_owns_is_not_released(proactor, connection, state):
    operation = in_state(proactor, connection, state)
    with pytest.raises(LifetimeError, match="released while the kernel owned it"):
        proactor.release(operation)
    assert operation.state is state
    assert operation.buffer is not None


@pytest.mark.parametrize("state", [IDLE, SETTLED, RELEASED])
def test_what_is_ours_can_be_released(proactor, connection, state):
    """Twice is once, and what it kept alive is let go."""
    operation = in_state(proactor, connection, state)
    operation.buffer, operation.stop = object(), print
    proactor.release(operation)
    proactor.release(operation)
    assert operation.state is RELEASED
    assert (operation.buffer, operation.stop) == (None, None)


@pytest.mark.parametrize("state", [IDLE, CANCELLING, SETTLED, RELEASED])
def test_only_what_is_pending_is_cancelled(proactor, connection, state):
    """Also not twice: the kernel is asked once."""
    operation = in_state(proactor, connection, state)
    asked = proactor.kernel.calls.get("CancelIoEx", 0)
    proactor.cancel(operation)
    assert operation.state is state
    assert proactor.kernel.calls.get("CancelIoEx", 0) == asked


def test_a_cancelled_operation_is_settled_by_its_packet(proactor, connection):
    operation = in_state(proactor, connection, CANCELLING)
    ((settled, status, byte_count),) = proactor.select(None)
    assert (settled, byte_count, operation.state) == (operation, 0, SETTLED)
    assert winerror_of(operation, status) == Error.OPERATION_ABORTED


def test_an_operation_is_used_again_and_again(proactor, connection):
    """One OVERLAPPED, one address, a hundred receives."""
    operation, _, peer = connection
    address = operation.address
    received = bytearray()
    for number in range(100):
        proactor.submit(operation)
        peer.deliver(b"%d" % (number % 10))
        ((settled, _, byte_count),) = proactor.select(None)
        proactor.settled.clear()
        assert settled is operation
        received += operation.buffer[:byte_count]
    assert received == b"0123456789" * 10
    assert operation.address == address


def test_dying_in_the_kernels_hands_revives_it(monkeypatch):
    """__del__ of a pending operation: it lives on in ORPHANS, and the error says so."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(str(raised.exc_value)))
    operation = OverlappedEx(IoType.READ)
    operation.buffer = buffer = (ctypes.c_char * 8)()
    operation.state = PENDING
    address = operation.address
    del operation
    gc.collect()
    assert len(reported) == 1
    assert "lost its last reference while the kernel owned it" in reported[0]
    (revived,) = ORPHANS
    assert (revived.address, revived.buffer) == (address, buffer)
    revived.state = SETTLED
    ORPHANS.clear()


@pytest.mark.parametrize("state", [IDLE, SETTLED, RELEASED])
def test_dying_in_our_hands_is_nothing_special(state):
    operation = OverlappedEx(IoType.READ)
    operation.state = state
    gone = weakref.ref(operation)
    del operation
    assert gone() is None
    assert ORPHANS == []


def test_an_operation_whose_constructor_failed_dies_quietly():
    """No state was set: __del__ must not fail on that."""
    with pytest.raises(TypeError):
        OverlappedEx()
    gc.collect()
    assert ORPHANS == []


def test_repr_names_type_state_address_and_handle():
    operation = OverlappedEx(IoType.READ)
    assert "READ idle" in repr(operation)
    operation.endpoint = Endpoint(312, None, Kind.SOCKET)
    assert "socket 312" in repr(operation)
    assert f"{operation.address:#x}" in repr(operation)


def test_keys_are_never_used_twice_and_never_reserved_ones():
    keys = [Endpoint(4, None, Kind.SOCKET).key for _ in range(100)]
    assert len(set(keys)) == 100
    assert min(keys) >= Key.FIRST_ENDPOINT > max(Key.WAKE, Key.POSTED)


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_stomp_mode_is_asked_for_by_the_environment(monkeypatch, value, wanted):
    monkeypatch.delenv(_arena.STOMP_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(_arena.STOMP_VARIABLE, value)
    assert _arena.stomp_wanted() is wanted
    assert _arena.STOMP_VARIABLE == "IOCP_LOOP_STOMP"
    assert isinstance(_arena.default_arena(stomp=False), HeapArena)


def test_every_io_type_says_how_its_call_reports_success():
    """Winsock answers 0 for success, BOOL functions answer 0 for failure: a class that forgot is wrong silently."""
    found = {
        cls.__name__: cls.zero_is_success
        for module in (_operation, _readiness, _shared_sockets, _threaded, _waits)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, OverlappedEx) and cls is not OverlappedEx
    }
    assert found == {
        "ReadOperation": True,
        "WriteOperation": True,
        "ReadFromOperation": True,
        "WriteToOperation": True,
        "AcceptOperation": False,
        "ConnectOperation": False,
        "FileReadOperation": False,
        "FileWriteOperation": False,
        "PlainOperation": False,
        "TransmitOperation": False,
        "PollOperation": True,
        "PerformedOperation": True,
        "ThreadOperation": True,
        "CallOperation": True,
        "WaitOperation": True,
    }
