"""Downloads: single files checked by their SHA-256, and packages by pip."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import cache, pins, report

ATTEMPTS = 3
BLOCK = 1 << 18
TIMEOUT_S = 60


def file(url: str, sha256: str) -> Path:
    """The file behind the address, kept in the cache; its content is exactly what the hash says."""
    target = cache.folder() / "downloads" / f"{sha256[:16]}-{url.rpartition('/')[2]}"
    if not target.exists():
        content = read(url)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise report.Trouble(f"{url} is not the file it was: SHA-256 {found} instead of {sha256}.")
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        part.write_bytes(content)
        part.replace(target)
    return target


def read(url: str) -> bytes:
    """What the address answers, with a few attempts."""
    name = url.rpartition("/")[2]
    report.say(f"downloading {name}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise report.Trouble(f"{url} answers {error.code} {error.reason}: the pinned file has moved.") from None
        except OSError as error:
            if attempt == ATTEMPTS:
                raise report.Trouble(
                    f"cannot download {url} ({error}): the first run needs a network connection; later ones do not."
                ) from None
            time.sleep(attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def pip_command() -> list[str]:
    """pip of the Python that runs us, or a pinned one run straight from its wheel (Debian's Python has none)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    return [sys.executable, str(file(pins.PIP_URL, pins.PIP_SHA256) / "pip")]


def pip(*arguments: str | Path, what: str) -> None:
    """Runs pip; `what` names the thing being fetched in the error."""
    command = [*pip_command(), "--disable-pip-version-check", "--quiet", "--no-input", *map(str, arguments)]
    environ = os.environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    result = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        errors = [line for line in result.stdout.splitlines() if line.startswith("ERROR:")]
        reason = (errors or result.stdout.splitlines() or ["no message"])[-1].removeprefix("ERROR: ")
        raise report.Trouble(f"pip could not fetch {what} ({reason}): check the network connection and pip's settings.")


def wheels_for_windows(minor: str, *, free_threaded: bool, bits: int = 64) -> list[str]:
    """pip's options for wheels that the Windows Python of that version can use, whatever Python runs pip."""
    platform = "win32" if bits == 32 else "win_amd64"
    digits = minor.replace(".", "")
    abis = [f"cp{digits}t"] if free_threaded else [f"cp{digits}", "abi3"]
    options = ["--only-binary=:all:", f"--platform={platform}", f"--python-version={minor}", "--implementation=cp"]
    return [*options, *(f"--abi={abi}" for abi in (*abis, "none"))]
