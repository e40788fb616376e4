"""Callbacks of ours that the loop may call once more, where an interrupt has ended the first call."""

from collections.abc import Callable
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


def repeatable(method: _Method) -> _Method:
    """Mark a callback that does what is left to do, however often it is called: the loop may call it again.

    After a KeyboardInterrupt the loop cannot know how far a callback got. A program's is over then. One of ours that
    was lost would leave a connection deaf, or never closed.
    """
    method.repeatable = True  # type: ignore[attr-defined]
    return method
