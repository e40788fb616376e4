"""Orders of callbacks: how they are recorded, in turns of the loop, and how a row of a table says what they must be.

An order is written `made > await ~ data, eof > lost`: one name for each thing that was noted, and between two of them

    ,  the same turn of the loop
    >  a later turn
    ~  the same turn or a later one: when a packet comes is the kernel's business, and no loop's
"""

import asyncio
import functools
import gc
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kernel.watched import until

_RELATIONS = {
    ",": lambda before, after: before == after,
    ">": lambda before, after: before < after,
    "~": lambda before, after: before <= after,
}


class Journal:
    """What happened, and in which turn."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.turn = 0

    def __str__(self) -> str:
        text = ""
        for n, (name, turn) in enumerate(self.events):
            if n:
                text += ", " if turn == self.events[n - 1][1] else " > "
            text += name
        return text

    def note(self, name: str) -> None:
        self.events.append((name, self.turn))

    async def has(self, name: str, count: int = 1) -> None:
        """Wait until something was noted, so many times."""
        await until(lambda: self.noted(name) >= count, name)

    def count_turns(self, loop: Any) -> None:
        """From now on, count the turns of a loop, none of which finds nothing to run.

        What a turn finds queued is the same on every loop then; without it, ours may spare a turn that has nothing to
        do but to look at the port.
        """
        run_once = loop._run_once

        def turn() -> None:
            self.turn += 1
            loop.call_soon(int)
            run_once()

        loop._run_once = turn

    def noted(self, name: str) -> int:
        """How often something was noted."""
        return [event for event, _ in self.events].count(name)

    def fits(self, *orders: str) -> bool:
        """Whether what was noted is in the order written so; of several, in each, as far as its names go."""
        all_names = {name for order in orders for name in parse(order)[0]}
        return all_names == {name for name, _ in self.events} and all(map(self._fits, orders))

    def _fits(self, order: str) -> bool:
        names, relations = parse(order)
        events = [event for event in self.events if event[0] in names]
        if names != [name for name, _ in events]:
            return False
        turns = [turn for _, turn in events]
        return all(
            _RELATIONS[relation](before, after)
            for relation, before, after in zip(relations, turns, turns[1:], strict=False)
        )


def parse(order: str) -> tuple[list[str], list[str]]:
    """The names of an order, and the relations between them."""
    parts = re.split(r"\s*([,>~])\s*", order)
    return parts[::2], parts[1::2]


Order = str | tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        scenario: called with a Journal; notes what the order is about. Its name is the row's.
        order: on the stdlib's loop, and on ours where `ours` does not say otherwise. Several where the order of some
            things is the kernel's business: each of its own things.
        ours: on our loop, where that is another one, on purpose;
        why: and the reason.
        kind: given to the scenario, if it takes one.
    """

    scenario: Callable[..., Awaitable[None]]
    order: Order
    ours: Order = ""
    why: str = ""
    kind: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return self.scenario.__name__ + (f"-{self.kind.__name__}" if self.kind else "")

    def on(self, factory: Callable[[], Any]) -> Journal:
        """Play it on a new loop."""
        return record(factory, functools.partial(self.scenario, kind=self.kind) if self.kind else self.scenario)


def record(factory: Callable[[], Any], scenario: Callable[[Journal], Awaitable[None]]) -> Journal:
    """Play a scenario on a new loop, which must have nothing left. What it reports is noted, too."""
    journal = Journal()
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _loop, _report: journal.note("report"))
        journal.count_turns(loop)
        runner.run(scenario(journal))
        del loop._run_once
        gc.collect()
    proactor = getattr(loop, "proactor", None)
    if proactor is not None:
        assert not proactor.pending
        assert not proactor.endpoints
    return journal


class Noting(asyncio.Protocol, asyncio.DatagramProtocol, asyncio.SubprocessProtocol):
    """Any protocol: notes each call, and then does what `on` has for it, called with this protocol."""

    def __init__(self, journal: Journal, prefix: str = "", **on: Callable[["Noting"], Any]) -> None:
        self.journal, self.prefix, self.on = journal, prefix, on
        self.transport: Any = None

    def note(self, name: str) -> Any:
        self.journal.note(self.prefix + name)
        return self.on[name](self) if name in self.on else None

    def raising(self) -> None:
        """What `on` may have: a bug of the program's."""
        raise ZeroDivisionError(self.prefix)

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def data_received(self, data):
        self.note("data")

    def datagram_received(self, data, addr):
        self.note("data")

    def error_received(self, exc):
        self.note("error")

    def eof_received(self):
        return self.note("eof")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    def pipe_data_received(self, fd, data):
        self.note(f"data{fd}")

    def pipe_connection_lost(self, fd, exc):
        self.note(f"lost{fd}")

    def process_exited(self):
        self.note("exited")

    def connection_lost(self, exc):
        self.note("lost")
