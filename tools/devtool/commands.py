"""What each command runs, and how the command line is read."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import coverage as measured
from . import front_door, libraries, mutants, native, newest, package, pins, report, sabotage, wine

REPOSITORY = Path(__file__).resolve().parents[2]
PORTABLE = "tests/portable"
LIBRARIES = "tests/libraries"
REPORT = "iocp_loop-check.txt"
NO_TESTS_COLLECTED = 5  # pytest's exit status
CHOICES = {"--python": "3.13", "--wine": "10", "--arch": "x86"}  # options with a value, and one of those
BITS = {"amd64": 64, "x86": 32}


class Request(NamedTuple):
    """The command line, taken apart."""

    command: str
    python: str | None
    wine: str | None
    stomp: bool
    arguments: list[str]


def main(arguments: list[str], usage: str) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    try:
        request = parse(arguments)
        check_version(request.python)
        if request.wine is not None:
            os.environ[wine.VARIABLE] = request.wine
        return COMMANDS[request.command](request)
    except report.Trouble as trouble:
        print(f"tools/dev.py: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> Request:
    """Our options may stand anywhere, but `python` hands on all that follows its first argument."""
    command = None
    options: dict[str, str] = {}
    stomp = False
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        option, is_joined, value = word.partition("=")
        if option in CHOICES and (is_joined or word == option):
            options[option] = value if is_joined else next(words, "")
        elif word == "--stomp" and command in (None, "test"):
            stomp = True
        elif command is None:
            command = word
        else:
            rest.append(word)
        if command == "python" and rest:
            rest.extend(words)
    if command not in COMMANDS:
        raise report.Trouble(f"{command or 'no command'}: the commands are {', '.join(COMMANDS)}; --help says more.")
    for option, value in options.items():
        if not value:
            raise report.Trouble(f"{option} wants a value: write it like {option} {CHOICES[option]}.")
    if (arch := options.get("--arch", "amd64")) not in BITS:
        raise report.Trouble(f"there is no --arch {arch}: take {' or '.join(BITS)}.")
    python = options.get("--python")
    if BITS[arch] == 32:
        python = (python or default_name()).removesuffix(pins.SUFFIX_32) + pins.SUFFIX_32
    return Request(command, python, options.get("--wine"), stomp, rest)


def check_version(name: str | None) -> None:
    if sys.platform != "win32" and name is not None and name not in pins.WINDOWS_PYTHONS:
        choices = ", ".join(pins.WINDOWS_PYTHONS)
        raise report.Trouble(f"there is no Python {name} for Windows to run under Wine: take one of {choices}.")


def demo(request: Request) -> int:
    return in_windows_python(request.python, ["-m", "iocp_loop", "demo", *request.arguments], REPOSITORY)


def check(request: Request) -> int:
    """What only a run on this system can decide; the report is REPORT in the current folder."""
    path = Path(REPORT).absolute()
    name = str(path) if sys.platform == "win32" else wine.windows_path(path)
    command = ["-m", "iocp_loop", "doctor", "--check", "--report", name, *request.arguments]
    return in_windows_python(request.python, command, REPOSITORY)


def test(request: Request) -> int:
    """All rings in the Windows Python; before that, off Windows, the portable one in this machine's own."""
    environ = {"IOCP_LOOP_STOMP": "1"} if request.stomp else {}
    status = 0
    if sys.platform != "win32" and concerns_portable_ring(request.arguments):
        python = native.environment(sys.executable, native.own_name(), "test")
        arguments = ["-m", "pytest", *request.arguments, *([] if names_tests(request.arguments) else [PORTABLE])]
        status = native.run(python, arguments, folder=REPOSITORY, environ=environ | {"PYTHONPATH": str(REPOSITORY)})
    arguments = ["-m", "pytest", *request.arguments, *([] if names_tests(request.arguments) else ["tests"])]
    if concerns_ring(LIBRARIES, request.arguments):
        environ |= libraries.sample(request.python or default_name())
    windows_status = in_windows_python(request.python, arguments, REPOSITORY, environ)
    # A selection such as -k may concern one ring only.
    return windows_status or (0 if status == NO_TESTS_COLLECTED else status)


def names_tests(arguments: list[str]) -> bool:
    """Whether pytest's arguments say which files to run."""
    return any(is_test_path(argument) for argument in arguments)


def concerns_portable_ring(arguments: list[str]) -> bool:
    """Whether only portable tests are asked for, or no files are named."""
    named = [argument for argument in arguments if is_test_path(argument)]
    return (REPOSITORY / PORTABLE).is_dir() and all(path.startswith(PORTABLE) for path in named)


def concerns_ring(ring: str, arguments: list[str]) -> bool:
    """Whether tests of that folder are among what is asked for."""
    named = [argument.rstrip("/") for argument in arguments if is_test_path(argument)]
    return not named or any(path.startswith(ring) or ring.startswith(f"{path}/") for path in named)


def is_test_path(argument: str) -> bool:
    return not argument.startswith("-") and (REPOSITORY / argument.partition("::")[0]).exists()


