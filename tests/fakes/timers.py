"""Waitable timers of the fake kernel, and the packets that it queues when they are signalled."""

import ctypes
from typing import Any

from iocp_loop._win32.constants import Error, Status, TimerFlag

from .handles import FakeHandle

_TICKS_PER_MS = 10_000  # of 100 ns
LATE_MS_MAX = (
    0.6  # by which a timer of high resolution is late: half a millisecond was seen on Windows (Go, issue 44343)
)
STATUS_INVALID_PARAMETER_1 = 0xC00000EF - (1 << 32)
STATUS_CANCELLED = 0xC0000120 - (1 << 32)


class FakeTimer(FakeHandle):
    """One that is signalled once, and until its packet was queued.

    Attributes:
        due_ms: when, on the kernel's clock; None while it is not set.
    """

    due_ms: float | None = None


class WaitPacket(FakeHandle):
    """A wait completion packet.

    Attributes:
        watched: its timer, its port's handle and the key; None while it is not associated.
        queued: the packet is in the port: it is in use until somebody has dequeued it.
    """

    watched: tuple[FakeTimer, int, int] | None = None
    queued = False


class TimerCalls:
    """The calls of `FakeKernel` that are about timers."""

    def NtCreateWaitCompletionPacket(self: Any, packet: int, access: int, attributes: int, /) -> int:
        if not self.profile.has_fine_timers:
            raise AttributeError("the fake kernel has no NtCreateWaitCompletionPacket")
        self.count("NtCreateWaitCompletionPacket")
        ctypes.c_size_t.from_address(packet).value = self.make(WaitPacket).handle
        return 0

    def CreateWaitableTimerExW(self: Any, attributes: int, name: str | None, flags: int, access: int, /) -> int:
        self.count("CreateWaitableTimerExW")
        if not flags & TimerFlag.HIGH_RESOLUTION:
            self.violation("an ordinary timer goes by the tick")
        if self.chance("no_timer"):
            return self._fail(Error.INVALID_PARAMETER)
        return int(self.make(FakeTimer).handle)

    def SetWaitableTimer(
        self: Any, timer: int, due: int, period: int, routine: int, argument: int, resume: int, /
    ) -> int:
        self.count("SetWaitableTimer")
        self.interrupt()
        relative = ctypes.c_int64.from_address(due).value
        if relative >= 0:
            self.violation("a relative time is negative")
        if self.chance("no_timer"):
            return self._fail(Error.INVALID_PARAMETER)
        late_ms = self.random.uniform(0, LATE_MS_MAX)
        self.thing(timer, FakeTimer).due_ms = self.now_ms - relative / _TICKS_PER_MS + late_ms
        if self.chance("slow_caller"):
            self.now_ms += -relative / _TICKS_PER_MS + late_ms
        self.interrupt()
        return 1

    def NtAssociateWaitCompletionPacket(self: Any, *args: Any) -> int:
        packet, port, timer, key, _context, _status, _information, already = args
        self.count("NtAssociateWaitCompletionPacket")
        self.interrupt()
        waiting = self.thing(packet, WaitPacket)
        if waiting.watched is not None or waiting.queued:
            return STATUS_INVALID_PARAMETER_1
        if self.chance("no_timer"):
            return STATUS_INVALID_PARAMETER_1
        watched = self.thing(timer, FakeTimer)
        is_due = watched.due_ms is not None and watched.due_ms <= self.now_ms
        ctypes.c_ubyte.from_address(already).value = is_due
        # Whether the packet of a timer that is due already is queued as well, its documentation does not say.
        if not is_due or self.random.random() < 0.5:
            waiting.watched = watched, port, key
            self._look_at_timers()
        self.interrupt()
        return 0

    def NtCancelWaitCompletionPacket(self: Any, packet: int, remove_signaled: int, /) -> int:
        self.count("NtCancelWaitCompletionPacket")
        waiting = self.thing(packet, WaitPacket)
        if waiting.queued:
            if self.chance("slow_cancel"):
                return int(Status.PENDING)
            waiting.queued = False
            for port in self.ports():
                port.packets[:] = [entry for entry in port.packets if entry[4] is not waiting]
            return 0
        if waiting.watched is None:
            return STATUS_CANCELLED
        waiting.watched = None
        return 0

    def _look_at_timers(self: Any) -> None:
        """Queue the packets of those that are due."""
        for waiting in [thing for thing in self._handles.values() if isinstance(thing, WaitPacket)]:
            if waiting.watched is None:
                continue
            timer, port, key = waiting.watched
            if timer.due_ms is not None and timer.due_ms <= self.now_ms:
                timer.due_ms = waiting.watched = None
                waiting.queued = True
                self._port(port).packets.append((key, 0, 0, 0, waiting))

    def _next_timer_ms(self: Any) -> float | None:
        """When the next packet will be queued; None if nobody waits for a timer."""
        waits = [thing.watched for thing in self._handles.values() if isinstance(thing, WaitPacket) and thing.watched]
        return min((timer.due_ms for timer, _, _ in waits if timer.due_ms is not None), default=None)
