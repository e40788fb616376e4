"""Stomp mode: every operation and every buffer has pages of its own, which become inaccessible when it is released.

A block ends at the end of its last page, and the page behind that is never committed, so an overrun faults at the first
byte. Releasing a block decommits its pages but keeps the addresses reserved, so that nothing else can get them. Then
each access fails at once:

* our own stale access: an access violation where it happens (`faulthandler` prints the stack);
* a late kernel write to a buffer: under Wine the packet has STATUS_ACCESS_VIOLATION. Windows locks the pages of a
  pending receive, and would write to the orphaned page instead; there the LifetimeError below is the protection;
* releasing while the kernel owns the operation: LifetimeError, before any harm is done.

If a Python object dies without being released, its block is made inaccessible when the next block is placed, and not at
once: the collector calls weak references before the first `__del__`, and an operation's `__del__` may have to get the
block back from the kernel. A block that the process keeps for ever stays accessible.

The last QUARANTINE_MAX released blocks stay reserved. Older ones are given back to the system, because a process may
have only a limited number of separate regions of memory.
"""

import ctypes
import threading
import weakref
from collections import deque
from typing import Any

from .._core._arena import OperationT, array_type, retire
from .._core._kept import ORPHANS
from .._core._operation import IoType, LifetimeError, OverlappedEx
from .._win32 import prototypes
from .._win32.constants import Memory
from .._win32.errors import os_error

PAGE_SIZE = 4096
# Far more than a program has in use at a time. QUIRK(wine): Linux allows a process 65,530 mappings, two per block.
QUARANTINE_MAX = 8192
_ALIGNMENT = 16  # malloc promises this much, and OVERLAPPED needs it.


class StompArena:
    """An arena that makes every use after release an immediate error. Thread-safe."""

    def __init__(self) -> None:
        self._allocate = prototypes.bind("VirtualAlloc")
        self._free = prototypes.bind("VirtualFree")
        self._lock = threading.RLock()
        self._blocks: dict[int, tuple[int, int]] = {}  # block address -> (first page, bytes committed)

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        """A new operation. Its pages are decommitted when it is released, or some time after it died."""
        operation = cls.from_address(self._place(ctypes.sizeof(cls)))
        operation.prepare(io_type)
        weakref.finalize(operation, _died.append, (self, operation.address)).atexit = False
        return operation

    def buffer(self, size: int) -> Any:
        """A new array. Its pages are decommitted when it is released, or some time after it died."""
        array = array_type(size).from_address(self._place(size))
        weakref.finalize(array, _died.append, (self, ctypes.addressof(array))).atexit = False
        return array

    # An array on pages of its own, and not a bytes object, which would be on the heap.
    message_buffer = buffer

    def release(self, operation: OverlappedEx) -> None:
        retire(operation)
        self.stomp(operation.address)

    def release_buffer(self, buffer: Any) -> None:
        self.stomp(ctypes.addressof(buffer))

    def _place(self, size: int) -> int:
        if _died:
            _stomp_the_dead()
        committed = -(-max(size, 1) // PAGE_SIZE) * PAGE_SIZE
        # The guard page is reserved with the block and never committed.
        first = self._allocate(0, committed + PAGE_SIZE, Memory.RESERVE, Memory.PAGE_NOACCESS)
        if not first or not self._allocate(first, committed, Memory.COMMIT, Memory.PAGE_READWRITE):
            code = ctypes.get_last_error()  # type: ignore[attr-defined, unused-ignore]
            raise os_error(code, "VirtualAlloc", f"{committed} bytes")
        address: int = first + (committed - size) // _ALIGNMENT * _ALIGNMENT
        with self._lock:
            self._blocks[address] = (first, committed)
        return address

    def stomp(self, address: int) -> None:
        """Make a block inaccessible. A second call does nothing."""
        with self._lock:
            block = self._blocks.pop(address, None)
        if block is None:
            return  # It was released before its Python object died.
        first, committed = block
        if not self._free(first, committed, Memory.DECOMMIT):
            raise LifetimeError(f"the pages of the block at {address:#x} could not be made inaccessible")
        _quarantine.append(first)
        if len(_quarantine) > QUARANTINE_MAX:
            self._free(_quarantine.popleft(), 0, Memory.RELEASE)


# Blocks whose Python objects have died. One list for all arenas, because an arena may never place another block.
_died: deque[tuple[StompArena, int]] = deque()
# The first pages of the blocks released last. One list for all arenas, because those of a loop that is gone would
# otherwise stay reserved for ever.
_quarantine: deque[int] = deque()


def _stomp_the_dead() -> None:
    kept = {orphan.address for orphan in ORPHANS}
    buffers: list[Any] = [orphan.buffer for orphan in ORPHANS]
    for buffer in buffers:
        if isinstance(buffer, ctypes.Array):
            kept.add(ctypes.addressof(buffer))  # pyright: ignore[reportUnknownArgumentType]
    while _died:
        try:
            arena, address = _died.popleft()
        except IndexError:
            return  # Another thread was here first.
        if address not in kept:
            arena.stomp(address)
