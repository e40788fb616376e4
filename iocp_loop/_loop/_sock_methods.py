"""The loop's `sock_*` methods: what IocpProactor's futures bring, awaited, and nothing lost when the task is cancelled.

A task may be cancelled when its operation has finished already and only its result is on the way. What came is then
given back to the socket, and the next receive begins with it.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._iocp_proactor import IocpProactor
from ._turn import TurningLoop

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Result = TypeVar("_Result")


class BareSockets(TurningLoop):
    """Sockets that their owner keeps, one operation at a time. Raises OSError as the operations do."""

    _stdlib_proactor: IocpProactor

    # Named as both of asyncio's own loops name it; the abstract loop says nbytes.
    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Receive up to `n` bytes. A time-out or cancellation loses none: see `IocpProactor`."""
        _check_nonblocking(sock, "sock_recv")
        give_back = self._stdlib_proactor.give_back
        return await _or_give_back(self._stdlib_proactor.recv(sock, n), lambda data: give_back(sock, data))

    async def sock_recv_into(self, sock: socket.socket, buf: "Buffer") -> int:
        """Receive into a writable buffer; the byte count."""
        _check_nonblocking(sock, "sock_recv_into")

        def give_back(count: int) -> None:
            self._stdlib_proactor.give_back(sock, bytes(memoryview(buf).cast("B")[:count]))

        return await _or_give_back(self._stdlib_proactor.recv_into(sock, buf), give_back)

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """Receive one datagram and its sender's address."""
        _check_nonblocking(sock, "sock_recvfrom")
        give_back = self._stdlib_proactor.give_back_datagram
        return await _or_give_back(self._stdlib_proactor.recvfrom(sock, bufsize), lambda came: give_back(sock, *came))

    async def sock_recvfrom_into(self, sock: socket.socket, buf: "Buffer", nbytes: int = 0) -> tuple[int, Any]:
        """Receive one datagram into a writable buffer, at most `nbytes` of it; the byte count and the sender."""
        _check_nonblocking(sock, "sock_recvfrom_into")

        def give_back(came: tuple[int, Any]) -> None:
            count, sender = came
            self._stdlib_proactor.give_back_datagram(sock, bytes(memoryview(buf).cast("B")[:count]), sender)

        return await _or_give_back(self._stdlib_proactor.recvfrom_into(sock, buf, nbytes), give_back)

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
        return await _or_give_back(self._stdlib_proactor.accept(sock), lambda came: came[0].close())


async def _or_give_back(future: "asyncio.Future[_Result]", give_back: Callable[[_Result], object]) -> _Result:
    """The future's result; or, where the task was cancelled before it could be told of one, let `give_back` have it."""
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            give_back(future.result())
        raise
    finally:
        del future  # An error's traceback holds this frame, and the future holds the error.


def _check_nonblocking(sock: socket.socket, operation: str) -> None:
    # Overlapped calls do not mind, and ProactorEventLoop never asks. The documentation demands it, so debug mode does.
    if sock.gettimeout() != 0 and asyncio.get_running_loop().get_debug():
        raise ValueError(
            f"the socket must be non-blocking: {operation} on socket {sock.fileno()}; "
            "call sock.setblocking(False) first"
        )
