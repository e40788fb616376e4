"""The real kernel and the real loop, watched: calls counted, faults on request, and a note of what is left at the end."""

import asyncio
import contextlib
import ctypes
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import iocp_loop
from iocp_loop._core import _kept
from iocp_loop._core._operation import IoType
from iocp_loop._win32 import prototypes
from iocp_loop._win32.constants import Error, Status
from iocp_loop._win32.kernel import Win32Kernel
from iocp_loop._win32.types import DWORD, OVERLAPPED_ENTRY

# A fault gets the real function and its arguments, and answers in its place.
Fault = Callable[[Any, tuple[Any, ...]], int]

# What each call returns when it fails: -1 from Winsock's, FALSE or NULL from the others.
_SOCKET_CALLS = ("WSARecv", "WSASend", "WSARecvFrom", "WSASendTo", "WSAIoctl")
SETTLE_S = 5.0
PATIENCE_S = 10.0  # For a fact that comes at once on a quiet machine.


class WatchedKernel(Win32Kernel):
    """The real kernel; `counts` says how often each function was called, `faults` may answer instead of it.

    Where `tells_late` is set, the packets of cancelled operations come one wait later than under Wine, where they are in
    the port when CancelIoEx returns. Windows promises nothing of when they come.
    """

    tells_late = False

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, list[bytes]] = {}  # packets, by their port
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, Fault] = {}
        self._wrapped: dict[int, Any] = {}  # by id; the real kernel keeps each function for ever

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            function = self._watch(name, prototypes.bind(name))
        except KeyError:
            raise AttributeError(name) from None
        setattr(self, name, function)
        return function

    def extension(self, sock: Any, name: str) -> Any:
        function = super().extension(sock, name)
        if id(function) not in self._wrapped:
            self._wrapped[id(function)] = self._watch(name, function)
        return self._wrapped[id(function)]

    def _watch(self, name: str, function: Any) -> Any:
        counts, faults = self.counts, self.faults

        def call(*args: Any) -> int:
            counts[name] += 1
            if name in faults:
                return faults[name](function, args)
            return function(*args)

        if name == "GetQueuedCompletionStatusEx" and self.tells_late:
            return lambda *args: self._wait_late(call, args)
        return call

    def _wait_late(self, wait: Any, args: tuple[Any, ...]) -> int:
        port, entries, removed = number_of(args[0]), number_of(args[1]), DWORD.from_address(number_of(args[3]))
        come = self._held.pop(port, None)
        if come is None:
            if not wait(*args):
                return 0
            come = _packets(entries, removed.value)
            held = [packet for packet in come if _is_cancelled(packet)]
            if not held:
                return 1
            self._held[port] = held
            come = [packet for packet in come if packet not in held]
            if not come:
                return failed("GetQueuedCompletionStatusEx", Error.WAIT_TIMEOUT)
        removed.value = len(come)
        ctypes.memmove(entries, b"".join(come), len(come) * ctypes.sizeof(OVERLAPPED_ENTRY))
        return 1

    def fail(self, name: str, code: int, times: int = 1) -> None:
        """Let the next `times` calls fail with a WinError, without reaching the kernel."""

        def fault(function: Any, args: tuple[Any, ...]) -> int:
            nonlocal times
            if times <= 0:
                return function(*args)
            times -= 1
            return failed(name, code)

        self.faults[name] = fault

    def swallow(self, name: str) -> None:
        """Let every call of an overlapped function say "pending", for ever."""
        self.faults[name] = lambda _function, _args: failed(name, Error.IO_PENDING)


_same = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t)(lambda number: number)
# What a prepared argument was made of: only a call of C gets to see it, one without prototypes.
number_of = ctypes.CFUNCTYPE(ctypes.c_size_t)(ctypes.cast(_same, ctypes.c_void_p).value)


def _packets(entries: int, count: int) -> list[bytes]:
    size = ctypes.sizeof(OVERLAPPED_ENTRY)
    return [ctypes.string_at(entries + number * size, size) for number in range(count)]


def _is_cancelled(packet: bytes) -> bool:
    return OVERLAPPED_ENTRY.from_buffer_copy(packet).Internal & 0xFFFF_FFFF == Status.CANCELLED


