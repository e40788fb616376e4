"""Deliberate faults: each is made in a copy of the checkout, and the tests named for it must fail."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import mutation, native, report
from .faults import FAULTS, Fault

REPOSITORY = Path(__file__).resolve().parents[2]
# The slowest file of the ring needs a third of this. A run that takes longer hangs, which is noticed too: caught.
TIMEOUT_S = 120


def run(arguments: list[str]) -> int:
    """Make the faults named (default: all; `--sample N`: so many, others each day; `--everywhere ROOM...`: all that a
    tool can think of). Non-zero if one survives."""
    if arguments[:1] == ["--everywhere"]:
        return mutation.run(arguments[1:])
    stale = [fault.name for fault in FAULTS if _text(fault).count(fault.old) != 1]
    if stale:
        raise report.Trouble(f"what they replace is not there exactly once: {', '.join(stale)}; edit faults.py.")
    survivors = []
    for fault in choose(arguments):
        started = time.monotonic()
        verdict = judge(fault)
        print(f"{verdict:9} {fault.name} ({time.monotonic() - started:.0f} s)", flush=True)
        if verdict not in ("caught", "hangs"):
            survivors.append(fault.name)
    if survivors:
        print(f"not caught: {', '.join(survivors)}")
    return 1 if survivors else 0


def choose(arguments: list[str]) -> list[Fault]:
    if arguments[:1] == ["--sample"]:
        if len(arguments) != 2 or not arguments[1].isdigit():
            raise report.Trouble("--sample wants a number: write it like --sample 8.")
        day = random.Random(time.strftime("%Y-%m-%d"))
        return day.sample(FAULTS, min(int(arguments[1]), len(FAULTS)))
    unknown = set(arguments) - {fault.name for fault in FAULTS}
    if unknown:
        raise report.Trouble(f"no fault is called {', '.join(sorted(unknown))}: see tools/devtool/faults.py.")
    return [fault for fault in FAULTS if not arguments or fault.name in arguments]


def judge(fault: Fault) -> str:
    """caught, hangs (which is noticed as well), survived, or broken: the tests did not run at all."""
    python = native.environment(sys.executable, native.own_name(), "test")
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        folder = Path(scratch)
        for name in ("iocp_loop", "tests"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        (folder / "iocp_loop" / fault.file).write_text(_text(fault).replace(fault.old, fault.new), encoding="utf-8")
        tests = [f"tests/portable/test_{name}.py" for name in fault.tests.split()]
        command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            status = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            return "hangs"
    # pytest's: 0 all passed, 1 some failed. A process that died of a signal has noticed the fault as well.
    return "survived" if status == 0 else "caught" if status == 1 or status < 0 else "broken"


def _text(fault: Fault) -> str:
    return (REPOSITORY / "iocp_loop" / fault.file).read_text(encoding="utf-8")
