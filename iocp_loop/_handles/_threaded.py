"""Handles that were not opened for overlapped I/O: anonymous pipes, redirected files, consoles, NUL.

Such a handle cannot be associated with a port, and every call on it blocks. So each handle has a thread that blocks in
our stead; it starts when the handle is first used. To the layers above, the handle looks like any other: an operation
is submitted, is pending, and ends with one packet. The thread posts that packet, with the operation's address; the
WinError is in the operation's `call`.

To cancel a call, we apply CancelSynchronousIo to its thread. That does nothing while the thread is still on its way
into the call, so a second thread repeats it until the first acknowledges, and then ends. It does so only while the call
to be cancelled is the current one, and holds the lock that the first thread needs to end a call, so that no later call
can be hit.

Some calls cannot be interrupted at all. After CANCEL_TIMEOUT_S the operation is answered without them. The thread is
abandoned in its call, and the handle stays open, because closing it would block as well. The memory that the kernel may
write is the thread's own and is kept for the life of the process. `Proactor.stray` reports this. Bytes that such a
call reads later are lost. Known: QUIRK(wine) a Unix pipe as standard stream.

A synchronous handle does one thing at a time, so it is used in one direction only: reading and writing on the same
handle would block each other (MSDN, Synchronous and Asynchronous I/O).

Sources: MSDN, CancelSynchronousIo, OpenThread.
"""

import ctypes
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .._core._endpoint import Key, Kind
from .._core._kept import ABANDONED
from .._core._operation import Deliver, IoType, LifetimeError, OverlappedEx, ThreadOperation
from .._core._proactor import Proactor
from .._win32.constants import Error, Status, ThreadAccess
from .._win32.errors import status_from_winerror
from ._base import Outcome, StreamHandle, winerror_of
from ._blocking import BlockingHandle, open_blocking
from ._pipes import END_OF_PIPE

# How long we try to interrupt a call before we give it up. Less than `Proactor.close` waits, so that every operation is
# answered when a loop closes; a call that can be interrupted needs a millisecond.
CANCEL_TIMEOUT_S = 2.0
# Pauses between two attempts; the thread's acknowledgement ends a pause at once.
RETRY_FIRST_S, RETRY_MAX_S = 0.001, 0.05
# How long a closing loop lets writes go on; see `flush`.
FLUSH_TIMEOUT_S = 1.0
# The most bytes that one WriteFile writes: between two of them the thread notices a cancel.
PIECE_MAX = 64 * 1024
# The most bytes that one operation writes: with each packet the queue shrinks, and waiting writers may go on.
OPERATION_MAX = 1024 * 1024


class _Call:
    """The thread's side of one submitted operation, which has it as `call`.

    It refers to the operation's buffers but not to the operation, which belongs to the pending table.
    """

    __slots__ = ("_gate", "address", "cancelled", "code", "queued")

    def __init__(self, address: int) -> None:
        self.address = address
        self.queued = False  # it was put into the worker's queue
        self.cancelled = False
        self.code = 0
        # A plain lock, because the collector may call `cancel` on the very thread that waits.
        self._gate = threading.Lock()
        self._gate.acquire()

    def cancel(self) -> None:
        """Tell the thread that the result is not wanted. A second call does nothing."""
        self.cancelled = True
        if self._gate.locked():
            self._gate.release()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most until the call is cancelled; True if it was. On the call's own thread."""
        return self.cancelled or self._gate.acquire(timeout=seconds)

    def perform(self, handle: BlockingHandle) -> int:
        """Make the blocking call and return the WinError. May go on after the operation is gone."""
        raise NotImplementedError

    def finish(self) -> int:
        """Hand over the result and return the byte count. Called while the operation is pending."""
        raise NotImplementedError


class _ReadCall(_Call):
    __slots__ = ("_buffer", "_received")

    def __init__(self, address: int, buffer: Any) -> None:
        super().__init__(address)
        self._buffer = buffer
        self._received = b""

    def perform(self, handle: BlockingHandle) -> int:
        code, self._received = handle.read(len(self._buffer), self)
        return code

    def finish(self) -> int:
        ctypes.memmove(ctypes.addressof(self._buffer), self._received, len(self._received))
        return len(self._received)


