"""Pipes that are associated with our port, the handle behind a pipe object, and the calls that name a pipe.

A pipe must have been opened with FILE_FLAG_OVERLAPPED; anonymous pipes and most inherited standard streams were not.
"""

import ctypes
import inspect
import io
import sys
from collections.abc import Sequence
from typing import Any

from .._core._endpoint import Kind
from .._core._operation import Deliver, FileReadOperation, FileWriteOperation, IoType, OverlappedEx, PlainOperation
from .._core._proactor import Proactor
from .._win32.constants import INVALID_HANDLE_VALUE, LENGTH_MAX, Error, FileFlag, FileMode, PipeMode
from .._win32.errors import os_error
from .._win32.kernel import Kernel
from .._win32.memory import address_of, address_of_bytes
from .._win32.prototypes import argument
from .._win32.types import DWORD, HANDLE, IO_STATUS_BLOCK, POINTER_TO
from ._base import Outcome, StreamHandle, winerror_of
from ._blocking import console_mode

_NULL = argument(POINTER_TO, 0)
_FILE_ACCESS_INFORMATION = 8  # wdm.h, FILE_INFORMATION_CLASS
_FILE_MODE_INFORMATION = 16
_FILE_READ_DATA = 1  # winnt.h
PIPE_BUFFER_SIZE = 64 * 1024
_HANDLE_STEP = 4  # The system leaves the two low bits of a handle unused (winnt.h; MSDN, Kernel objects).
# The classes whose fileno() is a handle, by module and name.
_WITH_HANDLES = (("asyncio.windows_utils", "PipeHandle"), ("multiprocessing.connection", "PipeConnection"))
# The errors of a read after the other end was closed.
END_OF_PIPE = (Error.BROKEN_PIPE, Error.PIPE_NOT_CONNECTED, Error.HANDLE_EOF)


def handle_of(pipe: Any) -> int:
    """The handle of an object whose fileno() is either that handle or a descriptor of the C runtime.

    The object's type decides which: the pipes of asyncio and multiprocessing have handles; Python's files have
    descriptors, and so have wrappers of a file (codecs, tempfile, colorama). For any other object the number itself
    must decide, beyond doubt, because read the wrong way it may name an unrelated file. A handle is a multiple of 4,
    and a number that is not an open descriptor must be a handle.

    Raises:
        ValueError: `pipe` is None, as the standard streams are in a program without a console; or it is closed.
        TypeError: the object is of an unknown type, and its number could be either.
        OSError: the file object has no handle.
    """
    if pipe is None:
        raise ValueError("None is no pipe: this program was started without standard streams")
    number: int = pipe.fileno()
    if _has_handle(pipe):
        return number
    is_file = isinstance(pipe, io.IOBase) or isinstance(
        getattr(inspect.unwrap(pipe.fileno), "__self__", None), io.IOBase
    )
    from msvcrt import get_osfhandle

    try:
        handle = get_osfhandle(number)
    except (OSError, OverflowError):
        if is_file:
            raise
        return number
    if not is_file and number % _HANDLE_STEP == 0:
        raise TypeError(f"{pipe!r}: its fileno() {number} may be a handle or a descriptor; give the file behind it")
    if handle < 0:
        # The C runtime marks a standard stream that was never connected so (MSDN, _get_osfhandle).
        raise os_error(Error.INVALID_HANDLE, "_get_osfhandle", f"descriptor {number}", "it is connected to nothing")
    return handle


def handle_if_shared(pipe: Any) -> int | None:
    """The handle behind a file object, which others may read too; None for a pipe that asyncio made for itself."""
    if _has_handle(pipe):
        return None
    try:
        return handle_of(pipe)
    except (AttributeError, OSError, ValueError, TypeError):
        return None  # The first use of it will raise the same.


def _has_handle(pipe: Any) -> bool:
    # Looked up, not imported: a module that nobody has imported has no instances.
    modules = sys.modules
    kinds = [getattr(modules[name], kind, ()) for name, kind in _WITH_HANDLES if name in modules]
    return isinstance(pipe, tuple(kinds))


