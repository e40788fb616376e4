"""Packages of another Debian than the machine's, unpacked into the cache folder; nothing of the machine changes.

Which ones they are is read in the index of that distribution, because a version that was pinned would be gone with the
next one. The index is signed by Debian, and has the hash of each.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from . import apt, fetch, report

MIRROR_VARIABLE = "IOCP_LOOP_DEBIAN_MIRROR"
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LIBRARIES = "usr/lib/x86_64-linux-gnu"

Index = dict[str, dict[str, str]]
Package = dict[str, str]  # some fields of its paragraph in the index, by name


def read_index(suite: str, architecture: str = "amd64") -> Index:
    """The packages of a distribution ("sid", "trixie"), by name; what was signed and nothing else."""
    path = f"main/binary-{architecture}/Packages.xz"
    mirror = os.environ.get(MIRROR_VARIABLE, MIRROR)
    release = verified(fetch.read(f"{mirror}/dists/{suite}/InRelease"), suite)
    content = fetch.read(f"{mirror}/dists/{suite}/{path}")
    if f" {hashlib.sha256(content).hexdigest()} " not in release:
        raise report.Trouble(f"{path} of Debian {suite} is not the file that was signed: try again in an hour.")
    return parse(lzma.decompress(content).decode())


def verified(signed: bytes, suite: str) -> str:
    """The signed text, checked against the keys that Debian's own packages have put on this machine."""
    if not KEYRING.exists() or not shutil.which("gpgv"):
        # Debian 13's own apt does without gpgv.
        what = "what checks Debian's signatures"
        apt.install(("gpgv", "debian-archive-keyring"), what, f"gpgv, and the keys in {KEYRING}")
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        text, source = Path(scratch, "Release"), Path(scratch, "InRelease")
        source.write_bytes(signed)
        command = ["gpgv", "--keyring", str(KEYRING), "--status-fd", "1", "--output", str(text), str(source)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        # One of several signatures may be by a key that is newer than this machine's.
        if "[GNUPG:] VALIDSIG" not in answer.stdout or not text.exists():
            raise report.Trouble(f"the index of Debian {suite} has no signature that {KEYRING} knows.")
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


def with_dependencies(index: Index, names: Iterable[str], is_wanted: Callable[[str], object]) -> list[Package]:
    """Those packages and what they depend on, as far as it is wanted; the named ones first."""
    chosen: Index = {}
    waiting = list(names)
    while waiting:
        fields = index.get(package := waiting.pop(0))
        if fields is None or package in chosen:
            continue
        chosen[package] = fields
        needed = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".split(",")
        # Of alternatives the first; versions and architectures are those of this very index.
        found = [re.split(r"[ |(:]", each.strip(), maxsplit=1)[0] for each in needed]
        waiting += [each for each in found if is_wanted(each)]
    return list(chosen.values())


def unpack(packages: Iterable[Package], root: Path) -> None:
    """Lays the files of those packages under `root`. Nothing of them is run."""
    if not sys.platform.startswith("linux") or not shutil.which("dpkg-deb"):
        raise report.Trouble("dpkg-deb is needed, which Debian and Ubuntu have.")
    mirror = os.environ.get(MIRROR_VARIABLE, MIRROR)
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        for fields in packages:
            content = fetch.read(f"{mirror}/{fields['Filename']}")
            if hashlib.sha256(content).hexdigest() != fields["SHA256"]:
                raise report.Trouble(f"{fields['Filename']} is not the file that the index names.")
            package = Path(scratch, "package.deb")
            package.write_bytes(content)
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
