"""Win32 numbers, by family, with the header each family comes from. Nothing above level 0 spells one."""

import ctypes
from enum import IntEnum, IntFlag

INFINITE = 0xFFFF_FFFF  # winbase.h: a wait without a time-out
TIMEOUT_MAX_MS = INFINITE - 1  # The longest wait that still ends.
INVALID_HANDLE_VALUE = ctypes.c_size_t(-1).value
SOCKET_ERROR = -1

# winternl.h / ntdef.h: the three NTSTATUS bits that matter here. 0x8... is a warning, 0xC... an error.
NTSTATUS_FAILURE_BIT = 0x8000_0000
# ntdef.h, facility NTWIN32: a Win32 code in the form of an NTSTATUS. An operation that fails before it is queued is
# reported in this form, so that every outcome takes the same path.
NTSTATUS_WIN32_FACILITY = 0xC007_0000

# The most bytes for one call: the count has 32 bits, and some layers treat it as signed.
LENGTH_MAX = 0x7FFF_FFFF


class Error(IntEnum):
    """winerror.h: the codes this package compares by name."""

    SUCCESS = 0
    FILE_NOT_FOUND = 2
    ACCESS_DENIED = 5
    INVALID_HANDLE = 6
    NOT_ENOUGH_MEMORY = 8
    HANDLE_EOF = 38
    NETNAME_DELETED = 64
    INVALID_PARAMETER = 87
    BROKEN_PIPE = 109
    SEM_TIMEOUT = 121
    MAX_THRDS_REACHED = 164
    BUSY = 170
    ALREADY_EXISTS = 183
    PIPE_BUSY = 231
    NO_DATA = 232
    PIPE_NOT_CONNECTED = 233
    MORE_DATA = 234
    WAIT_TIMEOUT = 258
    PIPE_CONNECTED = 535
    ABANDONED_WAIT_0 = 735
    OPERATION_ABORTED = 995
    IO_PENDING = 997
    NOT_FOUND = 1168
    CONNECTION_REFUSED = 1225
    PORT_UNREACHABLE = 1234
    CONNECTION_ABORTED = 1236
    NO_SYSTEM_RESOURCES = 1450
    WORKING_SET_QUOTA = 1453
    PAGEFILE_QUOTA = 1454
    COMMITMENT_LIMIT = 1455
    NOT_ENOUGH_QUOTA = 1816


class WsaError(IntEnum):
    """winsock2.h: the codes this package compares by name, or maps an NTSTATUS to."""

    INTR = 10004
    ACCES = 10013
    FAULT = 10014
    INVAL = 10022
    MFILE = 10024
    WOULDBLOCK = 10035
    NOTSOCK = 10038
    MSGSIZE = 10040
    OPNOTSUPP = 10045
    ADDRINUSE = 10048
    ADDRNOTAVAIL = 10049
    NETUNREACH = 10051
    NETRESET = 10052
    CONNABORTED = 10053
    CONNRESET = 10054
    NOBUFS = 10055
    ISCONN = 10056
    NOTCONN = 10057
    SHUTDOWN = 10058
    TIMEDOUT = 10060
    CONNREFUSED = 10061
    HOSTDOWN = 10064
    HOSTUNREACH = 10065
    DISCON = 10101


