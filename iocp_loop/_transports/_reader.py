"""The reading half of a stream transport.

One receive is outstanding, prepared once and submitted again after each delivery. Its packet arrives at `on_received`
straight from the loop's `_process_events`, in the transport's context: no Future, no Task, no Handle. Its states and
what leads from one to another stand in `_reading`.

A pending receive is never cancelled to pause. No callback of the program is called by pause() or resume(): what
resume() sets free is delivered in the next turn, and a receive that it submits comes behind the callbacks that are
queued. Each callback is the last thing that a delivery does but for submitting the next receive, which follows whatever
the callback did or raised; where it cannot be submitted, the connection ends with the reason, because nobody would
notice one that is deaf. Where the data woke a task, the receive is submitted when the task has run (DUE): its answer is
on the way then, and the peer's next message may be there already, so that the receive need not wait in the kernel.

Where a callback runs the loop again (`_other_turns`), the receive is submitted ahead, and not when its delivery ends.

The receive buffer follows the traffic: up to 512 KiB while receives come back full, 2 KiB while they are small, none
while nothing comes. A buffer that was filled becomes the message itself, uncopied, and the next receive has a new one.
"""

import asyncio
import ctypes
from typing import Any

from .._core._operation import OverlappedEx, ignore
from .._handles._base import Outcome, StreamHandle, error_of, winerror_of
from .._win32.constants import Error
from .._win32.memory import address_of
from ._buffered import deliver
from ._connection import Connection
from ._reading import AWAKE, BEHIND, DUE, ENDED, HELD, IDLE, OUT, PAUSED, QUIET, RESTING, SHEDDING, STOPPED, STRAIGHT
from ._repeatable import repeatable

# Receive buffers, quiet to busy. 2 KiB holds an ordinary request, 128 KiB a large message with room to spare; for bulk
# data 512 KiB was the best (docs/tried.md).
RECEIVE_SIZES = (2048, 16 * 1024, 128 * 1024, 512 * 1024)
# This many receives in a row that the next smaller buffer would have held, and it is taken.
SHRINK_AFTER = 4
# From this buffer on (its place in RECEIVE_SIZES): up to there a copy is cheaper than another call.
DIRECT_CLASS = 2


