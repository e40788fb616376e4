"""Every Win32 function this package calls, once: DLL, name, result, parameters by their documented names.

Four calling styles, all on private DLL objects (`ctypes.windll` is shared by the whole process, and any library may
change its prototypes):

* ordinary: argtypes from the table, the GIL released during the call, the last error saved;
* `brief`: ordinary, but the GIL is kept. For calls that cannot block: if the GIL is released for a microsecond, another
  thread may take it and keep it for a switch interval;
* `hot`: brief, and without argtypes. ctypes spends 150 to 240 ns on each argument that it must convert; a hot call gets
  a tuple of prepared argument objects (see `argument`), which cost a fifth of that. A plain int must never be passed to
  one: ctypes would pass 32 bits and leave the upper half of the slot undefined;
* `waiting`: hot, but the GIL is released. For the call that blocks, once per batch; and for TransmitFile, which may
  read the beginning of the file before it returns, from a sleeping disk or a network share.
"""

import ctypes
from typing import Any, NamedTuple

from .types import BOOL, DWORD, HANDLE, INT, NTSTATUS, POINTER_TO, SIZE_T, SOCKET, ULONG, ULONG_PTR

LPCWSTR = ctypes.c_wchar_p
ORDINARY, BRIEF, HOT, WAITING = "ordinary", "brief", "hot", "waiting"


class Proto(NamedTuple):
    """One row. `parameters` has the documented names beside the types, for the reader and for the tests."""

    dll: str
    name: str
    restype: Any
    style: str
    parameters: dict[str, Any]
    export: str = ""  # the name in the DLL, if it differs: one function may have two rows of different style


def _p(dll: str, name: str, restype: Any, style: str = ORDINARY, /, **parameters: Any) -> Proto:
    return Proto(dll, name, restype, style, parameters)


_OVERLAPPED_IO = {"lpOverlapped": POINTER_TO, "lpCompletionRoutine": POINTER_TO}

