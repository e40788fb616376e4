"""A completion port: the package's only blocking call.

A program associates any number of handles with a port, each once and for life, under a key that names it. Every
operation started on such a handle delivers one packet to the port, whichever thread started it and however soon it
finished. Any number of threads may wait; a packet wakes one of them.

This module knows packets. It does not know operations, endpoints or loops.

Sources: MSDN "I/O Completion Ports", "GetQueuedCompletionStatusEx", "CreateIoCompletionPort".
"""

import ctypes
import math
import threading
import time
import weakref
from typing import Any, NamedTuple

from .._win32.constants import INFINITE, INVALID_HANDLE_VALUE, TIMEOUT_MAX_MS, Error
from .._win32.errors import os_error
from .._win32.kernel import Kernel, win32_kernel
from .._win32.prototypes import argument
from .._win32.types import BOOL, DWORD, HANDLE, OVERLAPPED_ENTRY, OVERLAPPED_ENTRY_LAYOUT, POINTER_TO, ULONG

# Enough to amortise the call; wepoll takes 256, libuv 128, trio 1000. Bounded, so that a flood of packets cannot
# keep timers and callbacks waiting.
PACKETS_MAX = 256

# The key of the packets that `close` posts to threads still waiting.
_CLOSE_KEY = ctypes.c_size_t(-1).value
_CLOSE_WAIT_S = 5.0
# The first and the longest pause between two attempts of `post_surely`.
_POST_PAUSE_FIRST_S, _POST_PAUSE_MAX_S = 0.001, 0.1

# QUIRK(wow64): in a 32-bit process on a 64-bit system, a wait that times out writes an entry all the same. It copies
# uninitialized memory, usually an old packet (Wine 10).
_TIME_OUT_WRITES = ctypes.sizeof(ctypes.c_void_p) == 4

_Entries = OVERLAPPED_ENTRY * PACKETS_MAX  # Made once: each new type is a reference cycle.
_ENTRY_SIZE = OVERLAPPED_ENTRY_LAYOUT.size
_unpack_one = OVERLAPPED_ENTRY_LAYOUT.unpack_from
_unpack_all = OVERLAPPED_ENTRY_LAYOUT.iter_unpack


class Packet(NamedTuple):
    """One completion: `key` names the handle, `overlapped` is the operation's address, `status` its NTSTATUS."""

    key: int
    overlapped: int
    status: int
    byte_count: int


def timeout_to_ms(seconds: float | None) -> int:
    """Convert a timeout in seconds (None: for ever) to the milliseconds that the kernel's wait expects.

    Rounds up, not to nearest: 0.4 ms must not become a wait of 0 ms, which would spin until the time has come.
    """
    if seconds is None:
        return INFINITE
    if seconds <= 0:
        return 0
    # Compare before rounding: `math.ceil` cannot round infinity.
    return TIMEOUT_MAX_MS if seconds * 1000 >= TIMEOUT_MAX_MS else math.ceil(seconds * 1000)


class _Batch:
    """The array that the kernel fills for one waiting thread, and the prepared arguments that point at it.

    Attributes:
        thread: the identifier of that thread.
        waiting: True during a wait, while the kernel may fill the array.
    """

    __slots__ = (
        "__weakref__",
        "_entries",
        "_handle",
        "_removed",
        "keys",
        "memory",
        "removed_view",
        "thread",
        "timeout",
        "waiting",
        "with_timeout",
        "without_timeout",
        "zero_timeout",
    )

    def __init__(self, handle: int) -> None:
        self.thread = threading.get_ident()
        self.waiting = False
        self._entries = _Entries()
        self._removed = ULONG()
        self.memory = memoryview(self._entries).cast("B")
        self.keys = self.memory.cast("P")  # index 0 is the first entry's key
        self.removed_view = memoryview(self._removed).cast("B").cast("I")
        self.timeout = DWORD()
        self._handle = argument(HANDLE, handle)
        self.limit(PACKETS_MAX)

    def limit(self, packets_max: int) -> None:
        """Prepare the arguments of waits for at most this many packets."""
        start = (
            self._handle,
            argument(POINTER_TO, ctypes.addressof(self._entries)),
            argument(ULONG, packets_max),
            argument(POINTER_TO, ctypes.addressof(self._removed)),
        )
        self.zero_timeout = (*start, argument(DWORD, 0), argument(BOOL, 0))
        self.without_timeout = (*start, argument(DWORD, INFINITE), argument(BOOL, 0))
        # For any other timeout: the milliseconds are in `timeout`, which is passed by value.
        self.with_timeout = (*start, self.timeout, argument(BOOL, 0))