class Reader:
    """Receives for one transport.

    Attributes:
        protocol, buffered: who gets the data; set by `set_protocol`.
        unfed: bytes that a BufferedProtocol has still to be given of those that are being delivered.
        receive, delivery: see `_reading`.
        transport: whose half this is; for reports, too.
    """

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_callbacks",
        "_can_rest",
        "_direct",
        "_endpoint",
        "_fast_path",
        "_held",
        "_idleness",
        "_judged_from",
        "_operation",
        "_proactor",
        "_size",
        "_size_class",
        "_small_receives",
        "buffered",
        "delivery",
        "protocol",
        "receive",
        "transport",
        "unfed",
    )

    def __init__(self, transport: Connection, endpoint: StreamHandle, direct: Any) -> None:
        self.transport = transport
        self._endpoint = endpoint
        self._proactor = transport.services.proactor
        self._callbacks = transport.services.turn.callbacks
        self._idleness = AWAKE
        # Nobody knows what a layered provider makes of a receive of no bytes.
        self._can_rest = endpoint.tells_without_memory and endpoint.skips_port
        self._direct = direct  # the socket's recv_into; None where there is no such call
        self._operation: Any = None
        self.receive, self.delivery = IDLE, STRAIGHT
        self._ahead = 0  # deliveries under way whose next receive was submitted ahead
        self._held = 0, 0  # in HELD: status and byte count
        self._size = self._size_class = self._small_receives = self.unfed = 0
        # Bytes: a receive of fewer says nothing about the buffer. The smallest is only ever too small.
        self._judged_from = 0
        self.protocol: Any = None
        self.buffered = False
        # Data go straight to data_received(): the hot path tests this one flag for all that may speak against it.
        self._fast_path = False

    def describe(self) -> str:
        """Both states, for `repr`."""
        return f"{self.receive.value}+{self.delivery.value}"

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol
        self.buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._decide_fast_path()

    def _decide_fast_path(self) -> None:
        self._fast_path = self.delivery is STRAIGHT and self._idleness is AWAKE and not (self.buffered or self._ahead)

    @property
    def feeds(self) -> bool:
        """Whether a BufferedProtocol wants data now, by the socket's own call."""
        return self.buffered and self.delivery is STRAIGHT and not self._ahead

    def expect_nothing(self) -> None:
        """To ENDED from the beginning: this handle is not to be read from."""
        self.receive = ENDED

    def pause(self) -> None:
        if self.delivery is not STOPPED:
            self.delivery = PAUSED
            self._fast_path = False

    def resume(self) -> None:
        if self.delivery is not PAUSED:
            return
        if self._endpoint.unread and self._operation is not None:
            self._put_behind()
            return
        self.delivery = STRAIGHT
        self._decide_fast_path()
        if self.receive is HELD:
            self._deliver_later()
        else:
            self.begin()

    def _put_behind(self) -> None:
        """To BEHIND: the endpoint's unread bytes come first."""
        self.delivery, self._fast_path = BEHIND, False
        self._deliver_later()

    def _deliver_later(self) -> None:
        self.transport.loop.call_soon(self._deliver, context=self.transport.context)

    @repeatable
    def _deliver(self) -> None:
        """Deliver what was waiting for that: bytes of an earlier protocol, what was held.

        Paused again before this runs, it does nothing: whoever resumes next will see to it.
        """
        if self.delivery is BEHIND:
            self._deliver_unread()
        elif self.receive is HELD and self.delivery is STRAIGHT:
            try:
                self.receive = OUT
                self._take(*self._held)
            except (SystemExit, KeyboardInterrupt):
                if self.awaits(self._operation):
                    self.receive = HELD  # The loop calls again.
                raise
            except BaseException as exc:
                if not self.rescue(self._operation, exc):
                    raise

    def _deliver_unread(self) -> None:
        unread, told = self._endpoint.unread, None
        try:
            self._endpoint.unread = b""
            self.delivery = STRAIGHT
            self._decide_fast_path()
            if self.buffered:
                deliver(self, told := unread, None)
            else:
                (told := self.protocol).data_received(unread)
            self._go_on_behind()
        except BaseException:
            if told is None:
                # An interrupt: the loop calls again.
                self._endpoint.unread = unread
                self.delivery, self._fast_path = BEHIND, False
            else:
                self._go_on_behind()
            raise

    def _go_on_behind(self) -> None:
        # In a turn of its own: what the callback did comes first, and another may be waiting for it.
        if self.receive is HELD:
            self._deliver_later()
        else:
            self.begin()

    def stop(self, *, cancel: bool) -> None:
        """Deliver nothing more. `cancel` ends the receive that is out, where closing the endpoint does not do it."""
        self.delivery = STOPPED
        self._fast_path = False
        if cancel and self._operation is not None:
            self._proactor.cancel(self._operation)

    def begin(self) -> None:
        """Receive again, behind the callbacks that are queued: what is there already is delivered at once."""
        if self.receive is IDLE and self._callbacks:
            self.transport.loop.call_soon(self.arm, context=self.transport.context)
            self.receive = DUE
        elif self.receive is IDLE:
            self.arm()

    @repeatable
    def arm(self) -> None:
        """Cast the rod again, unless it is out, or nobody wants to read. A failure ends the connection."""
        if self.receive is not IDLE and self.receive is not DUE:
            return
        self._arm()

    def _arm(self) -> None:
        if self.delivery is not STRAIGHT:
            self.receive = IDLE
            return
        try:
            self.receive = OUT
            if self._operation is None and self._begin():
                return
            self._proactor.submit(self._operation)
        except (SystemExit, KeyboardInterrupt):
            if self._operation is None or not self._proactor.holds(self._operation):
                self.transport.services.turn.unarmed.append(self)
                self.receive = DUE
            raise
        except BaseException as exc:
            self.receive = IDLE
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        # No memory, say. Better an end that is told than a connection that is deaf.
        self.transport.fatal_error(exc, "Fatal error: the next receive cannot be submitted")

    def _begin(self) -> bool:
        """Prepare the operation. True if it has a result already, and needs no submit."""
        unread = self._endpoint.unread
        buffer = self._endpoint.receive_buffer(max(RECEIVE_SIZES[0], len(unread)))
        operation = self._endpoint.receive_operation(self.on_received, buffer)
        operation.context = self.transport.context
        self._operation = operation
        self._size = self._judged_from = len(buffer)
        if self._can_rest:
            self.transport.services.idle_rounds.join(self)
        if not unread:
            return False
        # A receive on the bare handle was cancelled and succeeded all the same: the stream begins with its bytes.
        self._endpoint.unread = b""
        ctypes.memmove(address_of(buffer), unread, len(unread))
        self._proactor.settle_inline(operation, 0, len(unread))
        return True

    def on_received(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """A receive was settled: the hot path of every stream."""
        if not self._fast_path or status or not byte_count:
            self._on_received_otherwise(operation, status, byte_count)
            return
        data = operation.buffer[:byte_count]
        told = None
        try:
            if byte_count >= self._judged_from:
                self._fit_buffer(byte_count)
            (told := self.protocol).data_received(data)
            if self._fast_path and not self._callbacks:
                self._proactor.submit(operation)
            else:
                self._arm_after_callbacks()
        except BaseException as exc:
            self._go_on(exc, data, told)
            raise

    def _go_on(self, exc: BaseException, data: bytes | None, told: Any) -> None:
        """A delivery was ended by an exception of the protocol's, or an interrupt; it is raised again, and we go on.

        `data` is what was received, None if it was not taken yet; `told` is not None if the protocol was called.
        """
        if told is None:
            if data is None or isinstance(exc, Exception):
                return  # Delivered again; or no memory, and whoever looks next finds the receive with nobody.
            self.keep_for_later(data)
        if self._ahead or self.awaits(self._operation):
            self._arm_after_callbacks()

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether a delivery has ended before the next receive was armed, or will be."""
        return self.receive is OUT and operation is self._operation is not None and not self._proactor.holds(operation)

    def rescue(self, operation: OverlappedEx, exc: BaseException) -> bool:
        """The loop's net under deliveries. True if `exc` left the receive with nobody: the connection was ended."""
        if not self.awaits(operation):
            return False
        self._fail(exc)
        return True

    def arm_ahead(self, operation: OverlappedEx) -> None:
        """The protocol is being told, and runs the loop: what it waits for may be the next bytes."""
        if self.awaits(operation) and self.delivery is STRAIGHT and not self.unfed:
            self._ahead += 1
            self._fast_path = False
            self._arm()

    def _arm_after_callbacks(self) -> None:
        """The protocol has had its result; when the callbacks that it may have asked for have run, arm again.

        OUT until then: an interrupt here finds that the receive is still awaited.
        """
        if self._ahead and not self.awaits(self._operation):
            # Submitted ahead, or never again. (Otherwise that was for a delivery around this one.)
            if self._operation is not None:
                self._ahead -= 1
                self._decide_fast_path()
            return
        if self._callbacks:
            self.transport.services.turn.unarmed.append(self)
            self.receive = DUE
        else:
            self._arm()

    def _on_received_otherwise(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self._idleness is not AWAKE and self._wake(operation, status):
            return
        if self.delivery is STRAIGHT or (status and self._is_to_be_told(operation, status, byte_count)):
            self._take(status, byte_count)
        elif self.delivery is not STOPPED:
            self.receive = HELD
            self._held = (status, byte_count)
        # Otherwise close() was called; asyncio's contract is that nothing more is received.

    def _is_to_be_told(self, operation: OverlappedEx, status: int, byte_count: int) -> bool:
        # Of a failure even a protocol that has paused hears at once, as on asyncio's other loops.
        return (
            self.delivery is PAUSED and self._endpoint.receive_outcome(operation, status, byte_count) is Outcome.FAILED
        )

    def _take(self, status: int, byte_count: int) -> None:
        if (status or not byte_count) and not self._take_exceptional(status, byte_count):
            return
        filled, data, told = byte_count == self._size, None, None
        try:
            data = self._operation.buffer[:byte_count]
            self._fit_buffer(byte_count)
            if self.buffered:
                deliver(self, told := data, self._direct if filled and self._size_class >= DIRECT_CLASS else None)
            else:
                (told := self.protocol).data_received(data)
            if self.delivery is not STOPPED:
                self._arm_after_callbacks()
        except BaseException as exc:
            self._go_on(exc, data, told)
            raise

    def _fit_buffer(self, byte_count: int) -> None:
        """Have the next receive's buffer ready; what this one has brought was taken out."""
        if byte_count == self._size:
            self._grow()
        elif self._size_class:
            # What would just have filled the next smaller buffer would have grown it again.
            if byte_count >= RECEIVE_SIZES[self._size_class - 1]:
                self._small_receives = 0
                return
            self._small_receives += 1
            if self._small_receives >= SHRINK_AFTER:
                self._small_receives = 0
                self._change_buffer(self._size_class - 1)

    def _take_exceptional(self, status: int, byte_count: int) -> bool:
        """End of file or an error; True if it is data all the same."""
        outcome = self._endpoint.receive_outcome(self._operation, status, byte_count)
        if outcome is Outcome.END:
            self._take_eof()
        elif outcome is Outcome.FAILED:
            if not self._proactor.shortages.begin_again(self._operation, status):
                self.transport.fatal_error(error_of(self._operation, status), "Fatal read error on transport")
        elif not byte_count:
            self._arm()  # Somebody wrote nothing to a byte-mode pipe: not the end.
        else:
            return True
        return False

    def _take_eof(self) -> None:
        told = None
        try:
            self.receive = ENDED
            keep_open = (told := self.protocol).eof_received()
        except (SystemExit, KeyboardInterrupt):
            if told is None:
                self.receive = OUT  # It is delivered again.
            else:
                self.transport.close()  # As for no answer: nobody asks a second time.
            raise
        except BaseException as exc:
            self.transport.fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.transport.close()

    def keep_for_later(self, rest: bytes) -> None:
        """An interrupt ended the delivery in the middle: it ends the loop's run, and not the stream."""
        self._endpoint.unread = bytes(memoryview(rest)) + self._endpoint.unread  # A copy: it may be filled again.
        if self.delivery is STRAIGHT:
            self._put_behind()

    def _grow(self) -> None:
        """All of the buffer was filled: take a new one, before the protocol gets to see what may be the old one."""
        self._small_receives = 0
        if self.buffered and self._direct and self._size_class >= DIRECT_CLASS:
            return  # It is copied, and the rest received without it.
        if self._size_class < len(RECEIVE_SIZES) - 1:
            self._change_buffer(self._size_class + 1)
        elif type(self._operation.buffer) is bytes:
            # SAFETY: the slice that the protocol gets is this very object: the kernel must not write there again.
            self._change_buffer(self._size_class)

    def _change_buffer(self, size_class: int) -> None:
        try:
            buffer = self._endpoint.receive_buffer(RECEIVE_SIZES[size_class])
        except MemoryError as exc:
            self.transport.fatal_error(exc, "Fatal error: no memory to receive into")
            return
        old = self._operation.buffer
        try:
            self._use_buffer(buffer, size_class)
        except BaseException:
            self._use_buffer(buffer, size_class)  # An interrupt: what is filled and what is looked at must agree.
            raise
        if old:
            self._proactor.arena.release_buffer(old)

    def _use_buffer(self, buffer: Any, size_class: int) -> None:
        self._size_class = size_class
        self._size = RECEIVE_SIZES[size_class]
        self._judged_from = 0 if size_class else self._size
        self._endpoint.set_receive_buffer(self._operation, buffer)

    # -- while nothing comes -----------------------------------------------------------------------------------

    def pass_round(self) -> bool:
        """Another while has gone by without data, if the last one's mark is still there. True if that cost a cancel."""
        if self.delivery is STOPPED or self.receive is not OUT or not self._can_rest:
            return False
        if self._idleness is AWAKE:
            self._idleness = QUIET
            self._fast_path = False  # What comes passes by `_wake`.
            return False
        if self._idleness is RESTING:
            return False
        self._idleness = SHEDDING  # Or it is already, and its cancel may have failed: asked for twice is once.
        self._proactor.cancel(self._operation)
        return True

    def _wake(self, operation: OverlappedEx, status: int) -> bool:
        """Something came, or the receive was cancelled in order to rest. False if it is to be delivered."""
        if self.delivery is STOPPED or (status and self._idleness is RESTING):
            return False
        if self._idleness is RESTING:
            self._change_buffer(0)
            self.transport.services.idle_rounds.join(self)
            self._idleness = AWAKE
        elif self._idleness is SHEDDING and winerror_of(operation, status) == Error.OPERATION_ABORTED:
            self._rest(operation)
        else:
            self._idleness = AWAKE
            self._decide_fast_path()
            return False
        self._decide_fast_path()
        self._arm()
        return True

    def _rest(self, operation: Any) -> None:
        self._size = self._size_class = self._small_receives = 0
        buffer = operation.buffer
        # SAFETY: the packet was dequeued, so the buffer is ours. The kernel gets the address of a bytes object that all
        # of Python shares, and a length of 0: it writes nothing there.
        self._endpoint.set_receive_buffer(operation, b"")
        self.transport.services.idle_rounds.leave(self)
        self._idleness = RESTING
        self._proactor.arena.release_buffer(buffer)

    def take_operation(self) -> Any:
        """The receive of a transport that is gone, pending or not: the caller's from here on. None if it has none."""
        operation, self._operation = self._operation, None
        if operation is not None and self._can_rest and self._idleness is not RESTING:
            self.transport.services.idle_rounds.leave(self)
        return operation

    def release(self) -> None:
        """Give the memory back; the endpoint is closed, so nothing is outstanding."""
        self._ahead = 1  # For a delivery that is under way: its callback has run the loop until now.
        if (operation := self.take_operation()) is not None:
            operation.deliver = ignore  # Breaks the cycle with this reader.
            if operation.buffer:
                self._proactor.arena.release_buffer(operation.buffer)
            self._proactor.release(operation)
        # With these gone, a closed connection is freed at once, and not when the collector comes round.
        self.protocol = self.transport = None  # type: ignore[assignment]
