"""KeyboardInterrupt at any line of the loop's own code, and real ones under load.

A trace function raises it at one line after another: what the interpreter may do between any two bytecodes, and does
where a program has a handler of its own. Whatever was cut short: a task can be cancelled and ends, the loop runs again
and serves new connections, nothing is kept for the life of the process, and closing takes no time.
"""

import _thread
import asyncio
import os
import random
import socket
import sys
import tempfile
import threading
import time

import pytest

import iocp_loop
from iocp_loop._core import _kept

from .test_handles import Event
from .test_tls import client_context, server_context

PACKAGE = os.path.dirname(iocp_loop.__file__).lower()
PATIENCE_S = 3.0
# Lines that one run passes are thousands: every so manieth is tried, from a place that differs between versions.
STEP = 41
INTERRUPTS = 60


class Interrupt:
    """Raises KeyboardInterrupt at the nth line of ours that runs while it is installed."""

    def __init__(self, line):
        self.left = line
        self.where = None

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_filename.lower()
        # Not the stomp arena's, nor those of waits by thread: a traced exception on the line that ends a `with` leaves the
        # lock locked for ever. (A signal's does not come there: it is deferred.)
        ours = name.startswith(PACKAGE) and not any(part in name for part in ("_win32", "_debug", "_waits"))
        # Nor call_soon: a future that wakes several (an executor's, say) forgets the others when one call raises.
        return self.count if ours and frame.f_code.co_name != "call_soon" else None

    def count(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if not self.left:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.count


async def echo(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def streams(loop):
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for _ in range(3):
        writer.write(b"x" * 10)
        await reader.readexactly(10)
    writer.write(b"x" * 300_000)
    await writer.drain()
    await reader.readexactly(300_000)
    writer.close()
    await writer.wait_closed()
    server.close()


async def bare_sockets(loop):
    one, other = socket.socketpair()
    try:
        for each in (one, other):
            each.setblocking(False)
        await loop.sock_sendall(one, b"x" * 10)
        await loop.sock_recv(other, 100)
        waiting = loop.create_task(loop.sock_recv(other, 100))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        ready = loop.create_future()
        loop.add_reader(other, lambda: ready.done() or ready.set_result(None))
        one.send(b"y")
        await ready
        loop.remove_reader(other)
    finally:
        one.close()
        other.close()


class Bounce(asyncio.DatagramProtocol):
    def __init__(self, loop):
        self.received = loop.create_future()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)
        if not self.received.done():
            self.received.set_result(data)


async def datagrams(loop):
    server, _ = await loop.create_datagram_endpoint(lambda: Bounce(loop), local_addr=("127.0.0.1", 0))
    client, protocol = await loop.create_datagram_endpoint(
        lambda: Bounce(loop), remote_addr=server.get_extra_info("sockname")
    )
    client.sendto(b"one")
    await protocol.received
    client.close()
    server.close()
    await asyncio.sleep(0)


async def pipes(loop):
    name = rf"\\.\pipe\interrupted-{os.getpid()}-{time.perf_counter_ns()}"
    [server] = await loop.start_serving_pipe(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo), name)
    reader = asyncio.StreamReader()
    transport, _ = await loop.create_pipe_connection(lambda: asyncio.StreamReaderProtocol(reader), name)
    transport.write(b"x" * 10)
    await reader.readexactly(10)
    transport.close()
    server.close()
    await asyncio.sleep(0)


async def messages(loop):
    name = rf"\\.\pipe\interrupted-{os.getpid()}-{time.perf_counter_ns()}"
    got = loop.create_future()

    class Answer(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    class Ask(asyncio.Protocol):
        def __init__(self):
            self.left = [b"", b"x" * 100_000, b"short"]

        def connection_made(self, transport):
            self.transport = transport
            transport.write(self.left[0])

        def data_received(self, data):
            assert data == self.left.pop(0)
            if self.left:
                self.transport.write(self.left[0])
            elif not got.done():
                got.set_result(None)

    [server] = await loop.start_serving_pipe(Answer, name, message_mode=True)
    transport, _ = await loop.create_pipe_connection(Ask, name, message_mode=True)
    await got
    transport.close()
    server.close()
    await asyncio.sleep(0)


async def files_and_handles(loop):
    event = Event()
    waiting = loop.wait_for_handle(event.handle)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100_000)
        file.flush()
        await loop.sendfile(writer.transport, file)
        await reader.readexactly(100_000)
    event.set()
    await waiting
    event.close()
    writer.close()
    server.close()


async def tls(loop):
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context())
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address, ssl=client_context(), server_hostname="localhost")
    writer.write(b"x" * 100_000)
    await reader.readexactly(100_000)
    writer.close()
    await writer.wait_closed()
    server.close()


