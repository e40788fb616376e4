"""The proactor: every overlapped operation is submitted, cancelled and taken back here, and nowhere else.

It owns two tables. `pending` maps the address of an OVERLAPPED to its operation, for every operation that the kernel
owns; this is the one strong reference that keeps the memory alive. `endpoints` maps a completion key to its endpoint,
one per handle associated with the port. A packet's address names the operation it ends, its key the handle that the
operation ran on; `check_keys` compares the two.

Three things are kept apart: waiting (the port), settling (`poll` finds the operation and takes its memory back, and
runs no user code), and delivering (the caller that empties `settled`). Every outcome travels the same way: a packet, an
inline success that posts no packet, and a call that fails at once each become an entry of `settled`.

No asyncio in here.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .._win32.constants import INFINITE, Error, NotificationMode, Status, WsaError
from .._win32.errors import os_error, status_from_winerror
from .._win32.kernel import Kernel
from ._arena import Arena, default_arena
from ._cancels import Cancels
from ._endpoint import Closable, Endpoint, Key
from ._fine_timer import FineTimer
from ._interrupted import InterruptedSubmits
from ._kept import keep_for_ever, orphan_addresses
from ._keys import sorted_out
from ._operation import IDLE, PENDING, SETTLED, UNSUBMITTED, LifetimeError, OverlappedEx, tell_of
from ._port import CompletionPort, timeout_to_ms
from ._shortages import Shortages

# How long `close` waits for the kernel to give back what was cancelled. A healthy driver needs microseconds.
CLOSE_TIMEOUT_S = 5.0
# How many calls of `select` in a row may return inline completions alone before one looks at the port again.
INLINE_TURNS_MAX = 8

_IO_PENDING, _WAKE = int(Error.IO_PENDING), int(Key.WAKE)  # Plain ints compare three times as fast as an IntEnum's.
# With these codes a call may fail at once and still queue its packet; see `OverlappedEx.warned`. In skip mode Wine
# queues none, so an endpoint that may see warnings never skips.
_WARNINGS = frozenset({Error.MORE_DATA, WsaError.MSGSIZE})

EndpointT = TypeVar("EndpointT", bound=Endpoint)
Settled = tuple[OverlappedEx, int, int]
_SKIP_MODES = NotificationMode.SKIP_COMPLETION_PORT_ON_SUCCESS | NotificationMode.SKIP_SET_EVENT_ON_HANDLE


class Proactor:
    """Operations and endpoints of one completion port.

    Threads: several threads may call `register`, `submit` and `settle` at once, because each step that touches shared
    state is one atomic operation on a dict, a list or a deque. The caller must serialize what concerns the *same*
    endpoint (settling its packets, submitting, cancelling, closing), with a lock per session for example, and may call
    `close` only when no thread waits any more. One that an event loop owns is used from the loop's thread only.

    Args:
        port: the port; a new one if None. It is closed with the proactor.
        arena: where operations live: the heap, or stomp pages if the environment sets `IOCP_LOOP_STOMP=1`.
        concurrency: as for `CompletionPort`, for a new port.
        kernel: as for `CompletionPort`, for a new port.
    """

    def __init__(
        self,
        port: CompletionPort | None = None,
        *,
        arena: Arena | None = None,
        concurrency: int = 0,
        kernel: Kernel | None = None,
    ) -> None:
        self.port = CompletionPort(concurrency, kernel=kernel) if port is None else port
        self.kernel = self.port.kernel
        self.arena = default_arena() if arena is None else arena
        self.pending: dict[int, OverlappedEx] = {}
        self.endpoints: dict[int, Endpoint] = {}
        self._by_handle: dict[int, Endpoint] = {}
        self.settled: deque[Settled] = deque()
        self.interrupted = InterruptedSubmits(self)
        self.cancels = Cancels(self)
        self.shortages = Shortages(self)
        self.timer = FineTimer(self.port)
        # Called for a packet that names no operation of ours, and for a thread that was abandoned. While it is empty,
        # `tell_of` is called. Raising would leave the rest of the packet's batch unsettled.
        self.on_stray: list[Callable[[LifetimeError], object]] = []
        # Each is called once, before the next wait. `_readiness` submits the polls that changed since the last one.
        self.before_wait: list[Callable[[], None]] = []
        # Objects that other modules keep for this proactor, under keys of their own; `close` closes them.
        self.attached: dict[Any, Closable] = {}
        self._wait = self.port.wait_raw
        self._last_error = self.kernel.last_error
        self.wake_posted = False  # a packet of `wake` is on its way: whatever is queued before it comes is seen
        self._inline_turns = 0

    def __repr__(self) -> str:
        return f"<Proactor endpoints={len(self.endpoints)} pending={len(self.pending)} port={self.port!r}>"

    # -- endpoints ---------------------------------------------------------------------------------------------

    def register(self, endpoint: EndpointT, *, skip_port: bool = False) -> EndpointT:
        """Associate a handle with the port, once and for life. Returns the endpoint.

        Args:
            endpoint: a new record of the handle.
            skip_port: inline successes post no packet. For a socket, only if `Kernel.skips_port_safely` allows it.

        Raises:
            OSError: the handle cannot be associated (see `CompletionPort.associate`).

        Thread-safe. Source: MSDN, SetFileCompletionNotificationModes.
        """
        handle = endpoint.handle
        self.port.associate(handle, endpoint.key)
        # Some providers refuse skip mode (libuv has met ERROR_INVALID_FUNCTION): then every completion has a packet.
        endpoint.skips_port = skip_port and bool(self.kernel.SetFileCompletionNotificationModes(handle, _SKIP_MODES))
        self.add_endpoint(endpoint)
        return endpoint

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Enter an endpoint in the tables. Its handle may belong to another port, or it may have none."""
        endpoint.proactor = self
        self.endpoints[endpoint.key] = endpoint
        if endpoint.handle:
            self._by_handle[endpoint.handle] = endpoint

    def owned_endpoint(self, handle: int) -> Endpoint | None:
        """The live endpoint of a handle that a transport or listener owns; None if no transport or listener does."""
        endpoint = self._by_handle.get(handle)
        return None if endpoint is None or endpoint.owner is None or endpoint.closing else endpoint

    def close_endpoint(self, endpoint: Endpoint, on_closed: Callable[[], None] | None = None) -> None:
        """Close in order: mark closing, cancel, wait for zero operations, close the handle, call `on_closed`.

        Returns at once. The second call for an endpoint does nothing.

        Args:
            endpoint: its owner's `close()` closes the handle. If it has none, the handle stays open.
            on_closed: called when the handle is closed, here or from a later `poll`. It must run no user code.
        """
        if endpoint.closing:
            return
        try:
            endpoint.on_closed = on_closed
            endpoint.closing = True
            if endpoint.operations:
                self.end_operations(endpoint)
            else:
                self._finish_close(endpoint)
        except BaseException:
            # An interrupt in the middle: cancel once more. A second cancel does no harm; a missing one would hang.
            if endpoint.closing:
                self.end_operations(endpoint)
                self._finish_close_if_last(endpoint)
            raise

    def end_operations(self, endpoint: Endpoint) -> None:
        """Cancel all operations; if the kernel refuses, close the handle early, which ends them."""
        if self.cancels.cancel_all(endpoint) or endpoint.owner is None:
            return
        # SAFETY: their memory stays in the pending table until their packets come, and they are never submitted again.
        # The system may give the handle's value to the next open(), so no call may name it any more.
        self._drop_handle(endpoint)
        endpoint.handle = 0
        self._close_owner(endpoint)

    def cancel_all(self, endpoint: Endpoint) -> None:
        """Ask the kernel to end every operation outstanding on an endpoint. Each one's packet brings the answer."""
        self.cancels.cancel_all(endpoint)

    def forget(self, endpoint: Endpoint) -> None:
        """Drop the record of a handle with nothing outstanding that its owner has closed, or is about to close."""
        endpoint.closing = True
        self._remove_endpoint(endpoint)

    def succeed(self, endpoint: Endpoint, successor: Endpoint) -> None:
        """Move a handle and its operations to another record. To the users of the old one, the old one is closed.

        The successor must have no user yet. It gets the same key and mode, without a kernel call. If this raises,
        nothing has changed.
        """
        successor.key, successor.skips_port = endpoint.key, endpoint.skips_port
        successor.operations = operations = endpoint.operations
        try:
            for operation in operations:
                operation.endpoint = successor
            self.add_endpoint(successor)
            # One statement without a call, which no interrupt can split: from here on the old record has nothing.
            endpoint.operations, endpoint.owner, endpoint.closing = [], None, True
        except BaseException:
            if not endpoint.closing:
                successor.proactor = None
                for operation in operations:
                    operation.endpoint = endpoint
                self.add_endpoint(endpoint)
            raise

    def _finish_close(self, endpoint: Endpoint) -> None:
        try:
            if self._remove_endpoint(endpoint):  # Otherwise another thread saw the count reach zero first.
                self._close_handle(endpoint)
        except BaseException:
            if endpoint.key not in self.endpoints:
                self._close_handle(endpoint)  # An interrupt: half was done, and this is the last call for the endpoint.
            raise

    def _close_handle(self, endpoint: Endpoint) -> None:
        # SAFETY: no operation is outstanding, so the handle's value may be used again by the next open().
        self._close_owner(endpoint)
        if endpoint.on_closed is not None:
            endpoint.on_closed = endpoint.on_closed()  # It returns None, so it is called once.

    def _close_owner(self, endpoint: Endpoint) -> None:
        if endpoint.owner is not None:
            try:
                endpoint.owner.close()
            except OSError:
                pass  # Closed behind our back. This may be the middle of settling: one handle must not end the loop.
            endpoint.owner = None

    def _drop_handle(self, endpoint: Endpoint) -> None:
        if self._by_handle.get(endpoint.handle) is endpoint:  # A newer endpoint may have the same value by now.
            self._by_handle.pop(endpoint.handle, None)

    def _remove_endpoint(self, endpoint: Endpoint) -> bool:
        self._drop_handle(endpoint)
        return self.endpoints.pop(endpoint.key, None) is not None

    # -- operations --------------------------------------------------------------------------------------------

    def submit(self, operation: OverlappedEx) -> bool:
        """Hand an operation to the kernel: `operation.start(*operation.args)`, on `operation.endpoint`.

        Never raises for an error of the kernel's: an immediate failure is settled like a failed packet, so that the
        operation's `deliver` sees every outcome.

        Returns:
            True if the call succeeded at once: there was something to read, or room to write. Its result is delivered
            like any other.

        Raises:
            LifetimeError: the kernel already owns the operation, or it was released.
            OSError: its endpoint is closing.
            KeyboardInterrupt: or whatever else a signal handler raises in the middle. Then `holds` says whether the
                operation was submitted all the same, so that its result will come.
        """
        endpoint = operation.endpoint
        if operation.state is not SETTLED and operation.state is not IDLE:
            raise LifetimeError(f"{operation!r} was submitted while {operation.state.value}")
        if endpoint.closing:
            raise os_error(Error.OPERATION_ABORTED, operation.io_type.name, endpoint.subject, "it is closing")
        operation.Internal = UNSUBMITTED
        try:
            # SAFETY: until it is settled, the kernel may write into the operation and what it points to; this
            # reference, and no other, keeps it alive. Both tables are written before the call, because another thread
            # that waits on the port may dequeue the packet before the call has returned.
            operation.state = PENDING
            self.pending[operation.address] = operation
            endpoint.operations.append(operation)
            answer = operation.start(*operation.args)
            if (answer == 0) is operation.zero_is_success:
                if endpoint.skips_port:
                    # SAFETY: finished, and no packet will come: it is ours again.
                    self._take_back(operation, 0, operation.InternalHigh)
                # Otherwise a packet comes although the call is over, and the kernel owns the memory until then.
                return True
            if operation.answers_status:
                if answer != Status.PENDING:
                    # SAFETY: refused, no packet will come: it is ours again.
                    self._take_back(operation, answer, 0)
                return False
            code = self._last_error()
            if code != _IO_PENDING and (endpoint.skips_port or code not in _WARNINGS or not operation.warned):
                # SAFETY: never queued, no packet will come: it is ours again.
                self._take_back(operation, status_from_winerror(code), 0)
            return False
        except BaseException as exc:
            self.interrupted.note(operation, exc)
            if not isinstance(exc, MemoryError):
                raise
            return False

    def holds(self, operation: OverlappedEx) -> bool:
        """Whether the operation's result is still to come: it is pending, or settled but not delivered yet."""
        return operation.pending or self._is_settled(operation)

    def _is_settled(self, operation: OverlappedEx) -> bool:
        return any(entry[0] is operation for entry in self.settled)

    def complete(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Settle a pending operation that the kernel never saw: our own code has performed it, or given it up."""
        # SAFETY: it was ours all the time; it stood in the table only because it was not over.
        self._take_back(operation, status, byte_count)

    def settle_inline(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        """Queue the result of an operation that needed no kernel call for delivery. It must not be pending."""
        operation.state = SETTLED
        self.settled.append((operation, status, byte_count))

    def cancel(self, operation: OverlappedEx) -> None:
        """Ask the kernel to end an operation. This gives nothing back: its packet comes, with success or without.

        Args:
            operation: nothing is done if it is not pending or was cancelled before. If a provider refuses to cancel it,
                it stays until it ends by itself: see `_cancels`.

        Source: MSDN, CancelIoEx.
        """
        self.cancels.cancel(operation)

    def _take_back(self, operation: OverlappedEx, status: int, byte_count: int) -> None:
        endpoint = operation.endpoint
        try:
            del self.pending[operation.address]
            operation.state = SETTLED
            endpoint.operations.remove(operation)
            self.settled.append((operation, status, byte_count))
        except BaseException:
            # An interrupt between two of these steps: none may be left out.
            self.interrupted.take_back(operation, status, byte_count)
            self._finish_close_if_last(endpoint)
            raise
        if endpoint.closing and not endpoint.operations:
            self._finish_close(endpoint)

    def _finish_close_if_last(self, endpoint: Endpoint) -> None:
        if endpoint.closing and not endpoint.operations:
            self._finish_close(endpoint)

    # -- packets -----------------------------------------------------------------------------------------------

    def select(self, timeout: float | None) -> deque[Settled]:
        """Wait until an operation is settled, `wake` is called, or the time is up. For a single thread.

        Args:
            timeout: seconds, rounded up to milliseconds; None waits for ever.

        Returns:
            `settled`: the caller removes entries from its left and delivers them. The next call returns what is left.
        """
        if self.before_wait:
            self._prepare_wait()
            timeout = self.shortages.limit(self.cancels.limit(timeout))
        settled = self.settled
        if settled:
            # Inline results need no kernel call. But not for ever: a fast peer must not hide the others.
            self._inline_turns += 1
            if self._inline_turns < INLINE_TURNS_MAX:
                return settled
            timeout = 0
        self._inline_turns = 0
        self.poll(INFINITE if timeout is None else self.timer.wait_ms(timeout) if timeout > 0 else 0)
        return settled

    def _prepare_wait(self) -> None:
        called: list[Callable[[], None]] = []
        # A callback may append another: an operation that it submits may need a poll, for example.
        while callbacks := [callback for callback in self.before_wait if callback not in called]:
            called += callbacks
            for callback in callbacks:
                callback()  # It may append itself again, for the next wait.
                self.before_wait.remove(callback)  # After the call: if an interrupt ends that, it is called again.

    def poll(self, timeout_ms: int) -> Any:
        """Wait for one batch of packets, settle their operations and return the packets. Runs no user code."""
        packets: Any = ()
        try:
            packets = self._wait(timeout_ms)
            self.settle(packets, self.settled.append)
        except BaseException:
            # A KeyboardInterrupt between two packets: the next wait returns the unsettled ones and all wake-ups again.
            self.port.hand_back([packet for packet in packets if not packet[1] or packet[1] in self.pending])
            raise
        return packets

    def settle(self, packets: Iterable[tuple[int, int, int, int]], take: Callable[[Settled], None]) -> None:
        """Take back the operations that packets name, and pass each with its result to `take`.

        For programs whose threads wait on the port themselves and never call `select`. They must register endpoints
        without `skip_port`, so that every completion arrives through the port. An operation that fails at once is in
        `settled` when `submit` returns. A cancel that lacked memory is not tried again.
        """
        pop = self.pending.pop
        operation: OverlappedEx | None
        endpoint: Endpoint | None
        operation = endpoint = None
        try:
            for key, address, status, byte_count in packets:
                operation = pop(address, None)
                if operation is None:
                    self._unclaimed(key, address)
                    continue
                # SAFETY: its packet was dequeued; the memory is ours again.
                operation.state = SETTLED
                endpoint = operation.endpoint
                endpoint.operations.remove(operation)
                # `take` returns None. One line, so that an interrupt finds the operation either here or handed over.
                operation = take((operation, status, byte_count))  # type: ignore[func-returns-value]
                if endpoint.closing and not endpoint.operations:
                    self._finish_close(endpoint)
        except BaseException:
            if operation is not None and not self._is_settled(operation):
                self.interrupted.keep(operation)
            elif endpoint is not None:
                self._finish_close_if_last(endpoint)
            raise

    def check_keys(self, check: bool = True) -> None:
        """Switch on (or off) the check that a packet's key is that of its operation's handle; see `_keys`."""
        self.__dict__.pop("settle", None)
        if check:
            self.settle = self._settle_checked  # type: ignore[method-assign]  # The hot path has no branch for it.

    def _settle_checked(self, packets: Iterable[tuple[int, int, int, int]], take: Callable[[Settled], None]) -> None:
        kept, errors = sorted_out(self, packets)
        Proactor.settle(self, kept, take)
        for error in errors:  # After the others are settled, because `on_stray` may do anything.
            self.stray(error)

    def stray(self, error: LifetimeError) -> None:
        """Report a bug that no caller can be told of: to everybody in `on_stray`."""
        for tell in [*self.on_stray] or [tell_of]:
            tell(error)

    def _unclaimed(self, key: int, address: int) -> None:
        if key == _WAKE:
            # Cleared before the woken thread looks at its queue, so that a thread that adds to it later posts again.
            self.wake_posted = False
        elif key == Key.TIMER:
            self.timer.fired()
        elif key == Key.POSTED:
            # Its operation was rightly taken back before the packet arrived.
            pass
        elif address in orphan_addresses():
            # The packet of an operation that an earlier `close` had to give up on. Its memory is kept: no harm.
            pass
        elif address:
            self.stray(LifetimeError(f"a packet for key {key} names address {address:#x}, which nobody submitted"))
        # Otherwise a program posted the packet, with a key of its own: it has done its work by waking us.

    def wake(self) -> None:
        """Make the waiting `select`, or the next one, return. Thread-safe; many calls cost one packet."""
        if not self.wake_posted:
            try:
                self.wake_posted = True
                self.port.post(_WAKE)
            except BaseException:
                # The packet may or may not have been posted: the next call tries again. One too many does no harm.
                self.wake_posted = False
                raise

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> list[OverlappedEx]:
        """Cancel everything, wait for the packets, close the endpoints, then the port. Idempotent.

        Args:
            timeout: seconds to wait for the kernel to give operations back.

        Returns:
            The operations it did not give back in time. They, their buffers and their handles are kept for the life
            of the process: freeing them would let the kernel write into memory that has another use by then.
        """
        if self.port.closed:
            return []
        for endpoint in list(self.endpoints.values()):
            self.close_endpoint(endpoint)
            if endpoint.operations:
                self.cancel_all(endpoint)  # Again: an interrupt may have cut short an earlier `close_endpoint`.
        deadline = time.monotonic() + timeout
        while self.pending:
            self.interrupted.settle()
            self.cancels.ask_unasked()
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.pending:
                break
            self.poll(timeout_to_ms(self.cancels.limit(remaining)))
        stuck = list(self.pending.values())
        for operation in stuck:
            # SAFETY: the kernel still owns it; it is never freed, nor is its endpoint.
            keep_for_ever(operation)
        self.pending.clear()
        self.endpoints.clear()
        self._by_handle.clear()
        self.settled.clear()
        self.port.close()
        self.before_wait.clear()
        self.check_keys(False)  # The bound method it removes is a reference cycle.
        while self.attached:
            self.attached.popitem()[1].close()
        for part in (self.cancels, self.shortages, self.interrupted, self.timer):
            part.close()
        self.on_stray.clear()  # One of them may belong to this proactor's owner.
        return stuck

    def release(self, operation: OverlappedEx) -> None:
        """Give an operation's memory back to the arena. Raises LifetimeError if the kernel owns it."""
        self.arena.release(operation)
