"""A completion port among threads: who is woken when it is closed, what an interrupted wait keeps, what is posted surely."""

import threading

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.rules import Interrupted

from iocp_loop._core import _port
from iocp_loop._core._port import CompletionPort, Packet
from iocp_loop._win32.constants import Error

WAIT_MAX_S = 20  # of a test that fails


class BlockingKernel(FakeKernel):
    """A wait blocks its thread until something is posted. Who is woken takes all that is there."""

    def __init__(self):
        super().__init__(0, Chances(idle=0, reorder=0))
        self.condition = threading.Condition()
        self.waiting = 0
        self.waiting_at_close = []

    def GetQueuedCompletionStatusEx(self, *args):
        port = next(iter(self._handles.values()))
        with self.condition:
            self.waiting += 1
            self.condition.notify_all()
            assert self.condition.wait_for(lambda: port.packets, WAIT_MAX_S), "nobody has woken this thread"
            self.waiting -= 1
            return super().GetQueuedCompletionStatusEx(*args)

    def PostQueuedCompletionStatus(self, *args):
        with self.condition:
            answer = super().PostQueuedCompletionStatus(*args)
            self.condition.notify_all()
            return answer

    def CloseHandle(self, handle):
        self.waiting_at_close.append(self.waiting)
        return super().CloseHandle(handle)

    def until_waiting(self, count):
        with self.condition:
            assert self.condition.wait_for(lambda: self.waiting == count, WAIT_MAX_S)


class Waiter(threading.Thread):
    """Waits once; what came of it."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port = port
        self.result = None
        self.start()

    def run(self):
        try:
            self.result = self.port.wait(None)
        except Exception as exc:
            self.result = exc

    def outcome(self):
        self.join(WAIT_MAX_S)
        assert not self.is_alive()
        return self.result


def test_closing_wakes_every_thread_and_closes_the_handle_when_the_last_has_gone():
    """The first one takes all the packets that were meant for the others: it must give them back."""
    kernel = BlockingKernel()
    port = CompletionPort(kernel=kernel)
    waiters = [Waiter(port) for _ in range(3)]
    kernel.until_waiting(3)
    port.close()
    for waiter in waiters:
        assert isinstance(waiter.outcome(), ValueError)
        assert "the completion port is closed" in str(waiter.outcome())
    assert kernel.waiting_at_close == [0]
    kernel.check()


def test_a_packet_that_comes_with_the_one_for_closing_is_handed_out():
    """It was dequeued, so it would be lost."""
    kernel = BlockingKernel()
    port = CompletionPort(kernel=kernel)
    waiter = Waiter(port)
    kernel.until_waiting(1)
    with kernel.condition:
        # Both, before anybody is woken.
        port.post(20, 4, 5)
        closer = threading.Thread(target=port.close)
        post = kernel.PostQueuedCompletionStatus
        posted = threading.Event()
        kernel.PostQueuedCompletionStatus = lambda *args: (
            FakeKernel.PostQueuedCompletionStatus(kernel, *args),
            posted.set(),
        )
        closer.start()
        assert posted.wait(WAIT_MAX_S)
        kernel.PostQueuedCompletionStatus = post
    assert waiter.outcome() == [Packet(20, 4, 0, 5)]
    closer.join(WAIT_MAX_S)
    assert kernel.waiting_at_close == [0]


def test_who_comes_to_wait_while_it_is_being_closed_does_not_wait():
    """Between the look at the port and the wait itself: its handle may be somebody else's by then."""
    kernel = FakeKernel(0)
    port = CompletionPort(kernel=kernel)
    port.close()
    with pytest.raises(ValueError, match="closed"):
        port.wait_raw(0)
    assert "GetQueuedCompletionStatusEx" not in kernel.calls


