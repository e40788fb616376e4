"""Seconds to the milliseconds of a wait: never early, never a spin, never by accident for ever."""

import ctypes
import math

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.profiles import PROFILES
from fakes.stage import BaseStage
from fakes.timers import LATE_MS_MAX
from hypothesis import given
from hypothesis import strategies as st

from iocp_loop._core._fine_timer import SAME_S
from iocp_loop._core._port import PACKETS_MAX, CompletionPort, Packet, timeout_to_ms
from iocp_loop._win32.constants import INFINITE, TIMEOUT_MAX_MS

KEY = ctypes.c_size_t(-2).value  # The largest that a program may use; the one above it is the port's own.


@given(st.floats(min_value=0, max_value=1e9))
def test_a_wait_is_never_shorter_than_asked(seconds):
    milliseconds = timeout_to_ms(seconds)
    assert milliseconds < INFINITE
    assert milliseconds >= min(seconds * 1000, TIMEOUT_MAX_MS)
    assert milliseconds <= seconds * 1000 + 1


@pytest.mark.parametrize(("seconds", "milliseconds"), [(1e-9, 1), (0.0004, 1), (0.001, 1), (0.0011, 2), (1.5, 1500)])
def test_a_part_of_a_millisecond_is_rounded_up(seconds, milliseconds):
    """To nearest, 0.4 ms would be a wait of 0: a loop that spins until its timer is due."""
    assert timeout_to_ms(seconds) == milliseconds


@pytest.mark.parametrize("seconds", [0, 0.0, -0.0, -1e-9, -5, -math.inf])
def test_the_past_is_now(seconds):
    assert timeout_to_ms(seconds) == 0


def test_none_is_for_ever_and_nothing_else_is():
    """The number for "for ever" is the largest one; a very long wait must stop short of it."""
    assert timeout_to_ms(None) == INFINITE == 0xFFFF_FFFF
    assert timeout_to_ms(TIMEOUT_MAX_MS / 1000) == TIMEOUT_MAX_MS == INFINITE - 1
    assert timeout_to_ms(TIMEOUT_MAX_MS / 1000 + 0.001) == TIMEOUT_MAX_MS
    assert timeout_to_ms(1e300) == timeout_to_ms(1e306) == timeout_to_ms(math.inf) == TIMEOUT_MAX_MS


def test_a_wait_takes_its_milliseconds_and_returns_nothing():
    """The fake kernel counts them instead of sleeping."""
    kernel = FakeKernel(0, Chances(coarse_wait=0))
    with CompletionPort(kernel=kernel) as port:
        assert port.wait(0.0301) == []
        assert kernel.now_ms == 31
        assert port.wait(0) == []
        assert port.wait(-1) == []
        assert kernel.now_ms == 31


@pytest.mark.parametrize("system", PROFILES)
def test_no_timer_is_early_and_none_is_late_by_more_than_a_tick(schedules, monkeypatch, system):
    """Where a wait may end before its time, too, as it does by a finer clock than the one it goes by."""
    monkeypatch.setattr(FakeKernel, "default_profile", PROFILES[system])
    tick_s, rounding_s = PROFILES[system].tick_ms / 1000, 0.001
    if PROFILES[system].has_fine_timers:
        tick_s, rounding_s = 0, LATE_MS_MAX / 1000 + SAME_S

    def run(seed):
        stage = BaseStage(seed, Chances(coarse_wait=0.7))
        loop, late = stage.loop, []

        async def scenario():
            done = loop.create_future()
            delays = [stage.random.choice([0, 0.0004, 0.001, 0.0156, 0.04]) * stage.random.random() for _ in range(20)]
            for delay in delays:
                when = loop.time() + delay
                loop.call_at(when, lambda when=when: late.append(loop.time() - when))
            loop.call_later(0.05, done.set_result, None)
            await done
            assert len(late) == len(delays)

        stage.run(scenario())
        assert all(-1e-9 <= each <= tick_s + rounding_s for each in late), late

    schedules(run, 100)


def test_posted_packets_come_back_whole():
    """All bits of key, address and byte count, and the status "success"."""
    kernel = FakeKernel(0, Chances(idle=0))
    with CompletionPort(kernel=kernel) as port:
        port.post(KEY, 0x7FFF_FFF8, 0xFFFF_FFFF)
        assert port.wait(None) == [Packet(KEY, 0x7FFF_FFF8, 0, 0xFFFF_FFFF)]


@pytest.mark.parametrize("max_packets", [0, -1, PACKETS_MAX + 1])
def test_a_batch_has_limits(max_packets):
    with CompletionPort(kernel=FakeKernel(0)) as port, pytest.raises(ValueError, match="max_packets"):
        port.wait(0, max_packets)


def test_a_smaller_batch_leaves_the_rest():
    """Three packets, taken two and one."""
    with CompletionPort(kernel=FakeKernel(0, Chances(idle=0, reorder=0))) as port:
        for number in range(3):
            port.post(20 + number)
        assert [packet.key for packet in port.wait(0, 2)] == [20, 21]
        assert [packet.key for packet in port.wait(0, 2)] == [22]


def test_a_closed_port_raises_and_closes_once():
    """wait, post, associate and fileno after close; close after close."""
    kernel = FakeKernel(0)
    port = CompletionPort(kernel=kernel)
    port.close()
    port.close()
    assert kernel.calls["CloseHandle"] == 1
    for use in (port.wait, port.fileno, lambda: port.post(20), lambda: port.associate(4, 20)):
        with pytest.raises(ValueError, match="the completion port is closed"):
            use()


def test_a_handle_that_has_a_port_says_what_to_do():
    """Associated twice: WinError 87, with advice."""
    kernel = FakeKernel(0)
    sock = kernel.socket()
    with CompletionPort(kernel=kernel) as port:
        port.associate(sock.fileno(), 20)
        with pytest.raises(OSError, match="FILE_FLAG_OVERLAPPED; open a new handle") as raised:
            port.associate(sock.fileno(), 21)
        assert raised.value.winerror == 87
        with pytest.raises(OSError, match="handle 9999") as raised:
            port.associate(9999, 22)
        assert raised.value.winerror == 6
