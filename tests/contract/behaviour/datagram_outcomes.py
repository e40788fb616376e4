"""What create_datagram_endpoint() may be given, and what comes of it.

An outcome is a dictionary of facts: what was raised; or the endpoint's names and options, what became of a datagram that
it sent, and whether it received one.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernel.peers import LOCALHOST
from kernel.watched import turns, until

UNKNOWN = "no such host.invalid"


class Peers:
    """Who the endpoints talk to: one bound socket of each family, and another one."""

    def __init__(self):
        self.v4, self.v6, self.other = bound(socket.AF_INET), bound(socket.AF_INET6), bound(socket.AF_INET)
        for sock in self._all():
            sock.setblocking(False)
        self.address4, self.address6 = self.v4.getsockname(), self.v6.getsockname()

    def _all(self):
        return self.v4, self.v6, self.other

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for sock in self._all():
            sock.close()

    def heard(self):
        """What each has heard since."""
        heard = {}
        for name, sock in zip(("IPv4", "IPv6", "other"), self._all(), strict=True):
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = sock.recv(100)
                    heard.setdefault(name, []).append(data)
        return heard


async def answered_here(host, port, *, family=0, type=0, proto=0, flags=0):
    """Stands for getaddrinfo() of a loop, and asks nobody: neither a thread nor a name server.

    How names are resolved is not what is compared here, and a name server may be silent, as in a closed network.
    """
    if host == "localhost":
        host = "::1" if family == socket.AF_INET6 else LOCALHOST
    return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)


def bound(family, host=None):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host or (LOCALHOST if family == socket.AF_INET else "::1"), 0))
    return sock


# -- what is combined ------------------------------------------------------------------------------------------
# Each choice: its name, and its value or a function that makes it of the peers.

LOCAL = {
    "none": None,
    "empty": (),
    "IPv4": (LOCALHOST, 0),
    "IPv6": ("::1", 0),
    "any IPv4": ("0.0.0.0", 0),
    "any IPv6": ("::", 0),
    "no host": ("", 0),
    "host None": (None, 0),
    "name": ("localhost", 0),
    "unknown name": (UNKNOWN, 0),
    "taken": lambda peers: peers.address4,
    "not ours": ("192.0.2.1", 0),
    "port as text": (LOCALHOST, "0"),
    "service": (LOCALHOST, "no such service"),
    "bytes": (LOCALHOST.encode(), 0),
    "port None": (LOCALHOST, None),
    "port too large": (LOCALHOST, 70_000),
    "port negative": (LOCALHOST, -1),
    "port float": (LOCALHOST, 0.5),
    "text": "nonsense",
    "list": [LOCALHOST, 0],
    "one": (LOCALHOST,),
    "four": ("::1", 0, 0, 0),
    "number": 5,
}
REMOTE = {
    "none": None,
    "IPv4": lambda peers: peers.address4,
    "IPv6": lambda peers: peers.address6[:2],
    "name": lambda peers: ("localhost", peers.address4[1]),
    "unknown name": (UNKNOWN, 9),
    "bytes": lambda peers: (LOCALHOST.encode(), peers.address4[1]),
    "port as text": lambda peers: (LOCALHOST, str(peers.address4[1])),
    "port 0": (LOCALHOST, 0),
    "port too large": (LOCALHOST, 70_000),
    "any": lambda peers: ("0.0.0.0", peers.address4[1]),
    "broadcast": ("255.255.255.255", 9),
    "text": "nonsense",
    "four": lambda peers: peers.address6,
    "empty": (),
}
FAMILY = {
    "unspecified": 0,
    "IPv4": socket.AF_INET,
    "IPv6": socket.AF_INET6,
    "unknown": 99,
    "None": None,
    "text": "inet",
}
PROTO = {"0": 0, "UDP": socket.IPPROTO_UDP, "TCP": socket.IPPROTO_TCP, "unknown": 99, "text": "udp"}
FLAGS = {"0": 0, "passive": socket.AI_PASSIVE, "numeric": socket.AI_NUMERICHOST, "canonical": socket.AI_CANONNAME}
YES_OR_NO = {"None": None, "False": False, "True": True}


def connected4(peers):
    sock = bound(socket.AF_INET)
    sock.connect(peers.address4)
    return sock


def connected6(peers):
    sock = bound(socket.AF_INET6)
    sock.connect(peers.address6)
    return sock


def closed(kind):
    def make(_peers):
        sock = socket.socket(socket.AF_INET, kind)
        sock.close()
        return sock

    return make


def with_timeout(_peers):
    sock = bound(socket.AF_INET)
    sock.settimeout(5)
    return sock


def not_blocking(_peers):
    sock = bound(socket.AF_INET)
    sock.setblocking(False)
    return sock


def may_broadcast(_peers):
    sock = bound(socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return sock


def listening(_peers):
    return socket.create_server((LOCALHOST, 0))


SOCK = {
    "unbound IPv4": lambda _peers: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unbound IPv6": lambda _peers: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "bound IPv4": lambda _peers: bound(socket.AF_INET),
    "bound IPv6": lambda _peers: bound(socket.AF_INET6),
    "bound to any": lambda _peers: bound(socket.AF_INET, "0.0.0.0"),
    "connected IPv4": connected4,
    "connected IPv6": connected6,
    "with a timeout": with_timeout,
    "not blocking": not_blocking,
    "may broadcast": may_broadcast,
    "TCP": lambda _peers: socket.socket(),
    "TCP listening": listening,
    "closed": closed(socket.SOCK_DGRAM),
    "closed TCP": closed(socket.SOCK_STREAM),
    "text": "no socket",
    "number": 5,
}
# Addresses given to sendto().
SEND_TO = {
    "None": None,
    "IPv4": lambda peers: peers.address4,
    "IPv6": lambda peers: peers.address6,
    "other": lambda peers: peers.other.getsockname(),
    "name": lambda peers: ("localhost", peers.address4[1]),
    "unknown name": (UNKNOWN, 9),
    "text": "nonsense",
    "list": lambda peers: list(peers.address4),
    "one": (LOCALHOST,),
    "port too large": (LOCALHOST, 70_000),
    "port as text": (LOCALHOST, "9"),
    "port 0": (LOCALHOST, 0),
    "empty": (),
    "broadcast": ("255.255.255.255", 9),
}
# Endpoints that send.
KINDS = {
    "local IPv4": lambda _peers: {"local_addr": (LOCALHOST, 0)},
    "local IPv6": lambda _peers: {"local_addr": ("::1", 0)},
    "remote IPv4": lambda peers: {"remote_addr": peers.address4},
    "remote IPv6": lambda peers: {"remote_addr": peers.address6[:2]},
    "both": lambda peers: {"local_addr": (LOCALHOST, 0), "remote_addr": peers.address4},
    "may broadcast": lambda _peers: {"local_addr": (LOCALHOST, 0), "allow_broadcast": True},
    "remote IPv4, may broadcast": lambda peers: {"remote_addr": peers.address4, "allow_broadcast": True},
    "remote IPv6, may broadcast": lambda peers: {"remote_addr": peers.address6[:2], "allow_broadcast": True},
    "both, may broadcast": lambda peers: {
        "local_addr": (LOCALHOST, 0),
        "remote_addr": peers.address4,
        "allow_broadcast": True,
    },
    "family": lambda _peers: {"family": socket.AF_INET},
    "sock=connected IPv4": lambda peers: {"sock": connected4(peers)},
    "sock=connected IPv6": lambda peers: {"sock": connected6(peers)},
}


def value(choices, name, peers):
    chosen = choices[name]
    return chosen(peers) if callable(chosen) else chosen


# -- what comes of it ------------------------------------------------------------------------------------------


class Talking(asyncio.DatagramProtocol):
    def __init__(self):
        self.received, self.errors, self.is_lost = [], [], False
        self.lost_by = None

    def datagram_received(self, data, addr):
        self.received.append((data, addr))

    def error_received(self, exc):
        # On the stdlib's loop, one that cannot receive says so again and again.
        if len(self.errors) < 3:
            self.errors.append(number(exc))

    def connection_lost(self, exc):
        self.is_lost, self.lost_by = True, number(exc)


def number(exc):
    """Type and error code of an exception, as far as it has one."""
    return exc and (type(exc).__name__, getattr(exc, "winerror", None) or getattr(exc, "errno", None))


@dataclass(frozen=True)
class Case:
    """One combination.

    Attributes:
        name: says which.
        options: makes the keyword arguments of create_datagram_endpoint(), given the peers.
        send_to: where a datagram is sent, by its name in SEND_TO;
        when: and when: the endpoint is "open", "closing" or "lost".
        gives_socket: whether the options have a `sock`.
    """

    name: str
    options: Callable[[Peers], dict[str, Any]]
    send_to: str
    when: str = "open"
    gives_socket: bool = False


async def outcome(case, peers):
    """What comes of a case: an endpoint made so sends one datagram and receives another."""
    loop, reports, options = asyncio.get_running_loop(), [], case.options(peers)
    loop.getaddrinfo = answered_here
    loop.set_exception_handler(lambda _loop, report: reports.append(report))
    try:
        transport, protocol = await loop.create_datagram_endpoint(Talking, **options)
    except Exception as exc:
        return {"raised": number(exc)} | abandoned(options.get("sock"))
    facts = {"raised": None} | described(transport)
    if case.when != "open":
        transport.close()
    if case.when == "lost":
        await until(lambda: protocol.is_lost)
    facts |= await sent(peers, transport, protocol, value(SEND_TO, case.send_to, peers))
    if not transport.is_closing():
        # QUIRK(wine): a socket can be connected to port 0, which nobody has, and says that it is not.
        is_deaf = options.get("remote_addr") and not facts["peername"] and not options.get("allow_broadcast")
        facts["received"] = "from nobody" if is_deaf else await received(peers, transport, protocol)
        transport.close()
    transport.close()
    facts["is closing"] = transport.is_closing()
    await until(lambda: protocol.is_lost)
    return facts | {"lost by": protocol.lost_by, "reports": [number(report.get("exception")) for report in reports]}


def abandoned(sock):
    """What became of a socket that was given in vain; it is ours to close."""
    if not isinstance(sock, socket.socket):
        return {}
    with sock:
        return {"socket is closed": sock.fileno() < 0, "socket's timeout": sock.gettimeout()}


def described(transport):
    sock = transport.get_extra_info("socket")
    return {
        "sockname": with_some_port(transport.get_extra_info("sockname")),
        "peername": transport.get_extra_info("peername"),
        "family": sock.family,
        "type": sock.type,
        "proto": sock.proto,
        "timeout": sock.gettimeout(),
        "broadcast": bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)),
        "buffer": (transport.get_write_buffer_size(), transport.get_write_buffer_limits()),
    }


def with_some_port(name):
    """A name without the port that the kernel has chosen."""
    return name and (name[0], bool(name[1]), *name[2:])


async def sent(peers, transport, protocol, address):
    """What sendto() raises or reports, and who hears it."""
    protocol.errors.clear()
    raised = None
    try:
        transport.sendto(b"ping", address)
    except Exception as exc:
        raised = number(exc)
    errors = list(protocol.errors)
    heard = peers.heard()
    await turns()
    return {"sendto raised": raised, "sendto told": errors, "heard": heard or peers.heard()}


async def received(peers, transport, protocol):
    """What the protocol gets of a datagram from a peer that it listens to."""
    name = transport.get_extra_info("sockname")
    if name is None:
        return "nowhere"
    peer = peers.v6 if ":" in name[0] else peers.v4
    if transport.get_extra_info("peername") not in (None, peer.getsockname()):
        return "from another"
    host = {"0.0.0.0": LOCALHOST, "::": "::1"}.get(name[0], name[0])
    try:
        peer.sendto(b"hello", (host, name[1]))
    except OSError as exc:
        return number(exc)  # Where a system lets an address be bound that it has not.
    await until(lambda: protocol.received)
    return protocol.received
