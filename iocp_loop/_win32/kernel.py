"""The kernel as this package sees it: one protocol, and its real implementation.

Everything above level 0 calls a `Kernel`, never a DLL. That is the seam of the tests: a counting kernel proves how many
calls an operation costs, and a fake one produces orders and faults that the real one does not produce on demand. The
methods have the Win32 names; prototypes.py says which arguments a hot call needs.
"""

import ctypes
import socket
import struct
import sys
import time
from functools import partial
from typing import Any, Protocol, cast

from . import prototypes
from .constants import (
    EXTENSION_GUIDS,
    FAST_REFUSAL_BUILD,
    PROTOCOL_INFOW_SIZE,
    XP1_IFS_HANDLES,
    InitialRto,
    Ioctl,
    SocketOption,
)
from .errors import os_error
from .types import DWORD, GUID

# TCP_INITIAL_RTO_PARAMETERS; Winsock only reads it.
_SYN_ONCE = ctypes.create_string_buffer(
    struct.pack("<HBx", InitialRto.UNSPECIFIED_RTT, InitialRto.NO_SYN_RETRANSMISSIONS), 4
)


class Kernel(Protocol):
    """The calls an event loop makes. Hot calls take prepared argument objects; all return the raw Win32 result.

    Attributes:
        forgets_cancels: a CancelIoEx may have no effect; see `_cancels`.
    """

    forgets_cancels: bool

    def monotonic(self) -> float:
        """Seconds on a clock that never goes backwards."""
        ...

    def last_error(self) -> int:
        """The error code of the calling thread's last failed call through this object."""
        ...

    def clear_last_error(self) -> object:
        """Set `last_error` of the calling thread to 0, until its next failed call."""

    def extension(self, sock: Any, name: str) -> Any:
        """The extension function `name` of the provider behind `sock`."""

    def skips_port_safely(self, sock: Any) -> bool:
        """Whether FILE_SKIP_COMPLETION_PORT_ON_SUCCESS may be set on a socket of `sock`'s provider."""
        ...

    def hasten_refusal(self, sock: Any) -> None:
        """Let a connect of `sock` to this machine fail at once if nobody listens. May do nothing."""

    def CreateIoCompletionPort(self, handle: int, port: int, key: int, threads: int, /) -> int: ...
    def GetQueuedCompletionStatusEx(self, *args: Any) -> int: ...
    def PostQueuedCompletionStatus(self, port: int, byte_count: int, key: int, overlapped: int, /) -> int: ...
    def SetFileCompletionNotificationModes(self, handle: int, flags: int, /) -> int: ...
    def CancelIoEx(self, handle: int, overlapped: int, /) -> int: ...
    def CloseHandle(self, handle: int, /) -> int: ...
    def NtCreateWaitCompletionPacket(self, packet: int, access: int, attributes: int, /) -> int: ...
    def NtAssociateWaitCompletionPacket(self, *args: Any) -> int: ...
    def NtCancelWaitCompletionPacket(self, packet: int, remove_signaled: int, /) -> int: ...
    def CreateWaitableTimerExW(self, attributes: int, name: str | None, flags: int, access: int, /) -> int: ...
    def SetWaitableTimer(self, *args: Any) -> int: ...
    def WSARecv(self, *args: Any) -> int: ...
    def WSASend(self, *args: Any) -> int: ...
    def WSARecvFrom(self, *args: Any) -> int: ...
    def WSASendTo(self, *args: Any) -> int: ...
    def closesocket(self, socket: int, /) -> int: ...
    def WSAIoctl(self, *args: Any) -> int: ...
    def ReadFile(self, *args: Any) -> int: ...
    def WriteFile(self, *args: Any) -> int: ...
    def ConnectNamedPipe(self, *args: Any) -> int: ...
    def CreateNamedPipeW(self, *args: Any) -> int: ...
    def CreateFileW(self, *args: Any) -> int: ...
    def WaitNamedPipeW(self, *args: Any) -> int: ...
    def SetNamedPipeHandleState(self, *args: Any) -> int: ...
    def GetNamedPipeHandleStateW(self, *args: Any) -> int: ...
    def GetFileType(self, handle: int, /) -> int: ...
    def ReadFileBlocking(self, *args: Any) -> int: ...
    def WriteFileBlocking(self, *args: Any) -> int: ...
    def PeekNamedPipe(self, *args: Any) -> int: ...
    def GetConsoleMode(self, console: int, mode: int, /) -> int: ...
    def PeekConsoleInputW(self, *args: Any) -> int: ...
    def ReadConsoleW(self, *args: Any) -> int: ...
    def WriteConsoleW(self, *args: Any) -> int: ...
    def OpenThread(self, access: int, inherit: int, thread_id: int, /) -> int: ...
    def CancelSynchronousIo(self, thread: int, /) -> int: ...
    def NtQueryInformationFile(self, *args: Any) -> int: ...
    def WaitForSingleObject(self, handle: int, timeout_ms: int, /) -> int: ...
    def WaitForMultipleObjects(self, *args: Any) -> int: ...
    def GetCurrentProcess(self) -> int: ...
    def DuplicateHandle(self, *args: Any) -> int: ...
    def CreateEventW(self, *args: Any) -> int: ...
    def SetEvent(self, event: int, /) -> int: ...
    def NtCreateFile(self, *args: Any) -> int: ...
    def NtDeviceIoControlFile(self, *args: Any) -> int: ...


