"""A socket pair with a receive on one end, driven by hand: what stands where a transport will."""

import socket

from iocp_loop._handles._sockets import OverlappedSocket

from .watched import wait_until


class Receiver:
    """One end of a socket pair with a receive on it; `results` is what was delivered: (status, bytes)."""

    def __init__(self, proactor, *, skip=True):
        self.proactor = proactor
        self.results = []
        self.sock, self.peer = socket.socketpair()
        self.sock.setblocking(False)
        self.endpoint = proactor.register(OverlappedSocket(self.sock.fileno(), self.sock), skip_port=skip)
        self.operation = self.endpoint.receive_operation(self.deliver, proactor.arena.buffer(64))

    def deliver(self, operation, status, byte_count):
        self.results.append((status, operation.buffer[:byte_count]))

    def submit(self):
        self.proactor.submit(self.operation)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.proactor.close_endpoint(self.endpoint)
        deliver_until(self.proactor, lambda: self.endpoint.key not in self.proactor.endpoints)
        self.peer.close()


def deliver(proactor, timeout=0):
    """One turn: wait, then hand out what was settled."""
    settled = proactor.select(timeout)
    for _ in range(len(settled)):
        operation, status, byte_count = settled.popleft()
        operation.deliver(operation, status, byte_count)


def deliver_until(proactor, fact):
    def turn():
        deliver(proactor, 0.01)
        return fact()

    wait_until(turn)
