"""What MkDocs does not do by itself: pages out of files that stand elsewhere, and links to them."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# What a page may link to beside pages: its place in the checkout, and where the site shows it.
EXAMPLES = {f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))}
EXAMPLES["examples/pytest_loops"] = "examples/pytest_loops.md"
TEXTS = {name: f"{Path(name).stem.lower()}.md" for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}
SOURCES = {"tests/libraries/table.py": "examples/libraries.md"}
SHOWN = EXAMPLES | SOURCES | TEXTS
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    for place, page in SHOWN.items():
        path = ROOT / place
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
        else:
            shown = sorted(path.glob("*.py")) if path.is_dir() else [path]
            blocks = [f"## {each.name}\n\n```python\n{each.read_text(encoding='utf-8')}```\n" for each in shown]
            text = "\n".join([f"# {path.name}\n", *blocks])
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Links are written as they are right in the checkout; here they lead to the pages above."""
    # Where the text stands in the checkout: docs/, but for those of the root.
    written_in = {shown: PurePosixPath() for shown in TEXTS.values()}
    folder = written_in.get(page.file.src_uri, PurePosixPath("docs", page.file.src_uri).parent)
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)

    def to_page(found: re.Match[str]) -> str:
        target = normal(folder / found[2])
        if target in SHOWN:
            return f"{found[1]}{up}{SHOWN[target]}"
        if folder == PurePosixPath() and target.startswith("docs/"):
            return f"{found[1]}{up}{target.removeprefix('docs/')}"
        return found[0]

    return LINK.sub(to_page, markdown)


def normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
