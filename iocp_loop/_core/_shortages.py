"""Operations that the kernel had no memory for: begun again after a while, and pending until then.

WSAENOBUFS and its kin say that the system is short of non-paged memory or of pages that may be locked (MSDN, Windows
Sockets Error Codes), and nothing about the handle: what failed may succeed in a moment. It is the would-block of
operations, and no reason to end a connection. So whoever is told of it asks here whether the operation is begun again.

While it waits here, the kernel does not know it. It stands in the proactor's tables all the same, so that it is
cancelled, and its endpoint closed, like every other.

    refused in a row     waits
    the first time       1 ms
    each further time    twice as long, at most 1 s
    more than 70 times   not at all: it fails with what the kernel says, after some 60 s

Refused at once or later, by a packet, is the same. In a row is what no success came between: whoever submits the
operation again has had one.

Only what can be repeated without harm is: receiving, sending, polling. A connect that finds no buffers may have run out
of ports, and an accept has its listener to look after it.
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

# Seconds; and how often the kernel may refuse in a row: 10 times with growing pauses, 60 times after the longest.
PAUSE_S = 0.001
PAUSE_MAX_S = 1.0
REFUSALS_MAX = 70
REPEATABLE = frozenset(
    {IoType.READ, IoType.WRITE, IoType.READ_FROM, IoType.WRITE_TO, IoType.TRANSMIT_FILE, IoType.POLL}
)


@dataclass(frozen=True, slots=True)
class _Retry:
    """Of an operation that waits here.

    Attributes:
        operation: itself.
        due: when it is begun again, on the kernel's clock.
        is_open: whether its handle is still what it was.
        stop: its own, which is another while it waits.
    """

    operation: OverlappedEx
    due: float
    is_open: Callable[[], bool]
    stop: Callable[[], None] | None


class _Again:
    """`start` of an operation that was begun again, until it is submitted by whoever it belongs to: the row ends there.

    It stands in the operation's own place for it, so that success costs nobody a look.
    """

    __slots__ = ("_operation", "start")

    def __init__(self, operation: OverlappedEx) -> None:
        self._operation = weakref.ref(operation)  # Which has this object: no cycle.
        self.start = operation.start

    def __call__(self, *args: Any) -> int:
        if (operation := self._operation()) is not None:
            operation.start = self.start
        return self.start(*args)


class Shortages:
    """Those of one proactor. They are begun again by its `select`."""

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor = proactor
        self._clock = proactor.kernel.monotonic
        self._waiting: dict[int, _Retry] = {}  # by address

    def close(self) -> None:
        """The proactor is closed, and lets this object go."""
        self._waiting.clear()
        self._proactor = None  # type: ignore[assignment]  # Nobody asks it any more.

    def begin_again(self, operation: OverlappedEx, status: int, is_open: Callable[[], bool] = lambda: True) -> bool:
        """Whether a settled operation failed for want of memory, and is pending again: its result is still to come.

        Args:
            operation: whose result is being delivered, without a change to what it holds so far.
            status: its result.
            is_open: asked when it is begun again, of a handle that somebody else may close meanwhile.
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
        # Each step may be done twice: after an interrupt the result is delivered again.
        waiting = self._waiting.get(operation.address)
        stop = operation.stop if waiting is None else waiting.stop
        self._waiting[operation.address] = _Retry(operation, self._clock() + pause, is_open, stop)
        if self.begin_due not in self._proactor.before_wait:
            self._proactor.before_wait.append(self.begin_due)
        operation.stop = partial(self._give_up, operation)
        # SAFETY: ours all the time, although it stands where the kernel's do.
        self._proactor.pending[operation.address] = operation
        if operation not in endpoint.operations:
            endpoint.operations.append(operation)
        operation.state = PENDING
        return True

    def begin_due(self) -> None:
        """Begin those whose time has come; before each wait."""
        now = self._clock()
        for retry in [retry for retry in self._waiting.values() if retry.due <= now]:
            self._begin(retry)
        if self._waiting:
            self._proactor.before_wait.append(self.begin_due)  # Once more: this call of it is struck off.

    def limit(self, timeout: float | None) -> float | None:
        """The time of the next wait: until the first of them is due, if that is sooner. Below 0 where it was due."""
        if not self._waiting:
            return timeout
        pause = min(retry.due for retry in self._waiting.values()) - self._clock()
        return pause if timeout is None else min(timeout, pause)

    def _begin(self, retry: _Retry) -> None:
        proactor, operation = self._proactor, retry.operation
        try:
            self._leave(operation, retry.stop)
            if operation.endpoint.closing:
                # An interrupt has left it here while its endpoint was closed.
                proactor.settle_inline(operation, Status.CANCELLED, 0)
            elif not retry.is_open():
                proactor.settle_inline(operation, status_of_closed(operation.endpoint), 0)
            else:
                proactor.submit(operation)
                operation.start = _Again(operation)
            del self._waiting[operation.address]
        except BaseException:
            # An interrupt: unless it is in the tables by now, the next wait begins it again.
            if proactor.holds(operation):
                self._waiting.pop(operation.address, None)
            raise

    def _leave(self, operation: OverlappedEx, stop: Callable[[], None] | None) -> None:
        """Take it out of the tables. Each step may be done twice."""
        operation.stop = stop
        self._proactor.pending.pop(operation.address, None)
        if operation in operation.endpoint.operations:
            operation.endpoint.operations.remove(operation)
        operation.state = SETTLED

    def _give_up(self, operation: OverlappedEx) -> None:
        """`stop` of an operation that waits here: nobody but us has it."""
        if (retry := self._waiting.pop(operation.address, None)) is not None:
            operation.stop = retry.stop
        self._proactor.complete(operation, Status.CANCELLED, 0)


def _end_row(operation: OverlappedEx) -> None:
    if isinstance(operation.start, _Again):
        operation.start = operation.start.start


def status_of_closed(endpoint: "Endpoint") -> int:
    """The status of an operation whose handle was closed by its owner before it was begun again."""
    return status_from_winerror(WsaError.NOTSOCK if endpoint.speaks_winsock else Error.INVALID_HANDLE)
