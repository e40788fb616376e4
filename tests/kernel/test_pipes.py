"""Named pipes: byte and message mode, both ends, and every way in which the other end may be missing or gone."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
from asyncio.windows_utils import PipeHandle, pipe

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._handles import _pipes
from iocp_loop._transports._pipe import INSTANCES_WAITING
from iocp_loop._win32.constants import Error, FileFlag, PipeMode

from .peers import Recorder, pattern
from .platforms import not_under_wine
from .watched import PATIENCE_S, here, pending, running, turns, until

_numbers = itertools.count()


def new_name():
    return rf"\\.\pipe\iocp_loop-{os.getpid()}-{next(_numbers)}"


class Peer(Recorder):
    """Keeps each piece it is told, too."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def data_received(self, data):
        super().data_received(data)
        self.pieces.append(bytes(data))


class EchoPeer(Peer):
    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


@contextlib.asynccontextmanager
async def serving_pipe(factory=Peer, **options):
    """(server, name, protocols) of a pipe server; what it accepted is gone at the end."""
    name, protocols = new_name(), []

    def make():
        protocol = factory()
        protocols.append(protocol)
        return protocol

    (server,) = await here().start_serving_pipe(make, name, **options)
    try:
        yield server, name, protocols
    finally:
        server.close()
        for protocol in protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
                await protocol.gone()


@contextlib.asynccontextmanager
async def connected_to(name, factory=Peer, **options):
    transport, protocol = await here().create_pipe_connection(factory, name, **options)
    try:
        yield transport, protocol
    finally:
        transport.abort()
        await protocol.gone()


def bare_client(name):
    """A client of the pipe that is none of the loop's: not overlapped, blocking."""
    return open(name, "r+b", buffering=0)


def instances_waiting():
    return pending(IoType.PIPE_CONNECT)


async def still_serves(name):
    async with connected_to(name) as (transport, protocol):
        transport.write(b"ping")
        assert await protocol.receives(4) == b"ping"


# -- both ends -------------------------------------------------------------------------------------------------


async def test_what_is_written_comes_back_in_byte_mode():
    async with serving_pipe(EchoPeer) as (server, name, protocols), connected_to(name) as (transport, protocol):
        transport.write(b"hello")
        transport.writelines([b" ", b"world"])
        assert await protocol.receives(11) == b"hello world"
        assert transport.get_extra_info("addr") == name
        assert isinstance(transport.get_extra_info("pipe"), PipeHandle)
        assert protocols[0].transport.get_extra_info("addr") == name
        assert "serving" in repr(server)


async def test_large_transfers_both_ways_at_once_arrive_whole():
    size = 1_500_000
    async with serving_pipe() as (_, name, protocols), connected_to(name) as (transport, protocol):
        await until(lambda: protocols and protocols[0].transport)
        transport.write(pattern(size, seed=1))
        protocols[0].transport.write(pattern(size, seed=2))
        assert await protocols[0].receives(size) == pattern(size, seed=1)
        assert await protocol.receives(size) == pattern(size, seed=2)


async def test_fifty_clients_at_once_are_each_served():
    async with serving_pipe(EchoPeer) as (_, name, protocols):

        async def one(n):
            async with connected_to(name) as (transport, protocol):
                transport.write(b"%3d" % n)
                assert await protocol.receives(3) == b"%3d" % n

        async with asyncio.timeout(2 * PATIENCE_S):
            await asyncio.gather(*map(one, range(50)))
        assert len(protocols) == 50
        await until(lambda: len(instances_waiting()) == INSTANCES_WAITING)


async def test_a_blocking_client_is_served():
    async with serving_pipe(EchoPeer) as (_, name, _):

        def exchange():
            with bare_client(name) as client:
                client.write(b"hello")
                return client.read(5)

        assert await asyncio.to_thread(exchange) == b"hello"


async def test_a_clients_close_is_an_end_of_file_and_the_data_before_it_arrive():
    async with serving_pipe() as (_, name, protocols):
        async with connected_to(name) as (transport, protocol):
            transport.write(pattern(200_000))
            transport.close()
            assert await protocol.gone() is None
            assert await protocols[0].receives(200_000) == pattern(200_000)
        assert await protocols[0].gone() is None
        assert protocols[0].events[-2:] == ["eof", "lost"]


async def test_a_pipe_has_no_half_closed_state_and_says_so():
    async with serving_pipe() as (_, name, _), connected_to(name) as (transport, _):
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        with pytest.raises(RuntimeError, match="sendfile is not supported"):
            await here().sendfile(transport, None)


async def test_a_peer_that_does_not_read_pauses_the_writer():
    async with serving_pipe() as (_, name, protocols), connected_to(name) as (transport, protocol):
        await until(lambda: protocols and protocols[0].transport)
        protocols[0].transport.pause_reading()
        transport.write(pattern(400_000))
        assert "pause" in protocol.events
        protocols[0].transport.resume_reading()
        assert await protocols[0].receives(400_000) == pattern(400_000)
        await until(lambda: "resume" in protocol.events)


