"""Win32 scalars and structures, spelled as the SDK headers spell them.

Scalars are fixed-width (`c_uint32`, never `wintypes.DWORD`, which has 8 bytes outside Windows), so that tests can check
every size and offset below on any operating system. Handles and pointers are `c_size_t`: unsigned, as large as a
pointer, and a NULL reads back as 0 and not as None.
"""

import struct
from ctypes import Structure, c_int32, c_size_t, c_ubyte, c_uint16, c_uint32, c_uint64

BOOL = c_int32
INT = c_int32
BYTE = c_ubyte
WORD = c_uint16
DWORD = c_uint32
ULONG = c_uint32
ULONGLONG = c_uint64
ULONG_PTR = c_size_t
SIZE_T = c_size_t
HANDLE = c_size_t
SOCKET = c_size_t
POINTER_TO = c_size_t  # The address of a structure; what it points to is named by the parameter.
NTSTATUS = c_uint32  # Unsigned on purpose: constants are written as they are in ntstatus.h.


class OVERLAPPED(Structure):
    """minwinbase.h. `Offset`/`OffsetHigh` share a union with `Pointer`, which is not used for I/O."""

    _fields_ = [
        ("Internal", ULONG_PTR),  # NTSTATUS, written by the kernel
        ("InternalHigh", ULONG_PTR),  # byte count, written by the kernel
        ("Offset", DWORD),
        ("OffsetHigh", DWORD),
        ("hEvent", HANDLE),
    ]


class OVERLAPPED_ENTRY(Structure):
    """minwinbase.h: what GetQueuedCompletionStatusEx fills in, one per packet."""

    _fields_ = [
        ("lpCompletionKey", ULONG_PTR),
        ("lpOverlapped", ULONG_PTR),
        ("Internal", ULONG_PTR),
        ("dwNumberOfBytesTransferred", DWORD),
    ]


# The same layout for one `iter_unpack` over a whole batch: key, overlapped, NTSTATUS, byte count. The status is the
# low half of `Internal` (Windows is little-endian everywhere); the upper half has no meaning and is skipped.
OVERLAPPED_ENTRY_LAYOUT = struct.Struct("PPI4xI4x" if struct.calcsize("P") == 8 else "PPII")


class WSABUF(Structure):
    """ws2def.h: one piece of a gathered send or a scattered receive."""

    _fields_ = [("len", ULONG), ("buf", POINTER_TO)]


class GUID(Structure):
    """guiddef.h."""

    _fields_ = [("Data1", DWORD), ("Data2", WORD), ("Data3", WORD), ("Data4", BYTE * 8)]


class SOCKADDR_STORAGE(Structure):
    """ws2def.h: room for any socket address."""

    _fields_ = [("ss_family", WORD), ("ss_pad", BYTE * 126)]


class IO_STATUS_BLOCK(Structure):
    """wdm.h. An OVERLAPPED begins with one, so the two may share memory."""

    _fields_ = [("Status", ULONG_PTR), ("Information", ULONG_PTR)]


class UNICODE_STRING(Structure):
    """ntdef.h."""

    _fields_ = [("Length", WORD), ("MaximumLength", WORD), ("Buffer", POINTER_TO)]


class OBJECT_ATTRIBUTES(Structure):
    """ntdef.h."""

    _fields_ = [
        ("Length", ULONG),
        ("RootDirectory", HANDLE),
        ("ObjectName", POINTER_TO),
        ("Attributes", ULONG),
        ("SecurityDescriptor", POINTER_TO),
        ("SecurityQualityOfService", POINTER_TO),
    ]


class AFD_POLL_HANDLE_INFO(Structure):
    """Undocumented; the layout wepoll, libuv, mio and trio agree on."""

    _fields_ = [("Handle", HANDLE), ("Events", ULONG), ("Status", NTSTATUS)]


class AFD_POLL_INFO(Structure):
    """Undocumented; the layout wepoll, libuv, mio and trio agree on. One handle per poll here."""

    _fields_ = [
        ("Timeout", c_uint64),
        ("NumberOfHandles", ULONG),
        ("Exclusive", ULONG),
        ("Handles", AFD_POLL_HANDLE_INFO * 1),
    ]


class TRANSMIT_FILE_BUFFERS(Structure):
    """mswsock.h."""

    _fields_ = [
        ("Head", POINTER_TO),
        ("HeadLength", DWORD),
        ("Tail", POINTER_TO),
        ("TailLength", DWORD),
    ]
