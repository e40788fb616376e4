"""Where Python keeps the bytes that the kernel is to read."""

import ctypes

# A function object of our own: what `ctypes.pythonapi` hands out is shared by the whole process.
address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
address_of_bytes.__doc__ = """The address of a bytes object's first byte; valid as long as the object lives."""