# -- message mode ----------------------------------------------------------------------------------------------


async def test_each_message_arrives_whole_and_by_itself_also_long_and_empty_ones():
    """Longer than any receive buffer begins with, longer than the pipe's own buffer, and of no bytes at all."""
    messages = [b"one", b"two", pattern(5000), b"", pattern(300_000), b"last"]
    async with (
        serving_pipe(message_mode=True) as (_, name, protocols),
        connected_to(name, message_mode=True) as (transport, protocol),
    ):
        for message in messages:
            transport.write(message)
        await until(lambda: protocols and len(protocols[0].pieces) == len(messages), "the messages")
        assert protocols[0].pieces == messages
        for message in messages:
            protocols[0].transport.writelines([message[:2], message[2:]])
        await until(lambda: len(protocol.pieces) == len(messages), "the answers")
        assert protocol.pieces == messages


async def test_close_sends_the_messages_that_wait_also_an_empty_last_one():
    async with (
        serving_pipe(message_mode=True) as (_, name, protocols),
        connected_to(name, message_mode=True) as (transport, protocol),
    ):
        for message in (b"first", b"", b""):
            transport.write(message)
        transport.close()
        transport.write(b"")
        assert await protocol.gone() is None
        await protocols[0].gone()
        assert protocols[0].pieces == [b"first", b"", b""]


async def test_a_byte_mode_client_of_a_message_pipe_reads_a_stream():
    async with serving_pipe(message_mode=True) as (_, name, protocols), connected_to(name) as (_, protocol):
        await until(lambda: protocols and protocols[0].transport)
        protocols[0].transport.write(b"one")
        protocols[0].transport.write(b"two")
        assert await protocol.receives(6) == b"onetwo"


async def test_a_byte_pipe_has_no_messages_to_keep_apart():
    async with serving_pipe() as (_, name, _):
        with pytest.raises(OSError):
            await here().create_pipe_connection(Peer, name, message_mode=True)
        await until(lambda: len(instances_waiting()) == INSTANCES_WAITING)
    await until(lambda: not here().outstanding())


# -- missing, busy, taken --------------------------------------------------------------------------------------


async def test_a_pipe_that_does_not_exist_is_a_file_not_found_error():
    name = new_name()
    with pytest.raises(FileNotFoundError) as caught:
        await here().create_pipe_connection(Peer, name)
    assert caught.value.filename == name


async def test_a_busy_pipe_is_waited_for_without_polling_its_name():
    """The only instance has a client: the next one waits in WaitNamedPipe, and gets the next instance."""
    name = new_name()
    kernel = here().watched
    first = PipeHandle(_pipes.create_instance(kernel, name, first=True))
    with first, bare_client(name):
        connecting = asyncio.ensure_future(here().create_pipe_connection(Peer, name))
        await until(lambda: kernel.counts["WaitNamedPipeW"])
        before = kernel.counts["CreateFileW"]
        await asyncio.sleep(0.1)
        assert kernel.counts["CreateFileW"] <= before + 1
        assert not connecting.done()
        with PipeHandle(_pipes.create_instance(kernel, name, first=False)):
            async with asyncio.timeout(PATIENCE_S):
                transport, protocol = await connecting
            transport.close()
            await protocol.gone()


async def test_a_cancelled_wait_for_a_busy_pipe_leaves_nothing():
    name = new_name()
    with PipeHandle(_pipes.create_instance(here().watched, name, first=True)), bare_client(name):
        connecting = asyncio.ensure_future(here().create_pipe_connection(Peer, name))
        await until(lambda: here().counts["WaitNamedPipeW"])
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    assert not here().outstanding()


async def test_a_pipe_that_goes_away_while_it_is_waited_for_is_a_file_not_found_error():
    name = new_name()
    with PipeHandle(_pipes.create_instance(here().watched, name, first=True)) as server, bare_client(name):
        connecting = asyncio.ensure_future(here().create_pipe_connection(Peer, name))
        await until(lambda: here().counts["WaitNamedPipeW"])
        server.close()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(FileNotFoundError):
                await connecting


@not_under_wine("FILE_FLAG_FIRST_PIPE_INSTANCE is ignored")
async def test_a_name_that_is_taken_is_a_permission_error():
    async with serving_pipe() as (_, name, _):
        with pytest.raises(PermissionError):
            await here().start_serving_pipe(Peer, name)


