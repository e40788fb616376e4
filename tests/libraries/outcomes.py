"""What became of tests, on one loop and on two: the comparing, without anything that runs them. For any system."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

GOOD = frozenset({"ok", "expected failure"})
IDLE = frozenset({"skip"})
# What a test is called that one loop's run does not have at all.
ABSENT = "absent"
# So much of an exception's line is kept.
SAID_MAX = 200
# pytest's exit statuses: all passed, some failed, none collected (all of them are done, or left out).
PYTEST_WORKED = frozenset({0, 1, 5})


@dataclass
class Outcome:
    """What became of one test; `detail` is empty if it is good."""

    word: str
    detail: str = ""


Outcomes = dict[str, Outcome]


@dataclass
class Run:
    """All tests of a library on one loop.

    `made` counts the loops: "tested", of the kind asked for, and "other", of the kind that was to be replaced.
    """

    outcomes: Outcomes = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    # What went wrong beside the tests: a child that died between two of them, the time that ran out.
    troubles: list[str] = field(default_factory=list)


def read_events(lines: Iterable[str], run: Run, *, hung: bool, tail: str) -> bool:
    """Takes a child's report into the run; True if the child came to a good end.

    A child that did not takes the test that was running with it; whether it hung or died is for the caller to know.
    """
    running: str | None = None
    ended = False
    for event in _events(lines):
        if event["event"] == "start":
            running = event["test"]
        elif event["event"] == "stop":
            run.outcomes[event["test"]] = Outcome(event["word"], event["detail"])
            running = None
        else:
            ended = True
            if event["status"] not in PYTEST_WORKED:
                run.troubles.append(f"pytest ended with status {event['status']}\n{tail}")
        run.made.update(event.get("made", {}))
    if ended:
        return True
    if running is None:
        run.troubles.append(f"the process {'hung' if hung else 'died'} between two tests\n{tail}")
    else:
        run.outcomes[running] = Outcome("hung" if hung else "died", tail)
    return False


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return  # Cut off: the process died while it wrote this.


def verdict(mine: str, theirs: str) -> str:
    """How the words for one test on our loop and on the standard library's compare."""
    if mine in GOOD and theirs in GOOD:
        return "passed"
    if mine in IDLE and theirs in IDLE:
        return "skipped"
    if mine in GOOD:
        return "stdlib"
    if theirs in GOOD:
        return "ours"
    if mine in IDLE or theirs in IDLE:
        # A failure beside a skip is worse than the skip.
        return "stdlib" if mine in IDLE else "ours"
    return "failed"


@dataclass
class Difference:
    """A test whose outcomes differ, in the first run and whenever it was run again alone, with ours and theirs."""

    test: str
    ours: list[str]
    stdlib: list[str]
    detail: str = ""

    @property
    def kind(self) -> str:
        """ "ours" or "stdlib": where it fails every time, and only there. "unsteady": where it comes out as it likes."""
        kinds = {verdict(mine, theirs) for mine, theirs in zip(self.ours, self.stdlib, strict=True)}
        return kinds.pop() if len(kinds) == 1 else "unsteady"


@dataclass
class Comparison:
    """A library's tests on both loops."""

    ours: Run
    stdlib: Run
    differences: list[Difference] = field(default_factory=list)

    def verdicts(self) -> dict[str, str]:
        """Of each test, from the first run. What a run that broke off did not come to has none."""
        tests = dict.fromkeys([*self.stdlib.outcomes, *self.ours.outcomes])
        for run in (self.ours, self.stdlib):
            if run.troubles:
                tests = {test: None for test in tests if test in run.outcomes}
        return {test: verdict(word(self.ours, test), word(self.stdlib, test)) for test in tests}

    def find_differences(self) -> list[Difference]:
        """What the first run says."""
        for test, kind in self.verdicts().items():
            if kind in ("ours", "stdlib"):
                run = self.ours if kind == "ours" else self.stdlib
                detail = run.outcomes[test].detail if test in run.outcomes else ""
                self.differences.append(Difference(test, [word(self.ours, test)], [word(self.stdlib, test)], detail))
        return self.differences

    def add(self, ours: Run, stdlib: Run) -> None:
        """Another run of the tests that differ."""
        for difference in self.differences:
            difference.ours.append(word(ours, difference.test))
            difference.stdlib.append(word(stdlib, difference.test))

    def problems(self) -> list[str]:
        """Why the comparison proves nothing, or less than it seems to."""
        problems = [f"{name}: {trouble}" for name, run in self._runs() for trouble in run.troubles]
        problems += [f"{name}: no loop was made" for name, run in self._runs() if not run.made["tested"]]
        problems += [f"{name}: no test was run" for name, run in self._runs() if not run.outcomes]
        return problems

    def _runs(self) -> tuple[tuple[str, Run], ...]:
        return (("ours", self.ours), ("stdlib", self.stdlib))


def said(detail: str) -> str:
    """The line of a traceback, as pytest prints it, that has the exception."""
    lines = [line[1:].strip() for line in detail.splitlines() if line.startswith("E  ")]
    return (lines or detail.splitlines() or [""])[0][:SAID_MAX]


def word(run: Run, test: str) -> str:
    return run.outcomes[test].word if test in run.outcomes else ABSENT


def result(comparison: Comparison) -> dict[str, Any]:
    """What is kept of a comparison, as JSON: counts, and the names of tests that are not good on both loops."""
    verdicts = comparison.verdicts()
    counts = Counter(verdicts.values())
    return {
        "tests": len(verdicts),
        "passed": counts["passed"],
        "skipped": counts["skipped"],
        "failed": sorted(test for test, kind in verdicts.items() if kind == "failed"),
        "differences": [
            {"test": each.test, "kind": each.kind, "ours": each.ours, "stdlib": each.stdlib, "said": said(each.detail)}
            for each in comparison.differences
        ],
        "loops": {"ours": comparison.ours.made["tested"], "stdlib": comparison.stdlib.made["tested"]},
        "other loops": comparison.ours.made["other"],
        "seconds": {"ours": round(comparison.ours.seconds), "stdlib": round(comparison.stdlib.seconds)},
        # The whole of it, which names files of the machine, is among the details.
        "problems": [problem.splitlines()[0] for problem in comparison.problems()],
    }
