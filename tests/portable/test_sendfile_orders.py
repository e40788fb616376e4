"""loop.sendfile on the real loop over the fake kernel, through seeded schedules.

What must hold in each: a file goes out whole, behind what was written before and in front of what is written after it,
by TransmitFile or by reading and sending, as there is room for one or the other; of a file whose sending was cancelled,
or failed, a beginning goes out; writes are refused meanwhile, and accepted again; the number that is returned is the
number of bytes that were sent, and the file's position is behind them.
"""

import asyncio
import contextlib
import io
import sys
import types

import pytest
from fakes.kernel import Chances
from fakes.recorders import Recorder, StreamStage, pairs, wait_until_connected
from fakes.stage import Interrupted

from iocp_loop._transports import _sendfile
from iocp_loop._win32.constants import WsaError

OFFSET = 10


class Sender(Recorder):
    """As Recorder; `items` is what went into the stream: bytes that were written, and `Sending`s, in order."""

    def __init__(self, loop):
        super().__init__(loop)
        self.items = []
        self.is_sending_file = False

    def may_write(self):
        return super().may_write() and not self.is_sending_file

    def note_written(self, data, call, argument):
        if not self.may_write():
            return
        self.items.append(bytes(data))
        place = len(self.items)
        try:
            call(argument)
        except MemoryError:
            # Who is told so has written nothing; or this was the end of the connection.
            self.ended_early = self.transport.is_closing()
            if not self.ended_early:
                del self.items[place - 1]
            raise


class Sending:
    """One file, or a part of one, on its way."""

    def __init__(self, content):
        self.content = content
        self.sent = None  # the result; None where there is none


class FileStage(StreamStage):
    """Connections whose ends send files, too."""

    def __init__(self, seed, chances=None, *, folder):
        super().__init__(seed, chances)
        self.folder = folder
        self.tasks = []
        self.open_files = []

    def end(self, sock, *, buffered=False, skip_port=None):
        end = Sender(self.loop)
        self.make_transport(sock, end, self.random.random() < 0.7)
        end.sock = sock
        self.ends.append(end)
        return end

    def file(self, end):
        """One of letters, while messages are of digits; it begins with what no other of this end begins with, also
        where its first OFFSET bytes are passed over: so it is seen where each begins.
        """
        mark = bytes([128 + sum(isinstance(item, Sending) for item in end.items)])
        letters = self.random.choices(b"abcdefghijkl", k=400)
        content = mark + bytes(letters[1:OFFSET]) + mark + bytes(letters[OFFSET + 1 :])
        content = content[: self.random.choice((0, 1, 50, 99, 100, 320))]
        if self.random.random() < 0.2:
            return io.BytesIO(content), content
        path = self.folder / f"{self.kernel.seed}.{len(self.open_files)}"
        path.write_bytes(content)
        file = path.open("rb")
        self.open_files.append(file)
        self.kernel.files[file.fileno()] = content
        return file, content

    def act(self):
        end = self.random.choice(self.ends)
        chance = self.random.random()
        if chance < 0.15 and end.may_write() and not end.lost.done():
            self.tasks.append(self.loop.create_task(self.send_file(end)))
        elif chance < 0.2 and self.tasks:
            self.random.choice(self.tasks).cancel()
        else:
            super().act()

    async def send_file(self, end):
        if not end.may_write():
            return
        file, content = self.file(end)
        offset = self.random.choice((0, 0, OFFSET))
        count = self.random.choice((None, None, 60))
        part = content[offset:][: count or None]
        sending = Sending(part)
        end.items.append(sending)
        end.is_sending_file = True
        try:
            sending.sent = await self.loop.sendfile(end.transport, file, offset, count)
            assert file.tell() == min(offset, len(content)) + sending.sent or not part
        except OSError as exc:
            assert is_memory(exc) or end.transport.is_closing() or end.peer.transport.is_closing()
        except RuntimeError:
            assert end.transport.is_closing()
        except MemoryError:
            sending.sent = None
        finally:
            end.is_sending_file = False

    def check_books(self):
        for end, other in pairs(self.ends):
            sent, at = bytes(end.sock.sent), 0
            assert sent.startswith(other.received)
            for item in end.items:
                if isinstance(item, bytes):
                    rest = sent[at:]
                    assert rest.startswith(item) or (end.ended_early and item.startswith(rest))
                    at += min(len(item), len(rest))
                else:
                    count = common_prefix(item.content, sent[at:])
                    at += count
                    assert item.sent is None or count == item.sent == len(item.content)
            assert at == len(sent), "bytes that nobody has written"


