"""What is kept for the life of the process, because the kernel may still write there."""

import ctypes
from typing import Any

# Operations that died in the kernel's hands, and those a closing proactor could not get back.
ORPHANS: list[Any] = []
# What served a handle whose call could not be interrupted: its thread is in that call.
ABANDONED: list[Any] = []


def keep_for_ever(operation: Any) -> None:
    """Never free an operation, nor what it points to.

    The list is for those who look; the extra reference outlives even the interpreter's own clearing of modules.
    """
    ORPHANS.append(operation)
    # SAFETY: nobody owns this memory any more but the kernel; the reference is never given back.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(operation))


def orphan_addresses() -> set[int]:
    """Those that the kernel still owns."""
    return {orphan.address for orphan in ORPHANS if orphan.pending}
