"""One record per OS handle: its key, its operations outstanding, and whether it is closing.

A handle gets its key when it is associated and keeps it for life; what uses the handle (a transport, a listener, a
bare `sock_recv`) may come later and change. Keys are never used twice in a process, so that whoever goes by them never
takes a late packet of a closed handle for a stranger's.
"""

import itertools
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ._operation import OverlappedEx


class Key(IntEnum):
    """Completion keys that are not endpoints; everything from FIRST_ENDPOINT up is one."""

    WAKE = 0  # posted by another thread: look at the ready queue
    POSTED = 1  # posted by a thread of ours, for an operation that the kernel never saw: the address is that one's
    FIRST_ENDPOINT = 16


class Closable(Protocol):
    """What ends with something else."""

    def close(self) -> object:
        """It has ended. Twice is once."""


class Kind(StrEnum):
    """What a handle is, as messages name it."""

    SOCKET = "socket"
    PIPE = "pipe"
    FILE = "file"
    CONSOLE = "console"
    DEVICE = "device"
    WAIT = "wait"  # no handle: what waits for other people's handles hang on


_next_key = itertools.count(Key.FIRST_ENDPOINT).__next__


class Endpoint:
    """One handle known to a proactor. What can be done with it, a subclass says (`_handles`).

    Args:
        handle: the OS handle's value; 0 where there is none.
        owner: an object whose `close()` closes the handle when the endpoint is closed; None if the handle belongs to
            somebody else, who must keep it open until its operations are done.
        kind: for messages.

    Attributes:
        key: its completion key.
        skips_port: an inline success posts no packet.
        operations: what the kernel owns on it right now. A list and not a count: appending and removing are atomic,
            so threads need no lock for it, and a leak report can name what is there.
        closing: no further operation may be submitted.
        on_closed: called once the handle is closed.
        receives_cancelled: how often a receive on it was cancelled. On Windows that ends the others too
            (https://github.com/dotnet/corefx/issues/36516), which must be told from an end of their own.
        proactor: whose table it is in; None before and where there is none.
        user: who uses the handle, for programs that go by the key of a packet; theirs to set. None if nobody said.
    """

    # Whether its statuses read as Winsock's errors, and a layered provider may stand between it and the system.
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
