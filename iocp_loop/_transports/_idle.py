"""Connections where nothing comes give their receive buffers back; see `_reader.Idleness`.

A round looks at every receive that is outstanding. No clock is read and nothing is noted while data flow: a round marks
a reader, what comes takes the mark away, and who still has it in the next round has been quiet all the while. There are
no rounds while few connections have a buffer: a timer would cost each turn of the loop more than that memory is worth.
"""

from typing import TYPE_CHECKING

from ._reader import Reader

if TYPE_CHECKING:
    from .._loop._turn import TurningLoop

# Between two rounds, in seconds. Resting costs three kernel calls for each silence that is longer than two rounds: a
# cancel, the receive of no bytes, and the one that takes its place when something comes.
ROUND_S = 5.0
# There are rounds while so many connections have a buffer.
BUFFERS_MIN = 32
# Receives cancelled in one turn of the loop: what else is due must not wait long for 10,000 of them.
CANCELS_AT_ONCE_MAX = 50


class IdleRounds:
    """The rounds of one loop."""

    def __init__(self, loop: "TurningLoop") -> None:
        self._loop = loop
        self._buffers = 0  # connections that have one, and may rest
        self._left: list[Reader] = []  # to be looked at in this round
        self._is_going = False  # a timer is set

    def join(self) -> None:
        """A connection has taken a buffer."""
        self._buffers += 1
        if self._buffers >= BUFFERS_MIN and not self._is_going:
            self._is_going = True
            self._loop.call_later(ROUND_S, self._go_on_time)

    def leave(self) -> None:
        """A connection has given its buffer back."""
        self._buffers -= 1

    def close(self) -> None:
        """The loop is closing: no round begins any more."""
        self._left.clear()
        self._loop = None  # type: ignore[assignment]  # Nobody asks it any more.

    def _go_on_time(self) -> None:
        try:
            self.go()
        finally:
            # Also after a cancel that failed: it is reported, and the others' rounds go on.
            if self._buffers >= BUFFERS_MIN:
                self._loop.call_later(ROUND_S, self._go_on_time)
            else:
                self._is_going = False

    def go(self) -> None:
        """Begin one round; it ends in this turn of the loop, unless it has much to cancel."""
        pending = list(self._loop.proactor.pending.values())
        sinks = [getattr(operation.deliver, "__self__", None) for operation in pending]
        self._left = [sink for sink in sinks if isinstance(sink, Reader)]
        self._go_on()

    def _go_on(self) -> None:
        cancels = 0
        while self._left and cancels < CANCELS_AT_ONCE_MAX:
            cancels += self._left.pop().pass_round()
        if self._left:
            self._loop.call_soon(self._go_on)
