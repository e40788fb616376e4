"""Submits that an exception has cut short: whether the kernel has the operation is found out later, and it goes on.

A KeyboardInterrupt may come between any two steps of `Proactor.submit`, also between the kernel's answer and our
reading it. Then the operation must neither be lost, nor be submitted twice, nor be waited for in vain. So it stays in
the pending table, and before the next wait it is asked how far it got:

    what `Internal` says      what it means                            what is done
    ------------------------  ---------------------------------------  --------------------------------------------
    UNSUBMITTED               the call was never made                  it is submitted now
    PENDING                   it is in the kernel, or was refused      the thread's last error says which, else the
                              (some calls write it and fail then)      kernel: it cancels only what it has
    anything else             it is over; its packet is in the port,   the port is emptied; if no packet came, it is
                              unless the handle skips packets          taken back with this result

A native call (a poll) leaves the block alone until it is over, so UNSUBMITTED is not the last word there: the kernel is
asked, by cancelling. A poll that ends early is asked again by whoever wants it.

Operations that the kernel never sees have a `start` that may be called again.

Sources: MSDN, OVERLAPPED (Internal); CancelIoEx (ERROR_NOT_FOUND).
"""

from typing import TYPE_CHECKING

from .._win32.constants import Error, Status
from .._win32.errors import status_from_winerror
from ._operation import CANCELLING, IDLE, PENDING, SETTLED, UNSUBMITTED, OverlappedEx

if TYPE_CHECKING:
    from ._proactor import Proactor


class InterruptedSubmits:
    """Those of one proactor.

    Attributes:
        codes: the thread's last error when each was interrupted, by address.
    """

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor: Proactor = proactor
        self.codes: dict[int, int] = {}

    def close(self) -> None:
        """The proactor is closed, and lets this object go: nothing more is asked of the kernel."""
        self._proactor = None  # type: ignore[assignment]  # Nobody asks it any more.

    def __contains__(self, operation: OverlappedEx) -> bool:
        return operation.address in self.codes

    def note(self, operation: OverlappedEx, exc: BaseException) -> None:
        """`submit` raised. Afterwards the operation is pending or settled, or as if it had not been submitted."""
        code = self._proactor.kernel.last_error()  # Before anything else can set another.
        if operation.state is not PENDING:
            return  # Not begun, or over.
        self.keep(operation)
        # An Exception out of a call of the kernel's comes from ctypes, before the call.
        if not isinstance(exc, Exception) or not operation.in_kernel or _status(operation) != UNSUBMITTED:
            self.codes[operation.address] = code
            if self.settle not in self._proactor.before_wait:
                self._proactor.before_wait.append(self.settle)
        elif isinstance(exc, MemoryError):
            # As the kernel itself would say it.
            self._proactor.complete(operation, Status.NO_MEMORY, 0)
        else:
            self._withdraw(operation)

    def keep(self, operation: OverlappedEx) -> None:
        """Put an operation back among the pending ones, where an interrupt has left it in between."""
        operation.state = PENDING
        if operation not in operation.endpoint.operations:
            operation.endpoint.operations.append(operation)
        # SAFETY: the kernel may own it, or its packet is still to be dealt with: kept as if it were pending.
        self._proactor.pending[operation.address] = operation

    def take_back(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Finish taking an operation back, however far an interrupt has let it come."""
        # SAFETY: it was ours before; its place in the table goes with this.
        self._proactor.pending.pop(operation.address, None)
        operation.state = SETTLED
        if operation in operation.endpoint.operations:
            operation.endpoint.operations.remove(operation)
        if not self._proactor.holds(operation):
            self._proactor.settled.append((operation, status, byte_count))

    def _withdraw(self, operation: OverlappedEx) -> None:
        """As if it had never been submitted; only where no call was made."""
        # SAFETY: the kernel has not heard of it: ours all the time.
        self._proactor.pending.pop(operation.address, None)
        operation.endpoint.operations.remove(operation)
        operation.state = IDLE

    def settle(self) -> None:
        """Find out what became of them, and finish it."""
        for address, code in list(self.codes.items()):
            operation = self._proactor.pending.get(address)
            if operation is not None:
                self._finish(operation, code)
            # Not before it is done: after another interrupt the next wait begins it again.
            self.codes.pop(address, None)

    def _finish(self, operation: OverlappedEx, code: int) -> None:
        cancelled = operation.state is CANCELLING or operation.endpoint.closing
        if not operation.in_kernel:
            self._start_again(operation)
        elif not self._was_called(operation, code):
            if not cancelled:
                self._withdraw(operation)
                self._proactor.submit(operation)
            else:
                self._proactor.complete(operation, Status.CANCELLED, 0)
        if cancelled and operation.pending:
            operation.state = PENDING
            self.codes.pop(operation.address, None)
            self._proactor.cancel(operation)

    def _start_again(self, operation: OverlappedEx) -> None:
        try:
            answer = operation.start(*operation.args)
        except MemoryError:
            answer = Status.NO_MEMORY
        if answer != Status.PENDING and operation.pending:
            self._proactor.complete(operation, answer, operation.InternalHigh)

    def _was_called(self, operation: OverlappedEx, code: int) -> bool:
        """Whether the call was made. If it is over, and no packet will come, the operation is settled by it."""
        status, kernel_has = _status(operation), self._proactor.cancels.kernel_has
        if status == Status.PENDING and code == Error.IO_PENDING:
            return True
        if status == UNSUBMITTED:
            if not operation.answers_status:
                return False
            if kernel_has(operation):
                return True
        while operation.pending and self._proactor.poll(0):
            pass
        if not operation.pending:
            return True
        if status == UNSUBMITTED:
            return False
        if status != Status.PENDING:
            # SAFETY: finished, and no packet came: it is ours again.
            self._proactor.complete(operation, status, operation.InternalHigh)
        elif not kernel_has(operation):
            # SAFETY: the kernel does not know it: refused, and ours again.
            self._proactor.complete(operation, status_from_winerror(code), 0)
        return True


def _status(operation: OverlappedEx) -> int:
    # An NTSTATUS is the lower half; the upper one means nothing.
    return int(operation.Internal & 0xFFFF_FFFF)
