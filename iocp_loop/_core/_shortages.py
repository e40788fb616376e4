"""Operations that the kernel had no memory for: each is submitted again after a pause, and is pending until then.

WSAENOBUFS and its kin say that the system is short of non-paged memory or of pages that may be locked (MSDN, Windows
Sockets Error Codes). They say nothing about the handle, and a moment later the same call may succeed: no reason to end
a connection. So code that receives a failed result first offers the operation to `begin_again`, and reports the failure
only if that declines.

While an operation waits here, the kernel does not know it. It stands in the proactor's tables all the same, so that it
can be cancelled, and its endpoint closed, like any other.

    refusals in a row    pause before the next attempt
    the first            1 ms
    each further one     twice as long, at most 1 s
    more than 70         none: the operation fails with the kernel's error, after some 60 s

A refusal at once and one by a later packet count alike. A success ends the row: its owner then submits the operation
itself.

Only receives, sends and polls are repeated, because repeating them does no harm. A connect that finds no buffers may
have run out of ports, and an accept is repeated by its listener.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .._win32.constants import Error, Status, WsaError
from .._win32.errors import SHORTAGES, status_from_winerror, winerror_from_status
from ._operation import PENDING, SETTLED, IoType, OverlappedEx

if TYPE_CHECKING:
    from ._endpoint import Endpoint
    from ._proactor import Proactor

# The pauses, in seconds, and how many refusals in a row are borne: 10 with growing pauses, 60 with the longest.
PAUSE_S = 0.001
PAUSE_MAX_S = 1.0
REFUSALS_MAX = 70
REPEATABLE = frozenset(
    {IoType.READ, IoType.WRITE, IoType.READ_FROM, IoType.WRITE_TO, IoType.TRANSMIT_FILE, IoType.POLL}
)


@dataclass(frozen=True, slots=True)
class _Retry:
    """An operation that waits here, and how to continue.

    Attributes:
        operation: the operation.
        due: when to submit it again, on the kernel's clock.
        is_open: tells whether its handle is still open.
        stop: the operation's own `stop`, which is replaced while it waits.
    """

    operation: OverlappedEx
    due: float
    is_open: Callable[[], bool]
    stop: Callable[[], None] | None


class _Again:
    """Stands in for the `start` of an operation that was submitted again, until its owner submits it: the row is over.

    An operation whose `start` is one of these has been refused before. So a success need not reset any counter.
    """

    __slots__ = ("_operation", "start")

    def __init__(self, operation: OverlappedEx) -> None:
        self._operation = weakref.ref(operation)  # Weak, because the operation holds this object.
        self.start = operation.start

    def __call__(self, *args: Any) -> int:
        if (operation := self._operation()) is not None:
            operation.start = self.start
        return self.start(*args)


class Shortages:
    """The operations of one proactor that lacked memory. Its `select` submits them again."""

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor: Proactor = proactor
        self._clock = proactor.kernel.monotonic
        self._waiting: dict[int, _Retry] = {}  # by address

    def close(self) -> None:
        """Drop the operations and the reference to the proactor, which is closed."""
        self._waiting.clear()
        self._proactor = None  # type: ignore[assignment]  # Breaks the cycle; no other method is called.

    def begin_again(self, operation: OverlappedEx, status: int, is_open: Callable[[], bool] = lambda: True) -> bool:
        """Make a settled operation pending again if it failed for want of memory.

        Args:
            operation: the operation whose result is being delivered, with its memory and arguments unchanged.
            status: its result.
            is_open: called before it is submitted again, for a handle that its owner may close meanwhile.

        Returns:
            True if it is pending, so that its result is still to come.
        """
        endpoint = operation.endpoint
        if operation.io_type not in REPEATABLE or endpoint.closing:
            return False
        if winerror_from_status(status, is_socket=endpoint.speaks_winsock) not in SHORTAGES:
            return False
        operation.refusals = operation.refusals + 1 if isinstance(operation.start, _Again) else 0
        _end_row(operation)
        if operation.refusals >= REFUSALS_MAX:
            return False
        pause = min(PAUSE_S * 2**operation.refusals, PAUSE_MAX_S)
        # Each step may run twice, because after an interrupt the result is delivered again.
        waiting = self._waiting.get(operation.address)
        stop = operation.stop if waiting is None else waiting.stop
        self._waiting[operation.address] = _Retry(operation, self._clock() + pause, is_open, stop)
        if self.begin_due not in self._proactor.before_wait:
            self._proactor.before_wait.append(self.begin_due)
        operation.stop = partial(self._give_up, operation)
        # SAFETY: ours all the time, although it stands in the table of the kernel's operations.
        self._proactor.pending[operation.address] = operation
        if operation not in endpoint.operations:
            endpoint.operations.append(operation)
        operation.state = PENDING
        return True

    def begin_due(self) -> None:
        """Submit the operations that are due; called before each wait."""
        now = self._clock()
        for retry in [retry for retry in self._waiting.values() if retry.due <= now]:
            self._begin(retry)
        if self._waiting:
            self._proactor.before_wait.append(self.begin_due)  # Again: the proactor removes the entry of this call.

    def limit(self, timeout: float | None) -> float | None:
        """Shorten the timeout of the next wait to the time until the first one is due; negative if it is overdue."""
        if not self._waiting:
            return timeout
        pause = min(retry.due for retry in self._waiting.values()) - self._clock()
        return pause if timeout is None else min(timeout, pause)

    def _begin(self, retry: _Retry) -> None:
        proactor, operation = self._proactor, retry.operation
        try:
            self._leave(operation, retry.stop)
            if operation.endpoint.closing:
                # An interrupt left it here while its endpoint was being closed.
                proactor.settle_inline(operation, Status.CANCELLED, 0)
            elif not retry.is_open():
                proactor.settle_inline(operation, status_of_closed(operation.endpoint), 0)
            else:
                proactor.submit(operation)
                operation.start = _Again(operation)
            del self._waiting[operation.address]
        except BaseException:
            # An interrupt: if it is not in the tables by now, it stays here, and the next wait submits it.
            if proactor.holds(operation):
                self._waiting.pop(operation.address, None)
            raise

    def _leave(self, operation: OverlappedEx, stop: Callable[[], None] | None) -> None:
        """Remove it from the proactor's tables. Each step may run twice."""
        operation.stop = stop
        self._proactor.pending.pop(operation.address, None)
        if operation in operation.endpoint.operations:
            operation.endpoint.operations.remove(operation)
        operation.state = SETTLED

    def _give_up(self, operation: OverlappedEx) -> None:
        """The `stop` of an operation that waits here: settle it, since the kernel does not have it."""
        if (retry := self._waiting.pop(operation.address, None)) is not None:
            operation.stop = retry.stop
        self._proactor.complete(operation, Status.CANCELLED, 0)


def _end_row(operation: OverlappedEx) -> None:
    if isinstance(operation.start, _Again):
        operation.start = operation.start.start


def status_of_closed(endpoint: "Endpoint") -> int:
    """The status of an operation whose handle was closed by its owner before it could be submitted again."""
    return status_from_winerror(WsaError.NOTSOCK if endpoint.speaks_winsock else Error.INVALID_HANDLE)