def failed(name: str, code: int) -> int:
    """What the function `name` answers when it fails with `code`."""
    ctypes.set_last_error(code)
    return -1 if name in _SOCKET_CALLS else 0


class WatchedLoop(iocp_loop.IocpEventLoop):
    """Our loop; `reports` is what reached the exception handler, `left` what was not given back when it closed."""

    made: list["WatchedLoop"] = []

    def __init__(self, kernel: Any = None) -> None:
        self.watched = WatchedKernel() if kernel is None else kernel
        super().__init__(kernel=self.watched)
        self.reports: list[dict[str, Any]] = []
        self.left: list[Any] = []
        self.set_exception_handler(lambda _loop, report: self.reports.append(report))
        WatchedLoop.made.append(self)

    @property
    def counts(self) -> Counter[str]:
        """How often each function of the kernel was called."""
        return self.watched.counts

    def close(self) -> None:
        if not self.is_closed() and not self.is_running():
            gc.collect()
            with contextlib.suppress(asyncio.TimeoutError):
                self.run_until_complete(asyncio.wait_for(self._settle(), SETTLE_S))
            self.left.extend(self.outstanding())
        super().close()

    async def _settle(self) -> None:
        while self.outstanding():
            await asyncio.sleep(0.001)

    def outstanding(self) -> list[Any]:
        """Operations outstanding, and handles that we must close; those of the loop's own are not counted."""
        own = self._signals._operation
        operations = [operation for operation in self.proactor.pending.values() if operation is not own]
        own_endpoint = None if own is None else own.endpoint
        endpoints = [
            endpoint
            for endpoint in self.proactor.endpoints.values()
            if endpoint is not own_endpoint and endpoint.owner is not None and endpoint.kind in ("socket", "pipe")
        ]
        return operations + endpoints

    def expect_report(self, part: str) -> dict[str, Any]:
        """Take the one report whose message or exception contains `part`: the test provoked it."""
        found = [report for report in self.reports if part in f"{report['message']} {report.get('exception')!r}"]
        assert len(found) == 1, f"{part!r} reported {len(found)} times; all reports: {self.reports}"
        self.reports.remove(found[0])
        return found[0]


def pending(io_type: IoType, loop: Any = None) -> list[Any]:
    """Operations of one type that are outstanding; the receive that signals wake the loop by is not counted."""
    loop = loop or here()
    return [op for op in loop.proactor.pending.values() if op.io_type is io_type and op is not loop._signals._operation]


def here() -> WatchedLoop:
    """The loop that runs the test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WatchedLoop)
    return loop


@contextlib.contextmanager
def running(kernel: Any = None) -> Iterator[WatchedLoop]:
    """A loop of the test's own, closed at the end."""
    loop = WatchedLoop(kernel)
    try:
        yield loop
    finally:
        loop.close()


@contextlib.contextmanager
def orphans_expected(count: int) -> Iterator[None]:
    """The block must leave exactly `count` operations in the kernel's hands; they stay there, but the list forgets them."""
    before = len(_kept.ORPHANS)
    yield
    assert len(_kept.ORPHANS) == before + count
    kept.extend(_kept.ORPHANS[before:])
    del _kept.ORPHANS[before:]


kept: list[Any] = []  # Orphans that a test made on purpose: nobody may free them.


async def until(fact: Callable[[], object], what: str = "") -> None:
    """Let the loop run until `fact()` is true."""
    deadline = time.perf_counter() + PATIENCE_S
    while not fact():
        assert time.perf_counter() < deadline, f"waited {PATIENCE_S} s in vain for {what or fact}"
        await asyncio.sleep(0.001)


def wait_until(fact: Callable[[], object], what: str = "") -> None:
    """As `until`, for a thread without a loop."""
    deadline = time.perf_counter() + PATIENCE_S
    while not fact():
        assert time.perf_counter() < deadline, f"waited {PATIENCE_S} s in vain for {what or fact}"
        time.sleep(0.001)


async def turns(count: int = 3) -> None:
    """Let the loop take some turns, so that what is due has happened."""
    for _ in range(count):
        await asyncio.sleep(0)
