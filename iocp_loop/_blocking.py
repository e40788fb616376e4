"""Reading and writing handles that were not opened for overlapped I/O, by calls that block.

For the threads of `_threaded.py`, which belong to one handle each and may block. Bytes on both sides: a console speaks
UTF-16, so what is read from it is encoded as UTF-8, and what is written to it is taken for UTF-8.

What the kernel writes goes into memory of the object here and never into an operation's: a call that cannot be
interrupted goes on when nobody waits for it any more, and its memory must go on with it.

Sources: MSDN, ReadFile, WriteFile, ReadConsole, WriteConsole, PeekNamedPipe.
"""

import codecs
import ctypes
from typing import Any, Protocol

from ._win32.constants import ConsoleMode, Error, FileType
from ._win32.errors import os_error
from ._win32.kernel import Kernel
from ._win32.memory import address_of_bytes
from ._win32.types import DWORD

# Units of UTF-16 in one WriteConsole: its buffer was 64 KiB for all processes together before Windows 8, and longer
# texts are better interrupted in between.
CONSOLE_UNITS_MAX = 8192
_CTRL_Z = "\x1a".encode("utf-16-le")
_UNIT = 2  # bytes in one unit of UTF-16
_UTF8_PER_UNIT = 3  # bytes that one unit may become
_HIGH_SURROGATES = range(216, 220)  # the upper byte of U+D800 to U+DBFF


class Wanted(Protocol):
    """Whoever a blocking call is made for."""

    cancelled: bool


class BlockingHandle(Protocol):
    """A handle that one thread at a time reads or writes. Each method returns the WinError, 0 for success."""

    kind: str

    def read(self, size: int, call: Wanted) -> tuple[int, bytes]:
        """Wait for something and return at most `size` bytes of it; none of them is the end."""

    def write(self, chunk: bytes, start: int, stop: int, call: Wanted) -> int:
        """Write `chunk[start:stop]`, all of it."""


def console_mode(kernel: Kernel, handle: int) -> int | None:
    """The mode of a console's input or output; None for any other handle."""
    mode = DWORD()
    return mode.value if kernel.GetConsoleMode(handle, ctypes.addressof(mode)) else None


def open_blocking(kernel: Kernel, handle: int) -> BlockingHandle:
    """What to read or write a handle with. Raises OSError, with a sentence, for what is no handle."""
    if console_mode(kernel, handle) is not None:
        return Console(kernel, handle)
    file_type = kernel.GetFileType(handle)
    if file_type == FileType.UNKNOWN:
        code = kernel.last_error()
        if code:
            raise os_error(code, "GetFileType", f"handle {handle}", "the file or pipe was closed, or never open")
    return PlainHandle(kernel, handle, "pipe" if file_type == FileType.PIPE else "file")


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

    def content(self, size: int) -> bytes:
        """The first `size` bytes."""
        content: bytes = self._array[:size]
        return content


class PlainHandle:
    """A pipe, a file, or a device such as NUL."""

    def __init__(self, kernel: Kernel, handle: int, kind: str) -> None:
        self.kind = kind
        self._kernel = kernel
        self._handle = handle
        self._memory = _Memory()

    def read(self, size: int, _call: Wanted) -> tuple[int, bytes]:
        """As in `BlockingHandle`."""
        kernel, memory = self._kernel, self._memory
        while True:
            room = memory.room(size)
            if not kernel.ReadFileBlocking(self._handle, room, size, memory.count_address, 0):
                code = kernel.last_error()
                # MORE_DATA: the beginning of a message; the next read goes on with it.
                if code != Error.MORE_DATA:
                    return code, b""
            if memory.count or self.kind != "pipe":
                return Error.SUCCESS, memory.content(memory.count)
            # Somebody wrote an empty message to the pipe (MSDN, ReadFile), which is not its end.
            # QUIRK(wine): or it is a pipe of Unix, whose end looks so; it cannot be peeked into.
            if not kernel.PeekNamedPipe(self._handle, 0, 0, 0, 0, 0):
                return Error.SUCCESS, b""

    def write(self, chunk: bytes, start: int, stop: int, _call: Wanted) -> int:
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

    kind = "console"

    def __init__(self, kernel: Kernel, handle: int) -> None:
        self._kernel = kernel
        self._handle = handle
        self._memory = _Memory()
        # A character outside the basic plane is two units, and may be read in two halves; so may one of UTF-8 be
        # written in two.
        self._from_utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._from_utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, size: int, call: Wanted) -> tuple[int, bytes]:
        """As in `BlockingHandle`; Ctrl+Z at the beginning of a line is the end."""
        kernel, memory = self._kernel, self._memory
        # One unit less: half a character may be waiting for this one.
        units = max(size // _UTF8_PER_UNIT - 1, 1)
        while True:
            room = memory.room(units * _UNIT)
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
            if text.startswith(_CTRL_Z) and (console_mode(kernel, self._handle) or 0) & ConsoleMode.LINE_INPUT:
                return Error.SUCCESS, b""
            encoded = self._from_utf16.decode(text).encode()
            if encoded:
                return Error.SUCCESS, encoded

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
