"""The demo: one echo server and many clients, alternately on IocpEventLoop and on asyncio.ProactorEventLoop.

Server and clients of a side share one loop and its thread, so a figure includes both ends of each message. The sides
alternate every half second, so that other work of the machine affects both. This is a demonstration and a check, not
the benchmark, which drives the server from another process.
"""

import asyncio
import functools
import random
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from .. import __version__
from .._core._kept import ORPHANS
from .._core._operation import IoType, OverlappedEx
from .._core._proactor import Proactor
from .._loop._event_loop import IocpEventLoop
from ._doctor import python_name, system_name

ROUND_S = 0.5
WARM_UP_S = 0.1
TICK_S = 0.1  # The live line is updated this often.
# An echo takes milliseconds. A client that has no answer after this time will not get one.
ANSWER_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
_HEADER = struct.Struct("<IQ")  # client and sequence number, so that no two messages are equal


class EchoServer(asyncio.Protocol):
    """Sends back what it receives."""

    def __init__(self, side: "Side") -> None:
        self._side = side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._side.accepted += 1

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._side.accepted -= 1
        self._side.end_is_gone()


class Client(asyncio.Protocol):
    """Sends a message, compares the echo byte for byte, sends the next."""

    def __init__(self, side: "Side", number: int, size: int) -> None:
        self._side = side
        self._number = number
        self._sequence = 0
        self._filling = random.Random(number).randbytes(size - _HEADER.size)
        self._message = b""
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send_next(self) -> None:
        self._sequence += 1
        self._message = _HEADER.pack(self._number, self._sequence) + self._filling
        self.transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        if self._received or len(data) != len(self._message):
            self._received += data
            if len(self._received) < len(self._message):
                return
            data = bytes(self._received)
            self._received.clear()
        if data != self._message:
            self._side.fail(f"client {self._number}: message {self._sequence} came back changed")
        elif self._side.running:
            self._side.verified += 1
            self.send_next()
        else:
            self._side.verified += 1
            self._side.client_rests()

    def connection_lost(self, exc: Exception | None) -> None:
        self._side.connected -= 1
        if not self._side.closing:
            self._side.fail(f"client {self._number}: connection lost ({exc})")
        self._side.end_is_gone()


class Side:
    """One loop with its server and clients."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.loop = loop
        self.problems: list[str] = []
        self.rates: list[float] = []  # messages per second, one for each round
        self.seconds = 0.0
        self.messages = 0
        self.verified = 0  # warm-up included
        self.running = self.closing = False
        self.accepted = self.connected = 0
        self._clients: list[Client] = []
        self._busy = 0
        self._server: asyncio.Server | None = None
        self._rest: asyncio.Future[None] | None = None
        loop.set_exception_handler(lambda _loop, context: self.fail(f"exception handler: {_describe(context)}"))

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(coroutine)

    def fail(self, problem: str) -> None:
        """Record a problem, and end the round."""
        self.problems.append(problem)
        self.running = False
        self._all_rest()

    def client_rests(self) -> None:
        """Called when a client has its last answer of the round."""
        self._busy -= 1
        if not self._busy:
            self._all_rest()

    def end_is_gone(self) -> None:
        """Called when one end of a connection has had its connection_lost()."""
        if self.closing and not self.connected and not self.accepted:
            self._all_rest()

    def _all_rest(self) -> None:
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    async def open(self, clients: int, size: int) -> None:
        self._server = await self.loop.create_server(lambda: EchoServer(self), "127.0.0.1", 0, backlog=clients)
        host, port = self._server.sockets[0].getsockname()[:2]
        for number in range(clients):
            _, client = await self.loop.create_connection(lambda n=number: Client(self, n, size), host, port)  # type: ignore[misc]
            self.connected += 1
            self._clients.append(client)

    async def play(self, seconds: float, show: Callable[[float], None] | None = None) -> None:
        """Play one round: every client sends and receives until the time is up and its last answer has come."""
        before, started = self.verified, time.perf_counter()
        self._rest, self._busy, self.running = self.loop.create_future(), len(self._clients), True
        for client in self._clients:
            client.send_next()
        while (left := started + seconds - time.perf_counter()) > 0 and self.running:
            await asyncio.sleep(min(left, TICK_S))
            if show is not None:
                show((self.verified - before) / (time.perf_counter() - started))
        self.running = False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._rest
        except TimeoutError:
            self.fail(f"{self._busy} clients had no answer within {ANSWER_TIMEOUT_S:.0f} seconds")
        if show is not None:
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self.messages += self.verified - before
            self.rates.append((self.verified - before) / elapsed)

    async def shut(self) -> None:
        """Close the connections, wait until both ends of each are gone, and close the server."""
        self._rest, self.closing = self.loop.create_future(), True
        for client in self._clients:
            client.transport.close()
        self.end_is_gone()  # In case all were gone before.
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._rest
        except TimeoutError:
            self.fail(f"{self.connected} clients and {self.accepted} of their servers did not hear of the end")
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class Left(NamedTuple):
    """Operations and endpoints of the demo's connections that remain after all were closed; there should be none."""

    operations: int
    endpoints: int

    @staticmethod
    def of(loop: IocpEventLoop) -> "Left":
        return Left(len(loop.proactor.pending), len(loop.proactor.endpoints))