def test_a_port_that_is_closed_by_a_callback_of_the_wait_says_so():
    """The wait fails because another thread has closed the port: ValueError, not the kernel's error."""
    kernel = FakeKernel(0)
    port = CompletionPort(kernel=kernel)

    def close_first(*_args):
        port.close()
        return kernel._fail(Error.INVALID_HANDLE)

    port._wait = close_first
    with pytest.raises(ValueError, match="closed"):
        port.wait(1)


def test_a_wait_that_fails_says_which():
    kernel = FakeKernel(0)
    with CompletionPort(kernel=kernel) as port:
        port._wait = lambda *_: kernel._fail(Error.INVALID_HANDLE)
        with pytest.raises(OSError, match="GetQueuedCompletionStatusEx") as raised:
            port.wait(1)
        assert raised.value.winerror == Error.INVALID_HANDLE


def test_an_interrupted_wait_loses_no_packet(schedules):
    """KeyboardInterrupt before the call, or after it was answered: what the kernel had handed out comes next, once."""

    def run(seed):
        kernel = FakeKernel(seed, Chances(reorder=0))
        with CompletionPort(kernel=kernel) as port:
            received = []
            for number in range(10):
                port.post(20, number)
            kernel.chances.interrupt = 0.4
            while len(received) < 10:
                try:
                    received += [packet.overlapped for packet in port.wait(0, kernel.random.choice((2, 256)))]
                except Interrupted:
                    pass
            kernel.chances.interrupt = 0
            assert received == list(range(10))
            assert port.wait(0) == []

    schedules(run, 100)


def test_packets_handed_back_come_first_and_are_bounded_too():
    """Those of a batch that could not be handled to its end."""
    kernel = FakeKernel(0, Chances(idle=0))
    with CompletionPort(kernel=kernel) as port:
        port.post(30)
        port.hand_back([(20, number, 0, 0) for number in range(3)])
        assert [packet.overlapped for packet in port.wait(0, 2)] == [0, 1]
        assert [packet.key for packet in port.wait(0, 2)] == [20]
        assert [packet.key for packet in port.wait(0, 2)] == [30]


def test_what_must_be_posted_is_posted_as_soon_as_the_system_can(monkeypatch):
    """It is short of memory for a while: the pauses grow, up to a tenth of a second."""
    kernel = FakeKernel(0, Chances(idle=0))
    pauses = []
    monkeypatch.setattr(_port.time, "sleep", pauses.append)
    post = kernel.PostQueuedCompletionStatus
    kernel.PostQueuedCompletionStatus = lambda *args: (
        post(*args) if len(pauses) == 10 else kernel._fail(Error.NOT_ENOUGH_MEMORY)
    )
    with CompletionPort(kernel=kernel) as port:
        with pytest.raises(OSError, match="PostQueuedCompletionStatus"):
            port.post(20)
        assert port.post_surely(20, 4, 5) is None
        assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1]
        assert port.wait(0) == [Packet(20, 4, 0, 5)]
    assert port.post_surely(20, 4, 5) is None  # Nobody waits any more.


def test_a_port_shows_its_state_and_refuses_what_makes_no_sense():
    kernel = FakeKernel(0)
    with pytest.raises(ValueError, match="0 .one per processor. or more, not -1"):
        CompletionPort(-1, kernel=kernel)
    with CompletionPort(kernel=kernel) as port:
        assert repr(port) == f"<CompletionPort handle={port.fileno():#x}>"
        assert port.kernel is kernel
        for key in (-1, 2 ** (8 * _port.ctypes.sizeof(_port.ctypes.c_size_t)) - 1):
            with pytest.raises(ValueError, match="a completion key is 0 to"):
                port.associate(kernel.socket().handle, key)
    assert repr(port) == "<CompletionPort closed>"
    kernel.CreateIoCompletionPort = lambda *_: kernel._fail(Error.NOT_ENOUGH_MEMORY)
    with pytest.raises(OSError, match="a new port"):
        CompletionPort(kernel=kernel)
