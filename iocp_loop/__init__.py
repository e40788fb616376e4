"""An asyncio event loop for Windows on I/O completion ports, in pure Python.

    asyncio.run(main(), loop_factory=iocp_loop.new_event_loop)

Front door: `new_event_loop`, `run`, `IocpEventLoop`; for the stdlib's own loop, `IocpProactor`. `IocpEventLoopPolicy`
and `install()` exist where asyncio still has policies (up to Python 3.15). What is under it, usable without asyncio:
`iocp_loop.lowlevel`.
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
    # Lazily, because asyncio is losing its policies: importing this package must not need them.
    if name in ("IocpEventLoopPolicy", "install") and sys.version_info < (3, 16):
        from ._loop import _policy

        return getattr(_policy, name)
    if name == "_operation":
        # Who asks after a run for the operations that the kernel was left with asks here for ORPHANS; it has moved.
        from ._core import _kept

        return _kept
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
