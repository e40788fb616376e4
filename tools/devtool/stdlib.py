"""Where the Windows Python's Lib/ comes from on Linux.

CPython's standard library is the same on every system, tests and Windows-only modules included. It should be of the
DLL's own patch release or near it: within one minor version the bytecode, `_sre.MAGIC` and the C modules' interfaces
do not change, but an attribute may be added. So the nearest release is taken of those that are at hand: the Pythons of
that minor version on this machine, and a Linux distribution's packages, which dpkg-deb unpacks without installing.
"""

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import fetch, pins, report

# Not part of a Windows Lib/, or of no use in it: what was built for this machine, and programs with windows.
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "lib-dynload", "config-*", "_sysconfigdata*", "_sysconfig_vars*",
    "build-details*", "sitecustomize.py", "EXTERNALLY-MANAGED", "idlelib", "turtledemo",
)  # fmt: skip
# A distribution may ship the library without its tests, which the contract tests need.
LANDMARKS = ("os.py", "asyncio/windows_events.py", "test/test_asyncio/utils.py")
DESCRIBE = (
    "import json, platform, sysconfig; print(json.dumps([platform.python_version(), sysconfig.get_path('stdlib')]))"
)


class Local(NamedTuple):
    """A CPython on this machine."""

    release: str
    lib: Path


def copy_to(target: Path, python: pins.WindowsPython, scratch: Path) -> None:
    """Fills `target` with the standard library for that Windows Python."""
    local = nearest(python.release, list(local_libraries(python.minor)))
    packages = pins.LIBRARY_PACKAGES.get(python.minor)
    if packages and (
        local is None or distance(packages.release, python.release) < distance(local.release, python.release)
    ):
        release, source = packages.release, unpack(packages, scratch)
    elif local:
        release, source = local
    else:
        raise report.Trouble(
            f"there is no standard library for Python {python.minor}: install any CPython {python.minor} first."
        )
    report.say(f"standard library {release} (from {source}) for the Windows DLL {python.release}")
    shutil.copytree(source, target, ignore=LEFT_OUT, symlinks=False, ignore_dangling_symlinks=True)


def distance(release: str, other: str) -> int:
    """How many patch releases lie between two releases of one minor version."""
    return abs(patch_number(release) - patch_number(other))


def patch_number(release: str) -> int:
    found = re.match(r"\d+\.\d+\.(\d+)", release)
    if not found:
        raise ValueError(f"not a CPython release: {release!r}")
    return int(found[1])


def nearest(release: str, candidates: Iterable[Local]) -> Local | None:
    return min(candidates, key=lambda local: distance(local.release, release), default=None)


def local_libraries(minor: str) -> Iterator[Local]:
    """Every complete standard library of that minor version found on this machine."""
    for executable in dict.fromkeys(executables(minor)):
        # A version manager's stand-in for a version that is not selected fails: no candidate then.
        answer = subprocess.run([executable, "-IS", "-c", DESCRIBE], capture_output=True, text=True, check=False)
        if answer.returncode:
            continue
        release, lib = json.loads(answer.stdout)
        is_final = re.fullmatch(r"\d+\.\d+\.\d+\+?", release) is not None
        if is_final and release.startswith(f"{minor}.") and all((Path(lib) / name).exists() for name in LANDMARKS):
            yield Local(release, Path(lib))


def executables(minor: str) -> Iterator[str]:
    yield sys.executable
    found = shutil.which(f"python{minor}")
    if found:
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob(f"versions/{minor}.*/bin/python{minor}")))


def unpack(packages: pins.LibraryPackages, scratch: Path) -> Path:
    """Unpacks a distribution's packages of the standard library; returns the folder that is Lib/."""
    if not shutil.which("dpkg-deb"):
        minor = ".".join(packages.release.split(".")[:2])
        raise report.Trouble(
            f"no CPython {minor} with its tests is on this machine, and dpkg-deb is missing: install one of them."
        )
    folder = scratch / "packages"
    for url, sha256 in resolve(packages):
        subprocess.run(["dpkg-deb", "--extract", fetch.file(url, sha256), folder], check=True)
    (lib,) = folder.glob("usr/lib/python3.*")
    return lib


def resolve(packages: pins.LibraryPackages) -> list[tuple[str, str]]:
    """(address, SHA-256) of each package file."""
    if packages.files:
        return [(f"{packages.archive}/{path}", sha256) for path, sha256 in packages.files]
    # File names change with every point release of a stable distribution: its index has the present ones.
    index = fetch.read(f"{packages.archive}/dists/{packages.suite}/main/binary-amd64/Packages.xz")
    wanted = {
        f"libpython{'.'.join(packages.release.split('.')[:2])}-{part}" for part in ("minimal", "stdlib", "testsuite")
    }
    found = dict(package_files(lzma.decompress(index).decode(), wanted))
    if found.keys() != wanted:
        raise report.Trouble(
            f"{packages.suite} has no {', '.join(sorted(wanted - found.keys()))}: install a CPython of that version."
        )
    return [(f"{packages.archive}/{path}", sha256) for path, sha256 in found.values()]


def package_files(index: str, wanted: set[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(package, (file name, SHA-256)) for the wanted packages of a Debian package index."""
    for paragraph in index.split("\n\n"):
        name = re.match(r"Package: (\S+)", paragraph)
        if name and name[1] in wanted:
            fields = dict(re.findall(r"^(Filename|SHA256): (\S+)$", paragraph, re.MULTILINE))
            yield name[1], (fields["Filename"], fields["SHA256"])
