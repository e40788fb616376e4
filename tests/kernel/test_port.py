"""CompletionPort against the real kernel: packets, keys, batches, time-outs, threads, and the end."""

import queue
import socket
import threading
import time

import pytest

from iocp_loop._core import _port
from iocp_loop._core._port import PACKETS_MAX, timeout_to_ms
from iocp_loop._win32.constants import INFINITE, Error
from iocp_loop.lowlevel import CompletionPort

from .platforms import BITS
from .watched import wait_until

LARGEST_ADDRESS = 2**BITS - 1
LARGEST_KEY = LARGEST_ADDRESS - 1


def waiting_threads(port, count, **arguments):
    """Threads that wait on `port`, each until its first packets or error, which come out of the queue."""
    results = queue.SimpleQueue()

    def wait():
        try:
            results.put(port.wait(**arguments))
        except ValueError as exc:
            results.put(exc)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    wait_until(lambda: port._count_waiting() == count, "all threads to wait")
    return threads, results


def test_a_posted_packet_comes_out_as_it_went_in(port):
    posted = [(LARGEST_KEY, LARGEST_ADDRESS, 2**32 - 1), (7, 8, 9), (0, 0, 0)]
    for packet in posted:
        port.post(*packet)
    assert [(packet.key, packet.overlapped, packet.byte_count) for packet in port.wait(5)] == posted


def test_packets_come_in_the_order_they_were_posted(port):
    for key in range(20):
        port.post(key)
    assert [packet.key for packet in port.wait(5)] == list(range(20))


def test_a_batch_holds_as_many_as_asked_for_and_the_rest_stays(port):
    for key in range(PACKETS_MAX + 1):
        port.post(key)
    assert len(port.wait(5)) == PACKETS_MAX
    assert [packet.key for packet in port.wait(5)] == [PACKETS_MAX]
    for key in range(3):
        port.post(key)
    assert [packet.key for packet in port.wait(5, max_packets=2)] == [0, 1]
    assert [packet.key for packet in port.wait(5, max_packets=2)] == [2]


@pytest.mark.parametrize("count", [0, -1, PACKETS_MAX + 1])
def test_a_batch_size_out_of_range_is_refused(port, count):
    with pytest.raises(ValueError, match="max_packets"):
        port.wait(0, max_packets=count)


def test_an_empty_port_answers_at_once_when_asked_for_no_time(port):
    assert port.wait(0) == []
    assert port.wait(-1) == []


@pytest.mark.parametrize("seconds", [0.0004, 0.001, 0.02])
def test_a_wait_without_packets_lasts_its_time_and_is_one_kernel_call(port, kernel, seconds):
    before = time.perf_counter()
    assert port.wait(seconds) == []
    # QUIRK(windows): the kernel counts in ticks and may be up to one short; the loop looks at its clock again.
    assert time.perf_counter() - before > seconds - 0.016
    assert kernel.counts["GetQueuedCompletionStatusEx"] == 1


def test_waiting_times_are_rounded_up_never_to_nearest():
    assert timeout_to_ms(None) == INFINITE
    assert [timeout_to_ms(s) for s in (0, 0.0000001, 0.0004, 0.001, 0.0011)] == [0, 1, 1, 1, 2]
    assert timeout_to_ms(1e12) < INFINITE


def test_a_handle_is_associated_once_for_life(port):
    """A second association, with the same port and then with another one."""
    with socket.socket() as sock, CompletionPort() as other:
        port.associate(sock.fileno(), 5)
        for again in (port, other):
            with pytest.raises(OSError, match="FILE_FLAG_OVERLAPPED") as caught:
                again.associate(sock.fileno(), 6)
            assert caught.value.winerror == Error.INVALID_PARAMETER
            assert f"handle {sock.fileno()}" in str(caught.value)


def test_a_handle_that_is_none_is_refused_with_its_code(port):
    with socket.socket() as sock:
        closed = sock.fileno()
    with pytest.raises(OSError, match=f"handle {closed}") as caught:
        port.associate(closed, 1)
    assert caught.value.winerror == Error.INVALID_HANDLE


@pytest.mark.parametrize("key", [-1, LARGEST_KEY + 1])
def test_a_key_that_is_reserved_or_no_pointer_is_refused(port, key):
    with socket.socket() as sock, pytest.raises(ValueError, match="completion key"):
        port.associate(sock.fileno(), key)


def test_closing_wakes_every_waiting_thread():
    """Eight threads wait for ever; the port is closed under them."""
    port = CompletionPort()
    threads, results = waiting_threads(port, 8)
    port.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert all(isinstance(results.get(), ValueError) for _ in threads)


