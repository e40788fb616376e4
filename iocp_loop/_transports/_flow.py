"""When a transport asks its protocol to stop writing, and when to go on: asyncio's high and low water marks."""

from typing import Protocol

HIGH_WATER_DEFAULT = 64 * 1024


class ProtocolCaller(Protocol):
    """A transport."""

    def tell_protocol(self, what: str) -> None:
        """Call the protocol's method of that name, which takes nothing; what it raises is reported."""


class FlowControl:
    """The water marks of one transport; `transport.tell_protocol` makes the calls. Sizes are in bytes.

    `grown` and `shrunk` call the protocol, which may write, close or raise there: a transport calls them last, when
    its own state is what it will be.

    Attributes:
        high: the high-water mark.
        was_set: the program has chosen the marks.
        paused: the protocol was asked to stop, and not yet to go on.
    """

    __slots__ = ("_low", "_transport", "high", "paused", "was_set")

    def __init__(self, transport: ProtocolCaller) -> None:
        self._transport = transport
        self.high, self._low = HIGH_WATER_DEFAULT, HIGH_WATER_DEFAULT // 4
        self.paused = self.was_set = False

    def set_limits(self, high: int | None, low: int | None) -> None:
        """As asyncio.WriteTransport.set_write_buffer_limits. Raises ValueError unless high >= low >= 0."""
        was_set = not (high is None and low is None)
        if high is None:
            high = HIGH_WATER_DEFAULT if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high, self._low, self.was_set = high, low, was_set

    def limits(self) -> tuple[int, int]:
        return self._low, self.high

    def release(self) -> None:
        """Forget the transport: it is closed, and nothing grows or shrinks any more."""
        self._transport = None  # type: ignore[assignment]  # Nothing is told any more.
        self.paused = False

    def grown(self, size: int) -> None:
        """The queue now holds `size`, more than before."""
        if size > self.high and not self.paused:
            self.paused = True
            self._transport.tell_protocol("pause_writing")

    def shrunk(self, size: int) -> None:
        """The queue now holds `size`, less than before."""
        if self.may_resume(size):
            self.paused = False
            self._transport.tell_protocol("resume_writing")

    def may_resume(self, size: int) -> bool:
        """Whether `shrunk` has something to tell."""
        return self.paused and size <= self._low
