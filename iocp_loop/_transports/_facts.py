"""The values of `get_extra_info` for a connection, made at the first request and kept.

Few connections are ever asked, so nothing is made in advance. The dictionary makes the values, not the transport:
asyncio.BaseTransport looks in its dictionary, so a program may still replace BaseTransport's method.
"""

import socket
from typing import Any

from .._asyncio import _private as private
from .._win32 import sockaddr


class Facts(dict[str, Any]):
    """The facts of one connection; asyncio calls `get`.

    Attributes:
        handle: the socket or pipe object. It stays here after the connection is closed, as in asyncio's transports.
        addresses: (local, remote) as the kernel wrote them; None if the dictionary has the names already.
    """

    __slots__ = ("addresses", "handle")

    handle: Any
    addresses: tuple[bytes, bytes] | None

    def get(self, name: str, default: Any = None) -> Any:
        """Return a fact, making it if need be; `default` if there is none of this name."""
        if name not in self:
            if name == "socket" and isinstance(self.handle, socket.socket):
                self[name] = private.TransportSocket(self.handle)
            elif name in ("sockname", "peername") and self.addresses is not None:
                self["sockname"], self["peername"] = map(sockaddr.decode, self.addresses)
        return super().get(name, default)


__all__ = ["Facts"]
