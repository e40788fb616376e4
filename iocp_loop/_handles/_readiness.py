r"""Readiness: saying when a socket can be read or written, on the same port as everything else.

AFD, the driver under Windows sockets, answers an undocumented request, IOCTL_AFD_POLL: "complete this when one of
these conditions holds for that socket". The request goes to a handle of the device `\Device\Afd`, which is ours and
belongs to our port; the socket is only named in it. So the socket itself may belong to any port, or to none.

A request is one-shot and looks at the conditions as they are when it is made. Asking again after each answer makes
that level-triggered: what still holds is reported again.

One request per socket
======================
    IDLE      nobody asks, or the answer is being dealt with          (`polling` false)
    POLLING   one request is in the kernel, for all that anyone wants (`polling` true)

Never two at once, because an answer would then say nothing about the other (trio's warning). Reading and writing share
the request. All changes of one turn of the loop are collected, and their net effect reaches the kernel before the next
wait: a watcher that is removed and added again costs no call, a watcher that is told and stays costs one. A request is
taken back, and made anew, only when somebody has joined who is not in it.

Whom an answer is for
=====================
A registration is told of answers to requests that were made after it joined, and of no others: `covered`. The value of
a closed socket's handle is used again at once, so an older answer may be about somebody else's socket.

A socket that is closed while polled answers LOCAL_CLOSE, unless a duplicate keeps it open. Those who were covered are
told that it is over and are dropped; nobody waits for ever. Those who joined since are polled for, on what the handle
means now.

Sources: the request and its structures are as in wepoll, libuv, mio and trio; MSDN, SIO_BASE_HANDLE.
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar

from .._core._endpoint import Endpoint, Kind
from .._core._operation import IoType, OverlappedEx, ignore
from .._core._proactor import Proactor
from .._win32.constants import AFD_POLL_FOREVER, AfdPoll, Ioctl, NtFile, Status, WsaError
from .._win32.errors import is_failure, status_error, winerror_from_status
from .._win32.kernel import Kernel
from .._win32.layers import base_handle
from .._win32.prototypes import argument
from .._win32.types import AFD_POLL_INFO, HANDLE, IO_STATUS_BLOCK, OBJECT_ATTRIBUTES, POINTER_TO, ULONG, UNICODE_STRING

# Requests per device handle: cancelling one searches all of its handle's. mio and wepoll take 32, trio 500; a handle
# is cheap, so few.
GROUP_MAX = 32
_DEVICE = "\\Device\\Afd\\IocpLoop"
_DEVICE_TEXT = ctypes.create_unicode_buffer(_DEVICE)  # Made once: its type is part of a cycle.
_NULL = argument(POINTER_TO, 0)

# sink(closed, reset): whether the socket was closed, so that nothing more will come; whether the peer has reset it.
Sink = Callable[[bool, bool], None]


class Interest(IntEnum):
    """What a registration waits for, as the conditions that AFD is asked about.

    A reset concerns both sides. End of file concerns the reader only: a writer that waits for room would be told of it
    again and again. Neither is reported to those who do not ask (measured), so both are asked for.
    """

    READ = AfdPoll.RECEIVE | AfdPoll.ACCEPT | AfdPoll.DISCONNECT | AfdPoll.ABORT
    WRITE = AfdPoll.SEND | AfdPoll.CONNECT_FAIL | AfdPoll.ABORT


class Registration:
    """One sink's interest in one socket; what `watch` returns and `unwatch` takes.

    Attributes:
        active: it was not withdrawn, and the socket was not closed.
        covered: the request that is out was made for it too.
    """

    __slots__ = ("active", "covered", "interest", "sink", "watch")

    def __init__(self, watch: "_Watch", interest: Interest, sink: Sink) -> None:
        self.watch = watch
        self.interest = interest
        self.sink = sink
        self.active = True
        self.covered = False


class _Device:
    """A handle of the AFD device, and how many sockets are polled through it."""

    __slots__ = ("_close", "endpoint", "handle", "watches")

    endpoint: Endpoint

    def __init__(self, kernel: Kernel) -> None:
        self._close = kernel.CloseHandle
        self.handle = _open_device(kernel)
        self.watches: set[_Watch] = set()

    def close(self) -> None:
        """Close the handle. Twice is once: its value may be somebody else's by then."""
        handle, self.handle = self.handle, 0
        if handle:
            self._close(handle)


class PollOperation(OverlappedEx):
    """AFD poll of one socket: asked in `request`, answered in `answer`.

    Attributes:
        watch: the socket, and who is interested.
    """

    answers_status: ClassVar[bool] = True
    _fields_ = [("request", AFD_POLL_INFO), ("answer", AFD_POLL_INFO)]
    __slots__ = ("watch",)

    watch: "_Watch"

    def let_go(self) -> None:
        super().let_go()
        self.watch = None  # type: ignore[assignment]  # Breaks the cycle; nobody asks a released one.


