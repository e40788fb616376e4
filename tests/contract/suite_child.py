"""The child process: one module of CPython's asyncio tests, on one loop, reported test by test.

Standard input holds one JSON object, the request (see `suite_runner.Request`). Standard output carries, among whatever
the tests print, one line per event: MARK and a JSON object. The last event is "end"; a process that ends without it
died, whatever its exit status says (under Wine a crash may exit with 0).
"""

import faulthandler
import json
import os
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import substitution
from suite_tables import MARK

# Enough to see what failed; the rest of a page-long assertion helps nobody.
DETAIL_MAX = 4000


def short_id(test: Any, prefix: str) -> str:
    """Class and method, without package and module. For a failed setUpModule and the like, what unittest says."""
    return str(test.id()).removeprefix(prefix)


def flatten(suite: Any) -> Iterator[unittest.TestCase]:
    """The tests of a suite, in order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


class Reporter(unittest.TestResult):
    """Sends each test's beginning and outcome to the parent at once: the process may die in the next one."""

    def __init__(self, prefix: str, made: Any, timeout: float) -> None:
        super().__init__()
        self._prefix = prefix
        self._made = made
        self._timeout = timeout
        self._output = os.dup(1)
        self._outcome = ("ok", "")

    def send(self, event: str, **fields: Any) -> None:
        """One line. On a descriptor of its own, because tests replace sys.stdout."""
        os.write(self._output, f"\n{MARK}{json.dumps({'event': event, **fields})}\n".encode())

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._outcome = ("ok", "")
        self._made.clear()
        faulthandler.dump_traceback_later(self._timeout, exit=True)
        self.send("start", test=short_id(test, self._prefix))

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        self._stop(test, *self._outcome)

    def _stop(self, test: Any, outcome: str, detail: str) -> None:
        name = short_id(test, self._prefix)
        self.send("stop", test=name, outcome=outcome, detail=detail[-DETAIL_MAX:], made=dict(self._made))

    def _bad(self, test: Any, outcome: str, err: Any) -> None:
        detail = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        if isinstance(test, unittest.TestCase):
            self._outcome = (outcome, detail)
        else:
            # setUpModule or setUpClass: no test was started.
            self._stop(test, outcome, detail)

    def addError(self, test: Any, err: Any) -> None:
        self._bad(test, "error", err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._bad(test, "fail", err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._bad(test, "fail", err)

    def addSkip(self, test: Any, reason: str) -> None:
        if self._outcome[0] == "ok":
            self._outcome = ("skip", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._outcome = ("expected failure", "")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._outcome = ("unexpected success", "")


def main() -> None:
    request = json.loads(sys.stdin.readline())
    module = request["module"]
    name_of_module = request["package"] + module
    prefix = name_of_module + "."
    made = substitution.install(request["loop"])
    if request["loop"] == "ours" and module == "test_base_events":
        substitution.replace_base_loop()
    only, without, unskip = request["only"], frozenset(request["without"]), frozenset(request["unskip"])
    suite = unittest.TestSuite()
    for test in flatten(unittest.defaultTestLoader.loadTestsFromName(name_of_module)):
        name = short_id(test, prefix)
        if (only is not None and name not in only) or without & {name, name.partition(".")[0]}:
            continue
        if name in unskip:
            substitution.unskip(test)
        suite.addTest(test)
    reporter = Reporter(prefix, made, request["timeout"])
    suite.run(reporter)
    reporter.send("end")


if __name__ == "__main__":
    main()
