"""Waiting for a handle to be signalled (a process, an event, a timer): a thread waits, and posts one packet.

No port takes such a handle. So threads of ours block in WaitForMultipleObjects, each for up to 63 handles, and post a
packet whose address is the operation's; from there on it is an operation like any other: pending until its packet is
dequeued, delivered by the loop. A thread is started when it is needed and ends with the last of its waits.

The system's thread pool could wait as well (RegisterWaitForSingleObject), but would have to run Python on a thread that
the interpreter does not know: a callback that comes while the interpreter ends waits for ever for its lock, and the end
of the process waits for the callback. A daemon thread of Python's is simply left where it is.

Who says how a wait ends
========================
    NEW        not begun; `start` may be called again after an interrupt
    WAITING    its thread waits for its handle
    STOPPING   its end was asked for: the thread answers, because the handle may have been signalled meanwhile, and an
               event that resets itself must not be swallowed
    OVER       answered

Only the thread answers, so there is one packet and not two, except where no thread runs any more: while the interpreter
ends, `stop` answers by itself. Each thread has an event by which it is told of changes. That event comes first among
its handles, and the first that is signalled is the one that counts: a handle signalled after `stop` is left alone.

Each wait is for a duplicate of its handle. So nobody can close it behind the thread's back, which would end the waits
for all its other handles too.

Sources: MSDN, WaitForMultipleObjects (the smallest index; abandoned mutexes), DuplicateHandle.
"""

import ctypes
import sys
import threading
import time
from enum import Enum

from .._core._endpoint import Endpoint, Key, Kind
from .._core._operation import Deliver, IoType, OverlappedEx, ThreadOperation
from .._core._port import CompletionPort, timeout_to_ms
from .._core._proactor import Proactor
from .._win32.constants import DUPLICATE_SAME_ACCESS, INFINITE, Error, Status, WaitResult
from .._win32.errors import os_error, status_from_winerror
from .._win32.kernel import Kernel
from .._win32.types import HANDLE, OVERLAPPED

# How a wait ended, as the byte count of its packet.
SIGNALLED, TIMED_OUT, CANCELLED, FAILED = range(4)

# MAXIMUM_WAIT_OBJECTS, less the event that tells the thread of changes.
HANDLES_MAX = 63
# WAIT_OBJECT_0 and WAIT_ABANDONED_0 have none of the bits that an index has.
_INDEX_MASK = 0x3F
# Kept: an array type that is made anew for each thread is garbage that only the cycle collector finds.
_Handles = HANDLE * (HANDLES_MAX + 1)
# How long a thread that ran out of memory waits before it goes on.
_BREATH_S = 0.01

# Guards the waiters and their waits. The collector may run a dropped loop's __del__, and by it `stop`, while this very
# thread is inside: hence reentrant.
_lock = threading.RLock()
_waiters: list["_Waiter"] = []


class Phase(Enum):
    """Where a wait is; see the module's header."""

    NEW = "new"
    WAITING = "waiting"
    STOPPING = "stopping"
    OVER = "over"


