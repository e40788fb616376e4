"""Reading and writing handles that were not opened for overlapped I/O, by calls that block.

For the threads of `_threaded.py`, which belong to one handle each and may block. Bytes on both sides: a console speaks
UTF-16, so what is read from it is encoded as UTF-8, and what is written to it is taken for UTF-8.

Such a file object has one lock, and a call that blocks keeps it: whoever else asks anything of it waits, in every
process that has inherited it. A child that inherits a standard input which is being read hangs when it starts
(https://github.com/python/cpython/issues/78961). So nothing is read before there is something to read:

    pipe       PeekNamedPipe says so. It is asked again after pauses that grow: from a quarter of a millisecond to 4 ms
               while the last byte is younger than a second, then to 50 ms
    console    its handle is signalled, and a key is among its events. From the first key to the end of the line the
               console reads, and has its lock
    others     a disk answers at once. What cannot be asked (a serial line, a socket as standard input; under Wine a
               pipe of Unix) is read by a call that blocks

What the kernel writes goes into memory of the object here and never into an operation's: a call that cannot be
interrupted goes on when nobody waits for it any more, and its memory must go on with it.

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

# Units of UTF-16 in one WriteConsole: its buffer was 64 KiB for all processes together before Windows 8, and longer
# texts are better interrupted in between.
CONSOLE_UNITS_MAX = 8192
_CTRL_Z, _LINE_END = "\x1a".encode("utf-16-le"), "\n".encode("utf-16-le")
_UNIT = 2  # bytes in one unit of UTF-16
_UTF8_PER_UNIT = 3  # bytes that one unit may become
_HIGH_SURROGATES = range(216, 220)  # the upper byte of U+D800 to U+DBFF


# Seconds between two questions whether there is something; see above.
PAUSE_FIRST_S, PAUSE_BUSY_S, PAUSE_IDLE_S = 0.00025, 0.004, 0.05
BUSY_FOR_S = 1.0
# Pauses from here on are ended by a cancel. Shorter ones are time.sleep(), which is exact to half a millisecond on
# Windows, where a wait for a lock is not.
_PAUSE_LONG_S = 0.016
# wincontypes.h, INPUT_RECORD: EventType, and of a key bKeyDown, wVirtualKeyCode.
_INPUT_RECORD_SIZE, _EVENT_TYPE, _KEY_DOWN, _KEY_CODE = 20, 0, 4, 10
_KEY_EVENT = 1
_ALT = 0x12  # Released, it ends a character that was typed by its number.
_EVENTS_MAX = 128


class Wanted(Protocol):
    """Whoever a blocking call is made for."""

    cancelled: bool

    def wait(self, seconds: float) -> bool:
        """Sleep, or until the call is cancelled: True then."""
        ...


class _Pauses:
    """Between two questions: growing while nothing comes."""

    def __init__(self) -> None:
        self._length = PAUSE_FIRST_S
        self._last_data = time.monotonic()

    def begin(self) -> None:
        """Something came."""
        self._length = PAUSE_FIRST_S
        self._last_data = time.monotonic()

    def wait(self, call: Wanted) -> None:
        """Sleep, until the next question or a cancel."""
        if self._length >= _PAUSE_LONG_S:
            call.wait(self._length)
        else:
            time.sleep(self._length)
        busy = time.monotonic() - self._last_data < BUSY_FOR_S
        self._length = min(self._length * 2, PAUSE_BUSY_S if busy else PAUSE_IDLE_S)


class BlockingHandle(Protocol):
    """A handle that one thread at a time reads or writes. Each method returns the WinError, 0 for success."""

    kind: Kind

    def read(self, size: int, call: Wanted) -> tuple[int, bytes]:
        """Wait for something and return at most `size` bytes of it; none of them is the end."""
        ...

    def write(self, chunk: bytes, start: int, stop: int, call: Wanted) -> int:
        """Write `chunk[start:stop]`, all of it."""
        ...


def console_mode(kernel: Kernel, handle: int) -> int | None:
    """The mode of a console's input or output; None for any other handle."""
    mode = DWORD()
    return mode.value if kernel.GetConsoleMode(handle, ctypes.addressof(mode)) else None


def kind_of(kernel: Kernel, handle: int) -> Kind:
    """CONSOLE, PIPE or FILE (also of a device). Raises OSError, with a sentence, for what is no handle."""
    if console_mode(kernel, handle) is not None:
        return Kind.CONSOLE
    file_type = kernel.GetFileType(handle)
    if file_type == FileType.UNKNOWN:
        code = kernel.last_error()
        if code:
            raise os_error(code, "GetFileType", f"handle {handle}", "the file or pipe was closed, or never open")
    return Kind.PIPE if file_type == FileType.PIPE else Kind.FILE


def open_blocking(kernel: Kernel, handle: int, kind: Kind | None = None) -> BlockingHandle:
    """What to read or write a handle with.

    Args:
        kernel: whose handle it is.
        handle: the OS handle.
        kind: what `kind_of` says of it; asked here if it is None, and raises so.
    """
    kind = kind or kind_of(kernel, handle)
    return Console(kernel, handle) if kind is Kind.CONSOLE else PlainHandle(kernel, handle, kind)


