"""Handles that were not opened for overlapped I/O: standard streams, files, anonymous pipes, consoles."""

import asyncio
import contextlib
import ctypes
import gc
import msvcrt
import os
import random
import struct
import subprocess
import sys
import threading
import time
from asyncio.windows_utils import PipeHandle
from pathlib import Path

import pytest

from iocp_loop._core import _kept
from iocp_loop._core._arena import HeapArena
from iocp_loop._core._operation import IoType
from iocp_loop._core._proactor import Proactor
from iocp_loop._debug.stomp import StompArena
from iocp_loop._handles import _blocking, _pipes, _threaded
from iocp_loop._handles._base import winerror_of
from iocp_loop._transports._reader import HELD
from iocp_loop._win32.constants import Error, FileType, WaitResult
from iocp_loop._win32.types import DWORD

from .peers import Buffered, Recorder, pattern
from .watched import PATIENCE_S, WatchedKernel, failed, here, pending, running, turns, until, wait_until

CHILD = Path(__file__).with_name("stdio_child.py")


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("iocp_loop")]


@pytest.fixture(autouse=True)
def no_thread_left():
    """Every handle's thread ends when its handle is closed."""
    yield
    wait_until(lambda: not threads(), "the end of the threads")
    assert not _kept.ABANDONED


def refuse_threads(monkeypatch, word):
    """From here on no thread can be started whose name has this word."""
    start = threading.Thread.start

    def refuse(thread):
        if word in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.fixture
