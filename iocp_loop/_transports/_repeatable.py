"""Callbacks of ours that the loop may call again, if an interrupt ended the first call."""

from collections.abc import Callable
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


def repeatable(method: _Method) -> _Method:
    """Mark a callback that may be called again: each call does only what is left to do.

    After a KeyboardInterrupt the loop cannot know how far a callback got. A callback of the program is not called
    again. A lost callback of ours would leave a connection deaf, or never closed, so the loop calls it again.
    """
    method.repeatable = True  # type: ignore[attr-defined]
    return method
