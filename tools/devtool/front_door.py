"""Whether the loop's public methods are typed at least as well as asyncio's: what mypy and pyright make of both.

Where typeshed's own `AbstractEventLoop` and `BaseEventLoop` differ, either will do.
"""

import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = [name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_")]
OURS, THEIRS, BASE = "ours", "theirs", "base"
# What differs, and why it may.
DIFFERS = {
    "sock_recv": "its second parameter is called n, as on asyncio's own loops; typeshed calls it nbytes",
}
_NAMES = {"_Ts": "_Arguments", "_ProtocolT": "_Protocol"}  # of type variables

Answers = dict[int, str]  # what was said about a line


def compare(python: Path) -> int:
    """Print what differs without a reason, or has lost its reason; 1 if there is anything."""
    lines = ["import asyncio", "from typing import reveal_type", "from iocp_loop import IocpEventLoop"]
    parameters = f"{OURS}: IocpEventLoop, {THEIRS}: asyncio.AbstractEventLoop, {BASE}: asyncio.BaseEventLoop"
    lines.append(f"def look({parameters}) -> None:")
    asked = {}
    for name in METHODS:
        for who in (OURS, THEIRS, BASE):
            lines.append(f"    reveal_type({who}.{name})")
            asked[name, who] = len(lines)
    wrong = 0
    for checker, ask in CHECKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "look.py"
            path.write_text("\n".join(lines), encoding="utf-8")
            answers = ask(python, path)
        if answers.keys() < set(asked.values()):
            raise AssertionError(f"{checker} did not say what it makes of them: {answers}")
        for name in METHODS:
            ours, theirs, base = (in_our_words(answers[asked[name, who]]) for who in (OURS, THEIRS, BASE))
            if (ours in (theirs, base)) is (name in DIFFERS):
                wrong += 1
                verdict = "no longer differs" if name in DIFFERS else f"is typed otherwise, says {checker}"
                print(f"{name}: {verdict}\n  {ours}\n  {theirs}")
    return 1 if wrong else 0


def in_our_words(said: str) -> str:
    said = re.sub(r"\b(_Ts|_ProtocolT)\b", lambda name: _NAMES[name[0]], said)
    # What a callback returns is nobody's business, however it is said.
    return said.replace("-> object", "-> Any")


def ask_mypy(python: Path, path: Path) -> Answers:
    command = [str(python), "-m", "mypy", "--strict", "--platform", "win32", str(path)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
    found = re.findall(r'look\.py:(\d+): note: Revealed type is "(.*)"', answer)
    return {int(line): text for line, text in found}


def ask_pyright(python: Path, path: Path) -> Answers:
    settings = {"include": [str(path)], "extraPaths": [str(REPOSITORY)], "pythonPlatform": "Windows"}
    (path.parent / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [str(python), "-m", "basedpyright", "-p", str(path.parent), "--outputjson"]
    answer = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False).stdout
    found: Answers = {}
    for message in json.loads(answer)["generalDiagnostics"]:
        said = re.fullmatch(r'Type of ".*?" is "(.*)"', message["message"], re.DOTALL)
        if said:
            found[message["range"]["start"]["line"] + 1] = said[1]
    return found


CHECKERS: dict[str, Callable[[Path, Path], Answers]] = {"mypy": ask_mypy, "pyright": ask_pyright}
