"""Signals: handlers of the loop's own, and everything put back afterwards."""

import asyncio
import signal
import socket
import sys
import threading

import pytest

import iocp_loop

from .peers import reset
from .watched import here, running, turns, until

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGBREAK]


@pytest.fixture(autouse=True)
def dispositions():
    """After each test every signal is handled as before."""
    before = {sig: signal.getsignal(sig) for sig in SIGNALS}
    yield
    after = {sig: signal.getsignal(sig) for sig in SIGNALS}
    for sig, handler in before.items():
        signal.signal(sig, handler)
    assert after == before


@pytest.mark.parametrize("sig", SIGNALS, ids=lambda sig: sig.name)
async def test_a_handler_is_called_in_the_loop_with_its_arguments_until_it_is_removed(sig):
    calls = []
    before = signal.getsignal(sig)
    here().add_signal_handler(sig, lambda *args: calls.append((args, asyncio.get_running_loop())), 1, "two")
    signal.raise_signal(sig)
    assert not calls  # In a turn of the loop, and not between any two bytecodes.
    await until(lambda: calls)
    signal.raise_signal(sig)
    await until(lambda: len(calls) == 2)
    assert calls == [((1, "two"), here())] * 2
    assert here().remove_signal_handler(sig)
    assert signal.getsignal(sig) == before
    assert not here().remove_signal_handler(sig)


async def test_an_idle_loop_is_woken_by_a_signal():
    """Nothing else is due: without the wake-up descriptor the handler would wait for a minute."""
    handled = asyncio.get_running_loop().create_future()
    here().add_signal_handler(signal.SIGINT, lambda: handled.done() or handled.set_result(None))
    raising = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    raising.start()
    async with asyncio.timeout(5):
        await handled
    raising.join()
    here().remove_signal_handler(signal.SIGINT)


async def test_a_second_handler_replaces_the_first_and_removing_it_restores_what_was_there_before_both():
    calls = []
    before = signal.getsignal(signal.SIGTERM)
    here().add_signal_handler(signal.SIGTERM, calls.append, "first")
    here().add_signal_handler(signal.SIGTERM, calls.append, "second")
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: calls)
    await turns()
    assert calls == ["second"]
    here().remove_signal_handler(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_handler_removed_after_its_signal_came_is_not_called():
    calls = []
    here().add_signal_handler(signal.SIGTERM, calls.append, "never")
    signal.raise_signal(signal.SIGTERM)
    here().remove_signal_handler(signal.SIGTERM)
    await turns()
    assert not calls


async def test_a_handler_that_raises_is_reported_and_called_again():
    def handler():
        raise ZeroDivisionError("in the handler")

    here().add_signal_handler(signal.SIGTERM, handler)
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: here().reports)
        here().expect_report("in the handler")
    here().remove_signal_handler(signal.SIGTERM)


def test_closing_the_loop_restores_the_handlers(nothing_left):
    before = signal.getsignal(signal.SIGTERM)
    with running() as loop:
        loop.add_signal_handler(signal.SIGTERM, print)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(RuntimeError, match="closed"):
        loop.add_signal_handler(signal.SIGTERM, print)


@pytest.mark.parametrize("sig", [signal.SIGABRT, signal.SIGSEGV, 0, 1000, -1])
async def test_a_signal_that_windows_does_not_deliver_is_a_value_error_that_names_those_it_does(sig):
    with pytest.raises(ValueError, match="SIGINT, SIGBREAK and SIGTERM"):
        here().add_signal_handler(sig, print)
    assert not here().remove_signal_handler(sig)


async def test_a_coroutine_is_no_handler():
    async def handler():
        raise AssertionError

    coroutine = handler()
    for wrong in (handler, coroutine):
        with pytest.raises(TypeError, match="coroutines"):
            here().add_signal_handler(signal.SIGINT, wrong)
    coroutine.close()


async def test_another_thread_is_refused_and_changes_nothing():
    calls = []
    here().add_signal_handler(signal.SIGTERM, calls.append, "mine")

    def elsewhere():
        with pytest.raises(RuntimeError, match="main thread"):
            here_loop.add_signal_handler(signal.SIGTERM, calls.append, "theirs")
        with pytest.raises(RuntimeError, match="main thread"):
            here_loop.remove_signal_handler(signal.SIGTERM)

    here_loop = here()
    await asyncio.to_thread(elsewhere)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: calls)
    assert calls == ["mine"]
    assert here().remove_signal_handler(signal.SIGTERM)


# -- the wake-up descriptor ------------------------------------------------------------------------------------


def current_wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def test_the_former_wake_up_descriptor_is_back_whenever_the_loop_does_not_run(nothing_left):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno())
        try:
            with running() as loop:
                for _ in range(2):
                    during = loop.run_until_complete(_descriptor())
                    assert during not in (-1, theirs.fileno())
                    assert current_wakeup_fd() == theirs.fileno()
            assert current_wakeup_fd() == theirs.fileno()
        finally:
            signal.set_wakeup_fd(before)


async def _descriptor():
    return current_wakeup_fd()


def test_ctrl_c_still_wakes_a_loop_after_another_one_was_closed(nothing_left):
    """python/cpython#91170: closing any loop made Ctrl+C deaf for the others."""
    with running() as loop:

        async def main():
            iocp_loop.new_event_loop().close()
            await asyncio.to_thread(iocp_loop.run, asyncio.sleep(0))
            raising = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
            raising.start()
            await asyncio.sleep(60)

        with pytest.raises(KeyboardInterrupt):
            asyncio.Runner(loop_factory=lambda: loop).run(main())


@pytest.mark.parametrize("breakage", ["closed by its peer", "reset"])
async def test_a_wake_up_socket_that_breaks_is_replaced_and_not_spun_on(breakage):
    """A VPN or sleep breaks loopback connections: the stdlib's loop reads the end of file for ever, at 100 % CPU."""
    signals = here()._signals
    broken = signals._sender
    if breakage == "reset":
        reset(broken)
    else:
        broken.shutdown(socket.SHUT_RDWR)
    await until(lambda: signals._sender is not broken)
    waits = here().counts["GetQueuedCompletionStatusEx"]
    handled = asyncio.get_running_loop().create_future()
    here().add_signal_handler(signal.SIGTERM, lambda: handled.set_result(None))
    raising = threading.Timer(0.1, signal.raise_signal, (signal.SIGTERM,))
    raising.start()
    async with asyncio.timeout(5):
        await handled
    raising.join()
    assert here().counts["GetQueuedCompletionStatusEx"] - waits < 50
    here().remove_signal_handler(signal.SIGTERM)


def test_keyboard_interrupt_leaves_asyncio_runner_as_it_should(nothing_left):
    """Ctrl+C cancels the main task; what it does not catch becomes KeyboardInterrupt, after its clean-up ran."""
    cleaned = []

    async def main():
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    with running() as loop:
        with pytest.raises(KeyboardInterrupt):
            asyncio.Runner(loop_factory=lambda: loop).run(main())
    assert cleaned == [True]
    assert sys.exc_info() == (None, None, None)


def test_a_handler_left_in_one_run_does_not_interrupt_the_main_task_of_the_next():
    """Ctrl+C in the second run cancels its main task, as asyncio.Runner promises."""

    async def first():
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, print)

    async def second():
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "cancelled"

    for main, result in ((first, None), (second, "cancelled")):
        with asyncio.Runner(loop_factory=iocp_loop.new_event_loop) as runner:
            assert runner.run(main()) == result
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
