"""Programs that run their loop inside a callback, in a process of their own: what allows that patches all of asyncio.

    nested_child.py PACKAGE LOOP WHEN SCENARIO...

PACKAGE: nest_asyncio or nest_asyncio2. LOOP: ours, hybrid (asyncio's over our proactor) or stdlib. WHEN: `before` the
loop runs, or `inside` of it, as a library does that is imported late. Prints what each scenario returns, and what
reached the exception handler.
"""

import asyncio
import faulthandler
import gc
import importlib
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import iocp_loop

CERTIFICATE = Path(__file__).parents[1] / "kernel" / "data" / "localhost.pem"
PATIENCE_S = 30
LOOPS = {
    "ours": iocp_loop.new_event_loop,
    "hybrid": lambda: asyncio.ProactorEventLoop(iocp_loop.IocpProactor()),
    "stdlib": asyncio.ProactorEventLoop,
}


def here():
    return asyncio.get_running_loop()


def nested(awaitable):
    return here().run_until_complete(awaitable)


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def ask(stream, text):
    reader, writer = stream
    writer.write(text)
    return await reader.readexactly(len(text))


class Recorder(asyncio.Protocol, asyncio.DatagramProtocol):
    """Calls `on_message(self, text)` for each message, and is told of its end."""

    def __init__(self, on_message):
        self.on_message = on_message
        self.messages = []
        self.next = here().create_future()
        self.lost = here().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.messages.append(bytes(data).decode())
        waiting, self.next = self.next, here().create_future()
        waiting.set_result(self.messages[-1])
        self.on_message(self, self.messages[-1])

    def datagram_received(self, data, _address):
        self.data_received(data)

    def connection_lost(self, _exc):
        self.lost.set_result("lost")


def ask_again(client, text):
    """In the middle of a delivery, wait for the next one of the same transport's."""
    send = getattr(client.transport, "sendto", None) or client.transport.write
    if text == "one":
        send(b"two")
        client.inside = nested(client.next)
    elif text == "two":
        send(b"three")
        client.further_inside = nested(client.next)


async def timers():
    loop, fired, early = here(), [], []

    def on_time(name, when):
        fired.append(name)
        if loop.time() < when:
            early.append(name)
        if name == 3:
            # From inside, and waited for inside.
            inside = loop.create_future()
            loop.call_later(0.02, inside.set_result, None)
            loop.call_at(0, fired.append, "past")
            nested(inside)

    now = loop.time()
    for number in range(20):
        loop.call_at(now + number * 0.01, on_time, number, now + number * 0.01)
    cancelled = [loop.call_at(now + number * 0.001, fired.append, "cancelled") for number in range(300)]
    for handle in cancelled:
        handle.cancel()
    nested(asyncio.sleep(0.1))
    await asyncio.sleep(0.15)
    return sorted(map(str, fired)) == sorted([*map(str, range(20)), "past"]), early


async def timers_of_one_moment():
    """Due in the same turn as the callback that waits for them."""
    loop, arrived = here(), here().create_future()
    when = loop.time() + 0.05
    answers = []
    loop.call_at(when, lambda: answers.append(nested(arrived)))
    loop.call_at(when + 1e-9, arrived.set_result, "the other one")
    await asyncio.sleep(0.1)
    return answers


async def callbacks_behind_the_one_that_waits():
    loop, arrived, ran = here(), here().create_future(), []

    def wait():
        ran.append(nested(arrived))
        ran.append("went on")

    loop.call_soon(wait)
    loop.call_soon(ran.append, "first")
    loop.call_soon(arrived.set_result, "second")
    loop.call_soon(ran.append, "third")
    await asyncio.sleep(0.01)
    return ran


