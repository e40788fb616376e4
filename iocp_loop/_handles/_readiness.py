r"""Readiness: telling when a socket can be read or written, through the same port as everything else.

AFD, the driver under Windows sockets, accepts an undocumented request, IOCTL_AFD_POLL: "complete this when one of
these conditions holds for that socket". We make the request on a handle of the device `\Device\Afd`, which we opened
and associated with our port; the request only names the socket. So the socket itself may belong to any port, or to
none.

A request is one-shot: it completes once, for the conditions that hold when it is made or come later. We make it again
after each answer, which gives level-triggered readiness: a condition that still holds is reported again.

One request per socket
======================
A `Registration` is one sink's interest in one socket. A `_Watch` has all registrations of a socket, and one operation:

    IDLE      `polling` is false: the kernel has no request
    POLLING   `polling` is true: the kernel has one request, for the conditions of all registrations at its submit

    state      event                                  what happens
    ---------  -------------------------------------  ------------------------------------------------------------
    IDLE       a wait begins, somebody is registered  the request is submitted: POLLING
    IDLE       a wait begins, nobody is registered    the watch is dropped, but only at the second such wait: a sink
                                                      often unregisters when it is called, and registers again in the
                                                      next turn (`leaving`)
    POLLING    a wait begins, and a registration is   the request is cancelled
               not covered by the request, or none
               is left
    POLLING    the packet comes                       IDLE; the sinks whose conditions hold are called, but none after
                                                      a cancel. If memory was missing, see `_shortages`

There are never two requests at once, because the answer to one would say nothing about the other (trio's warning).
`watch` and `unwatch` only note a change. The net effect of one turn of the loop reaches the kernel before the next
wait: unregistering and registering again costs no call, and being called and staying costs one.

The kernel owns `request` and `answer`, which are part of the operation, from the submit to the packet. One device
handle serves up to GROUP_MAX watches; a dropped watch frees its place.

Whom an answer is for
=====================
A registration is told the answers only of requests that were made after it joined: those that it is `covered` by. An
older answer may be about another socket, because Windows uses the value of a closed socket's handle again at once.

A socket that is closed while it is polled answers LOCAL_CLOSE, unless a duplicate keeps it open. The registrations that
the request covered are told so and are over; nobody waits for ever. For those that joined since, a new request is made,
for the socket that the handle names by then.

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

# Requests per device handle. Few, because cancelling one searches all requests of its handle, and a handle is cheap:
# mio and wepoll take 32, trio 500.
GROUP_MAX = 32
_DEVICE = "\\Device\\Afd\\IocpLoop"
_DEVICE_TEXT = ctypes.create_unicode_buffer(_DEVICE)  # Made once: its type is a reference cycle.
_NULL = argument(POINTER_TO, 0)

# sink(closed, reset): `closed` if the socket was closed, so that this is the last call; `reset` if the peer reset it.
Sink = Callable[[bool, bool], None]


class Interest(IntEnum):
    """What a registration waits for, as conditions of AFD.

    A reset concerns reading and writing. End of file concerns reading only: a writer that waits for room would be told
    of it again and again. AFD reports neither unless the request names it (measured).
    """

    READ = AfdPoll.RECEIVE | AfdPoll.ACCEPT | AfdPoll.DISCONNECT | AfdPoll.ABORT
    WRITE = AfdPoll.SEND | AfdPoll.CONNECT_FAIL | AfdPoll.ABORT


class Registration:
    """One sink's interest in one socket, from `watch` to `unwatch`.

    Attributes:
        active: it was not withdrawn, and the socket was not closed.
        covered: a request was submitted since it joined, so that the next answer is for it too.
    """

    __slots__ = ("active", "covered", "interest", "sink", "watch")

    def __init__(self, watch: "_Watch", interest: Interest, sink: Sink) -> None:
        self.watch = watch
        self.interest = interest
        self.sink = sink
        self.active = True
        self.covered = False


class _Device:
    """A handle of the AFD device, and the sockets that are polled through it."""

    __slots__ = ("_close", "endpoint", "handle", "watches")

    endpoint: Endpoint

    def __init__(self, kernel: Kernel) -> None:
        self._close = kernel.CloseHandle
        self.handle = _open_device(kernel)
        self.watches: set[_Watch] = set()

    def close(self) -> None:
        """Close the handle. A second call does nothing, because the value may be another handle's by then."""
        handle, self.handle = self.handle, 0
        if handle:
            self._close(handle)


class PollOperation(OverlappedEx):
    """An AFD poll of one socket; the kernel reads `request` and writes `answer`.

    Attributes:
        watch: the socket and its registrations.
    """

    answers_status: ClassVar[bool] = True
    _fields_ = [("request", AFD_POLL_INFO), ("answer", AFD_POLL_INFO)]
    __slots__ = ("watch",)

    watch: "_Watch"

    def let_go(self) -> None:
        super().let_go()
        self.watch = None  # type: ignore[assignment]  # Breaks the cycle; a released operation is not used again.


