"""Other people's test suites: what `libraries` needs of them, fetched and laid out, and the command itself.

A prepared library is a folder with three: `packages`, the library and what its tests need, from wheels for the Windows
Python; `suite`, its source distribution without the package; and `dlls`, what Wine lacks.
"""

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cache, fetch, pypi, report, wine, winpython

REPOSITORY = Path(__file__).resolve().parents[2]
RING = REPOSITORY / "tests" / "libraries"
PAGE = REPOSITORY / "docs" / "compatibility.md"
RECIPE = 2  # Raise it when prepare() does something else.
SHIM = Path(__file__).parent / "bcryptprimitives.c"
# The library whose tests an ordinary test run has, and the variable that tells it where they are.
SAMPLE = "janus"
VARIABLE = "IOCP_LOOP_LIBRARY"

RunPython = Callable[[str | None, list[str], Path], int]


def table() -> dict[str, Any]:
    """What tests/libraries/table.py defines."""
    return runpy.run_path(str(RING / "table.py"))


def run(names: list[str], python: str | None, run_python: RunPython) -> int:
    """Compares the named libraries, or all, and makes the page anew."""
    known = table()
    libraries = {library.name: library for library in known["LIBRARIES"]}
    lock_only = "--lock" in names
    names = [name for name in names if name != "--lock"] or list(libraries)
    for name in names:
        if name not in libraries:
            raise report.Trouble(f"{name} is not in tests/libraries/table.py: it has {', '.join(libraries)}.")
    if lock_only:
        for name in names:
            lock(libraries[name], known["PYTHON"])
        return 0
    python = python or known["PYTHON"]
    status = 0
    for name in names:
        needed = libraries[name].needs
        if needed and needed not in os.environ:
            report.say(f"left out {name}, whose tests need a server: start one, and set {needed}.")
            status = 1
            continue
        folder = prepared(libraries[name], python)
        command = [str(RING / "running.py"), name, "--prepared", system_path(folder)]
        command += ["--details", system_path(cache.folder() / f"library-{name}.log")]
        if python == known["PYTHON"]:
            command += ["--out", system_path(RING / "results" / f"{name}.json")]
        with report.step(f"the tests of {name} on both loops"):
            status = run_python(python, command, REPOSITORY) or status
        report.say(f"what failed, with tracebacks: {cache.folder() / f'library-{name}.log'}")
    subprocess.run([sys.executable, str(RING / "page.py"), "--out", str(PAGE)], check=True)
    return status


def system_path(path: Path) -> str:
    return str(path) if sys.platform == "win32" else wine.windows_path(path)


def sample(python: str) -> dict[str, str]:
    """The variable for a test run with that Python; empty if the sample is not for it."""
    known = table()
    if python != known["PYTHON"]:
        return {}
    (library,) = (library for library in known["LIBRARIES"] if library.name == SAMPLE)
    return {VARIABLE: system_path(prepared(library, python))}


def prepared(library: Any, python: str) -> Path:
    """The library's folder, made now if it is not there."""
    lock_file = RING / "locks" / f"{library.name}.txt"
    inputs = [str(RECIPE), python, library.version, library.sha256, library.source]
    name = f"library-{library.name}-{python}-{cache.key(*inputs, lock_file.read_bytes())}"
    return cache.built_once(name, lambda folder: prepare(library, python, lock_file, folder))


def prepare(library: Any, python: str, lock_file: Path, folder: Path) -> None:
    with report.step(f"fetching {library.name} {library.version}, its tests and what they need"):
        minor = python.rstrip("t")
        options = fetch.wheels_for_windows(minor, free_threaded=python.endswith("t"))
        target = ["--target", str(folder / "packages"), "--no-deps", "--no-compile", *options]
        fetch.pip("install", *target, "-r", lock_file, what=f"what {library.name} needs")
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{library.name}=={library.version} --hash=sha256:{library.sha256}\n")
        source = ("download", "--no-deps", "--no-binary", library.name, "--require-hashes")
        fetch.pip(*source, "-r", requirement, "-d", folder, what=f"the tests of {library.name}")
        (archive,) = folder.glob("*.tar.gz")
        unpack(archive, folder / "suite", library.source)
        (folder / "dlls").mkdir()
        if sys.platform != "win32":
            # QUIRK(wine): Wine 8 has no bcryptprimitives.dll, and wheels of Rust programs do not load without.
            command = ("-shared", "-O2", "-Wall", "-Werror", "-s", SHIM, "-ladvapi32")
            winpython.compile_with(wine.COMPILERS[64], *command, "-o", folder / "dlls" / "bcryptprimitives.dll")


def unpack(archive: Path, suite: Path, source: str) -> None:
    """A source distribution's content, without the folder that would shadow the installed package."""
    with tarfile.open(archive) as members:
        # Python 3.11.2 does not know it; the archive is known by its hash.
        members.extraction_filter = getattr(tarfile, "data_filter", None)
        members.extractall(suite.parent / "unpacked")
    (top,) = (suite.parent / "unpacked").iterdir()
    top.rename(suite)
    (suite.parent / "unpacked").rmdir()
    archive.unlink()
    if source and not (suite / source).is_dir():
        raise report.Trouble(f"{archive.name} has no folder {source}: correct tests/libraries/table.py.")
    if source:
        shutil.rmtree(suite / source)


def lock(library: Any, python: str) -> None:
    """Writes the versions of everything that a library's tests need, as of now."""
    command = ("pip", "compile", "--no-header", "--no-annotate", f"--python-version={python}")
    system = ("--python-platform=x86_64-pc-windows-msvc", "--only-binary=:all:")
    wanted = "\n".join((f"{library.name}=={library.version}", *library.requirements))
    answer = pypi.run_uv(*command, *system, "-", what=f"the list of {library.name}", text_in=wanted)
    (RING / "locks" / f"{library.name}.txt").write_text(answer, newline="\n")
