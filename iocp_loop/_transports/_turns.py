"""What transports know of the loop's turns, and what they leave for a turn's end."""

from collections import deque
from typing import Any, Protocol


class Gatherer(Protocol):
    """A writer.

    Attributes:
        transport: whose half it is.
    """

    transport: Any

    def uncork(self) -> None:
        """Send together what was gathered in the turn that ends."""


class Receiver(Protocol):
    """A reader.

    Attributes:
        transport: whose half it is.
    """

    transport: Any

    def arm(self) -> None:
        """Submit the receive."""


class Turn:
    """The turn of one loop that is running. Used from the loop's thread only.

    Args:
        callbacks: the loop's queue of those that are to run.

    Attributes:
        number: which one of ours it is: a writer gathers what is written after the first time in it. 0: none of ours,
            so nobody knows when it ends.
        corked: those that have something to send at its end, in order.
        unarmed: those that submit their receive when their callbacks have run, in order.
    """

    __slots__ = ("callbacks", "corked", "number", "unarmed")

    def __init__(self, callbacks: deque[Any]) -> None:
        self.number = 0
        self.callbacks = callbacks
        self.corked: deque[Gatherer] = deque()
        self.unarmed: deque[Receiver] = deque()