def pipe():
    """(reading end, writing end) of an anonymous pipe, as file objects."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as writer:
        yield reader, writer


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_what_is_written_to_an_anonymous_pipe_arrives_and_then_its_end(pipe, factory):
    reader, writer = pipe
    transport, protocol = await here().connect_read_pipe(factory, reader)
    assert transport.get_extra_info("pipe") is reader
    writer.write(b"one,")
    assert await protocol.receives(4) == b"one,"
    writer.write(b"two")
    writer.close()
    assert await protocol.gone() is None
    assert protocol.received == b"two"
    assert protocol.events[-2:] == ["eof", "lost"]
    assert reader.closed


async def test_an_empty_write_is_not_the_end(pipe):
    """QUIRK(wine): the reader of an empty write is not even woken there, so the call is made to bring nothing."""
    reader, writer = pipe
    answers = [1]

    def empty_once(function, args):
        if answers:
            ctypes.memset(args[3], 0, 4)
            return answers.pop()
        return function(*args)

    here().watched.faults["ReadFileBlocking"] = empty_once
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    writer.write(b"after it")
    assert await protocol.receives(8) == b"after it"
    assert not answers
    transport.close()
    assert await protocol.gone() is None


async def test_a_pipe_in_a_mode_that_does_not_wait_is_waited_for(pipe):
    """PIPE_NOWAIT, which another process may set: a read of an empty pipe fails at once (MSDN, Named Pipe Type, Read,
    and Wait Modes). It is read once there is something."""
    reader, writer = pipe
    mode = DWORD(1)
    handle = msvcrt.get_osfhandle(reader.fileno())
    assert here().watched.SetNamedPipeHandleState(handle, ctypes.addressof(mode), 0, 0)
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: here().counts["PeekNamedPipe"] > 1)
    writer.write(b"late")
    assert await protocol.receives(4) == b"late"
    transport.close()
    assert await protocol.gone() is None


async def test_while_paused_nothing_is_delivered(pipe):
    reader, writer = pipe
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: pending(IoType.READ))  # The first receive is submitted a turn after the return.
    transport.pause_reading()
    writer.write(b"held")
    await until(lambda: transport._reader.receive is HELD)
    await turns()
    assert not protocol.received
    transport.resume_reading()
    assert await protocol.receives(4) == b"held"
    transport.close()
    assert await protocol.gone() is None


async def test_a_file_is_read_to_its_end(tmp_path):
    data = pattern(3_000_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    _, protocol = await here().connect_read_pipe(Recorder, path.open("rb"))
    assert await protocol.gone() is None
    assert protocol.received == data
    assert protocol.events[-2:] == ["eof", "lost"]


async def test_the_null_device_ends_at_once_and_takes_everything():
    _, protocol = await here().connect_read_pipe(Recorder, open(os.devnull, "rb"))
    assert await protocol.gone() is None
    assert protocol.events == ["made", "eof", "lost"]
    transport, protocol = await here().connect_write_pipe(Recorder, open(os.devnull, "wb"))
    transport.write(bytes(3_000_000))
    transport.close()
    assert await protocol.gone() is None


async def test_a_read_error_reaches_connection_lost(pipe):
    reader, _ = pipe
    here().watched.fail("ReadFileBlocking", Error.ACCESS_DENIED)
    make_unaskable(here())
    _, protocol = await here().connect_read_pipe(Recorder, reader)
    exc = await protocol.gone()
    assert isinstance(exc, PermissionError)
    assert exc.winerror == Error.ACCESS_DENIED
    assert "READ on pipe" in str(exc)


# -- writing ---------------------------------------------------------------------------------------------------


async def test_a_large_transfer_through_a_pipe_arrives_whole_and_is_flow_controlled(pipe):
    """Both ends are transports of one loop; 16 MiB in chunks of all sizes."""
    reader, writer = pipe
    size = 16 << 20
    data, rng = pattern(size), random.Random(7)
    _, receiver = await here().connect_read_pipe(Recorder, reader)
    transport, sender = await here().connect_write_pipe(Recorder, writer)
    sent = 0
    while sent < size:
        step = rng.choice((1, 1000, _threaded.PIECE_MAX, _threaded.PIECE_MAX + 1, _threaded.OPERATION_MAX + 1))
        transport.write(data[sent : sent + step])
        sent += step
        await until(lambda: sender.events[-1] != "pause", "resume_writing")
    transport.write_eof()
    assert await sender.gone() is None
    assert await receiver.gone() is None
    assert receiver.received == data
    assert "pause" in sender.events


async def test_what_is_queued_goes_out_before_the_pipe_is_closed(pipe):
    """More than the pipe holds is written, and the transport closed, before anybody reads."""
    reader, writer = pipe
    data = pattern(1_000_000)
    transport, protocol = await here().connect_write_pipe(Recorder, writer)
    transport.writelines([data[:10], data[10:]])
    transport.close()
    assert await asyncio.to_thread(read_all, reader) == data
    assert await protocol.gone() is None


def read_all(reader):
    parts = bytearray()
    while part := reader.read(1 << 20):
        parts += part
    return bytes(parts)


async def test_a_file_is_written_where_its_position_is(tmp_path):
    path = tmp_path / "out"
    file = path.open("wb", buffering=0)
    file.write(b"head ")
    transport, protocol = await here().connect_write_pipe(Recorder, file)
    for number in range(300):
        transport.write(b"%d " % number)
    transport.close()
    assert await protocol.gone() is None
    assert file.closed
    assert path.read_bytes() == b"head " + b"".join(b"%d " % number for number in range(300))


def test_last_words_go_out_although_nobody_waits_for_them(pipe):
    """Many small writes, and the loop is closed at once, as at the end of a program."""
    reader, writer = pipe
    with running() as loop:
        transport, _ = loop.run_until_complete(loop.connect_write_pipe(asyncio.Protocol, writer))
        for number in range(300):
            transport.write(b"%d " % number)
        transport.close()
        super(type(loop), loop).close()
    assert reader.read(10_000) == b"".join(b"%d " % number for number in range(300))
    transport._handle = None


def test_nobody_waits_long_for_last_words_that_nobody_reads(pipe, monkeypatch):
    _, writer = pipe
    monkeypatch.setattr(_threaded, "FLUSH_TIMEOUT_S", 0.1)
    with running() as loop:
        transport, _ = loop.run_until_complete(loop.connect_write_pipe(asyncio.Protocol, writer))
        transport.write(bytes(1_000_000))
        super(type(loop), loop).close()
    assert writer.closed
    transport._handle = None


async def test_a_reader_that_is_gone_breaks_the_pipe(pipe):
    """Gone before the write."""
    reader, writer = pipe
    transport, protocol = await here().connect_write_pipe(Recorder, writer)
    reader.close()
    transport.write(b"to nobody")
    assert isinstance(await protocol.gone(), BrokenPipeError)


async def test_a_reader_that_goes_away_breaks_a_blocked_write(pipe):
    reader, writer = pipe
    transport, protocol = await here().connect_write_pipe(Recorder, writer)
    transport.write(bytes(1_000_000))
    await until(lambda: here().counts["WriteFileBlocking"])
    reader.close()
    assert isinstance(await protocol.gone(), BrokenPipeError)


async def test_many_pipes_at_once(tmp_path):
    """Thirty pairs, each with its two threads, all busy together."""
    receivers, senders = [], []
    for number in range(30):
        reading, writing = os.pipe()
        _, receiver = await here().connect_read_pipe(Recorder, open(reading, "rb"))
        transport, sender = await here().connect_write_pipe(Recorder, open(writing, "wb"))
        transport.write(pattern(100_000, number))
        transport.close()
        receivers.append(receiver)
        senders.append(sender)
    for number, receiver in enumerate(receivers):
        assert await senders[number].gone() is None
        assert await receiver.gone() is None
        assert receiver.received == pattern(100_000, number)


async def test_writing_to_a_full_pipe_that_does_not_wait_fails_instead_of_spinning(pipe):
    """What PIPE_NOWAIT answers: success, with nothing written."""
    _, writer = pipe

    def nothing_written(_function, args):
        ctypes.memset(args[3], 0, 4)
        return 1

    here().watched.faults["WriteFileBlocking"] = nothing_written
    transport, protocol = await here().connect_write_pipe(Recorder, writer)
    transport.write(b"x")
    assert (await protocol.gone()).winerror == Error.PIPE_BUSY


# -- endings -----------------------------------------------------------------------------------------------------


def make_unaskable(loop):
    """The next pipe cannot be peeked into, so that it is read by a call that blocks."""
    loop.watched.fail("PeekNamedPipe", Error.INVALID_PARAMETER)


@pytest.mark.parametrize("ending", ["close", "abort"])
@pytest.mark.parametrize("call", ["ReadFileBlocking", "PeekNamedPipe"])
async def test_closing_while_a_read_is_blocked(pipe, call, ending):
    reader, _ = pipe
    if call == "ReadFileBlocking":
        make_unaskable(here())
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: here().counts[call])
    getattr(transport, ending)()
    assert await protocol.gone() is None
    assert protocol.events == ["made", "lost"]
    assert reader.closed


async def test_closing_before_the_read_has_begun(pipe):
    reader, _ = pipe
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    transport.close()
    assert await protocol.gone() is None
    assert reader.closed


async def test_aborting_while_a_write_is_blocked(pipe):
    _, writer = pipe
    transport, protocol = await here().connect_write_pipe(Recorder, writer)
    transport.write(bytes(1_000_000))
    await until(lambda: here().counts["WriteFileBlocking"])
    transport.abort()
    assert await protocol.gone() is None
    assert writer.closed


async def test_a_transport_that_dies_unclosed_takes_its_thread_with_it(pipe):
    reader, writer = pipe
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: pending(IoType.READ))  # As above.
    writer.write(b"x")
    transport.pause_reading()
    await until(lambda reader=transport._reader: reader.receive is HELD)
    del transport, protocol
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        gc.collect()
    assert reader.closed


def test_closing_the_loop_ends_a_blocked_read(pipe):
    reader, _ = pipe
    with running() as loop:
        make_unaskable(loop)
        transport, _ = loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, reader))
        loop.run_until_complete(until(lambda: loop.counts["ReadFileBlocking"]))
        super(type(loop), loop).close()
    assert reader.closed
    transport._handle = None  # Its protocol was never told, as on every closed loop; here nobody is to be warned.


async def test_an_interruption_that_comes_too_early_is_repeated(pipe):
    """The thread is still on its way into its call: CancelSynchronousIo finds nothing, three times."""
    reader, _ = pipe
    here().watched.fail("CancelSynchronousIo", Error.NOT_FOUND, times=3)
    make_unaskable(here())
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: here().counts["ReadFileBlocking"])
    transport.close()
    assert await protocol.gone() is None
    assert here().counts["CancelSynchronousIo"] >= 4


async def test_a_thread_that_cannot_be_started_is_an_error_of_the_transport(pipe, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        _, protocol = await here().connect_read_pipe(Recorder, pipe[0])
        assert (await protocol.gone()).winerror == Error.MAX_THRDS_REACHED


async def test_without_a_thread_to_interrupt_from_the_loop_does_it_itself(pipe, monkeypatch):
    make_unaskable(here())
    transport, protocol = await here().connect_read_pipe(Recorder, pipe[0])
    await until(lambda: here().counts["ReadFileBlocking"])
    refuse_threads(monkeypatch, "interrupting")
    transport.close()
    assert await protocol.gone() is None


@pytest.mark.parametrize("ending", ["data", "end"])
async def test_a_call_that_cannot_be_interrupted_is_abandoned_and_reported(pipe, monkeypatch, ending):
    """CancelSynchronousIo never finds the call. The handle stays open, and the late answer harms nobody."""
    reader, writer = pipe
    monkeypatch.setattr(_threaded, "CANCEL_TIMEOUT_S", 0.1)
    make_unaskable(here())
    transport, protocol = await here().connect_read_pipe(Recorder, reader)
    await until(lambda: here().counts["ReadFileBlocking"])
    here().watched.fail("CancelSynchronousIo", Error.NOT_FOUND, times=10_000)
    transport.close()
    assert await protocol.gone() is None
    here().expect_report("could not be interrupted")
    assert not reader.closed
    (worker,) = _kept.ABANDONED
    assert "abandoned" in repr(worker)
    assert len(threads()) == 1
    posted = here().counts["PostQueuedCompletionStatus"]
    if ending == "data":
        writer.write(b"too late")
    else:
        writer.close()
    await until(lambda: not threads())
    assert here().counts["PostQueuedCompletionStatus"] == posted
    _kept.ABANDONED.clear()


def test_a_loop_with_a_call_that_cannot_be_interrupted_closes_in_bounded_time(pipe, monkeypatch):
    reader, writer = pipe
    monkeypatch.setattr(_threaded, "CANCEL_TIMEOUT_S", 0.1)
    with running() as loop:
        make_unaskable(loop)
        transport, _ = loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, reader))
        loop.run_until_complete(until(lambda: loop.counts["ReadFileBlocking"]))
        loop.watched.fail("CancelSynchronousIo", Error.NOT_FOUND, times=10_000)
        started = time.perf_counter()
        super(type(loop), loop).close()
        assert time.perf_counter() - started < PATIENCE_S
        loop.expect_report("could not be interrupted")
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transport
        gc.collect()
    assert not reader.closed  # Not even by a transport that dies: closing would block.
    writer.close()
    wait_until(lambda: not threads())
    _kept.ABANDONED.clear()


# -- one operation, one packet -------------------------------------------------------------------------------------


@pytest.fixture(params=[HeapArena, StompArena])
def bare(request, pipe):
    """A proactor on either arena, a receive on the pipe's reading end, and what was delivered: (code, bytes)."""
    proactor = Proactor(arena=request.param(), kernel=WatchedKernel())
    results = []

    def deliver(operation, status, byte_count):
        results.append((winerror_of(operation, status), operation.buffer[:byte_count]))

    endpoint = _threaded.open_threaded(proactor, _pipes.handle_of(pipe[0]), pipe[0])
    operation = endpoint.receive_operation(deliver, proactor.arena.buffer(64))
    yield proactor, operation, results
    proactor.close_endpoint(endpoint)
    assert not proactor.close()
    proactor.release(operation)


