"""Virtual environments of this machine's own Python: the Windows Python on Windows, and on Linux the portable tests and
the linters.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from . import cache, pins, pypi, report

EXECUTABLE = "import sys; print(sys.executable)"


def own_name() -> str:
    """The Python that runs us, named as in --python."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    is_narrow = sys.platform == "win32" and sys.maxsize < 2**32
    return f"{sys.version_info.major}.{sys.version_info.minor}{'t' * free_threaded}{pins.SUFFIX_32 * is_narrow}"


def interpreter(name: str) -> str:
    """The executable of that version on Windows; ours if it is of that version."""
    if name == own_name():
        return sys.executable
    if not re.fullmatch(r"3\.\d+t?(-32)?", name):
        raise report.Trouble(f"--python {name} is no Python version: write it like 3.13, 3.13t or 3.13-32.")
    launcher = shutil.which("py")
    if launcher:
        answer = subprocess.run([launcher, f"-{name}", "-c", EXECUTABLE], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    raise report.Trouble(f"Python {name} is not installed: get it from python.org, or choose another with --python.")


def environment(executable: str, name: str, *groups: str, optional: str | None = None) -> Path:
    """The Python of a virtual environment that has what these groups want, made now if it is not there."""
    identity = cache.key(executable, pypi.key(*groups, optional or ""))
    return python_in(cache.built_once(f"venv-{name}-{identity}", lambda part: make(executable, part, groups, optional)))


def make(executable: str, folder: Path, groups: tuple[str, ...], optional: str | None) -> None:
    with report.step(f"making a virtual environment of {executable} for {', '.join(groups)}"):
        if optional:
            try:
                pypi.environment(executable, folder, (*groups, optional))
            except report.Trouble as trouble:
                report.say(f"left out: {trouble}")
            else:
                return
        pypi.environment(executable, folder, groups)


def python_in(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def run(executable: Path, arguments: list[str], *, folder: Path, environ: dict[str, str]) -> int:
    """Runs `python ARGUMENTS`; Ctrl+C reaches the program from the terminal, and must not end us before it."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        command = [str(executable), *arguments]
        return subprocess.run(command, cwd=folder, env=os.environ | environ, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
