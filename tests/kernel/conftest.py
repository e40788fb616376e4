"""The kernel ring: async tests run on our loop over the real kernel, and nothing may be left of them afterwards."""

import gc
import warnings
from collections.abc import Iterator

import pytest

from iocp_loop._core import _kept
from iocp_loop._core._port import CompletionPort
from iocp_loop._core._proactor import Proactor

from .receiving import Receiver
from .watched import WatchedKernel, WatchedLoop


def pytest_asyncio_loop_factories(config, item):
    """pytest-asyncio runs each async test on a loop of this factory; `here()` is that loop."""
    return {"iocp": WatchedLoop}


@pytest.fixture
def kernel() -> WatchedKernel:
    """The real kernel, watched."""
    return WatchedKernel()


@pytest.fixture
def port(kernel: WatchedKernel) -> Iterator[CompletionPort]:
    """A completion port on the watched kernel."""
    with CompletionPort(kernel=kernel) as port:
        yield port


@pytest.fixture
def proactor(kernel: WatchedKernel) -> Iterator[Proactor]:
    """A proactor on the watched kernel; at the end nothing may be pending, and no endpoint registered."""
    proactor = Proactor(kernel=kernel)
    yield proactor
    left = [*proactor.pending.values(), *proactor.endpoints.values()]
    stuck = proactor.close()
    assert not left
    assert not stuck


@pytest.fixture(params=[True, False], ids=["skip", "packet"])
def receiver(proactor: Proactor, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """A receiver on a handle that skips packets for inline successes, and on one that does not."""
    with Receiver(proactor, skip=request.param) as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After every test: loops closed with nothing outstanding, nothing reported, no orphan, no warning from a finalizer."""
    WatchedLoop.made.clear()
    orphans = list(_kept.ORPHANS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
        # What a finalizer has to say, it says here: pytest turns it into an error of this test.
        gc.collect()
    for loop in WatchedLoop.made:
        assert loop.is_closed()
        assert not loop.left
        assert not loop.reports
    WatchedLoop.made.clear()
    assert orphans == _kept.ORPHANS