def deliver_next(proactor, results):
    before = len(results)
    deadline = time.perf_counter() + PATIENCE_S
    while len(results) == before:
        assert time.perf_counter() < deadline
        settled = proactor.select(0.1)
        while settled:
            operation, status, byte_count = settled.popleft()
            operation.deliver(operation, status, byte_count)
    assert len(results) == before + 1
    return results[-1]


def test_cancelled_at_any_moment_it_ends_with_one_packet(bare):
    """From before the thread has looked at it to long after it is blocked; the next receive is not hit."""
    proactor, operation, results = bare
    rng = random.Random(1)
    for _ in range(100):
        proactor.submit(operation)
        for _ in range(rng.choice((0, 0, 1, 10, 1000))):
            pass
        if rng.random() < 0.2:
            time.sleep(0.001)
        proactor.cancel(operation)
        assert deliver_next(proactor, results) == (Error.OPERATION_ABORTED, b"")
    assert not proactor.pending
    proactor.poll(0)
    assert not proactor.settled


def test_a_cancel_that_races_with_data_loses_no_byte(bare, pipe):
    """Each round writes one byte and cancels at the same time: it is brought by this receive or by a later one."""
    proactor, operation, results = bare
    rng = random.Random(2)
    for number in range(100):
        proactor.submit(operation)
        first, second = (pipe[1].write, (bytes([number]),)), (proactor.cancel, (operation,))
        if rng.random() < 0.5:
            first, second = second, first
        for function, args in (first, second):
            function(*args)
        deliver_next(proactor, results)
    pipe[1].write(b"$")
    while not results[-1][1].endswith(b"$"):
        proactor.submit(operation)
        deliver_next(proactor, results)
    assert b"".join(data for _, data in results) == bytes(range(100)) + b"$"
    assert {code for code, _ in results} <= {0, Error.OPERATION_ABORTED}


