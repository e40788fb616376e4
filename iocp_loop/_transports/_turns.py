"""The part of the loop's turn that transports see: its number, its callbacks, and what they leave for its end."""

from collections import deque
from typing import Any, Protocol


class Gatherer(Protocol):
    """A writer.

    Attributes:
        transport: the transport that it is the writing half of.
    """

    transport: Any

    def uncork(self) -> None:
        """Send what was gathered in the turn that ends."""


class Receiver(Protocol):
    """A reader.

    Attributes:
        transport: the transport that it is the reading half of.
    """

    transport: Any

    def arm(self) -> None:
        """Submit the receive."""


class Turn:
    """The current turn of one loop. Used from the loop's thread only.

    Args:
        callbacks: the loop's queue of callbacks.

    Attributes:
        number: counts the loop's own turns, so that a writer can tell the first write of a turn from later ones. 0: no
            turn of ours is running, so that its end is not known.
        corked: writers that have something to send at the turn's end, in order.
        unarmed: readers that submit their receive after their callbacks have run, in order.
    """

    __slots__ = ("callbacks", "corked", "number", "unarmed")

    def __init__(self, callbacks: deque[Any]) -> None:
        self.number = 0
        self.callbacks = callbacks
        self.corked: deque[Gatherer] = deque()
        self.unarmed: deque[Receiver] = deque()
