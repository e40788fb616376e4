"""An asyncio event loop for Windows on I/O completion ports, in pure Python.

    asyncio.run(main(), loop_factory=iocp_loop.new_event_loop)

The public names are `new_event_loop`, `run` and `IocpEventLoop`; for the stdlib's own loop, `IocpProactor`.
`IocpEventLoopPolicy` and `install()` exist while asyncio has policies (up to Python 3.15). `iocp_loop.lowlevel` has the
layers below, which are usable without asyncio.
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":
    raise ImportError(
        "iocp_loop runs on Windows only; on Linux, `python3 tools/dev.py python` in its source tree runs the Windows "
        "Python under Wine."
    )

from . import lowlevel as lowlevel
from ._loop._event_loop import IocpEventLoop as IocpEventLoop
from ._loop._event_loop import new_event_loop as new_event_loop
from ._loop._event_loop import run as run
from ._loop._iocp_proactor import IocpProactor as IocpProactor

if TYPE_CHECKING:
    from ._loop._policy import IocpEventLoopPolicy as IocpEventLoopPolicy
    from ._loop._policy import install as install

__version__ = "0.1.0"

__all__ = ["IocpEventLoop", "IocpProactor", "lowlevel", "new_event_loop", "run"]


def __getattr__(name: str) -> Any:
    # Lazily, because asyncio removes its policies, and importing this package must not need them.
    if name in ("IocpEventLoopPolicy", "install") and sys.version_info < (3, 16):
        from ._loop import _policy

        return getattr(_policy, name)
    if name == "_operation":
        # Programs that look for operations left with the kernel read ORPHANS here; it is in `_kept`.
        from ._core import _kept

        return _kept
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
