"""Experiments with the clock: how long the port waits, and how late a sleep is."""

import asyncio
import time

from .._core._arena import HeapArena
from .._core._fine_timer import MISSING
from .._core._proactor import Proactor
from .._loop._event_loop import IocpEventLoop
from ._answers import Answer

FINE_MS = 0.7  # by which a sleep may be late at the median


def waits_of_a_millisecond() -> Answer:
    """Measure how long a port's wait of one millisecond takes."""
    proactor = Proactor(arena=HeapArena())
    try:
        durations: list[float] = []
        for _ in range(50):
            started = time.perf_counter()
            proactor.poll(1)
            durations.append((time.perf_counter() - started) * 1000)
    finally:
        proactor.close()
    durations.sort()
    # Judged by the quicker ones, because other work of the machine delays the rest.
    answer = "about 1 ms" if durations[12] < 5 else "a tick"
    return Answer(answer, f"median {durations[25]:.2f}, p95 {durations[47]:.2f} ms")


def sleeps_of_a_millisecond() -> Answer:
    """Measure by how much `asyncio.sleep(0.001)` is late on this loop."""
    loop = IocpEventLoop()
    late: list[float] = []

    async def sleep_often() -> None:
        for _ in range(200):
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - started - 0.001) * 1000)

    try:
        loop.run_until_complete(sleep_often())
        is_fine = loop.proactor.timer.resolution is not MISSING
    finally:
        loop.close()
    late.sort()
    median, p99 = late[100], late[197]
    answer = "by a timer" if is_fine else "by the port"
    if late[0] < 0 or (is_fine and median > FINE_MS):
        answer += ", early" if late[0] < 0 else ", late"
    return Answer(answer, f"late by {median:.2f} ms at the median, {p99:.2f} at p99")
