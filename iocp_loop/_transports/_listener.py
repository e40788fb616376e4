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

import socket
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._operation import OverlappedEx, ignore
from .._handles._base import ListenerHandle, error_of, winerror_of
from .._handles._opening import open_socket
from .._win32 import sockaddr
from .._win32.constants import NTSTATUS_WIN32_FACILITY, Error, WsaError
from ._acceptor import Acceptor
from ._repeatable import repeatable
from ._services import Services

# Accepts outstanding: few at first, doubled whenever one turn used them all up. libuv keeps 32, nginx 10; each costs
# a socket made in advance.
ACCEPTS_MIN = 4
ACCEPTS_MAX = 128


class Listener(Acceptor):
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
        super().__init__(services, connect)
        self._sock = sock
        self._operations: list[Any] = []  # as of `accept_operation`
        self._limit = max(1, min(backlog, ACCEPTS_MAX))
        self._accepted_this_turn = 0
        self._endpoint: ListenerHandle = open_socket(self._proactor, sock, sock)
        self._outstanding = min(ACCEPTS_MIN, self._limit)
        self._post_all()

    def close(self) -> None:
        """Stop: cancel the accepts, close their sockets, then the listening socket. Twice is once."""
        self._stop_waiting()
        self._proactor.close_endpoint(self._endpoint, self._on_closed)
        self._take_what_was_cancelled()

    def _on_closed(self) -> None:
        operations, self._operations = self._operations, []
        for operation in operations:
            if operation.arriving is not None:
                operation.arriving.close()
            operation.deliver = ignore  # Breaks the cycle with this listener.
            self._proactor.release(operation)

    @repeatable
    def _post_all(self) -> None:
        """Bring the accepts up to the number wanted. An accept that cannot be posted now is tried again later."""
        self._retry = None
        if self._endpoint.closing:
            return
        try:
            for operation in self._operations:
                if operation.arriving is None:
                    self._arm(operation)
            while len(self._operations) < self._outstanding:
                operation = self._endpoint.accept_operation(self._on_accepted, self._sock)
                operation.context = self._context
                self._operations.append(operation)
                self._arm(operation)
        except Exception as exc:
            self._try_later(exc)

    def _arm(self, operation: Any) -> None:
        self._endpoint.prepare_accept(operation)
        self._proactor.submit(operation)

    def _try_later(self, exc: Exception) -> None:
        if not self._endpoint.closing:
            self._post_all_after(exc, "Accept cannot be posted", socket=private.TransportSocket(self._sock))

    def _on_accepted(self, operation: Any, status: int, _byte_count: int) -> None:
        arriving, operation.arriving = operation.arriving, None
        if self._endpoint.closing:
            # The cancelled accept of a listener that stopped; or a client that was too late.
            if arriving is not None:
                arriving.close()
            return
        try:
            addresses = None if status else self._addresses_of(operation)
            self._rearm(operation, status)
        except BaseException:
            # An interrupt: nobody else has the client, who would wait for ever; and the rod may not be cast.
            arriving.close()
            self._loop.call_soon(self._post_all)
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
        self._make_connection(endpoint, conn, endpoint, addresses)

    def _addresses_of(self, operation: OverlappedEx) -> tuple[bytes, bytes] | None:
        """None where memory was missing: the client is lost, and not the accept."""
        try:
            addresses: tuple[bytes, bytes] = self._endpoint.accepted_addresses(operation)
        except Exception as exc:
            self._report_lost(exc)
            return None
        return addresses

    def _report_lost(self, exc: BaseException, *accepted: Any) -> None:
        facts = {"peername": sockaddr.decode(accepted[2][1])} if accepted else {}
        self._report("Error on transport creation for incoming connection", exc, **facts)

    def _rearm(self, operation: OverlappedEx, status: int) -> None:
        not_posted = status & 0xFFFF_0000 == NTSTATUS_WIN32_FACILITY
        # But the call itself may tell of a client that was gone before it was accepted (MSDN, AcceptEx); 64 is how
        # others spell it (python/cpython#93821).
        if not_posted and winerror_of(operation, status) not in (WsaError.CONNRESET, Error.NETNAME_DELETED):
            self._try_later(error_of(operation, status))
            return
        if pause := self._pause_after(failed=bool(status)):
            self._post_all_in(pause)
            return
        try:
            self._arm(operation)
            if self._outstanding < self._limit:
                self._maybe_arm_more()
        except Exception as exc:
            self._try_later(exc)

    def _maybe_arm_more(self) -> None:
        if not self._accepted_this_turn:
            self._loop.call_soon(self._double_if_all_used)
        self._accepted_this_turn += 1

    @repeatable
    def _double_if_all_used(self) -> None:
        if self._accepted_this_turn >= self._outstanding:
            self._outstanding = min(2 * self._outstanding, self._limit)
            self._post_all()
        self._accepted_this_turn = 0
