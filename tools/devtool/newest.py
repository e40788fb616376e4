"""The newest CPython that Debian has, pre-releases included, for the portable ring: what asyncio will be next.

Its packages are those of Debian's unstable distribution, unpacked into the cache folder and started by their own loader
and C library.
"""

import os
import re
import subprocess
from pathlib import Path

from . import cache, debian, fetch, pypi, report

SUITE = "sid"
# Of what the interpreter depends on, libraries are needed, and nothing that is configured.
WANTED = re.compile(r"lib|python3|zlib")
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
# About this tool, which runs on the machine's own Python; and processes that one starts have the machine's C library.
LEFT_OUT = ("tests/portable/test_dev_tool.py",)

STATUS_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: Debian cannot be asked, or what it has cannot be unpacked here


def run(arguments: list[str], repository: Path) -> int:
    """The portable ring on it; pytest's exit status, or STATUS_UNAVAILABLE."""
    try:
        name, packages = choose(debian.read_index(SUITE))
        identity = cache.key(*(fields["SHA256"] for fields in packages), pypi.key("test"))
        folder = cache.built_once(f"newest-{name}-{identity}", lambda part: make(part, name, packages))
    except report.Trouble as trouble:
        report.say(f"the newest CPython cannot be had: {trouble}")
        return STATUS_UNAVAILABLE
    root = folder / "root"
    report.say(f"{name} {packages[0]['Version']}, of Debian {SUITE}")
    command = [root / LOADER, "--library-path", root / debian.LIBRARIES, root / "usr/bin" / name, "-m", "pytest"]
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    environ = os.environ | {"PYTHONPATH": f"{folder / 'site'}:{repository}", "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [] if any("tests/" in argument for argument in arguments) else ["tests/portable"]
    return subprocess.run(
        [*map(str, command), "-p", "no:cacheprovider", *left_out, *arguments, *tests],
        cwd=repository,
        env=environ,
        check=False,
    ).returncode


def choose(index: debian.Index) -> tuple[str, list[debian.Package]]:
    """The newest interpreter's name, and its package with all that it needs; the interpreter's own first."""
    versions = [int(found[1]) for name in index if (found := re.fullmatch(r"python3\.(\d+)-minimal", name))]
    if not versions:
        raise report.Trouble(f"Debian {SUITE} has no Python 3.")
    name = f"python3.{max(versions)}"
    return name, debian.with_dependencies(index, [f"{name}-minimal", f"lib{name}-stdlib"], WANTED.match)


def make(folder: Path, name: str, packages: list[debian.Package]) -> None:
    with report.step(f"unpacking {name} and {len(packages) - 1} packages that it needs"):
        debian.unpack(packages, folder / "root")
        where = ("--target", folder / "site", "--python-version", name.removeprefix("python"))
        # What was compiled for the stable ABI runs on any version.
        kinds = ("--no-deps", "--only-binary=:all:", "--implementation=cp", "--abi=abi3", "--abi=none")
        systems = ("--platform=any", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64")
        wanted = ("--require-hashes", "-r", pypi.requirements("test", folder))
        fetch.pip("install", *where, *kinds, *systems, *wanted, what="pytest")
