"""The user's cache folder: where everything lives that is made once and used by every run.

Each thing is a folder that appears at once and whole: it is built under another name, stamped, and renamed. A run that
is interrupted half-way leaves only the other name behind, which the next run removes. A lock, which the system lets go
when its holder dies, keeps two runs from building the same thing.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from . import report

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

STAMP = "complete.stamp"
RENAME_ATTEMPTS = 10


def folder() -> Path:
    """`iocp_loop` in the user's cache folder; made if need be."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        path = Path(base) / "iocp_loop" / "cache"
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iocp_loop"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise report.Trouble(
            f"cannot write the cache folder {path} ({error}): set XDG_CACHE_HOME to one you own."
        ) from None
    return path


def key(*parts: str | bytes) -> str:
    """A short name for everything a cached thing was made from: change one part and it is made anew."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:10]


def try_lock(file: IO[bytes]) -> bool:
    """Locks an open file for this process, if nobody else has; unlocked by closing it, or by dying."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_file(name: str) -> IO[bytes]:
    locks = folder() / "locks"
    locks.mkdir(exist_ok=True)
    return (locks / name).open("ab")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock of that name; says so if it has to wait for another run."""
    with lock_file(name) as file:
        if not try_lock(file):
            report.say(f"waiting for another run that is preparing {name}")
            while not try_lock(file):
                # Polling because msvcrt can only wait for ten seconds, and one way is enough for both systems.
                time.sleep(0.2)
        yield

    time.sleep(0.2)


def built_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder of that name; `build(path)` fills it if it is not there yet."""
    final = folder() / name
    if (final / STAMP).exists():
        return final
    with locked(name):
        if not (final / STAMP).exists():
            # We hold the lock, so these are of runs that were interrupted; a child of theirs may still write to one,
            # which is why ours has another name, and why it does not matter if one cannot be removed yet.
            for leftover in folder().glob(f"{name}.part-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            part = folder() / f"{name}.part-{os.getpid()}"
            part.mkdir()
            build(part)
            (part / STAMP).touch()
            rename(part, final)
    return final


def rename(part: Path, final: Path) -> None:
    """Gives a finished folder its name."""
    for _ in range(RENAME_ATTEMPTS):
        try:
            part.rename(final)
        except PermissionError:
            # On Windows a virus scanner may still be reading the new files.
            time.sleep(1)
        else:
            return
    part.rename(final)