class CompletionPort:
    """An I/O completion port; safe to use from many threads at once.

    Args:
        concurrency: how many of the waiting threads may run at once; 0 means one per processor. More threads may
            wait: while one blocks in its own work, the next one runs
            (MSDN, CreateIoCompletionPort, NumberOfConcurrentThreads).

    Raises:
        OSError: the port could not be created.
    """

    def __init__(self, concurrency: int = 0, *, kernel: Kernel | None = None) -> None:
        if not 0 <= concurrency <= 0xFFFF_FFFF:
            raise ValueError(f"concurrency must be 0 (one per processor) or more, not {concurrency}")
        self._kernel: Kernel = win32_kernel() if kernel is None else kernel
        self._closing = False
        self._lock = threading.Lock()
        self._own = threading.local()  # `batch`: this thread's `_Batch`
        self._batches: list[weakref.ref[_Batch]] = []  # those of all live threads
        self._rescued: list[tuple[int, int, int, int]] = []
        self._wait = self._kernel.GetQueuedCompletionStatusEx
        self._handle = 0
        self._handle = self._kernel.CreateIoCompletionPort(INVALID_HANDLE_VALUE, 0, 0, concurrency)
        if not self._handle:
            raise os_error(self._kernel.last_error(), "CreateIoCompletionPort", "a new port")

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"handle={self._handle:#x}"
        return f"<{type(self).__name__} {state}>"

    def __enter__(self) -> "CompletionPort":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def kernel(self) -> Kernel:
        """The kernel that this port makes its calls to; operations on its handles must use the same one."""
        return self._kernel

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closing

    def fileno(self) -> int:
        """The port's handle, for the debugger and for other Win32 calls. Raises ValueError when closed."""
        self._check_open()
        return self._handle

    def associate(self, handle: int, key: int) -> None:
        """Bind a handle to this port for life. Thread-safe.

        Args:
            handle: a socket, or a file, pipe or device handle opened with FILE_FLAG_OVERLAPPED.
            key: a number that every packet of the handle will carry, 0 to the largest pointer but one.

        Raises:
            OSError: with `winerror` 87 if the handle already belongs to a port (of this process or another), or was
                not opened with FILE_FLAG_OVERLAPPED; 6 if it is not a handle (MSDN, CreateIoCompletionPort).
            ValueError: the port is closed, or the key is out of range.
        """
        self._check_open()
        if not 0 <= key < _CLOSE_KEY:
            raise ValueError(f"a completion key is 0 to {_CLOSE_KEY - 1}, not {key}")
        if not self._kernel.CreateIoCompletionPort(handle, self._handle, key, 0):
            code = self._kernel.last_error()
            advice = ""
            if code == Error.INVALID_PARAMETER:
                advice = (
                    "it belongs to another completion port, loop or process already, or it was not opened with "
                    "FILE_FLAG_OVERLAPPED; open a new handle for this port"
                )
            raise os_error(code, "CreateIoCompletionPort", f"handle {handle}", advice)

    def wait(self, timeout: float | None = None, max_packets: int = PACKETS_MAX) -> list[Packet]:
        """Wait for packets and return as many as are there. Thread-safe; blocks without the GIL.

        Args:
            timeout: seconds to wait for the first packet, rounded up to whole milliseconds; None waits for ever.
            max_packets: return at most this many, 1 to 256.

        Returns:
            The packets; an empty list if the time was up. A failed operation has a packet too, whose `status` says so
            (MSDN, GetQueuedCompletionStatusEx).

        Raises:
            ValueError: the port is closed, or was closed by another thread during the wait.
            OSError: the wait itself failed.
        """
        if not 1 <= max_packets <= PACKETS_MAX:
            raise ValueError(f"max_packets must be 1 to {PACKETS_MAX}, not {max_packets}")
        if max_packets == PACKETS_MAX:
            raw = self.wait_raw(timeout_to_ms(timeout))
        else:
            batch = getattr(self._own, "batch", None) or self._new_batch()
            try:
                batch.limit(max_packets)
                raw = self.wait_raw(timeout_to_ms(timeout))
            finally:
                batch.limit(PACKETS_MAX)
            if len(raw) > max_packets:  # Only if they had been handed back: the kernel keeps to the limit.
                self.hand_back(raw[max_packets:])
        return [Packet._make(one) for one in raw[:max_packets]]

    def wait_raw(self, timeout_ms: int) -> Any:
        """Wait, on the hot path: each packet is a plain tuple of its fields, and one call decodes them all."""
        if self._rescued:
            return self._take_rescued()
        try:
            batch = self._own.batch
        except AttributeError:
            batch = self._new_batch()
        batch.keys[0] = _CLOSE_KEY  # Stays there until the kernel writes an entry.
        try:
            batch.waiting = True
            if self._closing:
                # Checked only while this thread counts as waiting: then `close` either wakes it, or is seen here.
                # Checked earlier, a `close` in between would leave us waiting on a handle that has a new owner.
                self._check_open()
            if timeout_ms == 0:
                arguments = batch.zero_timeout
            elif timeout_ms == INFINITE:
                arguments = batch.without_timeout
            else:
                batch.timeout.value = timeout_ms
                arguments = batch.with_timeout
            if not self._wait(*arguments):
                return self._explain_no_packets(batch)
            batch.waiting = False
            count = batch.removed_view[0]
            # Half of all waits on a quiet port bring one packet; a slice and an iterator would cost four times as much.
            packets = [_unpack_one(batch.memory)] if count == 1 else [*_unpack_all(batch.memory[: count * _ENTRY_SIZE])]
            return self._without_close_packets(packets) if self._closing else packets
        except BaseException:
            # Not `finally`: an interrupt may come in there, after the packets were read and before they are returned.
            batch.waiting = False
            self._rescue(batch)
            raise

    def _rescue(self, batch: _Batch) -> None:
        # A signal wakes a waiting main thread with a packet, and its handler may raise KeyboardInterrupt before the
        # wait returns to us. The packets that the kernel handed out must not be lost then. The first entry tells
        # whether there are any; the count does not, because on a time-out it means nothing (QUIRK(wine): it is 1).
        if _TIME_OUT_WRITES and self._kernel.last_error() == Error.WAIT_TIMEOUT:
            self._forget_time_out(batch)
        elif batch.keys[0] != _CLOSE_KEY:
            self._rescued.extend(_unpack_all(batch.memory[: batch.removed_view[0] * _ENTRY_SIZE]))

    def hand_back(self, packets: list[tuple[int, int, int, int]]) -> None:
        """Let the next wait return these packets: the caller was interrupted before it could handle them."""
        self._rescued.extend(packets)

    def _take_rescued(self) -> list[tuple[int, int, int, int]]:
        packets, self._rescued = self._rescued, []
        return packets

    def _new_batch(self) -> _Batch:
        batch = _Batch(self._handle)
        # No lock is needed, because appending, removing and copying are atomic. When a thread ends, the callback
        # removes its batch.
        self._batches.append(weakref.ref(batch, self._batches.remove))
        self._own.batch = batch
        return batch

    def _explain_no_packets(self, batch: _Batch) -> tuple[()]:
        code = self._kernel.last_error()
        batch.waiting = False
        if self._closing:
            self._check_open()
        if code == Error.WAIT_TIMEOUT:
            if _TIME_OUT_WRITES:
                self._forget_time_out(batch)
            return ()
        raise os_error(code, "GetQueuedCompletionStatusEx", f"port {self._handle}")

    def _forget_time_out(self, batch: _Batch) -> None:
        batch.keys[0] = _CLOSE_KEY
        # Cleared last, so that an interrupt between the two lines still finds the error. Cleared at all, because in the
        # next wait `_rescue` would take it for that wait's.
        self._kernel.clear_last_error()

    def _without_close_packets(self, packets: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        # `close` posts one packet per waiting thread. This batch may hold several: post the others again.
        ours = [packet for packet in packets if packet[0] != _CLOSE_KEY]
        for _ in range(len(packets) - len(ours) - 1):
            self._kernel.PostQueuedCompletionStatus(self._handle, 0, _CLOSE_KEY, 0)
        if not ours:
            self._check_open()
        return ours

    def post(self, key: int, overlapped: int = 0, byte_count: int = 0) -> None:
        """Queue a packet of the program's own; it wakes one waiting thread. Thread-safe.

        Args:
            key: the packet's key.
            overlapped: any number, passed on unchanged; nothing is written to that address.
            byte_count: 0 to 2**32 - 1, passed on unchanged.

        Raises:
            ValueError: the port is closed.
            OSError: the packet could not be queued.
        """
        self._check_open()
        if not self._kernel.PostQueuedCompletionStatus(self._handle, byte_count, key, overlapped):
            code = self._kernel.last_error()
            self._check_open()  # Another thread may have closed it since the check above.
            raise os_error(code, "PostQueuedCompletionStatus", f"port {self._handle}")

    def post_surely(self, key: int, overlapped: int, byte_count: int) -> None:
        """Queue a packet whose loss would leave somebody waiting for ever: try until it is queued.

        For threads that do nothing else. Does nothing if the port is closed: then nobody waits.
        """
        pause_s = _POST_PAUSE_FIRST_S
        while True:
            try:
                return self.post(key, overlapped, byte_count)
            except ValueError:
                return None
            except OSError:
                # The system is short of memory, which passes.
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _POST_PAUSE_MAX_S)

    def close(self) -> None:
        """Wake every waiting thread (its `wait` raises ValueError) and close the port. Thread-safe.

        A second call does nothing.

        Packets that are still queued are lost: let every operation on the port's handles complete first.
        """
        with self._lock:
            self._closing = True
        # QUIRK(wine): in Wine 8 a thread waits for ever on a port that was closed during its wait. So a packet of its
        # own wakes each waiter before the handle is closed.
        for _ in range(self._count_waiting()):
            self._kernel.PostQueuedCompletionStatus(self._handle, 0, _CLOSE_KEY, 0)
        deadline = time.monotonic() + _CLOSE_WAIT_S
        while self._count_waiting() and time.monotonic() < deadline:
            time.sleep(0.001)
        handle, self._handle = self._handle, 0
        if handle:  # Otherwise another call has closed it.
            self._kernel.CloseHandle(handle)

    def _count_waiting(self) -> int:
        # This thread does not wait, even if an interrupt in the middle of its last wait left the mark behind.
        here = threading.get_ident()
        batches = [known() for known in tuple(self._batches)]
        return sum(batch is not None and batch.waiting and batch.thread != here for batch in batches)

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError("the completion port is closed")
