"""Which lines and branches of the package the portable ring runs: a table by room, and the rooms that have too few.

The rooms of levels 1 to 4 are what the fake kernel is for: they must not fall under LEAST percent. What only a real
Windows can run is in EXCUSED, with the reason; it is shown, and not held against anybody.
"""

import ast
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import native

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "iocp_loop"
LEAST = 85  # percent of lines and branches
LEVELS_HELD = range(1, 5)
# So many of each test's schedules; more of them find more faults, but hardly run other lines.
SEEDS = "40"

EXCUSED = {
    "_debug/stomp": "memory of its own, by VirtualAlloc",
    "_asyncio/_private": "what asyncio's own code does with a real loop: signals, children, exceptions, TLS",
    "_handles/_blocking": "calls that block, of handles not opened for overlapped I/O: threads of its own, a console",
    "_handles/_threaded": "a thread for each such handle, which the fake kernel cannot wait for",
    "_handles/_waits": "threads that wait for processes and events, which the fake kernel does not have",
    "_transports/_subprocess": "child processes",
}


def measure(arguments: list[str]) -> int:
    """Run the ring, print the table; 1 if a room has too few, else the ring's own status."""
    python = native.environment(sys.executable, native.own_name(), "test", "coverage")
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            "COVERAGE_FILE": str(Path(folder) / "data"),
            "IOCP_LOOP_SEEDS": SEEDS,
            "PYTHONPATH": str(REPOSITORY),
        }
        report = Path(folder) / "report.json"
        run = ["-m", "coverage", "run", "--branch", f"--source={PACKAGE}", "-m", "pytest", "-q", "tests/portable"]
        status = native.run(python, [*run, *arguments], folder=REPOSITORY, environ=environ)
        write = ["-m", "coverage", "json", "-q", "-o", str(report)]
        status = native.run(python, write, folder=REPOSITORY, environ=environ) or status
        files = json.loads(report.read_text())["files"]
    return 1 if print_table(files) else status


def print_table(files: dict[str, Any]) -> bool:
    """True if a room has too few."""
    levels = levels_of_rooms()
    failed = []
    print("level  room                        percent  not run")
    for name, facts in sorted(files.items(), key=lambda item: (level_of(item[0], levels) or 0, item[0])):
        room, level = room_of(name), level_of(name, levels)
        percent = facts["summary"]["percent_covered"]
        is_low = level in LEVELS_HELD and percent < LEAST
        if is_low and room not in EXCUSED:
            failed.append(room)
        missing = ranges(facts["missing_lines"]) if is_low else ""
        mark = "" if not is_low else f"  ({EXCUSED[room]})" if room in EXCUSED else "  TOO FEW"
        print(f"{'' if level is None else level:>5}  {room:26} {percent:8.1f}  {missing}{mark}")
    if failed:
        print(f"under {LEAST} percent: {', '.join(failed)}")
    return bool(failed)


def room_of(name: str) -> str:
    return Path(name).relative_to(PACKAGE).with_suffix("").as_posix()


def level_of(name: str, levels: dict[str, int]) -> int | None:
    """A room's own level where it has one, else its folder's."""
    room = room_of(name).replace("/", ".")
    return levels.get(room, levels.get(room.partition(".")[0]))


def levels_of_rooms() -> dict[str, int]:
    """As the test of the house rules has them: there is no other list."""
    tree = ast.parse((REPOSITORY / "tests" / "portable" / "test_tidy.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS":
            levels: dict[str, int] = ast.literal_eval(node.value)
            return levels
    raise LookupError("test_tidy.py has no LEVELS")


def ranges(lines: list[int]) -> str:
    """1, 2, 3, 7 as 1-3, 7."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][-1] + 1:
            parts[-1].append(line)
        else:
            parts.append([line])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