class _Watch:
    """One socket: who is interested, and the request that asks for all of them.

    Attributes:
        base: what AFD calls the socket.
        asked: base and conditions as they stand in the request.
        leaving: nobody has been interested for a turn.
        polling: the request is in the kernel, or its answer was not looked at yet.
    """

    __slots__ = (
        "asked",
        "base",
        "device",
        "handle",
        "leaving",
        "operation",
        "polling",
        "registrations",
    )

    def __init__(self, handle: int, device: _Device, operation: PollOperation) -> None:
        self.handle = handle
        self.device = device
        self.operation = operation
        self.registrations: list[Registration] = []
        self.base = handle
        self.asked: tuple[int, int] = (0, 0)
        self.polling = False
        self.leaving = False


def of(proactor: Proactor) -> "Readiness":
    """The readiness of a proactor's port; made when first asked for."""
    found = proactor.attached.get(Readiness)
    if found is None:
        found = proactor.attached[Readiness] = Readiness(proactor)
    assert isinstance(found, Readiness)
    return found


def refuse_owned(proactor: Proactor, handle: int) -> None:
    """Raise RuntimeError if a transport or server on the port owns the handle: two would take each other's data."""
    owned = proactor.owned_endpoint(handle)
    if owned is not None:
        raise RuntimeError(f"File descriptor {handle} is used by transport or server {owned!r}")


class Readiness:
    """Polls sockets through one proactor's port. Used from the thread that calls `Proactor.select`."""

    def __init__(self, proactor: Proactor) -> None:
        self._proactor = proactor
        self._watches: dict[int, _Watch] = {}
        self._changed: dict[_Watch, None] = {}  # to be looked at before the next wait, in order
        self._roomy: list[_Device] = []  # devices that can take one more

    def __repr__(self) -> str:
        return f"<{type(self).__name__} watches={len(self._watches)}>"

    def close(self) -> None:
        """The proactor is closed: nobody is told any more, and nothing is left to the collector."""
        for watch in tuple(self._watches.values()):
            if not watch.operation.pending:
                watch.operation.deliver = ignore
                self._drop(watch)
        self._changed.clear()
        self._roomy.clear()

    def watch(self, handle: int, interest: Interest, sink: Sink, base: int | None = None) -> Registration:
        """Tell `sink` whenever the socket is ready, until `unwatch`. The sink reports its own exceptions.

        Args:
            handle: the socket's.
            interest: what it should be ready for.
            sink: called from the proactor's thread, again and again while the socket is ready.
            base: what `base_handle` says of the handle, if that is known.

        Raises:
            OSError: the handle is not a socket; or the device could not be opened.
        """
        if base is None:
            base = base_handle(self._proactor.kernel, handle)
        watch = self._watches.get(handle)
        if watch is None:
            watch = self._watches[handle] = self._new_watch(handle)
        watch.base = base  # Of the last one to join: the handle's value may have changed its meaning before.
        registration = Registration(watch, interest, sink)
        watch.registrations.append(registration)
        self._note_change(watch)
        return registration

    def unwatch(self, registration: Registration) -> None:
        """Withdraw a registration: its sink is not called any more. Twice is once."""
        if registration.active:
            registration.active = False
            registration.sink = _nobody  # Breaks the cycle with whoever keeps the registration.
            registration.watch.registrations.remove(registration)
            self._note_change(registration.watch)

    def _new_watch(self, handle: int) -> _Watch:
        if not self._roomy:
            self._roomy.append(self._open_group())
        device = self._roomy[-1]
        if len(device.watches) == GROUP_MAX - 1:
            self._roomy.pop()
        operation = self._proactor.arena.operation(PollOperation, IoType.POLL)
        operation.endpoint = device.endpoint
        operation.deliver = self._on_polled
        operation.start = self._proactor.kernel.NtDeviceIoControlFile
        operation.args = _poll_arguments(operation, device.handle)
        operation.request.Timeout = AFD_POLL_FOREVER
        operation.request.NumberOfHandles = 1
        watch = operation.watch = _Watch(handle, device, operation)
        device.watches.add(watch)
        return watch

    def _open_group(self) -> _Device:
        device = _Device(self._proactor.kernel)
        try:
            # Skipping is safe: the device is no socket, and no layer stands between it and us.
            endpoint = Endpoint(device.handle, device, Kind.DEVICE)
            device.endpoint = self._proactor.register(endpoint, skip_port=True)
        except BaseException:
            device.close()
            raise
        return device

    def _note_change(self, watch: _Watch) -> None:
        """Look at it before the next wait. Twice is once, so that whoever was interrupted may note it again."""
        if self._apply_changes not in self._proactor.before_wait:
            self._proactor.before_wait.append(self._apply_changes)
        self._changed[watch] = None

    def _apply_changes(self) -> None:
        """Before a wait: let the kernel know the net effect of the turn."""
        changed, self._changed = self._changed, {}
        try:
            for watch in tuple(changed):
                self._apply_change(watch)
                del changed[watch]
        except BaseException:
            # An interrupt: what it kept from being done is still to be done, by the same call.
            self._changed = changed | self._changed
            raise
        if self._changed:  # By what was done; this call is taken off the list when it returns.
            self._proactor.before_wait.append(self._apply_changes)

    def _apply_change(self, watch: _Watch) -> None:
        """Do what is still to be done for it; it may have been begun before an interrupt."""
        if watch.polling:
            if not watch.registrations or not all(each.covered for each in watch.registrations):
                # Its packet comes back to _on_polled, and the change is noted again. If it was on its way already,
                # so much the better.
                self._proactor.cancel(watch.operation)
        elif watch.registrations:
            watch.leaving = False
            self._poll(watch)
        elif watch.leaving:
            self._drop(watch)
        else:
            # Who has just been told often leaves, deals with it, and is back in the next turn.
            watch.leaving = True
            self._note_change(watch)

    def _poll(self, watch: _Watch) -> None:
        conditions = 0
        for registration in watch.registrations:
            conditions |= registration.interest
            registration.covered = True
        if watch.asked != (watch.base, conditions):
            watch.asked = watch.base, conditions
            entry = watch.operation.request.Handles[0]
            entry.Handle, entry.Events = watch.asked
        watch.polling = True
        # SAFETY: request and answer are part of the operation, which the kernel owns from here to its packet.
        self._proactor.submit(watch.operation)

    def _drop(self, watch: _Watch) -> None:
        if self._watches.get(watch.handle) is watch:
            del self._watches[watch.handle]
        self._proactor.release(watch.operation)
        device = watch.device
        device.watches.discard(watch)
        if device not in self._roomy:
            self._roomy.append(device)

    def awaits(self, operation: OverlappedEx) -> bool:
        """Whether an interrupt has left its answer unread, so that it must be delivered again."""
        assert isinstance(operation, PollOperation)
        return operation.watch.polling and not self._proactor.holds(operation)

    def _on_polled(self, operation: OverlappedEx, status: int, _byte_count: int) -> None:
        assert isinstance(operation, PollOperation)
        watch = operation.watch
        if status and self._proactor.shortages.begin_again(operation, status):
            return
        self._note_change(watch)
        watch.polling = False  # From here on it is asked again, whatever becomes of this answer.
        if status == Status.CANCELLED or (status and winerror_from_status(status, is_socket=True) == WsaError.NOBUFS):
            # More is asked for; or the system was short of memory, which says nothing about the socket. Asked again.
            return
        answer = operation.answer
        # A refused request names a handle that is no socket any more: as good as closed.
        conditions = AfdPoll.LOCAL_CLOSE if is_failure(status) else answer.NumberOfHandles and answer.Handles[0].Events
        closed, reset = bool(conditions & AfdPoll.LOCAL_CLOSE), bool(conditions & AfdPoll.ABORT)
        for registration in tuple(watch.registrations):
            # One sink may withdraw another.
            if registration.active and registration.covered and (closed or conditions & registration.interest):
                sink = registration.sink
                if closed:
                    registration.active = False
                    registration.sink = _nobody
                    watch.registrations.remove(registration)
                sink(closed, reset)


