"""The writing half of a stream transport.

Its states, and what leads from one to another, stand in `_writing`.

A turn's first write goes out at once, so that an answer waits for nobody; the second and later ones are gathered,
unless one is much by itself, so that a program that writes in crumbs pays one kernel call per turn and not one per
crumb. A connection that was seen to do so (head and body of an HTTP answer, say) has its first write gathered too,
until a turn brings only one.

What is gathered was not refused by the kernel yet, and is no reason to pause the protocol, unless the program has set
a mark of its own, which is obeyed. What has become much is sent before the turn ends, but no more than TURN_SIZE_MAX
of it, or as much work in crumbs; what comes after that waits for the end, and the protocol is paused when it has
become much, so that a program that writes and drains lets others run however much the kernel takes. Large pieces may
be more while nobody else is queued. Much is
CORKED_SIZE_MAX for a peer that was seen to read: what the kernel had refused was out in a moment, or more was taken
than a kernel keeps. For any other peer it is CORKED_SIZE_MIN, because it may be one that never reads, and what was
gathered for it would stay with us.

While no turn of ours runs, nothing is gathered: nobody knows when what runs instead will end, or whether the loop is
run again at all.

No callback of the program runs while a method here is under way: pause_writing() is the last thing a write does, and
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

# What is gathered in a turn, and joined, before it is sent: for a peer that was seen to read, and for any other.
CORKED_SIZE_MAX = 384 * 1024
CORKED_SIZE_MIN = HIGH_WATER_DEFAULT
# What is sent within a turn before writes wait for its end, in bytes: one send of a peer that was seen to read, and
# another one at the turn's end. A piece counts for PIECE_SIZE_MIN at least: a program that writes single bytes is busy
# with them for longer than the kernel is.
TURN_SIZE_MAX = CORKED_SIZE_MAX
PIECE_SIZE_MIN = 256
# While nobody else is known to wait for a turn, a large piece counts for so much less: 12 MiB are sent in 5 ms, and a
# turn costs as much as 100 KiB.
ALONE_FACTOR = 32
# What was refused is out within this time, in seconds, or so many bytes were taken in a row: the peer reads.
FAST_S = 0.02
PROOF_SIZE = 16 * 1024 * 1024
# Up to here, new memory is as cheap to join pieces in as what the loop keeps for that (docs/tried.md).
JOIN_MAX = 64 * 1024
_JUST_BYTES = frozenset({bytes})


class Writer:
    """Sends for one transport.

    Attributes:
        phase, refusal: see `_writing`.
        flow: the water marks.
        transport: whose half this is; for reports, too.
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
        self._gathers = False  # rest in GATHERING and not in DIRECT: the last writes had company
        self._room = 0  # bytes: below this size of the queue, a write has only to be added to it; 0: to none
        self._taken = 0  # bytes of gathered sends that were taken whole, since one was not
        self._refused_at = 0.0  # when a send was not taken whole, on the loop's clock
        self._turn = transport.services.turn
        self._last_turn = -1  # the one with the last direct write
        self._spent_turn = -1  # the last one in which much was sent before it ended
        self._spent = 0  # and how much; see TURN_SIZE_MAX
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
        """Bytes accepted and not yet sent, those in flight included."""
        return self._queue.size if self._queue is not None else 0

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send now what the kernel takes without waiting; queue the rest."""
        if data.__class__ is not bytes:
            data = as_bytes_like(data)
        if self.phase is not DIRECT or not data:
            if self._room and data:
                queue: Any = self._queue
                size = queue.size + len(data)
                if size < self._room:
                    # One of many: _write_otherwise() would find nothing else to do.
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
            # Much by itself: it need not be gathered to be sent now.
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
        """More than one call is given."""
        queue = self._made_queue()
        queue.add(data)
        if self._endpoint.sends_at_once:
            self._send_gathered()
            self._last_turn = self._turn.number
        else:
            self._flush()
        self.flow.grown(queue.size)

    def _send_rest(self, data: bytes | bytearray | memoryview, sent: int) -> None:
        """The kernel did not take all of a direct write."""
        queue = self._made_queue()
        try:
            # A copy, unless nobody can change it: the caller may reuse its buffer as soon as this returns.
            queue.add(bytes(data))
        except MemoryError as exc:
            # The stream has a hole from here on.
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
            # As if it had been gathered during the turn that ends now.
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
        """Queue bytes that nobody else can change, behind what waits; nothing stands against them."""
        queue = self._made_queue()
        queue.add(data)
        if self.phase is DIRECT or self.phase is GATHERING:
            self._cork()
        if self.phase is CORKED:
            self._send_if_much(queue)
        self.flow.grown(queue.size)

    def _send_if_much(self, queue: SendQueue) -> None:
        """In CORKED: do not wait for the turn's end with what has become much, unless this turn has seen enough."""
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
        """To CORKED."""
        self.phase = CORKED
        limit = self._corked_limit()
        self._room = max(limit, self.flow.high + 1) if self._has_spent() else limit
        self._turn.corked.append(self)

    def _has_spent(self) -> bool:
        """Whether this turn has sent all that one may before it ends."""
        turn = self._turn.number
        if self._spent_turn != turn or not turn:
            self._spent_turn, self._spent = turn, 0
        return self._spent >= TURN_SIZE_MAX

    def _corked_limit(self) -> int:
        """How much is gathered before it is sent."""
        if not self._turn.number:
            return 0
        if self.flow.was_set:
            return min(self.flow.high, CORKED_SIZE_MAX)
        return CORKED_SIZE_MAX if self._taken >= PROOF_SIZE else CORKED_SIZE_MIN

    def uncork(self) -> None:
        """Send together what was gathered; the loop calls this at the end of the turn, for each that was corked."""
        if self.phase is not CORKED:
            # Sent already, because it had become much; or aborted meanwhile.
            return
        self._send_gathered()
        if self.flow.paused and self.phase is not LOST:
            # A callback of the same transport's may run the loop, and this inside it.
            private.enterable(self.transport.context).run(self.flow.shrunk, self.queued_size)

    def _send_gathered(self) -> None:
        """From CORKED: send the queue, and rest if the kernel takes all of it."""
        queue = self._queue
        assert queue is not None
        size = queue.size
        self._room = 0
        try:
            if len(queue.pieces) == 1:
                # Alone in its turn, or much by itself: nothing is gained by letting the next one wait.
                self._gathers = self._last_turn == self._turn.number and size < CORKED_SIZE_MAX
                self._send_piece(queue)
            elif size <= CORKED_SIZE_MAX:
                self._send_joined(queue)
        except (BlockingIOError, InterruptedError, MemoryError):
            pass  # The overlapped send takes it, from where it is.
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
        """Send the only piece of the queue, of which nothing was sent, by as many calls as it needs."""
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
        """Send all of the queue in one call; what that does not take is one piece from now on."""
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
        """To FLUSHING, because the kernel does not take all at once."""
        self._taken = 0
        self._refused_at = self.transport.loop.time()
        self._flush()

    def _flush(self) -> None:
        """To FLUSHING: gather what is queued into one overlapped send. Nothing is in flight."""
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
            # No memory, say: this connection's end, and nobody else's.
            self.transport.fatal_error(exc, "Fatal write error on transport")

    def on_sent(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self.phase is LOST:
            # What was queued is forgotten, and nobody waits for this.
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
        """To DIRECT, GATHERING or SHUT: the queue is empty, and nothing is in flight. Do what waited for that."""
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
        """The water marks, as asyncio.WriteTransport.set_write_buffer_limits."""
        self.flow.set_limits(high, low)
        self._room = 0
        self.flow.grown(self.queued_size)

    # -- refusing ----------------------------------------------------------------------------------------------

    def _refuse_from_now_on(self, why: Refusal) -> None:
        self.refusal = why if self.refusal is NONE else self.refusal | why  # `|` makes a member anew, which takes long.
        self._room = 0  # Each write comes to `_refuse`.
        if self.phase in EMPTY:
            self.phase = SHUT

    def write_eof(self) -> None:
        """Accept nothing more, and say so to the peer once the queue is out, and the file that goes before it."""
        if self.phase is LOST or self.refusal & (CLOSING | EOF):
            return
        sending_file = SENDFILE in self.refusal
        self._refuse_from_now_on(EOF)
        if self.phase is SHUT and not sending_file:
            self.transport.shutdown_writing()

    def finish(self) -> bool:
        """Accept nothing more. True if there is nothing to wait for; else `transport.end` follows the last byte."""
        self._refuse_from_now_on(CLOSING)
        return self.phase is SHUT or self.phase is LOST

    def abandon(self, exc: BaseException | None) -> None:
        """To LOST: forget what waits. What is in flight stays with its operation until its packet has come."""
        self.refusal |= CLOSING
        self.phase = LOST
        self._room = 0
        if self._queue is not None:
            self._queue.clear()
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
        """Refuse writes from now on; the future is done when all earlier ones have gone out.

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
        """Accept writes again, if it was this one that they waited for."""
        if self._empty_waiter is not waiter:
            return
        self._empty_waiter = None
        self.refusal &= ~SENDFILE
        if self.phase is SHUT and self.refusal & CLOSING == NONE:
            self._rest()
