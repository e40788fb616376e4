"""A UDP socket as an asyncio transport that no answer of the network can silence.

Receiving: one receive is outstanding, and is re-armed whatever its packet brought. If a receive succeeds at once,
datagrams queue up faster than packets bring them. Then the socket's own call receives the others in one go, so that a
datagram costs one kernel call and not two, and nothing overflows while the loop is busy with packets. An ICMP answer to
an earlier datagram, a datagram longer than the buffer, or an unreachable network is reported to `error_received`, and
reception goes on. If errors come at once and do not end, the receive is re-armed after a pause, so that the loop does
not spin.

Sending: a datagram is sent at once, by the socket's own call. Datagrams that the kernel cannot take wait in order, and
one overlapped send carries the first. The address is checked, and a name resolved, in `sendto`, by the socket's own
rules in either case: a bad address raises, an unknown name is reported to `error_received`, and neither ends the
endpoint. close() sends the datagrams that wait, and connection_lost() always comes.

    reception  the receive                                     next
    NEW        was not made yet                                OUT or BURST, after connection_made()
    OUT        is the kernel's; or its result is queued or     OUT or BURST, re-armed whatever it brought; WAITING, if
               being delivered                                 it cannot be submitted, or errors do not end
    BURST      as OUT, and it succeeded at once: after its     as from OUT
               datagram, the socket's own call receives others
    WAITING    is ours; a timer will submit it                 as from OUT, by the timer
    STOPPED    is not submitted again                          none (entered from any, by close(), abort(), an error)

    sending    datagrams                                       next
    DIRECT     none wait                                       FLUSHING, by one that the kernel does not take at once
    FLUSHING   wait, the first of them for an overlapped send  DRAINING, by its packet
    DRAINING   wait for the socket's own call, in this turn,   DIRECT, when the last one is out; FLUSHING, by one that
               or in the next if this one has sent many        the kernel does not take, or that is added meanwhile
    LOST       were forgotten                                  none (entered from any, by abort(), an error)

While datagrams wait, each new one waits behind them. An endpoint that is STOPPED and not LOST closes when it is DIRECT.
"""

import asyncio
import socket
from collections import deque
from enum import Enum
from typing import Any

from .._asyncio import _private as private
from .._core._operation import OverlappedEx, ignore
from .._handles._base import DatagramHandle, error_of
from .._win32 import sockaddr
from .._win32.constants import WsaError
from .._win32.errors import is_shortage
from ._base import EndpointTransport
from ._flow import FlowControl
from ._repeatable import repeatable
from ._services import Services

# The largest UDP payload is 65,507 bytes over IPv4 and 65,527 over IPv6, so nothing is ever truncated.
DATAGRAM_SIZE_MAX = 64 * 1024
# The most datagrams received in one burst, or sent in one turn from the queue, before other sockets get their turn.
BURST_MAX = 64
# Added to the size of each queued datagram, so that empty ones count too, as in asyncio from 3.13 on.
HEADER_SIZE = 8
# Errors of the network and not of the socket: reception goes on at once.
_RECOVERABLE = frozenset(
    {
        WsaError.CONNRESET,
        WsaError.CONNREFUSED,
        WsaError.NETRESET,
        WsaError.NETUNREACH,
        WsaError.HOSTUNREACH,
        WsaError.MSGSIZE,
        WsaError.TIMEDOUT,
    }
)
# After this many errors in a row, or for any other error, the next receive waits this long.
_ERRORS_IN_A_ROW_MAX = 32
_RETRY_DELAY_S = 0.05


class Reception(Enum):
    """Where an endpoint's receive is; see the module's header."""

    NEW = "new"
    OUT = "out"
    BURST = "burst"
    WAITING = "waiting"
    STOPPED = "stopped"


class Sending(Enum):
    """Where the datagrams are that an endpoint has still to send; see the module's header."""

    DIRECT = "direct"
    FLUSHING = "flushing"
    DRAINING = "draining"
    LOST = "lost"


NEW, OUT, BURST, WAITING, STOPPED = Reception
DIRECT, FLUSHING, DRAINING, LOST = Sending