class HandleWait:
    """One wait; what its operation keeps alive. It knows the port and not the proactor, which may be dropped."""

    __slots__ = (
        "_address",
        "_handle",
        "_kernel",
        "_port",
        "_seen",
        "_timeout_ms",
        "_waiter",
        "code",
        "deadline",
        "own",
        "phase",
    )

    def __init__(self, port: CompletionPort, address: int, handle: int, timeout_ms: int) -> None:
        self._kernel: Kernel = port.kernel
        self._port = port
        self._address = address
        self.phase = Phase.NEW
        self.own = 0  # the duplicate
        self.code = 0  # of FAILED
        self.deadline: float | None = None  # by time.monotonic; None: never
        self._handle = handle
        self._timeout_ms = timeout_ms
        self._seen: int | None = None
        self._waiter: _Waiter | None = None

    def start(self) -> int:
        """Look; and if that is not enough, let a thread wait. An NTSTATUS, as a kernel call's."""
        if self.phase is not Phase.NEW:
            return Status.PENDING
        if self._seen is None:
            self._seen = self._kernel.WaitForSingleObject(self._handle, 0)
        if self._seen == WaitResult.FAILED:
            return status_from_winerror(self._kernel.last_error())
        if self._seen == WaitResult.TIMEOUT:
            if self._timeout_ms:
                return self._let_a_thread_wait()
            OVERLAPPED.from_address(self._address).InternalHigh = TIMED_OUT
        return Status.SUCCESS

    def _let_a_thread_wait(self) -> int:
        if not self.own:
            self.own = _duplicate(self._kernel, self._handle)
        if not self.own:
            return status_from_winerror(self._kernel.last_error())
        if self._timeout_ms != INFINITE and self.deadline is None:
            self.deadline = time.monotonic() + self._timeout_ms / 1000
        with _lock:
            if self._waiter is None or self._waiter.ended:
                self._waiter = _waiter_with_room(self._kernel)
            if self._waiter is not None:
                self._waiter.take(self)
                return Status.PENDING
        self.release()
        return status_from_winerror(Error.NOT_ENOUGH_MEMORY)

    def stop(self) -> None:
        """Ask for the end. Afterwards exactly one packet is on its way, or was delivered."""
        if sys.is_finalizing():
            # The thread that would answer runs no more, perhaps with the lock in its hands. One packet too many is
            # lost with the port.
            self.phase = Phase.OVER
            self._port.post_surely(Key.POSTED, self._address, CANCELLED)
            return
        with _lock:
            if self.phase is Phase.WAITING and self._waiter is not None:
                self.phase = Phase.STOPPING
                self._waiter.notify()

    def look(self) -> int:
        """How it stands, of one that has no time left or may be broken: SIGNALLED, TIMED_OUT or FAILED."""
        seen = self._kernel.WaitForSingleObject(self.own, 0)
        if seen == WaitResult.FAILED:
            self.code = self._kernel.last_error()
            return FAILED
        return TIMED_OUT if seen == WaitResult.TIMEOUT else SIGNALLED

    def answer(self, outcome: int) -> None:
        """Post the packet: from here on the operation may be gone."""
        self.release()
        self._port.post_surely(Key.POSTED, self._address, outcome)

    def release(self) -> None:
        """Close the duplicate. Twice is once."""
        own, self.own = self.own, 0
        if own:
            self._kernel.CloseHandle(own)


class WaitOperation(ThreadOperation):
    """A wait for a handle.

    Attributes:
        wait: how it stands.
    """

    __slots__ = ("wait",)

    wait: HandleWait

    def let_go(self) -> None:
        super().let_go()
        self.wait = None  # type: ignore[assignment]  # Nobody asks a released one.


class _Waiter:
    """One thread and its waits.

    Attributes:
        ended: it takes no wait any more.
    """

    def __init__(self, kernel: Kernel, event: int) -> None:
        self.ended = False
        self._kernel = kernel
        self._event = event  # resets itself
        self._told = False  # the event was what ended the last wait
        self._waits: list[HandleWait] = []
        self._handles = _Handles(event)

    def has_room(self) -> bool:
        return len(self._waits) < HANDLES_MAX

    def take(self, wait: HandleWait) -> None:
        """One wait more; with the lock held. Twice is once."""
        if wait not in self._waits:
            self._waits.append(wait)
        wait.phase = Phase.WAITING
        self.notify()

    def notify(self) -> None:
        """Tell the thread that something has changed; with the lock held, because it is closed with the lock held."""
        if not self.ended:
            self._kernel.SetEvent(self._event)

    # -- on its thread -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """The thread: until it has nothing to wait for."""
        while not self.ended:
            try:
                self._serve_once()
            except MemoryError:
                time.sleep(_BREATH_S)

    def _serve_once(self) -> None:
        waits = self._end_some()
        if not waits:
            return
        for place, wait in enumerate(waits, 1):
            self._handles[place] = wait.own
        # After it was told of a change, without its event: who begins and ends waits without a pause must not hide the
        # handles of others.
        first, timeout_ms = (1, 0) if self._told else (0, _remaining_ms(waits))
        start = ctypes.addressof(self._handles) + first * ctypes.sizeof(HANDLE)
        result = self._kernel.WaitForMultipleObjects(len(waits) + 1 - first, start, 0, timeout_ms)
        self._told = False
        if result == WaitResult.FAILED:
            self._end_broken(waits, self._kernel.last_error())
        elif result != WaitResult.TIMEOUT:
            place = first + (result & _INDEX_MASK)
            self._told = not place
            if place:
                self._end_wait(waits[place - 1], SIGNALLED)

    def _end_some(self) -> tuple[HandleWait, ...]:
        """Answer those that were stopped and those whose time is up, and return the others: with the last it ends."""
        with _lock:
            waits = tuple(self._waits)
        now = time.monotonic()
        for wait in waits:
            if wait.phase is Phase.STOPPING:
                self._end_wait(wait, CANCELLED)
            elif wait.deadline is not None and wait.deadline <= now:
                self._end_wait(wait, wait.look())
        with _lock:
            if not self._waits:
                self.ended = True
                _waiters.remove(self)
                self._kernel.CloseHandle(self._event)
            return tuple(self._waits)

    def _end_broken(self, waits: tuple[HandleWait, ...], code: int) -> None:
        """The call failed: end those that it failed for; all, if it cannot be told, because they would fail again."""
        seen = {wait: wait.look() for wait in waits}
        some = FAILED in seen.values()
        for wait, outcome in seen.items():
            if outcome == SIGNALLED:
                self._end_wait(wait, SIGNALLED)  # What was seen may be an event that has reset itself by it.
            elif outcome == FAILED or not some:
                wait.code = wait.code or code
                self._end_wait(wait, FAILED)

    def _end_wait(self, wait: HandleWait, outcome: int) -> None:
        with _lock:
            wait.phase = Phase.OVER
            self._waits.remove(wait)
        wait.answer(outcome)


