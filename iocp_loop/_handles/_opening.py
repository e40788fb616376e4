"""Choosing the class that serves a handle: the one module that knows them all."""

import socket
from typing import Any

from .._core._endpoint import Kind
from .._core._proactor import Proactor
from .._win32.constants import Error
from ._base import StreamHandle
from ._pipes import open_overlapped
from ._shared_sockets import open_shared
from ._sockets import OverlappedSocket, SocketHandle
from ._threaded import open_threaded


def open_socket(
    proactor: Proactor, sock: socket.socket, owner: Any = None, *, may_skip_port: bool = True
) -> SocketHandle:
    """Associate a socket with the proactor's port.

    A socket that belongs to another port, loop or process is served through readiness instead.

    Args:
        proactor: delivers its packets.
        sock: the socket, not blocking.
        owner: as for `Endpoint`.
        may_skip_port: let a call that succeeds at once post no packet, where that is safe. Must be False if threads
            wait on the port themselves: see `Proactor.settle`.

    Raises:
        OSError: the socket can neither be associated nor polled; it may be closed.
        RuntimeError: a transport or server of this very port owns the socket.
        ValueError: the socket belongs to another port, and is blocking.
    """
    skip = may_skip_port and proactor.kernel.skips_port_safely(sock)
    try:
        return proactor.register(OverlappedSocket(sock.fileno(), owner), skip_port=skip)
    except OSError as exc:
        if getattr(exc, "winerror", None) != Error.INVALID_PARAMETER:
            raise
    return open_shared(proactor, sock, owner)


def open_stream(
    proactor: Proactor, handle: int, owner: Any = None, *, is_overlapped: bool = True, kind: Kind | None = None
) -> StreamHandle:
    """Read or write a pipe, a file, a device or a console.

    Args:
        proactor: delivers its packets.
        handle: the handle.
        owner: as for `Endpoint`.
        is_overlapped: whether it was opened with FILE_FLAG_OVERLAPPED. If not, a thread waits for it.
        kind: as for `open_threaded`; only for a handle that is not overlapped.

    Raises:
        OSError: the handle cannot be associated with the port, or is none.
    """
    if is_overlapped:
        return open_overlapped(proactor, handle, owner)
    return open_threaded(proactor, handle, owner, kind)
