"""Where Python keeps the bytes that the kernel is to read, or to write before anyone has seen them."""

import ctypes
from typing import Any

# A function object of our own: what `ctypes.pythonapi` hands out is shared by the whole process.
address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
address_of_bytes.__doc__ = """The address of a bytes object's first byte; valid as long as the object lives."""

new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi), ((1, "initial", None), (1, "size"))
)
new_bytes.__doc__ = """A bytes object of `size` bytes that are to be filled before anybody sees it (C API, bytes)."""


def address_of(buffer: Any) -> int:
    """The address of a receive buffer's first byte: of a bytes object, a ctypes array, or a writable memoryview.

    A memoryview pins what it shows as long as it lives. An array type made for its size would do so as well, but it is
    garbage that only the cycle collector finds.
    """
    if type(buffer) is bytes:
        return address_of_bytes(buffer)  # type: ignore[no-any-return]
    if type(buffer) is memoryview:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else 0
    return ctypes.addressof(buffer)