# fmt: off
PROTOTYPES: tuple[Proto, ...] = (
    # The port.
    _p("kernel32", "CreateIoCompletionPort", HANDLE, BRIEF, FileHandle=HANDLE, ExistingCompletionPort=HANDLE,
       CompletionKey=ULONG_PTR, NumberOfConcurrentThreads=DWORD),
    _p("kernel32", "GetQueuedCompletionStatusEx", BOOL, WAITING, CompletionPort=HANDLE,
       lpCompletionPortEntries=POINTER_TO, ulCount=ULONG, ulNumEntriesRemoved=POINTER_TO, dwMilliseconds=DWORD,
       fAlertable=BOOL),
    _p("kernel32", "PostQueuedCompletionStatus", BOOL, BRIEF, CompletionPort=HANDLE,
       dwNumberOfBytesTransferred=DWORD, dwCompletionKey=ULONG_PTR, lpOverlapped=POINTER_TO),
    _p("kernel32", "SetFileCompletionNotificationModes", BOOL, BRIEF, FileHandle=HANDLE, Flags=ctypes.c_ubyte),
    _p("kernel32", "CancelIoEx", BOOL, BRIEF, hFile=HANDLE, lpOverlapped=POINTER_TO),
    _p("kernel32", "CloseHandle", BOOL, ORDINARY, hObject=HANDLE),
    # Exact timers; a system may lack them.
    _p("ntdll", "NtCreateWaitCompletionPacket", NTSTATUS, BRIEF, WaitCompletionPacketHandle=POINTER_TO,
       DesiredAccess=DWORD, ObjectAttributes=POINTER_TO),
    _p("kernel32", "CreateWaitableTimerExW", HANDLE, BRIEF, lpTimerAttributes=POINTER_TO, lpTimerName=LPCWSTR,
       dwFlags=DWORD, dwDesiredAccess=DWORD),
    _p("kernel32", "SetWaitableTimer", BOOL, BRIEF, hTimer=HANDLE, lpDueTime=POINTER_TO, lPeriod=ctypes.c_int32,
       pfnCompletionRoutine=POINTER_TO, lpArgToCompletionRoutine=POINTER_TO, fResume=BOOL),
    _p("ntdll", "NtAssociateWaitCompletionPacket", NTSTATUS, BRIEF, WaitCompletionPacketHandle=HANDLE,
       IoCompletionHandle=HANDLE, TargetObjectHandle=HANDLE, KeyContext=ULONG_PTR, ApcContext=POINTER_TO,
       IoStatus=NTSTATUS, IoStatusInformation=ULONG_PTR, AlreadySignaled=POINTER_TO),
    _p("ntdll", "NtCancelWaitCompletionPacket", NTSTATUS, BRIEF, WaitCompletionPacketHandle=HANDLE,
       RemoveSignaledPacket=ctypes.c_ubyte),
    # Sockets.
    _p("ws2_32", "WSARecv", INT, HOT, s=SOCKET, lpBuffers=POINTER_TO, dwBufferCount=DWORD,
       lpNumberOfBytesRecvd=POINTER_TO, lpFlags=POINTER_TO, **_OVERLAPPED_IO),
    _p("ws2_32", "WSASend", INT, HOT, s=SOCKET, lpBuffers=POINTER_TO, dwBufferCount=DWORD,
       lpNumberOfBytesSent=POINTER_TO, dwFlags=DWORD, **_OVERLAPPED_IO),
    _p("ws2_32", "WSARecvFrom", INT, HOT, s=SOCKET, lpBuffers=POINTER_TO, dwBufferCount=DWORD,
       lpNumberOfBytesRecvd=POINTER_TO, lpFlags=POINTER_TO, lpFrom=POINTER_TO, lpFromlen=POINTER_TO,
       **_OVERLAPPED_IO),
    _p("ws2_32", "WSASendTo", INT, HOT, s=SOCKET, lpBuffers=POINTER_TO, dwBufferCount=DWORD,
       lpNumberOfBytesSent=POINTER_TO, dwFlags=DWORD, lpTo=POINTER_TO, iTolen=INT, **_OVERLAPPED_IO),
    _p("ws2_32", "WSAIoctl", INT, ORDINARY, s=SOCKET, dwIoControlCode=DWORD, lpvInBuffer=POINTER_TO, cbInBuffer=DWORD,
       lpvOutBuffer=POINTER_TO, cbOutBuffer=DWORD, lpcbBytesReturned=POINTER_TO, **_OVERLAPPED_IO),
    _p("ws2_32", "closesocket", INT, ORDINARY, s=SOCKET),
    # Pipes and files.
    _p("kernel32", "ReadFile", BOOL, HOT, hFile=HANDLE, lpBuffer=POINTER_TO, nNumberOfBytesToRead=DWORD,
       lpNumberOfBytesRead=POINTER_TO, lpOverlapped=POINTER_TO),
    _p("kernel32", "WriteFile", BOOL, HOT, hFile=HANDLE, lpBuffer=POINTER_TO, nNumberOfBytesToWrite=DWORD,
       lpNumberOfBytesWritten=POINTER_TO, lpOverlapped=POINTER_TO),
    _p("kernel32", "ConnectNamedPipe", BOOL, HOT, hNamedPipe=HANDLE, lpOverlapped=POINTER_TO),
    _p("kernel32", "CreateNamedPipeW", HANDLE, ORDINARY, lpName=LPCWSTR, dwOpenMode=DWORD, dwPipeMode=DWORD,
       nMaxInstances=DWORD, nOutBufferSize=DWORD, nInBufferSize=DWORD, nDefaultTimeOut=DWORD,
       lpSecurityAttributes=POINTER_TO),
    _p("kernel32", "CreateFileW", HANDLE, ORDINARY, lpFileName=LPCWSTR, dwDesiredAccess=DWORD, dwShareMode=DWORD,
       lpSecurityAttributes=POINTER_TO, dwCreationDisposition=DWORD, dwFlagsAndAttributes=DWORD,
       hTemplateFile=HANDLE),
    _p("kernel32", "WaitNamedPipeW", BOOL, ORDINARY, lpNamedPipeName=LPCWSTR, nTimeOut=DWORD),
    _p("kernel32", "SetNamedPipeHandleState", BOOL, ORDINARY, hNamedPipe=HANDLE, lpMode=POINTER_TO,
       lpMaxCollectionCount=POINTER_TO, lpCollectDataTimeout=POINTER_TO),
    _p("kernel32", "GetNamedPipeHandleStateW", BOOL, ORDINARY, hNamedPipe=HANDLE, lpState=POINTER_TO,
       lpCurInstances=POINTER_TO, lpMaxCollectionCount=POINTER_TO, lpCollectDataTimeout=POINTER_TO,
       lpUserName=POINTER_TO, nMaxUserNameSize=DWORD),
    _p("kernel32", "GetFileType", DWORD, ORDINARY, hFile=HANDLE),
    # Calls that block, for threads that may: pipes, files and consoles that were not opened for overlapped I/O.
    _p("kernel32", "ReadFileBlocking", BOOL, ORDINARY, hFile=HANDLE, lpBuffer=POINTER_TO, nNumberOfBytesToRead=DWORD,
       lpNumberOfBytesRead=POINTER_TO, lpOverlapped=POINTER_TO)._replace(export="ReadFile"),
    _p("kernel32", "WriteFileBlocking", BOOL, ORDINARY, hFile=HANDLE, lpBuffer=POINTER_TO,
       nNumberOfBytesToWrite=DWORD, lpNumberOfBytesWritten=POINTER_TO,
       lpOverlapped=POINTER_TO)._replace(export="WriteFile"),
    _p("kernel32", "PeekNamedPipe", BOOL, ORDINARY, hNamedPipe=HANDLE, lpBuffer=POINTER_TO, nBufferSize=DWORD,
       lpBytesRead=POINTER_TO, lpTotalBytesAvail=POINTER_TO, lpBytesLeftThisMessage=POINTER_TO),
    _p("kernel32", "GetConsoleMode", BOOL, ORDINARY, hConsoleHandle=HANDLE, lpMode=POINTER_TO),
    _p("kernel32", "PeekConsoleInputW", BOOL, ORDINARY, hConsoleInput=HANDLE, lpBuffer=POINTER_TO, nLength=DWORD,
       lpNumberOfEventsRead=POINTER_TO),
    _p("kernel32", "ReadConsoleW", BOOL, ORDINARY, hConsoleInput=HANDLE, lpBuffer=POINTER_TO,
       nNumberOfCharsToRead=DWORD, lpNumberOfCharsRead=POINTER_TO, pInputControl=POINTER_TO),
    _p("kernel32", "WriteConsoleW", BOOL, ORDINARY, hConsoleOutput=HANDLE, lpBuffer=POINTER_TO,
       nNumberOfCharsToWrite=DWORD, lpNumberOfCharsWritten=POINTER_TO, lpReserved=POINTER_TO),
    _p("kernel32", "OpenThread", HANDLE, ORDINARY, dwDesiredAccess=DWORD, bInheritHandle=BOOL, dwThreadId=DWORD),
    _p("kernel32", "CancelSynchronousIo", BOOL, ORDINARY, hThread=HANDLE),
    _p("ntdll", "NtQueryInformationFile", NTSTATUS, ORDINARY, FileHandle=HANDLE, IoStatusBlock=POINTER_TO,
       FileInformation=POINTER_TO, Length=ULONG, FileInformationClass=ctypes.c_uint32),
    # Waiting for other handles.
    _p("kernel32", "WaitForSingleObject", DWORD, ORDINARY, hHandle=HANDLE, dwMilliseconds=DWORD),
    _p("kernel32", "WaitForMultipleObjects", DWORD, ORDINARY, nCount=DWORD, lpHandles=POINTER_TO, bWaitAll=BOOL,
       dwMilliseconds=DWORD),
    _p("kernel32", "GetCurrentProcess", HANDLE, BRIEF),
    _p("kernel32", "DuplicateHandle", BOOL, BRIEF, hSourceProcessHandle=HANDLE, hSourceHandle=HANDLE,
       hTargetProcessHandle=HANDLE, lpTargetHandle=POINTER_TO, dwDesiredAccess=DWORD, bInheritHandle=BOOL,
       dwOptions=DWORD),
    _p("kernel32", "CreateEventW", HANDLE, BRIEF, lpEventAttributes=POINTER_TO, bManualReset=BOOL, bInitialState=BOOL,
       lpName=LPCWSTR),
    _p("kernel32", "SetEvent", BOOL, BRIEF, hEvent=HANDLE),
    # Readiness.
    _p("ntdll", "NtCreateFile", NTSTATUS, ORDINARY, FileHandle=POINTER_TO, DesiredAccess=DWORD,
       ObjectAttributes=POINTER_TO, IoStatusBlock=POINTER_TO, AllocationSize=POINTER_TO, FileAttributes=ULONG,
       ShareAccess=ULONG, CreateDisposition=ULONG, CreateOptions=ULONG, EaBuffer=POINTER_TO, EaLength=ULONG),
    _p("ntdll", "NtDeviceIoControlFile", NTSTATUS, HOT, FileHandle=HANDLE, Event=HANDLE, ApcRoutine=POINTER_TO,
       ApcContext=POINTER_TO, IoStatusBlock=POINTER_TO, IoControlCode=ULONG, InputBuffer=POINTER_TO,
       InputBufferLength=ULONG, OutputBuffer=POINTER_TO, OutputBufferLength=ULONG),
    _p("ntdll", "RtlNtStatusToDosError", ULONG, BRIEF, Status=NTSTATUS),
    # Memory, for stomp mode.
    _p("kernel32", "VirtualAlloc", POINTER_TO, BRIEF, lpAddress=POINTER_TO, dwSize=SIZE_T, flAllocationType=DWORD,
       flProtect=DWORD),
    _p("kernel32", "VirtualFree", BOOL, BRIEF, lpAddress=POINTER_TO, dwSize=SIZE_T, dwFreeType=DWORD),
)

