"""Whether the loop's public methods are typed at least as well as asyncio's: mypy says of both what it makes of them.

Where typeshed's own `AbstractEventLoop` and `BaseEventLoop` differ, either will do.
"""

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = [name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_")]
OURS, THEIRS, BASE = "ours", "theirs", "base"
# What differs, and why it may.
DIFFERS = {
    "sock_recv": "its second parameter is called n, as on asyncio's own loops; typeshed calls it nbytes",
}
_NAMES = {"_Ts": "_Arguments", "_ProtocolT": "_Protocol"}  # of type variables


def compare(python: Path) -> int:
    """Print what differs without a reason, or has lost its reason; 1 if there is anything."""
    lines = ["import asyncio", "from iocp_loop import IocpEventLoop"]
    parameters = f"{OURS}: IocpEventLoop, {THEIRS}: asyncio.AbstractEventLoop, {BASE}: asyncio.BaseEventLoop"
    lines.append(f"def look({parameters}) -> None:")
    asked = {}
    for name in METHODS:
        for who in (OURS, THEIRS, BASE):
            lines.append(f"    reveal_type({who}.{name})")
            asked[len(lines)] = (name, who)
    revealed = reveal(python, "\n".join(lines), asked)
    wrong = 0
    for name in METHODS:
        ours, theirs, base = (revealed[name, who] for who in (OURS, THEIRS, BASE))
        if (ours in (theirs, base)) is (name in DIFFERS):
            wrong += 1
            print(f"{name}: {'no longer differs' if name in DIFFERS else 'is typed otherwise'}\n  {ours}\n  {theirs}")
    return 1 if wrong else 0


def reveal(python: Path, source: str, asked: dict[int, tuple[str, str]]) -> dict[tuple[str, str], str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "look.py"
        path.write_text(source, encoding="utf-8")
        command = [str(python), "-m", "mypy", "--strict", "--platform", "win32", str(path)]
        answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
    found = {}
    for line, text in re.findall(r'look\.py:(\d+): note: Revealed type is "(.*)"', answer):
        said = re.sub(r"\b(_Ts|_ProtocolT)\b", lambda name: _NAMES[name[0]], text)
        # What a callback returns is nobody's business, however it is said.
        found[asked[int(line)]] = said.replace("-> object", "-> Any")
    if len(found) < len(asked):
        raise AssertionError(f"mypy did not say what it makes of them:\n{answer}")
    return found
