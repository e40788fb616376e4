"""The transport as its two halves, the reader and the writer, see it."""

import contextvars
from typing import Any, Protocol

from ._services import Services


class Connection(Protocol):
    """A stream transport, as its two halves see it."""

    services: Services
    context: contextvars.Context

    @property
    def loop(self) -> Any:
        """The event loop."""

    def tell_protocol(self, what: str) -> None:
        """Call the protocol's method of that name, without arguments; report what it raises."""

    def fatal_error(self, exc: BaseException, message: str) -> None:
        """End the connection at once, because of `exc`."""

    def close(self) -> None:
        """End the connection when all that was written is out."""

    def shutdown_writing(self) -> None:
        """Send the end of file."""

    def end(self, *, is_ended: bool) -> None:
        """Called when all that was written before `close` is out; `is_ended` if the end of file is out too."""
