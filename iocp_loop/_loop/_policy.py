"""An event loop policy, for as long as asyncio has policies: deprecated in Python 3.14, removed in 3.16."""

import asyncio
import sys
import warnings

from .._asyncio import _private as private
from ._event_loop import IocpEventLoop, new_event_loop


class IocpEventLoopPolicy(private.BasePolicy):  # type: ignore[misc]
    """`asyncio.set_event_loop_policy(iocp_loop.IocpEventLoopPolicy())` makes every new loop an IocpEventLoop."""

    _loop_factory = IocpEventLoop


def install() -> None:
    """Set the policy. Deprecated: use `asyncio.run(main(), loop_factory=iocp_loop.new_event_loop)` instead."""
    if sys.version_info >= (3, 12):
        warnings.warn(
            "iocp_loop.install() is deprecated: pass loop_factory=iocp_loop.new_event_loop to asyncio.run() or "
            "asyncio.Runner() instead",
            DeprecationWarning,
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # asyncio's own deprecation warning (3.14) would say the same again.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(IocpEventLoopPolicy())


__all__ = ["IocpEventLoopPolicy", "install", "new_event_loop"]
