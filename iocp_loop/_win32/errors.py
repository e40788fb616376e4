"""NTSTATUS -> WinError -> OSError. The only module that builds an exception from a code.

A completion packet carries an NTSTATUS. Its meaning depends on the handle. A socket's status becomes the Winsock code
with which a call fails at once for the same reason: 10054 for a reset, for example, where RtlNtStatusToDosError returns
64, "network name deleted". Any other handle's status becomes the plain Win32 code.

The socket table follows the one in libuv's src/win/winsock.c. The Win32 table has the results of RtlNtStatusToDosError
for the statuses that pipes and files really give.
"""

import ctypes
import errno
import sys

from .constants import NTSTATUS_FAILURE_BIT, NTSTATUS_WIN32_FACILITY, Error, Status, WsaError

_SOCKET_ERRORS = {
    Status.REMOTE_DISCONNECT: WsaError.CONNRESET,
    Status.CONNECTION_RESET: WsaError.CONNRESET,
    Status.LINK_FAILED: WsaError.CONNRESET,
    Status.CONNECTION_DISCONNECTED: WsaError.CONNRESET,
    Status.HOPLIMIT_EXCEEDED: WsaError.NETRESET,
    Status.LOCAL_DISCONNECT: WsaError.CONNABORTED,
    Status.TRANSACTION_ABORTED: WsaError.CONNABORTED,
    Status.CONNECTION_ABORTED: WsaError.CONNABORTED,
    Status.REMOTE_NOT_LISTENING: WsaError.CONNREFUSED,
    Status.CONNECTION_REFUSED: WsaError.CONNREFUSED,
    # An ICMP answer to an earlier datagram. We call it "refused", as asio and the selector loop do.
    Status.PORT_UNREACHABLE: WsaError.CONNREFUSED,
    Status.LINK_TIMEOUT: WsaError.TIMEDOUT,
    Status.IO_TIMEOUT: WsaError.TIMEDOUT,
    Status.TIMEOUT: WsaError.TIMEDOUT,
    Status.BAD_NETWORK_PATH: WsaError.NETUNREACH,
    Status.NETWORK_UNREACHABLE: WsaError.NETUNREACH,
    Status.PROTOCOL_UNREACHABLE: WsaError.NETUNREACH,
    Status.HOST_UNREACHABLE: WsaError.HOSTUNREACH,
    Status.HOST_DOWN: WsaError.HOSTDOWN,
    Status.CONNECTION_ACTIVE: WsaError.ISCONN,
    Status.GRACEFUL_DISCONNECT: WsaError.DISCON,
    Status.CANCELLED: Error.OPERATION_ABORTED,
    Status.REQUEST_ABORTED: Error.OPERATION_ABORTED,
    # QUIRK(wine): closing a socket under its own pending receive ends it with this one.
    Status.HANDLES_CLOSED: Error.OPERATION_ABORTED,
    Status.BUFFER_OVERFLOW: WsaError.MSGSIZE,
    Status.INVALID_BUFFER_SIZE: WsaError.MSGSIZE,
    Status.INVALID_CONNECTION: WsaError.NOTCONN,
    Status.PIPE_DISCONNECTED: WsaError.SHUTDOWN,
    Status.INSUFFICIENT_RESOURCES: WsaError.NOBUFS,
    Status.PAGEFILE_QUOTA: WsaError.NOBUFS,
    Status.COMMITMENT_LIMIT: WsaError.NOBUFS,
    Status.WORKING_SET_QUOTA: WsaError.NOBUFS,
    Status.NO_MEMORY: WsaError.NOBUFS,
    Status.QUOTA_EXCEEDED: WsaError.NOBUFS,
    Status.REMOTE_RESOURCES: WsaError.NOBUFS,
    Status.TOO_MANY_ADDRESSES: WsaError.ADDRINUSE,
    Status.SHARING_VIOLATION: WsaError.ADDRINUSE,
    Status.ADDRESS_ALREADY_EXISTS: WsaError.ADDRINUSE,
    Status.CONFLICTING_ADDRESSES: WsaError.ADDRNOTAVAIL,
    Status.INVALID_ADDRESS: WsaError.ADDRNOTAVAIL,
    Status.INVALID_ADDRESS_COMPONENT: WsaError.ADDRNOTAVAIL,
    Status.INVALID_HANDLE: WsaError.NOTSOCK,
    Status.OBJECT_TYPE_MISMATCH: WsaError.NOTSOCK,
    Status.BUFFER_TOO_SMALL: WsaError.FAULT,
    Status.ACCESS_VIOLATION: WsaError.FAULT,
    Status.ACCESS_DENIED: WsaError.ACCES,
    Status.NOT_SUPPORTED: WsaError.OPNOTSUPP,
    Status.NOT_IMPLEMENTED: WsaError.OPNOTSUPP,
}

