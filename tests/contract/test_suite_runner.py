"""The runner of CPython's suite itself: it must not take silence for success."""

import pytest
from suite_runner import Comparison, Outcome, Request, compare, run

# A module of tests in which one kills the process with exit status 0: what a crash looks like under Wine.
DYING = """
import asyncio, os, unittest

class Tests(unittest.TestCase):
    def test_1_before(self):
        pass

    def test_2_dies(self):
        os._exit(0)

    def test_3_after(self):
        with asyncio.Runner() as runner:
            name = type(runner.get_loop()).__name__
        self.assertEqual(name, "IocpEventLoop")
"""


@pytest.fixture
def dying(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "dying"


def test_a_child_that_dies_with_exit_status_0_costs_one_test_and_is_noticed(dying):
    outcomes = run(Request(dying, "ours", package=""))
    words = {name: outcome.word for name, outcome in outcomes.items()}
    assert words == {"Tests.test_1_before": "ok", "Tests.test_2_dies": "died", "Tests.test_3_after": "ok"}
    assert outcomes["Tests.test_3_after"].made == {"tested": 1}


def test_what_fails_on_ours_only_is_worse_and_what_fails_on_both_is_not(dying):
    comparison = compare(Request(dying, "ours", package=""))
    # The last test asks for our loop by name, so that it fails on the standard library's.
    assert not comparison.worse
    assert comparison.both_bad == ["Tests.test_2_dies"]


DYING_OF_TWO = """
import os, unittest

class Tests(unittest.TestCase):
    def test_1_corrupts(self):
        os.environ["CORRUPTED"] = "1"

    def test_2_dies_of_it(self):
        if "CORRUPTED" in os.environ:
            os._exit(0)
"""


def test_a_death_that_an_earlier_test_prepared_is_found_on_both_loops(tmp_path, monkeypatch):
    (tmp_path / "dying_of_two.py").write_text(DYING_OF_TWO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    comparison = compare(Request("dying_of_two", "ours", package=""))
    assert not comparison.worse
    assert comparison.both_bad == ["Tests.test_2_dies_of_it"]


@pytest.mark.parametrize(
    ("mine", "theirs", "is_worse"),
    [
        ("ok", "fail", False),
        ("skip", "ok", True),
        ("skip", "fail", False),
        ("skip", "skip", False),
        ("fail", "ok", True),
        ("fail", "skip", True),
        ("fail", "error", False),
        ("died", "fail", False),
        ("fail", None, True),
    ],
)
def test_no_outcome_of_ours_may_be_worse(mine, theirs, is_worse):
    stdlib = {"T.t": Outcome(theirs)} if theirs else {}
    assert bool(Comparison(Request("m", "ours"), {"T.t": Outcome(mine)}, stdlib).worse) is is_worse
