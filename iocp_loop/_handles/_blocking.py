"""Reading and writing handles that were not opened for overlapped I/O, by calls that block.

The threads of `_threaded.py` make these calls; each thread belongs to one handle and may block. Both directions carry
bytes. A console uses UTF-16: its input is encoded to UTF-8, and its output is decoded from UTF-8.

The kernel's file object behind such a handle has one lock, and a call that blocks keeps it. Any other call on the same
file object then waits, in every process that inherited it. A child that inherits a standard input which is being read
hangs when it starts (https://github.com/python/cpython/issues/78961). So we read only when there is something to read:

    pipe       PeekNamedPipe tells. We repeat it after pauses that grow: from a quarter of a millisecond to 4 ms while
               the last byte is younger than a second, then to 50 ms
    console    its handle is signalled, and a key is among its events. From the first key to the end of the line a read
               is under way and has the lock
    others     a disk answers at once. Others cannot tell (a serial line, a socket as standard input; under Wine a Unix
               pipe), so a blocking call reads them

The kernel writes into memory of the classes here, never into an operation's: a call that cannot be interrupted goes on
when nobody waits for it any more, and its memory must last as long as the call.

Sources: MSDN, ReadFile, WriteFile, ReadConsole, WriteConsole, PeekNamedPipe, PeekConsoleInput. libuv asks pipes in this
way too (https://github.com/libuv/libuv/pull/4511).
"""

import codecs
import ctypes
import time
from typing import Any, Protocol

from .._core._endpoint import Kind
from .._win32.constants import ConsoleMode, Error, FileType, WaitResult
from .._win32.errors import os_error
from .._win32.kernel import Kernel
from .._win32.memory import address_of_bytes
from .._win32.types import DWORD

# The most UTF-16 units in one WriteConsole. Before Windows 8 its buffer was 64 KiB for all processes together; and
# between two calls a longer text can be cancelled.
CONSOLE_UNITS_MAX = 8192
_CTRL_Z, _LINE_END = "\x1a".encode("utf-16-le"), "\n".encode("utf-16-le")
_UNIT = 2  # bytes in one unit of UTF-16
_UTF8_PER_UNIT = 3  # the most bytes that one unit becomes
_HIGH_SURROGATES = range(216, 220)  # the upper byte of U+D800 to U+DBFF


# Pauses between two calls of PeekNamedPipe; see above.
PAUSE_FIRST_S, PAUSE_BUSY_S, PAUSE_IDLE_S = 0.00025, 0.004, 0.05
BUSY_FOR_S = 1.0
# A cancel can end a pause of this length or more. Shorter ones use time.sleep(), which is exact to half a millisecond
# on Windows; waiting for a lock is not.
_PAUSE_LONG_S = 0.016
# wincontypes.h, INPUT_RECORD: EventType, and of a key bKeyDown, wVirtualKeyCode.
_INPUT_RECORD_SIZE, _EVENT_TYPE, _KEY_DOWN, _KEY_CODE = 20, 0, 4, 10
_KEY_EVENT = 1
_ALT = 0x12  # Releasing it completes a character that was typed by its number.
_EVENTS_MAX = 128


class Cancellable(Protocol):
    """The operation on whose behalf a blocking call is made."""

    cancelled: bool

    def wait(self, seconds: float) -> bool:
        """Sleep, at most until the call is cancelled. True if it was."""
        ...


class _Pauses:
    """The pauses between two calls of PeekNamedPipe: they grow while nothing comes."""

    def __init__(self) -> None:
        self._length = PAUSE_FIRST_S
        self._last_data = time.monotonic()

    def begin(self) -> None:
        """Begin again with the shortest: something came."""
        self._length = PAUSE_FIRST_S
        self._last_data = time.monotonic()

    def wait(self, call: Cancellable) -> None:
        """Sleep for one pause; a cancel ends a long one."""
        if self._length >= _PAUSE_LONG_S:
            call.wait(self._length)
        else:
            time.sleep(self._length)
        busy = time.monotonic() - self._last_data < BUSY_FOR_S
        self._length = min(self._length * 2, PAUSE_BUSY_S if busy else PAUSE_IDLE_S)


class BlockingHandle(Protocol):
    """A handle that one thread at a time reads or writes. Each method returns the WinError, 0 for success."""

    kind: Kind

    def read(self, size: int, call: Cancellable) -> tuple[int, bytes]:
        """Wait for data and return at most `size` bytes; no bytes mean the end."""
        ...

    def write(self, chunk: bytes, start: int, stop: int, call: Cancellable) -> int:
        """Write `chunk[start:stop]`, all of it."""
        ...


