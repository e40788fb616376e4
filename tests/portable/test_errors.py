"""NTSTATUS -> WinError -> OSError: the whole table, for sockets and for everything else."""

import errno
import sys

import pytest

from iocp_loop._win32 import errors
from iocp_loop._win32.constants import Error, Status, WsaError
from iocp_loop._win32.errors import os_error, status_error, status_from_winerror, winerror_from_status

# The table of libuv 1.52, src/win/winsock.c, uv__ntstatus_to_winsock_error: status names, code, exception class.
SOCKET_TABLE = [
    ("REMOTE_DISCONNECT CONNECTION_RESET LINK_FAILED CONNECTION_DISCONNECTED", 10054, ConnectionResetError),
    ("LOCAL_DISCONNECT TRANSACTION_ABORTED CONNECTION_ABORTED", 10053, ConnectionAbortedError),
    ("REMOTE_NOT_LISTENING CONNECTION_REFUSED", 10061, ConnectionRefusedError),
    ("LINK_TIMEOUT IO_TIMEOUT TIMEOUT", 10060, TimeoutError),
    ("BAD_NETWORK_PATH NETWORK_UNREACHABLE PROTOCOL_UNREACHABLE", 10051, OSError),
    ("HOST_UNREACHABLE", 10065, OSError),
    ("HOST_DOWN", 10064, OSError),
    ("CONNECTION_ACTIVE", 10056, OSError),
    ("GRACEFUL_DISCONNECT", 10101, OSError),
    ("BUFFER_OVERFLOW INVALID_BUFFER_SIZE", 10040, OSError),
    ("INVALID_CONNECTION", 10057, OSError),
    ("PIPE_DISCONNECTED", 10058, BrokenPipeError),
    ("INSUFFICIENT_RESOURCES PAGEFILE_QUOTA COMMITMENT_LIMIT WORKING_SET_QUOTA NO_MEMORY", 10055, OSError),
    ("QUOTA_EXCEEDED REMOTE_RESOURCES", 10055, OSError),
    ("TOO_MANY_ADDRESSES SHARING_VIOLATION ADDRESS_ALREADY_EXISTS", 10048, OSError),
    ("CONFLICTING_ADDRESSES INVALID_ADDRESS INVALID_ADDRESS_COMPONENT", 10049, OSError),
    ("INVALID_HANDLE OBJECT_TYPE_MISMATCH", 10038, OSError),
    ("BUFFER_TOO_SMALL ACCESS_VIOLATION", 10014, OSError),
    ("ACCESS_DENIED", 10013, PermissionError),
    ("NOT_SUPPORTED NOT_IMPLEMENTED", 10045, OSError),
    # Where we differ from libuv, and why.
    ("PORT_UNREACHABLE", 10061, ConnectionRefusedError),  # asio and the selector loop say refused; libuv says reset.
    ("HOPLIMIT_EXCEEDED", 10052, OSError),  # MSDN, WSARecvFrom: WSAENETRESET, time to live expired; libuv says reset.
    ("CANCELLED REQUEST_ABORTED", 995, ConnectionAbortedError),  # libuv says WSAEINTR, which no Windows call gives.
    ("HANDLES_CLOSED", 995, ConnectionAbortedError),  # Wine, of a receive whose socket was closed under it.
]
SOCKET_CASES = [(name, code, cls) for names, code, cls in SOCKET_TABLE for name in names.split()]

# What RtlNtStatusToDosError answers on Windows, for what pipes, files and waits give.
WIN32_CASES = [
    ("BUFFER_OVERFLOW", 234, OSError),
    ("HANDLES_CLOSED", 995, ConnectionAbortedError),
    ("ACCESS_VIOLATION", 998, OSError),
    ("INVALID_HANDLE", 6, OSError),
    ("INVALID_PARAMETER", 87, OSError),
    ("END_OF_FILE", 38, OSError),
    ("ACCESS_DENIED", 5, PermissionError),
    ("PIPE_DISCONNECTED", 233, BrokenPipeError),
    ("PIPE_CLOSING", 232, BrokenPipeError),
    ("PIPE_BROKEN", 109, BrokenPipeError),
    ("CANCELLED", 995, ConnectionAbortedError),
    ("REQUEST_ABORTED", 1236, ConnectionAbortedError),
    ("IO_TIMEOUT", 121, TimeoutError),
    ("TIMEOUT", 258, TimeoutError),
    ("INSUFFICIENT_RESOURCES", 1450, OSError),
    ("NO_MEMORY", 8, OSError),
    ("WORKING_SET_QUOTA", 1453, OSError),
    ("PAGEFILE_QUOTA", 1454, OSError),
    ("COMMITMENT_LIMIT", 1455, OSError),
    ("QUOTA_EXCEEDED", 1816, OSError),
]


