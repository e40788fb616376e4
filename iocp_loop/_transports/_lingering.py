"""Lingering connections: closed by the program, everything sent, a FIN last, but the peer may still be sending.

If a socket is closed with unread data, or before the peer's last data have arrived, the system answers with a reset. A
reset that overtakes data which the peer has not read yet destroys them, and the peer never sees our answer: that of a
server that refuses a large upload in the middle, for example. On Windows a receive that is cancelled in order to close
may have the same effect. So we close the socket as Winsock's documentation describes it (Graceful Shutdown, Linger
Options, and Socket Closure): shut down for sending, receive until the peer ends too, close. Received data are dropped.

The program does not wait for this. For the program the connection is over: connection_lost() is called in its turn, the
server does not count it, its socket object is closed. Only the handle is left, one receive, and a buffer for dropped
bytes that all of a loop's connections share.

    it ends    when the peer ends its side too, or resets
               when nothing has come for SILENCE_S
               LINGER_S after it began, whatever comes
               when more than DROPPED_MAX bytes came
               when more than LINGERING_MAX connections linger: the oldest
               when the loop is closed

nginx lingers too (lingering_close: 5 s of silence, 30 s in all), and so does Go's net/http (half a second). A peer that
goes on writing learns only from the reset that nobody listens, so we let it write for two seconds and not for thirty.
"""

from typing import TYPE_CHECKING, Any

from .._core._operation import OverlappedEx, ignore
from .._core._proactor import Proactor
from .._handles._base import winerror_of
from .._handles._sockets import OverlappedSocket
from .._win32.constants import Error
from .._win32.kernel import Kernel

if TYPE_CHECKING:
    import socket


SILENCE_S = 0.5
LINGER_S = 2.0
DROPPED_MAX = 64 * 1024 * 1024
LINGERING_MAX = 4096
# Seconds between two searches for those whose time is over.
ROUND_S = 0.25
_DROP_SIZE = 64 * 1024


class Lingerings:
    """The lingering connections of one loop. Used from its thread only."""

    def __init__(self, loop: Any, proactor: Proactor) -> None:
        self.loop: Any = loop
        self.proactor = proactor
        self._all: dict[Lingering, None] = {}  # the oldest first
        self._memory: Any = None
        self._is_going = False  # a timer is set

    def __len__(self) -> int:
        return len(self._all)

    def join(self, lingering: "Lingering") -> None:
        """Add a connection; close the oldest if there are too many."""
        self._all[lingering] = None
        if len(self._all) > LINGERING_MAX:
            next(iter(self._all)).close()
        if not self._is_going:
            self._is_going = True
            self.loop.call_later(ROUND_S, self._go)

    def leave(self, lingering: "Lingering") -> None:
        """Remove a connection that has ended."""
        self._all.pop(lingering, None)

    def memory(self) -> Any:
        """The buffer into which all of them receive: nobody reads it."""
        if self._memory is None:
            self._memory = self.proactor.arena.buffer(_DROP_SIZE)
        return self._memory

    def close(self) -> None:
        """Close all: the loop is closing. Each handle is closed as soon as its receive is over."""
        for lingering in list(self._all):
            lingering.close()
        self.loop = self._memory = None  # Breaks the cycle.

    def _go(self) -> None:
        try:
            now = self.loop.time()
            for lingering in list(self._all):
                if now - lingering.heard >= SILENCE_S or now - lingering.begun >= LINGER_S:
                    lingering.close()
        finally:
            self._is_going = bool(self._all)
            if self._is_going:
                self.loop.call_later(ROUND_S, self._go)


class Lingering:
    """One connection, from its last byte sent to its end.

    Args:
        lingerings: those of its loop.
        endpoint: the transport's endpoint, whose handle it will take over.

    Attributes:
        begun, heard: when it began, and when something last came, on the loop's clock.
    """

    __slots__ = ("_dropped", "_endpoint", "_lingerings", "_operation", "_proactor", "begun", "heard")

    def __init__(self, lingerings: Lingerings, endpoint: OverlappedSocket) -> None:
        self._lingerings = lingerings
        self._proactor = lingerings.proactor
        self._endpoint = OverlappedSocket(endpoint.handle, endpoint.owner)
        self._operation: Any = None
        self._dropped = 0
        self.begun = self.heard = lingerings.loop.time()

    def take_over(self, endpoint: OverlappedSocket) -> None:
        """Take over the handle and its operations; to the transport its endpoint is closed."""
        self._proactor.succeed(endpoint, self._endpoint)
        self._lingerings.join(self)

    @property
    def has_taken_over(self) -> bool:
        """False if an interrupt prevented that: then the transport's endpoint is closed like any other."""
        return self._endpoint.proactor is not None

    def begin(self, operation: Any) -> None:
        """Begin to drop what comes, after connection_lost(). Closes the socket object, but keeps the handle.

        Args:
            operation: the transport's receive, pending or not; None if it had none.
        """
        if self._endpoint.closing:
            self._operation = operation
            if self._endpoint.key not in self._proactor.endpoints:
                self._on_closed()  # It was closed already: release the operation. Otherwise its packet is to come.
            return
        if operation is None:
            memory = self._lingerings.memory()
            operation = self._endpoint.receive_operation(self.on_received, memory)
        self._lingerings.join(self)  # Again: an interrupt may have come before `take_over` did it.
        self._operation = operation
        operation.endpoint, operation.deliver, operation.context = self._endpoint, self.on_received, None
        sock = self._endpoint.owner
        self._endpoint.owner = _Handle(self._proactor.kernel, sock)
        sock.detach()
        if not self._proactor.holds(operation):
            self._receive()

    def on_received(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Drop what came; close at the end."""
        if self._endpoint.closing:
            return
        if status:
            # A receive of the transport's may have been cancelled for another reason; any other error is the end.
            is_ours = operation.buffer is self._lingerings.memory()
            is_over = is_ours or winerror_of(operation, status) != Error.OPERATION_ABORTED
        else:
            # A receive without a buffer completes when there is something to receive: see `_reading.Idleness`.
            is_over = not byte_count and bool(operation.buffer)
        self._dropped += byte_count
        if is_over or self._dropped > DROPPED_MAX:
            self.close()
            return
        self.heard = self._lingerings.loop.time()
        self._receive()

    def _receive(self) -> None:
        try:
            self._endpoint.set_receive_buffer(self._operation, self._lingerings.memory())
            self._proactor.submit(self._operation)
        except BaseException as exc:
            self.close()
            if not isinstance(exc, Exception):
                raise

    def close(self) -> None:
        """Close the handle. A second call does nothing."""
        self._lingerings.leave(self)
        self._proactor.close_endpoint(self._endpoint, self._on_closed)

    def _on_closed(self) -> None:
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.deliver = ignore  # Breaks the cycle with this object.
            self._proactor.release(operation)


class _Handle:
    """A socket's handle, which outlives the socket object. The `owner` of a lingering endpoint."""

    __slots__ = ("_kernel", "_sock", "_value")

    def __init__(self, kernel: Kernel, sock: "socket.socket") -> None:
        self._kernel = kernel
        self._sock = sock
        self._value = sock.fileno()

    def close(self) -> None:
        """Close the handle."""
        if self._sock.fileno() == self._value:
            self._sock.close()  # An interrupt came before the socket object was detached.
        else:
            self._kernel.closesocket(self._value)