def is_overlapped(kernel: Kernel, handle: int) -> bool:
    """Whether the handle was opened for overlapped I/O (FileModeInformation has neither SYNCHRONOUS bit)."""
    if console_mode(kernel, handle) is not None:
        return False  # QUIRK(wine): the query below fails for a console (Wine 8), or returns 0 (Wine 10).
    mode, iosb = DWORD(), IO_STATUS_BLOCK()
    where = (ctypes.addressof(iosb), ctypes.addressof(mode), ctypes.sizeof(mode))
    if kernel.NtQueryInformationFile(handle, *where, _FILE_MODE_INFORMATION):
        return True  # It is not a file: associating it will say what is wrong.
    return not mode.value & (FileMode.SYNCHRONOUS_IO_ALERT | FileMode.SYNCHRONOUS_IO_NONALERT)


def is_readable(kernel: Kernel, handle: int) -> bool:
    """Whether the handle was opened with read access (FileAccessInformation has FILE_READ_DATA)."""
    access, iosb = DWORD(), IO_STATUS_BLOCK()
    where = (ctypes.addressof(iosb), ctypes.addressof(access), ctypes.sizeof(access))
    if kernel.NtQueryInformationFile(handle, *where, _FILE_ACCESS_INFORMATION):
        return False
    return bool(access.value & _FILE_READ_DATA)


class OverlappedPipe(StreamHandle):
    """One end of a pipe; also a device or a file that was opened for overlapped I/O."""

    __slots__ = ()

    sends_at_once = half_closes = tells_without_memory = False

    def __init__(self, handle: int, owner: Any = None) -> None:
        super().__init__(handle, owner, Kind.PIPE)

    def receive_buffer(self, size: int) -> Any:
        """A buffer that is itself the received message once it is full: see `Arena.message_buffer`."""
        return self.proactor.arena.message_buffer(size)

    def receive_operation(self, deliver: Deliver, buffer: Any) -> FileReadOperation:
        """A ReadFile."""
        operation = self.proactor.arena.operation(FileReadOperation, IoType.READ)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.ReadFile
        self.set_receive_buffer(operation, buffer)
        return operation

    def set_receive_buffer(self, operation: FileReadOperation, buffer: Any) -> None:
        args = (
            argument(HANDLE, self.handle),
            argument(POINTER_TO, address_of(buffer)),
            argument(DWORD, min(len(buffer), LENGTH_MAX)),
            _NULL,
            argument(POINTER_TO, operation.address),
        )
        # SAFETY: the kernel writes at the address, and `operation.buffer` keeps it alive. One statement without a call,
        # so that no interrupt can set one and not the other.
        operation.buffer, operation.args = buffer, args

    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """A receive of no bytes is an empty message. At the end, when the writer's end is gone, a receive fails."""
        code = winerror_of(operation, status)
        if code in (Error.SUCCESS, Error.MORE_DATA):
            return Outcome.DATA
        return Outcome.END if code in END_OF_PIPE else Outcome.FAILED

    def send_operation(self, deliver: Deliver) -> FileWriteOperation:
        """A WriteFile."""
        operation = self.proactor.arena.operation(FileWriteOperation, IoType.WRITE)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.WriteFile
        return operation

    def set_send_vector(
        self, operation: FileWriteOperation, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX
    ) -> None:
        """Sends the first chunk only: WriteFile cannot gather, and in message mode each write is one message."""
        data = chunks[0]
        args = (
            argument(HANDLE, self.handle),
            argument(POINTER_TO, address_of_bytes(data) + skip),
            argument(DWORD, min(len(data) - skip, limit)),
            _NULL,
            argument(POINTER_TO, operation.address),
        )
        operation.buffer, operation.args = data, args  # One statement, for the reason given in `set_receive_buffer`.

    def connect_operation(self, deliver: Deliver) -> PlainOperation:
        """Make a wait for a client: it completes when one has opened this instance.

        Args:
            deliver: as for `receive_operation`. If a client was there first, `winerror_of` its status is 535
                (ERROR_PIPE_CONNECTED), which means success.

        Source: MSDN, ConnectNamedPipe.
        """
        operation = self.proactor.arena.operation(PlainOperation, IoType.PIPE_CONNECT)
        operation.endpoint = self
        operation.deliver = deliver
        operation.start = self.proactor.kernel.ConnectNamedPipe
        operation.args = (argument(HANDLE, self.handle), argument(POINTER_TO, operation.address))
        return operation


