"""Waits that end at their time: what is asked of the kernel for them, and what is done where it refuses."""

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.profiles import WINDOWS, WINE_8
from fakes.rules import Interrupted
from fakes.timers import LATE_MS_MAX

from iocp_loop._core._fine_timer import ARMED, FAR_S, IDLE, MISSING, NEAR_S, NET_MS, REFUSALS_MAX, SAME_S, UNASKED
from iocp_loop._core._port import timeout_to_ms
from iocp_loop._core._proactor import Proactor

TIMER_CALLS = (
    "NtCreateWaitCompletionPacket",
    "CreateWaitableTimerExW",
    "SetWaitableTimer",
    "NtAssociateWaitCompletionPacket",
    "NtCancelWaitCompletionPacket",
)
LATE_S = LATE_MS_MAX / 1000
ROUNDING_S = 1e-6


@pytest.fixture
def windows(monkeypatch):
    """It plays Windows, whatever --profile says."""
    monkeypatch.setattr(FakeKernel, "default_profile", WINDOWS)


def make(seed=0, **chances):
    kernel = FakeKernel(seed, Chances(**{"idle": 0, "reorder": 0, "slow_cancel": 0, **chances}))
    return kernel, Proactor(kernel=kernel)


def asked(kernel):
    """What was asked of the kernel since the last time, but for the wait itself."""
    calls = {name: kernel.calls[name] for name in TIMER_CALLS if kernel.calls.get(name)}
    kernel.calls.clear()
    return calls


@pytest.mark.parametrize("timeout", [0.0001, 0.001, 0.0049, 0.015, FAR_S])
def test_a_near_moment_is_kept_to_a_millisecond(windows, timeout):
    for seed in range(50):
        kernel, proactor = make(seed, coarse_wait=1)
        before = kernel.monotonic()
        assert not proactor.select(timeout)
        assert timeout - ROUNDING_S <= kernel.monotonic() - before <= timeout + LATE_S + ROUNDING_S
        proactor.close()


def test_a_wait_costs_two_calls_after_the_first_one(windows):
    kernel, proactor = make()
    proactor.select(0.001)
    assert asked(kernel) == dict.fromkeys(TIMER_CALLS[:4], 1)
    proactor.select(0.001)
    assert asked(kernel) == {"SetWaitableTimer": 1, "NtAssociateWaitCompletionPacket": 1}
    proactor.close()


def test_while_its_moment_stays_the_same_nothing_is_asked(windows):
    """A message a millisecond, and a timer in twenty: each wait is for the rest of the twenty."""
    kernel, proactor = make()
    due = kernel.monotonic() + 0.020
    proactor.port.post(99)
    proactor.select(0.020)
    asked(kernel)
    for _ in range(10):
        kernel.now_ms += 1
        proactor.port.post(99)
        proactor.select(due - kernel.monotonic())
        assert asked(kernel) == {}
    assert not proactor.select(due - kernel.monotonic())
    assert due <= kernel.monotonic() <= due + LATE_S + SAME_S
    proactor.close()


def test_for_an_earlier_moment_it_is_set_anew_and_for_a_later_one_woken_up_for_once(windows):
    kernel, proactor = make()
    proactor.port.post(99)
    proactor.select(0.030)
    asked(kernel)
    proactor.port.post(99)
    proactor.select(0.010)
    assert asked(kernel) == dict.fromkeys(TIMER_CALLS[2:], 1)
    # The moment was called off; the next one is later. It wakes up at the old one, and then waits for the right one.
    due = kernel.monotonic() + 0.040
    proactor.select(due - kernel.monotonic())
    assert asked(kernel) == {}
    assert kernel.monotonic() < due
    proactor.select(due - kernel.monotonic())
    assert due <= kernel.monotonic() <= due + LATE_S
    proactor.close()


