"""Flow control: asyncio's high and low water marks, at which a protocol is asked to stop writing and to go on."""

from typing import Protocol

HIGH_WATER_DEFAULT = 64 * 1024


class ProtocolCaller(Protocol):
    """A transport."""

    def tell_protocol(self, what: str) -> None:
        """Call the protocol's method of that name, without arguments; report what it raises."""


class FlowControl:
    """The water marks of one transport; `transport.tell_protocol` makes the calls. Sizes are in bytes.

    `grown` and `shrunk` call the protocol, which may write, close or raise there. So a transport calls them last, when
    its own state is complete.

    Attributes:
        high: the high-water mark.
        was_set: the program has chosen the marks.
        paused: the protocol was asked to stop, and not yet to go on.
    """

    __slots__ = ("_low", "_transport", "high", "paused", "was_set")

    def __init__(self, transport: ProtocolCaller) -> None:
        self._transport: ProtocolCaller = transport
        self.high, self._low = HIGH_WATER_DEFAULT, HIGH_WATER_DEFAULT // 4
        self.paused = self.was_set = False

    def set_limits(self, high: int | None, low: int | None) -> None:
        """As in `asyncio.WriteTransport.set_write_buffer_limits`. Raises ValueError unless high >= low >= 0."""
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
        """Drop the reference to the transport, which is closed."""
        self._transport = None  # type: ignore[assignment]  # `grown` and `shrunk` are not called again.
        self.paused = False

    def grown(self, size: int) -> None:
        """Pause the protocol if the queue, which grew to `size`, is above the high mark."""
        if size > self.high and not self.paused:
            self.paused = True
            self._transport.tell_protocol("pause_writing")

    def shrunk(self, size: int) -> None:
        """Resume a paused protocol if the queue, which shrank to `size`, is not above the low mark."""
        if self.may_resume(size):
            self.paused = False
            self._transport.tell_protocol("resume_writing")

    def may_resume(self, size: int) -> bool:
        """Whether `shrunk` would resume the protocol."""
        return self.paused and size <= self._low
