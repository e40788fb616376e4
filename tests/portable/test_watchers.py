"""`add_reader` and `add_writer` one by one: who may be watched, who is told when, and who is forgotten."""

import asyncio

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.pipes import FakePipeEnd
from fakes.stage import BaseStage

from iocp_loop._handles import _readiness
from iocp_loop._win32.constants import Status, WsaError


class Stage(BaseStage):
    """A watched socket and its peer."""

    def __init__(self, **chances):
        super().__init__(0, Chances(**{"inline": 0, "would_block": 0, "partial_send": 0} | chances))
        self.sock, self.peer = self.kernel.socketpair()
        self.sock.capacity = self.peer.capacity = 1000
        self.told = []

    def play(self, scenario):
        async def whole():
            await scenario()
            for sock in (self.sock, self.peer):
                self.loop.remove_reader(sock) if not sock.closed else None
                sock.close()
            await quiet()

        self.run(whole())

    def read(self, what="told"):
        self.told.append((what, bytes(self.sock.inbound)))
        self.sock.inbound.clear()


async def quiet():
    """The fake clock moves when nothing else can happen."""
    await asyncio.sleep(0.001)


def test_a_callback_is_told_while_the_socket_is_ready_and_not_after_it_was_removed():
    stage = Stage()

    async def scenario():
        stage.loop.add_reader(stage.sock.fileno(), stage.read)
        await quiet()
        assert stage.told == []
        for message in (b"one", b"two"):
            stage.peer.deliver(message)
            await quiet()
        assert stage.told == [("told", b"one"), ("told", b"two")]
        assert stage.loop.remove_reader(stage.sock)
        assert not stage.loop.remove_reader(stage.sock)
        assert not stage.loop.remove_writer(stage.sock)
        stage.peer.deliver(b"three")
        await quiet()
        assert len(stage.told) == 2

    stage.play(scenario)


def test_a_replaced_callback_is_not_told_any_more():
    stage = Stage()

    async def scenario():
        stage.loop.add_reader(stage.sock, stage.read, "old")
        await quiet()
        stage.loop.add_reader(stage.sock, stage.read, "new")
        stage.peer.deliver(b"x")
        await quiet()
        assert stage.told == [("new", b"x")]

    stage.play(scenario)


def test_a_socket_that_is_closed_under_its_callback_wakes_it_once_and_is_forgotten():
    stage = Stage()

    async def scenario():
        stage.loop.add_reader(stage.sock, stage.told.append, "woken")
        await quiet()
        stage.sock.close()
        await quiet()
        assert stage.told == ["woken"]
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            stage.loop.remove_reader(stage.sock)

    stage.play(scenario)


def test_an_answer_about_whoever_has_the_handle_now_is_no_answer_about_who_was_watched():
    """Closed while no request was out; the handle's value is another socket's when the poll is made, and that is ready."""
    stage = Stage()
    told = []

    async def scenario():
        stage.loop.add_reader(stage.sock, told.append, "woken")
        handle = stage.sock.handle
        stage.sock.close()
        other, peer = stage.kernel.socketpair()
        for sock in (other, peer):
            if sock.handle != handle:
                continue
            sock.peer.deliver(b"for the other")
        assert handle in (other.handle, peer.handle)
        await quiet()
        assert told == ["woken"]
        await quiet()
        assert told == ["woken"]
        assert _readiness.of(stage.loop.proactor)._watches == {}
        other.close()
        peer.close()

    stage.kernel.random.seed(3)
    stage.play(scenario)


def test_a_socket_that_was_closed_can_still_be_removed_by_itself_and_not_by_its_number():
    """Before the loop has found out. The number may be somebody else's by now."""
    stage = Stage()

    async def scenario():
        stage.loop.add_reader(stage.sock, stage.read)
        number = stage.sock.fileno()
        stage.sock.close()
        with pytest.raises(ValueError, match="-1"):
            stage.loop.remove_writer(stage.sock)
        assert stage.loop.remove_reader(stage.sock)
        assert not stage.loop.remove_reader(number)
        await quiet()
        assert stage.told == []

    stage.play(scenario)


@pytest.mark.parametrize("wrong", [-1, "socket", None, object()])
def test_what_is_no_socket_is_refused(wrong):
    stage = Stage()

    async def scenario():
        with pytest.raises(ValueError, match="Invalid file"):
            stage.loop.add_reader(wrong, print)

    stage.play(scenario)


def test_a_pipe_is_no_socket_and_trouble_of_the_systems_is_no_fault_of_the_callers():
    stage = Stage()

    async def scenario():
        pipe = stage.kernel.make(FakePipeEnd)
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            stage.loop.add_reader(pipe, print)
        pipe.close()
        stage.kernel.chances.no_handle = 1
        with pytest.raises(OSError, match="NtCreateFile") as raised:
            stage.loop.add_reader(stage.sock, stage.read)
        assert raised.value.winerror != WsaError.NOTSOCK
        stage.kernel.chances.no_handle = 0
        stage.loop.add_reader(stage.sock, stage.read)
        stage.peer.deliver(b"x")
        await quiet()
        assert stage.told == [("told", b"x")]

    stage.play(scenario)


