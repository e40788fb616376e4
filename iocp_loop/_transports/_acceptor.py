"""The common part of a listening socket and a pipe server: retries after errors, reports, and stopping.

No client can silence them: an accept that fails is tried again, at once or after a pause. An exception of the program's
factory or callback is reported, and costs that connection only.
"""

import contextvars
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._endpoint import Endpoint
from ._services import Services

# This many accepts in a row may bring an error and are re-armed at once: their clients were gone. Before each further
# one there is a pause, in seconds, which doubles up to a maximum: an error that stays must not keep the loop busy.
ERRORS_AT_ONCE_MAX = 16
ERROR_PAUSE_S = 0.001
ERROR_PAUSE_MAX_S = 1.0


def pause_after(errors: int) -> float:
    """Seconds to wait before the next accept, after this many errors in a row; 0 if no pause is needed."""
    doublings = errors - ERRORS_AT_ONCE_MAX - 1
    return 0 if doublings < 0 else min(ERROR_PAUSE_S * 2 ** min(doublings, 20), ERROR_PAUSE_MAX_S)


class Acceptor:
    """Base of both. A subclass makes the accepts, and its `_arm_all` arms as many as are wanted.

    Args:
        services: the loop's.
        connect: makes protocol and transport of an accepted connection. It runs in a copy of the current context, like
            an `asyncio.Handle`'s callback. An exception is reported, and closes that connection only.
    """

    def __init__(self, services: Services, connect: Callable[..., Any]) -> None:
        self._loop = services.loop
        self._connect = connect
        self._proactor = services.proactor
        self._context = contextvars.copy_context()
        self._errors_in_a_row = 0
        self._retry: Any = None  # the timer that will call `_arm_all`; None if there is none

    def _arm_all(self) -> None:
        raise NotImplementedError

    def _pause_after(self, *, failed: bool) -> float:
        """Count the result of an accept. Returns how long to wait before the next one."""
        self._errors_in_a_row = self._errors_in_a_row + 1 if failed else 0
        return pause_after(self._errors_in_a_row)

    def _arm_all_in(self, delay: float) -> None:
        """Call `_arm_all` after a delay, unless a timer for it is running."""
        if self._retry is None:
            self._retry = self._loop.call_later(delay, self._arm_all)

    def _arm_all_after(self, exc: Exception, message: str, **facts: Any) -> None:
        """Report that an accept could not be armed, and call `_arm_all` later; nothing if a timer is running."""
        if self._retry is None:
            pause = private.ACCEPT_RETRY_DELAY_S
            self._report(f"{message}; trying again in {pause} s", exc, **facts)
            self._arm_all_in(pause)

    def _stop_waiting(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None:
            retry.cancel()

    def _take_what_was_cancelled(self) -> None:
        """Settle the cancelled accepts, whose packets are usually in the port by now, so that the handles are closed.

        The next client is then refused, and is not accepted by a server that is about to close.
        """
        if not self._proactor.port.closed:  # It is if the loop was dropped, and the collector closes its parts.
            self._proactor.poll(0)

    def _make_connection(self, endpoint: Endpoint, *accepted: Any) -> Any:
        """Call `connect(*accepted)` and return its result. If it raises, close the endpoint and return None."""
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
