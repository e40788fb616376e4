"""Python packages from PyPI, all pinned in uv.lock: uv itself, and what it makes of the groups in pyproject.toml.

uv makes the environments of this machine's own Python. pip, which knows tags that uv cannot be told of (free-threaded
builds, 32 bits), puts wheels for another Python or another system into a folder.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from . import cache, fetch, report

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "uv.lock"


def key(*groups: str) -> str:
    """Changes when something is pinned otherwise that those groups want, or that it wants in turn."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    names: set[str] = set()
    for package in packages():
        by_name.setdefault(package["name"], []).append(package)
        if package["source"] == {"editable": "."}:
            names = {wanted["name"] for group in groups if group for wanted in package["dev-dependencies"][group]}
    pinned: dict[str, list[dict[str, Any]]] = {}
    while names:
        name = names.pop()
        pinned[name] = by_name[name]
        for package in by_name[name]:
            lists = [package.get("dependencies", []), *package.get("optional-dependencies", {}).values()]
            names |= {wanted["name"] for entries in lists for wanted in entries} - pinned.keys()
    return cache.key(json.dumps(pinned, sort_keys=True))


def packages() -> list[dict[str, Any]]:
    """All that is pinned, and this project."""
    with LOCK.open("rb") as file:
        return list(tomllib.load(file)["package"])


def uv() -> Path:
    """The program, fetched by pip now if it is not there."""
    pins = pins_of("uv")
    folder = cache.built_once(f"uv-{cache.key(pins)}", lambda part: fetch_uv(part, pins))
    return folder / "bin" / ("uv.exe" if sys.platform == "win32" else "uv")


def fetch_uv(folder: Path, pins: str) -> None:
    (folder / "uv.txt").write_text(pins)
    fetch.pip(
        "install", "--target", folder, "--only-binary=:all:", "--require-hashes", "-r", folder / "uv.txt", what="uv"
    )


def pins_of(name: str) -> str:
    """The line of a requirements file that says which wheels may be taken."""
    (package,) = (package for package in packages() if package["name"] == name)
    hashes = " ".join(f"--hash={wheel['hash']}" for wheel in package["wheels"])
    return f"{name}=={package['version']} {hashes}\n"


def run_uv(*arguments: str | Path, what: str, environ: dict[str, str] | None = None, text_in: str = "") -> str:
    """What it prints; `what` names the thing being made in the error, `text_in` is what it reads."""
    environ = os.environ | {"UV_CACHE_DIR": str(cache.folder() / "uv-cache"), **(environ or {})}
    environ.pop("VIRTUAL_ENV", None)
    command = list(map(str, (uv(), "--quiet", "--project", REPOSITORY, *arguments)))
    answer = subprocess.run(command, env=environ, input=text_in, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = " ".join(answer.stderr.split())[-500:] or f"exit status {answer.returncode}"
        raise report.Trouble(f"uv could not make {what} ({reason}): check the network connection.")
    return answer.stdout


def environment(executable: str, folder: Path, groups: tuple[str, ...]) -> None:
    """A virtual environment of that Python, with what those groups want."""
    run_uv(
        *("sync", "--frozen", "--no-build", "--no-install-project", "--no-default-groups"),
        *(word for group in groups for word in ("--group", group)),
        *("--python", executable, "--no-python-downloads"),
        environ={"UV_PROJECT_ENVIRONMENT": str(folder)},
        what=f"an environment with {', '.join(groups)}",
    )


def requirements(group: str, folder: Path) -> Path:
    """A file for pip of what a group wants.

    Without markers, because pip would take them to ask about the Python that runs it.
    """
    text = run_uv(
        *("export", "--frozen", "--no-emit-project", "--no-header", "--no-annotate", "--only-group", group),
        what=f"the list of {group}",
    )
    path = folder / f"{group}.txt"
    path.write_text(re.sub(r" ; [^\\\n]*", " ", text))
    return path
