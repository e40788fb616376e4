"""The loop's `sock_*` methods: what IocpProactor's futures bring, awaited, and nothing lost when the task is cancelled.

A task may be cancelled when its operation has finished already and only its result is on the way. What came is then
given back to the socket, and the next receive begins with it.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from ._iocp_proactor import IocpProactor
from ._turn import TurningLoop

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BareSockets(TurningLoop):
    """Sockets that their owner keeps, one operation at a time. Raises OSError as the operations do."""

    _stdlib_proactor: IocpProactor

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Receive up to `n` bytes. A time-out or cancellation loses none: see `IocpProactor`."""
        _check_nonblocking(sock, "sock_recv")
        future = self._stdlib_proactor.recv(sock, n)
        try:
            return await future
        except asyncio.CancelledError:
            if _has_result(future):
                self._stdlib_proactor.give_back(sock, future.result())
            raise
        finally:
            del future  # An error's traceback holds this frame, and the future holds the error.

    async def sock_recv_into(self, sock: socket.socket, buf: "Buffer") -> int:
        """Receive into a writable buffer; the byte count."""
        _check_nonblocking(sock, "sock_recv_into")
        future = self._stdlib_proactor.recv_into(sock, buf)
        try:
            return await future
        except asyncio.CancelledError:
            if _has_result(future):
                self._stdlib_proactor.give_back(sock, bytes(memoryview(buf).cast("B")[: future.result()]))
            raise
        finally:
            del future  # An error's traceback holds this frame, and the future holds the error.

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """Receive one datagram and its sender's address."""
        _check_nonblocking(sock, "sock_recvfrom")
        future = self._stdlib_proactor.recvfrom(sock, bufsize)
        try:
            return await future
        except asyncio.CancelledError:
            if _has_result(future):
                self._stdlib_proactor.give_back_datagram(sock, *future.result())
            raise
        finally:
            del future  # An error's traceback holds this frame, and the future holds the error.

    async def sock_recvfrom_into(self, sock: socket.socket, buf: "Buffer", nbytes: int = 0) -> tuple[int, Any]:
        """Receive one datagram into a writable buffer, at most `nbytes` of it; the byte count and the sender."""
        _check_nonblocking(sock, "sock_recvfrom_into")
        future = self._stdlib_proactor.recvfrom_into(sock, buf, nbytes)
        try:
            return await future
        except asyncio.CancelledError:
            if _has_result(future):
                count, sender = future.result()
                self._stdlib_proactor.give_back_datagram(sock, bytes(memoryview(buf).cast("B")[:count]), sender)
            raise
        finally:
            del future  # An error's traceback holds this frame, and the future holds the error.

    async def sock_sendall(self, sock: socket.socket, data: "Buffer") -> None:
        """Send all of a buffer."""
        _check_nonblocking(sock, "sock_sendall")
        await self._stdlib_proactor.send(sock, data)

    async def sock_sendto(self, sock: socket.socket, data: "Buffer", address: "tuple[Any, ...] | str | Buffer") -> int:
        """Send one datagram to an address; the byte count."""
        _check_nonblocking(sock, "sock_sendto")
        return await self._stdlib_proactor.sendto(sock, data, 0, address)

    async def sock_connect(self, sock: socket.socket, address: "tuple[Any, ...] | str | Buffer") -> None:
        """Connect to an address, resolving it if need be."""
        _check_nonblocking(sock, "sock_connect")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        await self._stdlib_proactor.connect(sock, address)

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept one connection: the new non-blocking socket and the peer's address."""
        _check_nonblocking(sock, "sock_accept")
        future = self._stdlib_proactor.accept(sock)
        try:
            return await future
        except asyncio.CancelledError:
            if _has_result(future):
                future.result()[0].close()
            raise
        finally:
            del future  # An error's traceback holds this frame, and the future holds the error.


def _has_result(future: "asyncio.Future[Any]") -> bool:
    """Whether it was finished before the task that waited for it could be told, and was cancelled instead."""
    return future.done() and not future.cancelled() and future.exception() is None


def _check_nonblocking(sock: socket.socket, operation: str) -> None:
    # Overlapped calls do not mind, and ProactorEventLoop never asks. The documentation demands it, so debug mode does.
    if sock.gettimeout() != 0 and asyncio.get_running_loop().get_debug():
        raise ValueError(
            f"the socket must be non-blocking: {operation} on socket {sock.fileno()}; "
            "call sock.setblocking(False) first"
        )
