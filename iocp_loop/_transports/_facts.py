"""What `get_extra_info` tells of a connection, worked out when somebody asks, and kept.

Few connections are ever asked, so nothing is made in advance. That is the dictionary's part and not the transport's:
asyncio.BaseTransport asks its dictionary, and a program that replaces BaseTransport's method is obeyed here too.
"""

import socket
from typing import Any

from .._asyncio import _private as private
from .._win32 import sockaddr


class Facts(dict[str, Any]):
    """The facts of one connection; `get` is what is asked.

    Attributes:
        handle: the socket or pipe object, for life, as asyncio's transports know theirs.
        addresses: (local, remote) as the kernel has written them; None where the names stand in the dictionary.
    """

    __slots__ = ("addresses", "handle")

    handle: Any
    addresses: tuple[bytes, bytes] | None

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, of what is known and what can be worked out."""
        if name not in self:
            if name == "socket" and isinstance(self.handle, socket.socket):
                self[name] = private.TransportSocket(self.handle)
            elif name in ("sockname", "peername") and self.addresses is not None:
                self["sockname"], self["peername"] = map(sockaddr.decode, self.addresses)
        return super().get(name, default)


__all__ = ["Facts"]
