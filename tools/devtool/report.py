"""What the tool says: progress on standard error, and errors of one sentence."""

import contextlib
import sys
import time
from collections.abc import Iterator


class Trouble(Exception):
    """Something the user can read and act on: one sentence that says what is missing and what to do."""


def say(text: str) -> None:
    # Standard error: standard output belongs to the program that runs in the Windows Python.
    print(f"[dev] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Names a slow step while it runs, and says how long it took."""
    say(f"{text} ...")
    started = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - started:.0f} s")
