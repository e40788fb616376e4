"""A listening socket: several AcceptEx outstanding, no Task, and no client that can silence it.

Each accept goes through the same five steps: take the new connection, cast the rod again, complete the socket, ask
the protocol factory, make the transport. The rod is cast again before any user code runs, and whatever fails after
that concerns this one client and closes this one socket:

* a packet that brings an error tells of a client that was gone before it was accepted (MSDN, AcceptEx,
  WSAECONNRESET): close its socket, go on; after many such in a row, with a pause that grows;
* a protocol factory that raises: reported, its connection closed, go on;
* an accept that cannot even be posted (no buffers, no handles, no memory left) is the listener's own trouble:
  reported, and tried again after a while. The listener is never closed for it.
"""

import contextvars
import socket
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._operation import OverlappedEx, ignore
from .._handles._base import ListenerHandle, error_of, winerror_of
from .._handles._opening import open_socket
from .._win32 import sockaddr
from .._win32.constants import NTSTATUS_WIN32_FACILITY, Error, WsaError
from ._repeatable import repeatable
from ._services import Services

# Accepts outstanding: few at first, doubled whenever one turn used them all up. libuv keeps 32, nginx 10; each costs
# a socket made in advance.
ACCEPTS_MIN = 4
ACCEPTS_MAX = 128
# So many accepts in a row may bring an error, and are posted again at once: clients that were gone. Before each further
# one there is a pause, twice as long each time, up to the most, in seconds: an error that stays must not keep the loop
# busy.
ERRORS_AT_ONCE_MAX = 16
ERROR_PAUSE_S = 0.001
ERROR_PAUSE_MAX_S = 1.0


def pause_after(errors: int) -> float:
    """Seconds to wait before the next accept, after so many errors in a row; 0 while none is needed."""
    doublings = errors - ERRORS_AT_ONCE_MAX - 1
    return 0 if doublings < 0 else min(ERROR_PAUSE_S * 2 ** min(doublings, 20), ERROR_PAUSE_MAX_S)


