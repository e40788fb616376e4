"""The newest CPython that Debian has, pre-releases included, for the portable ring: what asyncio will be next.

Its packages are those of Debian's unstable distribution, unpacked into the cache folder and started by their own loader
and C library; nothing of the machine changes. Which ones they are is read in the index of it each time, because a
version that was pinned would be gone with the next one. The index is signed by Debian, and has the hash of each.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import cache, fetch, native, report

MIRROR_VARIABLE = "IOCP_LOOP_DEBIAN_MIRROR"
MIRROR = "http://deb.debian.org/debian"
SUITE = "sid"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INDEX = "main/binary-amd64/Packages.xz"
# Of what the interpreter depends on, libraries are needed, and nothing that is configured.
WANTED = re.compile(r"lib|python3|zlib")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
# About this tool, which runs on the machine's own Python; and processes that one starts have the machine's C library.
LEFT_OUT = ("tests/portable/test_dev_tool.py",)

STATUS_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: Debian cannot be asked, or what it has cannot be unpacked here

Index = dict[str, dict[str, str]]


def run(arguments: list[str], repository: Path) -> int:
    """The portable ring on it; pytest's exit status, or STATUS_UNAVAILABLE."""
    try:
        name, packages = choose(read_index())
        identity = cache.key(*(fields["SHA256"] for fields in packages), native.TEST_REQUIREMENTS.read_bytes())
        folder = cache.built_once(f"newest-{name}-{identity}", lambda part: make(part, name, packages))
    except report.Trouble as trouble:
        report.say(f"the newest CPython cannot be had: {trouble}")
        return STATUS_UNAVAILABLE
    root = folder / "root"
    report.say(f"{name} {packages[0]['Version']}, of Debian {SUITE}")
    command = [root / LOADER, "--library-path", root / LIBRARIES, root / "usr/bin" / name, "-m", "pytest"]
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    environ = os.environ | {"PYTHONPATH": f"{folder / 'site'}:{repository}", "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [] if any("tests/" in argument for argument in arguments) else ["tests/portable"]
    return subprocess.run(
        [*map(str, command), "-p", "no:cacheprovider", *left_out, *arguments, *tests],
        cwd=repository,
        env=environ,
        check=False,
    ).returncode


def read_index() -> Index:
    """The packages of the distribution, by name; what was signed and nothing else."""
    mirror = os.environ.get(MIRROR_VARIABLE, MIRROR)
    release = verified(fetch.read(f"{mirror}/dists/{SUITE}/InRelease"))
    content = fetch.read(f"{mirror}/dists/{SUITE}/{INDEX}")
    if f" {hashlib.sha256(content).hexdigest()} " not in release:
        raise report.Trouble(f"{INDEX} of Debian {SUITE} is not the file that was signed: try again in an hour.")
    return parse(lzma.decompress(content).decode())


def verified(signed: bytes) -> str:
    """The signed text, checked against the keys that Debian's own packages have put on this machine."""
    if not KEYRING.exists() or not shutil.which("gpgv"):
        raise report.Trouble(f"gpgv and {KEYRING} are needed: apt-get install gpgv debian-archive-keyring.")
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        text, source = Path(scratch, "Release"), Path(scratch, "InRelease")
        source.write_bytes(signed)
        command = ["gpgv", "--keyring", str(KEYRING), "--status-fd", "1", "--output", str(text), str(source)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        # One of several signatures may be by a key that is newer than this machine's.
        if "[GNUPG:] VALIDSIG" not in answer.stdout or not text.exists():
            raise report.Trouble(f"the index of Debian {SUITE} has no signature that {KEYRING} knows.")
        return text.read_text(encoding="utf-8")


def parse(text: str) -> Index:
    """What we ask of each paragraph of a Packages file."""
    index: Index = {}
    for paragraph in text.split("\n\n"):
        fields = dict(
            re.findall(r"^(Package|Version|Depends|Pre-Depends|Filename|SHA256): (.*)$", paragraph, re.MULTILINE)
        )
        if "Package" in fields:
            index[fields["Package"]] = fields
    return index


def choose(index: Index) -> tuple[str, list[dict[str, str]]]:
    """The newest interpreter's name, and its package with all that it needs; the interpreter's own first."""
    versions = [int(found[1]) for name in index if (found := re.fullmatch(r"python3\.(\d+)-minimal", name))]
    if not versions:
        raise report.Trouble(f"Debian {SUITE} has no Python 3.")
    name = f"python3.{max(versions)}"
    chosen, waiting = {}, [f"{name}-minimal", f"lib{name}-stdlib"]
    while waiting:
        fields = index.get(package := waiting.pop(0))
        if fields is None or package in chosen:
            continue
        chosen[package] = fields
        needed = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".split(",")
        # Of alternatives the first; versions and architectures are those of this very index.
        names = [re.split(r"[ |(:]", each.strip(), maxsplit=1)[0] for each in needed]
        waiting += [each for each in names if WANTED.match(each)]
    return name, list(chosen.values())


def make(folder: Path, name: str, packages: list[dict[str, str]]) -> None:
    if not sys.platform.startswith("linux") or not shutil.which("dpkg-deb"):
        raise report.Trouble("dpkg-deb is needed, which Debian and Ubuntu have.")
    mirror = os.environ.get(MIRROR_VARIABLE, MIRROR)
    with report.step(f"unpacking {name} and {len(packages) - 1} packages that it needs"):
        for fields in packages:
            content = fetch.read(f"{mirror}/{fields['Filename']}")
            if hashlib.sha256(content).hexdigest() != fields["SHA256"]:
                raise report.Trouble(f"{fields['Filename']} is not the file that the index names.")
            package = folder / "package.deb"
            package.write_bytes(content)
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True)
            package.unlink()
        where = ("--target", folder / "site", "--python-version", name.removeprefix("python"))
        # What was compiled for the stable ABI runs on any version.
        kinds = ("--no-deps", "--only-binary=:all:", "--implementation=cp", "--abi=abi3", "--abi=none")
        systems = ("--platform=any", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64")
        fetch.pip(
            "install", *where, *kinds, *systems, "--require-hashes", "-r", native.TEST_REQUIREMENTS, what="pytest"
        )
