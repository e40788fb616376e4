"""The completion ports of the fake kernel: packets, and the waits for them."""

import ctypes
from dataclasses import dataclass
from typing import Any

from iocp_loop._core._kept import ORPHANS
from iocp_loop._win32.constants import INFINITE, INVALID_HANDLE_VALUE, Error, NotificationMode, Status
from iocp_loop._win32.types import OVERLAPPED_ENTRY

from .handles import ERROR_INVALID_FUNCTION, FakeHandle, Request
from .rules import Deadlock
from .timers import WaitPacket

TURNS_MAX = 100_000  # Of one wait. No schedule of ours comes near it; more means that two sides spin.
_POINTER_SIZE = ctypes.sizeof(ctypes.c_size_t)


@dataclass
class Port:
    packets: list[tuple[int, int, int, int, Request | WaitPacket | None]]  # key, address, status, byte count, and whose
    closed: bool = False


class PortCalls:
    """The calls of `FakeKernel` that are about completion ports."""

    def ports(self: Any) -> list[Port]:
        return [thing for thing in self._handles.values() if isinstance(thing, Port)]

    def inject(self: Any, key: int, address: int, status: int = Status.SUCCESS, byte_count: int = 0) -> None:
        """Queue a packet that nobody asked for."""
        self.ports()[0].packets.append((key, address, status, byte_count, None))

    def CreateIoCompletionPort(self: Any, handle: int, port: int, key: int, threads: int, /) -> int:
        self.count("CreateIoCompletionPort")
        if handle == INVALID_HANDLE_VALUE:
            new = self.new_handle()
            self._handles[new] = Port([])
            return new
        thing = self._handles.get(handle)
        if not isinstance(thing, FakeHandle):
            return self._fail(Error.INVALID_HANDLE)
        if thing.association is not None:
            return self._fail(Error.INVALID_PARAMETER)
        if self.chance("no_handle"):
            return self._fail(Error.NOT_ENOUGH_MEMORY)
        thing.association = (port, key)
        return port

    def SetFileCompletionNotificationModes(self: Any, handle: int, flags: int, /) -> int:
        self.count("SetFileCompletionNotificationModes")
        if self.layered:
            return self._fail(ERROR_INVALID_FUNCTION)
        self.thing(handle, FakeHandle).skips_port = bool(flags & NotificationMode.SKIP_COMPLETION_PORT_ON_SUCCESS)
        return 1

    def PostQueuedCompletionStatus(self: Any, port: int, byte_count: int, key: int, overlapped: int, /) -> int:
        self.count("PostQueuedCompletionStatus")
        self._port(port).packets.append((key, overlapped, Status.SUCCESS, byte_count, None))
        return 1

    def CloseHandle(self: Any, handle: int, /) -> int:
        self.count("CloseHandle")
        thing = self._handles.get(handle)
        if isinstance(thing, FakeHandle):
            thing.close()
            return 1
        port = self._port(handle)
        port.closed = True
        del self._handles[handle]
        orphans = {orphan.address for orphan in ORPHANS}
        lost = [request for address, request in self._in_flight.items() if address not in orphans]
        if lost:
            self.violation(f"the port is closed and the packets of {lost} go nowhere")
        return 1

    def GetQueuedCompletionStatusEx(self: Any, *args: Any) -> int:
        handle, entries, entry_count, removed, timeout_ms, _alertable = self._arguments(
            "GetQueuedCompletionStatusEx", args
        )
        port = self._port(handle)
        self._look_at_timers()
        if not self.chance("idle"):
            for _ in range(self.random.randrange(4)):
                self._turn()
        if timeout_ms:
            self._wait_for_packet(port, timeout_ms)
        count = min(len(port.packets), entry_count)
        if count > 1 and self.chance("idle"):
            count = self.random.randrange(1, count)
        if not count:
            return self._fail(Error.WAIT_TIMEOUT)
        if self.chance("reorder"):
            self.random.shuffle(port.packets)
        batch, port.packets[:] = port.packets[:count], port.packets[count:]
        for index, packet in enumerate(batch):
            self._dequeue(packet, entries + index * ctypes.sizeof(OVERLAPPED_ENTRY))
        ctypes.c_uint32.from_address(removed).value = count
        self.interrupt()
        return 1

    def _port(self: Any, handle: int) -> Port:
        thing = self._handles.get(handle)
        if not isinstance(thing, Port):
            self.violation(f"handle {handle:#x} is no open port")
        return thing  # type: ignore[return-value]

    def _wait_for_packet(self: Any, port: Port, timeout_ms: int) -> None:
        for _ in range(TURNS_MAX):
            if port.packets:
                return
            if not self._turn():
                timer_ms = self._next_timer_ms()
                if timer_ms is not None and (timeout_ms == INFINITE or timer_ms <= self.now_ms + timeout_ms):
                    self.now_ms = max(self.now_ms, timer_ms)
                    self._look_at_timers()
                    return
                if timeout_ms != INFINITE:
                    self.now_ms += self._time_out(timeout_ms)
                    return
                raise Deadlock(f"nothing can happen any more, and the program waits (seed {self.seed}): {self._open}")
        raise Deadlock(f"the peers spin and no packet comes (seed {self.seed}): {self._open}")

    def _time_out(self: Any, timeout_ms: int) -> float:
        """How long a wait has taken in which nothing came: by the tick, where the schedule says so."""
        tick = self.profile.tick_ms if self.chance("coarse_wait") else 0
        return float(max(0, timeout_ms + self.random.uniform(-tick, tick)))

    def _dequeue(self: Any, packet: tuple[int, int, int, int, Request | None], entry_at: int) -> None:
        key, address, status, byte_count, request = packet
        entry = OVERLAPPED_ENTRY.from_address(entry_at)
        entry.lpCompletionKey, entry.lpOverlapped = key, address
        # The upper half of Internal means nothing; make sure that nobody reads it.
        entry.Internal = status | (self.random.getrandbits(32) << 32 if _POINTER_SIZE == 8 else 0)
        entry.dwNumberOfBytesTransferred = byte_count
        if isinstance(request, WaitPacket):
            request.queued = False
        elif request is not None:
            self._check_lifetime(request)
            del self._in_flight[address]