class _Watch:
    """One socket, its registrations, and the one request for all of them; see the module's header.

    Attributes:
        base: the socket under all layers, which is the one that AFD knows.
        asked: base and conditions as they stand in the request.
        leaving: the last wait began without any registration; if the next one does too, the watch is dropped.
        polling: the kernel has the request, or its answer was not read yet.
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
    """The `Readiness` of a proactor, made by the first call."""
    found = proactor.attached.get(Readiness)
    if found is None:
        found = proactor.attached[Readiness] = Readiness(proactor)
    assert isinstance(found, Readiness)
    return found


def refuse_owned(proactor: Proactor, handle: int) -> None:
    """Raise RuntimeError if a transport or server of the port owns the handle: two readers would split its data."""
    owned = proactor.owned_endpoint(handle)
    if owned is not None:
        raise RuntimeError(f"File descriptor {handle} is used by transport or server {owned!r}")


class Readiness:
    """Polls sockets through one proactor's port. Used from the thread that calls `Proactor.select`."""

    def __init__(self, proactor: Proactor) -> None:
        self._proactor = proactor
        self._watches: dict[int, _Watch] = {}
        self._changed: dict[_Watch, None] = {}  # watches to look at before the next wait, in order
        self._roomy: list[_Device] = []  # devices that can poll one more socket

    def __repr__(self) -> str:
        return f"<{type(self).__name__} watches={len(self._watches)}>"

    def close(self) -> None:
        """Drop every watch: the proactor is closed, no sink is called again, and no cycle is left to the collector."""
        for watch in tuple(self._watches.values()):
            if not watch.operation.pending:
                watch.operation.deliver = ignore
                self._drop(watch)
        self._changed.clear()
        self._roomy.clear()

    def watch(self, handle: int, interest: Interest, sink: Sink, base: int | None = None) -> Registration:
        """Call `sink` whenever the socket is ready, until `unwatch`. The sink must report its own exceptions.

        Args:
            handle: the socket's handle.
            interest: reading or writing.
            sink: called on the proactor's thread, again and again while the socket is ready.
            base: the result of `base_handle` for the handle, if it is known.

        Raises:
            OSError: the handle is not a socket; or the device could not be opened.
        """
        if base is None:
            base = base_handle(self._proactor.kernel, handle)
        watch = self._watches.get(handle)
        if watch is None:
            watch = self._watches[handle] = self._new_watch(handle)
        watch.base = base  # That of the last registration: the handle's value may have named another socket before.
        registration = Registration(watch, interest, sink)
        watch.registrations.append(registration)
        self._note_change(watch)
        return registration

    def unwatch(self, registration: Registration) -> None:
        """Withdraw a registration: its sink is not called again. A second call does nothing."""
        if registration.active:
            registration.active = False
            registration.sink = _nobody  # Breaks the cycle with the object that keeps the registration.
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
            # Skip mode is safe: the device is not a socket, so no layered provider stands between it and us.
            endpoint = Endpoint(device.handle, device, Kind.DEVICE)
            device.endpoint = self._proactor.register(endpoint, skip_port=True)
        except BaseException:
            device.close()
            raise
        return device

    def _note_change(self, watch: _Watch) -> None:
        """Look at the watch before the next wait. May be repeated, for example after an interrupt."""
        if self._apply_changes not in self._proactor.before_wait:
            self._proactor.before_wait.append(self._apply_changes)
        self._changed[watch] = None

    def _apply_changes(self) -> None:
        """Bring the net effect of the turn to the kernel; called before each wait with changes."""
        changed, self._changed = self._changed, {}
        try:
            for watch in tuple(changed):
                self._apply_change(watch)
                del changed[watch]
        except BaseException:
            # An interrupt: the rest is still to be done, by the next call.
            self._changed = changed | self._changed
            raise
        if self._changed:  # The loop above noted more; and the proactor removes the entry of this call.
            self._proactor.before_wait.append(self._apply_changes)

    def _apply_change(self, watch: _Watch) -> None:
        """Take the next step for a watch. After an interrupt it may be taken twice."""
        if watch.polling:
            if not watch.registrations or not all(each.covered for each in watch.registrations):
                # Its packet arrives at `_on_polled`, which notes the change again, whether the cancel was in time or
                # not.
                self._proactor.cancel(watch.operation)
        elif watch.registrations:
            watch.leaving = False
            self._poll(watch)
        elif watch.leaving:
            self._drop(watch)
        else:
            # A sink often unregisters when it is called, and registers again in the next turn.
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
        """Whether an interrupt left the answer unread, so that it must be delivered again."""
        assert isinstance(operation, PollOperation)
        return operation.watch.polling and not self._proactor.holds(operation)

    def _on_polled(self, operation: OverlappedEx, status: int, _byte_count: int) -> None:
        assert isinstance(operation, PollOperation)
        watch = operation.watch
        if status and self._proactor.shortages.begin_again(operation, status):
            return
        self._note_change(watch)
        watch.polling = False  # From here on the request will be made again, even if an interrupt loses this answer.
        if status == Status.CANCELLED or (status and winerror_from_status(status, is_socket=True) == WsaError.NOBUFS):
            # The registrations changed; or the system was short of memory, which says nothing about the socket. Before
            # the next wait the request is made again.
            return
        answer = operation.answer
        # A failed request named a handle that is not a socket any more, so the socket counts as closed.
        conditions = AfdPoll.LOCAL_CLOSE if is_failure(status) else answer.NumberOfHandles and answer.Handles[0].Events
        closed, reset = bool(conditions & AfdPoll.LOCAL_CLOSE), bool(conditions & AfdPoll.ABORT)
        for registration in tuple(watch.registrations):
            # Checked for each, because one sink may withdraw another's registration.
            if registration.active and registration.covered and (closed or conditions & registration.interest):
                sink = registration.sink
                if closed:
                    registration.active = False
                    registration.sink = _nobody
                    watch.registrations.remove(registration)
                sink(closed, reset)


def _nobody(_closed: bool, _reset: bool) -> None:
    """Do nothing: the sink of a registration that is over."""


def _poll_arguments(operation: PollOperation, device: int) -> tuple[Any, ...]:
    # The packet carries ApcContext, so that must be the operation's address. It is also the address of the
    # IO_STATUS_BLOCK, because an OVERLAPPED begins with one.
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
