"""Waits that end at their time, and not with the next tick of the system's clock.

On Windows a wait with a time-out ends with a tick, which comes every 15.6 ms unless some program has asked for more of
them (MSDN, Sleep; timeBeginPeriod). `asyncio.sleep(0.001)` takes 15 ms then. A waitable timer of high resolution does
not go by ticks (MSDN, CreateWaitableTimerExW: Windows 10 1803), and a *wait completion packet* lets the kernel queue a
packet to the port when that timer is signalled (MSDN, NtAssociateWaitCompletionPacket). So no thread waits for it, and
nobody changes the tick of the whole system.

A wait that is far from its end sleeps by the port's own time-out until it is near; then the timer is set. A system
that lacks either of the two (Wine, older Windows) keeps the port's time-outs: see `Resolution`.

States
======
    UNASKED  no wait with a time-out so far; nobody knows what the system has
    MISSING  it lacks the timer or the packet, or they have failed: waits are the port's own. For good
    IDLE     the timer is not set, or its packet was dequeued; the packet may be associated
    ARMED    the timer is set for `_due`, and its packet is associated: it comes then, or is in the port already

What is asked of the kernel: nothing while the timer is set for the same moment or an earlier one, which is woken up for
in vain at most once; two calls after its packet was dequeued; three to set it for an earlier moment, in the order in
which Go's runtime makes them (runtime/netpoll_windows.go, netpollQueueTimer): a packet is associated with one timer at
a time, so that it is cancelled first.
"""

import ctypes
import math
from enum import Enum

from .._win32.constants import Status, TimerFlag
from .._win32.types import HANDLE
from ._endpoint import Key
from ._port import CompletionPort, timeout_to_ms

# A wait of the port may end a tick early or late. One that is longer than this ends by the port first, at NEAR_S before
# its time; what is left is waited for by the timer.
FAR_S, NEAR_S = 0.060, 0.035
# Two moments that are nearer to each other than this are one: to wake up twice would take longer.
SAME_S = 0.00005
# The port's own time-out of a wait that the timer ends: a net, for a timer that does not.
NET_MS = 50
# Refusals in a row, after which the system is taken for one that lacks it.
REFUSALS_MAX = 3

_TICKS_PER_S = 10_000_000  # of 100 ns: FILETIME's unit


class Resolution(Enum):
    """What a wait with a time-out is as exact as; see the module's header."""

    UNASKED = "nobody has waited yet"
    MISSING = "a wait of the port"
    IDLE = "a timer of high resolution"
    ARMED = "a timer of high resolution, which is set"


UNASKED, MISSING, IDLE, ARMED = Resolution.UNASKED, Resolution.MISSING, Resolution.IDLE, Resolution.ARMED


class FineTimer:
    """The timer of one port, for the thread that waits on it and asks `wait_ms` before each wait.

    Args:
        port: where its packet comes to.
    """

    def __init__(self, port: CompletionPort) -> None:
        self._port = port
        self._kernel = port.kernel
        self._clock = port.kernel.monotonic
        self.resolution = UNASKED
        self._timer = 0
        self._packet = HANDLE()  # in the kernel's own words: a packet that it has made is never lost
        self._due = 0.0  # on the kernel's clock
        self._refusals = 0
        self._relative = ctypes.c_int64()
        self._signaled = ctypes.c_ubyte()

    def close(self) -> None:
        """Let go of the timer and its packet. Idempotent."""
        self.resolution = MISSING
        if self._packet.value:
            self._kernel.NtCancelWaitCompletionPacket(self._packet.value, 1)
        self._close_handles()

    def wait_ms(self, timeout: float) -> int:
        """Prepare a wait of so many seconds; the milliseconds to wait for at the port."""
        if timeout <= 0:
            return 0
        try:
            if self.resolution is UNASKED:
                self._open()
            if self.resolution is MISSING:
                return timeout_to_ms(timeout)  # Found out just now, or closed.
            if timeout > FAR_S:
                return timeout_to_ms(timeout - NEAR_S)
            return self._arm(timeout)
        except MemoryError:
            return timeout_to_ms(timeout)

    def fired(self) -> None:
        """Its packet was dequeued: the association is over."""
        if self.resolution is ARMED:
            self.resolution = IDLE

    def _open(self) -> None:
        kernel = self._kernel
        # Each only if it is not there: this method may be called again after an interrupt, or for want of memory.
        if not self._packet.value:
            try:
                kernel.NtCreateWaitCompletionPacket(ctypes.addressof(self._packet), TimerFlag.PACKET_ACCESS, 0)
            except AttributeError:
                pass  # ntdll has no such function.
        if self._packet.value and not self._timer:
            self._timer = kernel.CreateWaitableTimerExW(0, None, TimerFlag.HIGH_RESOLUTION, TimerFlag.ALL_ACCESS)
        if self._timer:
            self.resolution = IDLE
        else:
            self._do_without()

    def _arm(self, timeout: float) -> int:
        """Let the timer's packet come in so many seconds, or before; the milliseconds to wait for at the port."""
        kernel, packet, now = self._kernel, self._packet.value, self._clock()
        due, whole_ms = now + timeout, timeout_to_ms(timeout)
        if self.resolution is ARMED:
            if now < self._due <= due + SAME_S:
                return whole_ms + NET_MS
            if kernel.NtCancelWaitCompletionPacket(packet, 1) == Status.PENDING:
                # The timer is signalled at this moment: its packet ends this wait, and the next one is exact.
                return whole_ms
            self.resolution = IDLE
        self._relative.value = -math.ceil(timeout * _TICKS_PER_S)
        if not kernel.SetWaitableTimer(self._timer, ctypes.addressof(self._relative), 0, 0, 0, 0):
            return self._refused(whole_ms)
        port, signaled = self._port.fileno(), ctypes.addressof(self._signaled)
        if kernel.NtAssociateWaitCompletionPacket(packet, port, self._timer, Key.TIMER, 0, 0, 0, signaled):
            # It is associated already, if an interrupt has ended this method before it could say so.
            kernel.NtCancelWaitCompletionPacket(packet, 1)
            return self._refused(whole_ms)
        # Signalled between the two calls: the time is up, and whether a packet comes as well nobody says. The next wait
        # takes the timer for over, and cancels what is left of it.
        is_over = bool(self._signaled.value)
        self._refusals, self._due = 0, now if is_over else due
        self.resolution = ARMED
        return 0 if is_over else whole_ms + NET_MS

    def _refused(self, whole_ms: int) -> int:
        self.resolution = IDLE
        self._refusals += 1
        if self._refusals >= REFUSALS_MAX:
            self._do_without()
        return whole_ms

    def _do_without(self) -> None:
        self.resolution = MISSING
        self.wait_ms = timeout_to_ms  # type: ignore[assignment, method-assign]  # For good: a call less a wait.
        self._close_handles()

    def _close_handles(self) -> None:
        # Each is forgotten before it is closed: after an interrupt its value may be somebody else's.
        timer, self._timer = self._timer, 0
        if timer:
            self._kernel.CloseHandle(timer)
        packet, self._packet.value = self._packet.value, 0
        if packet:
            self._kernel.CloseHandle(packet)
