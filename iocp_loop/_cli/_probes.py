"""Probes for the features of this system: each tries one feature, on handles of its own.

The loop does not use them; it finds out for itself what it needs, when it needs it. A probe returns a `Finding` and
raises nothing.
"""

import ctypes
import functools
import socket
import statistics
import struct
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from .._core._arena import HeapArena
from .._core._operation import OverlappedEx, ignore
from .._core._proactor import Proactor
from .._handles import _readiness, _waits
from .._handles._opening import open_socket
from .._win32.constants import EXTENSION_GUIDS, InitialRto, Ioctl, TimerFlag
from .._win32.errors import os_error
from .._win32.prototypes import bind
from .._win32.types import DWORD

_PATIENCE_S = 2.0  # A healthy system answers in microseconds.
_WAITS_MEASURED = 20
_TIMER_S = 0.0005


class Finding(NamedTuple):
    """The result of a probe: whether the feature works, and a line with details."""

    works: bool
    detail: str


def _probe(function: Callable[..., Finding]) -> Callable[..., Finding]:
    """Turn a missing export (AttributeError) or a failed call (OSError) into a finding."""

    @functools.wraps(function)
    def probe(*arguments: object) -> Finding:
        try:
            return function(*arguments)
        except AttributeError as exc:
            return Finding(False, f"no such function: {exc}")
        except OSError as exc:
            return Finding(False, str(exc))

    return probe


@contextmanager
def connected(family: int) -> "Generator[tuple[socket.socket, socket.socket]]":
    """Two ends of a TCP connection over the loopback."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen(1)
        with socket.create_connection(listener.getsockname()[:2], timeout=_PATIENCE_S) as here:
            there, _ = listener.accept()
            with there:
                here.setblocking(False)
                there.setblocking(False)
                yield here, there


def first_result(proactor: Proactor, patience_s: float = _PATIENCE_S) -> tuple[OverlappedEx, int, int] | None:
    """The first settled operation with its result; None if there is none within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        settled = proactor.select(max(deadline - time.monotonic(), 0))
        if settled:
            return settled.popleft()
        if time.monotonic() >= deadline:
            return None


@_probe
def probe_port() -> Finding:
    """A packet that is posted to a port can be dequeued from it."""
    proactor = Proactor(arena=HeapArena())
    try:
        proactor.port.post(7, 8, 9)
        packet = proactor.port.wait(_PATIENCE_S)
        return Finding([tuple(one) for one in packet] == [(7, 8, 0, 9)], "a posted packet came back")
    finally:
        proactor.close()


@_probe
def probe_inline_receive(family: int) -> Finding:
    """A receive for which data have arrived posts no packet, and one that must wait posts exactly one."""
    proactor = Proactor(arena=HeapArena())
    try:
        with connected(family) as (here, there):
            handle = open_socket(proactor, here)
            if not handle.skips_port:
                return Finding(False, "a layered provider hands out sockets that are no file handles (XP1_IFS_HANDLES)")
            receive = handle.receive_operation(ignore, proactor.arena.buffer(16))
            proactor.submit(receive)
            there.send(b"late")
            late = first_result(proactor)
            there.send(b"early")
            time.sleep(0.01)  # Until it has arrived over the loopback.
            proactor.submit(receive)
            inline = not receive.pending
            early = first_result(proactor)
            proactor.close_endpoint(handle)
            return Finding(
                inline and late is not None and late[2] == 4 and early is not None and early[2] == 5,
                "a receive that found its data posted no packet" if inline else "a receive with data there was queued",
            )
    finally:
        proactor.close()


@_probe
def probe_extensions() -> Finding:
    """The provider hands out the extension functions."""
    proactor = Proactor(arena=HeapArena())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            for name in EXTENSION_GUIDS:
                proactor.kernel.extension(sock, name)
        return Finding(True, ", ".join(EXTENSION_GUIDS))
    finally:
        proactor.close()


@_probe
def probe_poll() -> Finding:
    """An AFD poll of a socket that belongs to no port answers when data arrive."""
    told: list[bool] = []
    proactor = Proactor(arena=HeapArena())
    try:
        with connected(socket.AF_INET) as (here, there):
            readiness = _readiness.of(proactor)
            registration = readiness.watch(
                here.fileno(), _readiness.Interest.READ, lambda closed, _reset: told.append(closed)
            )
            proactor.select(0)  # The poll is submitted before the wait.
            early = bool(told)
            there.send(b"x")
            settled = first_result(proactor)
            if settled is not None:
                operation, status, byte_count = settled
                operation.deliver(operation, status, byte_count)
            readiness.unwatch(registration)
    finally:
        proactor.close()
    works = told == [False] and not early
    return Finding(works, "a poll for data answered when they came" if works else f"a poll for data answered {told}")


