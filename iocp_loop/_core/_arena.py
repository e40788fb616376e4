"""Memory for operations and buffers.

In ordinary runs they live on the heap, and releasing one only changes its state. In stomp mode (`IOCP_LOOP_STOMP=1`)
each has pages of its own, which become inaccessible when it is released: a late write by the kernel or a stale read by
us is an error at that instant.
"""

import ctypes
import functools
import os
from typing import Any, Protocol, TypeVar

from .._win32.memory import new_bytes
from ._operation import KERNEL_OWNED, RELEASED, IoType, LifetimeError, OverlappedEx

OperationT = TypeVar("OperationT", bound=OverlappedEx)

STOMP_VARIABLE = "IOCP_LOOP_STOMP"


class Arena(Protocol):
    """Gives out memory that the kernel may write, and takes it back."""

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        """A new operation in state IDLE."""
        ...

    def buffer(self, size: int) -> Any:
        """A new array of `size` chars; a slice of it is bytes."""

    def message_buffer(self, size: int) -> Any:
        """An array, as `buffer` makes it, or a bytes object that is not filled yet. For calls that write by address.

        A slice of a whole bytes object is the object itself, and may then belong to the user's code. So a buffer that
        was filled to its end must not be received into again.
        """

    def release(self, operation: OverlappedEx) -> None:
        """Free an operation. Raises LifetimeError if the kernel owns it."""

    def release_buffer(self, buffer: Any) -> None:
        """Free a buffer that no pending operation uses."""


@functools.lru_cache(maxsize=512)
def array_type(size: int) -> Any:
    """The type of an array of chars. Cached, because each new type is a cycle, which only the collector frees."""
    return ctypes.c_char * size


class HeapArena:
    """The arena of ordinary runs. Thread-safe: it has no state."""

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        return cls(io_type)

    def buffer(self, size: int) -> Any:
        return array_type(size)()

    def message_buffer(self, size: int) -> Any:
        # Not zeroed: zeroing a large array takes longer than receiving into it. And not copied if it is filled.
        return new_bytes(size=size)

    def release(self, operation: OverlappedEx) -> None:
        retire(operation)

    def release_buffer(self, buffer: Any) -> None:
        # Nothing to do: dropping the last reference frees it.
        pass


def retire(operation: OverlappedEx) -> None:
    """End an operation's life: the part that every arena shares. A second call does nothing."""
    if operation.state in KERNEL_OWNED:
        raise LifetimeError(f"{operation!r} was released while the kernel owned it")
    operation.state = RELEASED
    operation.let_go()


def stomp_wanted() -> bool:
    """Whether the environment asks for stomp mode."""
    return os.environ.get(STOMP_VARIABLE, "0") not in ("", "0")


def default_arena(stomp: bool | None = None) -> Arena:
    """The arena for a new proactor: stomp mode if asked for here or by the environment."""
    if stomp_wanted() if stomp is None else stomp:
        from .._debug.stomp import StompArena

        return StompArena()
    return HeapArena()
