"""Objects that are kept for the life of the process, because the kernel may still write into their memory."""

import ctypes
from typing import Any

# Operations that lost their last reference while the kernel owned them, or that a closing proactor did not get back.
ORPHANS: list[Any] = []
# Workers whose thread is in a call that could not be interrupted.
ABANDONED: list[Any] = []


def keep_for_ever(operation: Any) -> None:
    """Never free an operation, nor what it points to.

    `ORPHANS` lists it for debugging. The extra reference outlives even the interpreter's own clearing of modules.
    """
    ORPHANS.append(operation)
    # SAFETY: only the kernel owns this memory; the reference is never given back.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(operation))


def orphan_addresses() -> set[int]:
    """The addresses of those orphans that the kernel still owns."""
    return {orphan.address for orphan in ORPHANS if orphan.pending}