def _remaining_ms(waits: tuple[HandleWait, ...]) -> int:
    deadlines = [wait.deadline for wait in waits if wait.deadline is not None]
    return timeout_to_ms(min(deadlines) - time.monotonic() if deadlines else None)


def _waiter_with_room(kernel: Kernel) -> _Waiter | None:
    """One that can take another wait, made if there is none; with the lock held. None: no thread or event to be had."""
    for waiter in _waiters:
        if waiter.has_room():
            return waiter
    event = kernel.CreateEventW(0, 0, 0, None)
    if not event:
        return None
    waiter = _Waiter(kernel, event)
    _waiters.append(waiter)
    try:
        threading.Thread(target=waiter.serve, name="iocp_loop: waiting for handles", daemon=True).start()
    except RuntimeError:
        # "can't start new thread": memory, or an interpreter that ends, or one of several that allows no such threads.
        _waiters.remove(waiter)
        kernel.CloseHandle(event)
        return None
    return waiter


def _duplicate(kernel: Kernel, handle: int) -> int:
    """The same object under a handle of ours; 0 if the call failed."""
    process, own = kernel.GetCurrentProcess(), HANDLE()
    if not kernel.DuplicateHandle(process, handle, process, ctypes.addressof(own), 0, 0, DUPLICATE_SAME_ACCESS):
        return 0
    return own.value or 0


def endpoint(proactor: Proactor) -> Endpoint:
    """The record that waits of one proactor hang on: no handle of the port's, but closed and counted like one."""
    record = Endpoint(0, None, Kind.WAIT)
    record.skips_port = True  # What `start` has seen already needs no packet.
    proactor.add_endpoint(record)
    return record


def wait_operation(
    proactor: Proactor, record: Endpoint, deliver: Deliver, handle: int, timeout_ms: int
) -> WaitOperation:
    """A wait for `handle` of at most `timeout_ms` (INFINITE: for ever); `is_signalled` reads its result."""
    operation = proactor.arena.operation(WaitOperation, IoType.WAIT)
    wait = HandleWait(proactor.port, operation.address, handle, timeout_ms)
    operation.endpoint = record
    operation.deliver = deliver
    operation.start = wait.start
    operation.args = ()
    operation.stop = wait.stop
    operation.wait = wait
    return operation


def is_signalled(operation: OverlappedEx, outcome: int) -> bool:
    """Whether the handle was signalled: False where the time was up, or the wait given up before.

    Raises:
        OSError: the handle could not be waited for any more.
    """
    assert isinstance(operation, WaitOperation)
    if outcome == FAILED:
        raise os_error(operation.wait.code, "WaitForMultipleObjects", operation.endpoint.subject)
    return outcome == SIGNALLED
