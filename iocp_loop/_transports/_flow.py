"""When a transport asks its protocol to stop writing, and when to go on: asyncio's high and low water marks."""

from typing import Any

HIGH_WATER_DEFAULT = 64 * 1024


class FlowControl:
    """The water marks of one transport; `transport.tell_protocol` makes the calls. Sizes are in bytes."""

    __slots__ = ("_low", "_paused", "_transport", "high")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.high, self._low = HIGH_WATER_DEFAULT, HIGH_WATER_DEFAULT // 4
        self._paused = False

    def set_limits(self, high: int | None, low: int | None) -> None:
        """As asyncio.WriteTransport.set_write_buffer_limits. Raises ValueError unless high >= low >= 0."""
        if high is None:
            high = HIGH_WATER_DEFAULT if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high, self._low = high, low

    def limits(self) -> tuple[int, int]:
        return self._low, self.high

    def release(self) -> None:
        """Forget the transport: it is closed, and nothing grows or shrinks any more."""
        self._transport = None

    def grown(self, size: int) -> None:
        """The queue now holds `size`, more than before."""
        if size > self.high and not self._paused:
            self._paused = True
            self._transport.tell_protocol("pause_writing")

    def shrunk(self, size: int) -> None:
        """The queue now holds `size`, less than before."""
        if self._paused and size <= self._low:
            self._paused = False
            self._transport.tell_protocol("resume_writing")