def test_a_far_moment_is_waited_for_by_the_port_until_it_is_near(windows):
    for seed in range(50):
        kernel, proactor = make(seed, coarse_wait=1)
        due = kernel.monotonic() + 1.0
        proactor.select(1.0)
        assert "SetWaitableTimer" not in asked(kernel)
        left = due - kernel.monotonic()
        assert NEAR_S - 0.017 <= left <= NEAR_S + 0.016
        proactor.select(left)
        assert due - ROUNDING_S <= kernel.monotonic() <= due + LATE_S + ROUNDING_S
        proactor.close()


def test_a_loop_whose_timers_are_far_asks_for_nothing(windows):
    """A message a turn, and a time-out of half a minute."""
    kernel, proactor = make()
    proactor.port.post(99)
    proactor.select(30)
    asked(kernel)
    for _ in range(100):
        proactor.port.post(99)
        proactor.select(30)
    assert asked(kernel) == {}
    proactor.close()


def test_waits_without_a_time_out_and_without_waiting_ask_for_nothing(windows):
    kernel, proactor = make()
    proactor.select(0)
    proactor.select(-1)
    proactor.wake()
    proactor.select(None)
    assert proactor.timer.resolution is UNASKED
    assert asked(kernel) == {}
    proactor.close()


def test_a_system_without_them_waits_as_the_port_does(monkeypatch):
    monkeypatch.setattr(FakeKernel, "default_profile", WINE_8)
    kernel, proactor = make(coarse_wait=0)
    for timeout in (0.0004, 0.001, 0.02, 0.5):
        before = kernel.now_ms
        proactor.select(timeout)
        assert kernel.now_ms - before == timeout_to_ms(timeout)
    assert proactor.timer.resolution is MISSING
    assert kernel.timers == []
    assert asked(kernel) == {}
    proactor.close()


def test_a_timer_that_cannot_be_made_leaves_no_packet_behind(windows):
    kernel, proactor = make(no_timer=1, coarse_wait=0)
    proactor.select(0.005)
    assert (kernel.now_ms, proactor.timer.resolution) == (5, MISSING)
    assert kernel.timers == []
    proactor.close()


def test_a_timer_that_is_refused_again_and_again_is_done_without(windows):
    kernel, proactor = make(coarse_wait=0)
    proactor.select(0.001)
    kernel.chances.no_timer = 1
    for count in range(1, REFUSALS_MAX + 1):
        before = kernel.now_ms
        proactor.select(0.005)
        assert kernel.now_ms - before == 5
        assert proactor.timer.resolution is (MISSING if count == REFUSALS_MAX else IDLE)
    assert kernel.timers == []
    proactor.close()


def test_a_timer_that_is_refused_once_is_tried_again(windows):
    kernel, proactor = make(coarse_wait=0)
    for _ in range(2 * REFUSALS_MAX):
        kernel.chances.no_timer = 1 if proactor.timer.resolution is not UNASKED else 0
        proactor.select(0.005)
        kernel.chances.no_timer = 0
        before = kernel.monotonic()
        proactor.select(0.001)
        assert 0.001 - ROUNDING_S <= kernel.monotonic() - before <= 0.001 + LATE_S
    assert proactor.timer.resolution is IDLE
    proactor.close()


def test_a_timer_that_is_due_before_its_packet_is_associated_ends_the_wait_at_once(windows):
    """Whether its packet comes as well is not known; either way the wait after it is exact."""
    for seed in range(50):
        kernel, proactor = make(seed, slow_caller=1)
        before = kernel.now_ms
        proactor.select(0.003)
        assert kernel.now_ms - before <= 3 + LATE_MS_MAX + ROUNDING_S
        kernel.chances.slow_caller = 0
        due = kernel.monotonic() + 0.002
        while kernel.monotonic() < due - ROUNDING_S:
            proactor.select(due - kernel.monotonic())
        assert kernel.monotonic() <= due + LATE_S + ROUNDING_S
        proactor.close()


