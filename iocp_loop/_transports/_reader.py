"""The reading half of a stream transport.

A reader has one receive operation, made once and re-armed after each delivery. The loop passes its result straight to
`on_received`, in the transport's context: no Future, no Task, no asyncio.Handle. `_reading` has the states.

* Ownership: the kernel owns the operation and its buffer from the submit to the packet, and the reader owns them from
  there to the next submit. Before the protocol sees the data, they are copied out of the buffer; or, if they fill it,
  the buffer itself becomes the message, and the next receive has a new one.
* Pausing never cancels a pending receive. `pause` and `resume` call no callback of the program: data that `resume`
  releases are delivered in the next turn, and a receive that it submits comes after the callbacks already queued.
* The last step of a delivery re-arms the receive, after the protocol's callback and whatever that did or raised. If it
  fails, the connection ends with the reason, because nobody would notice that it is deaf.
* If the data woke a task, the receive is submitted after the task has run (DUE). By then the task's answer is on its
  way, and the peer's next message may have arrived, so that the receive need not wait in the kernel.
* If a callback runs the loop again (`_other_turns`), the receive is re-armed ahead, before its delivery ends.

The receive buffer follows the traffic: up to 512 KiB while receives come back full, 2 KiB while they are small, none
while the connection is silent.
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

# Sizes of receive buffers, quiet to busy. 2 KiB holds an ordinary request, 128 KiB a large message with room to spare;
# 512 KiB was best for bulk data (docs/tried.md).
RECEIVE_SIZES = (2048, 16 * 1024, 128 * 1024, 512 * 1024)
# After this many receives in a row that the next smaller buffer could have held, the reader changes to that one.
SHRINK_AFTER = 4
# From this size on (an index of RECEIVE_SIZES), a BufferedProtocol's buffer is received into directly. For smaller
# receives a copy is cheaper than another call.
DIRECT_CLASS = 2


class Reader:
    """Receives for one transport.

    Attributes:
        protocol, buffered: the receiver of the data, and whether it is a BufferedProtocol; see `set_protocol`.
        unfed: how many bytes of the running delivery the BufferedProtocol has not been given yet.
        receive, delivery: see `_reading`.
        transport: the transport that this is the reading half of.
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
        self.transport: Connection = transport
        self._endpoint = endpoint
        self._proactor = transport.services.proactor
        self._callbacks = transport.services.turn.callbacks
        self._idleness = AWAKE
        # Not with a layered provider: what it does with a receive of no bytes is unknown.
        self._can_rest = endpoint.tells_without_memory and endpoint.skips_port
        self._direct = direct  # the socket's recv_into; None if there is none
        self._operation: Any = None
        self.receive, self.delivery = IDLE, STRAIGHT
        self._ahead = 0  # deliveries under way whose next receive was submitted ahead
        self._held = 0, 0  # in HELD: status and byte count
        self._size = self._size_class = self._small_receives = self.unfed = 0
        # `_fit_buffer` looks only at receives of this many bytes or more: the smallest buffer cannot be too large.
        self._judged_from = 0
        self.protocol: Any = None
        self.buffered = False
        # True when nothing stands between a packet and data_received(): not paused, stopped, buffered or idle.
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
        """Whether a BufferedProtocol may be given data by the socket's own call."""
        return self.buffered and self.delivery is STRAIGHT and not self._ahead

    def expect_nothing(self) -> None:
        """Go to ENDED at once: this handle must not be read."""
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
        """Go to BEHIND: the endpoint's unread bytes come first."""
        self.delivery, self._fast_path = BEHIND, False
        self._deliver_later()

    def _deliver_later(self) -> None:
        self.transport.loop.call_soon(self._deliver, context=self.transport.context)

    @repeatable
    def _deliver(self) -> None:
        """Deliver what waited: unread bytes (BEHIND), or a held result (HELD).

        If reading was paused again before this runs, it does nothing; the next `resume` will call it.
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
        # In a later turn: what the callback did comes first, and other callbacks may be waiting for it.
        if self.receive is HELD:
            self._deliver_later()
        else:
            self.begin()

    def stop(self, *, cancel: bool) -> None:
        """Deliver nothing more. `cancel` ends a pending receive, if no close of the endpoint follows that would."""
        self.delivery = STOPPED
        self._fast_path = False
        if cancel and self._operation is not None:
            self._proactor.cancel(self._operation)

    def begin(self) -> None:
        """Receive again, after the callbacks that are queued, because data that have arrived are delivered at once."""
        if self.receive is IDLE and self._callbacks:
            self.transport.loop.call_soon(self.arm, context=self.transport.context)
            self.receive = DUE
        elif self.receive is IDLE:
            self.arm()

    @repeatable
    def arm(self) -> None:
        """Re-arm the receive, unless it is out or nobody wants to read. A failure ends the connection."""
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
            self._proactor.submit(self._operation)  # pyright: ignore[reportArgumentType]  # `_begin` has made one.
        except (SystemExit, KeyboardInterrupt):
            if self._operation is None or not self._proactor.holds(self._operation):
                self.transport.services.turn.unarmed.append(self)
                self.receive = DUE
            raise
        except BaseException as exc:
            self.receive = IDLE
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        # For lack of memory, for example. Better to end the connection with a reason than to leave it deaf.
        self.transport.fatal_error(exc, "Fatal error: the next receive cannot be submitted")

    def _begin(self) -> bool:
        """Make the operation. True if it already has a result and needs no submit."""
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
        # A `sock_recv` on this handle was cancelled and succeeded all the same: the stream begins with its bytes.
        self._endpoint.unread = b""
        ctypes.memmove(address_of(buffer), unread, len(unread))
        self._proactor.settle_inline(operation, 0, len(unread))
        return True

    def on_received(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Handle a settled receive: the hot path of every stream."""
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
        """Re-arm after an exception of the protocol's, or an interrupt, ended a delivery; the caller raises it again.

        `data` are the received bytes, None if not yet read; `told` is not None if the protocol was called.
        """
        if told is None:
            if data is None or isinstance(exc, Exception):
                return  # The loop delivers it again after an interrupt; if memory is missing, `rescue` ends the stream.
            self.keep_for_later(data)
        if self._ahead or self.awaits(self._operation):
            self._arm_after_callbacks()

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether a delivery ended and left the receive neither armed nor about to be."""
        return self.receive is OUT and operation is self._operation is not None and not self._proactor.holds(operation)

    def rescue(self, operation: OverlappedEx, exc: BaseException) -> bool:
        """Called by the loop after a delivery raised. If `exc` left the receive unarmed, end the connection: True."""
        if not self.awaits(operation):
            return False
        self._fail(exc)
        return True

    def arm_ahead(self, operation: OverlappedEx) -> None:
        """Re-arm during a delivery: the protocol runs the loop in its callback, and may wait for the next bytes."""
        if self.awaits(operation) and self.delivery is STRAIGHT and not self.unfed:
            self._ahead += 1
            self._fast_path = False
            self._arm()

    def _arm_after_callbacks(self) -> None:
        """Re-arm after a delivery; if the protocol may have queued callbacks, after these have run.

        The state is OUT until then, so that an interrupt here finds the receive still awaited.
        """
        if self._ahead and not self.awaits(self._operation):
            # It was submitted ahead, or ended. (Otherwise `_ahead` counts a delivery around this one.)
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
        # Otherwise close() was called, and asyncio's contract is that nothing more is received.

    def _is_to_be_told(self, operation: OverlappedEx, status: int, byte_count: int) -> bool:
        # A failure is reported at once even to a protocol that has paused, as on asyncio's other loops.
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
        """Choose the next receive's buffer. The data were copied out of this one."""
        if byte_count == self._size:
            self._grow()
        elif self._size_class:
            # A receive that would have filled the next smaller buffer would have made it grow again.
            if byte_count >= RECEIVE_SIZES[self._size_class - 1]:
                self._small_receives = 0
                return
            self._small_receives += 1
            if self._small_receives >= SHRINK_AFTER:
                self._small_receives = 0
                self._change_buffer(self._size_class - 1)

    def _take_exceptional(self, status: int, byte_count: int) -> bool:
        """Handle end of file or an error. True if it is data all the same."""
        outcome = self._endpoint.receive_outcome(self._operation, status, byte_count)
        if outcome is Outcome.END:
            self._take_eof()
        elif outcome is Outcome.FAILED:
            if not self._proactor.shortages.begin_again(self._operation, status):
                self.transport.fatal_error(error_of(self._operation, status), "Fatal read error on transport")
        elif not byte_count:
            self._arm()  # The peer wrote no bytes to a byte-mode pipe, which is not the end.
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
                self.receive = OUT  # The loop delivers it again.
            else:
                self.transport.close()  # As if it had returned None: it is not called a second time.
            raise
        except BaseException as exc:
            self.transport.fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.transport.close()

    def keep_for_later(self, rest: bytes) -> None:
        """Keep data whose delivery an interrupt ended: it ends the loop's run, but not the stream."""
        self._endpoint.unread = bytes(memoryview(rest)) + self._endpoint.unread  # A copy: the buffer is filled again.
        if self.delivery is STRAIGHT:
            self._put_behind()

    def _grow(self) -> None:
        """Change the buffer that was filled before the protocol is called: the data may be that very object."""
        self._small_receives = 0
        if self.buffered and self._direct and self._size_class >= DIRECT_CLASS:
            return  # The data are copied, and the rest goes directly into the protocol's buffer.
        if self._size_class < len(RECEIVE_SIZES) - 1:
            self._change_buffer(self._size_class + 1)
        elif type(self._operation.buffer) is bytes:
            # SAFETY: the slice that the protocol gets is this very object, so the kernel must not write there again.
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
            self._use_buffer(buffer, size_class)  # An interrupt: the operation's buffer and `_size` must agree.
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
        """Take one step towards RESTING, if nothing came since the last round. True if that cost a cancel."""
        if self.delivery is STOPPED or self.receive is not OUT or not self._can_rest:
            return False
        if self._idleness is AWAKE:
            self._idleness = QUIET
            self._fast_path = False  # The next packet must pass through `_wake`.
            return False
        if self._idleness is RESTING:
            return False
        self._idleness = SHEDDING  # It may be so already, if an earlier cancel failed: cancel again.
        self._proactor.cancel(self._operation)
        return True

    def _wake(self, operation: OverlappedEx, status: int) -> bool:
        """Handle a packet of a reader that is not AWAKE. False if its result must be delivered."""
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
        # SAFETY: the packet was dequeued, so the buffer is ours. The kernel gets a length of 0, so it writes nothing to
        # the address, which is that of the one empty bytes object that all of Python shares.
        self._endpoint.set_receive_buffer(operation, b"")
        self.transport.services.idle_rounds.leave(self)
        self._idleness = RESTING
        self._proactor.arena.release_buffer(buffer)

    def take_operation(self) -> Any:
        """Give the receive of a closed transport, pending or not, to the caller. None if there is none."""
        operation, self._operation = self._operation, None
        if operation is not None and self._can_rest and self._idleness is not RESTING:
            self.transport.services.idle_rounds.leave(self)
        return operation

    def release(self) -> None:
        """Release all memory. The endpoint is closed, so nothing is outstanding."""
        self._ahead = 1  # For a delivery whose callback still runs the loop: it must not arm.
        if (operation := self.take_operation()) is not None:
            operation.deliver = ignore  # Breaks the cycle with this reader.
            if operation.buffer:
                self._proactor.arena.release_buffer(operation.buffer)
            self._proactor.release(operation)
        # Without these references a closed connection is freed at once, and not when the collector runs.
        self.protocol = self.transport = None  # type: ignore[assignment]
