"""Readiness in the fake kernel: the device of AFD, and the polls that go through it."""

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any

from iocp_loop._win32.constants import AfdPoll, Ioctl, Status, WsaError
from iocp_loop._win32.types import AFD_POLL_INFO, OVERLAPPED

from .datagrams import FakeDatagramSocket
from .handles import BASE_BIT, FakeHandle, FakeSocketBase, Request, Result
from .network import FakeSocket

if TYPE_CHECKING:
    from .kernel import FakeKernel


class FakeDevice(FakeHandle):
    r"""A handle of `\\Device\\Afd`."""

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        super().__init__(kernel, handle)
        self.polls = 0


def conditions_of(sock: Any) -> int:
    """What a poll of the socket would say now."""
    if sock.closed:
        return AfdPoll.LOCAL_CLOSE
    if isinstance(sock, FakeDatagramSocket):
        return AfdPoll.SEND | (AfdPoll.RECEIVE if sock.inbound else 0)
    if sock.backlog is not None:
        return AfdPoll.ACCEPT if sock.backlog else 0
    return _conditions_of_stream(sock)


def _conditions_of_stream(sock: FakeSocket) -> int:
    if sock.connect_failed:
        return AfdPoll.CONNECT_FAIL
    if sock.peer is None:
        return 0
    if sock.was_reset:
        return AfdPoll.ABORT
    conditions = 0
    if sock.inbound:
        conditions |= AfdPoll.RECEIVE
    if sock.at_end:
        conditions |= AfdPoll.DISCONNECT
    if sock.peer.closed or len(sock.peer.inbound) < sock.peer.capacity:
        conditions |= AfdPoll.SEND
    return conditions


class Poll(Request):
    """IOCTL_AFD_POLL: over when one of the conditions holds, or the socket is closed."""

    def __init__(
        self, device: FakeDevice, overlapped: int, ranges: list[tuple[int, int]], polled: Any, wanted: int
    ) -> None:
        super().__init__(device, overlapped, ranges)
        self.polled = polled
        self.wanted = wanted | AfdPoll.LOCAL_CLOSE  # Reported whether asked for or not.
        self.own_line: deque[Request] = deque()

    @property
    def line(self) -> "deque[Request]":
        return self.own_line

    def progress(self) -> Result | None:
        found = conditions_of(self.polled) & self.wanted
        if not found:
            return None
        answer = AFD_POLL_INFO.from_address(self.ranges[1][0])
        answer.NumberOfHandles = 1
        answer.Handles[0].Events = int(found)
        return Status.SUCCESS, ctypes.sizeof(AFD_POLL_INFO)


class AfdCalls:
    """The calls of `FakeKernel` that are about readiness."""

    def WSAIoctl(self: Any, handle: int, code: int, _in: int, _in_size: int, out: int, *_rest: int) -> int:
        self.count("WSAIoctl")
        if not isinstance(self._handles.get(handle), FakeSocketBase):
            return self._fail(WsaError.NOTSOCK, -1)
        if self.layered == "mute":
            return self._fail(WsaError.OPNOTSUPP, -1)
        assert code == Ioctl.SIO_BASE_HANDLE
        ctypes.c_size_t.from_address(out).value = handle | (BASE_BIT if self.layered in ("base", "all") else 0)
        return 0

    def NtCreateFile(self: Any, handle_at: int, *_rest: int) -> int:
        self.count("NtCreateFile")
        self.interrupt()
        if self.chance("no_handle"):
            return Status.INSUFFICIENT_RESOURCES
        ctypes.c_size_t.from_address(handle_at).value = self.make(FakeDevice).handle
        return Status.SUCCESS

    def NtDeviceIoControlFile(self: Any, *args: Any) -> int:
        device, event, routine, context, block, code, given, _size, answer, answer_size = self._arguments(
            "NtDeviceIoControlFile", args
        )
        self._check_pointers("NtDeviceIoControlFile", event, routine)
        assert (context, code) == (block, Ioctl.AFD_POLL)
        asked = AFD_POLL_INFO.from_address(given).Handles[0]
        ranges = [(context, ctypes.sizeof(OVERLAPPED)), (answer, answer_size)]
        polled = self._handles.get(asked.Handle & ~BASE_BIT)
        if not isinstance(polled, FakeSocketBase):
            return Status.INVALID_HANDLE
        for request in self._open:
            if isinstance(request, Poll) and request.polled is polled:
                self.violation(f"{polled!r} is polled twice at once: an answer would say nothing about the other")
        answered = self._begin(Poll(self.thing(device, FakeDevice), context, ranges, polled, asked.Events))
        self.interrupt()
        return answered
