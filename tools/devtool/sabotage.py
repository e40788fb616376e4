"""Whether mypy refuses what would break the seam between handles and transports: three faults at once, in a copy.

Modules were passed as arguments there once, and mypy saw nothing of it.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import report

REPOSITORY = Path(__file__).resolve().parents[2]


class Sabotage(NamedTuple):
    """A fault in one file, and where mypy must complain of it; `old` stands exactly once."""

    file: str
    old: str
    new: str
    noticed_in: str


SABOTAGES = (
    # A method that a transport calls is called otherwise in one class.
    Sabotage("_handles/_pipes.py", "def set_send_vector(", "def set_vector(", "_handles/_pipes.py"),
    # Two parameters change places in one class.
    Sabotage(
        "_handles/_shared_sockets.py",
        "def receive_operation(self, deliver: Deliver, buffer: Any)",
        "def receive_operation(self, buffer: bytes, deliver: Deliver)",
        "_handles/_shared_sockets.py",
    ),
    # A transport forgets an argument.
    Sabotage(
        "_transports/_messages.py",
        "receive_outcome(self._operation, status, byte_count)",
        "receive_outcome(status, byte_count)",
        "_transports/_messages.py",
    ),
)


def refused(python: Path) -> int:
    """Print what mypy lets pass; 1 if there is anything."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "iocp_loop"
        shutil.copytree(REPOSITORY / "iocp_loop", package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        for sabotage in SABOTAGES:
            path = package / sabotage.file
            text = path.read_text(encoding="utf-8")
            if text.count(sabotage.old) != 1:
                raise report.Trouble(f"{sabotage.file} has {sabotage.old!r} {text.count(sabotage.old)} times")
            path.write_text(text.replace(sabotage.old, sabotage.new), encoding="utf-8")
        command = [str(python), "-m", "mypy", "--strict", "--platform", "win32", "iocp_loop"]
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    complaints = answer.replace("\\", "/").splitlines()
    passed = [
        sabotage
        for sabotage in SABOTAGES
        if not any(line.startswith(f"iocp_loop/{sabotage.noticed_in}:") and ": error:" in line for line in complaints)
    ]
    for sabotage in passed:
        print(f"mypy sees nothing wrong with {sabotage.new!r} in {sabotage.file}")
    return 1 if passed else 0
