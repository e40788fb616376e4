"""Stomp mode without Windows: released memory is filled with a pattern, kept, and looked at again at the end.

The real StompArena takes the pages away, so that a late write faults. Here it is only found afterwards, but on any
system: `check` names the block that somebody wrote to.
"""

import ctypes
from typing import Any

from iocp_loop._arena import OperationT, retire
from iocp_loop._operation import IoType, OverlappedEx

_PATTERN = 0xDD


class PatternArena:
    """An arena that notices writes to what was released. For one schedule; not thread-safe."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}
        self._released: dict[int, bytearray] = {}

    def operation(self, cls: type[OperationT], io_type: IoType) -> OperationT:
        block = bytearray(ctypes.sizeof(cls))
        operation = cls.from_buffer(block)
        operation.prepare(io_type)
        self._blocks[operation.address] = block
        return operation

    def buffer(self, size: int) -> Any:
        block = bytearray(size)
        array = (ctypes.c_char * size).from_buffer(block)
        self._blocks[ctypes.addressof(array)] = block
        return array

    def release(self, operation: OverlappedEx) -> None:
        retire(operation)
        self._stomp(operation.address)

    def release_buffer(self, buffer: Any) -> None:
        self._stomp(ctypes.addressof(buffer))

    def _stomp(self, address: int) -> None:
        block = self._blocks.pop(address, None)
        if block is not None:
            block[:] = bytes([_PATTERN]) * len(block)
            self._released[address] = block

    def check(self) -> None:
        """Raises AssertionError if anything was written to memory after it was released."""
        for address, block in self._released.items():
            assert not block.strip(bytes([_PATTERN])), f"the released block at {address:#x} was written to"
