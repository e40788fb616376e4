"""What an experiment is, and what it answers; see `_experiments`."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple


class Answer(NamedTuple):
    """The result of an experiment: a word or two that can be compared, and a line with details."""

    short: str
    detail: str = ""


@dataclass(frozen=True)
class Experiment:
    """One question.

    Attributes:
        name: what is tried.
        run: tries it.
        matters: what depends on the answer.
        expected: the answer for each system ("Windows", "Wine 8", "Wine 10"); if a system is missing, none is expected.
        switch: the switch in the tests' profiles (tests/fakes/profiles.py) that stands for it; "" if there is none.
        promised: whether the loop relies on the expected answer, so that another one is a fault.
    """

    name: str
    run: Callable[[], Answer]
    matters: str
    expected: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    switch: str = ""
    promised: bool = False

    def answer(self) -> Answer:
        """Make the experiment. A failure is an answer too."""
        try:
            return self.run()
        except (OSError, AttributeError, subprocess.SubprocessError) as exc:
            return Answer("not tried", f"{type(exc).__name__}: {exc}")
