"""The addresses of Python's own objects: bytes that the kernel reads, and new bytes objects and buffers it fills."""

import ctypes
from typing import Any

# A function object of our own, because the attributes of `ctypes.pythonapi` are shared by the whole process.
address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
address_of_bytes.__doc__ = """The address of a bytes object's first byte; valid as long as the object lives."""

new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi), ((1, "initial", None), (1, "size"))
)
new_bytes.__doc__ = """A bytes object of `size` bytes that are to be filled before anybody sees it (C API, bytes)."""


def address_of(buffer: Any) -> int:
    """The address of a receive buffer's first byte: of a bytes object, a ctypes array, or a writable memoryview.

    A memoryview pins its object as long as the memoryview lives. So would an array type made for its size, but that is
    garbage which only the cycle collector frees.
    """
    if type(buffer) is bytes:
        return address_of_bytes(buffer)  # type: ignore[no-any-return]
    if type(buffer) is memoryview:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else 0
    return ctypes.addressof(buffer)
