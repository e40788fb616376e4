"""Waiting for a handle to be signalled (a process, an event, a timer) through the port, with no thread of ours blocked.

The system's thread pool waits (RegisterWaitForSingleObject); its callback posts one packet whose address is the
operation's, and from there on it is an operation like any other: pending until its packet is dequeued, delivered by
the loop. A wait belongs to no port handle, so cancelling is not CancelIoEx but taking the registration back; the packet
that answers the cancel is posted here.

Exactly one packet per wait: `_fired` is decided before UnregisterWaitEx returns, because that call waits for a callback
already running.

Sources: MSDN, RegisterWaitForSingleObject, UnregisterWaitEx.
"""

import ctypes
import itertools
from typing import Any

from ._endpoint import Endpoint, Key
from ._operation import Deliver, IoType, OverlappedEx, PlainOperation
from ._proactor import Proactor
from ._win32.constants import INVALID_HANDLE_VALUE, Error, WaitFlag, WaitResult
from ._win32.errors import os_error
from ._win32.types import HANDLE

# What the packet of a wait says, in its byte count.
SIGNALLED, TIMED_OUT, CANCELLED = 0, 1, 2

_next_ticket = itertools.count(1).__next__
_tickets: dict[int, "HandleWait"] = {}


class HandleWait:
    """One registered wait; what its operation keeps alive."""

    __slots__ = ("_fired", "_handle", "_operation", "_proactor", "_ticket", "_timeout_ms", "_wait")

    def __init__(self, proactor: Proactor, operation: OverlappedEx, handle: int, timeout_ms: int) -> None:
        self._proactor = proactor
        self._operation = operation
        self._handle = handle
        self._timeout_ms = timeout_ms
        self._ticket = _next_ticket()
        self._wait = HANDLE()
        self._fired = False

    def start(self) -> int:
        """Register the wait: the operation's kernel call. Non-zero: registered, and its packet will come."""
        if not self._timeout_ms:
            return self._look()
        _tickets[self._ticket] = self
        registered = self._proactor.kernel.RegisterWaitForSingleObject(
            ctypes.addressof(self._wait),
            self._handle,
            _callback_address(),
            self._ticket,
            self._timeout_ms,
            WaitFlag.EXECUTE_ONLY_ONCE | WaitFlag.EXECUTE_IN_WAIT_THREAD,
        )
        if not registered:
            del _tickets[self._ticket]
        return registered

    def _look(self) -> int:
        # QUIRK(wine): a registered wait of no time is over without a look at the handle.
        result = self._proactor.kernel.WaitForSingleObject(self._handle, 0)
        if result == WaitResult.FAILED:
            return 0
        outcome = TIMED_OUT if result == WaitResult.TIMEOUT else SIGNALLED
        self._proactor.port.post(Key.WAIT, self._operation.address, outcome)
        return 1

    def fire(self, timed_out: bool) -> None:
        """The thread pool's callback: on a thread that is not ours."""
        self._fired = True
        self._proactor.port.post(Key.WAIT, self._operation.address, TIMED_OUT if timed_out else SIGNALLED)

    def stop(self) -> None:
        """Take the registration back. Afterwards exactly one packet is on its way, or was delivered."""
        if self._unregister() and not self._fired:
            self._proactor.port.post(Key.WAIT, self._operation.address, CANCELLED)

    def finish(self) -> None:
        """The packet was dequeued: free the registration."""
        self._unregister()

    def _unregister(self) -> bool:
        if _tickets.pop(self._ticket, None) is None:
            return False
        kernel = self._proactor.kernel
        # INVALID_HANDLE_VALUE: return only when a callback already running has finished.
        if not kernel.UnregisterWaitEx(self._wait.value, INVALID_HANDLE_VALUE):
            code = kernel.last_error()
            # QUIRK(wine): IO_PENDING although it waited; the callback is over all the same.
            if code != Error.IO_PENDING:
                raise os_error(code, "UnregisterWaitEx", f"handle {self._handle}")
        return True


def endpoint(proactor: Proactor) -> Endpoint:
    """The record that waits of one proactor hang on: no handle of the port's, but closed and counted like one."""
    record = Endpoint(0, None, "wait")
    proactor.endpoints[record.key] = record
    return record


def wait_operation(
    proactor: Proactor, record: Endpoint, deliver: Deliver, handle: int, timeout_ms: int
) -> PlainOperation:
    """A wait for `handle`; its byte count is SIGNALLED, TIMED_OUT or CANCELLED. `finish_wait` when it was delivered."""
    operation = proactor.arena.operation(PlainOperation, IoType.WAIT)
    wait = HandleWait(proactor, operation, handle, timeout_ms)
    operation.endpoint = record
    operation.deliver = deliver
    operation.start = wait.start
    operation.args = ()
    operation.stop = wait.stop
    operation.keepalive = wait
    return operation


def finish_wait(operation: OverlappedEx) -> None:
    """Free what a delivered wait had registered."""
    operation.keepalive.finish()


_callback: Any = None


def _callback_address() -> int:
    # Made once and never freed: the thread pool may call it as long as the process lives.
    global _callback
    if _callback is None:
        prototype = ctypes.WINFUNCTYPE(None, ctypes.c_size_t, ctypes.c_ubyte)  # type: ignore[attr-defined, unused-ignore]
        _callback = prototype(_on_fired)
    return ctypes.cast(_callback, ctypes.c_void_p).value or 0


def _on_fired(ticket: int, timed_out: int) -> None:
    wait = _tickets.get(ticket)
    # None: taken back while this call was on its way; its packet was posted by stop().
    if wait is not None:
        wait.fire(bool(timed_out))
