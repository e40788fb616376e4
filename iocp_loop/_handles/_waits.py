"""Waiting for a handle to be signalled (a process, an event, a timer): a thread waits, and posts one packet.

Such a handle cannot be associated with a port. So threads of ours block in WaitForMultipleObjects, each for up to 63
handles, and post a packet with the address of the operation. To the layers above it is an operation like any other:
pending until its packet is dequeued, then delivered by the loop. A thread starts when it is needed and ends with the
last of its waits.

The system's thread pool could wait too (RegisterWaitForSingleObject), but would run Python on a thread that the
interpreter does not know. A callback that comes while the interpreter ends would wait for ever for the interpreter's
lock, and the end of the process would wait for the callback. A daemon thread of Python's does not hold up the end.

Who decides how a wait ends
===========================
    NEW        not begun; `start` may be called again after an interrupt
    WAITING    its thread waits for its handle
    STOPPING   somebody called `stop`. The thread still answers, because the handle may have been signalled meanwhile,
               and the signal of an auto-reset event must not be lost
    OVER       answered

Only the thread answers, so there is one packet and not two. The one exception: while the interpreter ends, no thread
runs, and `stop` answers itself. Each thread has an event that tells it of changes. The event is the first among the
thread's handles, and of several signalled handles the call reports the first. So a handle that is signalled after
`stop` is not consumed.

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
# The bits of an index; WAIT_OBJECT_0 and WAIT_ABANDONED_0 have none of them.
_INDEX_MASK = 0x3F
# Made once: an array type made for each thread would be garbage that only the cycle collector frees.
_Handles = HANDLE * (HANDLES_MAX + 1)
# How long a thread that ran out of memory pauses before it tries again.
_BREATH_S = 0.01

# Guards the waiters and their waits. Reentrant, because the collector may run a dropped loop's __del__, which calls
# `stop`, on a thread that holds it.
_lock = threading.RLock()
_waiters: list["_Waiter"] = []


class Phase(Enum):
    """The states of a wait; see the module's header."""

    NEW = "new"
    WAITING = "waiting"
    STOPPING = "stopping"
    OVER = "over"


class HandleWait:
    """One wait, kept alive by its operation. It refers to the port and not to the proactor, which may be dropped."""

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
        self.code = 0  # the WinError, if it FAILED
        self.deadline: float | None = None  # on time.perf_counter's clock; None: never
        self._handle = handle
        self._timeout_ms = timeout_ms
        self._seen: int | None = None
        self._waiter: _Waiter | None = None

    def start(self) -> int:
        """The operation's `start`: look whether the handle is signalled; if not, let a thread wait. An NTSTATUS."""
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
            self.deadline = time.perf_counter() + self._timeout_ms / 1000
        with _lock:
            if self._waiter is None or self._waiter.ended:
                self._waiter = _waiter_with_room(self._kernel)
            if self._waiter is not None:
                self._waiter.take(self)
                return Status.PENDING
        self.release()
        return status_from_winerror(Error.NOT_ENOUGH_MEMORY)

    def stop(self) -> None:
        """The operation's `stop`: end the wait. Afterwards exactly one packet is on its way, or was delivered."""
        if sys.is_finalizing():
            # The thread that would answer will not run again, and may hold the lock. If it answered before, this packet
            # is one too many, and does no harm: it is lost with the port.
            self.phase = Phase.OVER
            self._port.post_surely(Key.POSTED, self._address, CANCELLED)
            return
        with _lock:
            if self.phase is Phase.WAITING and self._waiter is not None:
                self.phase = Phase.STOPPING
                self._waiter.notify()

    def look(self) -> int:
        """Test the handle of a wait whose time is up, or that may be broken: SIGNALLED, TIMED_OUT or FAILED."""
        seen = self._kernel.WaitForSingleObject(self.own, 0)
        if seen == WaitResult.FAILED:
            self.code = self._kernel.last_error()
            return FAILED
        return TIMED_OUT if seen == WaitResult.TIMEOUT else SIGNALLED

    def answer(self, outcome: int) -> None:
        """Post the packet. From then on the operation may be gone."""
        self.release()
        self._port.post_surely(Key.POSTED, self._address, outcome)

    def release(self) -> None:
        """Close the duplicate. A second call does nothing."""
        own, self.own = self.own, 0
        if own:
            self._kernel.CloseHandle(own)


class WaitOperation(ThreadOperation):
    """A wait for a handle.

    Attributes:
        wait: its `HandleWait`.
    """

    __slots__ = ("wait",)

    wait: HandleWait

    def let_go(self) -> None:
        super().let_go()
        self.wait = None  # type: ignore[assignment]  # A released operation is not used again.


