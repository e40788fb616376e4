"""What all rings of the tests share. Fixtures of one ring stand in that ring's own conftest.py.

portable/  any operating system: layouts, tables, and the seeded fake kernel
kernel/    the real Win32: Windows, or Wine
contract/  our loop beside the standard library's
ecosystem/ servers and clients of other people on our loop
libraries/ other people's own tests, on our loop and on the standard library's
"""

import sys
import types
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# So that every ring can `from fakes.kernel import FakeKernel`, and a checkout is tested without being installed.
for folder in (ROOT, TESTS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# So that an assertion in there says what it saw, whichever ring imports it first.
pytest.register_assert_rewrite("fakes")

import wine_processes  # noqa: E402

if sys.platform != "win32":
    # `import iocp_loop` raises ImportError here, on purpose: the package has nothing to offer off Windows. Its rooms
    # are portable all the same, given a fake kernel. A bare package object lets `iocp_loop._core._proactor` be imported
    # without running the `__init__` that refuses.
    package = types.ModuleType("iocp_loop")
    package.__path__ = [str(ROOT / "iocp_loop")]
    sys.modules.setdefault("iocp_loop", package)
    collect_ignore = ["contract", "ecosystem", "kernel", "libraries"]


def pytest_addoption(parser):
    parser.addoption(
        "--seed",
        metavar="N[:M]",
        help="portable ring: run only the schedule with seed N, or those from N up to but not including M",
    )
    parser.addoption(
        "--profile",
        choices=["windows", "wine8"],
        default="windows",
        help="portable ring: the system that the fake kernel plays (tests/fakes/profiles.py)",
    )
    parser.addoption(
        "--as-windows",
        action="store_true",
        help="kernel ring: ask once for the end of an operation, and be told late, as on Windows. Not with Wine 8, which"
        " may forget to end it",
    )


def pytest_configure(config):
    if sys.platform == "win32":
        wine_processes.ask_again()
        if config.getoption("--as-windows"):
            cancel_as_on_windows()


def pytest_collection_modifyitems(config, items):
    if sys.platform == "win32" and config.getoption("--as-windows"):
        left_out = pytest.mark.skip(reason="Wine: forgets this cancel now and then if it is asked once (10.0)")
        for item in items:
            if item.get_closest_marker("asks_again"):
                item.add_marker(left_out)


def cancel_as_on_windows():
    """Every kernel says that it forgets no cancel, and those that are watched tell later what came of it."""
    from kernel.watched import WatchedKernel

    from iocp_loop._win32.kernel import Win32Kernel

    WatchedKernel.tells_late = True

    made = Win32Kernel.__init__

    def make(self):
        made(self)
        assert self.forgets_cancels, "there is nothing to leave out: this is no Wine"
        self.forgets_cancels = False

    Win32Kernel.__init__ = make


def pytest_terminal_summary(terminalreporter):
    if wine_processes.refused:
        terminalreporter.write_line(
            f"Wine failed to create a process {len(wine_processes.refused)} times, see tests/wine_processes.py."
        )
    # QUIRK(wine): a process whose memory the kernel wrote to after it was freed may die without a word and with
    # status 0. A run without this line did not end well, whatever its exit status says.
    terminalreporter.write_line("All tests were run to their end.")
