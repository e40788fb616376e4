"""A completion port: the package's only blocking call.

Any number of handles are associated with one port, each once and for life, under a key that names its session. Every
operation started on such a handle delivers one packet to the port, whichever thread started it and however soon it
finished. Any number of threads may wait; a packet wakes one of them.

This room knows packets. It does not know operations, endpoints or loops.

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
# Between two attempts of `post_surely`.
_POST_PAUSE_FIRST_S, _POST_PAUSE_MAX_S = 0.001, 0.1

# QUIRK(wow64): where 32 bits run on a system of 64, a wait that timed out has written an entry all the same, out of
# memory that nobody has filled: an old packet as a rule (Wine 10).
_TIME_OUT_WRITES = ctypes.sizeof(ctypes.c_void_p) == 4

_Entries = OVERLAPPED_ENTRY * PACKETS_MAX  # Made once: a type is part of a cycle.
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
    """Seconds (None: for ever) to the milliseconds a wait takes.

    Rounds up, not to nearest: 0.4 ms must not become a wait of 0 ms, which would spin until the time has come.
    """
    if seconds is None:
        return INFINITE
    if seconds <= 0:
        return 0
    # Compared before it is rounded: infinity has no integer.
    return TIMEOUT_MAX_MS if seconds * 1000 >= TIMEOUT_MAX_MS else math.ceil(seconds * 1000)


class _Batch:
    """What one thread waits with: an array the kernel fills, and the prepared arguments that point at it.

    Attributes:
        thread: whose it is.
        waiting: the kernel may fill the array; cleared when the wait is over.
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
        """Prepare the arguments of waits that take so many packets at most."""
        start = (
            self._handle,
            argument(POINTER_TO, ctypes.addressof(self._entries)),
            argument(ULONG, packets_max),
            argument(POINTER_TO, ctypes.addressof(self._removed)),
        )
        self.zero_timeout = (*start, argument(DWORD, 0), argument(BOOL, 0))
        self.without_timeout = (*start, argument(DWORD, INFINITE), argument(BOOL, 0))
        # Any other: milliseconds in `timeout`, which is passed by its value.
        self.with_timeout = (*start, self.timeout, argument(BOOL, 0))