def console_mode(kernel: Kernel, handle: int) -> int | None:
    """The mode of a console's input or output; None for any other handle."""
    mode = DWORD()
    return mode.value if kernel.GetConsoleMode(handle, ctypes.addressof(mode)) else None


def kind_of(kernel: Kernel, handle: int) -> Kind:
    """CONSOLE, PIPE or FILE (also for a device). Raises OSError with an explanation if it is not a handle."""
    if console_mode(kernel, handle) is not None:
        return Kind.CONSOLE
    file_type = kernel.GetFileType(handle)
    if file_type == FileType.UNKNOWN:
        code = kernel.last_error()
        if code:
            raise os_error(code, "GetFileType", f"handle {handle}", "the file or pipe was closed, or never open")
    return Kind.PIPE if file_type == FileType.PIPE else Kind.FILE


def open_blocking(kernel: Kernel, handle: int, kind: Kind | None = None) -> BlockingHandle:
    """Make the object that reads or writes a handle.

    Args:
        kernel: the kernel that the handle belongs to.
        handle: the handle.
        kind: the result of `kind_of`, which is called here if this is None and may then raise OSError.
    """
    kind = kind or kind_of(kernel, handle)
    return Console(kernel, handle) if kind is Kind.CONSOLE else PlainHandle(kernel, handle, kind)


class _Memory:
    """The memory that the kernel writes during a call."""

    def __init__(self) -> None:
        self._count = DWORD()
        self.count_address = ctypes.addressof(self._count)
        self._array: Any = None

    def room(self, size: int) -> int:
        """Make room for `size` bytes, and return its address."""
        if self._array is None or len(self._array) < size:
            self._array = (ctypes.c_char * size)()
        return ctypes.addressof(self._array)

    @property
    def count(self) -> int:
        """The count that the last call wrote: bytes, or UTF-16 units."""
        return self._count.value

    def reset_count(self) -> None:
        """Set it to 0, before a call that may leave it unwritten."""
        self._count.value = 0

    def content(self, size: int) -> bytes:
        """The first `size` bytes."""
        content: bytes = self._array[:size]
        return content


class PlainHandle:
    """A pipe, a file, or a device such as NUL."""

    def __init__(self, kernel: Kernel, handle: int, kind: Kind) -> None:
        self.kind = kind
        self._kernel = kernel
        self._handle = handle
        self._memory = _Memory()
        self._pauses = _Pauses()
        self._tells = kind is Kind.PIPE  # whether PeekNamedPipe can tell how much there is to read

    def read(self, size: int, call: Cancellable) -> tuple[int, bytes]:
        kernel, memory = self._kernel, self._memory
        while True:
            code, available = self._wait_for_data(size, call)
            if code:
                return code, b""
            room = memory.room(size)
            if not kernel.ReadFileBlocking(self._handle, room, available, memory.count_address, 0):
                code = kernel.last_error()
                # MORE_DATA: this is the beginning of a message; the next read continues it.
                if code != Error.MORE_DATA:
                    return code, b""
            if memory.count or self.kind is not Kind.PIPE:
                return Error.SUCCESS, memory.content(memory.count)
            # Somebody wrote an empty message to the pipe (MSDN, ReadFile), which is not its end.
            # QUIRK(wine): or it is the end of a Unix pipe, on which PeekNamedPipe fails.
            if not kernel.PeekNamedPipe(self._handle, 0, 0, 0, 0, 0):
                return Error.SUCCESS, b""

    def _wait_for_data(self, size: int, call: Cancellable) -> tuple[int, int]:
        """Return the WinError, and how many bytes can be read without waiting; `size` if that is not known."""
        kernel, memory = self._kernel, self._memory
        while self._tells:
            if not kernel.PeekNamedPipe(self._handle, 0, 0, 0, memory.count_address, 0):
                code = kernel.last_error()
                if code in (Error.BROKEN_PIPE, Error.PIPE_NOT_CONNECTED, Error.OPERATION_ABORTED):
                    return code, 0
                self._tells = False
            elif memory.count:
                self._pauses.begin()
                return Error.SUCCESS, min(memory.count, size)
            elif call.cancelled:
                return Error.OPERATION_ABORTED, 0
            else:
                self._pauses.wait(call)
        return Error.SUCCESS, size

    def write(self, chunk: bytes, start: int, stop: int, call: Cancellable) -> int:
        kernel, memory = self._kernel, self._memory
        # SAFETY: the kernel reads from `chunk`, which the caller's frame keeps alive.
        address = address_of_bytes(chunk)
        while start < stop:
            if not kernel.WriteFileBlocking(self._handle, address + start, stop - start, memory.count_address, 0):
                return kernel.last_error()
            if not memory.count:
                # A pipe in PIPE_NOWAIT mode is full (MSDN, Named Pipe Type, Read, and Wait Modes). Trying until it has
                # room would keep a processor busy.
                return Error.PIPE_BUSY
            start += memory.count
        return Error.SUCCESS


