"""The load generator in Python: the orders of load.c, and TLS. For machines without a C compiler, and for the TLS rows.

    python load.py HOST PORT

It costs the same for every loop, as the C one does, but more; so ratios measured with it are nearer to 1.
"""

import json
import selectors
import socket
import ssl
import sys
import time
from typing import Any, NamedTuple

CHUNK = 1 << 18
VERBS = ("echo", "tls", "udp", "http", "churn", "push", "pull", "hold", "holdtls", "drop")


class LoadError(Exception):
    """The server did something wrong."""


class Order(NamedTuple):
    verb: str
    host: str
    port: int
    connections: int
    what: str
    warm: float
    seconds: float


class Connection:
    """One socket; `answer_size` is what comes back for `message`."""

    def __init__(self, order: Order, message: bytes, answer_size: int) -> None:
        self.order = order
        self.message = message
        self.answer_size = answer_size
        self.sent = self.received = self.number = 0
        self.started = 0.0
        self.wants_write = False
        self.open()

    def open(self) -> None:
        order = self.order
        if order.verb == "udp":
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.connect((order.host, order.port))
        else:
            self.socket = socket.create_connection((order.host, order.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if order.verb in ("tls", "holdtls"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self.socket.setblocking(False)

    def begin(self) -> None:
        self.sent = self.received = 0
        self.number += 1
        if self.order.verb != "http" and len(self.message) >= 8:
            self.message = self.number.to_bytes(8, "little") + self.message[8:]
        self.started = time.perf_counter()
        self.send_rest()

    def send_rest(self) -> None:
        try:
            while self.sent < len(self.message):
                self.sent += self.socket.send(memoryview(self.message)[self.sent :])
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass

    def receive(self) -> bool:
        """Whether the answer is complete."""
        while self.received < self.answer_size:
            try:
                data = self.socket.recv(min(CHUNK, self.answer_size - self.received))
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            if not data:
                raise LoadError("the server closed a connection")
            if self.order.verb != "http" and data != self.message[self.received : self.received + len(data)]:
                raise LoadError("wrong bytes came back")
            self.received += len(data)
        return True


class Load:
    """Carries out orders."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.connections: list[Connection] = []

    def obey(self, order: Order) -> dict[str, Any]:
        self.close_all()
        if order.verb == "drop":
            return {}
        message, answer_size = self.prepare(order)
        self.selector = selectors.DefaultSelector()
        self.latencies: list[float] = []
        self.bytes = 0
        # Connections not answered yet: messages count from when the server has accepted all.
        self.silent = 0 if order.verb in ("push", "pull") else order.connections
        for _ in range(order.connections):
            connection = Connection(order, message, answer_size)
            self.connections.append(connection)
            self.watch(connection)
            if order.verb not in ("push", "pull", "hold", "holdtls"):
                connection.begin()
        seconds = 0.0 if order.verb in ("hold", "holdtls") else self.drive(order)
        self.selector.close()
        if order.verb not in ("hold", "holdtls"):
            self.close_all()
        return self.report(seconds)

    def prepare(self, order: Order) -> tuple[bytes, int]:
        if order.verb != "http":
            size = int(order.what)
            return bytes(k * 31 % 256 for k in range(size)), size
        request = f"GET {order.what} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        with socket.create_connection((order.host, order.port)) as sock:
            sock.sendall(request)
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(8192)
                if not data:
                    raise LoadError("no HTTP answer")
                head += data
        head = head[: head.index(b"\r\n\r\n") + 4]
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not head.startswith(b"HTTP/1.1 200") or not lengths:
            raise LoadError("not an HTTP 200 with a Content-Length")
        return request, len(head) + int(lengths[0].partition(b":")[2])

    def watch(self, connection: Connection, *, again: bool = False) -> None:
        events = selectors.EVENT_READ
        if connection.order.verb == "push" or connection.wants_write:
            events |= selectors.EVENT_WRITE
        (self.selector.modify if again else self.selector.register)(connection.socket, events, connection)

    def drive(self, order: Order) -> float:
        begin, end = time.perf_counter() + order.warm, 0.0
        turn = {"push": self.turn_push, "pull": self.turn_pull}.get(order.verb, self.turn_messages)
        while True:
            for key, _ in self.selector.select(0.1):
                turn(key.data, bool(end))
            now = time.perf_counter()
            if not end and now >= begin and not self.silent:
                begin, end, self.bytes = now, now + order.seconds, 0
                self.control.sendall(b'{"begin": 1}\n')
            elif end and now >= end:
                return now - begin

    def turn_messages(self, connection: Connection, counts: bool) -> None:
        if connection.sent < len(connection.message):
            connection.send_rest()
        while connection.receive():
            if counts:
                self.latencies.append(time.perf_counter() - connection.started)
            self.bytes += len(connection.message)
            self.silent -= connection.number == 1
            if connection.order.verb == "churn":
                self.selector.unregister(connection.socket)
                connection.socket.close()
                connection.open()
                self.watch(connection)
            connection.begin()
            if connection.order.verb != "tls":
                break
        wants_write = connection.sent < len(connection.message)
        if wants_write is not connection.wants_write:
            connection.wants_write = wants_write
            self.watch(connection, again=True)

    def turn_push(self, connection: Connection, _counts: bool) -> None:
        try:
            self.bytes += connection.socket.send(connection.message)
        except BlockingIOError:
            # The server will catch up.
            pass

    def turn_pull(self, connection: Connection, _counts: bool) -> None:
        data = connection.socket.recv(CHUNK)
        if not data:
            raise LoadError("the server closed a connection")
        if data[0] != connection.received % 256 or data[-1] != (connection.received + len(data) - 1) % 256:
            raise LoadError("wrong bytes came")
        connection.received += len(data)
        self.bytes += len(data)

    def report(self, seconds: float) -> dict[str, Any]:
        found = sorted(self.latencies) or [0.0]
        names = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "max_us": 1.0}
        percentiles = {name: found[min(int(share * len(found)), len(found) - 1)] * 1e6 for name, share in names.items()}
        return {"messages": len(self.latencies), "bytes": self.bytes, "seconds": seconds, **percentiles}

    def close_all(self) -> None:
        for connection in self.connections:
            connection.socket.close()
        self.connections.clear()


def parse(line: str) -> Order:
    verb, host, port, connections, what, warm, seconds = line.split()
    if verb not in VERBS:
        raise LoadError(f"no such order: {verb}")
    return Order(verb, host, int(port), int(connections), what, float(warm), float(seconds))


def main(host: str, port: str) -> None:
    control = socket.create_connection((host, int(port)))
    load = Load(control)
    for line in control.makefile("r"):
        try:
            answer = load.obey(parse(line))
        except (OSError, LoadError, ValueError) as exc:
            load.close_all()
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        control.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