@pytest.mark.parametrize(("name", "code", "cls"), SOCKET_CASES)
def test_a_sockets_status_becomes_the_code_a_failing_call_gives(name, code, cls):
    assert winerror_from_status(Status[name], is_socket=True) == code
    error = status_error(Status[name], "READ", "socket 7", is_socket=True)
    assert type(error) is cls
    assert error.winerror == code


@pytest.mark.parametrize(("name", "code", "cls"), WIN32_CASES)
def test_a_pipes_or_files_status_becomes_its_win32_code(name, code, cls):
    assert winerror_from_status(Status[name], is_socket=False) == code
    error = status_error(Status[name], "READ", "pipe 7", is_socket=False)
    assert type(error) is cls
    assert error.winerror == code


def test_every_failure_we_know_by_name_is_in_the_cases_above():
    """A status added to the package comes with its row here."""
    tested = {name for name, _, _ in (*SOCKET_CASES, *WIN32_CASES)}
    assert {status.name for status in Status if status not in (Status.SUCCESS, Status.PENDING)} <= tested
    assert {status.name for status in errors._SOCKET_ERRORS} == {name for name, _, _ in SOCKET_CASES}
    assert {status.name for status in errors._WIN32_ERRORS} == {name for name, _, _ in WIN32_CASES}


@pytest.mark.parametrize("status", [0, 0x103, 0x40000000, 0x7FFF_FFFF])
@pytest.mark.parametrize("is_socket", [True, False])
def test_success_and_information_are_no_errors(status, is_socket):
    assert winerror_from_status(status, is_socket=is_socket) == 0


def test_an_unknown_status_of_a_socket_is_an_invalid_argument():
    """As libuv has it: better a wrong code than a success."""
    assert winerror_from_status(0xC000_9999, is_socket=True) == WsaError.INVAL


@pytest.mark.skipif(sys.platform == "win32", reason="asks RtlNtStatusToDosError there")
def test_an_unknown_status_of_a_pipe_is_an_error_too():
    assert winerror_from_status(0xC000_9999, is_socket=False) == Error.INVALID_PARAMETER


@pytest.mark.parametrize("code", sorted({*Error, *WsaError} - {0}))
@pytest.mark.parametrize("is_socket", [True, False])
def test_a_code_dressed_as_a_status_comes_back(code, is_socket):
    """Facility NTWIN32: how an operation that failed at once travels the way of the others."""
    status = status_from_winerror(code)
    assert errors.is_failure(status)
    assert winerror_from_status(status, is_socket=is_socket) == code


def test_a_failure_without_a_code_is_a_failure_all_the_same():
    """Another library reset the last error before we read it."""
    status = status_from_winerror(0)
    assert errors.is_failure(status)
    assert winerror_from_status(status, is_socket=True) == Error.INVALID_PARAMETER


# Codes that come from calls, not from packets; the second column is what except clauses look for.
CODES = [
    (5, PermissionError, errno.EACCES),
    (64, ConnectionResetError, errno.ECONNRESET),
    (109, BrokenPipeError, errno.EPIPE),
    (121, TimeoutError, errno.ETIMEDOUT),
    (232, BrokenPipeError, errno.EPIPE),
    (233, BrokenPipeError, errno.EPIPE),
    (258, TimeoutError, errno.ETIMEDOUT),
    (995, ConnectionAbortedError, errno.ECONNABORTED),
    (1225, ConnectionRefusedError, errno.ECONNREFUSED),
    (1234, ConnectionRefusedError, errno.ECONNREFUSED),
    (1236, ConnectionAbortedError, errno.ECONNABORTED),
    (10013, PermissionError, errno.EACCES),
    (10053, ConnectionAbortedError, errno.ECONNABORTED),
    (10054, ConnectionResetError, errno.ECONNRESET),
    (10058, BrokenPipeError, errno.ESHUTDOWN),
    (10060, TimeoutError, errno.ETIMEDOUT),
    (10061, ConnectionRefusedError, errno.ECONNREFUSED),
]


@pytest.mark.parametrize(("code", "cls", "number"), CODES)
def test_the_class_and_the_errno_fit_the_code(code, cls, number):
    error = os_error(code, "CONNECT", "socket 7")
    assert type(error) is cls
    assert (error.winerror, error.errno) == (code, number)


def test_every_class_of_the_table_is_in_the_cases_above():
    assert {(int(code), *entry) for code, entry in errors._CLASSES.items()} == set(CODES)


def test_the_message_says_which_handle_which_call_which_code_and_what_to_do():
    error = os_error(Error.INVALID_PARAMETER, "CreateIoCompletionPort", "handle 312", "open a new handle")
    text = str(error)
    for part in ("CreateIoCompletionPort", "handle 312", "open a new handle"):
        assert part in text
    assert error.winerror == 87
    assert isinstance(error, OSError)


def test_a_code_without_a_name_is_told_by_its_number():
    error = os_error(59999, "READ")
    assert error.winerror == 59999
    assert "59999" in str(error)
