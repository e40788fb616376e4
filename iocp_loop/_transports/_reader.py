"""The reading half of a stream transport.

One receive is outstanding, prepared once and submitted again after each delivery. Its packet arrives at `on_received`
straight from the loop's `_process_events`, in the transport's context: no Future, no Task, no Handle. Where the data
woke a task, the receive is submitted when the task has run: its answer is on the way then, and the peer's next message
may be there already, so that the receive need not wait in the kernel.

A pending receive is never cancelled to pause: its packet then is held back, and handed out on resume before anything
newer is asked for. Only a failure is told at once, as on asyncio's other loops. The receive buffer follows the traffic:
up to 512 KiB while receives come back full, 2 KiB while they are small, none while nothing comes (see `Idleness`).
A buffer that was filled becomes the message itself, uncopied, and the next receive has a new one.

A BufferedProtocol's own buffer is asked for when data has arrived and not before, as on asyncio's other loops: a
protocol may resize or replace its buffer whenever it is not being filled. What came is copied into it; while receives
fill 128 KiB, the rest of each is received straight into the protocol's.
"""

import asyncio
import ctypes
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import _sockets
from .._endpoint import Endpoint
from .._operation import OverlappedEx
from .._sockets import Outcome, error_of, winerror_of
from .._win32.constants import Error
from .._win32.memory import address_of

if TYPE_CHECKING:
    from ._stream import StreamTransport

# Receive buffers, quiet to busy. 2 KiB holds an ordinary request, 128 KiB a large message with room to spare; for bulk
# data 512 KiB was the best (docs/tried.md).
RECEIVE_SIZES = (2048, 16 * 1024, 128 * 1024, 512 * 1024)
# This many receives in a row that the next smaller buffer would have held, and it is taken.
SHRINK_AFTER = 4
# Rounds of direct reading into a BufferedProtocol's buffer before other connections get their turn.
DIRECT_ROUNDS_MAX = 8
# From this buffer on (its place in RECEIVE_SIZES): up to there a copy is cheaper than another call.
DIRECT_CLASS = 2


class Idleness(Enum):
    """How long nothing has come, in rounds of the loop's `_idle.IdleRounds`: two, and the receive buffer goes.

    A receive of no bytes then waits for what comes next (MSDN, WSARecv: it completes when there are data, or the end),
    and a receive with a buffer follows it. Windows locks the pages of a buffer that waits to be filled (documented, not
    seen: under Wine it does not); a connection at rest has none.
    """

    AWAKE = "awake"  # something came since the last round
    QUIET = "quiet"  # nothing did
    SHEDDING = "shedding"  # nor since the one before: the receive was cancelled, and its packet is on its way
    RESTING = "resting"  # a receive of no bytes is out


AWAKE, QUIET, SHEDDING, RESTING = Idleness