class Listener:
    """Serves one listening socket until `close`. Used from the loop's thread only.

    Args:
        connect: called with (connected socket, its endpoint, packed addresses) in a context of its own; makes
            protocol and transport. What it raises is reported, and closes that connection only.
    """

    def __init__(
        self,
        services: Services,
        sock: socket.socket,
        connect: Callable[[socket.socket, Any, tuple[bytes, bytes]], None],
        backlog: int,
    ) -> None:
        self._loop = services.loop
        self._proactor = services.proactor
        self._sock = sock
        self._connect = connect
        self._context = contextvars.copy_context()
        self._operations: list[Any] = []  # as of `accept_operation`
        self._limit = max(1, min(backlog, ACCEPTS_MAX))
        self._accepted_this_turn = 0
        self._errors_in_a_row = 0
        self._retry: Any = None
        self._endpoint: ListenerHandle = open_socket(self._proactor, sock, sock)
        self._outstanding = min(ACCEPTS_MIN, self._limit)
        self._cast_all()

    def close(self) -> None:
        """Stop: cancel the accepts, close their sockets, then the listening socket. Twice is once."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._proactor.close_endpoint(self._endpoint, self._on_closed)
        # The cancelled accepts' packets are in the port already, as a rule. Taken now, so that the socket is closed
        # when this returns: who connects next is refused.
        if not self._proactor.port.closed:  # Already, where the loop was dropped and the collector closes its parts.
            self._proactor.poll(0)

    def _on_closed(self) -> None:
        operations, self._operations = self._operations, []
        for operation in operations:
            if operation.arriving is not None:
                operation.arriving.close()
            operation.deliver = ignore  # Breaks the cycle with this listener.
            self._proactor.release(operation)

    @repeatable
    def _cast_all(self) -> None:
        """Bring the accepts up to the number wanted. An accept that cannot be posted now is tried again later."""
        self._retry = None
        if self._endpoint.closing:
            return
        try:
            for operation in self._operations:
                if operation.arriving is None:
                    self._cast(operation)
            while len(self._operations) < self._outstanding:
                operation = self._endpoint.accept_operation(self._on_accepted, self._sock)
                operation.context = self._context
                self._operations.append(operation)
                self._cast(operation)
        except Exception as exc:
            self._try_later(exc)

    def _cast(self, operation: Any) -> None:
        self._endpoint.prepare_accept(operation)
        self._proactor.submit(operation)

    def _try_later(self, exc: Exception) -> None:
        if self._retry is not None or self._endpoint.closing:
            return
        self._loop.call_exception_handler(
            {
                "message": f"Accept cannot be posted; trying again in {private.ACCEPT_RETRY_DELAY_S} s",
                "exception": exc,
                "socket": private.TransportSocket(self._sock),
            }
        )
        self._retry = self._loop.call_later(private.ACCEPT_RETRY_DELAY_S, self._cast_all)

    def _on_accepted(self, operation: Any, status: int, _byte_count: int) -> None:
        arriving, operation.arriving = operation.arriving, None
        if self._endpoint.closing:
            # The cancelled accept of a listener that stopped; or a client that was too late.
            if arriving is not None:
                arriving.close()
            return
        try:
            addresses = None if status else self._addresses_of(operation)
            self._cast_again(operation, status)
        except BaseException:
            # An interrupt: nobody else has the client, who would wait for ever; and the rod may not be cast.
            arriving.close()
            self._loop.call_soon(self._cast_all)
            raise
        if addresses is None:
            arriving.close()
            return
        try:
            conn = self._endpoint.finish_accept(arriving, self._sock)
            endpoint = open_socket(self._proactor, conn, conn)
        except OSError as exc:
            # The client's doing: it was gone before its socket was complete.
            private.logger.debug("a connection was gone before it was accepted: %r", exc)
            arriving.close()
            return
        except Exception as exc:
            arriving.close()
            self._report_lost(exc)
            return
        self._make_connection(conn, endpoint, addresses)

    def _addresses_of(self, operation: OverlappedEx) -> tuple[bytes, bytes] | None:
        """None where memory was missing: the client is lost, and not the accept."""
        try:
            addresses: tuple[bytes, bytes] = self._endpoint.accepted_addresses(operation)
        except Exception as exc:
            self._report_lost(exc)
            return None
        return addresses

    def _report_lost(self, exc: BaseException, **facts: Any) -> None:
        message = "Error on transport creation for incoming connection"
        self._loop.call_exception_handler({"message": message, "exception": exc, **facts})

    def _cast_again(self, operation: OverlappedEx, status: int) -> None:
        not_posted = status & 0xFFFF_0000 == NTSTATUS_WIN32_FACILITY
        # But the call itself may tell of a client that was gone before it was accepted (MSDN, AcceptEx); 64 is how
        # others spell it (python/cpython#93821).
        if not_posted and winerror_of(operation, status) not in (WsaError.CONNRESET, Error.NETNAME_DELETED):
            self._try_later(error_of(operation, status))
            return
        self._errors_in_a_row = self._errors_in_a_row + 1 if status else 0
        if pause := pause_after(self._errors_in_a_row):
            if self._retry is None:
                self._retry = self._loop.call_later(pause, self._cast_all)
            return
        try:
            self._cast(operation)
            if self._outstanding < self._limit:
                self._maybe_cast_more()
        except Exception as exc:
            self._try_later(exc)

    def _maybe_cast_more(self) -> None:
        if not self._accepted_this_turn:
            self._loop.call_soon(self._end_turn)
        self._accepted_this_turn += 1

    @repeatable
    def _end_turn(self) -> None:
        if self._accepted_this_turn >= self._outstanding:
            self._outstanding = min(2 * self._outstanding, self._limit)
            self._cast_all()
        self._accepted_this_turn = 0

    def _make_connection(self, conn: socket.socket, endpoint: Any, addresses: tuple[bytes, bytes]) -> None:
        try:
            # A context of its own for each connection, as a Handle would have had.
            contextvars.copy_context().run(self._connect, conn, endpoint, addresses)
        except (SystemExit, KeyboardInterrupt):
            self._proactor.close_endpoint(endpoint)
            raise
        except BaseException as exc:
            self._proactor.close_endpoint(endpoint)
            self._report_lost(exc, peername=sockaddr.decode(addresses[1]))
