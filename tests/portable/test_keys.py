"""The key of a packet, beside the operation that its address names."""

import asyncio

import pytest
from fakes.kernel import FakeKernel
from fakes.loop import FakeLoop
from fakes.stage import BaseStage

from iocp_loop._core._endpoint import Key
from iocp_loop._core._keys import KeyMismatchError
from iocp_loop._core._operation import IoType, ThreadOperation
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Status


class Two:
    """A proactor with two connections, a receive pending on the first."""

    def __init__(self):
        self.kernel = FakeKernel(0)
        self.proactor = Proactor(kernel=self.kernel)
        self.kernel.watch(self.proactor)
        self.strays = []
        self.proactor.on_stray.append(self.strays.append)
        self.socks = self.kernel.socketpair()
        self.ends = [self.proactor.register(OverlappedSocket(sock.fileno(), sock)) for sock in self.socks]
        buffer = self.proactor.arena.buffer(10)
        self.receive = self.ends[0].receive_operation(print, buffer)
        self.proactor.submit(self.receive)

    def close(self):
        self.proactor.close()


@pytest.fixture
def two():
    it = Two()
    yield it
    it.close()


def packet(two, key):
    return key, two.receive.address, 0, 3


def settled_by(two, key):
    taken = []
    two.proactor.settle([packet(two, key)], taken.append)
    return taken


def test_a_packet_with_another_handles_key_is_a_named_error_and_takes_nothing_back(two):
    two.proactor.check_keys()
    assert settled_by(two, two.ends[1].key) == []
    assert two.receive.pending
    (stray,) = two.strays
    assert isinstance(stray, KeyMismatchError)
    assert f"key {two.ends[1].key}" in str(stray)
    assert "READ" in str(stray)


def test_it_is_told_when_the_others_of_its_batch_are_settled(two):
    """Whoever is told may close, cancel and submit."""
    two.proactor.check_keys()
    other = two.ends[1].receive_operation(print, two.proactor.arena.buffer(10))
    two.proactor.submit(other)
    two.socks[0].send(b"abc")
    (right,) = two.proactor._wait(1000)
    assert right[1] == other.address
    taken, seen = [], []
    two.proactor.on_stray[:] = [lambda _error: seen.append(len(taken))]
    two.proactor.settle([packet(two, two.ends[1].key), right], taken.append)
    assert (seen, [entry[0] for entry in taken]) == ([1], [other])


def test_its_own_key_is_believed(two):
    two.proactor.check_keys()
    two.socks[1].send(b"abc")
    assert [entry[0] for entry in two.proactor.select(1)] == [two.receive]
    two.proactor.settled.clear()
    assert two.strays == []


def test_what_a_thread_of_ours_has_posted_is_believed(two):
    """It has a key of its own, for operations of all handles."""
    two.proactor.check_keys()
    operation = ThreadOperation(IoType.WAIT)
    operation.endpoint, operation.start, operation.args = two.ends[0], lambda: Status.PENDING, ()
    two.proactor.submit(operation)
    two.proactor.port.post(Key.POSTED, operation.address, 7)
    assert list(two.proactor.select(1)) == [(operation, 0, 7)]
    two.proactor.settled.clear()
    assert two.strays == []


def test_a_packet_of_no_operation_is_treated_as_ever(two):
    """A wake-up has the key of none; and an address that is nobody's is a stray, whatever its key."""
    two.proactor.check_keys()
    two.proactor.wake()
    assert not two.proactor.select(1)
    two.proactor.settle([(Key.POSTED, 0x1234, 0, 0)], print)
    two.proactor.settle([(two.ends[0].key, 0x1234, 0, 0)], print)
    (stray,) = two.strays
    assert not isinstance(stray, KeyMismatchError)


def test_a_closed_proactor_compares_no_more(two):
    two.proactor.check_keys()
    two.close()
    assert "settle" not in vars(two.proactor)


@pytest.mark.parametrize("debug", [True, False])
def test_a_loop_compares_in_debug_mode(debug):
    loop = FakeLoop(FakeKernel(0))
    loop.set_debug(debug)
    assert ("settle" in vars(loop.proactor)) is debug
    loop.set_debug(not debug)
    assert ("settle" in vars(loop.proactor)) is not debug
    loop.close()
    loop.set_debug(True)  # Nothing is left to be compared.
    assert "settle" not in vars(loop.proactor)


def test_in_debug_mode_a_loop_reports_it_and_goes_on():
    stage = BaseStage(0)
    stage.loop.set_debug(True)

    async def scenario():
        socks = stage.kernel.socketpair()
        here, there = (stage.loop.proactor.register(OverlappedSocket(sock.fileno(), sock)) for sock in socks)
        receive = here.receive_operation(lambda *_: None, stage.loop.proactor.arena.buffer(4))
        stage.loop.proactor.submit(receive)
        stage.loop.proactor.port.post(there.key, receive.address)
        await asyncio.sleep(0.01)
        assert receive.pending
        for endpoint in (here, there):
            stage.loop.proactor.close_endpoint(endpoint)
        await asyncio.sleep(0.01)

    stage.loop.run_until_complete(scenario())
    (report,) = stage.loop.reports
    assert isinstance(report["exception"], KeyMismatchError)
    stage.loop.close()
