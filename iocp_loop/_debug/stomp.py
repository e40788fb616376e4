"""Stomp mode: every operation and every buffer on pages of its own, inaccessible once released.

A block is placed against the end of its last page, and the page behind that is never committed: an overrun faults at
the first byte. Releasing decommits the pages but keeps their addresses reserved, so that a released address does not
come to name something else. What then touches it fails at once:

* our own stale access: an access violation where it happens (`faulthandler` prints the stack);
* a late kernel write to a buffer: under Wine the packet says STATUS_ACCESS_VIOLATION. Windows locks the pages of a
  pending receive and would write to the orphaned page instead, so there the net is the LifetimeError below;
* releasing while the kernel owns the operation: LifetimeError, before any harm is done.

A block whose Python object died, and that nobody has released, goes when the next one is placed, and not at once: the
collector tells of deaths before it calls the first `__del__`, and an operation's may have to get it back from the
kernel. One that the process keeps for ever never goes.

The last QUARANTINE_MAX released blocks stay reserved; older ones are given back to the system, because a process may
have only so many separate regions of memory.
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
_ALIGNMENT = 16  # What malloc promises, and what OVERLAPPED needs.


class StompArena:
    """An arena that makes every use after release an immediate error. Thread-safe."""

    def __init__(self) -> None:
        self._allocate = prototypes.bind("VirtualAlloc")
        self._free = prototypes.bind("VirtualFree")
        self._lock = threading.RLock()
        self._blocks: dict[int, tuple[int, int]] = {}  # block address -> (first page, bytes committed)

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        """As in `Arena`. The pages go when the operation is released, or some time after it died."""
        operation = cls.from_address(self._place(ctypes.sizeof(cls)))
        operation.prepare(io_type)
        weakref.finalize(operation, _died.append, (self, operation.address)).atexit = False
        return operation

    def buffer(self, size: int) -> Any:
        """As in `Arena`. The pages go when the buffer is released, or some time after it died."""
        array = array_type(size).from_address(self._place(size))
        weakref.finalize(array, _died.append, (self, ctypes.addressof(array))).atexit = False
        return array

    # On pages of its own, and not a bytes object in the heap.
    message_buffer = buffer

    def release(self, operation: OverlappedEx) -> None:
        """As in `Arena`."""
        retire(operation)
        self.stomp(operation.address)

    def release_buffer(self, buffer: Any) -> None:
        """As in `Arena`."""
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
        """Make a block inaccessible. Twice is once."""
        with self._lock:
            block = self._blocks.pop(address, None)
        if block is None:
            return  # Released by hand, and now its Python object died: the pages went the first time.
        first, committed = block
        if not self._free(first, committed, Memory.DECOMMIT):
            raise LifetimeError(f"the pages of the block at {address:#x} could not be made inaccessible")
        _quarantine.append(first)
        if len(_quarantine) > QUARANTINE_MAX:
            self._free(_quarantine.popleft(), 0, Memory.RELEASE)


# Blocks whose Python objects are dead, of all arenas: the loop of one may have placed its last.
_died: deque[tuple[StompArena, int]] = deque()
# First pages of the blocks released last, of all arenas: those of a loop that is gone would stay reserved for ever.
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
