"""Scenarios for the table of orders: pipes, datagrams, processes."""

import asyncio
import contextlib
import msvcrt
import os
import socket
import subprocess
import sys
from asyncio.windows_utils import PipeHandle, pipe

from kernel.peers import LOCALHOST
from kernel.watched import PATIENCE_S

from .order_connections import MIB, ended, opened
from .orders import Noting

# -- the loop itself -------------------------------------------------------------------------------------------


async def everything_is_due(journal):
    """Callbacks, a timer that is due and one that was long ago, a task, a future: all asked for in one turn."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    future.add_done_callback(lambda _: journal.note("future"))

    async def work():
        journal.note("task")
        await asyncio.sleep(0)
        journal.note("task again")

    def soon():
        journal.note("soon")
        loop.call_soon(journal.note, "soon again")

    loop.call_later(0, journal.note, "timer")
    loop.call_at(loop.time() - 1, journal.note, "late timer")
    loop.call_soon(soon)
    future.set_result(None)
    loop.call_soon_threadsafe(journal.note, "threadsafe")
    task = asyncio.ensure_future(work())
    journal.note("asked")
    await task
    journal.note("await")


async def callbacks_are_queued_before_reading_is_resumed(journal):
    """Data are there, and no receive: they come after what was asked for before."""
    loop = asyncio.get_running_loop()
    sock, peer = socket.socketpair()

    def pause(protocol):
        protocol.transport.pause_reading()
        peer.sendall(b"x")

    with peer:
        transport, _ = await loop.create_connection(lambda: Noting(journal, made=pause), sock=sock)
        loop.call_soon(journal.note, "soon")
        transport.resume_reading()
        journal.note("resume_reading")
        await journal.has("data")
        transport.abort()
        await journal.has("lost")


async def a_timer_is_due_while_data_are_there(journal):
    """What was queued before, the data, then the timer."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(ours, 10))
        receiving.add_done_callback(lambda _: journal.note("received"))
        await asyncio.sleep(0)
        loop.call_soon(journal.note, "soon")
        peer.send(b"x")
        loop.call_at(loop.time() - 1, journal.note, "timer")
        await receiving
        await asyncio.sleep(0)


# -- pipes -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def read_pipe(journal, first=b"", **on):
    ours, theirs = pipe(overlapped=(True, False))
    with open(msvcrt.open_osfhandle(theirs, os.O_WRONLY), "wb", 0) as peer:
        if first:
            peer.write(first)

        def factory():
            journal.note("factory")
            return Noting(journal, **on)

        _, protocol = await asyncio.get_running_loop().connect_read_pipe(factory, PipeHandle(ours))
        journal.note("await")
        async with ended(protocol, peer):
            yield protocol, peer


@contextlib.asynccontextmanager
async def write_pipe(journal, **on):
    theirs, ours = pipe(overlapped=(False, True), duplex=True, bufsize=512)
    with open(msvcrt.open_osfhandle(theirs, os.O_RDONLY), "rb", 0) as peer:

        def factory():
            journal.note("factory")
            return Noting(journal, **on)

        _, protocol = await asyncio.get_running_loop().connect_write_pipe(factory, PipeHandle(ours))
        journal.note("await")
        async with ended(protocol, peer):
            yield protocol, peer


async def pipe_is_read_to_its_end(journal):
    async with read_pipe(journal, b"x") as (_, peer):
        await journal.has("data")
        peer.close()
        await journal.has("lost")


async def pipe_is_closed_by_its_writer(journal):
    async with write_pipe(journal) as (protocol, _):
        await opened(journal)
        protocol.transport.close()
        journal.note("close")
        await journal.has("lost")


async def pipe_is_closed_by_its_reader(journal):
    async with read_pipe(journal) as (protocol, _):
        await opened(journal)
        protocol.transport.close()
        journal.note("close")
        await journal.has("lost")


async def reading_end_goes(journal):
    async with write_pipe(journal) as (_, peer):
        await opened(journal)
        peer.close()
        await journal.has("lost")


async def reading_end_goes_while_much_waits(journal):
    async with write_pipe(journal) as (protocol, peer):
        await opened(journal)
        protocol.transport.write(bytes(MIB))
        journal.note("written")
        peer.close()
        await journal.has("lost")


async def much_is_written_into_a_pipe(journal):
    async with write_pipe(journal) as (protocol, peer):
        await opened(journal)
        protocol.transport.write(bytes(MIB))
        journal.note("written")
        reading = asyncio.ensure_future(asyncio.to_thread(peer.readall))
        await journal.has("resume")
        protocol.transport.close()
        journal.note("close")
        await reading
        await journal.has("lost")


async def much_is_written_into_a_pipe_and_it_is_closed(journal):
    async with write_pipe(journal) as (protocol, peer):
        await opened(journal)
        protocol.transport.write(bytes(MIB))
        protocol.transport.close()
        journal.note("close")
        await asyncio.to_thread(peer.readall)
        await journal.has("lost")


async def named_pipe_is_served(journal):
    """What one end is told; when the other one is, is the kernel's business."""
    loop, name = asyncio.get_running_loop(), rf"\\.\pipe\iocp_loop-orders-{os.getpid()}"

    def factory(who):
        journal.note(f"{who} factory")
        return Noting(journal, f"{who} ")

    (server,) = await loop.start_serving_pipe(lambda: factory("server"), name)
    transport, _ = await loop.create_pipe_connection(lambda: factory("client"), name)
    journal.note("client await")
    await journal.has("server made")
    await journal.has("client made")
    transport.write(b"x")
    await journal.has("server data")
    transport.close()
    await journal.has("server lost")
    await journal.has("client lost")
    server.close()


