"""The code blocks of README.md and docs/, and how each of them is to be run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- run: (?P<mode>.+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One block, and what stands around it.

    Attributes:
        page: its file, from the root.
        line: where it begins.
        language: as the fence says; "" for none.
        text: what stands in it.
        output: what the `text` block directly behind it says; None if there is none.
        mode: what the comment directly before it says, `<!-- run: ... -->`; "" if there is none.
    """

    page: str
    line: int
    language: str
    text: str
    output: str | None
    mode: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["output"],
            found["mode"] or "",
        )
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAMS = [block for block in PYTHON if not block.mode]
SERVERS = [block for block in PYTHON if block.mode.startswith("serves ")]
OTHERS = [block for block in PYTHON if block not in (*PROGRAMS, *SERVERS) and block.mode not in ("conftest", "pytest")]


def suites() -> list[tuple[Block, Block | None]]:
    """Each block of tests, and the conftest that stands before it on its page since the last one."""
    found: list[tuple[Block, Block | None]] = []
    conftest: Block | None = None
    for block in PYTHON:
        if block.mode == "conftest":
            conftest = block
        elif block.mode == "pytest":
            found.append((block, conftest if conftest is not None and conftest.page == block.page else None))
            conftest = None
    return found


COMMANDS = [(block, line) for block in BLOCKS if block.language == "console" for line in block.text.splitlines()]