# -- which handle -----------------------------------------------------------------------------------------------


async def test_a_closed_file_object_is_refused(pipe):
    pipe[0].close()
    with pytest.raises(ValueError, match="closed file"):
        await here().connect_read_pipe(asyncio.Protocol, pipe[0])


async def test_a_closed_pipe_handle_is_refused():
    reading, writing = os.pipe()
    os.close(writing)
    import msvcrt

    handle = PipeHandle(msvcrt.get_osfhandle(reading))
    with contextlib.suppress(OSError):
        os.close(reading)
    with pytest.raises(OSError, match="handle") as caught:
        await here().connect_read_pipe(asyncio.Protocol, handle)
    assert caught.value.winerror == Error.INVALID_HANDLE
    handle._handle = None
    with pytest.raises(ValueError, match="closed"):
        await here().connect_read_pipe(asyncio.Protocol, handle)


async def test_no_stream_at_all_is_refused():
    """sys.stdin of a program without a console."""
    with pytest.raises(ValueError, match="without standard streams"):
        await here().connect_read_pipe(asyncio.Protocol, None)


async def test_a_pipe_handle_that_is_not_overlapped(pipe):
    """asyncio's PipeHandle knows an OS handle, where a file object knows a descriptor."""
    import msvcrt

    kernel32 = ctypes.WinDLL("kernel32")
    duplicate = ctypes.c_size_t()
    process = ctypes.c_size_t(-1)
    source = ctypes.c_size_t(msvcrt.get_osfhandle(pipe[0].fileno()))
    assert kernel32.DuplicateHandle(process, source, process, ctypes.byref(duplicate), 0, 0, 2)
    handle = PipeHandle(duplicate.value)
    transport, protocol = await here().connect_read_pipe(Recorder, handle)
    pipe[1].write(b"hello")
    assert await protocol.receives(5) == b"hello"
    transport.close()
    assert await protocol.gone() is None
    assert handle.handle is None