class CompletionPort:
    """An I/O completion port; safe to use from many threads at once.

    Args:
        concurrency: how many of the waiting threads may run at once; 0 means one per processor. The threads that
            wait may be more: one that blocks in its own work lets the next one run
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
        self._own = threading.local()  # `batch`: what this thread waits with
        self._batches: list[weakref.ref[_Batch]] = []  # of all threads that live
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
        """The kernel this port lives in; operations on its handles must use the same one."""
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
            OSError: with `winerror` 87 where the handle belongs to a port already (of this process or another), or was
                not opened with FILE_FLAG_OVERLAPPED; 6 where it is no handle (MSDN, CreateIoCompletionPort).
            ValueError: the port is closed, or the key out of range.
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
            max_packets: at most this many, 1 to 256.

        Returns:
            One `Packet` for each; an empty list when the time was up. A failed operation is a packet too: its
            `status` says so (MSDN, GetQueuedCompletionStatusEx).

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
            if len(raw) > max_packets:  # Handed back by somebody.
                self.hand_back(raw[max_packets:])
        return [Packet._make(one) for one in raw[:max_packets]]

    def wait_raw(self, timeout_ms: int) -> Any:
        """`wait` for the hot path: the fields of each packet as a plain tuple, decoded in one go."""
        if self._rescued:
            return self._take_rescued()
        try:
            batch = self._own.batch
        except AttributeError:
            batch = self._new_batch()
        batch.keys[0] = _CLOSE_KEY  # Until the kernel has written an entry.
        try:
            batch.waiting = True
            if self._closing:
                # Asked only now that this thread counts as waiting: close() either wakes it, or was seen here. Asked
                # before, a close() in between would leave us waiting on a handle that is somebody else's by now.
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
            # One: half of all waits on a quiet port; a slice and an iterator would cost four times as much.
            packets = [_unpack_one(batch.memory)] if count == 1 else [*_unpack_all(batch.memory[: count * _ENTRY_SIZE])]
            return self._without_close_packets(packets) if self._closing else packets
        except BaseException:
            # No `finally`: an interrupt may come in there, after the packets were read and before they are handed out.
            batch.waiting = False
            self._rescue(batch)
            raise

    def _rescue(self, batch: _Batch) -> None:
        # A signal wakes a waiting main thread with a packet, and its handler may raise KeyboardInterrupt before the
        # wait has returned to us: what the kernel handed out must not be lost with it. Whether it handed out anything
        # is told by the first entry, because on a time-out the count says nothing (QUIRK(wine): it says 1).
        if _TIME_OUT_WRITES and self._kernel.last_error() == Error.WAIT_TIMEOUT:
            self._forget_time_out(batch)
        elif batch.keys[0] != _CLOSE_KEY:
            self._rescued.extend(_unpack_all(batch.memory[: batch.removed_view[0] * _ENTRY_SIZE]))

    def hand_back(self, packets: list[tuple[int, int, int, int]]) -> None:
        """Let the next wait begin with these: its caller was interrupted before it could handle them."""
        self._rescued.extend(packets)

    def _take_rescued(self) -> list[tuple[int, int, int, int]]:
        packets, self._rescued = self._rescued, []
        return packets

    def _new_batch(self) -> _Batch:
        batch = _Batch(self._handle)
        # Appending, removing and copying are atomic: no lock is needed. The callback takes away an ended thread's.
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
        # Not before: an interrupt between the two finds either. And `_rescue` tells the next wait by it.
        self._kernel.clear_last_error()

    def _without_close_packets(self, packets: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        # close() posts one packet per waiting thread, and a batch may have taken more than its share: give them back.
        ours = [packet for packet in packets if packet[0] != _CLOSE_KEY]
        for _ in range(len(packets) - len(ours) - 1):
            self._kernel.PostQueuedCompletionStatus(self._handle, 0, _CLOSE_KEY, 0)
        if not ours:
            self._check_open()
        return ours

    def post(self, key: int, overlapped: int = 0, byte_count: int = 0) -> None:
        """Queue a packet by hand; it wakes one waiting thread. Thread-safe.

        Args:
            key: the packet's key.
            overlapped: any number, handed on as it is; nothing is written to it.
            byte_count: 0 to 2**32 - 1, handed on as it is.

        Raises:
            ValueError: the port is closed.
            OSError: the packet could not be queued.
        """
        self._check_open()
        if not self._kernel.PostQueuedCompletionStatus(self._handle, byte_count, key, overlapped):
            code = self._kernel.last_error()
            self._check_open()  # Another thread may have closed it since it was looked at.
            raise os_error(code, "PostQueuedCompletionStatus", f"port {self._handle}")

    def post_surely(self, key: int, overlapped: int, byte_count: int) -> None:
        """As `post`, where a packet left out would leave somebody waiting for ever: tries until it is queued.

        For threads that do nothing else. Does nothing when the port is closed: nobody waits any more.
        """
        pause_s = _POST_PAUSE_FIRST_S
        while True:
            try:
                return self.post(key, overlapped, byte_count)
            except ValueError:
                return None
            except OSError:
                # The system is short of memory; what it takes is a moment.
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _POST_PAUSE_MAX_S)

    def close(self) -> None:
        """Wake every waiting thread (its `wait` raises ValueError) and close the port. Twice is once. Thread-safe.

        Packets that are still queued are lost: let every operation on the port's handles complete first.
        """
        with self._lock:
            self._closing = True
        # QUIRK(wine): Wine 8 leaves a thread waiting for ever on a port that was closed under it, so each waiter is
        # woken by a packet of its own before the handle goes.
        for _ in range(self._count_waiting()):
            self._kernel.PostQueuedCompletionStatus(self._handle, 0, _CLOSE_KEY, 0)
        deadline = time.monotonic() + _CLOSE_WAIT_S
        while self._count_waiting() and time.monotonic() < deadline:
            time.sleep(0.001)
        handle, self._handle = self._handle, 0
        if handle:  # Otherwise it is closed: here, by another thread, or before an interrupt.
            self._kernel.CloseHandle(handle)

    def _count_waiting(self) -> int:
        # This thread does not wait, whatever an interrupt in the middle of its last wait has left behind.
        here = threading.get_ident()
        batches = [known() for known in tuple(self._batches)]
        return sum(batch is not None and batch.waiting and batch.thread != here for batch in batches)

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError("the completion port is closed")
