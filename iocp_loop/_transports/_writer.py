"""The writing half of a stream transport.

    IDLE      nothing in flight: a write is tried at once by the C call of the socket; what that does not take is queued
    FLUSHING  one overlapped send gathers the queue; writes join the queue, and count for flow control at once
    CORKED    writes are gathered, and sent together when the turn ends, or when they have become much

A turn's first write goes out at once, so that an answer waits for nobody; the second and later ones are gathered, so
that a program that writes in crumbs pays one kernel call per turn and not one per crumb. A connection that was seen to
do so (head and body of an HTTP answer, say) has its first write gathered too, until a turn brings only one. What is
gathered was not refused by the kernel yet, and is no reason to pause the protocol.

`_can_send` is true in IDLE only, and never while all writes are gathered, once end of file was written, the transport
is closing or a file is being sent: the hot path tests one flag.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import _asyncio_private as private
from .._endpoint import Endpoint
from .._operation import GATHER_MAX, OverlappedEx
from .._sockets import error_of
from ._flow import HIGH_WATER_DEFAULT, FlowControl
from ._reader import ignore

if TYPE_CHECKING:
    from ._stream import StreamTransport

# What is gathered during a turn is sent at once when it has become this much; what is this large, without gathering.
CORKED_SIZE_MAX = 384 * 1024
# Up to here, new memory is as cheap to join pieces in as what the loop keeps for that (docs/tried.md).
JOIN_MAX = 64 * 1024
_JUST_BYTES = frozenset({bytes})


class Writer:
    """Sends for one transport; `verbs` as for `Reader`.

    Attributes:
        queued_size: bytes accepted and not yet sent, those in flight included.
        flow: the water marks.
        eof_written: nothing more is accepted; the end of file follows the queue.
        transport: whose half this is; for reports, too.
    """

    __slots__ = (
        "_can_send",
        "_closing",
        "_cork_limit",
        "_corked",
        "_empty_waiter",
        "_endpoint",
        "_gathers",
        "_last_turn",
        "_loop",
        "_operation",
        "_proactor",
        "_queue",
        "_refused_writes",
        "_send_now",
        "_skip",
        "_verbs",
        "eof_written",
        "flow",
        "queued_size",
        "transport",
    )

    def __init__(
        self, transport: "StreamTransport", endpoint: Endpoint, verbs: ModuleType, send_now: Callable[[Any], int]
    ) -> None:
        self.transport = transport
        self._endpoint = endpoint
        self._proactor = transport.loop.proactor
        self._verbs = verbs
        self._send_now = send_now
        self._can_send = True
        self._closing = self._corked = self.eof_written = False
        self._cork_limit = 0  # bytes: below this, a write has only to be added to those gathered
        self._gathers = False  # also the first write of a turn: the last ones had company
        self._loop = transport.loop
        self._last_turn = -1  # the one that sent last
        self._refused_writes = 0
        self._queue: deque[bytes] | None = None
        self._skip = 0  # of the queue's first chunk, bytes already sent
        self.queued_size = 0
        self._operation: Any = None
        self._empty_waiter: asyncio.Future[None] | None = None
        self.flow = FlowControl(transport)

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send now what the kernel takes without waiting; queue the rest."""
        if type(data) is not bytes:
            data = as_bytes_like(data)
        if not self._can_send or not data:
            size = self.queued_size + len(data)
            if size < self._cork_limit and data:
                # One of many: _write_later() would find nothing else to do.
                self._queue.append(bytes(data))  # type: ignore[union-attr]
                self.queued_size = size
            else:
                self._write_later(data)
            return
        turn = self._loop.turn
        if turn == self._last_turn and len(data) < CORKED_SIZE_MAX and self._endpoint.is_socket:
            self._gathers = True
            self._enqueue(bytes(data))
            self._cork()
            self.flow.grown(self.queued_size)
            return
        self._last_turn = turn
        try:
            sent = self._send_now(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self.transport.fatal_error(exc, "Fatal write error on transport")
            return
        if sent != len(data):
            # A copy, unless nobody can change it: the caller may reuse its buffer as soon as this returns.
            self._enqueue(bytes(memoryview(data)[sent:]) if sent or type(data) is not bytes else data)
            self._flush()
            self.flow.grown(self.queued_size)

    def writelines(self, list_of_data: Any) -> None:
        chunks = list(list_of_data)
        if not _JUST_BYTES.issuperset(map(type, chunks)):
            chunks = [bytes(as_bytes_like(data)) for data in chunks]
        size = sum(map(len, chunks))
        if self.queued_size + size < self._cork_limit:
            self._queue.extend(chunks)  # type: ignore[union-attr]
            self.queued_size += size
        elif size <= JOIN_MAX or not self._can_send:
            self.write(b"".join(chunks))
        else:
            self._queue = deque(filter(None, chunks))
            self.queued_size = size
            self._can_send = False
            if size <= CORKED_SIZE_MAX and self._endpoint.is_socket:
                # As if it had been gathered during the turn that ends now.
                self._last_turn = self._loop.turn
                self._corked = True
                self.uncork()
            else:
                self._flush()
            self.flow.grown(self.queued_size)

    def _write_later(self, data: bytes | bytearray | memoryview) -> None:
        if self.eof_written:
            raise RuntimeError("write_eof() already called")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not data:
            return
        if self._closing:
            self._refused_writes += 1
            if self._refused_writes >= private.LOG_THRESHOLD:
                private.logger.warning("socket.send() raised exception.")
            return
        if self._corked and self.queued_size + len(data) > CORKED_SIZE_MAX:
            self.uncork()
            if self._can_send or self._closing:
                self.write(data)
                return
        is_first = not self._queue
        self._enqueue(bytes(data))
        if is_first and self._gathers:
            self._cork()
        if self._corked and self.queued_size >= CORKED_SIZE_MAX:
            # Before the protocol is asked to pause: what the kernel takes is no reason to, and resume_writing() must
            # not be called from inside a write.
            self.uncork()
        self.flow.grown(self.queued_size)

    def _cork(self) -> None:
        self._corked = True
        # What waits for the end of the turn only was not refused by the kernel, and is no reason to pause; but who has
        # set a lower mark than the ordinary one wants to be asked.
        self._cork_limit = CORKED_SIZE_MAX if self.flow.high >= HIGH_WATER_DEFAULT else self.flow.high
        self._loop.corked.append(self)

    def uncork(self) -> None:
        """Send together what was gathered; the loop calls this at the end of the turn."""
        queue = self._queue
        if not self._corked or queue is None:
            # Sent already, because it had become much; or aborted meanwhile.
            return
        self._corked = False
        self._cork_limit = 0
        try:
            if len(queue) == 1:
                # Alone in its turn: nothing is gained by letting the next one wait.
                self._gathers = self._last_turn == self._loop.turn
                sent = self._send_now(queue[0])
            else:
                sent = self._send_joined()
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self.transport.fatal_error(exc, "Fatal write error on transport")
            return
        self._after_sending(sent)

    def _send_joined(self) -> int:
        """Send all of the queue in one call; what that does not take is one piece from now on. 0: all is forgotten."""
        queue: Any = self._queue
        with self._loop.join_buffer.join(queue) as data:
            try:
                sent = self._send_now(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            queue.clear()
            if sent < len(data):
                queue.append(bytes(data[sent:]))
            self.queued_size -= sent
            return 0

    def _enqueue(self, data: bytes) -> None:
        """Queue bytes that nobody else can change."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self.queued_size += len(data)
        self._can_send = False

    def _flush(self) -> None:
        """Gather what is queued into one overlapped send. Nothing is in flight."""
        operation = self._operation
        if operation is None:
            operation = self._verbs.send_operation(self._proactor, self._endpoint, self.on_sent)
            operation.context = self.transport.context
            self._operation = operation
        queue = self._queue
        assert queue is not None
        chunks = list(queue) if len(queue) <= GATHER_MAX else [queue[i] for i in range(GATHER_MAX)]
        self._verbs.set_send_vector(operation, chunks, self._skip)
        self._proactor.submit(operation)

    def on_sent(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self._queue is None:
            # Aborted meanwhile: what was queued is forgotten, and nobody waits for this.
            return
        operation.buffer = None
        if status:
            self.transport.fatal_error(error_of(operation, status), "Fatal write error on transport")
            return
        self._after_sending(byte_count)

    def _after_sending(self, byte_count: int) -> None:
        self._forget_sent(byte_count)
        self.flow.shrunk(self.queued_size)
        # resume_writing() may have written more, or aborted.
        if self._corked:
            return
        if self._queue:
            self._flush()
        elif self._queue is not None:
            self._drained()

    def _forget_sent(self, byte_count: int) -> None:
        # An overlapped send on a stream takes all or fails (MSDN, WSASend); if it ever takes less, go on from there.
        self.queued_size -= byte_count
        queue = self._queue
        assert queue is not None
        done = self._skip + byte_count
        while queue and done >= len(queue[0]):
            done -= len(queue.popleft())
        self._skip = done

    def _drained(self) -> None:
        """The queue is empty: do what waited for that."""
        if self._empty_waiter is not None:
            private.set_result_unless_cancelled(self._empty_waiter, None)
        if self.eof_written:
            self.transport.shutdown_writing()
        if self._closing:
            self.transport.close_endpoint(None)
        else:
            self._can_send = not (self.eof_written or self._gathers) and self._empty_waiter is None

    def _accept_nothing(self) -> None:
        """From now on each write comes to `_write_later`, which knows why."""
        self._can_send = False
        self._cork_limit = 0

    def set_limits(self, high: int | None, low: int | None) -> None:
        """The water marks, as asyncio.WriteTransport.set_write_buffer_limits."""
        self.flow.set_limits(high, low)
        self._cork_limit = 0
        self.flow.grown(self.queued_size)

    # -- ending ------------------------------------------------------------------------------------------------

    def write_eof(self) -> None:
        """Accept nothing more, and say so to the peer once the queue is out."""
        if self._closing or self.eof_written:
            return
        self.eof_written = True
        self._accept_nothing()
        if not self.queued_size:
            self.transport.shutdown_writing()

    def finish(self) -> bool:
        """Accept nothing more. True if there is nothing to wait for; else `close_endpoint` follows the last byte."""
        self._closing = True
        self._accept_nothing()
        return not self.queued_size

    def abandon(self, exc: BaseException | None) -> None:
        """Forget what waits. What is in flight stays with its operation until its packet has come."""
        self._closing = True
        self._accept_nothing()
        self._queue, self.queued_size, self._skip = None, 0, 0
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_exception(exc or ConnectionAbortedError("the transport was aborted"))

    def release(self) -> None:
        """Give the memory back; the endpoint is closed, so nothing is outstanding."""
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.deliver = ignore  # Breaks the cycle with this writer.
            self._proactor.release(operation)
        # As in the reader. Nothing asks for them any more: a closed writer accepts nothing.
        self.transport = None  # type: ignore[assignment]
        self.flow.release()

    # -- sending a file: the loop's business, between these two -------------------------------------------------

    def make_empty_waiter(self) -> "asyncio.Future[None]":
        """Refuse writes from now on; the future is done when all earlier ones have gone out."""
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._accept_nothing()
        self._empty_waiter = self.transport.loop.create_future()
        if not self.queued_size:
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def reset_empty_waiter(self) -> None:
        """Accept writes again."""
        self._empty_waiter = None
        self._can_send = not (self.queued_size or self.eof_written or self._closing or self._gathers)


def as_bytes_like(data: Any) -> Any:
    """bytes, bytearray, or a memoryview of single bytes."""
    if isinstance(data, bytes | bytearray):
        return data
    if isinstance(data, memoryview):
        return data if data.format == "B" and data.contiguous and data.ndim == 1 else data.tobytes()
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
