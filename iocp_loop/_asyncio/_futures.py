"""One future per operation, for the methods that return futures. The hot path does not use them.

Cancelling such a future asks the kernel to end the operation. The future is cancelled when the packet has come, so that
nobody writes into the caller's buffer afterwards. If the packet brings data all the same, they are kept with the
endpoint, and the next receive on that socket begins with them: a time-out loses nothing.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

from .._core._cancels import RECEIVES
from .._core._endpoint import Endpoint
from .._core._operation import PENDING, AcceptOperation, IoType, OverlappedEx
from .._core._proactor import Proactor
from .._core._shortages import status_of_closed
from .._handles._base import IoHandle, Outcome, StreamHandle, error_of, winerror_of
from .._handles._pipes import handle_of
from .._handles._shared_sockets import PerformedOperation
from .._win32.constants import Error, Status
from .._win32.memory import address_of

# Makes the future's result of an operation that succeeded: (operation, byte count) -> value.
Convert = Callable[[OverlappedEx, int], Any]


class OperationFuture(asyncio.Future[Any]):
    """The future of one operation. Only its packet settles it, even if it is cancelled.

    Args:
        core: the proactor that the operation is submitted to.
        operation: the operation, not yet submitted.
        convert: makes the future's result.
        loop: the future's loop.
        conn: the object whose handle the operation is on. It is kept alive until the operation is over; if the endpoint
            has no owner, its fileno() tells whether the handle is still open. None for a wait, which has no handle.
    """

    def __init__(self, core: Proactor, operation: OverlappedEx, convert: Convert, loop: Any, conn: Any) -> None:
        super().__init__(loop=loop)
        self._core = core
        self._conn: Any = conn
        self._operation = operation
        self._convert: Convert = convert
        self._cancel_message: Any = None
        self._cancel_requested = False
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._cancels_before = operation.endpoint.receives_cancelled
        operation.deliver = self._deliver

    @property
    def _ov(self) -> OverlappedEx:
        # asyncio.ProactorEventLoop.run_forever reads `_ov.pending` of its self-pipe's future.
        return self._operation

    def cancel(self, msg: Any = None) -> bool:
        """Ask the kernel to end the operation. The future is cancelled when the kernel has given the memory back."""
        if self.done():
            return False
        # Even if the operation is settled and only waits to be delivered: if the future were finished here, its bytes
        # would come after those of the next receive.
        self._cancel_requested, self._cancel_message = True, msg
        self._core.cancel(self._operation)
        return True

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether an interrupt ended the delivery, so that the result must be delivered again."""
        return not self.done() and operation is self._operation and not self._core.holds(operation)

    def begin(self) -> None:
        """Submit the operation."""
        self._core.submit(self._operation)

    def _deliver(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if status and self._was_begun_again(operation, status):
            return
        is_bystander = status == Status.CANCELLED and self._outcome is None and self._was_a_bystander(operation)
        if is_bystander and not self._read_unread(operation):
            self._cancels_before = operation.endpoint.receives_cancelled
            self._core.submit(operation)
        else:
            self._finish(operation, status, byte_count)

    def _was_begun_again(self, operation: OverlappedEx, status: int) -> bool:
        is_wanted = self._outcome is None and not (self._cancel_requested or self.done())
        return is_wanted and self._core.shortages.begin_again(operation, status, self._is_open)

    def _finish(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        # Kept until the future has it: after an interrupt the result is delivered again, but must not be read twice.
        if self._outcome is None:
            self._outcome = self._read(operation, status, byte_count)
        result, error = self._outcome
        unwanted = self._cancel_requested or self.done()
        if unwanted and error is None:
            self._outcome = None, self._keep_unwanted(operation, result, byte_count)
        if not self.done():
            if unwanted:
                super().cancel(self._cancel_message)
            elif error is not None:
                self.set_exception(error)
            else:
                self.set_result(result)
        operation.deliver = undelivered  # Breaks the cycle with this future.
        self._outcome = self._convert = self._conn = None  # type: ignore[assignment]
        self._core.release(operation)

    def _was_a_bystander(self, operation: OverlappedEx) -> bool:
        """Whether a receive ended because another one on the same handle was cancelled, and may be submitted again."""
        endpoint = operation.endpoint
        if self._cancel_requested or self.done() or endpoint.closing or operation.io_type not in RECEIVES:
            return False
        return endpoint.receives_cancelled != self._cancels_before and self._is_open()

    def _is_open(self) -> bool:
        """Whether the handle is still open. If it was closed, its value may belong to another handle by now."""
        endpoint = self._operation.endpoint
        if endpoint.closing or endpoint.owner is not None:
            return not endpoint.closing
        conn = self._conn
        try:
            handle: int = conn.fileno() if endpoint.speaks_winsock else handle_of(conn)
        except (OSError, TypeError, ValueError):
            return False
        return handle == endpoint.handle

    def _read_unread(self, operation: OverlappedEx) -> bool:
        """Use data that were kept for the next receive as the result of this one. False if there are none."""
        handle: Any = operation.endpoint
        size = len(operation.buffer)
        if operation.io_type is IoType.READ:
            if not handle.unread:
                return False
            data, rest = handle.unread[:size], handle.unread[size:]
            outcome = self._read(operation, Status.SUCCESS, _fill(operation, data))
            # One statement without a call, so that an interrupt finds the bytes in exactly one of the two.
            self._outcome, handle.unread = outcome, rest
            return True
        if not handle.unread_datagrams:
            return False
        (data, sender), *others = handle.unread_datagrams
        handle.set_sender(operation, sender)
        # If the datagram is longer than the buffer, the rest is cut off.
        outcome = self._read(operation, Status.SUCCESS, _fill(operation, data[:size]))
        self._outcome, handle.unread_datagrams = outcome, others
        return True

    def _keep_unwanted(self, operation: OverlappedEx, result: Any, byte_count: int) -> BaseException:
        """Keep the data, or close the socket, of a cancelled operation that succeeded. Returns a CancelledError."""
        if operation.io_type is IoType.ACCEPT:
            result[0].close()
        elif operation.io_type in RECEIVES:
            data = bytes(operation.buffer[:byte_count])
            handle = operation.endpoint
            assert isinstance(handle, IoHandle)
            if operation.io_type is IoType.READ:
                keep_bytes(self._core, handle, data)
            else:
                keep_datagram(self._core, handle, data, result[1])
        return asyncio.CancelledError()

    def _read(self, operation: OverlappedEx, status: int, byte_count: int) -> tuple[Any, BaseException | None]:
        if status and not _means_success(operation, status, byte_count):
            _discard(operation)
            return None, error_of(operation, status)
        try:
            return self._convert(operation, byte_count), None
        except OSError as exc:
            _discard(operation)
            return None, exc


class SendFuture(OperationFuture):
    """The future of a whole buffer, which is sent in pieces of at most `limit` bytes.

    The pieces of several buffers do not alternate: each future waits in `IoHandle.sends` until those before it are
    over.

    Args:
        core, operation, loop, conn: as for `OperationFuture`; the operation comes from `send_operation`, without a
            vector.
        handle: the operation's endpoint.
        data: the bytes to send.
        sent_before: how many bytes the socket's own call sent before; the result includes them.
        limit: the most bytes in one piece.
    """

    def __init__(
        self,
        core: Proactor,
        operation: OverlappedEx,
        loop: Any,
        conn: Any,
        handle: StreamHandle,
        data: bytes,
        sent_before: int,
        limit: int,
    ) -> None:
        super().__init__(core, operation, lambda _operation, _count: sent_before + self._sent, loop, conn)
        self._handle = handle
        self._data = data
        self._sent = 0
        self._limit = limit
        self._is_out = False  # a piece was submitted, and its result was not counted yet

    def begin(self) -> None:
        """Send, as soon as the earlier sends on the same handle are over."""
        handle = self._handle
        handle.sends = [*(handle.sends or ()), self]
        if handle.sends[0] is self:
            self._submit_piece()

    def begin_next(self) -> None:
        """Start, because the earlier sends are over. A second call does nothing."""
        if not self._core.holds(self._operation):
            self._submit_piece()

    def _submit_piece(self) -> None:
        if self._is_open():
            self._handle.set_send_vector(self._operation, [self._data], self._sent, self._limit)
            try:
                self._is_out = True
                self._core.submit(self._operation)
            except BaseException:
                self._is_out = self._core.holds(self._operation)  # If not, the loop delivers the last result again.
                raise
        else:
            self._core.settle_inline(self._operation, status_of_closed(self._handle), 0)

    def cancel(self, msg: Any = None) -> bool:
        """Ask the kernel to end the send. If it has not begun, it is over at once."""
        waits = self._handle.sends
        if self.done() or not waits or waits[0] is self or self not in waits:
            return super().cancel(msg)
        waits.remove(self)
        self._core.settle_inline(self._operation, Status.CANCELLED, 0)
        return super().cancel(msg)

    def _deliver(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self._is_out and not status:
            # One statement without a call, so that a result which is delivered again after an interrupt counts once.
            self._sent, self._is_out = self._sent + byte_count, False
        if status and self._was_begun_again(operation, status):
            return
        if not status and byte_count and not self._cancel_requested and self._sent < len(self._data):
            self._submit_piece()
            return
        self._let_the_next_begin()
        self._finish(operation, status, byte_count)

    def _let_the_next_begin(self) -> None:
        waits = self._handle.sends
        if not waits or waits[0] is not self:
            return
        if len(waits) > 1:
            waits[1].begin_next()
        # Last, so that an interrupt before this line finds the next one still waiting.
        self._handle.sends = waits[1:] or None


class ReadyFuture(asyncio.Future[Any]):
    """A future whose result needed no operation."""

    # asyncio.ProactorEventLoop reads this of its self-pipe's future, which is a ReadyFuture after unread bytes.
    _ov = None


def _means_success(operation: OverlappedEx, status: int, byte_count: int) -> bool:
    handle = operation.endpoint
    if operation.io_type is IoType.PIPE_CONNECT:
        return winerror_of(operation, status) == Error.PIPE_CONNECTED  # The client was there first.
    if operation.io_type is IoType.READ and isinstance(handle, StreamHandle):
        # The end of the stream, or a message that was longer than the buffer, counts as success.
        return handle.receive_outcome(operation, status, byte_count) is not Outcome.FAILED
    return winerror_of(operation, status) == Error.SUCCESS


def _discard(operation: OverlappedEx) -> None:
    """Close the socket that a failed accept made in advance."""
    if isinstance(operation, (AcceptOperation, PerformedOperation)) and operation.arriving is not None:
        operation.arriving.close()


def keep_bytes(core: Proactor, handle: IoHandle, data: bytes, *, first: bool = False) -> None:
    """Keep received bytes that nobody took. The next receive begins with them, or a waiting one is ended for them.

    Args:
        core: the handle's proactor.
        handle: the handle that they were received from.
        data: the bytes.
        first: they came before the bytes that are kept already.
    """
    handle.unread = data + handle.unread if first else handle.unread + data
    _wake_one(core, handle, IoType.READ)


def keep_datagram(core: Proactor, handle: IoHandle, data: bytes, sender: Any, *, first: bool = False) -> None:
    """Keep a received datagram that nobody took, for the next receive or a waiting one."""
    kept = handle.unread_datagrams or []
    handle.unread_datagrams = [(data, sender), *kept] if first else [*kept, (data, sender)]
    _wake_one(core, handle, IoType.READ_FROM)


def _wake_one(core: Proactor, endpoint: Endpoint, io_type: IoType) -> None:
    """Cancel one receive that waits in the kernel; its `OperationFuture` then delivers what is kept here."""
    for operation in endpoint.operations:
        if operation.io_type is io_type and operation.state is PENDING:
            core.cancel(operation)
            return


def _fill(operation: OverlappedEx, data: bytes) -> int:
    # SAFETY: its packet was dequeued, so the buffer is ours, and no message refers to it yet.
    ctypes.memmove(address_of(operation.buffer), data, len(data))
    return len(data)


def undelivered(operation: OverlappedEx, _status: int, _byte_count: int) -> None:
    """The `deliver` of an operation that has no future yet, or whose future is done."""
    raise AssertionError(f"{operation!r} was settled while it had no future")