class Status(IntEnum):
    """ntstatus.h: the statuses this package compares by name, or maps to a Winsock code."""

    SUCCESS = 0
    PENDING = 0x0000_0103
    TIMEOUT = 0x0000_0102
    BUFFER_OVERFLOW = 0x8000_0005
    HANDLES_CLOSED = 0x8000_000A
    ACCESS_VIOLATION = 0xC000_0005
    INVALID_HANDLE = 0xC000_0008
    INVALID_PARAMETER = 0xC000_000D
    END_OF_FILE = 0xC000_0011
    NO_MEMORY = 0xC000_0017
    ACCESS_DENIED = 0xC000_0022
    BUFFER_TOO_SMALL = 0xC000_0023
    OBJECT_TYPE_MISMATCH = 0xC000_0024
    SHARING_VIOLATION = 0xC000_0043
    QUOTA_EXCEEDED = 0xC000_0044
    INSUFFICIENT_RESOURCES = 0xC000_009A
    PAGEFILE_QUOTA = 0xC000_0007
    WORKING_SET_QUOTA = 0xC000_00A1
    COMMITMENT_LIMIT = 0xC000_012D
    REMOTE_RESOURCES = 0xC000_013D
    NOT_IMPLEMENTED = 0xC000_0002
    NOT_SUPPORTED = 0xC000_00BB
    PIPE_DISCONNECTED = 0xC000_00B0
    PIPE_CLOSING = 0xC000_00B1
    IO_TIMEOUT = 0xC000_00B5
    BAD_NETWORK_PATH = 0xC000_00BE
    CANCELLED = 0xC000_0120
    LOCAL_DISCONNECT = 0xC000_013B
    REMOTE_DISCONNECT = 0xC000_013C
    LINK_FAILED = 0xC000_013E
    LINK_TIMEOUT = 0xC000_013F
    INVALID_CONNECTION = 0xC000_0140
    INVALID_ADDRESS = 0xC000_0141
    PIPE_BROKEN = 0xC000_014B
    INVALID_BUFFER_SIZE = 0xC000_0206
    INVALID_ADDRESS_COMPONENT = 0xC000_0207
    TOO_MANY_ADDRESSES = 0xC000_0209
    ADDRESS_ALREADY_EXISTS = 0xC000_020A
    CONNECTION_DISCONNECTED = 0xC000_020C
    CONNECTION_RESET = 0xC000_020D
    TRANSACTION_ABORTED = 0xC000_020F
    CONNECTION_REFUSED = 0xC000_0236
    GRACEFUL_DISCONNECT = 0xC000_0237
    CONNECTION_ACTIVE = 0xC000_023B
    CONFLICTING_ADDRESSES = 0xC000_0018
    NETWORK_UNREACHABLE = 0xC000_023C
    HOST_UNREACHABLE = 0xC000_023D
    PROTOCOL_UNREACHABLE = 0xC000_023E
    PORT_UNREACHABLE = 0xC000_023F
    REQUEST_ABORTED = 0xC000_0240
    CONNECTION_ABORTED = 0xC000_0241
    HOST_DOWN = 0xC000_0350
    REMOTE_NOT_LISTENING = 0xC000_00BC
    HOPLIMIT_EXCEEDED = 0xC000_A012


class NotificationMode(IntFlag):
    """winbase.h, SetFileCompletionNotificationModes."""

    SKIP_COMPLETION_PORT_ON_SUCCESS = 1
    SKIP_SET_EVENT_ON_HANDLE = 2


class SocketOption(IntEnum):
    """mswsock.h and winsock2.h: level SOL_SOCKET, absent from Python's socket module."""

    UPDATE_ACCEPT_CONTEXT = 0x700B
    UPDATE_CONNECT_CONTEXT = 0x7010
    PROTOCOL_INFOW = 0x2005


class Ioctl(IntEnum):
    """mswsock.h, ws2def.h, mstcpip.h; AFD_POLL is undocumented (wepoll, libuv, mio, trio)."""

    SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC800_0006
    SIO_BASE_HANDLE = 0x4800_0022
    SIO_BSP_HANDLE_POLL = 0x4800_001D
    SIO_UDP_CONNRESET = 0x9800_000C
    SIO_UDP_NETRESET = 0x9800_000F
    SIO_TCP_INITIAL_RTO = 0x9800_0011
    AFD_POLL = 0x0001_2024


AFD_POLL_FOREVER = 0x7FFF_FFFF_FFFF_FFFF  # The time-out of an AFD poll, in 100 ns: the largest.


class AfdPoll(IntFlag):
    """Undocumented; the names wepoll, libuv, mio and trio agree on."""

    RECEIVE = 0x0001
    RECEIVE_EXPEDITED = 0x0002
    SEND = 0x0004
    DISCONNECT = 0x0008  # received FIN
    ABORT = 0x0010  # received RST
    LOCAL_CLOSE = 0x0020  # the handle was closed; reported even if the request does not name it
    CONNECT = 0x0040  # connected; comes with SEND, so the request need not name it
    ACCEPT = 0x0080
    CONNECT_FAIL = 0x0100


class NtFile(IntFlag):
    """winnt.h and wdm.h: NtCreateFile."""

    SYNCHRONIZE = 0x0010_0000
    SHARE_READ = 0x1
    SHARE_WRITE = 0x2
    OPEN = 1


