"""What the hot path may cost at most, in counts that are the same in every run: benchmarks/budgets.json.

A test here that fails after a change says that the path has become longer. If that is worth it, write the new budget
with `python3 tools/dev.py python benchmarks/counts.py --loops iocp_loop --write-budgets`, and say why in the commit.
"""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import counts  # noqa: E402
import machine  # noqa: E402
import nttrace  # noqa: E402

BUDGETS = json.loads((BENCHMARKS / "budgets.json").read_text())
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Budgets are kept to three decimals.
ROUNDING = 0.001
# A message is counted to the instruction. A connection's life goes through many rooms; only a detour shows.
SLACK = {"visits": 1.1, "wake_ups": 1.1}
# Where memory comes from a free list or from the heap depends a little on what ran before.
ALLOCATIONS_SLACK = 1.2


def over(costs: dict[str, float], budget: dict[str, float], slack: float = 1) -> dict[str, tuple[float, float]]:
    """What costs more than its budget; something that has no budget may cost nothing."""
    return {name: (n, budget.get(name, 0)) for name, n in costs.items() if n > budget.get(name, 0) * slack + ROUNDING}


@pytest.mark.parametrize("work", counts.works())
def test_no_call_is_made_of_the_kernel_that_has_no_budget(work):
    """Counted at the Kernel seam and on the C socket, per message, connection or wake-up."""
    assert not over(counts.seam_counts(work), BUDGETS["seam"][work])


@pytest.mark.parametrize("work", ["echo1", "echo10", "echo100"])
def test_an_echoed_message_costs_one_receive_one_send_and_its_share_of_a_wait(work):
    share = 1 / int(work.removeprefix("echo"))
    calls = counts.seam_counts(work)
    assert calls == pytest.approx({"WSARecv": 1, "socket.send": 1, "GetQueuedCompletionStatusEx": share})


@pytest.mark.skipif(VERSION not in BUDGETS["python"], reason=f"no budget for Python {VERSION}")
@pytest.mark.skipif(counts.guarded(), reason="stomp mode does more, on purpose")
@pytest.mark.parametrize("work", counts.works())
def test_python_does_not_more_for_it_than_its_budget(work):
    """Functions, lines, bytecode instructions and C calls, by sys.monitoring."""
    found = counts.python_counts("iocp_loop", work)
    budget = BUDGETS["python"][VERSION][work]
    assert not over(counts.totals_of(found), budget, SLACK.get(work, 1)), found


@pytest.mark.slow
@pytest.mark.skipif(machine.wine_version() is None, reason="the trace is Wine's")
@pytest.mark.skipif(counts.guarded(), reason="stomp mode does more, on purpose")
@pytest.mark.parametrize("work", ["echo1", "echo10", "visits"])
def test_a_round_trip_enters_the_kernel_no_more_often_than_its_budget(work):
    """Counted from outside, in Wine's trace of ntdll: nothing that Python or a DLL does escapes it. Allocations, too."""
    with nttrace.relay_filter():
        found = counts.trace_counts("iocp_loop", work)
    assert found["nt_calls"] <= BUDGETS["nt_calls"][work] * SLACK.get(work, 1) + ROUNDING, found["by_name"]
    if VERSION in BUDGETS["allocations"]:
        assert found["allocations"] <= BUDGETS["allocations"][VERSION][work] * ALLOCATIONS_SLACK
