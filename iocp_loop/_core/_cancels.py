"""How the kernel is asked for the end of an operation, or of all on a handle: the one place that calls CancelIoEx.

Cancelling gives nothing back. The packet answers, and it may still bring success; until then the memory is the
kernel's.

What is asked may be refused. That costs time, and never an operation:

    the kernel says           what it means                           what is done
    ------------------------  --------------------------------------  ---------------------------------------------
    NOT_FOUND                 it was over before; its packet is in    nothing
                              the port, or about to be
    INVALID_HANDLE            the owner closed the handle behind our  nothing
                              back, which ends its operations too
    anything else             a layered provider (security software)  the socket under the layers is asked. If it
                              does not pass cancels on                refuses too: an endpoint that is being closed
                                                                      closes its handle first, which ends them; a
                                                                      single operation stays until it ends by itself

A question for which memory was missing is asked again before each wait, until it is asked.

Sources: MSDN, CancelIoEx; SIO_BASE_HANDLE. libuv asks the base socket too.
"""

from typing import TYPE_CHECKING

from .._win32.constants import Error, Status
from .._win32.layers import base_handle
from ._endpoint import Endpoint
from ._operation import CANCELLING, PENDING, IoType, OverlappedEx

if TYPE_CHECKING:
    from ._proactor import Proactor

# How often Wine is asked for the end of one operation; nine times were seen to be needed.
CANCELS_MAX = 100
# How long a wait may take while something could not be asked: its end may depend on nothing else.
ASK_AGAIN_S = 0.05
RECEIVES = frozenset({IoType.READ, IoType.READ_FROM})
_ANSWERED = frozenset({Error.NOT_FOUND, Error.INVALID_HANDLE})


class Cancels:
    """Those of one proactor."""

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor: Proactor = proactor
        self._kernel = proactor.kernel
        self._interrupted = proactor.interrupted
        self._unasked: list[tuple[Endpoint, OverlappedEx | None]] = []
        self._forgets = self._kernel.forgets_cancels

    def cancel(self, operation: OverlappedEx) -> None:
        """As `Proactor.cancel`."""
        if operation.state is not PENDING:
            return
        if operation in self._interrupted:
            # Whether there is anything to cancel is not known yet; whoever finds out cancels it.
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
                operation.state = PENDING  # It may not have been asked; then whoever asks next does it.
            raise

    def cancel_all(self, endpoint: Endpoint) -> bool:
        """Ask for the end of every operation outstanding on an endpoint. Their packets answer, each for itself.

        Returns:
            False if the kernel refuses to end any of them.
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
        """Whether the kernel has an operation, which is asked by cancelling it. True where the question is refused."""
        if self._kernel.CancelIoEx(operation.endpoint.handle, operation.address):
            return True
        return self._kernel.last_error() not in _ANSWERED

    def _ask(self, endpoint: Endpoint, operation: OverlappedEx | None) -> bool:
        """CancelIoEx, of one operation or (None) of all; False if it is refused."""
        try:
            return self._ask_now(endpoint, 0 if operation is None else operation.address)
        except MemoryError:
            # Kept itself, and not its address: that may be another one's by then.
            self._unasked.append((endpoint, operation))
            if self.ask_unasked not in self._proactor.before_wait:  # Not "the first one": an interrupt may end here.
                self._proactor.before_wait.append(self.ask_unasked)
            return True

    def close(self) -> None:
        """The proactor is closed, and lets this object go: nothing more is asked of the kernel."""
        self._proactor = None  # type: ignore[assignment]  # Nobody asks it any more.

    def ask_unasked(self) -> None:
        """Ask once more what could not be asked for want of memory; before each wait."""
        for endpoint, operation in tuple(self._unasked):
            over = not endpoint.operations if operation is None else not operation.pending
            if not over and not self._ask(endpoint, operation) and endpoint.closing:
                self._proactor.end_operations(endpoint)
            # Not before it was asked: after an interrupt the next wait begins with it again.
            del self._unasked[0]
        if self._unasked:
            self._proactor.before_wait.append(self.ask_unasked)  # Once more: this call of it is struck off.

    def limit(self, timeout: float | None) -> float | None:
        """The time of the next wait: a short one if something is still to be asked."""
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
        # QUIRK(wine): a cancel that meets a TransmitFile or a send while it makes progress is forgotten, or answered
        # by NOT_FOUND, and the operation waits for its peer for ever. One that was heard has its final status by now.
        for _ in range(CANCELS_MAX):
            if operation.stop is not None or operation.Internal != Status.PENDING:
                return
            self._kernel.CancelIoEx(operation.endpoint.handle, operation.address)