# By WSAIoctl only, per provider: see `Kernel.extension`.
EXTENSIONS: tuple[Proto, ...] = (
    _p("mswsock", "AcceptEx", BOOL, HOT, sListenSocket=SOCKET, sAcceptSocket=SOCKET, lpOutputBuffer=POINTER_TO,
       dwReceiveDataLength=DWORD, dwLocalAddressLength=DWORD, dwRemoteAddressLength=DWORD,
       lpdwBytesReceived=POINTER_TO, lpOverlapped=POINTER_TO),
    _p("mswsock", "GetAcceptExSockaddrs", None, BRIEF, lpOutputBuffer=POINTER_TO, dwReceiveDataLength=DWORD,
       dwLocalAddressLength=DWORD, dwRemoteAddressLength=DWORD, LocalSockaddr=POINTER_TO,
       LocalSockaddrLength=POINTER_TO, RemoteSockaddr=POINTER_TO, RemoteSockaddrLength=POINTER_TO),
    _p("mswsock", "ConnectEx", BOOL, HOT, s=SOCKET, name=POINTER_TO, namelen=INT, lpSendBuffer=POINTER_TO,
       dwSendDataLength=DWORD, lpdwBytesSent=POINTER_TO, lpOverlapped=POINTER_TO),
    _p("mswsock", "TransmitFile", BOOL, WAITING, hSocket=SOCKET, hFile=HANDLE, nNumberOfBytesToWrite=DWORD,
       nNumberOfBytesPerSend=DWORD, lpOverlapped=POINTER_TO, lpTransmitBuffers=POINTER_TO, dwReserved=DWORD),
)