# -- the console, as far as it can be pretended ------------------------------------------------------------------


class PretendedConsole:
    """Answers ReadConsole with the texts given, in pieces of UTF-16, and keeps what WriteConsole is given."""

    def __init__(self, *answers, mode=0x2):
        self.kernel = WatchedKernel()
        self.answers = list(answers)
        self.written = b""
        self.calls = 0
        self.mode = mode
        self.events = [KEY_DOWN]
        self.waits = self.reads = 0
        self.kernel.faults |= {
            "GetConsoleMode": self._mode,
            "ReadConsoleW": self._read,
            "WriteConsoleW": self._write,
            "WaitForSingleObject": self._wait,
            "PeekConsoleInputW": self._peek,
        }
        self.console = _blocking.open_blocking(self.kernel, 1234)
        self.cancelled = False

    def wait(self, _seconds):
        self._count_a_wait()
        return self.cancelled

    def _wait(self, _function, args):
        if self.events:
            return WaitResult.OBJECT_0
        self._count_a_wait()
        return WaitResult.TIMEOUT

    def _count_a_wait(self):
        self.waits += 1
        self.cancelled = self.cancelled or self.waits > 5

    def _peek(self, _function, args):
        found = self.events[: args[2]]
        ctypes.memmove(args[1], b"".join(found), 20 * len(found))
        ctypes.c_uint32.from_address(args[3]).value = len(found)
        return 1

    def _mode(self, _function, args):
        ctypes.c_uint32.from_address(args[1]).value = self.mode
        return 1

    def _read(self, _function, args):
        self.reads += 1
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            failed("ReadConsoleW", answer)
            return 1  # The count is as it was.
        if isinstance(answer, str):
            answer = answer.encode("utf-16-le")
        assert len(answer) <= 2 * args[2]
        ctypes.memmove(args[1], answer, len(answer))
        ctypes.c_uint32.from_address(args[3]).value = len(answer) // 2
        return 1

    def _write(self, _function, args):
        self.calls += 1
        self.written += ctypes.string_at(args[1], 2 * args[2])
        ctypes.c_uint32.from_address(args[3]).value = args[2]
        return 1


