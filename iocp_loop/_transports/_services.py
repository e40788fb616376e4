"""What a transport is given: the loop as anybody knows it, and what the transports of one loop share."""

from typing import Any

from .._core._proactor import Proactor
from ._idle import IdleRounds
from ._joining import JoinBuffer
from ._lingering import Lingerings
from ._turns import Turn


class Services:
    """Those of one loop. Used from its thread only.

    Attributes:
        loop: an asyncio event loop: its clock, callbacks, futures, exception handler.
        proactor: where operations are submitted.
        turn: the one that is running.
        idle_rounds: by which quiet connections give their buffers back.
        join_buffer: where small pieces are joined.
        lingerings: the connections that are ending.
        transmits_running: TransmitFile calls outstanding.
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
