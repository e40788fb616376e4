"""What the figures were measured on, and what a process holds."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

UNIX_ROOT = "Z:\\"  # Linux's root directory, in every Wine prefix


def wine_version() -> str | None:
    """The version of Wine, or None on Windows."""
    try:
        get_version = ctypes.WinDLL("ntdll").wine_get_version  # type: ignore[attr-defined, unused-ignore]
    except AttributeError:
        return None
    get_version.restype = ctypes.c_char_p
    return get_version().decode()


def processor() -> str:
    """The processor's name."""
    try:
        with Path(UNIX_ROOT, "proc", "cpuinfo").open() as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return os.environ.get("PROCESSOR_IDENTIFIER", platform.machine())


def system_name() -> str:
    """The operating system as the figures are labelled with it; Wine is never called Windows."""
    wine = wine_version()
    if wine is None:
        version = sys.getwindowsversion()  # type: ignore[attr-defined, unused-ignore]
        return f"Windows {version.major}.{version.minor}.{version.build}"
    try:
        kernel = Path(UNIX_ROOT, "proc", "sys", "kernel", "osrelease").read_text().strip()
    except OSError:
        kernel = "?"
    return f"Wine {wine} on Linux {kernel.partition('-')[0]}"


def describe() -> dict[str, Any]:
    """For the head of a results page."""
    return {
        "system": system_name(),
        "wine": wine_version() is not None,
        "processor": processor(),
        "processors": os.cpu_count(),
        "python": f"CPython {platform.python_version()} {platform.machine()}",
    }


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS (MSDN, psapi.h)."""

    _fields_ = [
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    ]


def committed_bytes() -> int:
    """Private memory of this process in bytes: what Windows calls the commit charge."""
    counters = _MemoryCounters()
    counters.cb = ctypes.sizeof(counters)
    get = ctypes.WinDLL("psapi").GetProcessMemoryInfo  # type: ignore[attr-defined, unused-ignore]
    get.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    if not get(-1, ctypes.addressof(counters), counters.cb):
        raise OSError("GetProcessMemoryInfo failed")
    return counters.PagefileUsage