class _Waiter:
    """One thread and its waits.

    Attributes:
        ended: the thread accepts no further wait.
    """

    def __init__(self, kernel: Kernel, event: int) -> None:
        self.ended = False
        self._kernel = kernel
        self._event = event  # an auto-reset event
        self._told = False  # the event ended the last call
        self._waits: list[HandleWait] = []
        self._handles = _Handles(event)

    def has_room(self) -> bool:
        return len(self._waits) < HANDLES_MAX

    def take(self, wait: HandleWait) -> None:
        """Add a wait; with the lock held. A second call for the same wait only notifies the thread."""
        if wait not in self._waits:
            self._waits.append(wait)
        wait.phase = Phase.WAITING
        self.notify()

    def notify(self) -> None:
        """Tell the thread that something has changed. With the lock held, under which the event is closed too."""
        if not self.ended:
            self._kernel.SetEvent(self._event)

    # -- on its thread -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Run the thread until it has nothing to wait for."""
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
        # After the event ended a call, the next one leaves it out: a program that begins and ends waits without a pause
        # must not hide the other handles.
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
        """Answer the waits that were stopped or whose time is up, and return the others. If none is left, end."""
        with _lock:
            waits = tuple(self._waits)
        now = time.perf_counter()
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
        """After a failed call, end the waits whose handle fails; all waits, if none does, since it would fail again."""
        seen = {wait: wait.look() for wait in waits}
        some = FAILED in seen.values()
        for wait, outcome in seen.items():
            if outcome == SIGNALLED:
                self._end_wait(wait, SIGNALLED)  # `look` may have reset the event, so its signal must be reported.
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
    return timeout_to_ms(min(deadlines) - time.perf_counter() if deadlines else None)


def _waiter_with_room(kernel: Kernel) -> _Waiter | None:
    """A waiter with room for a wait, new if need be; with the lock held. None if no thread or event can be made."""
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
        # "can't start new thread": no memory, or the interpreter ends, or a subinterpreter allows no daemon threads.
        _waiters.remove(waiter)
        kernel.CloseHandle(event)
        return None
    return waiter


def _duplicate(kernel: Kernel, handle: int) -> int:
    """A new handle of the same object; 0 if the call failed."""
    process, own = kernel.GetCurrentProcess(), HANDLE()
    if not kernel.DuplicateHandle(process, handle, process, ctypes.addressof(own), 0, 0, DUPLICATE_SAME_ACCESS):
        return 0
    return own.value or 0


class Waits(Endpoint):
    """The endpoint to which all waits of one proactor belong. It has no handle, but is closed and counted like one."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0, None, Kind.WAIT)
        self.skips_port = True  # If `start` finds the handle signalled, no packet is needed.

    def close(self) -> None:
        """Its proactor is closed, and has ended the waits."""


def of(proactor: Proactor) -> Waits:
    """The record of a proactor, made when it is first asked for."""
    found = proactor.attached.get(Waits)
    if found is None:
        found = proactor.attached[Waits] = Waits()
        proactor.add_endpoint(found)
    assert isinstance(found, Waits)
    return found


def wait_operation(proactor: Proactor, handle: int, deliver: Deliver, timeout: float | None = None) -> WaitOperation:
    """An operation that is over when a process, event, timer or other waitable handle is signalled.

    `Proactor.submit` begins it; `is_signalled` reads its result. Each thread of ours waits for up to 63 handles.

    Args:
        proactor: delivers its packet.
        handle: the OS handle. It is duplicated when the wait begins, and may be closed after that.
        deliver: as for any operation.
        timeout: seconds, rounded up to whole milliseconds; None waits for ever.

    Source: MSDN, WaitForMultipleObjects.
    """
    operation = proactor.arena.operation(WaitOperation, IoType.WAIT)
    wait = HandleWait(proactor.port, operation.address, handle, timeout_to_ms(timeout))
    operation.endpoint = of(proactor)
    operation.deliver = deliver
    operation.start = wait.start
    operation.args = ()
    operation.stop = wait.stop
    operation.wait = wait
    return operation


def is_signalled(operation: OverlappedEx, outcome: int) -> bool:
    """Whether the handle was signalled; False if the time was up or the wait was cancelled first. Thread-safe.

    Args:
        operation: a settled `wait_operation`.
        outcome: what stands in the place of its byte count.

    Raises:
        OSError: waiting for the handle failed.
    """
    assert isinstance(operation, WaitOperation)
    if outcome == FAILED:
        raise os_error(operation.wait.code, "WaitForMultipleObjects", operation.endpoint.subject)
    return outcome == SIGNALLED