class _Memory:
    """What the kernel writes during a call."""

    def __init__(self) -> None:
        self._count = DWORD()
        self.count_address = ctypes.addressof(self._count)
        self._array: Any = None

    def room(self, size: int) -> int:
        """The address of at least `size` bytes."""
        if self._array is None or len(self._array) < size:
            self._array = (ctypes.c_char * size)()
        return ctypes.addressof(self._array)

    @property
    def count(self) -> int:
        """How much there is: bytes, or units of UTF-16."""
        return self._count.value

    def reset_count(self) -> None:
        """Before a call that may forget to write it."""
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
        self._tells = kind is Kind.PIPE  # whether there is something to read

    def read(self, size: int, call: Wanted) -> tuple[int, bytes]:
        """As in `BlockingHandle`."""
        kernel, memory = self._kernel, self._memory
        while True:
            code, available = self._wait_for_data(size, call)
            if code:
                return code, b""
            room = memory.room(size)
            if not kernel.ReadFileBlocking(self._handle, room, available, memory.count_address, 0):
                code = kernel.last_error()
                # MORE_DATA: the beginning of a message; the next read goes on with it.
                if code != Error.MORE_DATA:
                    return code, b""
            if memory.count or self.kind is not Kind.PIPE:
                return Error.SUCCESS, memory.content(memory.count)
            # Somebody wrote an empty message to the pipe (MSDN, ReadFile), which is not its end.
            # QUIRK(wine): or it is a pipe of Unix, whose end looks so; it cannot be peeked into.
            if not kernel.PeekNamedPipe(self._handle, 0, 0, 0, 0, 0):
                return Error.SUCCESS, b""

    def _wait_for_data(self, size: int, call: Wanted) -> tuple[int, int]:
        """The WinError, and how many bytes can be read now; `size` where nobody can say."""
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

    def write(self, chunk: bytes, start: int, stop: int, call: Wanted) -> int:
        """As in `BlockingHandle`."""
        kernel, memory = self._kernel, self._memory
        # SAFETY: the caller's frame keeps `chunk`, which is where the kernel reads from.
        address = address_of_bytes(chunk)
        while start < stop:
            if not kernel.WriteFileBlocking(self._handle, address + start, stop - start, memory.count_address, 0):
                return kernel.last_error()
            if not memory.count:
                # A pipe in PIPE_NOWAIT mode is full (MSDN, Named Pipe Type, Read, and Wait Modes): writing again and
                # again until it is not would keep a processor busy.
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
        # A character outside the basic plane is two units, and may be read in two halves; so may one of UTF-8 be
        # written in two.
        self._from_utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._from_utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._has_rest = False  # of a line that was longer than the last read
        self._events = (ctypes.c_char * (_EVENTS_MAX * _INPUT_RECORD_SIZE))()

    def read(self, size: int, call: Wanted) -> tuple[int, bytes]:
        """As in `BlockingHandle`; Ctrl+Z at the beginning of a line is the end."""
        kernel, memory = self._kernel, self._memory
        # One unit less: half a character may be waiting for this one.
        units = max(size // _UTF8_PER_UNIT - 1, 1)
        while True:
            if not self._has_rest and not self._wait_for_key(call):
                return Error.OPERATION_ABORTED, b""
            room = memory.room(units * _UNIT)
            # One that is cancelled may succeed and leave it as it was: https://github.com/microsoft/terminal/issues/12143
            memory.reset_count()
            ctypes.set_last_error(Error.SUCCESS)  # type: ignore[attr-defined, unused-ignore]
            succeeded = kernel.ReadConsoleW(self._handle, room, units, memory.count_address, 0)
            code = kernel.last_error()
            if not succeeded:
                return code, b""
            if not memory.count:
                if code == Error.OPERATION_ABORTED and not call.cancelled:
                    # Ctrl+C or Ctrl+Break: its handler knows, and the line begins anew.
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

    def _wait_for_key(self, call: Wanted) -> bool:
        """Until somebody types, or where nobody can say; False if the call is cancelled before.

        A read that nobody has typed for is never begun, so that cancelling it swallows no line of whoever reads next.
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
            call.wait(PAUSE_IDLE_S)  # A mouse, a change of size: they stay, and so does the signal.
        return False

    def write(self, chunk: bytes, start: int, stop: int, call: Wanted) -> int:
        """As in `BlockingHandle`."""
        kernel, memory = self._kernel, self._memory
        text = self._from_utf8.decode(chunk[start:stop]).encode("utf-16-le")
        address = address_of_bytes(text)
        done = 0
        while done < len(text):
            if call.cancelled:
                return Error.OPERATION_ABORTED
            end = min(done + CONSOLE_UNITS_MAX * _UNIT, len(text))
            if end < len(text) and text[end - 1] in _HIGH_SURROGATES:
                end -= _UNIT  # Both halves of a character in one call, or neither is shown.
            if not kernel.WriteConsoleW(self._handle, address + done, (end - done) // _UNIT, memory.count_address, 0):
                return kernel.last_error()
            if not memory.count:
                return Error.OPERATION_ABORTED  # It took nothing and says nothing; once more would be for ever.
            done += memory.count * _UNIT
        return Error.SUCCESS


def _has_key(events: Any, count: int) -> bool:
    """Whether one of these INPUT_RECORDs lets a console have something to read."""
    for start in range(0, count * _INPUT_RECORD_SIZE, _INPUT_RECORD_SIZE):
        record = events[start : start + _INPUT_RECORD_SIZE]
        if record[_EVENT_TYPE] == _KEY_EVENT and (record[_KEY_DOWN] or record[_KEY_CODE] == _ALT):
            return True
    return len(events) <= count * _INPUT_RECORD_SIZE  # More than were looked at.
