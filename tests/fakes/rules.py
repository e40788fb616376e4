"""The rules of overlapped I/O, which Windows does not tell a program it has broken, and the fake kernel does.

See the header of `kernel.py` for the list.
"""

import ctypes
import weakref
from collections.abc import Iterable
from typing import Any

from iocp_loop._core._kept import ORPHANS
from iocp_loop._core._operation import OverlappedEx
from iocp_loop._win32 import prototypes
from iocp_loop._win32.types import DWORD

from .handles import Request


class Violation(AssertionError):
    """The program broke a rule that Windows would not have told it about."""


class Deadlock(AssertionError):
    """The program waits for ever, and nothing can happen any more."""


class Interrupted(KeyboardInterrupt):
    """Ctrl+C: in a callback, or just before or after a call of the kernel."""


# A prepared argument, back to its value: a private function object, so that the prototype is ours alone.
_python = ctypes.PyDLL(ctypes.pythonapi._name, handle=ctypes.pythonapi._handle)
_value_of = _python.PyLong_FromSize_t
_value_of.restype = ctypes.py_object
_Prepared = type(ctypes.c_size_t.from_param(0))
_MASKS = {
    proto.name: tuple((1 << 8 * ctypes.sizeof(ctype)) - 1 for ctype in proto.parameters.values())
    for proto in (*prototypes.PROTOTYPES, *prototypes.EXTENSIONS)
    if proto.style in (prototypes.HOT, prototypes.WAITING)
}


class RuleChecks:
    """The part of `FakeKernel` that looks after the rules."""

    def violation(self: Any, text: str) -> None:
        self.violations.append(text)
        raise Violation(f"{text} (seed {self.seed})")

    def _arguments(self: Any, name: str, args: tuple[Any, ...]) -> list[int]:
        self.count(name)
        self.interrupt()
        masks = _MASKS[name]
        if len(args) != len(masks):
            self.violation(f"{name} takes {len(masks)} arguments, not {len(args)}")
        # An object of a ctypes type is passed by its value, and is as wide as its type.
        if not all(type(arg) in (_Prepared, DWORD) for arg in args):
            self.violation(f"{name} was called with an argument that was not prepared: {args}")
        return [_value_of(arg) & mask for arg, mask in zip(args, masks, strict=True)]

    def _check_pointers(self: Any, name: str, count_at: int, unwanted: int) -> None:
        if count_at or unwanted:
            self.violation(f"{name}: the byte count of an overlapped call comes with its packet; pass NULL")

    def _remember(self: Any, request: Request) -> None:
        if self._proactor is None:
            return
        operation = self._proactor.pending.get(request.address)
        if operation is None:
            self.violation(f"{request!r} starts and is not in the pending table: another thread may dequeue it first")
        request.witness = weakref.ref(operation)
        self._check_lifetime(request)

    def _check_lifetime(self: Any, request: Request) -> None:
        if request.witness is None:
            return
        operation = request.witness()
        if operation is None:
            self.violation(f"the operation of {request!r} was freed while the kernel owned it")
        if self._proactor.pending.get(request.address) is not operation and operation not in ORPHANS:
            self.violation(f"{operation!r} is in the kernel's hands and not in the pending table")
        owned = list(_spans_of(operation))
        for address, size in request.ranges:
            if size and not any(start <= address and address + size <= end for start, end in owned):
                self.violation(f"nothing that {operation!r} holds keeps the {size} bytes at {address:#x} alive")


def _spans_of(operation: OverlappedEx) -> Iterable[tuple[int, int]]:
    """The memory that an operation keeps alive: its own, and what is in `buffer`."""
    yield ctypes.addressof(operation), ctypes.addressof(operation) + ctypes.sizeof(operation)
    held = operation.buffer
    for thing in held if isinstance(held, (list, tuple)) or hasattr(held, "popleft") else (held,):
        yield from _span_of(thing)


def _span_of(thing: Any) -> Iterable[tuple[int, int]]:
    if isinstance(thing, bytes):
        start = _address_of_bytes(thing)
        yield start, start + len(thing)
    elif isinstance(thing, ctypes.Array):
        yield ctypes.addressof(thing), ctypes.addressof(thing) + ctypes.sizeof(thing)
    elif isinstance(thing, (bytearray, memoryview)) and len(thing):
        start = ctypes.addressof(ctypes.c_char.from_buffer(thing))
        yield start, start + memoryview(thing).nbytes


_address_of_bytes = _python.PyBytes_AsString
_address_of_bytes.argtypes = (ctypes.py_object,)
_address_of_bytes.restype = ctypes.c_size_t
