"""The loop's `sock_*` methods. They await IocpProactor's futures, and lose nothing when the task is cancelled.

A task may be cancelled after its operation has finished, while only the result is on the way. The method then gives
received data back to the socket, and the next receive begins with them.
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


class RawSocketMethods(TurningLoop):
    """The raw socket methods: one operation on a socket that the program owns. A failed operation raises OSError."""

    _stdlib_proactor: IocpProactor

    # Named as both of asyncio's own loops name it; the abstract loop says nbytes.
    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Receive up to `n` bytes. A time-out or a cancellation loses none of them."""
        _check_nonblocking(sock, "sock_recv")
        give_back = self._stdlib_proactor.give_back
        return await _or_give_back(self._stdlib_proactor.recv(sock, n), lambda data: give_back(sock, data))

    async def sock_recv_into(self, sock: socket.socket, buf: "Buffer") -> int:
        """Receive into a writable buffer. Returns the byte count."""
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
        """Receive one datagram into a writable buffer, at most `nbytes` of it. Returns byte count and sender."""
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
        """Send one datagram to an address. Returns the byte count."""
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
        """Accept one connection. Returns the new non-blocking socket and the peer's address."""
        _check_nonblocking(sock, "sock_accept")
        return await _or_give_back(self._stdlib_proactor.accept(sock), lambda came: came[0].close())


async def _or_give_back(future: "asyncio.Future[_Result]", give_back: Callable[[_Result], object]) -> _Result:
    """Return the future's result. If the task is cancelled when there is a result, pass that to `give_back`."""
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            give_back(future.result())
        raise
    finally:
        del future  # An error's traceback holds this frame, and the future holds the error.


def _check_nonblocking(sock: socket.socket, operation: str) -> None:
    # Overlapped calls work on blocking sockets too, and ProactorEventLoop does not check. But the documentation demands
    # a non-blocking socket, so debug mode does.
    if sock.gettimeout() != 0 and asyncio.get_running_loop().get_debug():
        raise ValueError(
            f"the socket must be non-blocking: {operation} on socket {sock.fileno()}; "
            "call sock.setblocking(False) first"
        )
