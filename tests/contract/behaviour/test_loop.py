"""The loop itself: callbacks, timers, threads, executors, bare sockets, the end."""

import asyncio
import contextvars
import socket
import threading

import pytest
from kernel.peers import LOCALHOST, client, pattern, receive_exactly
from kernel.watched import turns

import iocp_loop

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


async def test_callbacks_run_in_order_and_in_later_turns():
    loop, seen = asyncio.get_running_loop(), []
    for n in range(5):
        loop.call_soon(seen.append, n)
    assert seen == []
    await asyncio.sleep(0)
    assert seen == list(range(5))


async def test_timers_run_in_the_order_of_their_times():
    loop, seen = asyncio.get_running_loop(), []
    for delay in (0.03, 0.01, 0.02):
        loop.call_later(delay, seen.append, delay)
    loop.call_later(0.005, seen.append, "cancelled").cancel()
    await asyncio.sleep(0.06)
    assert seen == [0.01, 0.02, 0.03]


async def test_callbacks_run_in_the_context_they_were_given():
    loop, seen = asyncio.get_running_loop(), []
    context = contextvars.copy_context()
    context.run(variable.set, 5)
    loop.call_soon(lambda: seen.append(variable.get()), context=context)
    loop.call_soon_threadsafe(lambda: seen.append(variable.get()), context=context)
    loop.call_soon(lambda: seen.append(variable.get()))
    await turns()
    assert sorted(seen) == [0, 5, 5]


async def test_an_exception_in_a_callback_is_reported_and_the_rest_runs(reports):
    loop, seen = asyncio.get_running_loop(), []
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(seen.append, 1)
    await turns()
    assert seen == [1]
    assert isinstance(reports().pop()["exception"], ZeroDivisionError)


async def test_the_report_of_a_callback_that_raised_names_it_alike(reports):
    loop = asyncio.get_running_loop()
    handles = [
        loop.call_soon(divide, 1),
        loop.call_later(0, divide, 1),
        loop.call_at(loop.time(), divide, 1),
        loop.call_soon_threadsafe(divide, 1),
    ]
    while len(reports()) < len(handles):
        await asyncio.sleep(0)
    for report in reports():
        assert report["message"].startswith("Exception in callback divide(")
        assert isinstance(report["exception"], ZeroDivisionError)
        assert set(report) == {"message", "exception", "handle"}
        handles.remove(report["handle"])
    assert handles == []
    reports().clear()


def divide(number):
    return number / 0


async def test_handles_are_asyncios_and_look_like_them():
    loop = asyncio.get_running_loop()
    handle, timer = loop.call_soon(divide, 1), loop.call_later(1, divide, 1)
    assert isinstance(handle, asyncio.Handle)
    assert isinstance(timer, asyncio.TimerHandle)
    assert repr(handle).startswith("<Handle divide(")
    assert repr(timer).startswith("<TimerHandle when=")
    assert handle == handle
    assert timer != loop.call_later(2, divide, 1)
    assert timer < loop.call_later(3, divide, 1)
    assert len({timer, handle}) == 2
    assert abs(timer.when() - loop.time() - 1) < 0.9
    for one in (handle, timer, *list(loop._scheduled)):
        one.cancel()
        assert one.cancelled()
        assert "cancelled" in repr(one)
    assert list(loop._scheduled) != []  # What is cancelled leaves the heap later.
    await turns(5)
    assert list(loop._scheduled) == []


async def test_many_cancelled_timers_do_not_stay():
    loop = asyncio.get_running_loop()
    kept = loop.call_later(1000, divide, 1)
    cancelled = [loop.call_later(2000 + n, divide, 1) for n in range(1000)]
    for handle in cancelled:
        handle.cancel()
    await turns(5)
    assert list(loop._scheduled) == [kept]
    kept.cancel()
    await turns(5)
    assert list(loop._scheduled) == []


async def test_who_times_callbacks_by_replacing_handle_run_sees_them(monkeypatch):
    """aiodebug does it."""
    loop, seen, run = asyncio.get_running_loop(), [], asyncio.Handle._run

    def timed(handle):
        seen.append(handle)
        return run(handle)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    await turns()
    handles = [loop.call_soon(str), loop.call_soon_threadsafe(str), loop.call_later(0, str)]
    await turns(5)
    assert not set(handles) - set(seen)