class Console:
    """The input or the output of a console."""

    kind = Kind.CONSOLE

    def __init__(self, kernel: Kernel, handle: int) -> None:
        self._kernel = kernel
        self._handle = handle
        self._memory = _Memory()
        # One read may end between the two units of a character outside the basic plane, and one write between two
        # bytes of a UTF-8 character.
        self._from_utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._from_utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._has_rest = False  # the last read returned only the first part of a line
        self._events = (ctypes.c_char * (_EVENTS_MAX * _INPUT_RECORD_SIZE))()

    def read(self, size: int, call: Cancellable) -> tuple[int, bytes]:
        """Read as `BlockingHandle` demands. Ctrl+Z at the beginning of a line is the end."""
        kernel, memory = self._kernel, self._memory
        # One unit less, because the decoder may still hold half a character.
        units = max(size // _UTF8_PER_UNIT - 1, 1)
        while True:
            if not self._has_rest and not self._wait_for_key(call):
                return Error.OPERATION_ABORTED, b""
            room = memory.room(units * _UNIT)
            # A cancelled read may succeed and leave the count unwritten:
            # https://github.com/microsoft/terminal/issues/12143
            memory.reset_count()
            ctypes.set_last_error(Error.SUCCESS)  # type: ignore[attr-defined, unused-ignore]
            succeeded = kernel.ReadConsoleW(self._handle, room, units, memory.count_address, 0)
            code = kernel.last_error()
            if not succeeded:
                return code, b""
            if not memory.count:
                if code == Error.OPERATION_ABORTED and not call.cancelled:
                    # Ctrl+C or Ctrl+Break: a signal handler sees to it, and the user begins the line again.
                    continue
                return code, b""
            text = memory.content(memory.count * _UNIT)
            by_line = (console_mode(kernel, self._handle) or 0) & ConsoleMode.LINE_INPUT
            self._has_rest = bool(by_line) and memory.count == units and not text.endswith(_LINE_END)
            if text.startswith(_CTRL_Z) and by_line:
                return Error.SUCCESS, b""
            encoded = self._from_utf16.decode(text).encode()
            if encoded:
                return Error.SUCCESS, encoded

    def _wait_for_key(self, call: Cancellable) -> bool:
        """Wait until somebody types. False if the call is cancelled first; True also if this handle cannot tell.

        A read never begins before that: cancelling it could swallow a line that belongs to the next reader.
        """
        kernel, milliseconds = self._kernel, int(PAUSE_IDLE_S * 1000)
        while not call.cancelled:
            answer = kernel.WaitForSingleObject(self._handle, milliseconds)
            if answer == WaitResult.TIMEOUT:
                continue
            if answer != WaitResult.OBJECT_0:
                return True
            events, memory = self._events, self._memory
            if not kernel.PeekConsoleInputW(self._handle, ctypes.addressof(events), _EVENTS_MAX, memory.count_address):
                return True
            if _has_key(events, memory.count):
                return True
            call.wait(PAUSE_IDLE_S)  # Mouse and resize events stay in the queue, and keep the handle signalled.
        return False

    def write(self, chunk: bytes, start: int, stop: int, call: Cancellable) -> int:
        kernel, memory = self._kernel, self._memory
        text = self._from_utf8.decode(chunk[start:stop]).encode("utf-16-le")
        address = address_of_bytes(text)
        done = 0
        while done < len(text):
            if call.cancelled:
                return Error.OPERATION_ABORTED
            end = min(done + CONSOLE_UNITS_MAX * _UNIT, len(text))
            if end < len(text) and text[end - 1] in _HIGH_SURROGATES:
                end -= _UNIT  # The console shows a character only if both halves are in one call.
            if not kernel.WriteConsoleW(self._handle, address + done, (end - done) // _UNIT, memory.count_address, 0):
                return kernel.last_error()
            if not memory.count:
                return Error.OPERATION_ABORTED  # It wrote nothing and reports no error: repeating it may never end.
            done += memory.count * _UNIT
        return Error.SUCCESS


def _has_key(events: Any, count: int) -> bool:
    """Whether one of these INPUT_RECORDs gives the console something to read."""
    for start in range(0, count * _INPUT_RECORD_SIZE, _INPUT_RECORD_SIZE):
        record = events[start : start + _INPUT_RECORD_SIZE]
        if record[_EVENT_TYPE] == _KEY_EVENT and (record[_KEY_DOWN] or record[_KEY_CODE] == _ALT):
            return True
    return len(events) <= count * _INPUT_RECORD_SIZE  # The array is full: there may be more events, and a key.