def win32_kernel() -> Kernel:
    """A `Win32Kernel`. Its calls are found by `__getattr__`, in which a protocol is not recognised."""
    return cast("Kernel", Win32Kernel())


class Win32Kernel:
    """The real kernel. A function is bound at its first use. Thread-safe, because binding twice is harmless."""

    def __init__(self) -> None:
        self.monotonic = time.perf_counter  # time.monotonic goes by the tick up to Python 3.12.
        self.last_error = ctypes.get_last_error  # type: ignore[attr-defined, unused-ignore]
        self.clear_last_error = partial(ctypes.set_last_error, 0)  # type: ignore[attr-defined, unused-ignore]
        self._extensions: dict[tuple[Any, ...], Any] = {}
        self._ifs: dict[tuple[int, int, int], bool] = {}
        # Before this build the ioctl could not ask for a single SYN.
        self._hastens = sys.getwindowsversion().build >= FAST_REFUSAL_BUILD  # type: ignore[attr-defined, unused-ignore]
        # True under Wine (see `Cancels`), which is known by an export that only Wine has.
        self.forgets_cancels = _exports("wine_get_version")

    def __getattr__(self, name: str) -> Any:
        try:
            function = prototypes.bind(name)
        except KeyError:
            raise AttributeError(name) from None
        setattr(self, name, function)
        return function

    def extension(self, sock: Any, name: str) -> Any:
        """Ask each provider (IPv4, IPv6, layered ones) for the function once, because their addresses differ."""
        where = (name, sock.family, sock.type, sock.proto)
        function = self._extensions.get(where)
        if function is None:
            address = self._extension_address(sock, EXTENSION_GUIDS[name])
            function = self._extensions[where] = prototypes.bind_at(name, address)
        return function

    def _extension_address(self, sock: Any, guid_text: str) -> int:
        first, second, third, *rest = guid_text.split("-")
        guid = GUID(
            int(first, 16), int(second, 16), int(third, 16), (ctypes.c_ubyte * 8)(*bytes.fromhex("".join(rest)))
        )
        address, returned = ctypes.c_size_t(), DWORD()
        failed = self.WSAIoctl(
            sock.fileno(),
            Ioctl.SIO_GET_EXTENSION_FUNCTION_POINTER,
            ctypes.addressof(guid),
            ctypes.sizeof(guid),
            ctypes.addressof(address),
            ctypes.sizeof(address),
            ctypes.addressof(returned),
            0,
            0,
        )
        if failed:
            code = self.last_error()
            raise os_error(code, "WSAIoctl(SIO_GET_EXTENSION_FUNCTION_POINTER)", f"socket {sock.fileno()}")
        return address.value

    def skips_port_safely(self, sock: Any) -> bool:
        """True if every layer of the provider makes real file handles (MSDN, SetFileCompletionNotificationModes).

        Never for datagrams: their truncation warning is an inline error that may still queue a packet.
        """
        provider = (sock.family, sock.type, sock.proto)
        if provider[1] != socket.SOCK_STREAM:
            return False
        safe = self._ifs.get(provider)
        if safe is None:
            raw = sock.getsockopt(socket.SOL_SOCKET, SocketOption.PROTOCOL_INFOW, PROTOCOL_INFOW_SIZE)
            safe = self._ifs[provider] = bool(int.from_bytes(raw[:4], sys.byteorder) & XP1_IFS_HANDLES)
        return safe

    def hasten_refusal(self, sock: Any) -> None:
        """Ask for a single SYN, by SIO_TCP_INITIAL_RTO.

        Otherwise, if a reset answers its SYN, Windows sends it three times, half a second apart. If the system refuses
        the ioctl, as Wine does, this does not ask again.
        """
        if not self._hastens:
            return
        returned = DWORD()
        where = (ctypes.addressof(_SYN_ONCE), len(_SYN_ONCE), 0, 0, ctypes.addressof(returned), 0, 0)
        self._hastens = not self.WSAIoctl(sock.fileno(), Ioctl.SIO_TCP_INITIAL_RTO, *where)


def _exports(name: str) -> bool:
    try:
        prototypes.bind(name)
    except AttributeError:
        return False
    return True
