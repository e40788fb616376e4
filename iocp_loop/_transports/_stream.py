"""A connection as an asyncio transport: a TCP socket or a pipe, with a reader and a writer of its own.

close() stops reading and lets the writer finish before the endpoint is closed; abort() does not wait for the writer.
"""

import asyncio
import contextlib
import contextvars
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any

from .._asyncio import _private as private
from .._handles._base import StreamHandle
from .._handles._sockets import OverlappedSocket
from ._base import EndpointTransport
from ._facts import Facts
from ._lingering import Lingering
from ._reader import Reader
from ._reading import ENDED, IDLE, PAUSED, STOPPED
from ._repeatable import repeatable
from ._services import Services
from ._writer import Writer
from ._writing import EOF


class StreamTransport(EndpointTransport):
    """One connected socket or pipe; made by the loop, never by users. Not thread-safe, like all of asyncio."""

    __slots__ = ("_lingering", "_reader", "_server", "_writer", "write")

    # The names that asyncio's sendfile and TLS code look for.
    _sendfile_compatible = private.SendfileMode.TRY_NATIVE
    _start_tls_compatible = True

    _endpoint: StreamHandle
    _reader_type = Reader
    _writer_type = Writer
    # The writer's own method, and not a wrapper, which saves one call per message.
    write: Callable[[Any], None]  # type: ignore[assignment]

    def __init__(
        self,
        services: Services,
        endpoint: StreamHandle,
        handle: Any,
        protocol: Any,
        *,
        waiter: "asyncio.Future[None] | None" = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        addresses: tuple[bytes, bytes] | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        facts = Facts()
        if extra:
            # Item by item: a dictionary made as a whole copy does not reuse a freed one, and each connection would
            # leave one behind.
            for name, fact in extra.items():
                facts[name] = fact
        facts.handle, facts.addresses = handle, addresses
        super().__init__(services, endpoint, handle, facts, context)
        if server is not None:
            # First, because this fails if the protocol factory has closed its own server.
            try:
                private.attach(server, self)
            except BaseException:
                self._handle = None  # Not a transport yet: `__del__` has nothing to close.
                raise
        self._server = server
        self._lingering: Lingering | None = None  # from `end` to connection_lost()
        try:
            self._begin(endpoint, handle, protocol)
            services.loop.call_soon(self._start, waiter, context=self.context)
        except BaseException as exc:
            if server is not None:
                private.detach(server, self)  # Otherwise closing the server would wait for this transport.
            if isinstance(exc, Exception):  # After an interrupt `__del__` closes it.
                self._handle = None
                services.proactor.close_endpoint(endpoint)
            raise

    def _begin(self, endpoint: StreamHandle, handle: Any, protocol: Any) -> None:
        # Only those of a socket: a pipe object of multiprocessing has a send() too, which pickles.
        receive_into, send_now = (handle.recv_into, handle.send) if endpoint.sends_at_once else (None, _never_at_once)
        self._reader = self._reader_type(self, endpoint, receive_into)
        self._writer = self._writer_type(self, endpoint, send_now)
        self.write = self._writer.write
        self.set_protocol(protocol)

    @repeatable
    def _begin_receiving(self) -> None:
        if self._reader.receive is IDLE:  # Otherwise resume_reading() was called meanwhile, and has begun.
            self._reader.arm()

    def __repr__(self) -> str:
        parts = [type(self).__name__]
        if self._handle is None:
            parts.append("closed")
        else:
            parts.append("closing" if self.is_closing() else "open")
            parts.append(f"fd={self._endpoint.handle}")
            parts.append(f"reader={self._reader.describe()}")
            parts.append(f"writer={self._writer.describe()}")
            parts.append(f"bufsize={self._writer.queued_size}")
        return f"<{' '.join(parts)}>"

    @property
    def endpoint(self) -> StreamHandle:
        """The handle under this transport."""
        return self._endpoint

    # -- for protocols -----------------------------------------------------------------------------------------

    def set_protocol(self, protocol: Any) -> None:
        super().set_protocol(protocol)
        self._reader.set_protocol(protocol)

    def is_closing(self) -> bool:
        return self._reader.delivery is STOPPED

    def is_reading(self) -> bool:
        return self._reader.delivery is not PAUSED and self._reader.delivery is not STOPPED

    def pause_reading(self) -> None:
        self._reader.pause()

    def resume_reading(self) -> None:
        self._reader.resume()

    def writelines(self, list_of_data: Any) -> None:
        self._writer.writelines(list_of_data)

    def can_write_eof(self) -> bool:
        return self._endpoint.half_closes

    def write_eof(self) -> None:
        if not self.can_write_eof():
            raise NotImplementedError("a pipe has no end of file of its own; close it instead")
        self._writer.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._writer.set_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._writer.flow.limits()

    def get_write_buffer_size(self) -> int:
        return self._writer.queued_size

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._reader.delivery is STOPPED:
            return
        try:
            self._close()
        except BaseException:
            # An interrupt in the middle: half closed, it would be silent for ever.
            self._close()
            raise

    def _close(self) -> None:
        """Close; each step may run twice."""
        is_ended = EOF in self._writer.refusal
        if self._writer.finish():
            self._reader.stop(cancel=False)
            self.end(is_ended=is_ended)
        else:
            # The writer calls `end` when the last byte is out. Nothing more is delivered, but a socket's receive stays
            # pending: see `_lingering`.
            self._reader.stop(cancel=not self._endpoint.half_closes)

    def end(self, *, is_ended: bool) -> None:
        """End the connection, because all that was written before close() is out. Send the end of file if need be.

        Not called after abort(), which owes the peer nothing. If the peer has ended its side, nothing more comes from
        it. If moreover no receive was ever cancelled, closing the handle sends the end of file, so no shutdown is
        needed.
        """
        endpoint, peer_has_ended = self._endpoint, self._reader.receive is ENDED
        try:
            must_say_so = not peer_has_ended or endpoint.receives_cancelled
            if endpoint.half_closes and must_say_so and not endpoint.closing:
                if not is_ended:
                    self._handle.shutdown(socket.SHUT_WR)
                if not peer_has_ended and isinstance(endpoint, OverlappedSocket):
                    self._lingering = Lingering(self.services.lingerings, endpoint)
                    self._queue_connection_lost()
                    self._lingering.take_over(endpoint)
        except (OSError, MemoryError):
            pass  # The connection is gone already; or memory is missing, and it is closed without lingering.
        finally:
            self.close_endpoint(None)

    def _force_close(self, exc: BaseException | None) -> None:
        if exc is not None and private.has_said_goodbye(self._protocol, exc):
            self.close()
        else:
            super()._force_close(exc)

    def _abandon(self, exc: BaseException | None) -> None:
        self._reader.stop(cancel=False)
        self._writer.abandon(exc)

    def _release(self) -> None:
        lingering, self._lingering = self._lingering, None
        if lingering is not None and lingering.has_taken_over:
            lingering.begin(self._reader.take_operation())
        self._reader.release()
        self._writer.release()
        server, self._server = self._server, None
        if server is not None:
            private.detach(server, self)

    def shutdown_writing(self) -> None:
        """Send the end of file."""
        try:
            self._handle.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.fatal_error(exc, "Fatal error on shutting down a socket for writing")

    # -- for loop.sendfile -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def behind_all_writes(self) -> AsyncGenerator[None]:
        """Refuse writes, and run the body when all earlier ones are out. Raises RuntimeError if another file waits."""
        waiter = self._writer.make_empty_waiter()
        try:
            await waiter
            yield
        finally:
            # Also if the wait was cancelled: the program may write again, and send files.
            self._writer.reset_empty_waiter(waiter)


def _never_at_once(_data: Any) -> int:
    """Take no bytes: a pipe has no call that writes without waiting."""
    return 0
