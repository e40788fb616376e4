"""Signals: they wake an idle loop, and the process's wake-up descriptor is ours only while the loop runs."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import iocp_loop

from .watched import running, turns, wait_until


@contextlib.contextmanager
def handler(function, signum=signal.SIGINT):
    previous = signal.signal(signum, function)
    try:
        yield
    finally:
        signal.signal(signum, previous)


@pytest.fixture(autouse=True)
def descriptor_restored():
    """Each test must leave the wake-up descriptor as it found it."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    yield
    assert signal.set_wakeup_fd(before) == before


def raise_when_idle(loop, signum=signal.SIGINT):
    """A thread that raises the signal once the loop waits for ever. The C handler runs there, the Python one in the main
    thread, which must be woken for it."""

    def wait_and_raise():
        waits = loop.counts["GetQueuedCompletionStatusEx"]
        wait_until(lambda: loop.counts["GetQueuedCompletionStatusEx"] > waits)
        signal.raise_signal(signum)

    thread = threading.Thread(target=wait_and_raise)
    loop.call_later(0.01, thread.start)
    return thread


def test_a_signal_wakes_an_idle_loop_and_its_python_handler_runs(nothing_left):
    with running() as loop:
        thread = raise_when_idle(loop)
        with handler(lambda *_args: loop.call_soon_threadsafe(loop.stop)):
            loop.run_forever()
        thread.join(20)


def test_ctrl_c_ends_an_idle_loop_with_keyboard_interrupt_and_it_can_run_again(nothing_left):
    with running() as loop:
        thread = raise_when_idle(loop)
        with handler(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        thread.join(20)
        loop.run_until_complete(turns())


def test_ctrl_c_cancels_the_main_task_of_a_runner(nothing_left):
    """asyncio.Runner's own handling of SIGINT, on our loop."""
    cancelled = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, signal.raise_signal, signal.SIGINT)
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with handler(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        iocp_loop.run(main())
    assert cancelled == [True]


def test_many_signals_wake_many_times(nothing_left):
    """More bytes than one receive of the wake-up socket holds."""
    with running() as loop:
        seen = []
        with handler(lambda *_args: seen.append(1)):

            async def main():
                for _ in range(300):
                    signal.raise_signal(signal.SIGINT)
                await turns(5)

            loop.run_until_complete(main())
            assert len(seen) == 300
            thread = raise_when_idle(loop)
            with handler(lambda *_args: loop.call_soon_threadsafe(loop.stop)):
                loop.run_forever()
            thread.join(20)


def test_the_previous_wakeup_descriptor_is_restored_after_each_run(nothing_left):
    left, right = socket.socketpair()
    left.setblocking(False)
    before = signal.set_wakeup_fd(left.fileno())
    try:
        with running() as loop:
            for _ in range(3):
                loop.run_until_complete(turns())
                assert signal.set_wakeup_fd(left.fileno()) == left.fileno()
    finally:
        signal.set_wakeup_fd(before)
        left.close()
        right.close()


def test_a_descriptor_that_somebody_else_set_meanwhile_stays(nothing_left):
    left, right = socket.socketpair()
    left.setblocking(False)
    before = signal.set_wakeup_fd(-1)
    try:
        with running() as loop:

            async def main():
                signal.set_wakeup_fd(left.fileno())

            loop.run_until_complete(main())
            assert signal.set_wakeup_fd(-1) == left.fileno()
    finally:
        signal.set_wakeup_fd(before)
        left.close()
        right.close()


def test_a_previous_descriptor_that_was_closed_meanwhile_does_no_harm(nothing_left):
    """As when a stdlib loop, whose descriptor was the previous one, was closed while ours ran."""
    left, right = socket.socketpair()
    left.setblocking(False)
    before = signal.set_wakeup_fd(left.fileno())
    try:
        with running() as loop:

            async def main():
                left.close()
                return 42

            assert loop.run_until_complete(main()) == 42
            assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)
        right.close()


@pytest.mark.parametrize("factory", [asyncio.ProactorEventLoop, iocp_loop.new_event_loop])
def test_ctrl_c_still_wakes_us_after_another_loop_was_made_and_closed(factory, nothing_left):
    """The other one ran before ours, in the same thread; the stdlib's resets the descriptor to nothing when it closes."""
    with running() as loop:
        loop.run_until_complete(turns())
        other = factory()
        other.run_until_complete(asyncio.sleep(0))
        other.close()
        thread = raise_when_idle(loop)
        with handler(lambda *_args: loop.call_soon_threadsafe(loop.stop)):
            loop.run_forever()
        thread.join(20)


def test_a_broken_wakeup_pair_is_replaced_and_signals_wake_us_again(nothing_left):
    """The receiving end sees an end of file, as after sleep or a VPN change."""
    with running() as loop:
        loop.run_until_complete(turns())
        old = loop._signals._sender
        old.shutdown(socket.SHUT_WR)

        async def replaced():
            while loop._signals._sender is old:
                await asyncio.sleep(0.001)

        loop.run_until_complete(asyncio.wait_for(replaced(), 20))
        thread = raise_when_idle(loop)
        with handler(lambda *_args: loop.call_soon_threadsafe(loop.stop)):
            loop.run_forever()
        thread.join(20)


def test_a_loop_in_another_thread_leaves_the_descriptor_alone(nothing_left):
    seen = []

    def run():
        with running() as loop:
            loop.run_until_complete(turns())
            seen.append(loop._signals._sender)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert seen == [None]


def test_add_signal_handler_runs_on_the_loop_and_can_be_removed(nothing_left):
    with running() as loop:
        if type(loop).add_signal_handler is asyncio.AbstractEventLoop.add_signal_handler:
            pytest.skip("not there yet")
        called = []

        async def main():
            loop.add_signal_handler(signal.SIGINT, called.append, "called")
            signal.raise_signal(signal.SIGINT)
            while not called:
                await asyncio.sleep(0.001)
            assert loop.remove_signal_handler(signal.SIGINT)
            assert not loop.remove_signal_handler(signal.SIGINT)

        with handler(signal.default_int_handler):
            loop.run_until_complete(asyncio.wait_for(main(), 20))
        assert called == ["called"]


@pytest.mark.parametrize("where", ["thread", "interpreter"])
def test_where_python_allows_no_wake_up_descriptor_the_loop_runs_without_signals(where):
    """A Windows service, an embedding program: threading takes for the main thread what is none, and asks in vain."""
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("elsewhere_child.py"), where],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stdout.split() == ["served"]


def test_without_a_socketpair_the_wake_up_descriptor_is_the_one_before(monkeypatch):
    """run_forever() raises, and whoever was woken by signals before still is."""

    def no_socketpair():
        raise OSError("provoked")

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    before = signal.set_wakeup_fd(ours.fileno())
    try:
        with running() as loop, ours, theirs:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socketpair", no_socketpair)
                with pytest.raises(OSError, match="provoked"):
                    loop.run_forever()
            assert signal.set_wakeup_fd(before) == ours.fileno()
    finally:
        signal.set_wakeup_fd(before)