_WIN32_ERRORS = {
    Status.BUFFER_OVERFLOW: Error.MORE_DATA,
    Status.HANDLES_CLOSED: Error.OPERATION_ABORTED,
    Status.ACCESS_VIOLATION: 998,
    Status.INVALID_HANDLE: Error.INVALID_HANDLE,
    Status.INVALID_PARAMETER: Error.INVALID_PARAMETER,
    Status.END_OF_FILE: Error.HANDLE_EOF,
    Status.ACCESS_DENIED: Error.ACCESS_DENIED,
    Status.PIPE_DISCONNECTED: Error.PIPE_NOT_CONNECTED,
    Status.PIPE_CLOSING: Error.NO_DATA,
    Status.PIPE_BROKEN: Error.BROKEN_PIPE,
    Status.CANCELLED: Error.OPERATION_ABORTED,
    Status.REQUEST_ABORTED: Error.CONNECTION_ABORTED,
    Status.IO_TIMEOUT: Error.SEM_TIMEOUT,
    Status.TIMEOUT: Error.WAIT_TIMEOUT,
    Status.INSUFFICIENT_RESOURCES: Error.NO_SYSTEM_RESOURCES,
    Status.NO_MEMORY: Error.NOT_ENOUGH_MEMORY,
    Status.WORKING_SET_QUOTA: Error.WORKING_SET_QUOTA,
    Status.PAGEFILE_QUOTA: Error.PAGEFILE_QUOTA,
    Status.COMMITMENT_LIMIT: Error.COMMITMENT_LIMIT,
    Status.QUOTA_EXCEEDED: Error.NOT_ENOUGH_QUOTA,
}

# Errors that say that the system is short of memory. They say nothing about the handle, and a moment later the same
# call may succeed.
SHORTAGES = frozenset(
    {
        WsaError.NOBUFS,
        Error.NOT_ENOUGH_MEMORY,
        Error.NO_SYSTEM_RESOURCES,
        Error.WORKING_SET_QUOTA,
        Error.PAGEFILE_QUOTA,
        Error.COMMITMENT_LIMIT,
        Error.NOT_ENOUGH_QUOTA,
    }
)

# The builtin class of each code, so that `except ConnectionResetError` works on every path. CPython's own table
# knows the Winsock codes but few of their Win32 synonyms.
_CLASSES: dict[int, tuple[type[OSError], int]] = {
    Error.ACCESS_DENIED: (PermissionError, errno.EACCES),
    Error.NETNAME_DELETED: (ConnectionResetError, errno.ECONNRESET),
    Error.BROKEN_PIPE: (BrokenPipeError, errno.EPIPE),
    Error.NO_DATA: (BrokenPipeError, errno.EPIPE),
    Error.PIPE_NOT_CONNECTED: (BrokenPipeError, errno.EPIPE),
    Error.SEM_TIMEOUT: (TimeoutError, errno.ETIMEDOUT),
    Error.WAIT_TIMEOUT: (TimeoutError, errno.ETIMEDOUT),
    Error.OPERATION_ABORTED: (ConnectionAbortedError, errno.ECONNABORTED),
    Error.CONNECTION_REFUSED: (ConnectionRefusedError, errno.ECONNREFUSED),
    Error.CONNECTION_ABORTED: (ConnectionAbortedError, errno.ECONNABORTED),
    Error.PORT_UNREACHABLE: (ConnectionRefusedError, errno.ECONNREFUSED),
    WsaError.ACCES: (PermissionError, errno.EACCES),
    WsaError.CONNABORTED: (ConnectionAbortedError, errno.ECONNABORTED),
    WsaError.CONNRESET: (ConnectionResetError, errno.ECONNRESET),
    WsaError.SHUTDOWN: (BrokenPipeError, errno.ESHUTDOWN),
    WsaError.TIMEDOUT: (TimeoutError, errno.ETIMEDOUT),
    WsaError.CONNREFUSED: (ConnectionRefusedError, errno.ECONNREFUSED),
}


