"""Waiting for handles: events, timers' ends and processes, with and without a time-out, and every way to stop waiting."""

import asyncio
import ctypes
import subprocess
import sys
import threading
import time

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._handles import _waits
from iocp_loop._win32.constants import Error

from .watched import PATIENCE_S, here, pending, running, turns, until, wait_until

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
kernel32.CreateEventW.restype = ctypes.c_void_p


NO_HANDLE = 0x7FFF_FFF4  # Far above those that a process ever has.


class Event:
    """A Win32 event; auto-reset unless `manual`."""

    def __init__(self, *, manual=False):
        self.handle = kernel32.CreateEventW(None, manual, False, None)

    def set(self):
        assert kernel32.SetEvent(ctypes.c_void_p(self.handle))

    def is_set(self):
        return kernel32.WaitForSingleObject(ctypes.c_void_p(self.handle), 0) == 0

    def close(self):
        kernel32.CloseHandle(ctypes.c_void_p(self.handle))


@pytest.fixture
def event():
    event = Event()
    yield event
    event.close()


@pytest.fixture(autouse=True)
def no_wait_left():
    yield
    wait_until(lambda: not _waits._waiters, "the threads that wait for handles to end")


async def within(future):
    async with asyncio.timeout(PATIENCE_S):
        return await future


async def test_an_event_that_is_set_later_ends_its_wait(event):
    waiting = here().wait_for_handle(event.handle)
    await turns()
    assert not waiting.done()
    event.set()
    assert await within(waiting) is True
    assert not pending(IoType.WAIT)


async def test_an_event_that_is_set_already_ends_its_wait_in_a_later_turn(event):
    event.set()
    waiting = here().wait_for_handle(event.handle)
    assert not waiting.done()
    assert await within(waiting) is True


async def test_an_event_set_by_another_thread_wakes_an_idle_loop(event):
    setting = threading.Timer(0.05, event.set)
    setting.start()
    assert await within(here().wait_for_handle(event.handle)) is True
    setting.join()


async def test_a_wait_that_times_out_is_false_and_not_early(event):
    started = time.perf_counter()
    assert await within(here().wait_for_handle(event.handle, 0.05)) is False
    # Windows counts such waits in ticks of 15.6 ms, and may begin in the middle of one.
    assert time.perf_counter() - started >= 0.03
    assert await within(here().wait_for_handle(event.handle, 0)) is False
    event.set()
    assert await within(here().wait_for_handle(event.handle, 0)) is True


async def test_a_process_ends_its_wait_when_it_exits():
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    waiting = here().wait_for_handle(int(process._handle))
    assert await within(here().wait_for_handle(int(process._handle), 0)) is False
    process.stdin.close()
    assert await within(waiting) is True
    assert process.wait(PATIENCE_S) == 0


async def test_two_waits_for_one_event_are_each_told_their_own():
    manual, automatic = Event(manual=True), Event()
    both = [here().wait_for_handle(manual.handle) for _ in range(2)]
    manual.set()
    assert [await within(waiting) for waiting in both] == [True, True]
    one, other = (here().wait_for_handle(automatic.handle) for _ in range(2))
    automatic.set()
    await until(lambda: one.done() or other.done())
    await turns()
    assert one.done() != other.done()  # An auto-reset event lets one wait through.
    automatic.set()
    assert await within(one) is await within(other) is True
    manual.close()
    automatic.close()


async def test_a_cancelled_wait_is_taken_back_and_does_not_swallow_the_event(event):
    waiting = here().wait_for_handle(event.handle)
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert not pending(IoType.WAIT)
    event.set()
    await turns()
    assert event.is_set()  # An auto-reset event that nobody waited for is still set.


async def test_cancelling_races_with_the_event_and_ends_one_way_or_the_other(event):
    """A hundred times: exactly one end, and an event that was not reported is still there."""
    for _ in range(100):
        waiting = here().wait_for_handle(event.handle)
        setting = threading.Thread(target=event.set)
        setting.start()
        waiting.cancel()
        try:
            assert await within(waiting) is True
        except asyncio.CancelledError:
            pass
        setting.join()
        event.is_set()  # Reset it for the next round.
    assert not pending(IoType.WAIT)


async def test_a_hundred_waits_at_once(event):
    events = [Event() for _ in range(100)]
    waits = [here().wait_for_handle(one.handle) for one in events]
    for one in reversed(events):
        one.set()
    assert await within(asyncio.gather(*waits)) == [True] * 100
    for one in events:
        one.close()


async def test_a_handle_that_is_none_is_an_error_of_its_wait():
    with pytest.raises(OSError) as caught:
        await within(here().wait_for_handle(NO_HANDLE))
    assert caught.value.winerror == Error.INVALID_HANDLE
    assert not pending(IoType.WAIT)