async def streams(**options):
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=options.pop("server_ssl", None))
    stream = await asyncio.open_connection(*server.sockets[0].getsockname(), **options)
    answers = [await ask(stream, b"outside")]
    for number in range(10):
        answers.append(nested(ask(stream, b"nested %d" % number)))
        answers.append(await ask(stream, b"outside %d" % number))

    async def deeper(depth):
        answers.append(await ask(stream, b"depth %d" % depth))
        if depth:
            nested(deeper(depth - 1))
            answers.append(await ask(stream, b"back at %d" % depth))

    nested(deeper(3))
    big = bytes(3_000_000)
    answers.append(nested(ask(stream, big)) == big)
    stream[1].close()
    nested(stream[1].wait_closed())
    server.close()
    return answers


def tls_contexts():
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(CERTIFICATE)
    return server, ssl.create_default_context(cafile=str(CERTIFICATE))


async def tls_streams():
    server, client = tls_contexts()
    return await streams(server_ssl=server, ssl=client, server_hostname="localhost")


async def tls_deliveries_inside_a_delivery():
    server, client = tls_contexts()
    return await deliveries_inside_a_delivery(
        ssl=server, client_options={"ssl": client, "server_hostname": "localhost"}
    )


async def deliveries_inside_a_delivery(client_options=(), **server_options):
    serve = lambda: Recorder(lambda it, text: it.transport.write(text.encode()))  # noqa: E731
    server = await here().create_server(serve, "127.0.0.1", 0, **server_options)
    address = server.sockets[0].getsockname()
    transport, client = await here().create_connection(lambda: Recorder(ask_again), *address, **dict(client_options))
    transport.write(b"one")
    while client.messages != ["one", "two", "three"] or not hasattr(client, "inside"):
        await asyncio.sleep(0.01)
    transport.write(b"four")
    after = await client.next
    transport.close()
    server.close()
    return client.messages, client.inside, client.further_inside, after, await client.lost


async def datagrams_inside_a_delivery():
    def answer(it, text):
        it.transport.sendto(text.encode(), there)

    loop = here()
    serving, _ = await loop.create_datagram_endpoint(lambda: Recorder(answer), ("127.0.0.1", 0))
    address = serving.get_extra_info("sockname")
    transport, client = await loop.create_datagram_endpoint(lambda: Recorder(ask_again), remote_addr=address)
    there = transport.get_extra_info("sockname")
    transport.sendto(b"one")
    while client.messages != ["one", "two", "three"] or not hasattr(client, "inside"):
        await asyncio.sleep(0.01)
    transport.sendto(b"four")
    after = nested(client.next)
    transport.close()
    serving.close()
    return client.messages, client.inside, client.further_inside, after


async def a_connection_that_ends_inside_its_delivery():
    accepted = here().create_future()

    class Served(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            accepted.set_result(self)

    def close(it, _text):
        it.transport.close()
        it.told = nested(it.lost)

    server = await here().create_server(lambda: Served(lambda *_: None), "127.0.0.1", 0)
    _, client = await here().create_connection(lambda: Recorder(close), *server.sockets[0].getsockname())
    served = await accepted
    served.transport.write(b"end")
    server.close()
    await client.lost
    await served.lost
    return client.told


async def message_pipes():
    return await pipes(message_mode=True)


async def pipes(**options):
    loop, address = here(), rf"\\.\pipe\nested-{time.perf_counter_ns()}"
    serve = lambda: Recorder(lambda it, text: it.transport.write(text.encode()))  # noqa: E731
    (server,) = await loop.start_serving_pipe(serve, address, **options)
    transport, client = await loop.create_pipe_connection(lambda: Recorder(ask_again), address, **options)
    transport.write(b"one")
    while client.messages != ["one", "two", "three"] or not hasattr(client, "inside"):
        await asyncio.sleep(0.01)
    transport.write(b"four")
    after = nested(client.next)
    transport.close()
    server.close()
    await client.lost
    return client.messages, client.inside, client.further_inside, after


async def what_was_written_is_sent_though_the_loop_stands_still():
    """After the nested run the thread waits for the peer without the loop, as a notebook does for its user."""
    left, right = socket.socketpair()
    right.settimeout(PATIENCE_S)
    left.setblocking(False)
    _reader, writer = await asyncio.open_connection(sock=left)

    async def write(count):
        for _ in range(count):
            writer.write(b"crumb")

    read = []
    for count in (1, 2, 3, 1000, 1, 2):
        nested(write(count))
        received = b""
        while len(received) < 5 * count:
            received += right.recv(65536)
        read.append(received == b"crumb" * count)
    writer.close()
    right.close()
    return read


async def writing_more_than_the_peer_reads():
    left, right = socket.socketpair()
    left.setblocking(False)
    _reader, writer = await asyncio.open_connection(sock=left)
    received = []

    def read():
        while data := right.recv(65536):
            received.append(len(data))

    async def write():
        for _ in range(100):
            writer.write(bytes(100_000))
            await writer.drain()
        writer.close()

    reading = threading.Thread(target=read)
    reading.start()
    nested(write())
    nested(writer.wait_closed())
    reading.join()
    right.close()
    return sum(received)


async def a_process():
    code = "import sys; print(sys.stdin.read().upper(), end=''); sys.exit(3)"

    async def run():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=-1, stdout=-1)
        out, _ = await process.communicate(b"shout")
        return process.returncode, out

    return nested(run())


