"""Cancelling one operation, or all operations of a handle: the one place that calls CancelIoEx.

Cancelling gives nothing back. The packet brings the answer, which may still be success; until then the kernel owns the
memory.

The kernel may refuse a cancel. That costs time, but never loses an operation:

    the kernel says           what it means                           what is done
    ------------------------  --------------------------------------  ---------------------------------------------
    NOT_FOUND                 the operation was over; its packet is   nothing
                              in the port, or about to be
    INVALID_HANDLE            the owner closed the handle behind our  nothing
                              back, which ends its operations too
    anything else             a layered provider (security software)  the socket under the layers is asked. If it
                              does not pass cancels on                refuses too, an endpoint that is being closed
                                                                      closes its handle first, which ends them; a
                                                                      single operation stays until it ends by itself

A cancel that lacked memory for its call is tried again before each wait, until the call is made.

Sources: MSDN, CancelIoEx; SIO_BASE_HANDLE. libuv asks the base socket too.
"""

from typing import TYPE_CHECKING

from .._win32.constants import Error, Status
from .._win32.layers import base_handle
from ._endpoint import Endpoint
from ._operation import CANCELLING, PENDING, IoType, OverlappedEx

if TYPE_CHECKING:
    from ._proactor import Proactor

# How often an operation is cancelled under Wine; nine times were seen to be needed.
CANCELS_MAX = 100
# The longest wait while a cancel still has to be tried again: perhaps nothing else will end the operation.
ASK_AGAIN_S = 0.05
RECEIVES = frozenset({IoType.READ, IoType.READ_FROM})
_ANSWERED = frozenset({Error.NOT_FOUND, Error.INVALID_HANDLE})


class Cancels:
    """The cancels of one proactor."""

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor: Proactor = proactor
        self._kernel = proactor.kernel
        self._interrupted = proactor.interrupted
        self._unasked: list[tuple[Endpoint, OverlappedEx | None]] = []
        self._forgets = self._kernel.forgets_cancels

    def cancel(self, operation: OverlappedEx) -> None:
        """Ask the kernel to end a pending operation; does nothing for any other, or if it was asked before."""
        if operation.state is not PENDING:
            return
        if operation in self._interrupted:
            # It is not known yet whether the kernel has it. `InterruptedSubmits.settle` finds out, and then cancels.
            operation.state = CANCELLING
            return
        try:
            operation.state = CANCELLING
            if operation.io_type in RECEIVES:
                operation.endpoint.receives_cancelled += 1
            if operation.stop is not None:
                operation.stop()
                return
            self._ask(operation.endpoint, operation)
            if self._forgets:
                self._ask_again(operation)
        except BaseException:
            if operation.state is CANCELLING:
                operation.state = PENDING  # The kernel may not have been asked: let the next call ask it.
            raise

    def cancel_all(self, endpoint: Endpoint) -> bool:
        """Ask the kernel to end every operation outstanding on an endpoint. Each one's packet brings the answer.

        Returns:
            False if the kernel refuses the call.
        """
        in_kernel = False
        for operation in endpoint.operations[:]:
            if operation.stop is not None:
                self.cancel(operation)
            else:
                in_kernel = True
                operation.state = CANCELLING
        # One call for the whole handle (MSDN, CancelIoEx, lpOverlapped NULL).
        heard = not in_kernel or self._ask(endpoint, None)
        if in_kernel and self._forgets:
            for operation in endpoint.operations[:]:
                self._ask_again(operation)
        return heard

    def kernel_has(self, operation: OverlappedEx) -> bool:
        """Cancel an operation to find out whether the kernel has it. True also if the kernel refuses the cancel."""
        if self._kernel.CancelIoEx(operation.endpoint.handle, operation.address):
            return True
        return self._kernel.last_error() not in _ANSWERED

    def _ask(self, endpoint: Endpoint, operation: OverlappedEx | None) -> bool:
        """Call CancelIoEx for one operation, or for all if it is None. False if the kernel refuses."""
        try:
            return self._ask_now(endpoint, 0 if operation is None else operation.address)
        except MemoryError:
            # The operation itself and not its address, which may be another operation's at the next attempt.
            self._unasked.append((endpoint, operation))
            # Not "if this is the first": an interrupt may have come between this append and the next.
            if self.ask_unasked not in self._proactor.before_wait:
                self._proactor.before_wait.append(self.ask_unasked)
            return True

    def close(self) -> None:
        """Drop the reference to the proactor, which is closed."""
        self._proactor = None  # type: ignore[assignment]  # Breaks the cycle; no other method is called.

    def ask_unasked(self) -> None:
        """Try again the cancels that lacked memory; called before each wait."""
        for endpoint, operation in tuple(self._unasked):
            over = not endpoint.operations if operation is None else not operation.pending
            if not over and not self._ask(endpoint, operation) and endpoint.closing:
                self._proactor.end_operations(endpoint)
            # Only after the call: after an interrupt the next wait begins with it again.
            del self._unasked[0]
        if self._unasked:
            self._proactor.before_wait.append(self.ask_unasked)  # Again: the proactor removes the entry of this call.

    def limit(self, timeout: float | None) -> float | None:
        """Shorten the timeout of the next wait if a cancel still has to be tried again."""
        if not self._unasked:
            return timeout
        return ASK_AGAIN_S if timeout is None else min(timeout, ASK_AGAIN_S)

    def _ask_now(self, endpoint: Endpoint, address: int) -> bool:
        if self._kernel.CancelIoEx(endpoint.handle, address) or self._kernel.last_error() in _ANSWERED:
            return True
        return endpoint.speaks_winsock and self._ask_base(endpoint, address)

    def _ask_base(self, endpoint: Endpoint, address: int) -> bool:
        try:
            base = base_handle(self._kernel, endpoint.handle)
        except OSError:
            return False
        if base == endpoint.handle:
            return False
        return bool(self._kernel.CancelIoEx(base, address)) or self._kernel.last_error() in _ANSWERED

    def _ask_again(self, operation: OverlappedEx) -> None:
        # QUIRK(wine): a cancel that meets a TransmitFile or a send while it makes progress is lost, or answered by
        # NOT_FOUND, and the operation waits for its peer for ever. A cancelled one has its final status by now.
        for _ in range(CANCELS_MAX):
            if operation.stop is not None or operation.Internal != Status.PENDING:
                return
            self._kernel.CancelIoEx(operation.endpoint.handle, operation.address)
