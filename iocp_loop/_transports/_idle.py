"""Connections where nothing comes give their receive buffers back; see `_reading.Idleness`.

A round looks at every connection that has one. No clock is read and nothing is noted while data flow: a round marks
a reader, what comes takes the mark away, and who still has it in the next round has been quiet all the while. There are
no rounds while few connections have a buffer: a timer would cost each turn of the loop more than that memory is worth.
"""

import weakref
from typing import Any, Protocol

# Between two rounds, in seconds. Resting costs three kernel calls for each silence that is longer than two rounds: a
# cancel, the receive of no bytes, and the one that takes its place when something comes.
ROUND_S = 5.0
# There are rounds while so many connections have a buffer.
BUFFERS_MIN = 32
# Receives cancelled in one turn of the loop: what else is due must not wait long for 10,000 of them.
CANCELS_AT_ONCE_MAX = 50


class Quiet(Protocol):
    """A reader that has a buffer, and may rest."""

    def pass_round(self) -> bool:
        """Whether it has cancelled its receive."""
        ...


class IdleRounds:
    """The rounds of one loop."""

    def __init__(self, loop: Any) -> None:
        self._loop: Any = loop
        # Those that have a buffer, and may rest, by their id. Weakly: a transport that nobody has any more, and that
        # waits for nothing, is to die and say that it was not closed.
        self._readers: dict[int, weakref.ref[Quiet]] = {}
        self._left: list[Quiet] = []  # to be looked at in this round
        self._is_going = False  # a timer is set

    def __len__(self) -> int:
        return len(self._readers)

    def join(self, reader: Quiet) -> None:
        """A connection has taken a buffer. Twice is once."""
        self._readers[id(reader)] = weakref.ref(reader)
        if len(self._readers) >= BUFFERS_MIN and not self._is_going:
            self._is_going = True
            self._loop.call_later(ROUND_S, self._go_on_time)

    def leave(self, reader: Quiet) -> None:
        """A connection has given its buffer back. Twice is once."""
        self._readers.pop(id(reader), None)

    def close(self) -> None:
        """The loop is closing: no round begins any more."""
        self._left.clear()
        self._loop = None  # Nobody asks it any more.

    def _go_on_time(self) -> None:
        try:
            self.go()
        finally:
            # Also after a cancel that failed: it is reported, and the others' rounds go on.
            if len(self._readers) >= BUFFERS_MIN:
                self._loop.call_later(ROUND_S, self._go_on_time)
            else:
                self._is_going = False

    def go(self) -> None:
        """Begin one round; it ends in this turn of the loop, unless it has much to cancel."""
        self._left = []
        for key, reference in tuple(self._readers.items()):
            if (reader := reference()) is not None:
                self._left.append(reader)
            elif self._readers[key] is reference:  # Not one that has its id by now.
                del self._readers[key]
        self._go_on()

    def _go_on(self) -> None:
        cancels = 0
        while self._left and cancels < CANCELS_AT_ONCE_MAX:
            cancels += self._left.pop().pass_round()
        if self._left:
            self._loop.call_soon(self._go_on)