class LiveLine:
    """A line that is updated in place. If the output is not a terminal, only final lines are printed."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]
            print("\r" + text.ljust(self._width), end="", flush=True)
            self._width = len(text)

    def keep(self, text: str) -> None:
        print(("\r" if self._live else "") + text.ljust(self._width), flush=True)
        self._width = 0


def run_demo(*, seconds: float, clients: int, size: int) -> int:
    """Play and print the results. Returns the exit status: 1 if a byte, a connection or an operation was wrong."""
    rounds = max(1, round(seconds / 2 / ROUND_S))
    round_s = seconds / 2 / rounds
    print(f"iocp_loop {__version__}, {system_name()}, {python_name()}")
    print(
        f"{clients} clients, messages of {size:,} bytes, each loop {rounds} times {round_s:.2g} s, by turns; "
        "server and clients share the loop",
        flush=True,
    )
    ours, theirs = IocpEventLoop(), asyncio.ProactorEventLoop()
    counts = _count_operations(ours.proactor)
    sides = Side("iocp_loop", ours), Side("ProactorEventLoop", theirs)
    left = Left(0, 0)
    try:
        ours.run_until_complete(asyncio.sleep(0))
        own = Left.of(ours)  # A loop that has run has a receive of its own outstanding, for waking on signals.
        for side in sides:
            side.run(side.open(clients, size))
            side.run(side.play(WARM_UP_S))
        _play_rounds(sides, rounds, round_s)
        for side in sides:
            side.run(side.shut())
        left = _what_is_left(ours, own)
    finally:
        for side in sides:
            side.loop.close()
    left = left._replace(operations=left.operations + len(ours.proactor.pending) + len(ORPHANS))
    _print_results(sides)
    _print_operations(counts, left)
    return _verdict(sides, left)


def _count_operations(proactor: Proactor) -> dict[int, int]:
    """Operations submitted from now on, by `IoType`: a live table."""
    submit = proactor.submit
    counts: dict[int, int] = {}

    def submit_counted(operation: OverlappedEx) -> bool:
        counts[operation.type] = counts.get(operation.type, 0) + 1
        return submit(operation)

    proactor.submit = submit_counted  # type: ignore[method-assign]  # Only here; the hot path has no branch for it.
    return counts


def _play_rounds(sides: "tuple[Side, Side]", rounds: int, seconds: float) -> None:
    line = LiveLine()
    for number in range(rounds):
        turn = Turn(f"round {number + 1} of {rounds}")
        # The sides begin alternately.
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.run(side.play(seconds, functools.partial(turn.show, line, side.name)))
            if side.problems:
                return
            turn.rates[side.name] = side.rates[-1]
        line.keep(turn.text())


class Turn:
    """The text of one round's line."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rates: dict[str, float] = {}

    def show(self, line: LiveLine, name: str, rate: float) -> None:
        self.rates[name] = rate
        line.show(self.text())

    def text(self) -> str:
        # In reverse order, so that ours is first, whichever side began.
        return f"{self.title}: " + ", ".join(
            f"{name} {rate:,.0f}/s" for name, rate in sorted(self.rates.items(), reverse=True)
        )


def _what_is_left(loop: IocpEventLoop, own: Left) -> Left:
    # A handle closes when its last packet is in, which takes a turn or two of the loop.
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while Left.of(loop) != own and time.monotonic() < deadline:
        loop.run_until_complete(asyncio.sleep(0.001))
    now = Left.of(loop)
    return Left(now.operations - own.operations, now.endpoints - own.endpoints)


def _print_results(sides: "tuple[Side, Side]") -> None:
    print(f"\n  {'':<20}{'messages':>12}{'per second':>14}")
    for side in sides:
        print(f"  {side.name:<20}{side.messages:>12,}{side.messages / (side.seconds or 1):>14,.0f}")
    ours, theirs = sides
    ratios = [mine / other for mine, other in zip(ours.rates, theirs.rates, strict=False) if other]
    if ratios:
        print(
            f"  ratio: {statistics.median(ratios):.2f} in the median round ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"measured on {system_name()}"
        )


def _print_operations(counts: dict[int, int], left: Left) -> None:
    table = ", ".join(f"{IoType(kind).name} {count:,}" for kind, count in sorted(counts.items()))
    print(f"\n  operations on iocp_loop: {table or 'none'}")
    print("  (a send that the socket takes at once needs no operation)")
    print(f"  pending at exit: {left.operations} operations, {left.endpoints} endpoints")


def _verdict(sides: "tuple[Side, Side]", left: Left) -> int:
    for side in sides:
        print(f"  {side.name}: {side.verified:,} messages verified byte for byte")
        for problem in side.problems[:5]:
            print(f"  {side.name}: {problem}")
    wrong = any(side.problems or not side.messages for side in sides) or any(left)
    print("\nsomething is wrong: see above" if wrong else "\nall is well")
    return int(wrong)


def _describe(context: dict[str, Any]) -> str:
    return f"{context.get('message')} {context.get('exception')!r}"
