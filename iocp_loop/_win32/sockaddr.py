"""Socket addresses: the tuples of Python's socket module <-> the bytes of ws2def.h. Portable, so testable anywhere."""

import socket
import struct
from typing import Any

# AF_INET6 is 23 on Windows and something else elsewhere; these bytes are always Windows' own.
WINDOWS_AF_INET = 2
WINDOWS_AF_INET6 = 23
SOCKADDR_MAX = 128  # sizeof(SOCKADDR_STORAGE)

_FAMILY = struct.Struct("<H")
_IPV4 = struct.Struct("<H2s4s8x")
_IPV6 = struct.Struct("<H2s4s16sI")


def encode(family: int, address: Any) -> bytes:
    """The SOCKADDR of a resolved address.

    Args:
        family: socket.AF_INET or socket.AF_INET6.
        address: ``(host, port)``, or ``(host, port, flowinfo, scope_id)`` for IPv6; the host is numeric.

    Raises:
        TypeError: not a tuple of that shape.
        ValueError: a host that is not numeric, or a family without IP addresses.
        OverflowError: a port outside 0-65535.
    """
    if not isinstance(address, tuple) or len(address) < 2:
        raise TypeError(f"an internet address is a tuple (host, port), not {address!r}")
    host, port = address[0], address[1]
    if not 0 <= port <= 0xFFFF:
        raise OverflowError(f"port must be 0-65535, not {port}")
    try:
        if family == socket.AF_INET:
            return _IPV4.pack(WINDOWS_AF_INET, port.to_bytes(2, "big"), socket.inet_pton(socket.AF_INET, host))
        if family == socket.AF_INET6:
            flowinfo, scope = (*address[2:4], 0, 0)[:2]
            host, _, zone = host.partition("%")
            if zone.isdecimal() and not scope:
                scope = int(zone)
            packed = socket.inet_pton(socket.AF_INET6, host)
            return _IPV6.pack(WINDOWS_AF_INET6, port.to_bytes(2, "big"), flowinfo.to_bytes(4, "big"), packed, scope)
    except OSError as exc:
        raise ValueError(f"not a numeric address: {host!r}") from exc
    raise ValueError(f"no socket address for family {family!r}")


def decode(raw: bytes) -> Any:
    """The address tuple of a SOCKADDR as the kernel wrote it; None where it wrote none (a connected datagram peer)."""
    if len(raw) < _FAMILY.size:
        return None
    (family,) = _FAMILY.unpack_from(raw)
    if family == WINDOWS_AF_INET:
        _, port, host = _IPV4.unpack_from(raw)
        return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big")
    if family == WINDOWS_AF_INET6:
        _, port, flowinfo, host, scope = _IPV6.unpack_from(raw)
        text = socket.inet_ntop(socket.AF_INET6, host)
        if scope and host[:2] == b"\xfe\x80":
            text = f"{text}%{scope}"  # As getpeername() spells a link-local address.
        return text, int.from_bytes(port, "big"), int.from_bytes(flowinfo, "big"), scope
    return None
