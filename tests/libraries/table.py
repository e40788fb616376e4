"""Which libraries' own tests are run on our loop, and what is known of the outcome. Data only.

A library is tested as it is installed, from its wheel; of its source distribution, the package's own folder is removed,
so that only the tests come from there. Where they lie in that folder, all of it is the source distribution's. What it
needs is pinned in locks/NAME.txt, which `tools/dev.py libraries --lock NAME` makes from the row here.
"""

from typing import NamedTuple

# The Python that the locks, the results and the page are for.
PYTHON = "3.13"


class Library(NamedTuple):
    """One library.

    Attributes:
        sha256: of the source distribution.
        source: the folder in it that must not shadow the installed package; "" if the tests are in there.
        requirements: what its tests need beside the library itself; extras are named here too.
        arguments: of pytest. They come after whatever the library's own configuration says.
        excluded: what is run on neither loop, and why. Node ids, or what they begin with up to "::" or "[".
        as_proactor: whether asyncio.ProactorEventLoop is our loop then. Where a library asks whether its loop is one,
            it must not be: users' loops are not.
        test_limit_s: a test that takes longer hangs.
        limit_s: for all of them, on one loop.
        ours: tests that fail on our loop only, as in `excluded`, and the cause.
        stdlib: tests that fail on the standard library's loop only, and the cause.
        both: why tests fail on both; a remark for the page.
    """

    name: str
    version: str
    sha256: str
    source: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    excluded: dict[str, str] = {}
    as_proactor: bool = True
    test_limit_s: float = 60
    limit_s: float = 900
    ours: dict[str, str] = {}
    stdlib: dict[str, str] = {}
    both: str = ""


LIBRARIES = (
    Library(
        "janus",
        "2.0.0",
        "0970f38e0e725400496c834a368a67ee551dc3b5ad0a257e132f5b46f2e77770",
        "janus",
        ("pytest", "pytest-asyncio", "pytest-codspeed"),
        ("-o", "addopts=", "tests"),
    ),
    Library(
        "aiosqlite",
        "0.22.1",
        "043e0bd78d32888c0a9ca90fc788b38796843360c855a7262a532813133a0650",
        "",
        ("pytest",),
        ("aiosqlite/tests/smoke.py",),
    ),
    Library(
        "aiosmtpd",
        "1.4.6",
        "5a811826e1a5a06c25ebc3e6c4a704613eb9a1bcf6b78428fbe865f4f6c9a4b8",
        "",
        ("pytest", "pytest-mock", "setuptools<81"),
        ("-o", "addopts=", "aiosmtpd/tests"),
    ),
)


def covers(pattern: str, test: str) -> bool:
    """Whether a node id is the one named, or lies below it."""
    return test == pattern or test.startswith((f"{pattern}::", f"{pattern}["))


def reason(patterns: dict[str, str], test: str) -> str | None:
    """What is said of a test."""
    return next((why for pattern, why in patterns.items() if covers(pattern, test)), None)
