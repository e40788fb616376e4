"""Counts per message, connection and wake-up, for every loop; the same in every run.

    python3 tools/dev.py python benchmarks/counts.py [--loops a,b] [--out FILE] [--no-trace] [--write-budgets]

budgets.json holds what ours may cost at most, and tests/kernel/test_budgets.py asserts it. `--write-budgets` sets it to
what ours costs now: a change that makes the path longer then shows in its diff.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import loops
import machine
import nttrace
import pingpong
from counting import CountingKernel, PythonCounter, SeamCounter, room_of

HERE = Path(__file__).parent
BUDGETS = HERE / "budgets.json"
ECHO_SIZE = 64
TURNS = {1: 100, 10: 20, 100: 10}  # round trips of each connection that are counted, by connections
VISITS = 50
WAKE_UPS = 200
NEVER_S = 1e6
Marks = Callable[[], None]


def run_work(loop: asyncio.AbstractEventLoop, work: str, begin: Marks, end: Marks) -> int:
    """`echo10`, `visits` or `wake_ups` on a loop, which is closed; how many things were done."""
    if work == "visits":
        count, coroutine = VISITS, pingpong.visits(VISITS, begin, end)
    elif work == "wake_ups":
        count, coroutine = WAKE_UPS, pingpong.wake_ups(WAKE_UPS, begin, end)
    else:
        connections = int(work.removeprefix("echo"))
        count = TURNS[connections] * connections
        coroutine = pingpong.echo(connections, ECHO_SIZE, count, begin, end)
    # Rounds of idle connections come by the clock: on a slow machine one would be counted, on a quick one not.
    with mock.patch("iocp_loop._transports._idle.ROUND_S", NEVER_S):
        try:
            loop.run_until_complete(coroutine)
        finally:
            loop.close()
    return count


def seam_counts(work: str) -> dict[str, float]:
    """Kernel calls of our loop at the Kernel seam, and C calls on sockets, per message, connection or wake-up."""
    from iocp_loop import IocpEventLoop
    from iocp_loop._win32.kernel import Win32Kernel

    kernel = CountingKernel(Win32Kernel())
    counter = SeamCounter(kernel)
    count = run_work(IocpEventLoop(kernel=kernel), work, counter.begin, counter.end)
    # A round trip is two messages.
    return counter.per(2 * count if work.startswith("echo") else count)


def python_counts(loop_name: str, work: str) -> dict[str, dict[str, float]]:
    """What Python does per message, connection or wake-up, by room."""
    counter = PythonCounter(room_of)
    count = run_work(loops.factory(loop_name)(), work, counter.begin, counter.end)
    return counter.per(2 * count if work.startswith("echo") else count)


def traced(loop_name: str, work: str) -> None:
    """In the traced process."""
    run_work(loops.factory(loop_name)(), work, nttrace.mark, nttrace.mark)


def trace_counts(loop_name: str, work: str) -> dict[str, Any]:
    """NT calls per round trip, connection or wake-up, and allocations per message."""
    calls = nttrace.trace([str(HERE / "counts.py"), "--traced", loop_name, work])
    counts = {f"echo{n}": n * turns for n, turns in TURNS.items()} | {"visits": VISITS, "wake_ups": WAKE_UPS}
    count = counts[work]
    allocations = sum(calls.pop(name, 0) for name in nttrace.HEAP_CALLS)
    by_name = {name: number / count for name, number in calls.most_common() if name.startswith("Nt")}
    messages = 2 * count if work.startswith("echo") else count
    return {"nt_calls": sum(by_name.values()), "by_name": by_name, "allocations": allocations / messages}


def works() -> list[str]:
    return [*(f"echo{n}" for n in TURNS), "visits", "wake_ups"]


def measure(names: list[str], *, trace: bool) -> dict[str, Any]:
    """Everything, by loop and work."""
    results: dict[str, Any] = {"machine": machine.describe(), "seam": {}, "python": {}, "trace": {}}
    for work in works():
        results["seam"][work] = seam_counts(work)
    for name in names:
        if sys.version_info >= (3, 12):
            results["python"][name] = {work: python_counts(name, work) for work in works()}
        if trace:
            with nttrace.relay_filter():
                results["trace"][name] = {work: trace_counts(name, work) for work in works()}
    return results


def budgets_from(results: dict[str, Any], budgets: dict[str, Any]) -> dict[str, Any]:
    """The budgets with the part that was measured renewed; what depends on it is kept by version of Python."""
    ours = loops.NAMES[0]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    budgets["seam"] = {work: dict(sorted(calls.items())) for work, calls in results["seam"].items()}
    if ours in results["python"]:
        totals = {work: totals_of(found) for work, found in results["python"][ours].items()}
        budgets.setdefault("python", {})[version] = totals
    if ours in results["trace"]:
        found = results["trace"][ours]
        budgets["nt_calls"] = {work: round(found[work]["nt_calls"], 3) for work in works()}
        allocations = {work: round(found[work]["allocations"], 3) for work in works()}
        budgets.setdefault("allocations", {})[version] = allocations
    return budgets


def totals_of(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Over all rooms."""
    return {kind: round(sum(rooms.values()), 3) for kind, rooms in found.items()}


def guarded() -> bool:
    """Whether stomp mode is on, which does more for each operation on purpose."""
    from iocp_loop._core._arena import stomp_wanted

    return stomp_wanted()


def show(results: dict[str, Any]) -> None:
    print("Kernel calls of ours at the seam, per message, connection, wake-up:")
    for work, calls in results["seam"].items():
        print(f"  {work:9}", ", ".join(f"{name} {number:.3g}" for name, number in calls.items()))
    print("NT calls per round trip, connection, wake-up; allocations per message, connection, wake-up:")
    for name, by_work in results["trace"].items():
        for work, found in by_work.items():
            calls = ", ".join(f"{call} {number:.3g}" for call, number in found["by_name"].items())
            print(f"  {name:10} {work:9} {found['nt_calls']:8.3f}  alloc {found['allocations']:7.2f}   {calls}")
    print("Python per message, connection, wake-up:")
    for name, by_work in results["python"].items():
        for work, found in by_work.items():
            print(f"  {name:10} {work:9}", ", ".join(f"{kind} {n:.2f}" for kind, n in totals_of(found).items()))


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--traced"]:
        traced(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", default=",".join(loops.NAMES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-trace", action="store_true")
    parser.add_argument("--write-budgets", action="store_true")
    options = parser.parse_args(arguments)
    names = [name for name in options.loops.split(",") if loops.why_missing(name) is None]
    results = measure(names, trace=not options.no_trace and machine.wine_version() is not None)
    show(results)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.write_budgets:
        budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
        BUDGETS.write_text(json.dumps(budgets_from(results, budgets), indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
