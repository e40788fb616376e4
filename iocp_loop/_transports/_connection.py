"""What a reader and a writer know of the connection that they are the halves of."""

import contextvars
from typing import Any, Protocol

from ._services import Services


class Connection(Protocol):
    """A stream transport, as its two halves see it."""

    services: Services
    context: contextvars.Context

    @property
    def loop(self) -> Any:
        """As of `Services`."""

    def tell_protocol(self, what: str) -> None:
        """Call the protocol's method of that name, which takes nothing; what it raises is reported."""

    def fatal_error(self, exc: BaseException, message: str) -> None:
        """End the connection at once, because of `exc`."""

    def close(self) -> None:
        """End it when all that was written is out."""

    def shutdown_writing(self) -> None:
        """Send the end of file."""

    def end(self, *, is_ended: bool) -> None:
        """All that was written before `close` is out; is_ended: and the end of file, too."""