class _WriteCall(_Call):
    __slots__ = ("_chunks", "_skip", "_written")

    def __init__(self, address: int, chunks: Sequence[bytes], skip: int) -> None:
        super().__init__(address)
        self._chunks = chunks
        self._skip = skip
        self._written = 0

    def perform(self, handle: BlockingHandle) -> int:
        chunks, start = self._chunks, self._skip
        if len(chunks) > 1 and sum(map(len, chunks)) <= PIECE_MAX:
            chunks = [b"".join(chunks)]
        for chunk in chunks:
            while start < len(chunk):
                if self._written >= OPERATION_MAX:
                    return Error.SUCCESS
                if self.cancelled:
                    return Error.OPERATION_ABORTED
                stop = min(start + PIECE_MAX, len(chunk))
                code = handle.write(chunk, start, stop, self)
                if code:
                    return code
                self._written += stop - start
                start = stop
            start = 0
        return Error.SUCCESS

    def finish(self) -> int:
        return self._written


class CallOperation(ThreadOperation):
    """A read or write by a call that blocks a thread.

    Attributes:
        call: the thread's side, from the submit to the delivery; None otherwise.
    """

    __slots__ = ("call",)

    call: _Call | None

    def prepare(self, io_type: IoType) -> None:
        super().prepare(io_type)
        self.call = None

    def let_go(self) -> None:
        super().let_go()
        self.call = None


