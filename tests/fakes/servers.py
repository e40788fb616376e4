"""A server on the fake kernel, and its clients: what a listener of sockets and a server of pipes are tested with alike.

A client that stays is served in full; one that leaves concerns nobody else; and at the end of each schedule a last
client proves that the server is not deaf.
"""

import asyncio

from .rules import Interrupted
from .stage import BaseStage

FAULTS = ("submit_failure", "accept_failure", "no_handle", "memory_error", "interrupt")


class Echo(asyncio.Protocol):
    """Answers what it is told; `stage.meddle` is called in every callback."""

    def __init__(self, stage):
        self.stage = stage
        self.transport = None
        self.is_lost = False

    def connection_made(self, transport):
        assert self.transport is None, "connection_made twice"
        self.transport = transport
        self.stage.meddle(self)

    def data_received(self, data):
        assert not self.is_lost
        if not self.transport.is_closing():
            try:
                self.transport.write(data)
            except MemoryError:
                # Nothing was written, and the client would wait for it.
                self.transport.abort()
                raise
        self.stage.meddle(self)

    def connection_lost(self, exc):
        assert not self.is_lost, "connection_lost twice"
        self.is_lost = True
        self.stage.meddle(self)


class Client:
    """Comes, says something, and waits for the echo; or goes before. A subclass says how, in `steps`."""

    def __init__(self, stage, *, stays):
        self.stage = stage
        self.stays = stays
        self.message = b"<%d>" % len(stage.clients) * stage.random.randrange(1, 10)
        self.heard = b""
        self.is_over = False
        stage.clients.append(self)
        stage.kernel.act(self.steps())

    def steps(self):
        raise NotImplementedError

    @property
    def was_served(self):
        assert self.message.startswith(self.heard)
        return len(self.heard) == len(self.message)


class ServerStage(BaseStage):
    """One server; clients come as actors of the kernel. A subclass has the server, and says what closes with it."""

    client_type = Client

    def __init__(self, seed, chances=None):
        super().__init__(seed, chances)
        self.budget = 0
        self.meddle = lambda echo: None
        self.raised = []
        self.dropped = 0  # clients whose connection a callback has ended
        self.clients = []
        self.echoes = []
        self.server = None

    def is_closed(self):
        raise NotImplementedError

    def make_echo(self):
        self.raise_something()
        self.echoes.append(Echo(self))
        return self.echoes[-1]

    def raise_something(self):
        if not self.budget or self.random.random() < 0.7:
            return
        self.budget -= 1
        self.dropped += 1
        kind = self.random.choice((RuntimeError, MemoryError, OSError, Interrupted, SystemExit))
        self.raised.append(kind("from a callback"))
        raise self.raised[-1]

    def meddle_wildly(self, echo):
        if self.budget and self.random.random() < 0.3 and not echo.is_lost:
            self.budget -= 1
            self.dropped += 1
            self.random.choice((echo.transport.close, echo.transport.abort))()
        self.raise_something()

    def unserved(self):
        return [client for client in self.clients if client.stays and not client.was_served]

    async def until(self, fact):
        for _ in range(600):
            if fact():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never: {[client.message for client in self.clients if not client.is_over]} wait")

    async def clients_come(self, count=12):
        for _ in range(count):
            self.client_type(self, stays=self.random.random() < 0.7)
            await asyncio.sleep(self.random.choice((0, 0, 0.01)))

    async def finish(self):
        """A last client is served, unless the server is closed; then it is closed, and all connections end."""
        self.budget = 0
        for fault in FAULTS:
            setattr(self.kernel.chances, fault, 0)
        await self.until(lambda: all(client.is_over for client in self.clients))
        if not self.is_closed():
            last = self.client_type(self, stays=True)
            await self.until(lambda: last.is_over)
            assert last.was_served
        self.server.close()
        await self.until(lambda: self.is_closed() and all(echo.is_lost for echo in self.echoes if echo.transport))