async def threads_and_timers(loop):
    await asyncio.sleep(0.001)
    await loop.run_in_executor(None, int)
    loop.call_soon_threadsafe(int)
    await asyncio.sleep(0)


WORKS = streams, bare_sockets, datagrams, pipes, messages, files_and_handles, tls, threads_and_timers
WORK = {each.__name__: each for each in WORKS}


def interrupted_at(line, work):
    """Where the interrupt came, and what was wrong afterwards; None if the work was over before."""
    loop, wrong, reports = iocp_loop.new_event_loop(), [], []
    loop.set_exception_handler(lambda _, report: reports.append(f"{report['message']}: {report.get('exception')!r}"))
    interrupt = Interrupt(line)
    main = loop.create_task(work(loop))

    def give_up():
        wrong.append("the run does not end")
        loop.call_soon_threadsafe(main.cancel)

    patience = threading.Timer(3 * PATIENCE_S, give_up)
    patience.start()
    sys.settrace(interrupt)
    try:
        loop.run_until_complete(main)
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    except RuntimeError as exc:
        if interrupt.where is None or "Event loop stopped" not in str(exc):
            raise
    finally:
        sys.settrace(None)
        patience.cancel()
        patience.join()
    try:
        if interrupt.where is not None:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks and loop.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE_S))[1]:
                wrong.append("a cancelled task does not end")
            for again in (streams, datagrams, threads_and_timers):
                loop.run_until_complete(asyncio.wait_for(again(loop), PATIENCE_S))
        loop.run_until_complete(loop.shutdown_default_executor())
    except TimeoutError:
        wrong.append("the second run gets no answer")
    finally:
        closing = time.perf_counter()
        loop.close()
        if time.perf_counter() - closing > 2:
            wrong.append("closing took long")
    # A connection that was cut short may say so; of these the loop must not speak.
    wrong += [each for each in reports if "LifetimeError" in each or "AssertionError" in each]
    return interrupt.where, wrong


@pytest.mark.parametrize("work", WORK)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # What was cut short was not closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_loses_nothing(work):
    interrupted_at(10**9, WORK[work])  # What is made once is made before.
    line, bad, tried = random.Random(sys.hexversion).randrange(1, STEP), [], 0
    while found := interrupted_at(line, WORK[work]):
        where, wrong = found
        if where is None:
            break
        tried += 1
        if wrong:
            bad.append((line, where, wrong))
        line += STEP
    assert not bad
    assert not _kept.ORPHANS
    assert tried, "hardly a line of ours has run"


def test_real_interrupts_under_load_leave_every_connection_alive():
    """A thread interrupts again and again; the program runs the loop on each time.

    One that comes in the protocol's own code may end its conversation; the connection still works.
    """
    loop, counts, interrupts = iocp_loop.new_event_loop(), [0] * 8, 0
    reports = []
    loop.set_exception_handler(lambda _loop, report: reports.append(report))

    class Conversation(asyncio.Protocol):
        def __init__(self, place=None):
            self.place = place

        def connection_made(self, transport):
            self.transport = transport
            if self.place is not None:
                transport.write(b"x")

        def data_received(self, data):
            self.transport.write(data)
            if self.place is not None:
                counts[self.place] += 1

    async def begin():
        server = await loop.create_server(Conversation, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        return server, [(await loop.create_connection(lambda n=n: Conversation(n), *address))[0] for n in range(8)]

    server, clients = loop.run_until_complete(begin())
    over = threading.Event()

    def interrupt():
        choice = random.Random(7)
        for _ in range(INTERRUPTS):
            time.sleep(choice.random() * 0.01)  # Not for an order: anywhere will do.
            _thread.interrupt_main()
        loop.call_soon_threadsafe(end)

    def end():
        over.set()
        loop.stop()

    thread = threading.Thread(target=interrupt)
    while not over.is_set():
        try:
            while not over.is_set():
                try:
                    if not thread.ident:
                        thread.start()
                    loop.run_forever()
                except KeyboardInterrupt:
                    interrupts += 1
        except KeyboardInterrupt:
            interrupts += 1  # It came where the test catches the one before.
    thread.join()

    async def settle():
        before = list(counts)
        for each in clients:
            each.write(b"x")
        async with asyncio.timeout(10):
            while any(one == other for one, other in zip(before, counts, strict=True)):
                await asyncio.sleep(0.001)

    try:
        loop.run_until_complete(settle())
    except KeyboardInterrupt:
        loop.run_until_complete(settle())  # The last one.
    for each in clients:
        each.close()
    server.close()
    loop.run_until_complete(asyncio.sleep(0.01))
    closing = time.perf_counter()
    loop.close()
    assert time.perf_counter() - closing < 2
    assert interrupts > INTERRUPTS / 4  # Several that come at once are one.
    assert not reports