async def other_threads():
    loop = here()
    answers = [nested(loop.run_in_executor(None, sum, (1, 2)))]
    arrived = loop.create_future()
    threading.Timer(0.05, loop.call_soon_threadsafe, (arrived.set_result, "from a thread")).start()
    return [*answers, nested(arrived)]


async def stop_inside():
    loop, told = here(), []
    loop.call_soon(loop.stop)
    try:
        nested(asyncio.sleep(PATIENCE_S))
    except RuntimeError as exc:
        told.append(str(exc))
    return told


async def exceptions_inside():
    loop, told = here(), []
    gc.disable()  # Nobody takes the exception of the task that ends a run; when that is reported is the collector's affair.

    async def fail(exc):
        await asyncio.sleep(0.01)
        raise exc

    for exc in (ValueError("of a task"), KeyboardInterrupt("of a task")):
        try:
            nested(fail(exc))
        except BaseException as caught:
            told.append(repr(caught))

    def interrupt():
        raise KeyboardInterrupt("of a callback")

    loop.call_soon(interrupt)
    try:
        nested(asyncio.sleep(PATIENCE_S))
    except KeyboardInterrupt as caught:
        told.append(repr(caught))
    return told, nested(asyncio.sleep(0.01, "goes on")), await streams()


async def ctrl_c():
    """While a nested run waits."""
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    started = time.monotonic()
    try:
        nested(asyncio.sleep(PATIENCE_S))
    except KeyboardInterrupt:
        return time.monotonic() - started < PATIENCE_S / 2, nested(asyncio.sleep(0.01, "goes on"))


def main(package, loop_name, when, scenario):
    apply = importlib.import_module(package).apply
    reports = []
    loop = LOOPS[loop_name]()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda _loop, context: reports.append(context))

    async def run():
        if when == "inside":
            apply(loop)
        return await globals()[scenario]()

    if when == "before":
        apply(loop)
    answers = []
    if scenario == "stop_inside":
        answers.append(loop.run_until_complete(run()))
        loop.run_forever()  # It is this that forgets the stop.
        answers.append(loop.run_until_complete(asyncio.sleep(0.01, "goes on")))
    else:
        # Several runs, as in a notebook; nest_asyncio has an asyncio.run of its own.
        answers.append(loop.run_until_complete(run()))
        answers.append(asyncio.run(asyncio.sleep(0.01, "run again")))
        if when == "before":
            answers.append(asyncio.run(run()) == answers[0])
    loop.run_until_complete(asyncio.sleep(0.05))
    if loop_name == "ours":
        assert len(loop.proactor.pending) == loop._signals.receives_pending, loop.proactor.pending
    loop.close()
    return answers, reports


if __name__ == "__main__":
    for each in sys.argv[4:]:
        faulthandler.dump_traceback_later(2 * PATIENCE_S, exit=True)
        print(each, *main(*sys.argv[1:4], each), flush=True)