@pytest.mark.parametrize("call", ["DuplicateHandle", "CreateEventW"])
async def test_a_wait_that_cannot_begin_is_an_error_and_leaves_nothing(event, call):
    here().watched.fail(call, Error.NOT_ENOUGH_MEMORY)
    with pytest.raises(OSError) as caught:
        await within(here().wait_for_handle(event.handle))
    assert caught.value.winerror == Error.NOT_ENOUGH_MEMORY
    assert not pending(IoType.WAIT)
    event.set()
    assert await within(here().wait_for_handle(event.handle)) is True


async def test_no_thread_to_be_had_is_an_error_of_the_wait(event, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        waiting = here().wait_for_handle(event.handle)
    with pytest.raises(OSError) as caught:
        await within(waiting)
    assert caught.value.winerror == Error.NOT_ENOUGH_MEMORY


async def test_a_packet_that_cannot_be_posted_at_first_comes_all_the_same(event):
    waiting = here().wait_for_handle(event.handle)
    here().watched.fail("PostQueuedCompletionStatus", Error.NOT_ENOUGH_MEMORY, times=3)
    event.set()
    assert await within(waiting) is True


async def test_a_handle_that_is_closed_while_it_is_waited_for_is_waited_for_all_the_same():
    """The others of its thread are, too: each wait has a handle of its own."""
    closed, other = Event(), Event()
    kept = ctypes.c_void_p()
    process = ctypes.c_void_p(-1)
    assert kernel32.DuplicateHandle(process, ctypes.c_void_p(closed.handle), process, ctypes.byref(kept), 0, False, 2)
    waiting, beside = here().wait_for_handle(closed.handle), here().wait_for_handle(other.handle)
    closed.close()
    other.set()
    assert await within(beside) is True
    assert not waiting.done()
    assert kernel32.SetEvent(kept)
    assert await within(waiting) is True
    kernel32.CloseHandle(kept)
    other.close()


async def test_a_wait_that_breaks_is_an_error_and_the_others_go_on(event):
    """At the seam: WaitForMultipleObjects fails for one of its handles, which a look at each tells."""
    broken, kernel = Event(), here().watched
    waiting, beside = here().wait_for_handle(event.handle), here().wait_for_handle(broken.handle)
    await until(lambda: kernel.counts["WaitForMultipleObjects"])
    own = pending(IoType.WAIT)[1].wait.own

    def fail_once(function, args):
        del kernel.faults["WaitForMultipleObjects"]
        return failed_wait()

    def failed_wait():
        ctypes.set_last_error(Error.INVALID_HANDLE)
        return 0xFFFF_FFFF

    def fail_for_one(function, args):
        return failed_wait() if args[0] == own else function(*args)

    kernel.faults |= {"WaitForMultipleObjects": fail_once, "WaitForSingleObject": fail_for_one}
    _waits._waiters[0].notify()
    with pytest.raises(OSError) as caught:
        await within(beside)
    assert caught.value.winerror == Error.INVALID_HANDLE
    assert not waiting.done()
    event.set()
    assert await within(waiting) is True
    broken.close()


async def test_waits_that_come_and_go_without_a_pause_do_not_hide_an_event(event):
    waiting, others = here().wait_for_handle(event.handle), Event()
    event.set()
    for _ in range(1000):
        if waiting.done():
            break
        coming = here().wait_for_handle(others.handle)
        coming.cancel()
        await asyncio.wait([coming])
    assert await within(waiting) is True
    others.close()


async def test_an_abandoned_mutex_ends_its_wait(event):
    kernel32.CreateMutexW.restype = ctypes.c_void_p
    made = []

    def die_with_it():
        made.append(kernel32.CreateMutexW(None, True, None))

    owner = threading.Thread(target=die_with_it)
    owner.start()
    await asyncio.to_thread(owner.join)
    assert await within(here().wait_for_handle(made[0])) is True
    kernel32.CloseHandle(ctypes.c_void_p(made[0]))


def test_closing_a_loop_takes_its_waits_back(event, nothing_left):
    with running() as loop:
        waits = [loop.wait_for_handle(event.handle) for _ in range(3)]
        loop.run_until_complete(asyncio.sleep(0))
        loop._settle = lambda: asyncio.sleep(0)  # The waits are what is left on purpose.
    loop.left.clear()
    assert not any(waiting.done() and waiting.exception() for waiting in waits if not waiting.cancelled())
    event.set()
    assert event.is_set()


def test_loops_in_several_threads_wait_for_the_same_event(nothing_left):
    manual = Event(manual=True)
    answers, ready = [], threading.Barrier(4)

    def work():
        with running() as loop:

            async def wait():
                waiting = loop.wait_for_handle(manual.handle)
                await loop.run_in_executor(None, ready.wait)
                return await within(waiting)

            answers.append(loop.run_until_complete(wait()))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE_S)
    manual.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [True] * 3
    manual.close()
