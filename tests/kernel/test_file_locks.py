"""The lock of a file object that is opened for synchronous I/O, which Windows has and Wine has not.

A read that waits keeps it, and whoever else asks anything of the handle waits for it. Here each call of ours takes a lock
of that handle, as Windows does; other readers of the same handle are threads that hold it.
"""

import asyncio
import contextlib
import ctypes
import threading

import pytest

from iocp_loop._core._endpoint import Kind
from iocp_loop._handles import _blocking
from iocp_loop._handles._blocking import PAUSE_BUSY_S, PAUSE_FIRST_S, PAUSE_IDLE_S, PlainHandle
from iocp_loop._loop import _questions
from iocp_loop._win32.constants import Error

from .peers import Recorder
from .test_stdio import no_thread_left, pipe, refuse_threads
from .watched import here, until

__all__ = ["no_thread_left", "pipe"]
LOCKED = (
    "GetConsoleMode",
    "GetFileType",
    "NtQueryInformationFile",
    "PeekNamedPipe",
    "ReadFileBlocking",
    "WriteFileBlocking",
)


class FileLocks:
    """One lock for each handle; `waited` says which calls of the loop's own thread have had to wait for one."""

    def __init__(self, loop):
        self.locks = {}
        self.waited = []
        self.loop_thread = threading.get_ident()
        for name in LOCKED:
            loop.watched.faults[name] = self.locking(name)

    def of(self, handle):
        return self.locks.setdefault(int(handle), threading.RLock())

    def locking(self, name):
        def call(function, args):
            lock = self.of(args[0])
            if not lock.acquire(blocking=False):
                if threading.get_ident() == self.loop_thread:
                    self.waited.append(name)
                lock.acquire()
            try:
                return function(*args)
            finally:
                lock.release()

        return call

    @contextlib.contextmanager
    def held_by_another_reader(self, handle):
        """`input()` in a thread, or a child that reads what it has inherited."""
        holds, done = threading.Event(), threading.Event()

        def read():
            with self.of(handle):
                holds.set()
                done.wait()

        thread = threading.Thread(target=read)
        thread.start()
        holds.wait()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def is_free(self, handle):
        """Whether somebody who asks now gets an answer: a child that starts, for example."""
        lock = self.of(handle)
        if not lock.acquire(timeout=0.2):
            return False
        lock.release()
        return True


def handle_of(file):
    from msvcrt import get_osfhandle

    return get_osfhandle(file.fileno())


async def test_a_reader_that_waits_does_not_keep_the_lock(pipe):
    reader, writer = pipe
    locks, handle = FileLocks(here()), handle_of(reader)
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    for number in range(3):
        for _ in range(5):
            assert await asyncio.to_thread(locks.is_free, handle)
        writer.write(b"%d" % number)
        assert await protocol.receives(1) == b"%d" % number
    assert locks.waited == []
    transport.close()
    assert await protocol.gone() is None


async def test_one_file_object_is_read_and_written_at_a_time(pipe):
    """Some terminals and ssh servers give a program one for both."""
    reader, _ = pipe
    locks, handle = FileLocks(here()), handle_of(reader)
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: here().counts["PeekNamedPipe"] > 3)
    assert await asyncio.to_thread(locks.is_free, handle)
    transport.close()
    assert await protocol.gone() is None


@pytest.mark.parametrize("connect", ["connect_read_pipe", "connect_write_pipe"])
async def test_while_somebody_else_reads_it_a_handle_is_refused_and_the_loop_goes_on(pipe, connect, monkeypatch):
    monkeypatch.setattr(_questions, "PATIENCE_S", 0.2)
    loop, turns, file = here(), 0, pipe[connect == "connect_write_pipe"]
    locks = FileLocks(loop)

    def count():
        nonlocal turns
        turns += 1
        timer = loop.call_later(0.01, count)
        timers.append(timer)

    timers = []
    with locks.held_by_another_reader(handle_of(file)):
        count()
        with pytest.raises(OSError, match="another read of it is waiting") as caught:
            await getattr(loop, connect)(Recorder, file)
        assert caught.value.winerror == Error.BUSY
    timers[-1].cancel()
    assert turns > 3
    assert locks.waited == []
    assert not file.closed
    transport, protocol = await getattr(loop, connect)(Recorder, file)
    transport.close()
    await protocol.gone()


