"""Wine on Linux: the programs it needs, found or installed, and the prefixes that runs happen in.

A prefix is Wine's idea of one Windows machine, and all its programs share one wineserver. Each processor that runs are
pinned to has a prefix of its own: a wineserver on another processor costs fifteen times as much per call, and two runs
at the same time see neither each other's named objects nor each other's limits. These prefixes share one drive C.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import apt, cache, newer_wine, report

COMPILERS = {64: "x86_64-w64-mingw32-gcc", 32: "i686-w64-mingw32-gcc"}  # by the width of what they make
PACKAGES = {
    64: ("wine64", "gcc-mingw-w64-x86-64-win32", "ca-certificates"),
    32: ("wine64", "gcc-mingw-w64-i686-win32", "ca-certificates"),
}
OLDEST_WINE = 8
VARIABLE = "IOCP_LOOP_WINE"  # the version that runs shall have, as --wine says
PREFIX_RECIPE = 2  # Raise it when make_template() or share_template() do something else: prefixes are made anew then.

SETTINGS = (
    # Wine 8 says that it is Windows 7 otherwise.
    ("HKCU\\Software\\Wine", "Version", "win10"),
    # There is nothing to be seen, and where there is no display the drivers complain on standard error.
    ("HKCU\\Software\\Wine\\Drivers", "Graphics", "null"),
)


class Wine(NamedTuple):
    loader: str
    server: str
    version: str  # "8.0"
    bits: int = 64  # what it runs: programs of 64 bits, or of 32 as well

    def environment(self, prefix: Path) -> dict[str, str]:
        return {
            "WINEPREFIX": str(prefix),
            "WINEDEBUG": "-all",
            # Neither .NET nor a browser engine, which Wine would offer to download; and no debugger, which would print
            # pages about a crash that is often a test's purpose. The exit status and faulthandler tell enough.
            "WINEDLLOVERRIDES": "mscoree,mshtml,winedbg.exe=",
            "WINESERVER": self.server,
            # The tests ask for names that the machine may have to ask a name server for, such as its own in IPv6. One
            # that never answers, as in a closed network, would cost ten seconds for each.
            "RES_OPTIONS": "timeout:1 attempts:1",
        }


def ensure(bits: int = 64) -> Wine:
    """Wine and the compiler for the launcher, installed now if this is root on Debian or Ubuntu.

    Where VARIABLE asks for another version than the distribution has, it is the one that can be unpacked; and so it is
    for programs of 32 bits, whose half of the distribution's Wine would need the distribution's 32-bit libraries.
    """
    installed, wanted = ensure_installed(bits), os.environ.get(VARIABLE)
    if bits == 64 and wanted in (None, "", major(installed)):
        return installed
    if bits == 32 and wanted in (None, ""):
        wanted = newer_wine.VERSION
    if wanted != newer_wine.VERSION:
        choices = " or ".join(sorted({*([major(installed)] if bits == 64 else []), newer_wine.VERSION}))
        raise report.Trouble(f"there is no Wine {wanted} to be had here: take {choices}.")
    loader, server = newer_wine.ensure(bits=bits)
    if (unpacked := identified(loader, server)) is None or major(unpacked) != wanted:
        raise report.Trouble(f"{loader} does not work here: delete its folder, and run this again.")
    return unpacked._replace(bits=bits)


def major(wine: Wine) -> str:
    return wine.version.partition(".")[0]


def ensure_installed(bits: int) -> Wine:
    check_machine()
    if missing(bits):
        install(bits)
    wine = find()
    if wine is None or missing(bits):
        raise report.Trouble(
            f"{' and '.join(missing(bits))} cannot be found even now: install them and run this again."
        )
    if int(major(wine)) < OLDEST_WINE:
        raise report.Trouble(f"Wine {wine.version} is too old for CPython: install Wine {OLDEST_WINE} or newer.")
    return wine


def check_machine() -> None:
    if not sys.platform.startswith("linux"):
        raise report.Trouble(
            f"iocp_loop runs on Windows, or on Linux under Wine, not on {sys.platform}: use one of those."
        )
    if platform.machine() not in ("x86_64", "AMD64"):
        raise report.Trouble(
            f"Wine needs an x86-64 processor here, this one is {platform.machine()}: use such a machine, or Windows."
        )


def missing(bits: int) -> list[str]:
    needed = {"Wine": find() is not None, "the MinGW-w64 compiler": shutil.which(COMPILERS[bits]) is not None}
    return [name for name, is_there in needed.items() if not is_there]


def find() -> Wine | None:
    """The installed Wine; Debian keeps the 64-bit one out of the PATH."""
    for folder, loader in (("/usr/lib/wine", "wine64"), (None, "wine64"), (None, "wine")):
        path = shutil.which(loader, path=folder)
        if not path:
            continue
        server = shutil.which("wineserver64", path=folder) or shutil.which("wineserver", path=folder)
        if server and (wine := identified(path, server)):
            return wine
    return None


def identified(loader: str, server: str) -> Wine | None:
    answer = subprocess.run([loader, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"wine-(\d+\.\d+)", answer.stdout)
    return Wine(loader, server, version[1]) if version else None


def install(bits: int) -> None:
    what = " and ".join(missing(bits))
    apt.install(PACKAGES[bits], what, f"64-bit Wine {OLDEST_WINE} or newer and {COMPILERS[bits]}")


def ensure_prefix(wine: Wine, slot: str) -> Path:
    """The prefix for runs in that slot ("cpu0", "all")."""
    name = f"prefix-{wine.version}{'-x86' * (wine.bits == 32)}-{PREFIX_RECIPE}"
    template = cache.built_once(name, lambda folder: make_template(wine, folder))
    return cache.built_once(f"{name}-{slot}", lambda folder: share_template(template, folder))


def make_template(wine: Wine, folder: Path) -> None:
    with report.step("making a Wine prefix"):
        environ = clean_environment() | wine.environment(folder)
        output_of([wine.loader, "wineboot", "--init"], environ)
        for key, name, content in SETTINGS:
            output_of([wine.loader, "reg", "add", key, "/v", name, "/d", content, "/f"], environ)
        # Its wineserver writes the registry when it ends, and must have ended before the folder is renamed.
        subprocess.run([wine.server, "--wait"], env=environ, check=False)
    if not (folder / "system.reg").exists() or not (folder / "drive_c/windows/system32/kernel32.dll").exists():
        raise report.Trouble(
            f"Wine {wine.version} could not make its prefix in {folder}: try '{wine.loader} wineboot' by hand."
        )


def start(wine: Wine, prefix: Path) -> None:
    """Starts Wine's own servers, which outlive the program by some seconds: they must not hold its standard streams."""
    environ = clean_environment() | wine.environment(prefix)
    null = subprocess.DEVNULL
    subprocess.run([wine.loader, "hostname"], env=environ, stdin=null, stdout=null, stderr=null, check=False)


def output_of(command: list[str], environ: dict[str, str]) -> str:
    """Runs a Windows program that needs no input; what it writes."""
    result = subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.stdout


def share_template(template: Path, folder: Path) -> None:
    """A prefix with its own registry and wineserver, on the template's drive C."""
    for path in template.iterdir():
        if path.suffix == ".reg" or path.name == ".update-timestamp":
            shutil.copy2(path, folder)
    shutil.copytree(template / "dosdevices", folder / "dosdevices", symlinks=True)
    (folder / "drive_c").symlink_to(template / "drive_c")


def clean_environment() -> dict[str, str]:
    """Our environment without what would lead the Windows Python, or Wine, to this machine's things."""
    unwanted = {
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "VIRTUAL_ENV",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
    }
    unwanted |= {"PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX"}
    return {name: text for name, text in os.environ.items() if name not in unwanted and not name.startswith("WINE")}


def windows_path(path: Path) -> str:
    """Drive Z: is Linux's root in every prefix."""
    return "Z:" + str(path.absolute()).replace("/", "\\")