def event(event_type, *, down=0, key=0):
    """An INPUT_RECORD."""
    return struct.pack("<HxxiHHHHI", event_type, down, 1, key, 0, 0, 0)


KEY_DOWN, KEY_UP = event(1, down=1, key=65), event(1, key=65)
ALT_UP = event(1, key=0x12)  # The end of a character that was typed by its number.
MOUSE, FOCUS = event(2), event(16)


def test_nothing_is_read_before_somebody_types():
    """A read that waits would hold the console's lock, and swallow the next line where it is cancelled."""
    console = PretendedConsole()
    console.events = []
    assert console.console.read(100, console) == (Error.OPERATION_ABORTED, b"")
    assert console.waits > 1
    assert console.reads == 0


@pytest.mark.parametrize("events", [[MOUSE], [FOCUS, KEY_UP], [MOUSE] * 100])
def test_what_is_no_key_does_not_begin_a_read_nor_keep_the_thread_busy(events):
    console = PretendedConsole()
    console.events = events
    assert console.console.read(100, console) == (Error.OPERATION_ABORTED, b"")
    assert console.waits > 1
    assert console.reads == 0


@pytest.mark.parametrize("events", [[KEY_DOWN], [ALT_UP], [FOCUS, KEY_UP, KEY_DOWN], [MOUSE] * 1000])
def test_a_key_begins_a_read_and_so_does_what_could_hide_one(events):
    console = PretendedConsole("a\r\n")
    console.events = events
    assert console.console.read(100, console) == (0, b"a\r\n")


def test_the_rest_of_a_long_line_is_read_without_another_key():
    console = PretendedConsole("0123456789", "rest\r\n")
    assert console.console.read(33, console) == (0, b"0123456789")
    console.events = []
    assert console.console.read(33, console) == (0, b"rest\r\n")
    assert console.console.read(33, console) == (Error.OPERATION_ABORTED, b"")


def test_a_cancelled_read_does_not_bring_the_line_before_once_more():
    console = PretendedConsole("before\r\n", Error.OPERATION_ABORTED)
    assert console.console.read(100, console) == (0, b"before\r\n")
    read = console.kernel.faults["ReadConsoleW"]

    def cancelled_in_the_middle(function, args):
        console.cancelled = True
        return read(function, args)

    console.kernel.faults["ReadConsoleW"] = cancelled_in_the_middle
    assert console.console.read(100, console) == (Error.OPERATION_ABORTED, b"")


def test_console_input_is_utf8():
    console = PretendedConsole("h\u00e9\r\n")
    assert console.console.kind == "console"
    assert console.console.read(100, console) == (0, b"h\xc3\xa9\r\n")


def test_a_character_read_in_two_halves_is_whole():
    halves = "\U0001f600".encode("utf-16-le")
    console = PretendedConsole(halves[:2], halves[2:] + "x".encode("utf-16-le"))
    assert console.console.read(100, console) == (0, b"\xf0\x9f\x98\x80x")


def test_ctrl_z_at_the_beginning_of_a_line_is_the_end():
    console = PretendedConsole("\x1a\r\n", "a\x1a\r\n")
    assert console.console.read(100, console) == (0, b"")
    assert console.console.read(100, console) == (0, b"a\x1a\r\n")


def test_ctrl_z_is_a_key_like_others_where_lines_are_off():
    console = PretendedConsole("\x1a", mode=0)
    assert console.console.read(100, console) == (0, b"\x1a")


def test_ctrl_c_is_not_the_end_of_console_input():
    console = PretendedConsole(Error.OPERATION_ABORTED, "x\r\n")
    assert console.console.read(100, console) == (0, b"x\r\n")


def test_a_cancelled_read_of_the_console_ends():
    """On Windows it looks like Ctrl+C: success, no characters, and a last error."""
    console = PretendedConsole(Error.OPERATION_ABORTED)
    console.cancelled = True
    assert console.console.read(100, console) == (Error.OPERATION_ABORTED, b"")


def test_console_output_written_in_two_halves_of_a_character_is_whole():
    console = PretendedConsole()
    data = "h\u00e9".encode()
    assert console.console.write(data, 0, 2, console) == 0
    assert console.console.write(data, 2, 3, console) == 0
    assert console.written.decode("utf-16-le") == "h\u00e9"


