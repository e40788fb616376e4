"""Silent connections give their receive buffers back; see `_reading.Idleness`.

A round visits every reader that has a buffer. While data flow, no clock is read and no time is stored: a round marks a
reader, arriving data remove the mark, and a reader that still has it in the next round was silent in between. There are
no rounds while few connections have a buffer: a timer would cost each turn of the loop more than that memory is worth.
"""

import weakref
from typing import Any, Protocol

# Seconds between two rounds. Each silence that is longer than two rounds costs three kernel calls: a cancel, the
# receive of no bytes, and the receive that replaces it when something comes.
ROUND_S = 5.0
# There are rounds while at least this many connections have a buffer.
BUFFERS_MIN = 32
# The most receives to cancel in one turn of the loop: other callbacks must not wait long for 10,000 cancels.
CANCELS_AT_ONCE_MAX = 50


class Quiet(Protocol):
    """A reader that has a buffer, and may rest."""

    def pass_round(self) -> bool:
        """Take one step towards resting. True if that cancelled a receive."""
        ...


class IdleRounds:
    """The rounds of one loop."""

    def __init__(self, loop: Any) -> None:
        self._loop: Any = loop
        # The readers that have a buffer and may rest, by id. Weak references, so that a transport that was dropped and
        # waits for nothing is freed, and warns that it was not closed.
        self._readers: dict[int, weakref.ref[Quiet]] = {}
        self._left: list[Quiet] = []  # still to visit in this round
        self._is_going = False  # a timer is set

    def __len__(self) -> int:
        return len(self._readers)

    def join(self, reader: Quiet) -> None:
        """Add a reader, which has made a buffer. May be repeated."""
        self._readers[id(reader)] = weakref.ref(reader)
        if len(self._readers) >= BUFFERS_MIN and not self._is_going:
            self._is_going = True
            self._loop.call_later(ROUND_S, self._go_on_time)

    def leave(self, reader: Quiet) -> None:
        """Remove a reader, which has released its buffer. May be repeated."""
        self._readers.pop(id(reader), None)

    def close(self) -> None:
        """Drop everything: the loop is closing, and no further round begins."""
        self._left.clear()
        self._loop = None  # Breaks the cycle.

    def _go_on_time(self) -> None:
        try:
            self.go()
        finally:
            # Also if a cancel raised: that is reported, and the rounds go on for the other readers.
            if len(self._readers) >= BUFFERS_MIN:
                self._loop.call_later(ROUND_S, self._go_on_time)
            else:
                self._is_going = False

    def go(self) -> None:
        """Begin one round. It ends in this turn of the loop unless there are many receives to cancel."""
        self._left = []
        for key, reference in tuple(self._readers.items()):
            if (reader := reference()) is not None:
                self._left.append(reader)
            elif self._readers[key] is reference:  # A new reader may have the same id by now: keep that.
                del self._readers[key]
        self._go_on()

    def _go_on(self) -> None:
        cancels = 0
        while self._left and cancels < CANCELS_AT_ONCE_MAX:
            cancels += self._left.pop().pass_round()
        if self._left:
            self._loop.call_soon(self._go_on)
