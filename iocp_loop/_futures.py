"""One future per operation: for the verbs that hand out futures, and for nothing on the hot path.

Cancelling such a future asks the kernel, and the future is cancelled when the packet has answered: by then nobody
writes into the caller's buffer any more. If the packet brings data all the same, they are kept with the endpoint, and
the next receive on the same socket begins with them: nothing is lost by a time-out.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from . import _sockets
from ._operation import IoType, OverlappedEx
from ._proactor import Proactor
from ._win32.constants import Error

# Reads the result of an operation that succeeded: (operation, byte count) -> value.
Convert = Callable[[OverlappedEx, int], Any]


class OperationFuture(asyncio.Future[Any]):
    """The future of one operation: settled by its packet, whatever was asked meanwhile."""

    def __init__(self, core: Proactor, operation: OverlappedEx, convert: Convert, loop: Any) -> None:
        super().__init__(loop=loop)
        self._core = core
        self._operation = operation
        self._convert = convert
        self._cancel_message: Any = None
        self._cancel_requested = False
        self._outcome: tuple[Any, BaseException | None] | None = None
        operation.deliver = self._deliver

    @property
    def _ov(self) -> OverlappedEx:
        # asyncio.ProactorEventLoop.run_forever looks at `_ov.pending` of its self-pipe's future.
        return self._operation

    def cancel(self, msg: Any = None) -> bool:
        """Ask for the operation's end; the future is cancelled when the kernel has let go of the memory."""
        if self.done():
            return False
        # Also when it is settled and only waits to be delivered: were it finished now, its bytes would come after those
        # of the receive that follows.
        self._cancel_requested, self._cancel_message = True, msg
        self._core.cancel(self._operation)
        return True

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether an interrupt has left the result untold, so that it must be delivered again."""
        return not self.done() and operation is self._operation and not self._core.holds(operation)

    def _deliver(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        # Kept until it is told: after an interrupt it is delivered again, and must not be read twice.
        if self._outcome is None:
            self._outcome = self._read(operation, status, byte_count)
        result, error = self._outcome
        unwanted = self._cancel_requested or self.done()
        if unwanted and error is None:
            self._outcome = None, _keep_unwanted(operation, result, byte_count)
        if not self.done():
            if unwanted:
                super().cancel(self._cancel_message)
            elif error is not None:
                self.set_exception(error)
            else:
                self.set_result(result)
        operation.deliver = undelivered  # Breaks the cycle with this future.
        self._outcome = self._convert = None  # type: ignore[assignment]
        self._core.release(operation)

    def _read(self, operation: OverlappedEx, status: int, byte_count: int) -> tuple[Any, BaseException | None]:
        code = _sockets.winerror_of(operation, status)
        if code and not _means_success(operation, code):
            _discard(operation)
            return None, _sockets.error_of(operation, status)
        try:
            return self._convert(operation, byte_count), None
        except OSError as exc:
            _discard(operation)
            return None, exc


class ReadyFuture(asyncio.Future[Any]):
    """The future of what needed no operation."""

    # asyncio.ProactorEventLoop looks here on its self-pipe's future, which is one of these after leftover bytes.
    _ov = None


def _means_success(operation: OverlappedEx, code: int) -> bool:
    kind = operation.io_type
    if kind is IoType.PIPE_CONNECT:
        return code == Error.PIPE_CONNECTED  # The client was there first.
    if kind is IoType.READ and not operation.endpoint.is_socket:
        # The other end is gone, which is the end of the stream; or a message was longer than the buffer.
        return code in (Error.BROKEN_PIPE, Error.HANDLE_EOF, Error.MORE_DATA)
    return False


def _discard(operation: OverlappedEx) -> None:
    """Of a failed accept, the socket that was to be the connection."""
    if operation.io_type is IoType.ACCEPT:
        operation.keepalive[1].close()


def _keep_unwanted(operation: OverlappedEx, result: Any, byte_count: int) -> BaseException:
    """A cancelled operation succeeded all the same: nothing may be lost, and nothing left open. What it is now."""
    if operation.io_type is IoType.READ:
        operation.endpoint.leftover += bytes(operation.buffer[:byte_count])
    elif operation.io_type is IoType.READ_FROM:
        endpoint = operation.endpoint
        endpoint.datagrams = [*(endpoint.datagrams or ()), (bytes(operation.buffer[:byte_count]), result[1])]
    elif operation.io_type is IoType.ACCEPT:
        result[0].close()
    return asyncio.CancelledError()


def undelivered(operation: OverlappedEx, _status: int, _byte_count: int) -> None:
    """The sink of an operation before it has a future, and after its future is done."""
    raise AssertionError(f"{operation!r} was settled while it had no future")