def test_closing_twice_is_once_and_use_after_it_raises():
    port = CompletionPort()
    port.close()
    port.close()
    assert port.closed
    for use in (port.wait, port.fileno, lambda: port.post(1), lambda: port.associate(1, 1)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "closed" in repr(port)


def test_a_thread_that_was_about_to_wait_when_the_port_closed_never_waits(port, kernel):
    """The thread has seen the port open, and is held there until close() is done: the handle may be another's by then."""
    arrived, closed = threading.Event(), threading.Event()

    port.wait(0)
    found = port._own.batch

    class Own:
        @property
        def batch(self):
            arrived.set()
            closed.wait(20)
            return found

    port._own = Own()
    thread = threading.Thread(target=lambda: pytest.raises(ValueError, port.wait, 0), daemon=True)
    thread.start()
    assert arrived.wait(20)
    port.close()
    closed.set()
    thread.join(20)
    assert not thread.is_alive()
    assert kernel.counts["GetQueuedCompletionStatusEx"] == 1


def test_each_packet_goes_to_exactly_one_of_many_threads(port):
    """Eight threads take 2,000 packets that four threads post."""
    taken = queue.SimpleQueue()

    def take():
        try:
            while True:
                for packet in port.wait(max_packets=16):
                    taken.put(packet.key)
        except ValueError:
            pass  # The port was closed: the end.

    def post(first):
        for key in range(first, first + 500):
            port.post(key)

    takers = [threading.Thread(target=take, daemon=True) for _ in range(8)]
    posters = [threading.Thread(target=post, args=(n * 500,), daemon=True) for n in range(4)]
    for thread in takers + posters:
        thread.start()
    for thread in posters:
        thread.join(30)
    wait_until(lambda: taken.qsize() == 2000, "2,000 packets")
    port.close()
    for thread in takers:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(taken.get() for _ in range(2000)) == list(range(2000))


def test_one_packet_wakes_one_waiting_thread(port):
    threads, results = waiting_threads(port, 4)
    port.post(42)
    assert [packet.key for packet in results.get(timeout=20)] == [42]
    assert sum(thread.is_alive() for thread in threads) >= 3
    assert results.empty()
    port.close()
    for thread in threads:
        thread.join(20)


def test_a_port_is_a_context_manager_and_says_what_it_is():
    with CompletionPort(2) as port:
        assert f"{port.fileno():#x}" in repr(port)
        assert not port.closed
    assert port.closed


@pytest.mark.parametrize("concurrency", [-1, 2**32])
def test_a_concurrency_out_of_range_is_refused(concurrency):
    with pytest.raises(ValueError, match="concurrency"):
        CompletionPort(concurrency)


def test_packets_survive_an_exception_between_the_kernels_answer_and_ours(port, kernel):
    """As when a signal's packet wakes the main thread, and its handler raises before the wait has returned."""

    def interrupted(function, args):
        function(*args)
        raise KeyboardInterrupt

    for key in range(3):
        port.post(key)
    kernel.faults["GetQueuedCompletionStatusEx"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        port.wait(1)
    del kernel.faults["GetQueuedCompletionStatusEx"]
    assert [packet.key for packet in port.wait(0, max_packets=2)] == [0, 1]
    assert [packet.key for packet in port.wait(0)] == [2]
    assert port.wait(0) == []


def test_an_interrupted_wait_that_brought_nothing_leaves_nothing_behind(port, kernel):
    """Packets of an earlier batch are still in memory when a wait is interrupted at its time-out."""

    def interrupted(function, args):
        function(*args)
        raise KeyboardInterrupt

    for key in range(3):
        port.post(key)
    assert len(port.wait(1)) == 3
    kernel.faults["GetQueuedCompletionStatusEx"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        port.wait(0.001)
    del kernel.faults["GetQueuedCompletionStatusEx"]
    assert port.wait(0) == []


@pytest.mark.parametrize("before", ["a time-out", "an interrupted time-out", "packets"])
def test_what_a_time_out_has_written_is_no_packet(port, kernel, monkeypatch, before):
    """As WoW64 does in a program of 32 bits: an entry out of memory that nobody has filled, an old packet as a rule."""

    def interrupted(function, args):
        if not function(*args):
            port._own.batch.keys[0] = 7
        raise KeyboardInterrupt

    def interrupt_a_wait():
        kernel.faults["GetQueuedCompletionStatusEx"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            port.wait(0.001)
        del kernel.faults["GetQueuedCompletionStatusEx"]

    monkeypatch.setattr(_port, "_TIME_OUT_WRITES", True)
    if before == "packets":
        port.post(7)
        assert len(port.wait(1)) == 1
    elif before == "a time-out":
        assert port.wait(0.001) == []
    interrupt_a_wait()
    assert port.wait(0) == []
    if before == "an interrupted time-out":
        interrupt_a_wait()
    # The next packets are not taken for what a time-out has left, though the last failed call was one.
    port.post(8)
    interrupt_a_wait()
    assert [packet.key for packet in port.wait(0)] == [8]
