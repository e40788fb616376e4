"""Socket addresses: the tuples of Python's socket module <-> the bytes of ws2def.h. Portable, so testable anywhere."""

import socket
import struct
from typing import Any

# AF_INET6 is 23 on Windows and something else elsewhere; these bytes are always Windows' own.
WINDOWS_AF_INET = 2
WINDOWS_AF_INET6 = 23
SOCKADDR_MAX = 128  # sizeof(SOCKADDR_STORAGE)

_LIMITS = (0xFFFF, 0xFFFFF, 0xFFFF_FFFF)  # port, flow information, scope

_FAMILY = struct.Struct("<H")
_IPV4 = struct.Struct("<H2s4s8x")
_IPV6 = struct.Struct("<H2s4s16sI")


def encode(family: int, address: Any) -> bytes:
    """The SOCKADDR of a resolved address.

    Args:
        family: socket.AF_INET or socket.AF_INET6.
        address: ``(host, port)``, or ``(host, port, flowinfo, scope_id)`` for IPv6; the host is numeric.

    Raises:
        TypeError: it is not a tuple of that shape.
        ValueError: the host is not numeric, or the family has no IP addresses.
        OverflowError: the port is outside 0-65535.
    """
    parts: tuple[Any, ...] = address if isinstance(address, tuple) else ()  # pyright: ignore[reportUnknownVariableType]
    if len(parts) < 2:
        raise TypeError(f"an internet address is a tuple (host, port), not {address!r}")
    host, port = parts[0], parts[1]
    if not 0 <= port <= 0xFFFF:
        raise OverflowError(f"port must be 0-65535, not {port}")
    try:
        if family == socket.AF_INET:
            return _IPV4.pack(WINDOWS_AF_INET, port.to_bytes(2, "big"), socket.inet_pton(socket.AF_INET, host))
        if family == socket.AF_INET6:
            flowinfo, scope = (*parts[2:4], 0, 0)[:2]
            host, _, zone = host.partition("%")
            if zone.isdecimal() and not scope:
                scope = int(zone)
            packed = socket.inet_pton(socket.AF_INET6, host)
            return _IPV6.pack(WINDOWS_AF_INET6, port.to_bytes(2, "big"), flowinfo.to_bytes(4, "big"), packed, scope)
    except OSError as exc:
        raise ValueError(f"not a numeric address: {host!r}") from exc
    raise ValueError(f"no socket address for family {family!r}")


def resolve(family: int, address: Any) -> bytes:
    """The SOCKADDR of an address in any form that `socket.sendto` accepts, by the same checks and look-ups.

    Args:
        family: socket.AF_INET or socket.AF_INET6.
        address: as for `encode`; the host may also be a name, which is looked up at once, "" for any address, or
            "<broadcast>".

    Raises:
        TypeError: it is not a tuple of that shape.
        OverflowError: a number is outside its range.
        OSError: the name is not known, or not in this family.
        ValueError: the family has no IP addresses, or the host cannot be a name.

    Thread-safe; it blocks while a name is looked up.
    """
    most = 2 if family == socket.AF_INET else 4
    parts: tuple[Any, ...] = address if isinstance(address, tuple) else ()  # pyright: ignore[reportUnknownVariableType]
    if not 2 <= len(parts) <= most:
        raise TypeError(f"an internet address is a tuple (host, port), not {address!r}")
    host, numbers = parts[0], parts[1:]
    if not isinstance(host, str | bytes | bytearray) or not all(hasattr(number, "__index__") for number in numbers):
        raise TypeError(f"a host is a string and a port a number, not {address!r}")
    if any(not 0 <= number <= limit for number, limit in zip(numbers, _LIMITS, strict=False)):
        raise OverflowError(f"port, flow information or scope of {address!r} is out of range")
    if not isinstance(host, str):
        host = bytes(host).decode("ascii")
    if host == "<broadcast>" and family == socket.AF_INET:
        host = "255.255.255.255"
    elif not host:
        host = "0.0.0.0" if family == socket.AF_INET else "::"
    try:
        return encode(family, (host, *numbers))
    except ValueError:
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise
    found = socket.getaddrinfo(host, None, family)[0][4]
    return encode(family, (found[0], numbers[0], *(numbers[1:] or found[2:])))


def decode(raw: bytes) -> Any:
    """The address tuple of a SOCKADDR that the kernel wrote; None if it wrote none (for a connected datagram peer)."""
    if len(raw) < _FAMILY.size:
        return None
    (family,) = _FAMILY.unpack_from(raw)
    if family == WINDOWS_AF_INET:
        _, port, host = _IPV4.unpack_from(raw)
        return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big")
    if family == WINDOWS_AF_INET6:
        _, port, flowinfo, host, scope = _IPV6.unpack_from(raw)
        text = socket.inet_ntop(socket.AF_INET6, host)
        return text, int.from_bytes(port, "big"), int.from_bytes(flowinfo, "big"), scope
    return None