def bench(request: Request) -> int:
    """The rates; with `--page FOLDER` also the counts, and the page of all of it with its plots."""
    arguments, page = take_option(request.arguments, "--page")
    if page is None:
        return in_windows_python(request.python, ["benchmarks/run.py", *arguments], REPOSITORY)
    folder = Path(page).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results, counts = folder / "results.json", folder / "counts.json"
    for script, out in ((["benchmarks/run.py", *arguments], results), (["benchmarks/counts.py"], counts)):
        name = str(out) if sys.platform == "win32" else wine.windows_path(out)
        status = in_windows_python(request.python, [*script, "--out", name], REPOSITORY)
        if status:
            return status
    executable = native.environment(sys.executable, native.own_name(), "report")
    command = ["benchmarks/report.py", str(results), "--counts", str(counts), "--out", str(folder)]
    status = native.run(executable, command, folder=REPOSITORY, environ={})
    if not status:
        report.say(f"the page is {folder / 'benchmarks.md'}")
    return status


def compare_libraries(request: Request) -> int:
    """Other people's own tests on our loop and on the standard library's; the page of it."""
    return libraries.run(request.arguments, request.python, in_windows_python)


def take_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without an option, and what the option says."""
    if option not in arguments:
        return arguments, None
    at = arguments.index(option)
    if at + 1 == len(arguments):
        raise report.Trouble(f"{option} wants a folder: write it like {option} my-results.")
    return arguments[:at] + arguments[at + 2 :], arguments[at + 1]


def default_name() -> str:
    """The Python that is taken where --python names none."""
    return native.own_name() if sys.platform == "win32" else pins.DEFAULT_UNDER_WINE


def python(request: Request) -> int:
    return in_windows_python(request.python, request.arguments, Path.cwd())


def lint(_request: Request) -> int:
    """Every check is run; the first that fails gives the exit status."""
    executable = native.environment(sys.executable, native.own_name(), "lint")
    checks = (
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy", "--strict", "--platform", "win32", "iocp_loop"],
        # pyright, with its Node in the wheel; what it is strict about says pyproject.toml.
        ["basedpyright", "--pythonpath", str(executable), "--warnings"],
        # The half of the tool that is for Linux.
        ["mypy", "--strict", "--platform", "linux", "tools/dev.py"],
    )
    statuses = [native.run(executable, ["-m", *check], folder=REPOSITORY, environ={}) for check in checks]
    statuses.append(front_door.compare(executable))
    statuses.append(sabotage.refused(executable))
    return next(filter(None, statuses), 0)


def docs(request: Request) -> int:
    """The site, into build/site; a warning is an error. With `serve`, shown in a browser as it is written."""
    executable = native.environment(sys.executable, native.own_name(), "docs")
    command = ["-m", "mkdocs", *(request.arguments or ["build", "--strict"])]
    status = native.run(executable, command, folder=REPOSITORY, environ={"NO_MKDOCS_2_WARNING": "1"})
    if not status and not request.arguments:
        report.say(f"the site is {REPOSITORY / 'build' / 'site' / 'index.html'}")
    return status


def coverage(request: Request) -> int:
    """In this machine's own Python: what the portable ring runs of the package."""
    return measured.measure(request.arguments)


def portable_on_the_newest(request: Request) -> int:
    """The portable ring on the newest CPython that Debian has."""
    if sys.platform == "win32":
        raise report.Trouble("this is for Linux: the packages are Debian's.")
    return newest.run(request.arguments, REPOSITORY)


def make_faults(request: Request) -> int:
    """In this machine's own Python: deliberate faults, which the portable ring must catch."""
    return mutants.run(request.arguments)


def make_package(request: Request) -> int:
    """A wheel and a source distribution, installed and run."""
    return package.make(
        lambda arguments, folder, path: in_windows_python(request.python, arguments, folder, importable=path)
    )


def publish(_request: Request) -> int:
    """What `package` has made; for the release workflow."""
    return package.publish(os.environ.get("GITHUB_REF_NAME", ""))


def in_windows_python(
    name: str | None,
    arguments: list[str],
    folder: Path,
    environ: dict[str, str] | None = None,
    importable: Path = REPOSITORY,
) -> int:
    """Runs `python ARGUMENTS` in the Windows Python of that version, with what stands in a folder importable."""
    environ = environ or {}
    if sys.platform == "win32":
        name = name or native.own_name()
        executable = native.interpreter(name)
        made = native.environment(executable, name, "test", optional="bench")
        return native.run(made, arguments, folder=folder, environ=environ | {"PYTHONPATH": str(importable)})
    # Not above: it needs names that are missing on Windows.
    from . import runner

    environ |= {"PYTHONPATH": wine.windows_path(importable)}
    return runner.run(pins.WINDOWS_PYTHONS[name or pins.DEFAULT_UNDER_WINE], arguments, folder=folder, environ=environ)


COMMANDS: dict[str, Callable[[Request], int]] = {
    "demo": demo,
    "check": check,
    "test": test,
    "bench": bench,
    "libraries": compare_libraries,
    "python": python,
    "lint": lint,
    "docs": docs,
    "package": make_package,
    "publish": publish,
    "coverage": coverage,
    "mutants": make_faults,
    "newest": portable_on_the_newest,
}