async def test_a_handle_cancelled_in_the_turn_that_would_run_it_is_not_run():
    loop, seen = asyncio.get_running_loop(), []
    loop.call_soon(lambda: [handle.cancel() for handle in later])
    later = [loop.call_soon(seen.append, 1), loop.call_later(0, seen.append, 2), loop.call_soon_threadsafe(print)]
    await turns(5)
    assert seen == []


async def test_debug_mode_says_where_a_handle_was_made():
    """This file, and not a line of the loop's own."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        handles = [
            loop.call_soon(str),
            loop.call_later(0, str),
            loop.call_at(0, str),
            loop.call_soon_threadsafe(str),
        ]
    finally:
        loop.set_debug(False)
    for handle in handles:
        assert f"created at {__file__}:" in repr(handle)
    await turns(5)


def test_nothing_can_be_asked_of_a_closed_loop_and_no_time_is_none():
    for loop in (iocp_loop.new_event_loop(), asyncio.ProactorEventLoop()):
        for ask in (loop.call_later, loop.call_at):
            with pytest.raises(TypeError, match="None"):
                ask(None, str)
        loop.call_later(1000, str)
        loop.close()
        for ask, *args in ((loop.call_soon,), (loop.call_soon_threadsafe,), (loop.call_later, 1), (loop.call_at, 1)):
            with pytest.raises(RuntimeError, match="Event loop is closed"):
                ask(*args, str)


async def test_threads_can_call_and_be_called():
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,)).start()
    await asyncio.wait_for(called.wait(), 10)
    assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()


async def test_names_are_resolved_both_ways():
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(LOCALHOST, 80, type=socket.SOCK_STREAM)
    assert (LOCALHOST, 80) in [info[4] for info in infos]
    assert await loop.getnameinfo((LOCALHOST, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV) == (LOCALHOST, "80")


async def test_bare_sockets_connect_accept_send_and_receive():
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener, socket.socket() as sock:
        listener.setblocking(False)
        sock.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(sock, listener.getsockname())
        conn, address = await accepting
        with conn:
            assert address == sock.getsockname()
            message = pattern(1 << 20)
            sending = asyncio.ensure_future(loop.sock_sendall(conn, message))
            received = b""
            while len(received) < len(message):
                received += await loop.sock_recv(sock, 1 << 16)
            assert received == message
            await sending
            await loop.sock_sendall(sock, b"xyz")
            buffer = bytearray(2)
            assert await loop.sock_recv_into(conn, buffer) == 2
            assert buffer == b"xy"


async def test_a_cancelled_accept_can_be_followed_by_another():
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        task = asyncio.ensure_future(loop.sock_accept(listener))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        task = asyncio.ensure_future(loop.sock_accept(listener))
        with client(listener.getsockname()) as sock:
            conn, address = await task
            with conn:
                assert address == sock.getsockname()


async def test_a_cancelled_receive_can_be_followed_by_another():
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    left.setblocking(False)
    with left, right:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_recv(left, 10), 0.01)
        right.sendall(b"x")
        assert await loop.sock_recv(left, 10) == b"x"


async def test_an_unfinished_async_generator_is_closed_with_the_loop():
    """By the runner, after this test; here it only must be known."""
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            closed.append(True)

    generator = numbers()
    assert await anext(generator) == 1
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert closed == [True]


async def test_debug_mode_finds_calls_from_the_wrong_thread():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    errors = []

    def call():
        try:
            loop.call_soon(print)
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    await asyncio.to_thread(thread.join)
    loop.set_debug(False)
    assert len(errors) == 1


async def test_a_large_message_is_echoed_by_bare_peers_of_both_kinds():
    """A transport on one side, sock_* on the other."""
    loop = asyncio.get_running_loop()

    async def handle(reader, writer):
        writer.write(await reader.readexactly(1 << 20))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, LOCALHOST, 0)
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        message = pattern(1 << 20)
        await loop.sock_sendall(sock, message)
        received = bytearray()
        while part := await loop.sock_recv(sock, 1 << 16):
            received += part
        assert received == message
    server.close()
    await server.wait_closed()


async def test_many_sockets_at_once():
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(30)]

    async def exchange(left, right, n):
        left.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(left, 100))
        await asyncio.sleep(0)
        right.sendall(b"%d" % n)
        assert await receiving == b"%d" % n
        await loop.sock_sendall(left, b"back")
        assert await asyncio.to_thread(receive_exactly, right, 4) == b"back"

    await asyncio.gather(*(exchange(left, right, n) for n, (left, right) in enumerate(pairs)))
    for pair in pairs:
        for sock in pair:
            sock.close()
