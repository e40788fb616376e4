"""Choosing the class that serves a handle: the one module that knows them all."""

import socket
from collections.abc import Callable
from typing import Any

from .._core._endpoint import Kind
from .._core._proactor import Proactor
from .._win32.constants import Error
from .._win32.kernel import Kernel
from . import _pipes
from ._base import StreamHandle
from ._pipes import OverlappedPipe, open_overlapped
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

    Thread-safe, of different sockets. Source: MSDN, CreateIoCompletionPort.
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

    Thread-safe, of different handles. Source: MSDN, CreateIoCompletionPort; Synchronous and Asynchronous I/O.
    """
    if is_overlapped:
        return open_overlapped(proactor, handle, owner)
    return open_threaded(proactor, handle, owner, kind)


class OwnedHandle:
    """A handle of ours, as the owner of an endpoint. Its thread-safety is the endpoint's.

    Args:
        kernel: whose handle it is.
        handle: the OS handle.
    """

    def __init__(self, kernel: Kernel, handle: int) -> None:
        self._kernel = kernel
        self._handle = handle

    def close(self) -> None:
        """Close it. Twice is once."""
        handle, self._handle = self._handle, 0
        if handle:
            self._kernel.CloseHandle(handle)


def create_pipe(
    proactor: Proactor, name: str, *, first: bool = True, message_mode: bool = False, remote: bool = False
) -> OverlappedPipe:
    r"""Make a server's instance of a named pipe, and associate it with the proactor's port.

    Its `connect_operation` is over when a client has come. Closing the endpoint closes it. Thread-safe.

    Args:
        proactor: delivers its packets.
        name: ``\\.\pipe\...``, 256 characters at most.
        first: whether this must be the first instance of that name. False for those that wait beside it.
        message_mode: keep the boundaries between writes.
        remote: accept clients from other machines, too.

    Raises:
        PermissionError: the name exists already, and `first` was asked for (`winerror` 5).
        OSError: any other answer of CreateNamedPipe or of the port.

    Source: MSDN, CreateNamedPipeW.
    """
    kernel = proactor.kernel
    return _owned(proactor, _pipes.create_instance(kernel, name, first=first, message_mode=message_mode, remote=remote))


def connect_pipe(proactor: Proactor, name: str, *, message_mode: bool = False) -> OverlappedPipe:
    r"""Open a named pipe as its client, and associate it with the proactor's port. It does not wait. Thread-safe.

    Args:
        proactor: delivers its packets.
        name: ``\\.\pipe\...``
        message_mode: receive message by message; the server must have made the pipe so.

    Raises:
        FileNotFoundError: nobody serves that name.
        OSError: with `winerror` 231 while every instance has its client.

    Source: MSDN, CreateFileW; Named Pipe Client.
    """
    kernel = proactor.kernel
    handle = _pipes.open_client(kernel, name)
    return _owned(proactor, handle, (lambda: _pipes.set_message_mode(kernel, handle, name)) if message_mode else None)


def _owned(proactor: Proactor, handle: int, prepare: Callable[[], None] | None = None) -> OverlappedPipe:
    owner = OwnedHandle(proactor.kernel, handle)
    try:
        if prepare is not None:
            prepare()
        return open_overlapped(proactor, handle, owner)
    except BaseException:
        owner.close()
        raise
