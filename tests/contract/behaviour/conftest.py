"""Every async test below runs twice, on our loop and on the standard library's; on neither may anything be reported."""

import asyncio
import gc
from typing import Any

import pytest

import iocp_loop

_loops: list[Any] = []


def _watched(factory):
    def make():
        loop = factory()
        loop.reports = []
        loop.set_exception_handler(lambda _loop, report: loop.reports.append(report))
        _loops.append(loop)
        return loop

    return make


def pytest_asyncio_loop_factories(config, item):
    return {"ours": _watched(iocp_loop.new_event_loop), "stdlib": _watched(asyncio.ProactorEventLoop)}


@pytest.fixture(autouse=True)
def nothing_reported():
    """After every test: no call of the exception handler that the test did not take away, and the loop closed."""
    _loops.clear()
    yield
    gc.collect()
    for loop in _loops:
        assert loop.is_closed()
        assert not loop.reports
        proactor = getattr(loop, "proactor", None)
        if proactor is not None:
            assert not proactor.pending
            assert not proactor.endpoints
    _loops.clear()


@pytest.fixture
def reports():
    """What reached the exception handler of the running loop; a test that provokes a report takes it out."""
    return lambda: asyncio.get_running_loop().reports