# -- datagrams -------------------------------------------------------------------------------------------------


class Reluctant(socket.socket):
    """A socket that takes no datagram at once while `refusing`."""

    refusing = True

    def sendto(self, *args):
        if self.refusing:
            raise BlockingIOError
        return super().sendto(*args)


@contextlib.asynccontextmanager
async def endpoint(journal, first=b"", kind=socket.socket, **on):
    """(protocol, peer): an endpoint on a given socket, and a bound one that has sent it what comes first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE_S)
        peer.bind((LOCALHOST, 0))
        sock = kind(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOCALHOST, 0))
        if first:
            peer.sendto(first, sock.getsockname())

        def factory():
            journal.note("factory")
            return Noting(journal, **on)

        _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(factory, sock=sock)
        journal.note("await")
        async with ended(protocol, peer):
            yield protocol, peer


async def datagram_is_there_before(journal):
    async with endpoint(journal, b"x"):
        await journal.has("data")


async def endpoint_is_closed_when_made(journal, how="close"):
    async with endpoint(journal, b"x", made=lambda protocol: getattr(protocol.transport, how)()):
        await journal.has("lost")


def endpoint_is_aborted_when_made(journal):
    return endpoint_is_closed_when_made(journal, "abort")


async def endpoint_sends_to_itself_when_made(journal):
    def send(protocol):
        protocol.transport.sendto(b"x", protocol.transport.get_extra_info("sockname"))
        journal.note("sent")

    async with endpoint(journal, made=send):
        await journal.has("data")


async def endpoint_is_closed(journal, how="close"):
    async with endpoint(journal) as (protocol, _):
        await opened(journal)
        getattr(protocol.transport, how)()
        journal.note(how)
        await journal.has("lost")


def endpoint_is_aborted(journal):
    return endpoint_is_closed(journal, "abort")


async def endpoint_is_closed_when_data_come(journal):
    """The second datagram is there, and nobody's any more."""
    async with endpoint(journal, data=lambda protocol: protocol.transport.close()) as (protocol, peer):
        await opened(journal)
        for _ in range(2):
            peer.sendto(b"x", protocol.transport.get_extra_info("sockname"))
        await journal.has("lost")


async def datagram_is_refused(journal):
    async with endpoint(journal) as (protocol, _):
        await opened(journal)
        protocol.transport.sendto(bytes(70_000), protocol.transport.get_extra_info("sockname"))
        journal.note("sent")
        protocol.transport.close()
        await journal.has("lost")


async def protocol_raises_when_data_come(journal):
    async with endpoint(journal, data=Noting.raising) as (protocol, peer):
        await opened(journal)
        for _ in range(2):
            peer.sendto(b"x", protocol.transport.get_extra_info("sockname"))
        await journal.has("report", 2)


async def protocol_raises_when_an_error_comes(journal):
    async with endpoint(journal, error=Noting.raising) as (protocol, _):
        await opened(journal)
        try:
            protocol.transport.sendto(bytes(70_000), protocol.transport.get_extra_info("sockname"))
            journal.note("sent")
        except ZeroDivisionError:
            journal.note("raised")


async def datagrams_wait(journal, how=None):
    """Sent while the socket takes none; then it does."""
    async with endpoint(journal, kind=Reluctant) as (protocol, peer):
        await opened(journal)
        transport = protocol.transport
        # Where each keeps its own socket, and not what asyncio shows of it.
        sock = transport.handle if hasattr(transport, "handle") else transport._sock
        # The stdlib forgets the eight bytes that a datagram counts for beside its data: they stay.
        transport.set_write_buffer_limits(high=40)
        transport.sendto(bytes(50), peer.getsockname())
        journal.note("sent")
        if how:
            getattr(transport, how)()
            journal.note(how)
        sock.refusing = False
        await journal.has("lost" if how else "resume")


def datagrams_wait_and_it_is_closed(journal):
    return datagrams_wait(journal, "close")


def datagrams_wait_and_it_is_aborted(journal):
    return datagrams_wait(journal, "abort")


# -- processes -------------------------------------------------------------------------------------------------

# Isolated, without site: starts in a third of the time.
PYTHON = (sys.executable, "-I", "-S", "-c")
ECHO = "import sys; sys.stdout.write(sys.stdin.read())"
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


async def process(journal, code, first=b"", end=None, **pipes):
    """Run a child process, given something to read, to its end; `end` may make one."""
    options = {"stdin": None, "stdout": None, "stderr": None} | pipes
    transport, _ = await asyncio.get_running_loop().subprocess_exec(lambda: Noting(journal), *PYTHON, code, **options)
    journal.note("await")
    waiting = asyncio.ensure_future(transport._wait())
    waiting.add_done_callback(lambda _: journal.note("waited"))
    if first:
        transport.get_pipe_transport(0).write(first)
        transport.get_pipe_transport(0).close()
    await (asyncio.sleep(0) if end is None else end(transport, journal))
    await journal.has("waited")
    await journal.has("lost")
    transport.close()


def process_without_pipes(journal):
    return process(journal, "")


def process_that_echoes(journal):
    return process(journal, ECHO, b"x", **PIPES)


def process_that_is_killed(journal):
    async def kill(transport, _):
        transport.kill()

    return process(journal, "input()", end=kill, stdin=subprocess.PIPE)


def process_whose_grandchild_stays(journal):
    """It inherits stdin and stdout, and waits for the end of the first."""
    code = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-I', '-S', '-c', 'import sys; sys.stdin.read()'])\n"
    )

    async def close(transport, journal):
        await journal.has("exited")
        for _ in range(10):
            await asyncio.sleep(0)
        journal.note("close")
        transport.get_pipe_transport(0).close()

    return process(journal, code, end=close, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
