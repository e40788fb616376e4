"""Runs CPython's asyncio tests in child processes, and compares our loop with the standard library's, test by test.

The rule: no failure of ours that the standard library's loop does not have in the same place, and no test skipped on
ours that it runs. So the standard library's loop is asked about those tests only that ours did not pass, unless the
whole table is wanted.

A child that dies, or hangs, takes one test with it: that test's outcome says so, and another child runs the rest.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from suite_tables import MARK, PACKAGE, excluded, unskipped

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# A test may take this long before the child prints every thread's stack and ends itself. The longest that CPython has
# runs for 10 s on an idle machine.
TEST_TIMEOUT_S = 120.0
# For a child that cannot even do that, and for its start.
SILENCE_MAX_S = TEST_TIMEOUT_S + 60
# The last lines of a dead child's output.
TAIL_LINES = 40

GOOD = frozenset({"ok", "expected failure"})
IDLE = frozenset({"skip"})


@dataclass
class Outcome:
    """What became of one test. `made`: the loops it made, of the kind tested and of the other kind."""

    word: str
    detail: str = ""
    made: Counter[str] = field(default_factory=Counter)


Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Request:
    """What a child is told: the module's name, the loop's (see `substitution.LOOPS`), and which tests (None: all)."""

    module: str
    loop: str
    stomp: bool = False
    only: frozenset[str] | None = None
    package: str = PACKAGE


class Child:
    """One run of `suite_child.py`."""

    def __init__(self, request: Request, done: set[str]) -> None:
        environ = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        if request.stomp:
            environ["IOCP_LOOP_STOMP"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "suite_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=ROOT,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._tail: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        ask = {
            "package": request.package,
            "module": request.module,
            "loop": request.loop,
            "only": None if request.only is None else sorted(request.only - done),
            "without": sorted(excluded(request.module, request.loop) | done),
            "unskip": sorted(unskipped(request.module) if request.loop == "ours" else ()),
            "timeout": TEST_TIMEOUT_S,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(ask).encode() + b"\n")
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line.decode(errors="replace").rstrip())
        self._lines.put(None)

    def run(self, outcomes: Outcomes) -> bool:
        """Take the child's reports until its end; True if it came to a good one."""
        running, ended = "", False
        while True:
            try:
                line = self._lines.get(timeout=SILENCE_MAX_S)
            except queue.Empty:
                self._process.kill()
                self._tail.append(f"silent for {SILENCE_MAX_S:g} s: killed")
                line = None
            if line is None:
                break
            if not line.startswith(MARK):
                if line:
                    self._tail = [*self._tail[1 - TAIL_LINES :], line]
                continue
            report = json.loads(line.removeprefix(MARK))
            if report["event"] == "start":
                running = report["test"]
                self._tail.clear()
            elif report["event"] == "stop":
                outcomes[report["test"]] = Outcome(report["outcome"], report["detail"], Counter(report["made"]))
                running = ""
            else:
                ended = True
        status = self._process.wait()
        if not ended:
            # Between two tests is possible too: a fixture, or the import.
            where = running or f"(between tests, after {len(outcomes)})"
            detail = "\n".join([f"the process died, exit status {status}", *self._tail])
            outcomes[where] = Outcome("died", detail)
            return not running
        return True


def run(request: Request) -> Outcomes:
    """Run a module's tests on one loop; as many children as it takes."""
    outcomes: Outcomes = {}
    while not Child(request, set(outcomes)).run(outcomes):
        pass
    return outcomes


@dataclass
class Comparison:
    """One module on one of our loops, beside the standard library's."""

    request: Request
    ours: Outcomes
    stdlib: Outcomes

    @property
    def worse(self) -> dict[str, tuple[Outcome, Outcome]]:
        """Tests that are worse on our loop, with both outcomes."""
        return {
            name: (mine, self.stdlib.get(name, Outcome("absent")))
            for name, mine in self.ours.items()
            if mine.word not in GOOD and _is_worse(mine, self.stdlib.get(name))
        }

    @property
    def both_bad(self) -> list[str]:
        """Tests that fail on both."""
        return [name for name, mine in self.ours.items() if mine.word not in GOOD | IDLE and name not in self.worse]

    @property
    def better(self) -> list[str]:
        """Tests that fail or are skipped on the standard library's loop only. Known only if it ran them."""
        return [
            name
            for name, theirs in self.stdlib.items()
            if theirs.word not in GOOD and name in self.ours and self.ours[name].word in GOOD
        ]

    def made(self, kind: str) -> int:
        """How many tests made a loop of that kind."""
        return sum(1 for outcome in self.ours.values() if outcome.made[kind])


def _is_worse(mine: Outcome, theirs: Outcome | None) -> bool:
    if theirs is None or theirs.word in GOOD:
        return True
    # A skip beside a skip or a failure is no worse; a failure beside a skip is.
    return theirs.word in IDLE and mine.word not in IDLE


def compare(request: Request, *, whole: bool = False) -> Comparison:
    """Run a module on one of our loops, and on the standard library's whatever ours did not pass (`whole`: all).

    All of it, too, where a child of ours died: memory may have been corrupted by any test before that one.
    """
    ours = run(request)
    doubtful = frozenset(name for name, outcome in ours.items() if outcome.word not in GOOD)
    whole = whole or any(outcome.word == "died" for outcome in ours.values())
    stdlib: Outcomes = {}
    if whole or doubtful:
        stdlib = run(replace(request, loop="stdlib", stomp=False, only=request.only if whole else doubtful))
    return Comparison(request, ours, stdlib)