class FileFlag(IntFlag):
    """winnt.h and winbase.h: CreateFileW, CreateNamedPipeW."""

    GENERIC_READ = 0x8000_0000
    GENERIC_WRITE = 0x4000_0000
    FLAG_OVERLAPPED = 0x4000_0000
    FLAG_FIRST_PIPE_INSTANCE = 0x0008_0000
    PIPE_ACCESS_INBOUND = 0x0000_0001
    PIPE_ACCESS_OUTBOUND = 0x0000_0002
    PIPE_ACCESS_DUPLEX = 0x0000_0003
    OPEN_EXISTING = 3


class PipeMode(IntFlag):
    """winbase.h: CreateNamedPipeW, dwPipeMode."""

    TYPE_BYTE = 0
    TYPE_MESSAGE = 4
    READMODE_BYTE = 0
    READMODE_MESSAGE = 2
    WAIT = 0
    REJECT_REMOTE_CLIENTS = 8
    UNLIMITED_INSTANCES = 255


class FileType(IntEnum):
    """winbase.h: GetFileType."""

    UNKNOWN = 0
    DISK = 1
    CHAR = 2
    PIPE = 3


class ConsoleMode(IntFlag):
    """consoleapi.h: GetConsoleMode, of an input handle."""

    LINE_INPUT = 0x0002


class ThreadAccess(IntFlag):
    """winnt.h: OpenThread."""

    TERMINATE = 0x0001  # the access that CancelSynchronousIo needs


class FileMode(IntFlag):
    """wdm.h: NtQueryInformationFile, FileModeInformation. Either bit means 'not opened for overlapped I/O'."""

    SYNCHRONOUS_IO_ALERT = 0x10
    SYNCHRONOUS_IO_NONALERT = 0x20


class WaitResult(IntEnum):
    """winbase.h: WaitForSingleObject, WaitForMultipleObjects."""

    OBJECT_0 = 0
    TIMEOUT = 0x102
    FAILED = 0xFFFF_FFFF


class TimerFlag(IntFlag):
    """synchapi.h, winnt.h: CreateWaitableTimerExW. Of a wait completion packet no header says anything."""

    HIGH_RESOLUTION = 0x02  # Windows 10 1803
    ALL_ACCESS = 0x001F_0003
    PACKET_ACCESS = 0x01


class InitialRto(IntEnum):
    """mstcpip.h: the members of TCP_INITIAL_RTO_PARAMETERS, for SIO_TCP_INITIAL_RTO."""

    UNSPECIFIED_RTT = 0xFFFF
    NO_SYN_RETRANSMISSIONS = 0xFE


class TransmitFlag(IntFlag):
    """mswsock.h: TransmitFile."""

    USE_KERNEL_APC = 0x20
    WRITE_BEHIND = 0x04


class Memory(IntFlag):
    """winnt.h: VirtualAlloc, VirtualFree, VirtualProtect."""

    PAGE_NOACCESS = 0x01
    PAGE_READWRITE = 0x04
    COMMIT = 0x1000
    RESERVE = 0x2000
    DECOMMIT = 0x4000
    RELEASE = 0x8000


DUPLICATE_SAME_ACCESS = 0x2  # winnt.h: DuplicateHandle.
FAST_REFUSAL_BUILD = 16299  # The Windows build since which SIO_TCP_INITIAL_RTO takes NO_SYN_RETRANSMISSIONS (libuv).
XP1_IFS_HANDLES = 0x0002_0000  # winsock2.h: the provider's sockets are real file-system handles.
PROTOCOL_INFOW_SIZE = 628  # sizeof(WSAPROTOCOL_INFOW); dwServiceFlags1 is its first DWORD.

# mswsock.h: the extension functions, by the GUID that WSAIoctl wants for each.
EXTENSION_GUIDS = {
    "AcceptEx": "b5367df1-cbac-11cf-95ca-00805f48a192",
    "GetAcceptExSockaddrs": "b5367df2-cbac-11cf-95ca-00805f48a192",
    "ConnectEx": "25a207b9-ddf3-4660-8ee9-76e58c74063e",
    "TransmitFile": "b5367df0-cbac-11cf-95ca-00805f48a192",
}
