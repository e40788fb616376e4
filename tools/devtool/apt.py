"""Packages of the machine's own distribution, installed by apt-get where we are root or may become it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable

from . import cache, report

# Distributions that name packages as Debian does.
DISTRIBUTIONS = ("debian", "ubuntu")


def install(packages: Iterable[str], what: str, instead: str) -> None:
    """Install packages.

    Args:
        packages: their names.
        what: what is missing, for messages.
        instead: what to do on another distribution, to follow "install ".

    Raises:
        report.Trouble: another distribution, not root, or apt-get failed; says what to do.
    """
    names = " ".join(packages)
    if distribution() not in DISTRIBUTIONS:
        raise report.Trouble(f"{what} cannot be found: install {instead}, and run this again.")
    become_root = [] if is_root() else ["sudo", "-n"]
    if become_root and not sudo_works():
        raise report.Trouble(f"{what} cannot be found, and this is not root: let root run 'apt-get install {names}'.")
    with report.step(f"installing {names}"), cache.locked("apt"):
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        # It may fail and the installation work all the same, with package lists that are there.
        subprocess.run([*become_root, "apt-get", "update", "--quiet"], env=environ, capture_output=True, check=False)
        command = [*become_root, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *names.split()]
        result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise report.Trouble(
            f"apt-get could not install {what} ({reason}): check the network and /etc/apt/sources.list."
        )


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def sudo_works() -> bool:
    """Whether sudo is there and needs no password."""
    if not shutil.which("sudo"):
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0


def distribution() -> str:
    """The distribution's ID, or that of the family it belongs to; "unknown" where there is none."""
    if not sys.platform.startswith("linux"):
        return "unknown"  # A Windows Python under Wine finds Linux's file.
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    family = (release.get("ID", ""), *release.get("ID_LIKE", "").split())
    return next((name for name in family if name in DISTRIBUTIONS), family[0])