def common_prefix(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Of which a file has several; and one connection at a time may use TransmitFile."""
    monkeypatch.setattr(_sendfile, "TRANSMITS_MAX", 1)
    monkeypatch.setattr(_sendfile, "TRANSMIT_CHUNK", 100)
    monkeypatch.setattr(_sendfile, "READ_CHUNK", 30)
    # A descriptor is the handle, on every system.
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(get_osfhandle=lambda descriptor: descriptor))


def play(seed, folder, *, wildly, memory_error=0.0):
    stage = FileStage(seed, Chances(would_block=0.4), folder=folder)
    for _ in range(2):
        left, right = stage.connection()
        left.peer, right.peer = right, left
        for end in (left, right):
            end.ended_early = False
            end.meddle = (lambda end=end: meddle(stage, end)) if wildly else stage.meddle

    async def scenario():
        stage.kernel.chances.memory_error = memory_error
        for _ in range(30):
            with contextlib.suppress(KeyboardInterrupt, SystemExit, MemoryError):
                stage.act()
            if stage.random.random() < 0.5:
                await asyncio.sleep(0)
        stage.kernel.chances.memory_error = 0
        await finish(stage)

    services = stage.loop._services
    try:
        stage.run_through_interrupts(scenario())
    finally:
        for file in stage.open_files:
            file.close()
    stage.check_books()
    assert services.transmits_running == 0
    return stage


def meddle(stage, end):
    if not stage.budget or stage.random.random() < 0.7:
        return
    stage.budget -= 1
    match stage.random.randrange(8):
        case 0 if not end.lost.done() and stage.random.random() < 0.4:
            end.ended_early = True
            end.transport.close()
        case 1 if not end.lost.done() and stage.random.random() < 0.4:
            end.ended_early = True
            end.transport.abort()
        case 2:
            stage.raised.append(stage.random.choice((MemoryError, RuntimeError, OSError))("from a callback"))
            raise stage.raised[-1]
        case 3:
            raise stage.random.choice((Interrupted, SystemExit))
        case 4 if not end.lost.done():
            successor = object.__new__(Sender)
            successor.__dict__ = end.__dict__
            end.transport.set_protocol(successor)
        case _:
            stage.act()


async def finish(stage):
    stage.budget = 0
    for end in stage.ends:
        await wait_until_connected(end)
    for _ in range(500):
        for end in stage.ends:
            end.transport.resume_reading()
        if all(task.done() for task in stage.tasks):
            break
        await asyncio.sleep(0.01)
    for left, right in zip(stage.ends[::2], stage.ends[1::2], strict=True):
        if left.transport.is_closing() or right.transport.is_closing():
            left.ended_early = right.ended_early = True
            left.transport.abort()
            right.transport.abort()
    await asyncio.gather(*stage.tasks, return_exceptions=True)
    for task in stage.tasks:
        if not task.cancelled() and task.exception():
            raise task.exception()
    for end, other in pairs(stage.ends):
        if not end.lost.done() and not end.transport.is_closing():
            end.write_eof()
            await asyncio.wait([other.eof, other.lost], return_when=asyncio.FIRST_COMPLETED)
    for end in stage.ends:
        end.transport.close()
        await end.lost
    for end, other in pairs(stage.ends):
        if await end.lost is not None and not end.ended_early:
            # A receive without memory, which was told only now, because its end was paused before; or the other end's.
            assert is_memory(await end.lost) or is_memory(await other.lost)
            end.ended_early = other.ended_early = True


def is_memory(exc):
    return isinstance(exc, MemoryError) or getattr(exc, "winerror", None) == WsaError.NOBUFS


def test_files_and_writes_keep_their_order(schedules, tmp_path):
    """Two connections, each end writes and sends files, some of which are cancelled on the way."""

    def run(seed):
        stage = play(seed, tmp_path, wildly=False)
        for end, other in pairs(stage.ends):
            assert bytes(end.sock.sent) == other.received
            assert not end.ended_early
        assert stage.loop.reports == []

    schedules(run, 80)


def test_whatever_a_callback_does_or_raises_no_byte_changes_its_place(schedules, tmp_path):
    """Every callback may close, abort, raise, send a file, or leave its transport to another protocol."""

    def run(seed):
        stage = play(seed, tmp_path, wildly=True)
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    schedules(run, 120)


def test_memory_that_is_missing_now_and_then_costs_files_their_ends_and_nothing_their_order(schedules, tmp_path):
    """TransmitFile, WSASend or any other call raises MemoryError: of that file a beginning goes out, and writes go on;
    or the connection is over, and its protocol was told.
    """

    def run(seed):
        stage = play(seed, tmp_path, wildly=False, memory_error=0.03)
        told = [report["exception"] for report in stage.loop.reports]
        assert [exc for exc in told if not isinstance(exc, MemoryError)] == []

    schedules(run, 120)


def test_a_file_that_becomes_shorter_is_an_error_and_not_an_endless_loop(tmp_path):
    """Its size was 100 when it was looked at; there is nothing when it is sent."""
    stage = FileStage(0, folder=tmp_path)
    left, right = stage.connection()
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    async def scenario():
        await wait_until_connected(left)
        await wait_until_connected(right)
        with path.open("rb") as file:
            stage.kernel.files[file.fileno()] = b""
            with pytest.raises(EOFError, match="became shorter"):
                await stage.loop.sendfile(left.transport, file)
        left.write(b"still there")
        await finish(stage)

    stage.run(scenario())
    assert right.received == b"still there"
