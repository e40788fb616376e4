"""Every small fault that cosmic-ray can make in a room: `tools/dev.py mutants --everywhere ROOM...`.

Not for every run: a room has a hundred such faults, and each costs a run of the tests that are named for the room in
`faults.py`. What survives is a question: a test is missing, or the fault changes nothing. Those are in EQUIVALENT, with
the reason.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from . import native, report
from .faults import FAULTS

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120  # as in mutants.py: a run that takes longer hangs, and is noticed
SEEDS = "10"  # schedules of each seeded test

# Swaps of two operators that say nothing the others do not, and the `|` of annotations, are left out: they are nine of
# ten, and would take a day.
_BINARY = "Add_Sub Sub_Add Mul_Add Mul_FloorDiv FloorDiv_Mul Mod_Mul BitAnd_BitOr RShift_LShift LShift_RShift"
_COMPARISONS = "Is_IsNot IsNot_Is Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Lt_GtE LtE_Gt Gt_LtE GtE_Lt"
LEFT_OUT = [
    f"core/ReplaceBinaryOperator_(?!({_BINARY.replace(' ', '|')})$).*",
    f"core/ReplaceComparisonOperator_(?!({_COMPARISONS.replace(' ', '|')})$).*",
]

# What a fault makes of a line, by room, where it changes nothing that anybody could see; and why.
EQUIVALENT: dict[str, dict[str, str]] = {
    "_core/_cancels.py": {
        "CANCELS_MAX = 99": "a number of attempts, far from those that were ever needed",
        "CANCELS_MAX = 101": "a number of attempts, far from those that were ever needed",
        "operation.endpoint.receives_cancelled += 2": "who looks at it asks whether it is what it was, and no more",
    },
}


def run(rooms: list[str]) -> int:
    """Try them all in each room. Non-zero if one survives that is not known to change nothing."""
    tests = {room: tests_of(room) for room in rooms}
    survivors = 0
    for room, files in tests.items():
        survivors += sum(not reason for reason in try_room(room, files))
    return 1 if survivors else 0


def tests_of(room: str) -> list[str]:
    """The files of the portable ring that the deliberate faults of a room are tried on."""
    found = sorted({name for fault in FAULTS if fault.file == room for name in fault.tests.split()})
    if not found:
        rooms = ", ".join(sorted({fault.file for fault in FAULTS}))
        raise report.Trouble(f"no test is named for {room}: a room is one of {rooms}.")
    return [f"tests/portable/test_{name}.py" for name in found]


def try_room(room: str, tests: list[str]) -> list[str]:
    """Print what survives; for each, why it may, "" if nobody knows."""
    python = native.environment(sys.executable, native.own_name(), "test", "mutation")
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        folder = Path(scratch)
        for name in ("iocp_loop", "tests"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        (folder / "faults.toml").write_text(configuration(room, python, tests), encoding="utf-8")
        tried = [json.loads(line) for line in cosmic_ray(python, folder).splitlines()]
    verdicts = Counter((result or {}).get("test_outcome") or "left out" for _, result in tried)
    print(f"{room}: {', '.join(f'{count} {verdict}' for verdict, count in sorted(verdicts.items()))}", flush=True)
    if not verdicts["killed"]:
        raise report.Trouble(f"no fault of {room} was noticed: the tests did not run.")
    reasons = []
    for _, result in tried:
        if (result or {}).get("test_outcome") == "survived":
            reasons.append(judged(room, result))
    return reasons


def configuration(room: str, python: Path, tests: list[str]) -> str:
    command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return "\n".join(
        [
            "[cosmic-ray]",
            f"module-path = [{json.dumps(f'iocp_loop/{room}')}]",
            f"timeout = {TIMEOUT_S}.0",
            "excluded-modules = []",
            f"test-command = {json.dumps(subprocess.list2cmdline(command))}",
            "[cosmic-ray.distributor]",
            'name = "local"',
            "[cosmic-ray.filters.operators-filter]",
            f"exclude-operators = {json.dumps(LEFT_OUT)}",
        ]
    )


def cosmic_ray(python: Path, folder: Path) -> str:
    """Run it in `folder`; a line of JSON for each fault."""
    environ = os.environ | {"IOCP_LOOP_SEEDS": SEEDS, "PYTHONDONTWRITEBYTECODE": "1"}
    answer = ""
    for module, *arguments in (
        ("cosmic_ray.cli", "init", "faults.toml", "faults.sqlite"),
        ("cosmic_ray.tools.filters.operators_filter", "faults.sqlite", "faults.toml"),
        ("cosmic_ray.cli", "exec", "faults.toml", "faults.sqlite"),
        ("cosmic_ray.cli", "dump", "faults.sqlite"),
    ):
        command = [str(python), "-m", module, *arguments]
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise report.Trouble(f"{' '.join([module, *arguments])} failed: {done.stderr.strip()[-500:]}")
        answer = done.stdout
    return answer


def judged(room: str, result: dict[str, Any]) -> str:
    changes = [line for line in result["diff"].splitlines()[3:] if line[:1] in "+-"]
    became = "".join(line[1:].strip() for line in changes if line.startswith("+"))
    reason = EQUIVALENT.get(room, {}).get(became, "")
    print("\n".join([f"  {'changes nothing' if reason else 'survived'}: {reason}", *changes]), flush=True)
    return reason
