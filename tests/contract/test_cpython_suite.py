"""CPython's own asyncio tests on our loop: nothing may fail here that does not fail on the standard library's loop.

One test per module, loop and mode; `suite_tables` says which modules, and what of them is left out for which reason.
The comparison is printed as a table after the run. By hand, with the standard library's loop asked about every test:

    python tests/contract/suite_report.py [MODULE ...]
"""

import importlib.util
import os

import pytest
from suite_report import describe
from suite_runner import Request, compare
from suite_tables import MODULES, PACKAGE

if importlib.util.find_spec("test.test_asyncio") is None:
    pytest.skip("this Python came without CPython's test suite (Lib/test)", allow_module_level=True)

# In a run that is in stomp mode as a whole, the plain runs would be the same thing again.
_MODES = ("stomp",) if os.environ.get("IOCP_LOOP_STOMP") else ("plain", "stomp")


def _requests():
    for module in MODULES:
        if importlib.util.find_spec(PACKAGE + module.name) is None:
            continue  # An older Python, which has not got what this module is about.
        for loop in module.loops:
            for mode in _MODES:
                # The hybrid's operations are those of our own loop's sock_* methods: once in stomp mode is enough.
                if mode == "plain" or (module.stomp and loop == "ours"):
                    yield pytest.param(Request(module.name, loop, mode == "stomp"), id=f"{module.name}-{loop}-{mode}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("request_", list(_requests()))
def test_no_failure_of_ours_that_the_stdlib_loop_does_not_have(request_, suite_results):
    comparison = compare(request_)
    suite_results.append(comparison)
    assert comparison.ours, "no test was run"
    # A loop made by another name would make the comparison one of the standard library with itself.
    assert comparison.made("other") == 0
    assert not comparison.worse, describe(comparison)