def test_long_console_output_is_never_cut_through_a_character():
    console = PretendedConsole()
    text = "x" + "\U0001f600" * _blocking.CONSOLE_UNITS_MAX
    assert console.console.write(text.encode(), 0, len(text.encode()), console) == 0
    assert console.written.decode("utf-16-le") == text
    assert console.calls == 3


def test_a_device_that_is_no_console_is_read_as_a_file():
    kernel = WatchedKernel()
    kernel.fail("GetConsoleMode", Error.INVALID_HANDLE)
    kernel.faults["GetFileType"] = lambda _function, _args: FileType.CHAR
    assert _blocking.open_blocking(kernel, 1234).kind == "file"


# -- child processes ----------------------------------------------------------------------------------------------


def child(scenario, *, stdin=None, given=b"", stomp=False, stdout=subprocess.PIPE, flags=0):
    """Run a scenario of stdio_child.py to its end: (what it wrote to stdout, what it said on stderr)."""
    environ = os.environ | {"IOCP_LOOP_STOMP": "1" if stomp else "0"}
    command = [sys.executable, "-W", "error", str(CHILD), scenario]
    options = {"stdin": stdin} if stdin is not None else {"input": given}
    result = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, timeout=60, env=environ, creationflags=flags, **options
    )
    *said, last = result.stderr.decode().split("\n")[:-1]
    assert (result.returncode, last.strip()) == (0, "end"), result.stderr.decode()
    return result.stdout, [line.strip() for line in said]


stomp_too = pytest.mark.parametrize("stomp", [False, True], ids=["heap", "stomp"])


@stomp_too
def test_the_classic_recipe_with_pipes(stomp):
    assert child("lines", given=b"one\ntwo\r\nlast", stomp=stomp)[0] == b"> one\n> two\r\n> last"


@stomp_too
def test_the_classic_recipe_with_files(tmp_path, stomp):
    """`python program.py < in > out`. QUIRK(wine): Wine 8 starts it so only with the launcher of tools/."""
    source, target = tmp_path / "in", tmp_path / "out"
    data = pattern(2_000_000)
    source.write_bytes(data)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        if not standard_files_work(stdin):
            pytest.skip("this Wine's Python cannot start with a file as standard stream")
        child("copy", stdin=stdin, stdout=stdout, stomp=stomp)
    assert target.read_bytes() == data


def standard_files_work(stdin):
    return not subprocess.run([sys.executable, "-c", ""], stdin=stdin, capture_output=True).returncode


@stomp_too
def test_a_large_transfer_through_a_child(stomp):
    data = pattern(8 << 20)
    assert child("copy", given=data, stomp=stomp)[0] == data


def test_standard_input_without_content():
    assert child("lines", stdin=subprocess.DEVNULL)[0] == b""


def test_many_tasks_write_to_one_standard_output():
    lines = child("many_writers")[0].split()
    assert sorted(lines) == sorted(b"%d:%d" % (task, count) for task in range(10) for count in range(100))
    for task in range(10):
        mine = [line for line in lines if line.startswith(b"%d:" % task)]
        assert mine == [b"%d:%d" % (task, count) for count in range(100)]


@stomp_too
def test_a_program_ends_although_its_standard_input_does_not(stomp):
    """The parent keeps the child's standard input open and says nothing: neither close() nor the exit waits for it."""
    reading, writing = os.pipe()
    try:
        assert child("blocked", stdin=reading, stomp=stomp)[0] == b"ready\nstill there\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_parent_that_stops_reading_breaks_the_childs_standard_output():
    process = subprocess.Popen(
        [sys.executable, str(CHILD), "broken"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout.read(1000) == bytes(1000)
        process.stdout.close()
        said = process.stderr.read().decode().split()
    assert said == ["BrokenPipeError", "end"]


def test_a_console_of_ones_own():
    """Keys are put into the console's input, and its screen is read back; Ctrl+Z ends the input."""
    _, said = child("console", stdin=subprocess.DEVNULL, flags=subprocess.CREATE_NO_WINDOW)
    assert said == [ascii(b"hello\r\n"), ascii("h\u00e9\U0001f600\r\n".encode()), ascii("shown \u00e9"), "b''"]


def test_a_program_ends_although_nobody_types():
    _, said = child("console_blocked", stdin=subprocess.DEVNULL, flags=subprocess.CREATE_NO_WINDOW)
    assert said == ["nobody typed"]


def test_no_operation_was_orphaned():
    assert not _kept.ORPHANS