def test_an_interrupt_after_the_packet_was_associated_costs_one_wait_its_exactness(windows, monkeypatch):
    kernel, proactor = make(coarse_wait=0)
    associate = kernel.NtAssociateWaitCompletionPacket

    def interrupted(*args):
        assert not associate(*args)
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(kernel, "NtAssociateWaitCompletionPacket", interrupted, raising=False)
        with pytest.raises(Interrupted):
            proactor.select(0.030)
    proactor.select(0.002)
    for _ in range(2 * REFUSALS_MAX):
        before = kernel.monotonic()
        proactor.select(0.001)
        assert 0.001 - ROUNDING_S <= kernel.monotonic() - before <= 0.001 + LATE_S
    assert proactor.timer.resolution is IDLE
    proactor.close()


@pytest.mark.parametrize("slow_cancel", [0, 1])
def test_a_moment_that_passed_while_the_program_was_busy_hides_no_later_one(windows, slow_cancel):
    """The timer is signalled, its packet is in the port, and nobody has waited since."""
    kernel, proactor = make(slow_cancel=slow_cancel)
    proactor.port.post(99)
    proactor.select(0.005)
    assert proactor.timer.resolution is ARMED
    kernel.now_ms += 20
    kernel._look_at_timers()
    due = kernel.monotonic() + 0.003
    while kernel.monotonic() < due - ROUNDING_S:
        proactor.select(due - kernel.monotonic())
    assert kernel.monotonic() <= due + LATE_S
    proactor.close()


def test_a_timer_whose_packet_never_comes_delays_a_wait_and_ends_none(windows):
    kernel, proactor = make(coarse_wait=0)
    kernel._next_timer_ms = lambda: None
    kernel._look_at_timers = lambda: None
    proactor.select(0.005)
    assert kernel.now_ms == 5 + NET_MS
    proactor.close()


def test_a_packet_of_a_timer_that_was_let_go_concerns_nobody(windows):
    kernel, proactor = make()
    strays = []
    proactor.on_stray.append(strays.append)
    proactor.select(0.001)
    proactor.timer.close()
    kernel.inject(2, 0)
    assert not proactor.select(1)
    assert strays == []
    proactor.close()


def test_closing_lets_go_of_a_timer_that_is_set(windows):
    kernel, proactor = make()
    proactor.port.post(99)
    proactor.select(0.030)
    assert len(kernel.timers) == 2
    proactor.close()
    assert kernel.timers == []
    assert kernel.violations == []
    proactor.timer.close()


@pytest.mark.parametrize("fault", ["interrupt", "memory_error", "no_timer"])
def test_whatever_a_call_does_no_moment_is_early_and_none_is_missed(schedules, windows, fault):
    """A program that waits for moments it calls off and moves, with messages in between."""

    def run(seed):
        kernel, proactor = make(seed)
        kernel.chances = Chances(**{fault: 0.1, "slow_cancel": 0.5, "idle": 0.3, "slow_caller": 0.1})
        random = kernel.random
        exact = 0
        for _ in range(30):
            due = kernel.monotonic() + random.choice([0.0002, 0.001, 0.004, 0.016, 0.1])
            while (left := due - kernel.monotonic()) > ROUNDING_S:
                if random.random() < 0.3:
                    kernel.chances, kept = Chances(), kernel.chances
                    proactor.port.post(99)
                    kernel.chances = kept
                if random.random() < 0.1:
                    kernel.now_ms += random.random() * 10
                try:
                    proactor.select(left)
                except (Interrupted, MemoryError):
                    continue
                if random.random() < 0.1:
                    break  # called off
            else:
                late = kernel.monotonic() - due
                assert late <= 0.010 + (WINDOWS.tick_ms + NET_MS) / 1000 + LATE_S
                exact += late <= LATE_S + ROUNDING_S
        kernel.chances = Chances()
        proactor.close()
        assert kernel.timers == []
        assert kernel.violations == []
        return exact

    schedules(run, 200)
