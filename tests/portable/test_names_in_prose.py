"""Names in backticks, in docstrings, comments and docs: each must exist, where it is said to be."""

import ast
import asyncio
import builtins
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "iocp_loop"
# Made by programs, of names that are no Python's.
GENERATED = {"benchmarks.md", "compatibility.md"}
# What is named, and is neither ours nor asyncio's.
OTHERS = {
    *sys.stdlib_module_names,
    *dir(builtins),
    "windll",  # ctypes has it on Windows only
    "wintypes",
    "IsolatedAsyncioTestCase",
    "CHANGELOG",
    "Pointer",  # of the union in OVERLAPPED
    # DLLs and programs
    "exe",
    "kernel32",
    "ntdll",
    "python",
    "ws2_32",
    # Of other packages, in the how-to pages
    "NamedPipeConnector",
    "NamedPipeSite",
    "ServiceFramework",
    "SvcDoRun",
    "SvcStop",
    "UnixSite",
    "WindowsSelectorEventLoopPolicy",
    "psycopg",
    "timeBeginPeriod",  # which the loop does not call
    "run_app",
    "pythonw",
    # What the tools print
    "caught",
    "hangs",
    "survived",
    # Calling styles, in the table of prototypes
    "brief",
    "hot",
}
ASYNCIO = {
    name
    for thing in (
        asyncio,
        asyncio.AbstractEventLoop,
        asyncio.BaseEventLoop,
        asyncio.BufferedProtocol,
        asyncio.DatagramProtocol,
        asyncio.Protocol,
        asyncio.StreamReader,
        asyncio.StreamWriter,
        asyncio.Transport,
    )
    for name in dir(thing)
}


def tokens_of(path):
    with tokenize.open(path) as file:
        return list(tokenize.generate_tokens(io.StringIO(file.read()).readline))


class Names:
    """What there is."""

    def __init__(self):
        self.of_module = {}  # by its file's name: all names in its code
        self.of_class = {}  # by its name: those of the modules that define it
        self.elsewhere = set(OTHERS) | ASYNCIO
        self.prose = []  # (where, text)
        for path in sorted(PACKAGE.rglob("*.py")):
            names = self.of_module.setdefault(path.stem, set())
            where = path.relative_to(REPOSITORY).as_posix()
            for token in tokens_of(path):
                if token.type == tokenize.NAME:
                    names.add(token.string)
                elif token.type == tokenize.COMMENT or '"""' in token.string[:4]:
                    self.prose.append((f"{where}:{token.start[0]}", token.string))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    self.of_class.setdefault(node.name, set()).update(names)
                    for base in node.bases:
                        self.of_class[node.name].update(self.of_class.get(ast.unparse(base).split(".")[-1], ()))
        self.elsewhere.update(*self.of_module.values(), self.of_module)
        self.elsewhere.update(part for path in PACKAGE.rglob("*.py") for part in path.parts)
        for folder in ("tests", "tools", "benchmarks", "examples"):
            for path in {*(REPOSITORY / folder).rglob("*.py")} - {Path(__file__)}:  # Which has some that do not exist.
                self.elsewhere |= {path.stem, folder}
                for token in tokens_of(path):
                    self.elsewhere.update(re.findall(r"\w+", token.string))
        pages = [path for path in (REPOSITORY / "docs").rglob("*.md") if path.name not in GENERATED]
        for path in (*pages, REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"):
            text = path.read_text(encoding="utf-8")
            for program in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
                self.elsewhere.update(re.findall(r"\w+", program))
            text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
            self.prose.append((path.relative_to(REPOSITORY).as_posix(), text))

    def missing(self, name):
        """What of a name in backticks does not exist; None if all of it does, or if it is no name."""
        if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", name):
            return None
        parts = name.removesuffix("()").removesuffix(".py").split(".")
        for place, (first, second) in enumerate(zip(parts, parts[1:], strict=False)):
            # `loop._proactor.x` is an attribute, and no module.
            known = self.of_class.get(first) if place else self.of_class.get(first, self.of_module.get(first))
            if known is not None and second not in known | ASYNCIO:
                return f"{first} has no {second}"
        return next((part for part in parts if part not in self.elsewhere), None)


@pytest.fixture(scope="module")
def names():
    return Names()


def test_every_name_in_backticks_exists(names):
    found = [
        f"{where}: `{name}`: {missing}"
        for where, text in names.prose
        for name in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        if (missing := names.missing(name))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("_sockets.regster", "_sockets has no regster"),
        ("Proactor.submitt", "Proactor has no submitt"),
        ("_no_such_room", "_no_such_room"),
        ("set_write_dates()", "set_write_dates"),
        ("Proactor.submit", None),
        ("OverlappedSocket.unread", None),  # of a base class
        ("asyncio.StreamWriter.start_tls", None),
        ("two words", None),
    ],
)
def test_a_name_that_does_not_exist_is_noticed(names, name, missing):
    assert names.missing(name) == missing
