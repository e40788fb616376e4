"""Submits that an exception cut short: this module finds out later whether the kernel has the operation, and goes on.

A KeyboardInterrupt may come between any two steps of `Proactor.submit`, even between the kernel's answer and our
reading it. The operation must then neither be lost, nor be submitted twice, nor be waited for in vain. So it stays in
the pending table, and before the next wait its `Internal` field tells how far it got:

    `Internal`                what it means                            what is done
    ------------------------  ---------------------------------------  --------------------------------------------
    UNSUBMITTED               the call was never made                  it is submitted
    PENDING                   the kernel has it, or refused it (some   the thread's last error tells, or else the
                              calls write PENDING and then fail)       kernel: it cancels only what it has
    anything else             it is over; its packet is in the port,   the port is emptied; if no packet came, it is
                              unless the handle skips packets          taken back with this result

A native call (an AFD poll) does not write `Internal` until it is over, so UNSUBMITTED proves nothing there. The kernel
is asked, by cancelling the operation. If that ends a poll early, the code that wants it submits it again.

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
    """The interrupted submits of one proactor.

    Attributes:
        codes: for each, by the operation's address, the thread's last error at the interrupt.
    """

    def __init__(self, proactor: "Proactor") -> None:
        self._proactor: Proactor = proactor
        self.codes: dict[int, int] = {}

    def close(self) -> None:
        """Drop the reference to the proactor, which is closed."""
        self._proactor = None  # type: ignore[assignment]  # Breaks the cycle; no other method is called.

    def __contains__(self, operation: OverlappedEx) -> bool:
        return operation.address in self.codes

    def note(self, operation: OverlappedEx, exc: BaseException) -> None:
        """Handle an exception in `submit`: leave the operation pending, settled, or as if it was never submitted."""
        code = self._proactor.kernel.last_error()  # First, before another call can overwrite it.
        if operation.state is not PENDING:
            return  # The submit had not begun, or the operation is over.
        self.keep(operation)
        # If a kernel call raises an Exception, it comes from ctypes, before the call.
        if not isinstance(exc, Exception) or not operation.in_kernel or _status(operation) != UNSUBMITTED:
            self.codes[operation.address] = code
            if self.settle not in self._proactor.before_wait:
                self._proactor.before_wait.append(self.settle)
        elif isinstance(exc, MemoryError):
            # The status with which the kernel itself reports a lack of memory.
            self._proactor.complete(operation, Status.NO_MEMORY, 0)
        else:
            self._withdraw(operation)

    def keep(self, operation: OverlappedEx) -> None:
        """Make an operation fully pending again, whichever of the tables an interrupt left it in."""
        operation.state = PENDING
        if operation not in operation.endpoint.operations:
            operation.endpoint.operations.append(operation)
        # SAFETY: the kernel may own it, or its packet is still to be handled: it is kept as pending.
        self._proactor.pending[operation.address] = operation

    def take_back(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Finish taking an operation back, whichever step an interrupt stopped it at."""
        # SAFETY: it was ours before; this removes it from the table.
        self._proactor.pending.pop(operation.address, None)
        operation.state = SETTLED
        if operation in operation.endpoint.operations:
            operation.endpoint.operations.remove(operation)
        if not self._proactor.holds(operation):
            self._proactor.settled.append((operation, status, byte_count))

    def _withdraw(self, operation: OverlappedEx) -> None:
        """Make it as if it had never been submitted. Only if the call was not made."""
        # SAFETY: the kernel was not told of it, so it was ours all the time.
        self._proactor.pending.pop(operation.address, None)
        operation.endpoint.operations.remove(operation)
        operation.state = IDLE

    def settle(self) -> None:
        """Find out what became of each interrupted submit, and finish it."""
        for address, code in list(self.codes.items()):
            operation = self._proactor.pending.get(address)
            if operation is not None:
                self._finish(operation, code)
            # Only when it is finished: after another interrupt the next wait tries again.
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
        """Find out whether the call was made. Settles the operation if it is over and no packet will come."""
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
            # SAFETY: the kernel does not know the operation: it refused it, so it is ours again.
            self._proactor.complete(operation, status_from_winerror(code), 0)
        return True


def _status(operation: OverlappedEx) -> int:
    # The lower half is an NTSTATUS; the upper half has no meaning.
    return int(operation.Internal & 0xFFFF_FFFF)
