"""Where the tests run: what Wine cannot do is skipped there, with its reason, and nowhere else."""

import ctypes

import pytest

from iocp_loop._win32.prototypes import bind


def _wine_version() -> int:
    try:
        version: bytes = bind("wine_get_version")()
    except AttributeError:
        return 0
    return int(version.split(b".")[0])


WINE_VERSION = _wine_version()  # its first number; 0 on Windows
UNDER_WINE = WINE_VERSION > 0
BITS = 8 * ctypes.sizeof(ctypes.c_void_p)  # of this program


def not_under_wine(reason: str, *, since: int = 1, bits: tuple[int, ...] = (32, 64)) -> pytest.MarkDecorator:
    """Skip a test for what Wine lacks, of the given version or newer, in programs of so many bits."""
    return pytest.mark.skipif(since <= WINE_VERSION and BITS in bits, reason=f"Wine: {reason}")
