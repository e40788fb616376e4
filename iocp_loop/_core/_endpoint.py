"""One record per operating-system handle: its key, its outstanding operations, and whether it is closing.

A handle gets its key when it is associated and keeps it for life; its user (a transport, a listener, a `sock_recv`) may
come later and change. A process never uses a key twice, so a late packet of a closed handle cannot be mistaken for one
of a newer handle.
"""

import itertools
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ._operation import OverlappedEx


class Key(IntEnum):
    """Completion keys with a meaning of their own; endpoints have those from FIRST_ENDPOINT up."""

    WAKE = 0  # posted by another thread: look at the ready queue
    POSTED = 1  # posted by a thread of ours, with the address of an operation that the kernel never saw
    TIMER = 2  # queued by the kernel when the timer of `_fine_timer` is signalled
    FIRST_ENDPOINT = 16


class Closable(Protocol):
    """An object that must be closed together with its owner."""

    def close(self) -> object:
        """Release everything. A second call does nothing."""


class Kind(StrEnum):
    """What sort of thing a handle is, in the words of messages."""

    SOCKET = "socket"
    PIPE = "pipe"
    FILE = "file"
    CONSOLE = "console"
    DEVICE = "device"
    WAIT = "wait"  # no handle: the endpoint that waits for other owners' handles belong to


_next_key = itertools.count(Key.FIRST_ENDPOINT).__next__


class Endpoint:
    """One handle known to a proactor. Its subclasses in `_handles` make the operations.

    Args:
        handle: the handle's value; 0 if there is none.
        owner: an object whose `close()` closes the handle when the endpoint is closed; None if the handle belongs to
            somebody else, who must keep it open until its operations are done.
        kind: for messages.

    Attributes:
        key: its completion key.
        skips_port: an inline success posts no packet.
        operations: the pending operations on it. A list and not a count: appending and removing are atomic, so
            threads need no lock for it, and a leak report can name them.
        closing: no further operation may be submitted.
        on_closed: called once the handle is closed.
        receives_cancelled: how often a receive on it was cancelled. On Windows, cancelling one receive ends the others
            too (https://github.com/dotnet/corefx/issues/36516); the count tells that from a cancel of their own.
        proactor: the proactor whose table it is in; None if it is in none.
        user: free for a program to say who uses the handle, so that it can go by a packet's key; None until it does.
    """

    # Whether its statuses become Winsock errors, and a layered provider may stand between it and the system.
    speaks_winsock: ClassVar[bool] = False

    __slots__ = (
        "__weakref__",
        "closing",
        "handle",
        "key",
        "kind",
        "on_closed",
        "operations",
        "owner",
        "proactor",
        "receives_cancelled",
        "skips_port",
        "user",
    )

    def __init__(self, handle: int, owner: Any, kind: Kind) -> None:
        self.key = _next_key()
        self.handle = handle
        self.owner = owner
        self.kind = kind
        self.skips_port = False
        self.closing = False
        self.operations: list[OverlappedEx] = []
        self.on_closed: Callable[[], None] | None = None
        self.receives_cancelled = 0
        self.proactor: Any = None
        self.user: Any = None

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open"
        return f"<{self.kind} {self.handle} key={self.key} {state} pending={len(self.operations)}>"

    @property
    def subject(self) -> str:
        """The handle as error messages name it."""
        return f"{self.kind} {self.handle}"
