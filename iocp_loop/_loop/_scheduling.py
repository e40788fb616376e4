"""Callbacks and timers: `call_soon`, `call_soon_threadsafe`, `call_later` and `call_at`.

They do the same as asyncio's own, in fewer steps. `asyncio.Handle` objects are filled in place; each call tests debug
mode once, and in debug mode uses asyncio's own code. The timers are in a heap of tuples `(when, number, handle)`,
because a heap of handles would compare them in Python, a dozen times for each of 100,000. The number keeps timers of
the same moment in the order of their calls.

Code that reads `_scheduled` gets a heap of handles, as in BaseEventLoop, and may take from it and add to it: the timers
are lent. They leave one timer in the heap of tuples, which is always due; our next turn runs it, and it takes the
timers back. Until then new timers go to the heap of tuples, and are lent when `_scheduled` is read again, or when a
turn that is not ours waits (`_other_turns`).
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sized
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple

from .._asyncio import _private as private
from .._asyncio._private import Handle, ThreadsafeHandle, TimerHandle
from .._core._proactor import Proactor

# Cancelled timers are removed when the heap has more than this many timers, and more than half were cancelled.
TIMERS_KEPT_MAX = 100
# If more callbacks than this are queued, a thread that adds another is slowed down. A turn runs all callbacks that it
# finds, so this bounds how many run between two looks at the port, however fast other threads are. If no operation is
# outstanding, only timers have to wait, and the second number holds.
BACKLOG_MAX = 512
BACKLOG_WITHOUT_IO_MAX = 16 * 1024
# The delay of each such call, in seconds; long enough for the loop to catch up.
SLOWED_S = 0.001

_Arguments = TypeVarTuple("_Arguments")
_AnyHandle = TypeVar("_AnyHandle", bound=asyncio.Handle)
Timer = tuple[float, int, Any]
_new: Any = object.__new__
_lock = private.lock_handle


class SchedulingLoop(private.BaseLoop):
    """The clock, the ready callbacks, and the timers."""

    proactor: Proactor  # set by the subclass, before anything is scheduled

    def __init__(self) -> None:
        self._timer_heap: list[Timer] = []
        self._lent: list[Any] = []
        self._returning: asyncio.TimerHandle | None = None  # takes the lent timers back; None if none are lent
        self._number = itertools.count().__next__
        self._outstanding: Sized = ()  # the outstanding operations; set by the subclass, which has the proactor
        super().__init__()
        # BaseEventLoop uses that of time.monotonic(), 15.6 ms up to Python 3.12, by which timers could be early.
        self._clock_resolution = time.get_clock_info("perf_counter").resolution

    @property
    def _scheduled(self) -> list[Any]:
        """The timers' handles, as BaseEventLoop keeps them; see the module's header."""
        self._lend_timers()
        return self._lent

    @_scheduled.setter
    def _scheduled(self, handles: list[Any]) -> None:
        """Replace all timers. BaseEventLoop does so to drop many cancelled ones, and at the start."""
        self._timer_heap.clear()
        self._returning = None
        self._lent = handles
        if handles:
            self._leave_returning_timer()

    def _lend_timers(self) -> None:
        """Move all timers from the heap of tuples to the lent heap."""
        heap, lent = self._timer_heap, self._lent
        if len(heap) == 1 and heap[0][2] is self._returning:
            return
        added = [timer[2] for timer in sorted(heap) if timer[2] is not self._returning]
        if lent:
            for handle in added:
                heapq.heappush(lent, handle)
        else:
            lent.extend(added)  # A sorted list is a heap.
        heap.clear()
        self._leave_returning_timer()

    def _leave_returning_timer(self) -> None:
        if self._returning is None:
            self._returning = asyncio.TimerHandle(0, self._take_timers_back, (), self, Context())
        self._timer_heap.append((0, self._number(), self._returning))

    def _take_timers_back(self) -> None:
        heap, lent = self._timer_heap, sorted(self._lent, key=lambda handle: handle._when)
        self._lent.clear()
        heap[:] = [timer for timer in heap if timer[2] is not self._returning]
        heapq.heapify(heap)
        self._returning = None
        for handle in lent:
            handle._scheduled = True
            heapq.heappush(heap, (handle._when, self._number(), handle))
        # Counted anew, because others may have dropped cancelled timers without counting.
        self._timer_cancelled_count = sum(timer[2]._cancelled for timer in self._timer_heap)

    def time(self) -> float:
        """Seconds on the performance counter, which is finer than the 15.6 ms tick of older Pythons' loops."""
        return time.perf_counter()

    def close(self) -> None:
        self._timer_heap.clear()
        self._lent.clear()
        super().close()
        # BaseEventLoop has read `_scheduled`, which leaves a timer of ours in the heap.
        self._timer_heap.clear()
        self._returning = None

    def call_soon(
        self, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """Call `callback(*args)` in the next turn, after the callbacks of earlier calls.

        Args:
            callback: a function, and not a coroutine.
            args: its arguments.
            context: the context to call it in; a copy of the current one if None.

        Raises:
            RuntimeError: the loop is closed; or, in debug mode, this is not the loop's thread.
        """
        if self._debug or self._closed:
            return _without_own_frame(super().call_soon(callback, *args, context=context))
        handle: Any = _new(Handle)
        handle._context = copy_context() if context is None else context
        handle._loop = self
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        handle._repr = None
        self._ready.append(handle)
        return handle  # type: ignore[no-any-return]

    def _finish_call_soon(self, exc: BaseException) -> None:
        """If an interrupt came in the middle of `call_soon`, finish that call.

        Its caller cannot: it may be a future that wakes a task, and has forgotten its callbacks by now.
        """
        trace = exc.__traceback__
        while trace is not None:
            frame, trace = trace.tb_frame, trace.tb_next
            asked = frame.f_locals
            if frame.f_code is _CALL_SOON and asked["self"] is self and not self._closed:
                if (handle := asked.get("handle")) is None or handle not in self._ready:
                    self.call_soon(asked["callback"], *asked["args"], context=asked["context"])
                return

    def call_soon_threadsafe(
        self, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """Do `call_soon` from any thread, and wake the loop. Many calls while it sleeps cost one packet.

        A thread that is far ahead of a running loop is slowed down, by a millisecond for each call, unless it runs a
        loop itself.
        """
        if self._debug or self._closed:
            slow_handle = _without_own_frame(super().call_soon_threadsafe(callback, *args, context=context))
            self._slow_down()
            return slow_handle
        handle: Any = _new(ThreadsafeHandle)
        handle._context = copy_context() if context is None else context
        handle._loop = self
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        handle._repr = None
        if _lock is not None:
            _lock(handle)
        ready = self._ready
        ready.append(handle)
        if not self.proactor.wake_posted:  # Asked here, too, because most calls are one of many.
            self._write_to_self()
        backlog = len(ready)
        # One outstanding operation is the signal wake-up's receive.
        if backlog > BACKLOG_MAX and (len(self._outstanding) > 1 or backlog > BACKLOG_WITHOUT_IO_MAX):
            self._slow_down()
        return handle  # type: ignore[no-any-return]

    def _slow_down(self) -> None:
        """Sleep, so that a loop that is far behind can catch up. Never on a thread that runs a loop."""
        if len(self._ready) > BACKLOG_MAX and self._thread_id is not None and private.current_loop() is None:
            time.sleep(SLOWED_S)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback(*args)` in `delay` seconds, never earlier. Order and exceptions are those of `call_at`."""
        if delay is None:
            raise TypeError("delay must not be None")
        handle = self.call_at(self.time() + delay, callback, *args, context=context)
        return _without_own_frame(handle) if self._debug else handle

    def call_at(
        self, when: float, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback(*args)` when the loop's `time` has reached `when`, never earlier.

        Timers of the same moment run in the order of their calls. Arguments and exceptions are those of `call_soon`.
        """
        if when is None:
            raise TypeError("when cannot be None")
        handle: Any
        if self._debug or self._closed:
            self._check_call_at(callback)
            handle = _without_own_frame(asyncio.TimerHandle(when, callback, args, self, context))
        else:
            handle = _new(TimerHandle)
            handle._context = copy_context() if context is None else context
            handle._loop = self
            handle._callback = callback
            handle._args = args
            handle._cancelled = False
            handle._repr = None
            handle._when = when
        heapq.heappush(self._timer_heap, (when, self._number(), handle))
        handle._scheduled = True
        return handle  # type: ignore[no-any-return]

    def _check_call_at(self, callback: Callable[..., object]) -> None:
        self._check_closed()
        self._check_thread()
        self._check_callback(callback, "call_at")

    def _take_due_timers(self, due: Any) -> None:
        """Move the handles that are due to `due`, in order."""
        timers = self._timer_heap
        # Two times that are closer than the clock's resolution count as equal.
        now = self.time() + self._clock_resolution
        while timers and timers[0][0] < now:
            handle = heapq.heappop(timers)[2]
            handle._scheduled = False
            due.append(handle)

    def _drop_cancelled_timers(self) -> None:
        """Drop the cancelled timers at the head of the heap, or all of them if there are many."""
        if self._returning is not None:
            self._take_timers_back()
        timers = self._timer_heap
        if len(timers) > TIMERS_KEPT_MAX and 2 * self._timer_cancelled_count > len(timers):
            kept: list[Any] = []
            for timer in timers:
                if timer[2]._cancelled:
                    timer[2]._scheduled = False
                else:
                    kept.append(timer)
            timers[:] = kept
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        while timers and timers[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)[2]._scheduled = False
        if not timers:
            # A timer that was run by a turn that is not ours is counted if it is cancelled later, but is not here.
            self._timer_cancelled_count = 0


def _without_own_frame(handle: _AnyHandle) -> _AnyHandle:
    """Drop our own frame, the last, from the traceback that debug mode keeps of where a handle was made."""
    frames: Any = handle._source_traceback  # type: ignore[attr-defined]
    if frames:
        del frames[-1]
    return handle


_CALL_SOON = SchedulingLoop.call_soon.__code__
