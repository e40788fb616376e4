"""nest_asyncio and its successor: libraries apply them when they are imported, and the loop's turn is not ours any more.

The scenarios are in `nested_child.py`. The loop is patched before it runs, or in the middle of a turn, which happens
once in a process. asyncio's own loop, patched before it runs, is held to the same: it is known to be possible.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("nested_child.py")
ROOT = CHILD.parents[2]
PATIENCE_S = 100

ECHOED = [b"outside"]
for _number in range(10):
    ECHOED += [b"nested %d" % _number, b"outside %d" % _number]
ECHOED += [b"depth 3", b"depth 2", b"depth 1", b"depth 0", b"back at 1", b"back at 2", b"back at 3", True]
ONE_INSIDE_ANOTHER = (["one", "two", "three", "four"], "two", "three", "four")

SCENARIOS = {
    "timers": (True, []),
    "timers_of_one_moment": ["the other one"],
    "callbacks_behind_the_one_that_waits": ["first", "third", "second", "went on"],
    "streams": ECHOED,
    "tls_streams": ECHOED,
    "deliveries_inside_a_delivery": (*ONE_INSIDE_ANOTHER, "lost"),
    "tls_deliveries_inside_a_delivery": (*ONE_INSIDE_ANOTHER, "lost"),
    "datagrams_inside_a_delivery": ONE_INSIDE_ANOTHER,
    "pipes": ONE_INSIDE_ANOTHER,
    "a_connection_that_ends_inside_its_delivery": "lost",
    "writing_more_than_the_peer_reads": 10_000_000,
    "a_process": (3, b"SHOUT"),
    "other_threads": [3, "from a thread"],
    "stop_inside": ["Event loop stopped before Future completed."],
    "exceptions_inside": (
        ["ValueError('of a task')", "KeyboardInterrupt('of a task')", "KeyboardInterrupt('of a callback')"],
        "goes on",
        ECHOED,
    ),
    "ctrl_c": (True, "goes on"),
}
OURS = {
    **SCENARIOS,
    # asyncio's own loop sends the second of two writes when the first is over: in the next turn, if there is one.
    "what_was_written_is_sent_though_the_loop_stands_still": [True] * 6,
    # Its pipes have no messages.
    "message_pipes": ONE_INSIDE_ANOTHER,
}
# It keeps callbacks back whose context something runs in: connection_lost() then comes after the nested run.
OURS_WITH_2 = [name for name in OURS if name != "a_connection_that_ends_inside_its_delivery"]


# Each in a process of its own, patched in the middle of a turn of ours.
IN_THE_MIDDLE = ["timers", "callbacks_behind_the_one_that_waits", "streams", "deliveries_inside_a_delivery"]


@functools.cache
def run_child(package, loop, when, *scenarios):
    """Scenario -> what it answers, and what reached the exception handler."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(CHILD), package, loop, when, *scenarios]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
    )
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: answers.get(name, done.stderr) for name in scenarios}


def expected(when, scenario, answer):
    again = ["goes on"] if scenario == "stop_inside" else ["run again"] + [True] * (when == "before")
    return f"{[answer, *again]} []"


@pytest.mark.parametrize("scenario", OURS)
def test_a_callback_may_run_our_loop(scenario):
    assert run_child("nest_asyncio", "ours", "before", *OURS)[scenario] == expected("before", scenario, OURS[scenario])


@pytest.mark.parametrize("scenario", OURS_WITH_2)
def test_a_callback_may_run_our_loop_by_nest_asyncio2(scenario):
    answers = run_child("nest_asyncio2", "ours", "before", *OURS_WITH_2)
    assert answers[scenario] == expected("before", scenario, OURS[scenario])


@pytest.mark.parametrize("scenario", IN_THE_MIDDLE)
def test_a_callback_may_run_our_loop_in_the_middle_of_a_turn(scenario):
    answers = run_child("nest_asyncio", "ours", "inside", scenario)
    assert answers[scenario] == expected("inside", scenario, SCENARIOS[scenario])


@pytest.mark.parametrize("loop", ["hybrid", "stdlib"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_callback_may_run_asyncios_loop(loop, scenario):
    if scenario == "timers" and sys.version_info < (3, 13):
        pytest.skip("asyncio's timers are early by up to a tick of 15.6 ms")
    answers = run_child("nest_asyncio2", loop, "before", *SCENARIOS)
    assert answers[scenario] == expected("before", scenario, SCENARIOS[scenario])
