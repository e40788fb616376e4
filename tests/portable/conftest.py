"""The portable ring: seeds, and the leak check of what the proactor keeps for the life of the process."""

import os
from collections.abc import Callable

import pytest
from fakes.kernel import FakeKernel
from fakes.profiles import PROFILES

from iocp_loop._core import _kept
from iocp_loop._handles import _pipes


@pytest.fixture
def schedules(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`schedules(scenario, count)` calls `scenario(seed)` for each seed from 0, or for those that --seed names.

    A failure says which seed it was, and how to run that one alone. IOCP_LOOP_SEEDS is how many there are, for long
    runs.
    """
    only = request.config.getoption("--seed")

    def run(scenario: Callable[[int], object], count: int) -> None:
        seeds = range(int(os.environ.get("IOCP_LOOP_SEEDS", count)))
        if only is not None:
            first, _, end = only.partition(":")
            seeds = range(int(first), int(end) if end else int(first) + 1)
        for seed in seeds:
            try:
                scenario(seed)
            except BaseException as exc:
                exc.add_note(f"seed {seed} failed; alone: python -m pytest '{request.node.nodeid}' --seed={seed}")
                raise

    return run


@pytest.fixture(autouse=True)
def profile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake kernel plays the system that --profile names."""
    monkeypatch.setattr(FakeKernel, "default_profile", PROFILES[request.config.getoption("--profile")])


@pytest.fixture(autouse=True)
def fakes_have_handles(monkeypatch):
    """As asyncio's pipes: `handle_of` asks by type."""
    monkeypatch.setattr(_pipes, "_WITH_HANDLES", (*_pipes._WITH_HANDLES, ("fakes.handles", "FakeHandle")))


@pytest.fixture(autouse=True)
def no_orphans():
    """Nothing stays in the kernel's hands after a test, but what the test itself took care of."""
    before = list(_kept.ORPHANS)
    yield
    assert before == _kept.ORPHANS
