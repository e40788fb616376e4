"""Counts that do not drift: the same number in every run, on every machine, whatever else it does.

Three instruments: a kernel that counts the calls made of it (ours only), a profile function that counts the C calls on
sockets, and `sys.monitoring` (Python 3.12+), which counts functions, lines and bytecode instructions by file.
"""

import asyncio
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

# The methods of the C socket object that make a kernel call, as an event loop uses them.
SOCKET_CALLS = frozenset({"send", "recv", "recv_into", "accept", "connect", "setsockopt", "getsockopt", "shutdown"})
SOCKET_CALLS |= {"getsockname", "getpeername", "close"}


class CountingKernel:
    """A `Kernel` that counts: `calls` by Win32 name, while `counting`."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.calls: Counter[str] = Counter()
        self.counting = False
        self.last_error = kernel.last_error
        self.skips_port_safely = kernel.skips_port_safely

    def __getattr__(self, name: str) -> Any:
        function = self._counted(name, getattr(self._kernel, name))
        setattr(self, name, function)
        return function

    def extension(self, sock: Any, name: str) -> Any:
        return self._counted(name, self._kernel.extension(sock, name))

    def _counted(self, name: str, function: Any) -> Any:
        def counted(*args: Any) -> Any:
            if self.counting:
                self.calls[name] += 1
            return function(*args)

        return counted


class SeamCounter:
    """Kernel calls at the seam, and C calls on sockets, between `begin` and `end`."""

    def __init__(self, kernel: CountingKernel | None = None) -> None:
        self.kernel = kernel
        self.sockets: Counter[str] = Counter()

    def begin(self) -> None:
        if self.kernel is not None:
            self.kernel.counting = True
        sys.setprofile(self._profile)

    def end(self) -> None:
        sys.setprofile(None)
        if self.kernel is not None:
            self.kernel.counting = False

    def _profile(self, _frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in SOCKET_CALLS:
            owner = getattr(function, "__self__", None)
            if type(owner).__name__ in ("socket", "TransportSocket"):
                self.sockets[f"socket.{function.__name__}"] += 1

    def per(self, count: int) -> dict[str, float]:
        """Calls for each of `count` things, most first."""
        calls = self.sockets + (self.kernel.calls if self.kernel is not None else Counter())
        return {name: number / count for name, number in calls.most_common()}


class PythonCounter:
    """Functions, lines, instructions and C calls between `begin` and `end`, by room. Python 3.12+."""

    KINDS = ("functions", "lines", "instructions", "C calls")

    def __init__(self, room_of: Callable[[CodeType], str | None]) -> None:
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in self.KINDS}
        self._room_of = room_of
        self._rooms: dict[CodeType, str | None] = {}
        self._tool = sys.monitoring.PROFILER_ID

    def begin(self) -> None:
        monitoring, events = sys.monitoring, sys.monitoring.events
        monitoring.use_tool_id(self._tool, "iocp_loop benchmarks")
        kinds = dict(zip(self.KINDS, (events.PY_START, events.LINE, events.INSTRUCTION, events.CALL), strict=True))
        for kind, event in kinds.items():
            monitoring.register_callback(self._tool, event, self._counter(self.counts[kind], kind == "C calls"))
        monitoring.set_events(self._tool, events.PY_START | events.LINE | events.INSTRUCTION | events.CALL)

    def end(self) -> None:
        sys.monitoring.set_events(self._tool, 0)
        sys.monitoring.free_tool_id(self._tool)

    def _counter(self, counts: Counter[str], only_c: bool) -> Callable[..., None]:
        def count(code: CodeType, _where: int, *what: Any) -> None:
            if only_c and hasattr(what[0], "__code__" if hasattr(what[0], "__code__") else "__func__"):
                return
            room = self._room(code)
            if room is not None:
                counts[room] += 1

        return count

    def _room(self, code: CodeType) -> str | None:
        if code not in self._rooms:
            self._rooms[code] = self._room_of(code)
        return self._rooms[code]

    def per(self, count: int) -> dict[str, dict[str, float]]:
        """By kind and room, for each of `count` things."""
        return {kind: {room: n / count for room, n in c.most_common()} for kind, c in self.counts.items()}


# Where the rooms are. By their own folders and not by name: a path may well hold "iocp_loop" elsewhere, too.
_PACKAGES = [Path(asyncio.__file__).parent]
_PACKAGES += [Path(folder) for folder in importlib.util.find_spec("iocp_loop").submodule_search_locations]


def room_of(code: CodeType) -> str | None:
    """The room of iocp_loop, or the module of asyncio; None for the benchmark itself."""
    path = Path(code.co_filename)
    for package in _PACKAGES:
        if path.is_relative_to(package):
            return path.relative_to(package.parent).as_posix()
    if path.parent == Path(__file__).parent:
        return None
    return path.name
