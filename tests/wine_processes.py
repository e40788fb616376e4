"""CreateProcess under Wine: on a busy machine it fails now and then, whoever calls it, and works when it is asked again.

QUIRK(wine): a process that dies before it has told wineserver that it runs makes its creator's call fail with
ERROR_INTERNAL_ERROR. About one in some thousands does so while both processors of a small machine are busy. Nothing
has been started then, so asking again is safe. No test may meet it by itself: most start processes.
"""

import ctypes
from collections.abc import Callable
from typing import Any

ERROR_INTERNAL_ERROR = 1359
ATTEMPTS_MAX = 5

refused: list[str] = []  # The command line of each attempt that failed so.


def ask_again() -> None:
    """From now on, whoever creates a process through the standard library asks again when Wine fails so."""
    import _winapi

    if hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"):  # type: ignore[attr-defined]
        _winapi.CreateProcess = asking_again(_winapi.CreateProcess)


def asking_again(create: Callable[..., Any]) -> Callable[..., Any]:
    """As `create`, which gets CreateProcess's arguments, but failing only when it fails otherwise, or always."""

    def create_process(*args: Any) -> Any:
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return create(*args)
            except OSError as exc:
                if getattr(exc, "winerror", None) != ERROR_INTERNAL_ERROR:
                    raise
                refused.append(str(args[1]))
        return create(*args)

    return create_process