def open_overlapped(proactor: Proactor, handle: int, owner: Any = None) -> OverlappedPipe:
    """Associate a pipe's handle with the proactor's port.

    Raises:
        OSError: with `winerror` 87 and an explanation, if the handle was not opened with FILE_FLAG_OVERLAPPED.
    """
    if not is_overlapped(proactor.kernel, handle):
        raise os_error(
            Error.INVALID_PARAMETER,
            "CreateIoCompletionPort",
            f"pipe {handle}",
            "the pipe or file was not opened with FILE_FLAG_OVERLAPPED",
        )
    # In message mode a read may end with a warning, which excludes skip mode (see `OverlappedEx.warned`).
    skip = not reads_messages(proactor.kernel, handle)
    return proactor.register(OverlappedPipe(handle, owner), skip_port=skip)


def reads_messages(kernel: Kernel, handle: int) -> bool:
    """Whether reads of the pipe keep message boundaries."""
    state = DWORD()
    known = kernel.GetNamedPipeHandleStateW(handle, ctypes.addressof(state), 0, 0, 0, 0, 0)
    return bool(known and state.value & PipeMode.READMODE_MESSAGE)


def create_instance(kernel: Kernel, name: str, *, first: bool, message_mode: bool = False, remote: bool = False) -> int:
    r"""Make a server instance of a named pipe. Returns its handle, ready to be registered.

    Args:
        name: ``\\.\pipe\...``
        kernel: makes the call.
        first: fail with WinError 5 if the name exists (FILE_FLAG_FIRST_PIPE_INSTANCE).
        message_mode: keep the boundaries between writes.
        remote: accept clients from other machines too.
    """
    mode = PipeMode.TYPE_MESSAGE | PipeMode.READMODE_MESSAGE if message_mode else PipeMode.TYPE_BYTE
    if not remote:
        mode |= PipeMode.REJECT_REMOTE_CLIENTS
    handle = kernel.CreateNamedPipeW(
        name,
        FileFlag.PIPE_ACCESS_DUPLEX | FileFlag.FLAG_OVERLAPPED | (FileFlag.FLAG_FIRST_PIPE_INSTANCE if first else 0),
        mode,
        PipeMode.UNLIMITED_INSTANCES,
        PIPE_BUFFER_SIZE,
        PIPE_BUFFER_SIZE,
        0,
        0,
    )
    if handle == INVALID_HANDLE_VALUE:
        raise _named(kernel.last_error(), "CreateNamedPipe", name)
    return handle


def open_client(kernel: Kernel, name: str) -> int:
    """Open a named pipe as a client. Returns its handle.

    Raises FileNotFoundError, or OSError with `winerror` 231 while every instance is busy.
    """
    access = FileFlag.GENERIC_READ | FileFlag.GENERIC_WRITE
    handle = kernel.CreateFileW(name, access, 0, 0, FileFlag.OPEN_EXISTING, FileFlag.FLAG_OVERLAPPED, 0)
    if handle == INVALID_HANDLE_VALUE:
        raise _named(kernel.last_error(), "CreateFile", name)
    return handle


def set_message_mode(kernel: Kernel, handle: int, name: str) -> None:
    """Let a client's end read message by message; the server must have made the pipe in message mode."""
    mode = DWORD(PipeMode.READMODE_MESSAGE)
    if not kernel.SetNamedPipeHandleState(handle, ctypes.addressof(mode), 0, 0):
        raise _named(kernel.last_error(), "SetNamedPipeHandleState", name)


def wait_for_instance(kernel: Kernel, name: str, timeout_ms: int) -> bool:
    """Block until an instance of the pipe is free or the time is up. For a worker thread, never for the loop's."""
    return bool(kernel.WaitNamedPipeW(name, timeout_ms))


def _named(code: int, call: str, name: str) -> OSError:
    if code == Error.FILE_NOT_FOUND:
        return FileNotFoundError(2, f"{call}: there is no pipe of this name", name, code)
    return os_error(code, call, f"pipe {name}")
