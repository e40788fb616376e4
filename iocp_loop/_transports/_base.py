"""What every transport on an endpoint does alike: begin, report, and end.

The end, in order: `close_endpoint` queues connection_lost and gives the endpoint to the proactor (cancel, wait for
zero, close the handle); connection_lost is called in its turn, or when the kernel has let go, whichever is later; then
the transport gives its memory back.
"""

import asyncio
import contextvars
import warnings
from typing import Any

from .._asyncio import _private as private
from .._core._endpoint import Endpoint
from ._repeatable import repeatable
from ._services import Services


class EndpointTransport(asyncio.Transport):
    """One endpoint, its handle and its protocol. A subclass says how it begins, and what it gives back at the end.

    Attributes:
        services: what transports of its loop are given.
        context: the contextvars.Context that the protocol is called in: that of whoever made the transport.
    """

    # A dictionary too, which costs nothing while it is empty: programs note things on transports, and tests replace
    # their methods.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_endpoint",
        "_exception",
        "_handle",
        "_lost_deferred",
        "_protocol",
        "context",
        "services",
    )

    _protocol: Any

    def __init__(
        self,
        services: Services,
        endpoint: Endpoint,
        handle: Any,
        extra: dict[str, Any] | None,
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(extra)
        self.services = services
        self.context = contextvars.copy_context() if context is None else context
        self._endpoint = endpoint
        self._handle = handle
        self._exception: BaseException | None = None
        self._lost_deferred = False  # connection_lost had its turn before the kernel had let go of the endpoint

    @property
    def loop(self) -> Any:
        """Whose transport it is."""
        return self.services.loop

    def _start(self, waiter: "asyncio.Future[None] | None") -> None:
        callbacks = self.services.turn.callbacks
        queued = len(callbacks)
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # As on asyncio's own loops: reported, and the connection goes on.
            self._report("Exception in callback protocol.connection_made()", exc)
        finally:
            # Also after a KeyboardInterrupt: whoever runs the loop again has a connection that works.
            if waiter is not None:
                private.set_result_unless_cancelled(waiter, None)
            if len(callbacks) > queued:
                # Whoever waits for the connection, and the callbacks that connection_made() has asked for, go on before
                # its first bytes are delivered, as on asyncio's own loops: there is attached what the bytes are for.
                self.loop.call_soon(self._begin_receiving, context=self.context)
            else:
                self._begin_receiving()

    def _begin_receiving(self) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            try:
                described = repr(self)
            except AttributeError:
                described = object.__repr__(self)  # Its making was cut short by an interrupt.
            warnings.warn(f"unclosed transport {described}", ResourceWarning, source=self)
            # Nothing is pending: an operation of ours would have kept us alive. If a proactor that was closed has kept
            # the handle open, it must stay so: a call that could not be interrupted is still using it.
            self.services.proactor.close_endpoint(self._endpoint)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    @property
    def endpoint(self) -> Endpoint:
        """The record of the handle under this transport."""
        return self._endpoint

    @property
    def handle(self) -> Any:
        """The socket or pipe object under this transport; None once it is closed."""
        return self._handle

    # -- telling -----------------------------------------------------------------------------------------------

    def tell_protocol(self, what: str) -> None:
        """Call `pause_writing` or `resume_writing`."""
        try:
            getattr(self._protocol, what)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(f"protocol.{what}() failed", exc)

    def _report(self, message: str, exc: BaseException) -> None:
        self.loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    # -- ending ------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        self._force_close(None)

    def fatal_error(self, exc: BaseException, message: str) -> None:
        """End the connection because of `exc`: reported if it is the program's fault, else for connection_lost."""
        # Ended first: the exception handler is the program's, and may use the transport.
        self._force_close(exc)
        if isinstance(exc, OSError):
            if self.loop.get_debug():
                private.logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self._report(message, exc)

    def _force_close(self, exc: BaseException | None) -> None:
        if not self._endpoint.closing:
            self._abandon(exc)
            self.close_endpoint(exc)

    def _abandon(self, exc: BaseException | None) -> None:
        """Forget what waits to be sent, and receive nothing more."""
        raise NotImplementedError

    def close_endpoint(self, exc: BaseException | None) -> None:
        """Give the endpoint to the proactor to be closed; connection_lost(exc) follows."""
        if not self._endpoint.closing:
            self._exception = exc
            self._queue_connection_lost()
            self.services.proactor.close_endpoint(self._endpoint, self._on_closed)

    def _queue_connection_lost(self) -> None:
        # Queued now, not when the handle is closed, so that connection_lost keeps its place among the callbacks as on
        # asyncio's other loops. By its turn the cancelled receive's packet has come, as a rule.
        self.loop.call_soon(self._call_connection_lost, context=self.context)

    def _on_closed(self) -> None:
        if self._lost_deferred:
            self.loop.call_soon(self._call_connection_lost, context=self.context)

    @repeatable
    def _call_connection_lost(self) -> None:
        if self._endpoint.operations:
            # The packet of a cancelled operation is still on its way; _on_closed will call again.
            self._lost_deferred = True
            return
        if self._handle is None:
            return  # Asked for twice, where an interrupt came between asking and closing.
        try:
            self._protocol.connection_lost(self._exception)
        finally:
            self._handle = self._protocol = self._exception = None
            self._release()

    def _release(self) -> None:
        """Give all memory back, and break every cycle: nothing is outstanding any more."""
        raise NotImplementedError
