"""Which processor a run under Wine is pinned to.

A call to wineserver costs about 20 microseconds when both are on one processor and 300 when it crosses, so everything
of a run is pinned to one. Runs at the same time take different ones, as long as there are enough.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

from . import cache, report

VARIABLE = "IOCP_LOOP_CPU"
NOT_PINNED = "all"
SAMPLE_S = 0.1  # Ten ticks of /proc/stat: enough to tell a busy processor from an idle one.


class Slot(NamedTuple):
    """What one run holds while it lasts."""

    name: str
    cpu: int | None  # None: not pinned
    lock: IO[bytes] | None  # None: shared, because every processor was taken


def take(allowed: Iterable[int], wish: str | None) -> Slot:
    """A slot for a run; `wish` is IOCP_LOOP_CPU: a processor's number, or "all"."""
    allowed = sorted(allowed)
    if wish == NOT_PINNED:
        return Slot(NOT_PINNED, None, None)
    if wish:
        if not wish.isdecimal() or int(wish) not in allowed:
            choices = ", ".join(map(str, allowed))
            raise report.Trouble(
                f"{VARIABLE}={wish} is not a processor this process may use: take one of {choices}, or {NOT_PINNED}."
            )
        return Slot(f"cpu{wish}", int(wish), None)
    busy = busy_times(SAMPLE_S)
    # In a container, /proc/stat may leave out processors that can be used.
    by_load = sorted(allowed, key=lambda cpu: busy.get(cpu, 0))
    for cpu in by_load:
        lock = cache.lock_file(f"cpu{cpu}")
        if cache.try_lock(lock):
            return Slot(f"cpu{cpu}", cpu, lock)
        lock.close()
    return Slot(f"cpu{by_load[0]}", by_load[0], None)


def busy_times(sample_s: float) -> dict[int, int]:
    """Ticks that each processor was busy during the sample."""
    before = busy_ticks(Path("/proc/stat").read_text())
    time.sleep(sample_s)
    after = busy_ticks(Path("/proc/stat").read_text())
    return {cpu: ticks - before.get(cpu, 0) for cpu, ticks in after.items()}


def busy_ticks(stat: str) -> dict[int, int]:
    """Ticks each processor has been busy since the start, from the text of /proc/stat."""
    ticks = {}
    for line in stat.splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, *others = map(int, columns)
            # The last two columns, guest time, are counted in user and nice already.
            ticks[int(name[3:])] = user + nice + system + sum(others[:3])
    return ticks


def pin(slot: Slot) -> None:
    """Pins this process, and all it starts from now on."""
    if slot.cpu is not None:
        os.sched_setaffinity(0, {slot.cpu})