# Functions that only `python -m iocp_loop doctor` calls; a system may lack any of them.
PROBES: tuple[Proto, ...] = (
    _p("ntdll", "wine_get_version", ctypes.c_char_p),
)
# fmt: on

# kernel32's flags for a function type (ctypes spells them with an underscore and keeps them stable).
_STDCALL, _KEEP_GIL, _SAVE_LAST_ERROR = 0x0, 0x4, 0x10
_by_name = {proto.name: proto for proto in (*PROTOTYPES, *EXTENSIONS, *PROBES)}
_dlls: dict[str, Any] = {}
_bound: dict[str, Any] = {}


def argument(ctype: Any, value: int) -> Any:
    """A prepared argument for a `hot` call: it has the right width, and each call passes it without conversion."""
    return ctype.from_param(value)


def bind(name: str) -> Any:
    """The function of that name, bound once. Raises OSError or AttributeError if Windows does not have it."""
    function = _bound.get(name)
    if function is None:
        proto = _by_name[name]
        dll = _dlls.get(proto.dll)
        if dll is None:
            dll = _dlls[proto.dll] = ctypes.WinDLL(proto.dll, use_last_error=True)  # type: ignore[attr-defined, unused-ignore]
        function = _bound[name] = _shape(proto, (proto.export or name, dll))
    return function


def bind_at(name: str, address: int) -> Any:
    """The extension function of that name, at the address that WSAIoctl returned for one provider."""
    return _shape(_by_name[name], address)


def _shape(proto: Proto, where: Any) -> Any:
    function = _function_types[proto.style](where)
    function.restype = proto.restype
    if proto.style not in (HOT, WAITING):
        function.argtypes = tuple(proto.parameters.values())
    return function


class _OrdinaryFunction(ctypes._CFuncPtr):  # type: ignore[misc, name-defined, unused-ignore]
    _flags_ = _STDCALL | _SAVE_LAST_ERROR
    _restype_ = ctypes.c_int


class _BriefFunction(ctypes._CFuncPtr):  # type: ignore[misc, name-defined, unused-ignore]
    _flags_ = _STDCALL | _SAVE_LAST_ERROR | _KEEP_GIL
    _restype_ = ctypes.c_int


_function_types: dict[str, Any] = {
    ORDINARY: _OrdinaryFunction,
    BRIEF: _BriefFunction,
    HOT: _BriefFunction,
    WAITING: _OrdinaryFunction,
}
