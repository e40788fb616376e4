"""The event loops under test, by name."""

import asyncio
import importlib
from collections.abc import Callable

# The first one is ours; ratios are its figure against each other's.
NAMES = ("iocp_loop", "proactor", "winloop", "selector")
TITLES = {
    "iocp_loop": "iocp_loop",
    "proactor": "asyncio.ProactorEventLoop",
    "winloop": "winloop",
    "selector": "asyncio.SelectorEventLoop",
}


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes that loop. Raises ImportError where it is not installed, AttributeError where it does not exist."""
    if name == "proactor":
        return asyncio.ProactorEventLoop
    if name == "selector":
        return asyncio.SelectorEventLoop
    return importlib.import_module(name).new_event_loop


def why_missing(name: str) -> str | None:
    """Why that loop cannot be measured here; None if it can."""
    try:
        factory(name)
    except (ImportError, AttributeError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def version(name: str) -> str:
    """The version to print beside a loop's name."""
    module = importlib.import_module("asyncio" if name in ("proactor", "selector") else name)
    return getattr(module, "__version__", "")
