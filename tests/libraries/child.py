"""The child process: a library's tests by pytest, on one loop, reported test by test.

    python child.py REQUEST

REQUEST is a file with one JSON object, see `running.Child`. Its "events" names the file that gets one JSON object a
line: pytest's own junit-xml is written at the end, and a process that dies or hangs does not come to it.
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Enough to see what failed.
DETAIL_MAX = 6000


class Recorder:
    """A plug-in of pytest that writes each test's beginning and outcome at once, and ends the process if one hangs."""

    def __init__(self, request, made, is_left_out):
        self._made = made
        self._is_left_out = is_left_out
        self._timeout = request["test limit"]
        self._events = os.open(request["events"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._stacks = open(request["stacks"], "w", encoding="utf-8")
        self._word, self._detail = "ok", ""

    def send(self, event, **fields):
        line = {"event": event, **fields, "made": dict(self._made)}
        self._made.clear()
        os.write(self._events, f"{json.dumps(line)}\n".encode())

    def pytest_collection_modifyitems(self, config, items):
        left_out = [item for item in items if self._is_left_out(name_of(item.nodeid))]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not self._is_left_out(name_of(item.nodeid))]

    def pytest_collectreport(self, report):
        if report.failed:
            # A module that cannot be imported: as if it were one test.
            self.send("stop", test=name_of(report.nodeid), word="error", detail=report.longreprtext[-DETAIL_MAX:])

    def pytest_runtest_logstart(self, nodeid):
        self._word, self._detail = "ok", ""
        faulthandler.dump_traceback_later(self._timeout, exit=True, file=self._stacks)
        self.send("start", test=name_of(nodeid))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            # The first failure is the cause; what comes after it may be a consequence.
            if self._word in ("ok", "skip", "expected failure"):
                self._word = "fail" if report.when == "call" else "error"
                self._detail = report.longreprtext[-DETAIL_MAX:]
        elif report.skipped and self._word == "ok":
            self._word = "expected failure" if hasattr(report, "wasxfail") else "skip"

    def pytest_runtest_logfinish(self, nodeid):
        faulthandler.cancel_dump_traceback_later()
        self.send("stop", test=name_of(nodeid), word=self._word, detail=self._detail)


def name_of(nodeid):
    """The same on both loops, also where the loop's class is a parameter of the test."""
    return nodeid.replace("IocpEventLoop", "ProactorEventLoop")


def lack_what_wine_lacks():
    """QUIRK(wine): a call of CopyFile2, which Wine 8 has not got, ends the process. shutil can do without."""
    import _winapi
    import ctypes

    if hasattr(ctypes.WinDLL("ntdll"), "wine_get_version") and hasattr(_winapi, "CopyFile2"):
        del _winapi.CopyFile2


def take_children_along():
    """Whatever a test started, and lost, ends with this process: a test that hangs leaves nothing behind."""
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.CreateJobObjectW.restype = kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    job, this = (
        ctypes.c_void_p(handle) for handle in (kernel32.CreateJobObjectW(None, None), kernel32.GetCurrentProcess())
    )
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION (MSDN, winnt.h), class 9; its LimitFlags: JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE.
    limits = ctypes.create_string_buffer(144)
    ctypes.c_uint32.from_buffer(limits, 16).value = 0x2000
    # The handle stays open as long as we live. If Windows refuses, nothing is lost but the tidiness.
    kernel32.SetInformationJobObject(job, 9, limits, len(limits))
    kernel32.AssignProcessToJobObject(job, this)


def main():
    take_children_along()
    # Before anything imports shutil, which looks once.
    lack_what_wine_lacks()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Our folders first, to import what is needed from them; not for the tests, which may have modules of these names.
    ours = [str(ROOT), str(HERE), str(ROOT / "tests" / "contract")]
    sys.path[:0] = ours
    import substitution
    from table import covers

    os.add_dll_directory(request["dlls"])
    made = substitution.install(request["loop"])
    if not request["as proactor"]:
        substitution.asyncio.ProactorEventLoop = substitution.StdlibLoop
    own = {os.path.normcase(path) for path in ours}
    # Nor may they see what else is installed: a plug-in of pytest would be loaded.
    sys.path[:] = [
        path
        for path in sys.path
        if os.path.normcase(path) not in own and os.path.basename(path).lower() not in ("site-packages", "")
    ]
    sys.path.insert(0, "")
    done, only = frozenset(request["done"]), request["only"]

    def is_left_out(nodeid):
        if nodeid in done or (only is not None and nodeid not in only):
            return True
        return any(covers(pattern, nodeid) for pattern in request["excluded"])

    import pytest

    recorder = Recorder(request, made, is_left_out)
    # pytest's own watchdog would take ours away; and a cache would tell the second run about the first.
    options = ["-o", "faulthandler_timeout=0", "-p", "no:cacheprovider", "-q", "--continue-on-collection-errors"]
    status = pytest.main([*options, *request["arguments"]], plugins=[recorder])
    recorder.send("end", status=int(status))
    sys.stdout.flush()
    # Not by returning: threads that tests left behind would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
