"""An asyncio event loop for Windows on I/O completion ports, in pure Python.

    asyncio.run(main(), loop_factory=iocp_loop.new_event_loop)

Front door: `new_event_loop`, `run`, `IocpEventLoop`. Under it, usable without asyncio: `CompletionPort`,
`OverlappedEx`, `IoType`, `Proactor`, and the operations of a TCP server (`accept_operation`, `receive_operation`,
`send_operation` and what goes with them; see examples/worker_threads.py). For the stdlib's own loop: `IocpProactor`.
`IocpEventLoopPolicy` and `install()` exist where asyncio still has policies (up to Python 3.15).
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":
    raise ImportError(
        "iocp_loop runs on Windows only; on Linux, `python3 tools/dev.py python` in its source tree runs the Windows "
        "Python under Wine."
    )

from ._core._operation import IoType as IoType
from ._core._operation import LifetimeError as LifetimeError
from ._core._operation import OverlappedEx as OverlappedEx
from ._core._port import CompletionPort as CompletionPort
from ._core._port import Packet as Packet
from ._core._proactor import Proactor as Proactor
from ._handles._sockets import accept_operation as accept_operation
from ._handles._sockets import error_of as error_of
from ._handles._sockets import finish_accept as finish_accept
from ._handles._sockets import receive_operation as receive_operation
from ._handles._sockets import send_operation as send_operation
from ._handles._sockets import set_accepting_socket as set_accepting_socket
from ._handles._sockets import set_send_vector as set_send_vector
from ._loop._event_loop import IocpEventLoop as IocpEventLoop
from ._loop._event_loop import new_event_loop as new_event_loop
from ._loop._event_loop import run as run
from ._loop._iocp_proactor import IocpProactor as IocpProactor

if TYPE_CHECKING:
    from ._loop._policy import IocpEventLoopPolicy as IocpEventLoopPolicy
    from ._loop._policy import install as install

__version__ = "0.1.0"

__all__ = [
    "CompletionPort",
    "IoType",
    "IocpEventLoop",
    "IocpProactor",
    "LifetimeError",
    "OverlappedEx",
    "Packet",
    "Proactor",
    "accept_operation",
    "error_of",
    "finish_accept",
    "new_event_loop",
    "receive_operation",
    "run",
    "send_operation",
    "set_accepting_socket",
    "set_send_vector",
]


def __getattr__(name: str) -> Any:
    # Lazily, because asyncio is losing its policies: importing this package must not need them.
    if name in ("IocpEventLoopPolicy", "install") and sys.version_info < (3, 16):
        from ._loop import _policy

        return getattr(_policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
