"""A listening socket: several AcceptEx outstanding, no Task, and no client that can silence it.

One accept
==========
The listener makes each accept operation once. Its socket, `arriving`, is made in advance:

    the operation    `arriving`                              next
    unarmed          None                                    armed by `_arm_all`, after a pause or in a later turn
    armed            a new socket, the kernel's to connect   its packet
    its packet       taken out: this client's socket         re-armed with a new socket, or unarmed

A packet is handled in five steps: take the client's socket out, re-arm the accept, complete the socket, call the
protocol factory, make the transport. The accept is re-armed before any code of the program runs, so that nothing that
this code does can silence the listener. A failure after that concerns this one client:

* a packet with an error: the client was gone before it was accepted (MSDN, AcceptEx, WSAECONNRESET). Its socket is
  closed. After many such errors in a row there is a pause before the accept is re-armed, which grows;
* the protocol factory raises: that is reported, and the connection is closed;
* an accept that cannot be armed (no buffers, no handles, no memory) is the listener's own trouble. It is reported and
  tried again after a while; the listener is never closed for it.

Closing
=======
The kernel owns the operations until their packets come. So `close` cancels them, the proactor closes the listening
socket when the last packet is in, and then `_on_closed` closes the sockets made in advance. A client that was accepted
in between is closed too.
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

# Accepts outstanding: few at first, and twice as many whenever one turn uses them all up. libuv keeps 32, nginx 10;
# each costs a socket made in advance.
ACCEPTS_MIN = 4
ACCEPTS_MAX = 128


class Listener(Acceptor):
    """Serves one listening socket until `close`. Used from the loop's thread only.

    Args:
        connect: called with (connected socket, its endpoint, packed addresses) in a context of its own; makes
            protocol and transport. An exception is reported, and closes that connection only.
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
        self._operations: list[Any] = []  # made by `accept_operation`; unarmed if `arriving` is None
        self._limit = max(1, min(backlog, ACCEPTS_MAX))
        self._accepted_this_turn = 0
        self._endpoint: ListenerHandle = open_socket(self._proactor, sock, sock)
        self._outstanding = min(ACCEPTS_MIN, self._limit)
        self._arm_all()

    def close(self) -> None:
        """Stop: cancel the accepts, then close the listening socket and theirs. A second call does nothing."""
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
    def _arm_all(self) -> None:
        """Arm every accept, and make as many as are wanted. If one cannot be armed, try again later."""
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
            self._arm_all_after(exc, "Accept cannot be posted", socket=private.TransportSocket(self._sock))

    def _on_accepted(self, operation: Any, status: int, _byte_count: int) -> None:
        arriving, operation.arriving = operation.arriving, None
        if self._endpoint.closing:
            # The listener was closed: the accept was cancelled, or the client came too late.
            if arriving is not None:
                arriving.close()
            return
        try:
            addresses = None if status else self._addresses_of(operation)
            self._rearm(operation, status)
        except BaseException:
            # An interrupt: close the client, which would wait for ever, and arm the accept if it is not armed.
            arriving.close()
            self._loop.call_soon(self._arm_all)
            raise
        if addresses is None:
            arriving.close()
            return
        try:
            conn = self._endpoint.finish_accept(arriving, self._sock)
            endpoint = open_socket(self._proactor, conn, conn)
        except OSError as exc:
            # The client was gone before its socket was complete.
            private.logger.debug("a connection was gone before it was accepted: %r", exc)
            arriving.close()
            return
        except Exception as exc:
            arriving.close()
            self._report_lost(exc)
            return
        self._make_connection(endpoint, conn, endpoint, addresses)

    def _addresses_of(self, operation: OverlappedEx) -> tuple[bytes, bytes] | None:
        """The client's addresses; None if memory is missing, which loses the client but not the accept."""
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
        not_armed = status & 0xFFFF_0000 == NTSTATUS_WIN32_FACILITY
        # But the call itself may report that a client was gone before it was accepted (MSDN, AcceptEx); Windows may
        # report that with 64 too (python/cpython#93821).
        if not_armed and winerror_of(operation, status) not in (WsaError.CONNRESET, Error.NETNAME_DELETED):
            self._try_later(error_of(operation, status))
            return
        if pause := self._pause_after(failed=bool(status)):
            self._arm_all_in(pause)
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
            self._arm_all()
        self._accepted_this_turn = 0