async def test_the_first_instance_asks_for_the_name_alone_and_remote_clients_are_rejected():
    """At the seam: what CreateNamedPipe is asked for."""
    asked = []

    def create(function, args):
        asked.append(args)
        return function(*args)

    here().watched.faults["CreateNamedPipeW"] = create
    async with serving_pipe():
        assert len(asked) == INSTANCES_WAITING
        assert [bool(args[1] & FileFlag.FLAG_FIRST_PIPE_INSTANCE) for args in asked] == [True] + [False] * (
            len(asked) - 1
        )
        assert all(args[2] & PipeMode.REJECT_REMOTE_CLIENTS for args in asked)
        assert all(args[1] & FileFlag.FLAG_OVERLAPPED for args in asked)
    asked.clear()
    async with serving_pipe(remote_clients=True):
        assert not any(args[2] & PipeMode.REJECT_REMOTE_CLIENTS for args in asked)


async def test_a_name_that_the_system_says_is_taken_is_a_permission_error_and_leaves_nothing():
    """At the seam, because Wine gives everybody every name."""

    def refuse(_function, _args):
        from .watched import failed

        failed("CreateNamedPipeW", Error.ACCESS_DENIED)
        return _pipes.INVALID_HANDLE_VALUE

    here().watched.faults["CreateNamedPipeW"] = refuse
    with pytest.raises(PermissionError) as caught:
        await here().start_serving_pipe(Peer, new_name())
    assert caught.value.winerror == Error.ACCESS_DENIED
    assert not here().outstanding()


# -- servers ---------------------------------------------------------------------------------------------------


async def test_a_client_that_is_gone_before_it_is_accepted_does_not_stop_the_server():
    async with serving_pipe(EchoPeer) as (_, name, _):
        for _ in range(2 * INSTANCES_WAITING):
            for _ in range(INSTANCES_WAITING):
                bare_client(name).close()
            await turns()
        await still_serves(name)
        await until(lambda: len(instances_waiting()) == INSTANCES_WAITING)
        assert not here().reports


async def test_a_protocol_factory_that_raises_loses_its_client_only():
    calls = 0

    def factory():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError("no protocol today")
        return EchoPeer()

    async with serving_pipe(factory) as (_, name, _):
        with bare_client(name) as client:
            await until(lambda: here().reports)
            report = here().expect_report("no protocol today")
            assert report["pipe"] == name
            with contextlib.suppress(OSError):
                assert await asyncio.to_thread(client.read, 1) == b""
        await still_serves(name)


async def test_an_instance_that_cannot_be_made_is_reported_and_tried_again_later(monkeypatch):
    from iocp_loop._asyncio import _private

    from .watched import failed

    monkeypatch.setattr(_private, "ACCEPT_RETRY_DELAY_S", 0.02)
    async with serving_pipe(EchoPeer) as (_, name, _):
        refusals = 1

        def refuse(function, args):
            nonlocal refusals
            if refusals:
                refusals -= 1
                failed("CreateNamedPipeW", Error.NOT_ENOUGH_MEMORY)
                return _pipes.INVALID_HANDLE_VALUE
            return function(*args)

        here().watched.faults["CreateNamedPipeW"] = refuse
        await still_serves(name)
        here().expect_report("Pipe instance cannot be made")
        await until(lambda: len(instances_waiting()) == INSTANCES_WAITING)
        await still_serves(name)


async def test_a_closed_server_is_gone_and_its_connections_live_on():
    async with serving_pipe(EchoPeer) as (server, name, protocols), connected_to(name) as (transport, protocol):
        await until(lambda: protocols and protocols[0].transport)
        server.close()
        server.close()
        assert server.closed()
        assert "closed" in repr(server)
        await until(lambda: not instances_waiting())
        transport.write(b"still")
        assert await protocol.receives(5) == b"still"
        with pytest.raises(OSError):
            bare_client(name)


def test_closing_the_loop_closes_its_pipe_servers(nothing_left):
    name = new_name()
    with running() as loop:
        loop.run_until_complete(loop.start_serving_pipe(Peer, name))
        loop._settle = lambda: asyncio.sleep(0)  # The server is what is left on purpose.
    loop.left.clear()
    with pytest.raises(OSError):
        bare_client(name)


# -- broken pipes and closing ----------------------------------------------------------------------------------


async def test_a_peer_that_is_gone_while_we_write_breaks_the_connection_without_raising():
    async with serving_pipe() as (_, name, protocols):
        client = bare_client(name)
        await until(lambda: protocols and protocols[0].transport)
        protocols[0].transport.pause_reading()
        protocols[0].transport.write(pattern(1_000_000))
        await turns()
        client.close()
        error = await protocols[0].gone()
        assert isinstance(error, BrokenPipeError | ConnectionResetError)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_ending_with_a_read_outstanding_is_quick(end):
    async with serving_pipe() as (_, name, _), connected_to(name) as (transport, protocol):
        await turns()
        assert transport.endpoint.operations
        getattr(transport, end)()
        assert await protocol.gone() is None
        assert transport.get_extra_info("pipe").handle is None