class Worker:
    """One handle and its thread; the owner of its `ThreadedHandle`.

    `start_read`, `start_write`, `stop` and `close` are called on the loop's thread.
    """

    def __init__(self, proactor: Proactor, handle: BlockingHandle, pipe: Any, name: str) -> None:
        self._proactor = proactor
        self._kernel = proactor.kernel
        self._handle = handle
        self._pipe = pipe
        self._name = name
        # Guards the attributes below. Reentrant, because the collector may run a dropped loop's __del__, which calls
        # `stop`, on a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._calls: deque[_Call] = deque()
        self._current: _Call | None = None
        self._ended = self._abandoned = False
        self._thread_handle = 0

    def __repr__(self) -> str:
        state = "abandoned" if self._abandoned else "ended" if self._ended else "open"
        return f"<{type(self).__name__} {self._name} {state}>"

    # -- what operations call ----------------------------------------------------------------------------------

    def start_read(self, address: int) -> int:
        """The `start` of a receive."""
        operation = self._operation_at(address)
        if operation.call is None:
            operation.call = _ReadCall(address, operation.buffer)
        return self._start(operation.call)

    def start_write(self, address: int, skip: int) -> int:
        """The `start` of a send."""
        operation = self._operation_at(address)
        if operation.call is None:
            operation.call = _WriteCall(address, operation.buffer, skip)
        return self._start(operation.call)

    def _operation_at(self, address: int) -> CallOperation:
        operation = self._proactor.pending[address]
        assert isinstance(operation, CallOperation)
        return operation

    def _start(self, call: _Call) -> int:
        if not self._thread_handle and not self._ended:
            code = self._start_thread()
            if code:
                return status_from_winerror(code)
        with self._changed:
            if self._ended:
                # The thread never returns from an earlier call.
                return status_from_winerror(Error.OPERATION_ABORTED)
            if not call.queued and call not in self._calls:
                self._calls.append(call)
            call.queued = True
            self._changed.notify_all()
        return Status.PENDING

    def _start_thread(self) -> int:
        thread = threading.Thread(target=self._serve, name=f"iocp_loop: {self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # "can't start new thread": no memory, or the interpreter is shutting down.
            return Error.MAX_THRDS_REACHED
        self._thread_handle = self._kernel.OpenThread(ThreadAccess.TERMINATE, 0, thread.native_id or 0)
        if self._thread_handle:
            return Error.SUCCESS
        code = self._kernel.last_error()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        return code

    def stop(self, address: int) -> None:
        """The `stop` of an operation: end its call. It is over at once, or its packet comes in bounded time."""
        operation = self._operation_at(address)
        call = operation.call
        assert call is not None
        call.cancel()
        if sys.is_finalizing():
            # The thread will not run again, and may hold the lock.
            self._abandon(operation, call)
            return
        with self._changed:
            if self._current is call:
                if not self._start_interrupting(call):
                    self._interrupt(call)
                return
            if call not in self._calls:
                # The thread has finished it; its packet is in the port, or about to be.
                return
            self._calls.remove(call)
        # The thread has not seen the call, and never will.
        call.code = Error.OPERATION_ABORTED
        self._proactor.complete(operation, Status.SUCCESS, 0)

    def _start_interrupting(self, call: _Call) -> bool:
        """Start the interrupting thread. False if none can be had: then the caller must interrupt, in bounded time."""
        name = f"iocp_loop: interrupting {self._name}"
        try:
            threading.Thread(target=self._interrupt, args=(call,), name=name, daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _abandon(self, operation: OverlappedEx, call: _Call) -> None:
        # SAFETY: the kernel may still write into the memory of `self._handle`, so it is kept for ever with this object.
        # The kernel never knew the operation's own memory.
        ABANDONED.append(self)
        self._abandoned = self._ended = True
        call.code = Error.OPERATION_ABORTED
        self._proactor.complete(operation, Status.SUCCESS, 0)

    def close(self) -> None:
        """End the thread and close the handle. Called when nothing is outstanding."""
        if sys.is_finalizing():
            return  # Closing could block on a call of the thread's, and the process ends anyway.
        self._end_thread()
        if self._abandoned:
            message = (
                f"a blocking call on {self._name} could not be interrupted in {CANCEL_TIMEOUT_S} s: "
                "its thread, its memory and the handle are kept for the life of the process"
            )
            self._proactor.stray(LifetimeError(message))
        elif self._pipe is not None:
            try:
                self._pipe.close()
            except OSError:
                # The file object could not write the rest of its own buffer. It is closed all the same, and the result
                # of what the transport wrote was delivered.
                pass

    def _end_thread(self) -> None:
        with self._changed:
            self._ended = True
            thread_handle, self._thread_handle = self._thread_handle, 0
            self._changed.notify_all()
        if thread_handle:
            self._kernel.CloseHandle(thread_handle)

    # -- on the worker's thread --------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._ended:
                    self._changed.wait()
                if not self._calls:
                    return
                call = self._current = self._calls.popleft()
                call.queued = True
            try:
                code = call.perform(self._handle)
            except MemoryError:
                code = Error.NOT_ENOUGH_MEMORY
            with self._changed:
                if self._current is not call:
                    # Abandoned: the operation was answered long ago, and nobody wants this result.
                    return
                self._current = None
                self._changed.notify_all()
            # QUIRK(wine): an interrupted ReadConsole fails with ERROR_INVALID_HANDLE.
            call.code = Error.OPERATION_ABORTED if code and call.cancelled else code
            # SAFETY: until this packet is dequeued the operation is pending, and `finish` may fill its buffer.
            self._proactor.port.post_surely(Key.POSTED, call.address, call.finish())

    # -- on a thread that interrupts ---------------------------------------------------------------------------

    def _interrupt(self, call: _Call) -> None:
        deadline, pause_s = time.monotonic() + CANCEL_TIMEOUT_S, RETRY_FIRST_S
        with self._changed:
            while self._current is call and time.monotonic() < deadline:
                # FALSE with NOT_FOUND: the thread is on its way into its call, or out of it, or in one that cannot be
                # interrupted. In any case we try again until it has acknowledged.
                self._kernel.CancelSynchronousIo(self._thread_handle)
                self._changed.wait(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            if self._current is not call:
                return
            # SAFETY: the kernel may still write into the memory of `self._handle`, so it is kept for ever with this
            # object. The kernel never knew the operation's own memory.
            ABANDONED.append(self)
            self._abandoned = self._ended = True
            self._current = None
        call.code = Error.OPERATION_ABORTED
        self._proactor.port.post_surely(Key.POSTED, call.address, 0)


class ThreadedHandle(StreamHandle):
    """A handle that cannot be associated with a port. For reading or for writing, not for both.

    Attributes:
        worker: has the thread that blocks in its calls, and closes the handle: it is the endpoint's `owner`.
    """

    __slots__ = ("worker",)

    sends_at_once = half_closes = tells_without_memory = False

    def __init__(self, proactor: Proactor, blocking: BlockingHandle, handle: int, owner: Any = None) -> None:
        super().__init__(handle, None, blocking.kind)
        self.owner = self.worker = Worker(proactor, blocking, owner, self.subject)

    def receive_buffer(self, size: int) -> Any:
        """An array, because Python fills it."""
        return self.proactor.arena.buffer(size)

    def receive_operation(self, deliver: Deliver, buffer: Any) -> CallOperation:
        operation = self._operation(IoType.READ, deliver, self.worker.start_read)
        operation.args = (operation.address,)
        self.set_receive_buffer(operation, buffer)
        return operation

    def set_receive_buffer(self, operation: CallOperation, buffer: Any) -> None:
        operation.buffer = buffer

    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """The end is an error if the writer's end is gone, and no bytes at the end of a file."""
        code = winerror_of(operation, status)
        if code:
            return Outcome.END if code in END_OF_PIPE else Outcome.FAILED
        return Outcome.DATA if byte_count else Outcome.END

    def send_operation(self, deliver: Deliver) -> CallOperation:
        """A write that may end before all bytes are written: the next one must go on from there."""
        return self._operation(IoType.WRITE, deliver, self.worker.start_write)

    def set_send_vector(
        self, operation: CallOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = OPERATION_MAX
    ) -> None:
        """One submit writes at most OPERATION_MAX bytes, whatever `limit` is."""
        operation.buffer = chunks
        operation.args = (operation.address, skip)

    def _operation(self, io_type: IoType, deliver: Deliver, start: Callable[..., int]) -> CallOperation:
        operation = self.proactor.arena.operation(CallOperation, io_type)
        operation.endpoint = self
        operation.deliver = _with_status_of_call(deliver)
        operation.start = start
        operation.stop = partial(self.worker.stop, operation.address)
        return operation


def open_threaded(proactor: Proactor, handle: int, owner: Any = None, kind: Kind | None = None) -> ThreadedHandle:
    """Serve a handle that cannot be associated with a port.

    Args:
        proactor: delivers its packets.
        handle: the handle.
        owner: an object whose `close()` closes the handle when the endpoint is closed; None if somebody else does.
        kind: as for `open_blocking`.

    Raises:
        OSError: it is not a handle.
    """
    threaded = ThreadedHandle(proactor, open_blocking(proactor.kernel, handle, kind), handle, owner)
    proactor.add_endpoint(threaded)
    return threaded


def flush(proactor: Proactor) -> None:
    """Wait until pending writes are done, for at most FLUSH_TIMEOUT_S. For a loop that is about to close.

    A program that writes its last words to standard output and ends has no way to wait for them, because `drain` only
    waits for room. On handles that need no thread, small writes are done before the program could ask.
    """
    deadline = time.monotonic() + FLUSH_TIMEOUT_S
    while True:
        settled = proactor.settled
        for _ in range(len(settled)):
            operation, status, byte_count = settled.popleft()
            # The closing proactor would drop all other results, so nobody is called for them.
            if _is_write(operation):
                operation.context.run(operation.deliver, operation, status, byte_count)
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not (settled or any(map(_is_write, proactor.pending.values()))):
            return
        proactor.select(remaining)


def _is_write(operation: OverlappedEx) -> bool:
    return operation.io_type is IoType.WRITE and isinstance(operation.endpoint, ThreadedHandle)


def _with_status_of_call(deliver: Deliver) -> Deliver:
    """Wrap `deliver`: a posted packet has no status of its own, so take it from the operation's `call`."""

    def deliver_call(operation: OverlappedEx, status: int, byte_count: int) -> None:
        assert isinstance(operation, CallOperation)
        call, operation.call = operation.call, None  # The next submit makes its own.
        code = 0 if call is None else call.code
        deliver(operation, status_from_winerror(code) if code else status, byte_count)

    return deliver_call