def test_a_socket_of_a_transport_is_refused():
    """Two would take each other's data."""
    stage = Stage()

    async def scenario():
        sock, peer = stage.kernel.socketpair()
        transport = stage.loop.transport(sock, asyncio.Protocol())
        for refused in (stage.loop.add_reader, stage.loop.add_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                refused(sock, print)
        with pytest.raises(RuntimeError, match="is used by transport"):
            stage.loop.remove_reader(sock)
        await quiet()
        transport.abort()
        peer.close()
        await quiet()

    stage.play(scenario)


@pytest.mark.parametrize("status", [Status.INSUFFICIENT_RESOURCES, Status.NO_MEMORY])
def test_a_poll_that_is_refused_for_want_of_memory_forgets_nobody(status):
    """It says nothing about the socket: it is asked again, and the callback is told when there is something."""
    stage = Stage()

    async def scenario():
        poll = stage.kernel.NtDeviceIoControlFile
        refused = []

        def refuse(*args):
            refused.append(status)
            _readiness.of(stage.loop.proactor)._watches[stage.sock.handle].operation.start = poll
            return status

        stage.loop.add_reader(stage.sock, stage.read)
        _readiness.of(stage.loop.proactor)._watches[stage.sock.handle].operation.start = refuse
        await quiet()
        assert (stage.told, refused) == ([], [status])
        stage.peer.deliver(b"x")
        await quiet()
        assert stage.told == [("told", b"x")]

    stage.play(scenario)


def test_a_loop_that_is_closed_forgets_its_watchers():
    stage = Stage()

    async def scenario():
        stage.loop.add_reader(stage.sock, stage.read)
        stage.loop.add_writer(stage.peer, stage.read)
        await asyncio.sleep(0)

    stage.run_through_interrupts(scenario_and_leave(stage, scenario))


async def scenario_and_leave(stage, scenario):
    await scenario()
    watchers = stage.loop._watchers
    watchers.close()
    assert watchers._table == {}
    await quiet()
    assert _readiness.of(stage.loop.proactor)._watches == {}
    stage.sock.close()
    stage.peer.close()


def test_a_device_is_closed_once_however_often_it_is_closed():
    """After an interrupt it is closed again, and its handle's value may be somebody else's by then."""
    kernel = FakeKernel(0)
    device = _readiness._Device(kernel)
    device.close()
    device.close()
    assert kernel.calls["CloseHandle"] == 1


def test_a_poll_that_finds_no_memory_is_asked_again_less_and_less_often():
    """What changes meanwhile is not forgotten: another interest, and nobody's."""
    stage = Stage()

    def told_of_room():
        stage.told.append("room")
        stage.loop.remove_writer(stage.sock.fileno())

    async def scenario():
        stage.kernel.chances.submit_failure = 1
        stage.loop.add_reader(stage.sock.fileno(), stage.read)
        await asyncio.sleep(10)
        assert stage.kernel.calls["NtDeviceIoControlFile"] < 25
        stage.loop.add_writer(stage.sock.fileno(), told_of_room)
        await asyncio.sleep(10)
        assert stage.kernel.calls["NtDeviceIoControlFile"] < 50
        stage.peer.deliver(b"data")
        stage.kernel.chances.submit_failure = 0
        await asyncio.sleep(1.1)
        assert ("told", b"data") in stage.told
        assert "room" in stage.told

    stage.play(scenario)


def test_a_task_waits_for_a_socket_once_and_others_beside_it():
    stage = Stage()
    wait = stage.loop._watchers.wait

    async def scenario():
        first, second, given_up = (wait(_readiness.Interest.READ, stage.sock) for _ in range(3))
        await quiet()
        assert not first.done()
        given_up.cancel()
        await quiet()
        stage.peer.deliver(b"one")
        await asyncio.gather(first, second)
        await wait(_readiness.Interest.WRITE, stage.sock)
        assert stage.loop._watchers.waiting == set()

    stage.play(scenario)


def test_a_task_whose_socket_or_loop_is_closed_waits_no_more():
    stage = Stage()

    async def scenario():
        waiting = stage.loop._watchers.wait(_readiness.Interest.READ, stage.sock)
        await quiet()
        stage.sock.close()
        await waiting
        others = stage.kernel.socketpair()
        left = stage.loop._watchers.wait(_readiness.Interest.READ, others[0])
        await quiet()
        stage.loop._watchers.close()
        assert stage.loop._watchers.waiting == set()
        assert not left.done()
        for other in others:
            other.close()
        stage.peer.close()
        await quiet()

    stage.play(scenario)
