"""The writing half of a stream transport.

`_writing` has its states and the transitions between them.

Direct and gathered writes
==========================
The first write of a turn goes out at once, so that an answer waits for nobody. Later writes of that turn are gathered
and sent together, so that a program that writes in crumbs pays one kernel call per turn and not one per crumb; a write
that is large by itself is not gathered. If a connection was seen to write several times per turn (head and body of an
HTTP answer, for example), its first write is gathered too, until a turn brings only one.

Gathered bytes were not refused by the kernel, so they are no reason to pause the protocol. But a program that set its
own high-water mark expects `pause_writing` at that mark, so gathered bytes count towards it.

When the gathered bytes reach a limit, they are sent before the turn ends. For a peer that was seen to read the limit is
CORKED_SIZE_MAX: bytes that the kernel had refused went out within FAST_S, or the kernel took more than it could have
kept itself (PROOF_SIZE). For any other peer it is CORKED_SIZE_MIN, because the peer may never read, and what was
gathered for it would stay with us.

One turn sends no more than TURN_SIZE_MAX in this way, or as much work in crumbs (PIECE_SIZE_MIN). Then writes wait for
the turn's end, and the protocol is paused when the limit is reached. So a program that writes and drains lets others
run, however much the kernel takes. While no other callback is queued, large pieces count for less (ALONE_FACTOR).

If no turn of ours runs, nothing is gathered, because nobody knows when the other turn ends, or whether the loop runs
again at all.

Who owns the bytes
==================
A piece belongs to the queue until it is known to be sent. The pieces are bytes objects, which nobody can change; data
of other types are copied, because the caller may reuse its buffer as soon as `write` returns. In FLUSHING the kernel
reads the pieces where they are; the operation keeps them alive until its packet, even if `abandon` clears the queue.
There is only one operation, so the order of the bytes is that of the writes.

No callback of the program runs in the middle of a method here: pause_writing() is the last step of a write, and
resume_writing() the last of a packet's delivery or of a turn's end. Each may write, close, abort or raise.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._operation import SEND_MAX, OverlappedEx, ignore
from .._handles._base import StreamHandle, error_of
from .._win32.errors import is_shortage
from ._connection import Connection
from ._flow import HIGH_WATER_DEFAULT, FlowControl
from ._send_queue import SendQueue, as_bytes_like
from ._writing import CLOSING, CORKED, DIRECT, EMPTY, EOF, FLUSHING, GATHERING, LOST, NONE, SENDFILE, SHUT, Refusal

# The most bytes that are gathered and joined before they are sent: for a peer that was seen to read, and for any other.
CORKED_SIZE_MAX = 384 * 1024
CORKED_SIZE_MIN = HIGH_WATER_DEFAULT
# The most bytes that a turn sends before writes wait for its end: one full send to a peer that was seen to read, which
# another follows at the turn's end. A piece counts as PIECE_SIZE_MIN at least: a program that writes single bytes is
# busy with them for longer than the kernel is.
TURN_SIZE_MAX = CORKED_SIZE_MAX
PIECE_SIZE_MIN = 256
# While no other callback waits for a turn, the size of a large piece is divided by this: 12 MiB are sent in 5 ms, and a
# turn costs as much as 100 KiB.
ALONE_FACTOR = 32
# The peer reads if refused bytes went out within FAST_S seconds, or if the kernel took PROOF_SIZE bytes in a row.
FAST_S = 0.02
PROOF_SIZE = 16 * 1024 * 1024
# Up to this size, joining pieces in new memory is as cheap as in the memory that the loop keeps (docs/tried.md).
JOIN_MAX = 64 * 1024
_JUST_BYTES = frozenset({bytes})


class Writer:
    """Sends for one transport.

    Attributes:
        phase, refusal: see `_writing`.
        flow: the water marks.
        transport: the transport that this is the writing half of.
    """

    __slots__ = (
        "_dropped_writes",
        "_empty_waiter",
        "_endpoint",
        "_gathers",
        "_last_turn",
        "_operation",
        "_proactor",
        "_queue",
        "_refused_at",
        "_room",
        "_send_now",
        "_spent",
        "_spent_turn",
        "_taken",
        "_turn",
        "flow",
        "phase",
        "refusal",
        "transport",
    )

    _queue_type = SendQueue

    def __init__(self, transport: Connection, endpoint: StreamHandle, send_now: Callable[[Any], int]) -> None:
        self.transport: Connection = transport
        self._endpoint = endpoint
        self._proactor = transport.services.proactor
        self._send_now = send_now
        self.phase = DIRECT
        self.refusal = NONE
        self._gathers = False  # the last writes were not alone in their turn: rest in GATHERING and not in DIRECT
        self._room = 0  # while the queue stays below this size, a write need only be added to it; 0: never
        self._taken = 0  # bytes of gathered sends that the kernel took whole, since the last one that it did not
        self._refused_at = 0.0  # when the kernel last refused bytes, on the loop's clock
        self._turn = transport.services.turn
        self._last_turn = -1  # the turn of the last direct write
        self._spent_turn = -1  # the turn that `_spent` belongs to
        self._spent = 0  # what that turn has sent before its end; see TURN_SIZE_MAX
        self._dropped_writes = 0
        self._queue: SendQueue | None = None
        self._operation: Any = None
        self._empty_waiter: asyncio.Future[None] | None = None
        self.flow = FlowControl(transport)

    def describe(self) -> str:
        """Phase and refusals, for `repr`."""
        return "+".join([self.phase.value, *(str(each.name).lower() for each in self.refusal)])

    @property
    def queued_size(self) -> int:
        """Bytes accepted and not yet sent, including those in flight."""
        return self._queue.size if self._queue is not None else 0

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send what the kernel takes without waiting, and queue the rest."""
        if data.__class__ is not bytes:
            data = as_bytes_like(data)
        if self.phase is not DIRECT or not data:
            if self._room and data:
                queue: Any = self._queue
                size = queue.size + len(data)
                if size < self._room:
                    # One of many: `_write_otherwise` would do no more than this.
                    queue.pieces.append(data if type(data) is bytes else bytes(data))
                    queue.size = size
                    return
            self._write_otherwise(data)
            return
        size = len(data)
        turn = self._turn.number
        if turn == self._last_turn and self._endpoint.sends_at_once:
            if size < CORKED_SIZE_MAX or self._has_spent():
                self._gathers = True
                self._gather(bytes(data))
                return
            # Large by itself: gathering would save nothing.
            self._spent += size if self._turn.callbacks else size // ALONE_FACTOR
        if size > SEND_MAX:
            self._write_much(bytes(data))
            return
        self._last_turn = turn
        try:
            sent = self._send_now(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            if not is_shortage(exc):
                self.transport.fatal_error(exc, "Fatal write error on transport")
                return
            sent = 0
        if sent != size:
            self._send_rest(data, sent)

    def _write_much(self, data: bytes) -> None:
        """Write more than SEND_MAX, which needs several calls."""
        queue = self._made_queue()
        queue.add(data)
        if self._endpoint.sends_at_once:
            self._send_gathered()
            self._last_turn = self._turn.number
        else:
            self._flush()
        self.flow.grown(queue.size)

    def _send_rest(self, data: bytes | bytearray | memoryview, sent: int) -> None:
        """Queue the rest of a direct write that the kernel did not take whole."""
        queue = self._made_queue()
        try:
            # This copies, unless it is a bytes object: the caller may reuse its buffer as soon as this returns.
            queue.add(bytes(data))
        except MemoryError as exc:
            # The bytes are lost, so the stream cannot go on.
            self.transport.fatal_error(exc, "Fatal error: no memory for what the socket did not take")
            return
        if sent:
            queue.forget(sent)
        self._flush_refused()
        self.flow.grown(queue.size)

    def writelines(self, list_of_data: Any) -> None:
        chunks = list(list_of_data)
        if not _JUST_BYTES.issuperset(map(type, chunks)):
            chunks = [bytes(as_bytes_like(data)) for data in chunks]
        size = sum(map(len, chunks))
        queue = self._queue
        if queue is not None and queue.size + size < self._room:
            queue.add_all(chunks, size)
        elif queue is not None and self.phase is CORKED and self.refusal is NONE:
            queue.add_all(filter(None, chunks), size)
            self._send_if_much(queue)
            self.flow.grown(queue.size)
        elif size <= JOIN_MAX or self.phase is not DIRECT:
            self.write(b"".join(chunks))
        else:
            # Large and in several pieces: send it as if it had been gathered in a turn that ends here.
            turn = self._turn.number
            is_first, self._last_turn = turn != self._last_turn, turn
            queue = self._made_queue()
            queue.add_all(filter(None, chunks), size)
            if not self._endpoint.sends_at_once:
                self._flush()
            else:
                self._cork()
                if is_first:
                    self._send_gathered()
                else:
                    self._send_if_much(queue)
            self.flow.grown(queue.size)

    def _write_otherwise(self, data: bytes | bytearray | memoryview) -> None:
        if self.refusal is not NONE or self.phase is LOST:
            self._refuse(data)
        elif data:
            self._gather(bytes(data))

    def _refuse(self, data: bytes | bytearray | memoryview) -> None:
        if EOF in self.refusal:
            raise RuntimeError("write_eof() already called")
        if SENDFILE in self.refusal:
            raise RuntimeError("unable to write; sendfile is in progress")
        if data:
            self._dropped_writes += 1
            if self._dropped_writes >= private.LOG_THRESHOLD:
                private.logger.warning("socket.send() raised exception.")

    def _gather(self, data: bytes) -> None:
        """Queue bytes that nobody can change, after those that wait. There is no refusal."""
        queue = self._made_queue()
        queue.add(data)
        if self.phase is DIRECT or self.phase is GATHERING:
            self._cork()
        if self.phase is CORKED:
            self._send_if_much(queue)
        self.flow.grown(queue.size)

    def _send_if_much(self, queue: SendQueue) -> None:
        """In CORKED: send before the turn's end if the limit is reached, unless the turn has sent its share."""
        if queue.size >= self._corked_limit() and not self._has_spent():
            self._spent += max(queue.size, PIECE_SIZE_MIN * len(queue.pieces))
            self._send_gathered()
            if self.flow.may_resume(queue.size):
                # Not here, in the middle of a write.
                self.transport.loop.call_soon(self._resume, context=self.transport.context)

    def _made_queue(self) -> SendQueue:
        queue = self._queue
        if queue is None:
            queue = self._queue = self._queue_type()
        return queue

    def _cork(self) -> None:
        """Go to CORKED."""
        self.phase = CORKED
        limit = self._corked_limit()
        self._room = max(limit, self.flow.high + 1) if self._has_spent() else limit
        self._turn.corked.append(self)

    def _has_spent(self) -> bool:
        """Whether this turn has sent TURN_SIZE_MAX."""
        turn = self._turn.number
        if self._spent_turn != turn or not turn:
            self._spent_turn, self._spent = turn, 0
        return self._spent >= TURN_SIZE_MAX

    def _corked_limit(self) -> int:
        """The most bytes to gather before they are sent."""
        if not self._turn.number:
            return 0
        if self.flow.was_set:
            return min(self.flow.high, CORKED_SIZE_MAX)
        return CORKED_SIZE_MAX if self._taken >= PROOF_SIZE else CORKED_SIZE_MIN

    def uncork(self) -> None:
        """Send what was gathered. The loop calls this at the end of the turn, for each corked writer."""
        if self.phase is not CORKED:
            # It was sent already, because it reached the limit; or the transport was aborted.
            return
        self._send_gathered()
        if self.flow.paused and self.phase is not LOST:
            # `enterable`, because a callback in the same context may be running the loop that calls this.
            private.enterable(self.transport.context).run(self.flow.shrunk, self.queued_size)

    def _send_gathered(self) -> None:
        """Leave CORKED: send the queue, and rest if the kernel takes all of it."""
        queue = self._queue
        assert queue is not None
        size = queue.size
        self._room = 0
        try:
            if len(queue.pieces) == 1:
                # One piece, alone in its turn or large by itself: gathering saved nothing, so do not gather next time.
                self._gathers = self._last_turn == self._turn.number and size < CORKED_SIZE_MAX
                self._send_piece(queue)
            elif size <= CORKED_SIZE_MAX:
                self._send_joined(queue)
        except (BlockingIOError, InterruptedError, MemoryError):
            pass  # The overlapped send below sends the pieces where they are.
        except OSError as exc:
            if not is_shortage(exc):
                self.transport.fatal_error(exc, "Fatal write error on transport")
                return
        if queue.pieces:
            self._flush_refused()
        else:
            self._taken += size
            self._rest()

    def _send_piece(self, queue: SendQueue) -> None:
        """Send the only piece of the queue, of which nothing was sent, in as many calls as it needs."""
        piece = queue.pieces[0]
        if len(piece) <= SEND_MAX:
            queue.forget(self._send_now(piece))
            return
        with memoryview(piece) as whole:
            for start in range(0, len(piece), SEND_MAX):
                with whole[start : start + SEND_MAX] as part:
                    sent = self._send_now(part)
                    queue.forget(sent)
                    if sent < len(part):
                        return

    def _send_joined(self, queue: SendQueue) -> None:
        """Send all of the queue in one call; what the kernel does not take becomes one piece."""
        with self.transport.services.join_buffer.join(queue.pieces) as data:
            sent = self._send_now(data)
            if sent == len(data):
                queue.clear()
                return
            try:
                queue.keep_only(bytes(data[sent:]))
            except MemoryError:
                queue.forget(sent)

    def _resume(self) -> None:
        if self.phase is not LOST:
            self.flow.shrunk(self.queued_size)

    def _flush_refused(self) -> None:
        """Go to FLUSHING, because the kernel did not take all bytes at once."""
        self._taken = 0
        self._refused_at = self.transport.loop.time()
        self._flush()

    def _flush(self) -> None:
        """Go to FLUSHING: submit one overlapped send of the queued pieces. No other is in flight."""
        self.phase = FLUSHING
        queue = self._queue
        assert queue is not None
        try:
            operation = self._operation
            if operation is None:
                operation = self._endpoint.send_operation(self.on_sent)
                operation.context = self.transport.context
                self._operation = operation
            self._endpoint.set_send_vector(operation, queue.vector(), queue.skip, queue.send_max)
            self._proactor.submit(operation)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # For lack of memory, for example. It ends this connection, and no other.
            self.transport.fatal_error(exc, "Fatal write error on transport")

    def on_sent(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self.phase is LOST:
            # The queue was forgotten, and nobody waits for this result.
            return
        if status:
            if byte_count or not self._proactor.shortages.begin_again(operation, status):
                self.transport.fatal_error(error_of(operation, status), "Fatal write error on transport")
            return
        operation.buffer = None
        queue = self._queue
        assert queue is not None
        queue.forget(byte_count)
        if queue.pieces:
            self._flush()
        else:
            if self.transport.loop.time() - self._refused_at <= FAST_S:
                self._taken = PROOF_SIZE
            self._rest()
        if self.flow.paused and self.phase is not LOST:
            self.flow.shrunk(queue.size)

    def _rest(self) -> None:
        """Go to DIRECT, GATHERING or SHUT: the queue is empty and nothing is in flight. Do what waited for that."""
        refusal = self.refusal
        if refusal is NONE:
            self.phase = GATHERING if self._gathers else DIRECT
            return
        self.phase = SHUT
        if SENDFILE in refusal:
            assert self._empty_waiter is not None
            private.set_result_unless_cancelled(self._empty_waiter, None)
        elif EOF in refusal:
            self.transport.shutdown_writing()
        if CLOSING in refusal:
            self.transport.end(is_ended=EOF in refusal)

    def set_limits(self, high: int | None, low: int | None) -> None:
        """As in `asyncio.WriteTransport.set_write_buffer_limits`."""
        self.flow.set_limits(high, low)
        self._room = 0
        self.flow.grown(self.queued_size)

    # -- refusing ----------------------------------------------------------------------------------------------

    def _refuse_from_now_on(self, why: Refusal) -> None:
        self.refusal = why if self.refusal is NONE else self.refusal | why  # `|` makes a new member, which is slow.
        self._room = 0  # So that each write comes to `_refuse`.
        if self.phase in EMPTY:
            self.phase = SHUT

    def write_eof(self) -> None:
        """Accept nothing more. Send the end of file when the queue is out, and a file that was to be sent before."""
        if self.phase is LOST or self.refusal & (CLOSING | EOF):
            return
        sending_file = SENDFILE in self.refusal
        self._refuse_from_now_on(EOF)
        if self.phase is SHUT and not sending_file:
            self.transport.shutdown_writing()

    def finish(self) -> bool:
        """Accept nothing more. True if nothing waits to be sent; else `transport.end` is called after the last byte."""
        self._refuse_from_now_on(CLOSING)
        return self.phase is SHUT or self.phase is LOST

    def abandon(self, exc: BaseException | None) -> None:
        """Go to LOST: forget what waits. The operation keeps what is in flight until its packet comes."""
        self.refusal |= CLOSING
        self.phase = LOST
        self._room = 0
        if self._queue is not None:
            self._queue.clear()
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_exception(exc or ConnectionAbortedError("the transport was aborted"))

    def release(self) -> None:
        """Release all memory. The endpoint is closed, so nothing is outstanding."""
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.deliver = ignore  # Breaks the cycle with this writer.
            self._proactor.release(operation)
        # Without these references a closed connection is freed at once. A closed writer does not need them.
        self.transport = None  # type: ignore[assignment]
        self.flow.release()

    # -- sending a file: the loop does it, between these two calls ----------------------------------------------

    def make_empty_waiter(self) -> "asyncio.Future[None]":
        """Refuse writes from here on; the future is done when all earlier ones are out.

        Raises:
            RuntimeError: another file is being sent, or waits to be.
        """
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        waiter: asyncio.Future[None] = self.transport.loop.create_future()
        self._empty_waiter = waiter
        self._refuse_from_now_on(SENDFILE)
        if self.phase is SHUT or self.phase is LOST:
            waiter.set_result(None)
        return waiter

    def reset_empty_waiter(self, waiter: "asyncio.Future[None]") -> None:
        """Accept writes again, if this is the waiter for which they were refused."""
        if self._empty_waiter is not waiter:
            return
        self._empty_waiter = None
        self.refusal &= ~SENDFILE
        if self.phase is SHUT and self.refusal & CLOSING == NONE:
            self._rest()
