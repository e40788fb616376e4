"""Everything that a transport is given: the asyncio loop, and what the transports of one loop share."""

from typing import Any

from .._core._proactor import Proactor
from ._idle import IdleRounds
from ._joining import JoinBuffer
from ._lingering import Lingerings
from ._turns import Turn


class Services:
    """The services of one loop. Used from its thread only.

    Attributes:
        loop: an asyncio event loop, for its clock, callbacks, futures and exception handler.
        proactor: submits the operations.
        turn: the loop's current turn.
        idle_rounds: the rounds in which silent connections give their buffers back.
        join_buffer: the memory in which writers join small pieces.
        lingerings: the closed connections whose peers may still be sending.
        transmits_running: the number of TransmitFile calls outstanding.
    """

    __slots__ = ("idle_rounds", "join_buffer", "lingerings", "loop", "proactor", "transmits_running", "turn")

    def __init__(self, loop: Any, proactor: Proactor, turn: Turn) -> None:
        self.loop = loop
        self.proactor = proactor
        self.turn = turn
        self.idle_rounds = IdleRounds(loop)
        self.join_buffer = JoinBuffer()
        self.lingerings = Lingerings(loop, proactor)
        self.transmits_running = 0
