"""Timers: never early, in order, and no spinning while one is near."""

import asyncio
import random
import time

import pytest

from .watched import here


async def test_500_timers_are_never_early_and_come_in_order():
    """At random times within a third of a second, also closer together than any tick."""
    loop = here()
    chance = random.Random(3)
    fired = []
    done = loop.create_future()

    def fire(due):
        fired.append((due, loop.time(), time.perf_counter()))
        if len(fired) == 500:
            done.set_result(None)

    started = loop.time()
    for _ in range(500):
        due = started + chance.random() / 3
        loop.call_at(due, fire, due)
    await done
    early = [(due, at) for due, at, _ in fired if at < due - loop._clock_resolution]
    assert early == []
    assert [due for due, _, _ in fired] == sorted(due for due, _, _ in fired)
    assert all(abs(at - clock) < 0.1 for _, at, clock in fired)


@pytest.mark.parametrize("delay", [0.0004, 0.001, 0.0051])
async def test_a_short_sleep_is_not_early_and_does_not_spin(delay):
    """A wait rounded down would be one of no time, again and again until the time has come: count the waits."""
    loop = here()
    for _ in range(10):
        waits = loop.counts["GetQueuedCompletionStatusEx"]
        before = loop.time()
        await asyncio.sleep(delay)
        assert loop.time() - before >= delay - loop._clock_resolution
        # One to wait. A second where the kernel's tick ended it early; and one for the turn that runs the callback.
        assert loop.counts["GetQueuedCompletionStatusEx"] - waits <= 4


async def test_the_loops_clock_never_goes_back_and_is_fine():
    loop = here()
    times = [loop.time() for _ in range(10_000)]
    assert times == sorted(times)
    assert min(b - a for a, b in zip(times, times[1:], strict=False) if b > a) < 0.001


async def test_a_cancelled_timer_does_not_fire():
    fired = []
    handle = here().call_later(0.001, fired.append, 1)
    handle.cancel()
    await asyncio.sleep(0.01)
    assert fired == []


async def test_timers_come_while_packets_flood_in():
    """A loop that is woken without end still looks at its clock."""
    loop = here()
    running = True

    def flood():
        loop._write_to_self()
        if running:
            loop.call_soon(flood)

    flood()
    before = loop.time()
    await asyncio.sleep(0.05)
    running = False
    assert loop.time() - before >= 0.05 - loop._clock_resolution
    assert loop.time() - before < 5


async def test_a_timer_years_away_does_not_end_the_wait_at_once():
    loop = here()
    handle = loop.call_later(10 * 365 * 86400, print)
    waits = loop.counts["GetQueuedCompletionStatusEx"]
    await asyncio.sleep(0.02)
    assert loop.counts["GetQueuedCompletionStatusEx"] - waits <= 4
    handle.cancel()
