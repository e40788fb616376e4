"""What test_stdio.py runs in processes of their own: `stdio_child.py SCENARIO`. The last word on stderr is "end"."""

import asyncio
import ctypes
import faulthandler
import sys
import threading
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import iocp_loop

PATIENCE_S = 20


async def standard_streams():
    """The classic recipe: a reader on standard input, a writer on standard output."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # The recipe never closes that one; at the end, the loop does it.
    warnings.simplefilter("ignore", ResourceWarning)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


async def lines():
    """Each line comes back behind a mark."""
    reader, writer = await standard_streams()
    while line := await reader.readline():
        writer.write(b"> " + line)
        await writer.drain()
    writer.close()


async def copy():
    """Everything comes back as it is."""
    reader, writer = await standard_streams()
    while block := await reader.read(1 << 20):
        writer.write(block)
        await writer.drain()
    writer.close()


async def many_writers():
    """Ten tasks, a hundred lines each, all through one writer."""
    _, writer = await standard_streams()

    async def write(number):
        for count in range(100):
            writer.write(b"%d:%d\n" % (number, count))
            await writer.drain()

    await asyncio.gather(*map(write, range(10)))
    writer.close()


async def blocked():
    """Ends while a read is blocked: nobody writes to standard input, and nobody closes it."""
    reader, writer = await standard_streams()
    writer.write(b"ready\n")
    try:
        await asyncio.wait_for(reader.readline(), 0.1)
    except TimeoutError:
        writer.write(b"still there\n")
    writer.close()


async def broken():
    """Writes until the reader of standard output is gone."""
    loop = asyncio.get_running_loop()
    lost = loop.create_future()

    class Writer(asyncio.BaseProtocol):
        def connection_lost(self, exc):
            lost.set_result(exc)

    transport, _ = await loop.connect_write_pipe(Writer, sys.stdout)
    while not lost.done():
        transport.write(bytes(50_000))
        await asyncio.sleep(0.01)
    print(type(lost.result()).__name__, file=sys.stderr)


async def console():
    """Reads what is typed on a console of its own, and writes to it what can be read back from the screen."""
    keyboard, screen = open("CONIN$", "rb", buffering=0), open("CONOUT$", "wb", buffering=0)
    sys.stdin, sys.stdout = keyboard, screen
    reader, writer = await standard_streams()
    asyncio.get_running_loop().call_later(0.1, type_keys, keyboard, "hello\r")
    print(ascii(await reader.readline()), file=sys.stderr)
    type_keys(keyboard, "h\u00e9\U0001f600\r")
    print(ascii(await reader.readline()), file=sys.stderr)
    for part in (b"shown \xc3", b"\xa9\r\n"):
        writer.write(part)
    while not (line := line_with(screen, "shown \u00e9")):
        await asyncio.sleep(0.01)
    print(ascii(line), file=sys.stderr)
    type_keys(keyboard, "\x1a\r")
    print(ascii(await reader.readline()), file=sys.stderr)
    writer.close()


async def console_blocked():
    """Ends while a read of the console is blocked."""
    sys.stdin, sys.stdout = open("CONIN$", "rb", buffering=0), open("CONOUT$", "wb", buffering=0)
    reader, writer = await standard_streams()
    try:
        await asyncio.wait_for(reader.readline(), 0.1)
    except TimeoutError:
        print("nobody typed", file=sys.stderr)
    writer.close()


class KeyEvent(ctypes.Structure):
    """wincontypes.h: INPUT_RECORD with a KEY_EVENT_RECORD in it."""

    _fields_ = [
        ("event_type", ctypes.c_uint16),
        ("key_down", ctypes.c_int32),
        ("repeat_count", ctypes.c_uint16),
        ("virtual_key", ctypes.c_uint16),
        ("scan_code", ctypes.c_uint16),
        ("character", ctypes.c_uint16),
        ("control_keys", ctypes.c_uint32),
    ]


def handle_of(file):
    from msvcrt import get_osfhandle

    return ctypes.c_size_t(get_osfhandle(file.fileno()))


def type_keys(keyboard, text):
    """Put key presses into the console's input."""
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    units = text.encode("utf-16-le")
    for low, high in zip(units[::2], units[1::2], strict=True):
        character = low | high << 8
        virtual_key = {0x0D: 0x0D, 0x1A: ord("Z")}.get(character, 0)
        control = 0x0008 if character == 0x1A else 0  # LEFT_CTRL_PRESSED
        for down in (1, 0):
            event, count = KeyEvent(1, down, 1, virtual_key, 0, character, control), ctypes.c_uint32()
            assert kernel32.WriteConsoleInputW(handle_of(keyboard), ctypes.byref(event), 1, ctypes.byref(count))


def line_with(screen, word):
    """The line of the console's screen that contains a word; None if there is none yet."""
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    for row in range(10):
        text, count = ctypes.create_unicode_buffer(41), ctypes.c_uint32()
        position = ctypes.c_uint32(row << 16)
        kernel32.ReadConsoleOutputCharacterW(handle_of(screen), text, 40, position, ctypes.byref(count))
        if word in text.value:
            return text.value.rstrip()
    return None


def main():
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=sys.stderr)
    scenario = {function.__name__: function for function in SCENARIOS}[sys.argv[1]]
    iocp_loop.run(scenario())
    for thread in threading.enumerate():
        if thread.name.startswith("iocp_loop"):
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread
    faulthandler.cancel_dump_traceback_later()
    # QUIRK(wine): a process may die of memory that is gone with status 0: only the last line says that it did not.
    print("end", file=sys.stderr)


SCENARIOS = (lines, copy, many_writers, blocked, broken, console, console_blocked)

if __name__ == "__main__":
    main()
