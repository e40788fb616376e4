"""Level 0: facts about Windows, through ctypes. No opinions, no state beyond bound functions, no asyncio.

types.py        scalars and structures, spelled as in the SDK headers
constants.py    numbers, by family, with their header
prototypes.py   one table of functions: DLL, name, result, parameters
memory.py       addresses of Python's own objects
sockaddr.py     socket addresses to and from bytes
errors.py       NTSTATUS -> WinError -> OSError
kernel.py       `Kernel`, the protocol the rest of the package is written against, and `Win32Kernel`
"""
