"""One record per OS handle: its key, its operations outstanding, and whether it is closing.

A handle gets its key when it is associated and keeps it for life; what uses the handle (a transport, a listener, a
bare `sock_recv`) may come later and change. Keys are never used twice in a process, so that whoever goes by them never
takes a late packet of a closed handle for a stranger's.
"""

import itertools
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._operation import OverlappedEx


class Key(IntEnum):
    """Completion keys that are not endpoints; everything from FIRST_ENDPOINT up is one."""

    WAKE = 0  # posted by another thread: look at the ready queue
    WAIT = 1  # posted when a handle that somebody waits for was signalled; the address is the operation's
    FIRST_ENDPOINT = 16


_next_key = itertools.count(Key.FIRST_ENDPOINT).__next__


class Endpoint:
    """One handle known to a proactor.

    Attributes:
        key: its completion key.
        handle: the OS handle's value.
        owner: the Python object that owns the handle and closes it, or None if somebody else's.
        kind: a word for messages: socket, pipe, device, and what else a handle may be ("file", "console", "wait").
        is_socket: which table maps its statuses to errors.
        skips_port: an inline success posts no packet.
        operations: what the kernel owns on it right now. A list and not a count: appending and removing are atomic,
            so threads need no lock for it, and a leak report can name what is there.
        closing: no further operation may be submitted.
        on_closed: called once the handle is closed.
        leftover: bytes of a receive that succeeded although it was cancelled; the next receive begins with them.
        datagrams: as `leftover`, of datagrams: each with its sender. None while there are none.
        receives_cancelled: how often a receive on it was cancelled. On Windows that ends the others too
            (https://github.com/dotnet/corefx/issues/36516), which must be told from an end of their own.
        sends: the futures of what is to be sent, one after the other; the first is under way. None if there is none.
        proactor: whose table it is in; None before and where there is none.
        verbs: the module of level 3 whose verbs serve it, set by that module's `register`; None if nobody said.
    """

    __slots__ = (
        "__weakref__",
        "closing",
        "datagrams",
        "handle",
        "is_socket",
        "key",
        "kind",
        "leftover",
        "on_closed",
        "operations",
        "owner",
        "proactor",
        "receives_cancelled",
        "sends",
        "skips_port",
        "verbs",
    )

    def __init__(self, handle: int, owner: Any, kind: str) -> None:
        self.key = _next_key()
        self.handle = handle
        self.owner = owner
        self.kind = kind
        self.is_socket = kind == "socket"
        self.skips_port = False
        self.closing = False
        self.operations: list[OverlappedEx] = []
        self.on_closed: Callable[[], None] | None = None
        self.leftover = b""
        self.datagrams: list[tuple[bytes, Any]] | None = None
        self.receives_cancelled = 0
        self.sends: list[Any] | None = None
        self.verbs: Any = None
        self.proactor: Any = None

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open"
        return f"<{self.kind} {self.handle} key={self.key} {state} pending={len(self.operations)}>"

    @property
    def subject(self) -> str:
        """The handle as error messages name it."""
        return f"{self.kind} {self.handle}"
