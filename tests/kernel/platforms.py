"""Where the tests run: what Wine cannot do is skipped there, with its reason, and nowhere else."""

import pytest

from iocp_loop._win32.prototypes import bind


def _under_wine() -> bool:
    try:
        bind("wine_get_version")
    except AttributeError:
        return False
    return True


UNDER_WINE = _under_wine()


def not_under_wine(reason: str) -> pytest.MarkDecorator:
    """Skip a test for what Wine lacks."""
    return pytest.mark.skipif(UNDER_WINE, reason=f"Wine: {reason}")
