"""The common part of all transports on an endpoint: how they begin, report and end.

The end, in order: `close_endpoint` queues connection_lost() and gives the endpoint to the proactor (cancel, wait for
zero operations, close the handle). connection_lost() is called when its turn among the callbacks comes, but not before
the last operation is over. Then the transport releases its memory.
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
    """One endpoint, its handle and its protocol. A subclass begins receiving, and releases its memory at the end.

    Attributes:
        services: the loop's services to its transports.
        context: the contextvars.Context in which the protocol is called: that of the code that made the transport.
    """

    # A `__dict__` too, which costs nothing while it is empty: programs set attributes on transports, and tests replace
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
        self._handle: Any = handle
        self._exception: BaseException | None = None
        self._lost_deferred = False  # connection_lost() was due while an operation was still outstanding

    @property
    def loop(self) -> Any:
        """The event loop."""
        return self.services.loop

    def _start(self, waiter: "asyncio.Future[None] | None") -> None:
        callbacks = self.services.turn.callbacks
        queued = len(callbacks)
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # As on asyncio's own loops, the error is reported and the connection goes on.
            self._report("Exception in callback protocol.connection_made()", exc)
        finally:
            # Also after a KeyboardInterrupt: if the loop is run again, the connection works.
            if waiter is not None:
                private.set_result_unless_cancelled(waiter, None)
            if len(callbacks) > queued:
                # The task that waits for the connection, and the callbacks that connection_made() queued, run before
                # the first bytes are delivered, as on asyncio's own loops: they attach what the bytes are for.
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
                described = object.__repr__(self)  # An interrupt cut short its `__init__`.
            warnings.warn(f"unclosed transport {described}", ResourceWarning, source=self)
            # Nothing is pending, because an operation of ours would have kept this object alive. If a closed proactor
            # kept the handle open, this does not close it either: a call that could not be interrupted still uses it.
            self.services.proactor.close_endpoint(self._endpoint)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint under this transport."""
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
        """End the connection because of `exc`, which connection_lost() gets. Report it unless it is an OSError."""
        # End it first: the exception handler is the program's, and may use the transport.
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
        """Let the proactor close the endpoint; connection_lost(exc) follows."""
        if not self._endpoint.closing:
            self._exception = exc
            self._queue_connection_lost()
            self.services.proactor.close_endpoint(self._endpoint, self._on_closed)

    def _queue_connection_lost(self) -> None:
        # Queued here, and not when the handle is closed, so that connection_lost() has the same place among the
        # callbacks as on asyncio's other loops. When it runs, the cancelled receive's packet has usually come.
        self.loop.call_soon(self._call_connection_lost, context=self.context)

    def _on_closed(self) -> None:
        if self._lost_deferred:
            self.loop.call_soon(self._call_connection_lost, context=self.context)

    @repeatable
    def _call_connection_lost(self) -> None:
        if self._endpoint.operations:
            # The packet of a cancelled operation is still on its way; `_on_closed` will queue this again.
            self._lost_deferred = True
            return
        if self._handle is None:
            return  # It was queued twice, because an interrupt came between queueing it and closing the endpoint.
        try:
            self._protocol.connection_lost(self._exception)
        finally:
            self._handle = self._protocol = self._exception = None
            self._release()

    def _release(self) -> None:
        """Release all memory and break every cycle. Nothing is outstanding."""
        raise NotImplementedError
