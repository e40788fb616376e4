"""What a listening socket and a pipe server do alike: go on, whatever a client does, and stop.

No client can silence them: what fails once is tried again, at once or after a pause; what a factory or callback of the
program raises is reported, and costs that connection only.
"""

import contextvars
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._endpoint import Endpoint
from ._services import Services

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


class Acceptor:
    """The part of both. A subclass says what it accepts, and how `_post_all` brings its accepts up to their number.

    Args:
        services: of the loop.
        connect: makes protocol and transport of what was accepted, in a context of its own, as a Handle's would be.
            What it raises is reported, and closes that connection only.
    """

    def __init__(self, services: Services, connect: Callable[..., Any]) -> None:
        self._loop = services.loop
        self._connect = connect
        self._proactor = services.proactor
        self._context = contextvars.copy_context()
        self._errors_in_a_row = 0
        self._retry: Any = None  # the timer of `_post_all`; None while nothing waits for it

    def _post_all(self) -> None:
        raise NotImplementedError

    def _pause_after(self, *, failed: bool) -> float:
        """Count what an accept has brought; how long to wait before the next one."""
        self._errors_in_a_row = self._errors_in_a_row + 1 if failed else 0
        return pause_after(self._errors_in_a_row)

    def _post_all_in(self, delay: float) -> None:
        """Call `_post_all` in so many seconds, or when it is to be called already."""
        if self._retry is None:
            self._retry = self._loop.call_later(delay, self._post_all)

    def _post_all_after(self, exc: Exception, message: str, **facts: Any) -> None:
        """The same after a failure of our own, which is reported, unless it was reported and waits."""
        if self._retry is None:
            pause = private.ACCEPT_RETRY_DELAY_S
            self._report(f"{message}; trying again in {pause} s", exc, **facts)
            self._post_all_in(pause)

    def _stop_waiting(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None:
            retry.cancel()

    def _take_what_was_cancelled(self) -> None:
        """The cancelled accepts' packets are in the port already, as a rule. Taken now, their handles are closed.

        So a client that comes next finds nobody, rather than somebody who is about to go.
        """
        if not self._proactor.port.closed:  # Already, where the loop was dropped and the collector closes its parts.
            self._proactor.poll(0)

    def _make_connection(self, endpoint: Endpoint, *accepted: Any) -> Any:
        """`connect(*accepted)`; None where it raises, and the endpoint is closed."""
        try:
            return contextvars.copy_context().run(self._connect, *accepted)
        except (SystemExit, KeyboardInterrupt):
            self._proactor.close_endpoint(endpoint)
            raise
        except BaseException as exc:
            self._proactor.close_endpoint(endpoint)
            self._report_lost(exc, *accepted)
            return None

    def _report_lost(self, exc: BaseException, *accepted: Any) -> None:
        raise NotImplementedError

    def _report(self, message: str, exc: BaseException, **facts: Any) -> None:
        self._loop.call_exception_handler({"message": message, "exception": exc, **facts})
