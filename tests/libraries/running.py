"""Runs a library's own tests on two loops, in child processes, and compares. In the Windows Python.

    python running.py --prepared FOLDER [--out FILE] [--details FILE] NAME

FOLDER has the installed packages and the unpacked tests of that library, as tools/dev.py prepares them. A child that
dies or hangs takes one test with it, and another child runs the rest.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from outcomes import GOOD, Comparison, Run, read_events, result
from table import LIBRARIES, Library

HERE = Path(__file__).resolve().parent
# How often what differs is run again: a test that comes out now so and now so says nothing about a loop.
REPEATS = 2
# A library whose every test hangs is not worth the time.
CHILDREN_MAX = 12
TAIL_LINES = 30


class Child:
    """One run of child.py, in a copy of the tests of its own."""

    def __init__(self, library: Library, loop: str, prepared: Path, scratch: Path) -> None:
        self._library = library
        self._loop = loop
        self._prepared = prepared
        self._scratch = scratch

    def run(self, run: Run, only: list[str] | None, until: float) -> bool:
        """Take its tests' outcomes into the run; True if it came to a good end."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        suite = folder / "suite"
        # QUIRK(wine): shutil.copy2 needs CopyFile2, which Wine 8 lacks; calling it ends the process.
        shutil.copytree(self._prepared / "suite", suite, copy_function=shutil.copyfile)
        request = {
            "loop": self._loop,
            "as proactor": self._library.as_proactor,
            "arguments": list(self._library.arguments),
            "excluded": list(self._library.excluded),
            "only": only,
            "done": list(run.outcomes),
            "test limit": self._library.test_limit_s,
            "dlls": str(self._prepared / "dlls"),
            "events": str(folder / "events"),
            "stacks": str(folder / "stacks"),
        }
        (folder / "request").write_text(json.dumps(request), encoding="utf-8")
        environ = {**os.environ, "PYTHONPATH": str(self._prepared / "packages"), "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "child.py"), str(folder / "request")],
                cwd=suite,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            in_time = _wait(process, until)
        stacks, log_text = _text(folder / "stacks"), _text(folder / "log")
        tail = "\n".join([f"exit status {process.returncode}", *(stacks or log_text).splitlines()[-TAIL_LINES:]])
        hung = not in_time or "Timeout (" in stacks
        return read_events(_text(folder / "events").splitlines(), run, hung=hung, tail=tail)


def _wait(process: "subprocess.Popen[bytes]", until: float) -> bool:
    try:
        process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def run(library: Library, loop: str, prepared: Path, only: list[str] | None = None) -> Run:
    """A library's tests on one loop."""
    run = Run()
    started = time.monotonic()
    until = started + library.limit_s
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        child = Child(library, loop, prepared, Path(scratch))
        for _ in range(CHILDREN_MAX):
            if child.run(run, only, until) or run.troubles:
                break
            if time.monotonic() > until:
                run.troubles.append(f"not at its end after {library.limit_s:g} s")
                break
        else:
            run.troubles.append(f"given up after {CHILDREN_MAX} processes that died or hung")
    run.seconds = time.monotonic() - started
    return run


def compare(library: Library, prepared: Path) -> Comparison:
    """The standard library's loop first; whatever differs again, alone, on both."""
    stdlib = run(library, "stdlib", prepared)
    comparison = Comparison(run(library, "ours", prepared), stdlib)
    tests = [difference.test for difference in comparison.find_differences()]
    for _ in range(REPEATS if tests else 0):
        comparison.add(run(library, "ours", prepared, tests), run(library, "stdlib", prepared, tests))
    return comparison


def system() -> str:
    try:
        get_version = ctypes.WinDLL("ntdll").wine_get_version  # type: ignore[attr-defined, unused-ignore]
    except AttributeError:
        return platform.platform()
    get_version.restype = ctypes.c_char_p
    return f"Wine {get_version().decode()}"


def find(name: str) -> Library:
    return next(library for library in LIBRARIES if library.name == name)


def details(comparison: Comparison) -> str:
    """Everything that failed, with what it said."""
    parts = comparison.problems()
    for name, each in (("ours", comparison.ours), ("stdlib", comparison.stdlib)):
        bad = {test: outcome for test, outcome in each.outcomes.items() if outcome.word not in GOOD | {"skip"}}
        parts += [f"{name}: {test}: {outcome.word}\n{outcome.detail}\n" for test, outcome in bad.items()]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True, help="the library's packages and tests")
    parser.add_argument("--out", type=Path, help="the file for the result")
    parser.add_argument("--details", type=Path, help="a file for what failed, with tracebacks")
    parser.add_argument("name")
    options = parser.parse_args(arguments)
    library = find(options.name)
    comparison = compare(library, options.prepared)
    found = {
        "library": library.name,
        "version": library.version,
        "python": platform.python_version(),
        "system": system(),
        **result(comparison),
    }
    text = json.dumps(found, indent=1) + "\n"
    print("\n".join([text, *comparison.problems()]))
    if options.details:
        options.details.write_text(details(comparison), encoding="utf-8")
    if options.out:
        options.out.write_text(text, encoding="utf-8", newline="\n")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
