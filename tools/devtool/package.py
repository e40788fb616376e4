"""The package as its users get it: built, checked, installed into a Windows Python that knows no checkout, and run."""

import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from . import fetch, native, pins, pypi, report, wine

REPOSITORY = Path(__file__).resolve().parents[2]
DIST = REPOSITORY / "build" / "dist"
# Of a source distribution: whoever has it can do what a checkout can.
IN_SOURCE = ("README.md", "SECURITY.md", "uv.lock", "mkdocs.yml", "tools/dev.py", "tests/conftest.py", "docs/index.md")
BRIEFLY = ("--seconds", "1")

# in_python(arguments, folder, path): runs the Windows Python in a folder, with one folder to import from.
InPython = Callable[[list[str], Path, Path], int]


def make(in_python: InPython) -> int:
    """Exit status 0 if all of it worked."""
    python = native.environment(sys.executable, native.own_name(), "package")
    for old in DIST.glob("iocp_loop-*"):
        old.unlink()
    build = ["-m", "build", "--no-isolation", "--outdir", str(DIST), str(REPOSITORY)]
    if status := native.run(python, build, folder=REPOSITORY, environ={}):
        return status
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    check_contents(wheel, source)
    if status := native.run(
        python, ["-m", "twine", "check", "--strict", str(wheel), str(source)], folder=DIST, environ={}
    ):
        return status
    with tempfile.TemporaryDirectory() as scratch:
        for what, status in install(Path(scratch), wheel, in_python):
            if status:
                report.say(f"{what}: exit status {status}")
                return status
    report.say(f"the package is {wheel}")
    return 0


def publish(tag: str) -> int:
    """Upload what `make` has left, as PyPI's trusted publisher; only in the workflow that PyPI trusts.

    Raises:
        Trouble: what is there is not of that tag.
    """
    files = sorted(DIST.glob("iocp_loop-*"))
    version = tag.removeprefix("v")
    wanted = [f"iocp_loop-{version}-py3-none-any.whl", f"iocp_loop-{version}.tar.gz"]
    found = [path.name for path in files]
    if not tag.startswith("v") or found != wanted:
        raise report.Trouble(f"the tag {tag or '(none)'} wants {wanted}, and {DIST} has {found}")
    pypi.run_uv("publish", "--trusted-publishing", "always", *files, what="the release")
    return 0


def check_contents(wheel: Path, source: Path) -> None:
    """The wheel has the package and nothing else; the source has what a checkout has."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "iocp_loop").rglob("*.py")}
    wanted.add("iocp_loop/py.typed")
    strangers = {name for name in names - wanted if ".dist-info/" not in name}
    if strangers or wanted - names:
        raise report.Trouble(f"{wheel.name} lacks {sorted(wanted - names)} and should not have {sorted(strangers)}")
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in IN_SOURCE if name not in in_source]:
        raise report.Trouble(f"{source.name} lacks {missing}")


def install(scratch: Path, wheel: Path, in_python: InPython) -> list[tuple[str, int]]:
    """By pip in the Windows Python: the wheel, and the checkout as `pip install .` does; each is then run.

    Stops at the first that fails.
    """
    pip = as_seen(fetch.file(pins.PIP_URL, pins.PIP_SHA256)) + "/pip"
    done: list[tuple[str, int]] = []
    for name, what in (("wheel", wheel), ("checkout", REPOSITORY)):
        fresh = scratch / name
        fresh.mkdir()
        if sys.platform != "win32" and what is REPOSITORY:
            # QUIRK(wine): Wine 8 has no CopyFile2, by which a Python for Windows copies files from 3.12 on.
            fetch.pip("install", "--no-deps", "--target", fresh, what, what="the checkout")
        else:
            command = [pip, "install", "--no-deps", "--target", as_seen(fresh), as_seen(what)]
            done.append((f"pip install of the {name}", in_python(command, scratch, scratch)))
        if not any(status for _, status in done):
            done.append((f"the demo of the {name}", in_python(["-m", "iocp_loop", "demo", *BRIEFLY], scratch, fresh)))
        if any(status for _, status in done):
            break
    return done


def as_seen(path: Path) -> str:
    """A path as the Windows Python has it."""
    return str(path) if sys.platform == "win32" else wine.windows_path(path)