def _nobody(_closed: bool, _reset: bool) -> None:
    """The sink of a registration that is over."""


def _poll_arguments(operation: PollOperation, device: int) -> tuple[Any, ...]:
    # The packet brings back ApcContext, so that is the operation's address; an OVERLAPPED begins with an
    # IO_STATUS_BLOCK, so that is the same.
    address = argument(POINTER_TO, operation.address)
    size = argument(ULONG, ctypes.sizeof(AFD_POLL_INFO))
    return (
        argument(HANDLE, device),
        _NULL,
        _NULL,
        address,
        address,
        argument(ULONG, Ioctl.AFD_POLL),
        argument(POINTER_TO, operation.address + PollOperation.request.offset),
        size,
        argument(POINTER_TO, operation.address + PollOperation.answer.offset),
        size,
    )


def _open_device(kernel: Kernel) -> int:
    size = len(_DEVICE) * ctypes.sizeof(ctypes.c_wchar)
    name = UNICODE_STRING(size, size, ctypes.addressof(_DEVICE_TEXT))
    attributes = OBJECT_ATTRIBUTES(ctypes.sizeof(OBJECT_ATTRIBUTES), 0, ctypes.addressof(name))
    handle, iosb = HANDLE(), IO_STATUS_BLOCK()
    status = kernel.NtCreateFile(
        ctypes.addressof(handle),
        NtFile.SYNCHRONIZE,
        ctypes.addressof(attributes),
        ctypes.addressof(iosb),
        0,
        0,
        NtFile.SHARE_READ | NtFile.SHARE_WRITE,
        NtFile.OPEN,
        0,
        0,
        0,
    )
    if is_failure(status):
        raise status_error(status, "NtCreateFile", _DEVICE, is_socket=False)
    return handle.value


__all__ = ["GROUP_MAX", "Interest", "Readiness", "Registration", "of", "refuse_owned"]