# Also an `asyncio.Transport`, as on asyncio's own loops.
class DatagramTransport(EndpointTransport, asyncio.DatagramTransport):
    """One UDP socket; made by the loop, never by users. Not thread-safe, like all of asyncio.

    Attributes:
        reception, sending: see the module's header.
    """

    __slots__ = (
        "_address",
        "_ahead",
        "_errors_in_a_row",
        "_flow",
        "_proactor",
        "_queue",
        "_queued_size",
        "_receive",
        "_send",
        "_target",
        "reception",
        "sending",
    )

    _endpoint: DatagramHandle

    # The size of the receive buffer. A program that wants to save memory may set it before the endpoint is created.
    datagram_size = DATAGRAM_SIZE_MAX

    def __init__(
        self,
        services: Services,
        endpoint: DatagramHandle,
        sock: socket.socket,
        protocol: Any,
        address: Any = None,
        waiter: "asyncio.Future[None] | None" = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(services, endpoint, sock, extra)
        self._proactor = services.proactor
        self._protocol = protocol
        self._address = address
        # The receiver of a datagram that is sent without an address; None: the connected peer. If broadcasting is
        # allowed, asyncio does not connect the socket to the remote address, so that anybody may answer.
        self._target = None if self.get_extra_info("peername") else address
        self.reception, self.sending = NEW, DIRECT
        self._receive: OverlappedEx | None = None
        self._send: OverlappedEx | None = None  # in FLUSHING: the overlapped send
        self._ahead = 0  # deliveries under way whose next receive was submitted ahead; see `_reader`
        self._errors_in_a_row = 0
        self._queue: deque[tuple[bytes, bytes]] = deque()  # data and packed address; b"" for the connected peer
        self._queued_size = 0
        self._flow = FlowControl(self)
        self._extra["socket"] = private.TransportSocket(sock)  # type: ignore[attr-defined]
        services.loop.call_soon(self._start, waiter, context=self.context)

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<{type(self).__name__} closed>"
        state = "closing" if self.is_closing() else "open"
        return (
            f"<{type(self).__name__} {state} fd={self._endpoint.handle} receive={self.reception.value} "
            f"send={self.sending.value} bufsize={self._queued_size}>"
        )

    def is_closing(self) -> bool:
        return self.reception is STOPPED

    # -- receiving ---------------------------------------------------------------------------------------------

    @repeatable
    def _begin_receiving(self) -> None:
        self.loop.call_soon(self._receive_first, context=self.context)

    @repeatable
    def _receive_first(self) -> None:
        # First the datagrams that a cancelled sock_recvfrom() on this socket left. One by one, because each may raise.
        while kept := self._endpoint.unread_datagrams:
            self.loop.call_soon(self._deliver_kept, *kept[0], context=self.context)
            self._endpoint.unread_datagrams = kept[1:]
        self._arm_again()

    def _deliver_kept(self, data: bytes, sender: Any) -> None:
        if self.reception is not STOPPED:
            self._protocol.datagram_received(data, sender)

    def _arm(self) -> None:
        if self.reception is STOPPED:
            return
        try:
            operation = self._receive
            if operation is None:
                buffer = self._proactor.arena.buffer(self.datagram_size)
                operation = self._endpoint.receive_from_operation(self._on_received, buffer)
                operation.context = self.context
                self._receive = operation
            self.reception = OUT  # Before the submit, so that it is right even if an interrupt comes.
            if self._proactor.submit(operation):
                self.reception = BURST
        except Exception as exc:
            self._report_and_arm_later(exc)

    @repeatable
    def _arm_again(self) -> None:
        """Re-arm the receive after a pause or an interrupt, unless it is out."""
        if self._receive is None or not self._proactor.holds(self._receive):
            self._arm()

    def _report_and_arm_later(self, exc: Exception) -> None:
        """Report that no receive can be submitted, for lack of memory for example, and try again after a while."""
        self._arm_later()
        self._report("The next datagram cannot be received; trying again soon", exc)

    def _arm_later(self) -> None:
        if self.reception is not STOPPED:
            self.reception = WAITING
            self.loop.call_later(_RETRY_DELAY_S, self._arm_again)

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether a delivery ended before its result was handled."""
        if operation is self._receive:
            ours = self.reception is OUT or self.reception is BURST
        else:
            ours = self.sending is FLUSHING and operation is self._send
        return ours and not self._proactor.holds(operation)

    def _on_received(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        if self.reception is STOPPED:
            return
        try:
            sender = self._endpoint.sender_of(operation)
            data = operation.buffer[:byte_count]
        except MemoryError as exc:
            self._report_and_arm_later(exc)
            return
        if status:
            if not self._proactor.shortages.begin_again(operation, status):
                self._on_receive_error(operation, status)
            return
        told = None
        try:
            self._errors_in_a_row = 0
            (told := self._protocol).datagram_received(data, sender if sender is not None else self._address)
            if self.reception is BURST and not self._ahead:
                self._receive_burst(operation.buffer)
            if not self._ahead or not self._was_armed_ahead(operation):
                self._arm()
        except BaseException:
            # After an exception in the protocol reception goes on; the loop reports it. If an interrupt came before the
            # protocol was called, the loop delivers again.
            if told is not None and not self._was_armed_ahead(operation) and self.awaits(operation):
                self._arm()
            raise

    def arm_ahead(self, operation: OverlappedEx) -> None:
        """Re-arm during a delivery: the protocol runs the loop in its callback, and may wait for a datagram."""
        if operation is self._receive and self.awaits(operation):
            self._ahead += 1
            self._arm()

    def _was_armed_ahead(self, operation: OverlappedEx) -> bool:
        """Whether the receive was re-armed ahead, so that the delivery that ends here must not do it."""
        if not self._ahead or self.awaits(operation):
            return False  # If `_ahead` is not 0, it counts a delivery around this one.
        self._ahead -= 1
        return True

    def _receive_burst(self, buffer: Any) -> None:
        """Receive the datagrams that have queued up, by the socket's own call.

        Args:
            buffer: that of the receive, which is ours until it is re-armed. A new one of this size for each datagram
                would cost more than the copy.
        """
        for _ in range(BURST_MAX):
            if self.reception is STOPPED or self._ahead:
                return
            try:
                byte_count, sender = self._handle.recvfrom_into(buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # An ICMP answer. This call consumed it, so no other will report it.
                self._tell_error(exc)
                continue
            self._protocol.datagram_received(buffer[:byte_count], sender if sender is not None else self._address)

    def _on_receive_error(self, operation: OverlappedEx, status: int) -> None:
        error = error_of(operation, status)
        code = getattr(error, "winerror", None)
        self._errors_in_a_row += 1
        if code == WsaError.NOTSOCK:
            self.fatal_error(error, "Fatal read error on datagram transport")
            return
        try:
            self._tell_error(error)
        finally:
            if self._was_armed_ahead(operation):
                pass  # The protocol ran the loop, which re-armed the receive.
            elif code in _RECOVERABLE and self._errors_in_a_row <= _ERRORS_IN_A_ROW_MAX:
                self._arm()
            else:
                self._arm_later()

    def _tell_error(self, error: OSError) -> None:
        """Call error_received(). Report what that raises: neither reception nor the queue may stop for it."""
        try:
            self._protocol.error_received(error)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report("protocol.error_received() failed", exc)

    # -- sending -----------------------------------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        if type(data) is not bytes and not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be bytes-like object ({type(data).__name__!r})")
        if self._address is not None and addr not in (None, self._address):
            raise ValueError(f"Invalid address: must be None or {self._address}")
        if self.reception is STOPPED:
            return
        if addr is None or self._address is not None:
            addr = self._target
        if not self._queue and self._send_at_once(data, addr):
            return
        try:
            packed = b"" if addr is None else sockaddr.resolve(self._handle.family, addr)
        except OSError as exc:
            self._tell_error(exc)
            return
        # A copy: the caller may reuse its buffer as soon as this returns.
        self._queue.append((bytes(data), packed))
        self._queued_size += len(data) + HEADER_SIZE
        self._send_next()
        self._flow.grown(self._queued_size)

    def _send_at_once(self, data: Any, addr: Any) -> bool:
        """True if the datagram was sent, or refused with an error that was reported; False if it has to wait."""
        try:
            if addr is None:
                # To the connected peer; the program may have connected the socket that it passed.
                self._handle.send(data)
            else:
                self._handle.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            if is_shortage(exc):
                return False
            self._tell_error(exc)
        return True

    def _send_next(self) -> None:
        """Submit an overlapped send of the first datagram, unless one is out."""
        if self.sending is FLUSHING or not self._queue:
            return
        operation = None
        try:
            self.sending = FLUSHING
            operation = self._endpoint.send_to_operation(self._on_sent, *self._queue[0])
            operation.context = self.context
            self._send = operation
            self._proactor.submit(operation)
        except (SystemExit, KeyboardInterrupt):
            if operation is None or not self._proactor.holds(operation):
                self.sending = DRAINING
                self.loop.call_soon(self._drain, context=self.context)
            raise
        except Exception as exc:
            # For lack of memory, for example. The queue would wait for ever.
            self.fatal_error(exc, "Fatal write error on datagram transport")

    def _take_head(self) -> tuple[bytes, bytes]:
        head = self._queue.popleft()
        self._queued_size -= len(head[0]) + HEADER_SIZE
        return head

    def _on_sent(self, operation: OverlappedEx, status: int, _byte_count: int) -> None:
        if status and self.sending is FLUSHING and self._proactor.shortages.begin_again(operation, status):
            return
        try:
            self._proactor.release(operation)
            if self.sending is LOST:
                return
            self.sending = DRAINING
            self._send = None
            self._take_head()
            if status:
                self._tell_error(error_of(operation, status))
            self._drain()
        except BaseException:
            # The protocol or an interrupt ends the loop's run: the queue is sent in the next run.
            if self.sending is DRAINING:
                self.loop.call_soon(self._drain, context=self.context)
            raise

    @repeatable
    def _drain(self) -> None:
        """Send the datagrams that wait: a bounded number in this turn, the rest in the next."""
        count, is_full = 0, False
        try:
            # It becomes FLUSHING if error_received() sends something; then the kernel has the first datagram.
            while count < BURST_MAX and self._queue and self.sending is DRAINING and not is_full:
                is_full = not self._send_head()
                count += 1
        finally:
            # Also if the protocol ends the loop's run in error_received().
            if is_full:
                self._send_next()
            elif self.sending is DRAINING and self._queue:
                self.loop.call_soon(self._drain, context=self.context)
            elif self.sending is DRAINING:
                self.sending = DIRECT
            if self.reception is STOPPED and not self._queue:
                self.close_endpoint(None)
            # Last, because the protocol may do anything there.
            self._flow.shrunk(self._queued_size)

    def _send_head(self) -> bool:
        """Send the first datagram. False if it has to wait."""
        # Taken out first, because error_received() may send, and must not find it there; or may abort.
        data, packed = self._take_head()
        if self._send_at_once(data, sockaddr.decode(packed) if packed else None):
            return True
        self._queue.appendleft((data, packed))
        self._queued_size += len(data) + HEADER_SIZE
        return False

    # -- flow control ------------------------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._flow.set_limits(high, low)
        self._flow.grown(self._queued_size)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._flow.limits()

    def get_write_buffer_size(self) -> int:
        return self._queued_size

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.reception is STOPPED:
            return
        self.reception = STOPPED
        if self._queue:
            # `_drain` closes when the last datagram is out. Nothing more is received.
            if self._receive is not None:
                self._proactor.cancel(self._receive)
        else:
            self.close_endpoint(None)

    def _abandon(self, exc: BaseException | None) -> None:  # noqa: ARG002
        self.reception, self.sending = STOPPED, LOST
        self._queue.clear()
        self._queued_size = 0

    def _release(self) -> None:
        operation, self._receive = self._receive, None
        self._send = None
        if operation is not None:
            operation.deliver = ignore
            self._proactor.arena.release_buffer(operation.buffer)
            self._proactor.release(operation)
        self._flow.release()