def status_from_winerror(code: int) -> int:
    """Turn a Win32 or Winsock code into an NTSTATUS of the NTWIN32 facility.

    If a call failed without a code, because another library reset it, the result must not read as success.
    """
    return NTSTATUS_WIN32_FACILITY | (code & 0xFFFF or Error.INVALID_PARAMETER)


def is_failure(status: int) -> bool:
    """True for warnings (0x8...) and errors (0xC...); success and informational statuses are not failures."""
    return bool(status & NTSTATUS_FAILURE_BIT)


def winerror_from_status(status: int, *, is_socket: bool) -> int:
    """The WinError for a packet's NTSTATUS; 0 for success.

    Args:
        status: NTSTATUS as unsigned 32 bits, or a result of `status_from_winerror`.
        is_socket: whether the operation ran on a socket (see the module's header).
    """
    if not is_failure(status) and status != Status.TIMEOUT:
        return 0
    if status & 0xFFFF_0000 == NTSTATUS_WIN32_FACILITY:
        return status & 0xFFFF
    if is_socket:
        return _SOCKET_ERRORS.get(status, WsaError.INVAL)  # type: ignore[call-overload, no-any-return]
    known = _WIN32_ERRORS.get(status)  # type: ignore[call-overload]
    return known if known is not None else _nt_status_to_dos_error(status)


def _nt_status_to_dos_error(status: int) -> int:
    if sys.platform != "win32":
        return int(Error.INVALID_PARAMETER)
    from .prototypes import bind

    return int(bind("RtlNtStatusToDosError")(status))


def is_shortage(error: OSError) -> bool:
    """Whether an exception says that the system is short of memory; see SHORTAGES."""
    return getattr(error, "winerror", None) in SHORTAGES


def os_error(code: int, operation: str, subject: str = "", advice: str = "") -> OSError:
    """Build the exception for one failed call; it is returned, not raised.

    Args:
        code: Win32 or Winsock code.
        operation: the call or the kind of operation that failed, by the name under which a user would look it up.
        subject: the handle it ran on, for example ``socket 312``.
        advice: what the user can do about it, one clause.

    The result is of the builtin subclass that fits the code; its `winerror` is the code on every platform.
    """
    code = int(code)  # A plain int and not an IntEnum, because users see it in reprs and pickles.
    where = f"{operation} on {subject}" if subject else operation
    message = f"{where}: {_text(code)}" + (f" ({advice})" if advice else "")
    cls, number = _CLASSES.get(code, (OSError, 0))
    if sys.platform == "win32":
        # If OSError knows the code in the fourth argument, it derives errno and the subclass from it.
        error = cls(number, message, None, code)
        if number:
            error.errno = number
        return error
    error = cls(number or errno.EIO, message)
    error.winerror = code  # type: ignore[attr-defined, unused-ignore]
    return error


def _text(code: int) -> str:
    if sys.platform == "win32":
        text = ctypes.FormatError(code).strip().rstrip(".")
        if text:
            return text
    for family in (WsaError, Error):
        if code in family._value2member_map_:
            return family(code).name.lower().replace("_", " ")
    return f"error {code}"


def status_error(status: int, operation: str, subject: str, *, is_socket: bool) -> OSError:
    """Build the exception for a failed packet. The arguments are those of `winerror_from_status` and `os_error`."""
    return os_error(winerror_from_status(status, is_socket=is_socket), operation, subject)