async def test_abort_with_a_write_outstanding_does_not_wait_for_the_reader():
    async with serving_pipe() as (_, name, protocols), connected_to(name) as (transport, protocol):
        await until(lambda: protocols and protocols[0].transport)
        protocols[0].transport.pause_reading()
        transport.write(pattern(1_000_000))
        transport.close()
        await turns()
        assert not protocol.lost.done()
        transport.abort()
        assert await protocol.gone() is None


# -- single ends -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlapped_pipe(*, duplex=False):
    """(read end, write end), both opened for overlapped I/O; `duplex`: for both directions, as those of children."""
    read, write = (PipeHandle(handle) for handle in pipe(duplex=duplex, overlapped=(True, True)))
    try:
        yield read, write
    finally:
        read.close()
        write.close()


async def test_read_and_write_ends_are_connected_as_transports():
    with overlapped_pipe() as (read, write):
        reading, reader = await here().connect_read_pipe(Peer, read)
        writing, writer = await here().connect_write_pipe(Peer, write)
        writing.write(pattern(300_000))
        assert await reader.receives(300_000) == pattern(300_000)
        assert writing.can_write_eof()
        writing.write(b"last")
        writing.write_eof()
        assert await writer.gone() is None
        assert await reader.gone() is None
        assert reader.received == b"last"
        assert reading.get_extra_info("pipe") is read


async def test_a_reading_end_has_nothing_to_write_with_as_asyncios_has_not():
    names = {"write", "writelines", "write_eof", "can_write_eof"}
    with overlapped_pipe() as (read, _):
        reading, reader = await here().connect_read_pipe(Peer, read)
        assert not names & set(dir(asyncio.ReadTransport))
        assert not [name for name in names if hasattr(reading, name)]
        with pytest.raises(AttributeError, match="'ReadPipeTransport' object has no attribute 'writelines'"):
            reading.writelines([b"x"])
        reading.close()
        assert await reader.gone() is None


async def test_a_writer_is_told_when_its_reader_is_gone():
    """Idle: closed without an error. With something unsent: a BrokenPipeError."""
    for unsent, duplex in ((b"", True), (pattern(1_000_000), True), (pattern(1_000_000), False)):
        with overlapped_pipe(duplex=duplex) as (read, write):
            transport, protocol = await here().connect_write_pipe(Peer, write)
            transport.write(unsent)
            await turns()
            read.close()
            error = await protocol.gone()
            assert isinstance(error, BrokenPipeError) if unsent else error is None


async def test_a_reader_that_is_closed_with_a_read_outstanding_is_gone():
    with overlapped_pipe() as (read, _):
        transport, protocol = await here().connect_read_pipe(Peer, read)
        await turns()
        transport.close()
        assert await protocol.gone() is None


async def test_streams_over_a_pipe():
    """What asyncio's StreamReader and StreamWriter need of a transport."""
    with overlapped_pipe() as (read, write):
        reader = asyncio.StreamReader()
        reading, _ = await here().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), read)
        transport, protocol = await here().connect_write_pipe(asyncio.streams.FlowControlMixin, write)
        writer = asyncio.StreamWriter(transport, protocol, None, here())
        writer.write(b"a line\n" + pattern(200_000))
        drained = asyncio.ensure_future(writer.drain())
        assert await reader.readline() == b"a line\n"
        assert await reader.readexactly(200_000) == pattern(200_000)
        await drained
        writer.close()
        assert await reader.read() == b""
        reading.close()
        await until(lambda: not here().outstanding())


def test_a_server_in_another_process_is_talked_to(nothing_left):
    """Our loop there, our loop here."""
    name = new_name()
    script = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[2]); import iocp_loop\n"
        "class Echo(asyncio.Protocol):\n"
        "    def connection_made(self, transport): self.transport = transport\n"
        "    def data_received(self, data): self.transport.write(data)\n"
        "    def connection_lost(self, exc): asyncio.get_running_loop().stop()\n"
        "loop = iocp_loop.new_event_loop()\n"
        "loop.run_until_complete(loop.start_serving_pipe(Echo, sys.argv[1]))\n"
        "print('serving', flush=True)\n"
        "loop.run_forever()\n"
        "loop.close()\n"
    )
    root = os.path.dirname(os.path.dirname(_pipes.__file__))
    with (
        subprocess.Popen([sys.executable, "-c", script, name, root], stdout=subprocess.PIPE) as child,
        running() as loop,
    ):
        assert child.stdout.readline().strip() == b"serving"

        async def talk():
            transport, protocol = await loop.create_pipe_connection(Peer, name)
            transport.write(pattern(100_000))
            assert await protocol.receives(100_000) == pattern(100_000)
            transport.close()
            await protocol.gone()

        loop.run_until_complete(talk())
        assert child.wait(2 * PATIENCE_S) == 0