@_probe
def probe_wait_packet() -> Finding:
    """The kernel can queue a packet to a port when a handle is signalled."""
    handle = ctypes.c_size_t()
    status = bind("NtCreateWaitCompletionPacket")(ctypes.addressof(handle), 1, 0)
    if status:
        return Finding(False, f"NtCreateWaitCompletionPacket answered {status:#010x}")
    bind("CloseHandle")(handle.value)
    return Finding(True, "NtCreateWaitCompletionPacket made one")


@_probe
def probe_handle_wait() -> Finding:
    """A thread of ours tells the port that a handle is signalled."""
    proactor = Proactor(arena=HeapArena())
    event = bind("CreateEventW")(0, 1, 0, None)
    try:
        proactor.submit(_waits.wait_operation(proactor, event, ignore, 1.0))
        bind("SetEvent")(event)
        settled = first_result(proactor)
        works = settled is not None and settled[2] == _waits.SIGNALLED
        return Finding(works, "a signalled event came as a packet" if works else f"a signalled event came as {settled}")
    finally:
        bind("CloseHandle")(event)
        proactor.close()


@_probe
def probe_high_resolution_timer() -> Finding:
    """A waitable timer for half a millisecond takes less than a millisecond."""
    timer = bind("CreateWaitableTimerExW")(0, None, TimerFlag.HIGH_RESOLUTION, TimerFlag.ALL_ACCESS)
    if not timer:
        raise os_error(ctypes.get_last_error(), "CreateWaitableTimerExW")  # type: ignore[attr-defined, unused-ignore]
    try:
        due = ctypes.c_int64(-round(_TIMER_S * 1e7))  # Relative, in units of 100 ns.
        wait, arm = bind("WaitForSingleObject"), bind("SetWaitableTimer")

        def once() -> None:
            arm(timer, ctypes.addressof(due), 0, 0, 0, 0)
            wait(timer, 1000)

        taken = _median_duration(once)
    finally:
        bind("CloseHandle")(timer)
    return Finding(taken < 2 * _TIMER_S, f"a timer of {_TIMER_S * 1000:.1f} ms took {taken * 1000:.2f} ms")


@_probe
def probe_wait_accuracy() -> Finding:
    """A port's wait of one millisecond takes less than three."""
    proactor = Proactor(arena=HeapArena())
    try:
        taken = _median_duration(lambda: proactor.poll(1))
    finally:
        proactor.close()
    return Finding(taken < 0.003, f"a wait of 1 ms took {taken * 1000:.2f} ms")


def _median_duration(action: Callable[[], object]) -> float:
    durations: list[float] = []
    for _ in range(_WAITS_MEASURED):
        started = time.perf_counter()
        action()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


@_probe
def probe_fast_refusal() -> Finding:
    """A socket can be told not to repeat its SYN, so that a refused connect fails at once."""
    rto = struct.pack("<HBx", InitialRto.UNSPECIFIED_RTT, InitialRto.NO_SYN_RETRANSMISSIONS)
    block, returned = ctypes.create_string_buffer(rto, len(rto)), DWORD()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        failed = bind("WSAIoctl")(
            *(sock.fileno(), Ioctl.SIO_TCP_INITIAL_RTO, ctypes.addressof(block), len(rto)),
            *(0, 0, ctypes.addressof(returned), 0, 0),
        )
        if failed:
            raise os_error(ctypes.get_last_error(), "WSAIoctl(SIO_TCP_INITIAL_RTO)")  # type: ignore[attr-defined, unused-ignore]
    return Finding(True, "SIO_TCP_INITIAL_RTO was accepted")


@_probe
def probe_base_handle() -> Finding:
    """No layered provider stands between a socket and the kernel."""
    base, returned = ctypes.c_size_t(), DWORD()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        failed = bind("WSAIoctl")(
            *(sock.fileno(), Ioctl.SIO_BASE_HANDLE, 0, 0),
            *(ctypes.addressof(base), ctypes.sizeof(base), ctypes.addressof(returned), 0, 0),
        )
        if failed:
            raise os_error(ctypes.get_last_error(), "WSAIoctl(SIO_BASE_HANDLE)")  # type: ignore[attr-defined, unused-ignore]
        same = base.value == sock.fileno()
    return Finding(same, "a socket is its own base" if same else "another provider's socket lies under a socket")
