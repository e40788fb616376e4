"""What is over is freed at once: with the cycle collector off, nothing is left for it.

Programs with a large heap turn it off, or let it run rarely; a cycle per connection would be a leak there.
"""

import asyncio
import gc
import os
import socket
import time
import weakref

import pytest

import iocp_loop
from iocp_loop._core._arena import stomp_wanted

from .test_handles import Event
from .watched import running

pytestmark = pytest.mark.skipif(stomp_wanted(), reason="the stomp arena makes an array type for each of its buffers")

ROUNDS = 20


async def connections(loop):
    async def on_client(reader, writer):
        writer.write(await reader.read(10))
        writer.close()
        await writer.wait_closed()

    # A function that names itself in its own cell would be a cycle of the test's.
    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    for _ in range(ROUNDS):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        assert await reader.read() == b"x"
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def servers(loop):
    for _ in range(ROUNDS):
        (await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)).close()


async def datagram_endpoints(loop):
    for _ in range(ROUNDS):
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        await asyncio.sleep(0)
        transport.close()


async def bare_receives(loop):
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        buffer = bytearray(1000)
        for size in range(1, 1 + ROUNDS):
            other.send(b"x")
            assert await loop.sock_recv(one, size) == b"x"
            other.send(b"x")
            assert await loop.sock_recv_into(one, memoryview(buffer)[: 10 * size]) == 1
            try:
                async with asyncio.timeout(0.001):
                    await loop.sock_recv_into(one, memoryview(buffer)[: 10 * size])
            except TimeoutError:
                pass


async def bare_datagrams(loop):
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        buffer = bytearray(1000)
        for size in range(1, 1 + ROUNDS):
            other.sendto(b"x", one.getsockname())
            assert (await loop.sock_recvfrom(one, size))[0] == b"x"
            other.sendto(b"x", one.getsockname())
            assert (await loop.sock_recvfrom_into(one, buffer, size))[0] == 1


async def watchers(loop):
    for _ in range(ROUNDS):
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            ready = loop.create_future()
            loop.add_reader(one, ready.set_result, None)
            other.send(b"x")
            await ready
            loop.remove_reader(one)


async def tasks_that_wait(loop):
    for _ in range(ROUNDS):
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            await loop.wait_writable(one)
            try:
                async with asyncio.timeout(0):
                    await loop.wait_readable(one)
            except TimeoutError:
                pass
            other.send(b"x")
            await loop.wait_readable(one)


async def waits_for_handles(loop):
    event = Event()
    for _ in range(ROUNDS):
        assert await loop.wait_for_handle(event.handle, 0) is False
        assert await loop.wait_for_handle(event.handle, 0.001) is False
        waiting = loop.wait_for_handle(event.handle)
        await asyncio.sleep(0)
        event.set()
        assert await waiting is True
    event.close()


async def pipes(loop):
    for _ in range(ROUNDS):
        name = rf"\\.\pipe\collected-{os.getpid()}-{time.perf_counter_ns()}"
        [server] = await loop.start_serving_pipe(asyncio.Protocol, name)
        transport, _ = await loop.create_pipe_connection(asyncio.Protocol, name)
        transport.write(b"x")
        await asyncio.sleep(0)
        transport.close()
        server.close()


async def executors_and_timers(loop):
    for _ in range(ROUNDS):
        await loop.run_in_executor(None, int)
        await asyncio.sleep(0.001)


WORK = (
    connections,
    servers,
    tasks_that_wait,
    datagram_endpoints,
    bare_receives,
    bare_datagrams,
    watchers,
    waits_for_handles,
    pipes,
    executors_and_timers,
)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_nothing_is_left_to_the_cycle_collector(work):
    with running() as loop:

        async def once():
            await work(loop)
            await asyncio.sleep(0.02)  # Ends come in the turns after: nothing depends on how many.

        loop.run_until_complete(once())  # What is made once is made before.
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            loop.run_until_complete(once())
            gc.collect()
            left = [repr(each)[:200] for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not left


async def a_watched_socket(loop):
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.send(b"x")
        ready = loop.create_future()
        loop.add_reader(left, lambda: ready.done() or ready.set_result(None))
        await ready
        loop.remove_reader(left)


async def an_executors_call(loop):
    await loop.run_in_executor(None, int)


async def a_connection_that_lingers(loop):
    left, right = socket.socketpair()
    left.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
    await asyncio.sleep(0.01)
    transport.close()
    await asyncio.sleep(0.01)
    assert loop._services.lingerings
    right.close()


async def a_timer(_loop):
    await asyncio.sleep(0.001)


@pytest.mark.parametrize("work", [a_timer, a_watched_socket, an_executors_call, a_connection_that_lingers])
def test_a_closed_loop_is_freed_when_nobody_has_it_any_more(work):
    """As asyncio's. Suites make a loop per test, and those that look for cycles would find ours in the next test."""
    gc.collect()
    gc.disable()
    try:
        loop = iocp_loop.new_event_loop()
        loop.run_until_complete(work(loop))
        loop.close()
        known = weakref.ref(loop)
        del loop
        assert known() is None
        assert gc.collect() == 0
    finally:
        gc.enable()