async def test_a_reader_that_waits_for_another_ones_lock_holds_up_its_own_thread_only(pipe):
    reader, writer = pipe
    locks, handle = FileLocks(here()), handle_of(reader)
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    with locks.held_by_another_reader(handle):
        writer.write(b"behind it")
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert protocol.received == b""
    assert await protocol.receives(9) == b"behind it"
    assert locks.waited == []
    transport.close()
    assert await protocol.gone() is None


async def test_what_is_no_handle_is_said_to_be_none_as_ever(pipe):
    reader, _ = pipe
    here().watched.fail("GetFileType", Error.INVALID_HANDLE, times=2)
    with pytest.raises(OSError, match="closed, or never open") as caught:
        await here().connect_read_pipe(Recorder, reader)
    assert caught.value.winerror == Error.INVALID_HANDLE


async def test_without_a_thread_the_question_is_asked_here(pipe, monkeypatch):
    reader, writer = pipe
    refuse_threads(monkeypatch, "asking")
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    writer.write(b"fine")
    assert await protocol.receives(4) == b"fine"
    transport.close()
    assert await protocol.gone() is None


# -- what waiting costs ------------------------------------------------------------------------------------------


class Silent:
    """A pipe that brings one byte at each of the times given, in a time of its own; it notes when it is asked."""

    def __init__(self, monkeypatch, *arrivals):
        self.now = 0.0
        self.arrivals = list(arrivals)
        self.asked = []
        self.cancelled = False
        monkeypatch.setattr(_blocking, "time", self)

    # What `_blocking` uses of the module.
    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def wait(self, seconds):
        self.now += seconds
        self.cancelled = self.now > 60
        return self.cancelled

    def PeekNamedPipe(self, _handle, _buffer, _size, _read, available_at, _left):
        self.asked.append(self.now)
        ctypes.c_uint32.from_address(available_at).value = bool(self.arrivals and self.arrivals[0] <= self.now)
        return 1

    def ReadFileBlocking(self, _handle, room, size, count_at, _overlapped):
        assert size == 1
        ctypes.c_char.from_address(room).value = b"x"
        ctypes.c_uint32.from_address(count_at).value = 1
        self.arrivals.pop(0)
        return 1


def test_an_idle_pipe_is_asked_twenty_times_a_second(monkeypatch):
    """A question takes microseconds, so that a processor is busy with it for less than a thousandth of the time."""
    kernel = Silent(monkeypatch)
    handle = PlainHandle(kernel, 1, Kind.PIPE)
    assert handle.read(100, kernel) == (Error.OPERATION_ABORTED, b"")
    late = [when for when in kernel.asked if when > 5]
    assert len(late) <= (kernel.now - 5) / PAUSE_IDLE_S + 1


def test_while_data_flow_the_next_byte_is_seen_within_4_ms(monkeypatch):
    arrivals = [0.0, 0.0001, 0.03, 0.5, 1.4, 2.39]
    kernel = Silent(monkeypatch, *arrivals)
    handle = PlainHandle(kernel, 1, Kind.PIPE)
    for arrival in arrivals:
        assert handle.read(100, kernel) == (0, b"x")
        assert kernel.now - arrival <= PAUSE_BUSY_S
    assert PAUSE_FIRST_S < PAUSE_BUSY_S < 0.005


def test_after_silence_the_next_byte_is_seen_within_50_ms(monkeypatch):
    kernel = Silent(monkeypatch, 30.0)
    assert PlainHandle(kernel, 1, Kind.PIPE).read(100, kernel) == (0, b"x")
    assert kernel.now - 30 <= PAUSE_IDLE_S
