"""Which class serves a handle: the one room that knows them all."""

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
        may_skip_port: what succeeds at once posts no packet, where that is safe. Not where threads wait on the port by
            themselves: see `Proactor.settle`.

    Raises:
        OSError: as `Proactor.register`.
        RuntimeError, ValueError: as `open_shared`.
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
    """Make bytes flow through a pipe, a file, a device or a console.

    Args:
        proactor: delivers its packets.
        handle: the OS handle.
        owner: as for `Endpoint`.
        is_overlapped: it was opened with FILE_FLAG_OVERLAPPED, and no thread must wait for it.
        kind: as for `open_threaded`, of one that was not.

    Raises:
        OSError: as `open_overlapped` and `open_threaded`.
    """
    if is_overlapped:
        return open_overlapped(proactor, handle, owner)
    return open_threaded(proactor, handle, owner, kind)