class Reader:
    """Receives for one transport; `verbs` is `_sockets` or `_pipes`, whichever the endpoint understands.

    Attributes:
        protocol, buffered: who gets the data; set by `set_protocol`.
        paused: the protocol asked for a rest.
        stopped: the transport is closing; what still arrives is dropped.
        eof_received: the stream has ended; nothing more is asked for.
        transport: whose half this is; for reports, too.
    """

    __slots__ = (
        "_callbacks",
        "_can_rest",
        "_direct",
        "_endpoint",
        "_held",
        "_idleness",
        "_operation",
        "_out",
        "_plain",
        "_proactor",
        "_size",
        "_size_class",
        "_small_receives",
        "_verbs",
        "buffered",
        "eof_received",
        "paused",
        "protocol",
        "stopped",
        "transport",
    )

    def __init__(self, transport: "StreamTransport", endpoint: Endpoint, verbs: ModuleType, direct: Any) -> None:
        self.transport = transport
        self._endpoint = endpoint
        self._proactor = transport.loop.proactor
        self._callbacks = transport.loop.callbacks
        self._verbs = verbs
        self._idleness = AWAKE
        # Nobody knows what a layered provider makes of a receive of no bytes.
        self._can_rest = verbs is _sockets and endpoint.skips_port
        self._direct = direct  # the socket's recv_into; None where there is no such call
        self._operation: Any = None
        # From the submit of a receive until the protocol has had its result. The operation's own state says less: one
        # that succeeded inline is ours again, but its result still waits in its buffer.
        self._out = False
        self._held: tuple[int, int] | None = None
        self._size = self._size_class = self._small_receives = 0
        self.paused = self.stopped = self.eof_received = False
        self.protocol: Any = None
        self.buffered = False
        # Data go straight to data_received(): the hot path tests this one flag for all that may speak against it.
        self._plain = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol
        self.buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._decide_plain()

    def _decide_plain(self) -> None:
        self._plain = not (self.paused or self.stopped or self.buffered) and self._idleness is AWAKE

    def pause(self) -> None:
        self.paused = True
        self._plain = False

    def resume(self) -> None:
        if self.stopped or not self.paused:
            return
        self.paused = False
        self._decide_plain()
        if self._endpoint.leftover and self._operation is not None:
            self._deliver_leftover()
        if self._held is not None:
            self.transport.loop.call_soon(self._deliver_held, context=self.transport.context)
        else:
            self.arm()

    def _deliver_leftover(self) -> None:
        """Bytes that start_tls() took back from the protocol before: first of what the new one gets.

        At once, because the receive that is out may bring newer ones in the turn that follows.
        """
        data, self._endpoint.leftover = self._endpoint.leftover, b""
        if self.buffered:
            feed(self.protocol, data)
        else:
            self.protocol.data_received(data)

    def stop(self, *, cancel: bool) -> None:
        """Deliver nothing more. `cancel` ends the receive that is out, where closing the endpoint does not do it."""
        self.stopped = True
        self._plain = False
        if cancel and self._operation is not None:
            self._proactor.cancel(self._operation)

    def arm(self) -> None:
        """Cast the rod again, unless it is out, or nobody wants to read. A failure ends the connection."""
        if self._out or self.paused or self.stopped or self.eof_received:
            return
        self._out = True
        try:
            if self._operation is None and self._begin():
                return
            self._proactor.submit(self._operation)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # No memory, say. Better an end that is told than a connection that is deaf.
            self.transport.fatal_error(exc, "Fatal error: the next receive cannot be submitted")

    def _begin(self) -> bool:
        """Prepare the operation. True if it has a result already, and needs no submit."""
        leftover = self._endpoint.leftover
        buffer = self._verbs.receive_buffer(self._proactor, max(RECEIVE_SIZES[0], len(leftover)))
        operation = self._verbs.receive_operation(self._proactor, self._endpoint, self.on_received, buffer)
        operation.context = self.transport.context
        self._operation = operation
        self._size = len(buffer)
        if self._can_rest:
            self.transport.loop.idle_rounds.join()
        if not leftover:
            return False
        # A receive on the bare handle was cancelled and succeeded all the same: the stream begins with its bytes.
        self._endpoint.leftover = b""
        ctypes.memmove(address_of(buffer), leftover, len(leftover))
        self._proactor.settle_inline(operation, 0, len(leftover))
        return True

    def on_received(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """A receive was settled: the hot path of every stream."""
        if not self._plain or status or not byte_count:
            self._on_received_otherwise(operation, status, byte_count)
            return
        data = operation.buffer[:byte_count]
        if byte_count == self._size:
            self._grow()
        elif self._size_class:
            self._maybe_shrink(byte_count)
        try:
            self.protocol.data_received(data)
        finally:
            # Also after an exception in the protocol: it is reported, and the connection goes on.
            if self._plain and not self._callbacks:
                self._proactor.submit(operation)
            else:
                self._arm_after_callbacks()

    def _arm_after_callbacks(self) -> None:
        """The protocol has had its result; when the callbacks that it may have asked for have run, arm again."""
        self._out = False
        if self._callbacks:
            self.transport.loop.unarmed.append(self)
        else:
            self.arm()

    def _on_received_otherwise(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self._idleness is not AWAKE and self._wake(operation, status):
            return
        if self.stopped:
            # close() was called; asyncio's contract is that nothing more is received.
            return
        if self.paused and not (status and self._has_failed(operation, status, byte_count)):
            self._held = (status, byte_count)
            return
        self._take(status, byte_count)

    def _has_failed(self, operation: OverlappedEx, status: int, byte_count: int) -> bool:
        return self._verbs.receive_outcome(operation, status, byte_count) is Outcome.FAILED

    def _deliver_held(self) -> None:
        # Paused again before this ran, or delivered by an earlier resume: whoever resumes next will see to it.
        if self._held is not None and not self.paused and not self.stopped:
            (status, byte_count), self._held = self._held, None
            self._take(status, byte_count)

    def _take(self, status: int, byte_count: int) -> None:
        if (status or not byte_count) and not self._take_exceptional(status, byte_count):
            return
        data = self._operation.buffer[:byte_count]
        filled = byte_count == self._size
        if filled:
            self._grow()
        elif self._size_class:
            self._maybe_shrink(byte_count)
        try:
            if self.buffered:
                self._feed_buffered(data, filled)
            else:
                self.protocol.data_received(data)
        finally:
            # Also after an exception in the protocol: it is reported, and the connection goes on.
            if not self.stopped:
                self._arm_after_callbacks()

    def _take_exceptional(self, status: int, byte_count: int) -> bool:
        """End of file or an error; True if it is data all the same."""
        outcome = self._verbs.receive_outcome(self._operation, status, byte_count)
        if outcome is Outcome.END:
            self._take_eof()
        elif outcome is Outcome.FAILED:
            self.transport.fatal_error(error_of(self._operation, status), "Fatal read error on transport")
        elif not byte_count:
            # Somebody wrote nothing to a byte-mode pipe: not the end.
            self._out = False
            self.arm()
        else:
            return True
        return False

    def _take_eof(self) -> None:
        self.eof_received = True
        try:
            keep_open = self.protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.transport.fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.transport.close()

    def _feed_buffered(self, data: bytes, filled: bool) -> None:
        try:
            feed(self.protocol, data)
            if filled and self._direct is not None and self._size_class >= DIRECT_CLASS:
                self._receive_directly()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.transport.fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")

    def _receive_directly(self) -> None:
        """More than our buffer held is waiting: receive it where the protocol wants it, without a copy."""
        for _ in range(DIRECT_ROUNDS_MAX):
            if self.paused or self.stopped or not self.buffered:
                return
            view = self.protocol.get_buffer(-1)
            size = len(view)
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
            try:
                byte_count = self._direct(view)
            except OSError:
                # Nothing there yet, or the connection broke: the next receive waits, or says so.
                return
            if not byte_count:
                # End of file; the next receive says so again.
                return
            self.protocol.buffer_updated(byte_count)
            if byte_count < size:
                return

    def _grow(self) -> None:
        """All of the buffer was filled: take a new one, before the protocol gets to see what may be the old one."""
        self._small_receives = 0
        if self.buffered and self._direct and self._size_class >= DIRECT_CLASS:
            # It is copied, and the rest received without it.
            return
        if self._size_class < len(RECEIVE_SIZES) - 1:
            self._change_buffer(self._size_class + 1)
        elif type(self._operation.buffer) is bytes:
            # SAFETY: the slice that the protocol gets is this very object: the kernel must not write there again.
            self._change_buffer(self._size_class)

    def _maybe_shrink(self, byte_count: int) -> None:
        # What would just have filled the next smaller buffer would have grown it again.
        if byte_count >= RECEIVE_SIZES[self._size_class - 1]:
            self._small_receives = 0
            return
        self._small_receives += 1
        if self._small_receives >= SHRINK_AFTER:
            self._small_receives = 0
            self._change_buffer(self._size_class - 1)

    def _change_buffer(self, size_class: int) -> None:
        try:
            buffer = self._verbs.receive_buffer(self._proactor, RECEIVE_SIZES[size_class])
        except MemoryError as exc:
            self.transport.fatal_error(exc, "Fatal error: no memory to receive into")
            return
        old = self._operation.buffer
        self._size_class = size_class
        self._size = RECEIVE_SIZES[size_class]
        self._verbs.set_receive_buffer(self._operation, buffer)
        if old:
            self._proactor.arena.release_buffer(old)

    # -- while nothing comes -----------------------------------------------------------------------------------

    def pass_round(self) -> bool:
        """Another while has gone by without data, if the last one's mark is still there. True if that cost a cancel."""
        if self.stopped or not self._out or not self._can_rest:
            return False
        if self._idleness is AWAKE:
            self._idleness = QUIET
            self._plain = False  # What comes passes by `_wake`.
            return False
        if self._idleness is not QUIET:
            return False
        self._idleness = SHEDDING
        self._proactor.cancel(self._operation)
        return True

    def _wake(self, operation: OverlappedEx, status: int) -> bool:
        """Something came, or the receive was cancelled in order to rest. False if it is to be delivered."""
        if self.stopped or (status and self._idleness is RESTING):
            return False
        was, self._idleness = self._idleness, AWAKE
        if was is RESTING:
            self.transport.loop.idle_rounds.join()
            self._change_buffer(0)
        elif was is SHEDDING and winerror_of(operation, status) == Error.OPERATION_ABORTED:
            self._rest(operation)
        else:
            self._decide_plain()
            return False
        self._decide_plain()
        self._out = False
        self.arm()
        return True

    def _rest(self, operation: Any) -> None:
        self._idleness = RESTING
        self._size = self._size_class = self._small_receives = 0
        self.transport.loop.idle_rounds.leave()
        buffer = operation.buffer
        # SAFETY: the packet was dequeued, so the buffer is ours. The kernel gets the address of a bytes object that all
        # of Python shares, and a length of 0: it writes nothing there.
        self._verbs.set_receive_buffer(operation, b"")
        self._proactor.arena.release_buffer(buffer)

    def release(self) -> None:
        """Give the memory back; the endpoint is closed, so nothing is outstanding."""
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.deliver = ignore  # Breaks the cycle with this reader.
            if self._can_rest and self._idleness is not RESTING:
                self.transport.loop.idle_rounds.leave()
            if operation.buffer:
                self._proactor.arena.release_buffer(operation.buffer)
            self._proactor.release(operation)
        # With these gone, a closed connection is freed at once, and not when the collector comes round.
        self.protocol = self.transport = None  # type: ignore[assignment]


def feed(protocol: Any, data: bytes) -> None:
    """Copy data into a BufferedProtocol's buffer, in as many rounds as its buffers need."""
    view = memoryview(data)
    while view:
        target = protocol.get_buffer(len(view))
        size = len(target)
        if not size:
            raise RuntimeError("get_buffer() returned an empty buffer")
        count = min(size, len(view))
        target[:count] = view[:count]
        protocol.buffer_updated(count)
        view = view[count:]


def ignore(_operation: OverlappedEx, _status: int, _byte_count: int) -> None:
    """The sink of an operation whose transport is gone."""
