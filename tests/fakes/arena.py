"""Stomp mode without Windows: released memory is filled with a pattern, kept, and looked at again at the end.

The real StompArena takes the pages away, so that a late write faults. Here it is only found afterwards, but on any
system: `check` names the block that somebody wrote to.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from iocp_loop._core._arena import OperationT, retire
from iocp_loop._core._operation import IoType, OverlappedEx
from iocp_loop._win32.memory import address_of, new_bytes

_PATTERN = 0xDD


class PatternArena:
    """An arena that notices writes to what was released. For one schedule; not thread-safe.

    `is_exhausted` is asked before it gives out anything: True, and it raises MemoryError.
    """

    def __init__(self, is_exhausted: Callable[[], bool] = bool) -> None:
        self._is_exhausted = is_exhausted
        self._blocks: dict[int, bytearray] = {}
        self._released: dict[int, bytearray] = {}
        self._gives_bytes = False

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        self._check()
        block = bytearray(ctypes.sizeof(cls))
        operation = cls.from_buffer(block)
        operation.prepare(io_type)
        self._blocks[operation.address] = block
        return operation

    def buffer(self, size: int) -> Any:
        self._check()
        block = bytearray(size)
        array = (ctypes.c_char * size).from_buffer(block)
        self._blocks[ctypes.addressof(array)] = block
        return array

    def message_buffer(self, size: int) -> Any:
        # Every other one as in HeapArena: who keeps what he was given, and compares it later, sees what was written to
        # it behind his back.
        self._check()
        self._gives_bytes = not self._gives_bytes
        return new_bytes(size=size) if self._gives_bytes else self.buffer(size)

    def release(self, operation: OverlappedEx) -> None:
        retire(operation)
        self._stomp(operation.address)

    def release_buffer(self, buffer: Any) -> None:
        self._stomp(address_of(buffer))

    def _check(self) -> None:
        if self._is_exhausted():
            raise MemoryError("the fake arena is exhausted")

    def _stomp(self, address: int) -> None:
        block = self._blocks.pop(address, None)
        if block is not None:
            block[:] = bytes([_PATTERN]) * len(block)
            self._released[address] = block

    def check(self) -> None:
        """Raises AssertionError if anything was written to memory after it was released."""
        for address, block in self._released.items():
            assert not block.strip(bytes([_PATTERN])), f"the released block at {address:#x} was written to"
