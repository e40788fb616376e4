"""The rest of asyncio's surface: what every loop must do and no other test of this ring has asked for."""

import asyncio
import contextvars
import inspect
import socket
import sys
import threading
import time
import unittest

import pytest

import iocp_loop
from iocp_loop._asyncio import _private as private

from .peers import LOCALHOST, Recorder
from .watched import PATIENCE_S, WatchedLoop, here, running, turns, until

variable = contextvars.ContextVar("variable", default="outside")
NEW_IN_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has it from 3.12 on")


async def seen():
    return variable.get()


# -- tasks -----------------------------------------------------------------------------------------------------


async def test_create_task_takes_a_name_and_a_context():
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    task = here().create_task(seen(), name="named", context=context)
    assert task.get_name() == "named"
    assert await task == "inside"
    assert await here().create_task(seen()) == "outside"


@NEW_IN_3_12
async def test_a_task_factory_may_start_tasks_eagerly():
    """An eager task that does not wait is done before create_task() returns; one that waits for I/O goes on later."""
    started = []
    sock, peer = socket.socketpair()
    sock.setblocking(False)

    async def work():
        started.append(asyncio.current_task())
        return 42

    async def wait():
        started.append("waiting")
        return await here().sock_recv(sock, 10)

    here().set_task_factory(asyncio.eager_task_factory)
    try:
        task = here().create_task(work(), name="eager")
        assert (task.done(), task.result(), task.get_name()) == (True, 42, "eager")
        waiting = here().create_task(wait())
        assert started[1:] == ["waiting"]
        assert not waiting.done()
        peer.send(b"at last")
        assert await waiting == b"at last"
    finally:
        here().set_task_factory(None)
        sock.close()
        peer.close()
    assert here().get_task_factory() is None


async def test_a_task_factory_makes_every_task():
    made = []

    def factory(loop, coroutine, **options):
        made.append(options)
        return asyncio.Task(coroutine, loop=loop, **options)

    here().set_task_factory(factory)
    assert here().get_task_factory() is factory
    await here().create_task(seen(), context=contextvars.copy_context())
    here().set_task_factory(None)
    assert "context" in made[0]


# -- executors -------------------------------------------------------------------------------------------------


async def test_executors_answer_and_raise():
    assert await here().run_in_executor(None, sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        await here().run_in_executor(None, lambda: 1 / 0)
    assert await asyncio.to_thread(threading.current_thread) is not threading.current_thread()


def test_shutting_the_executor_down_waits_for_its_threads_and_then_refuses(nothing_left):
    with running() as loop:

        async def main():
            finished = []
            working = loop.run_in_executor(None, lambda: (time.sleep(0.05), finished.append(True)))
            await loop.shutdown_default_executor()
            assert finished
            await working
            with pytest.raises(RuntimeError):
                loop.run_in_executor(None, int)

        loop.run_until_complete(main())


@NEW_IN_3_12
def test_shutting_the_executor_down_gives_up_after_its_time_out_with_a_warning(nothing_left):
    release = threading.Event()
    with running() as loop:

        async def main():
            working = loop.run_in_executor(None, release.wait)
            with pytest.warns(RuntimeWarning, match="did not finish"):
                await loop.shutdown_default_executor(timeout=0.05)
            release.set()
            await working

        loop.run_until_complete(main())


# -- time ------------------------------------------------------------------------------------------------------


async def test_call_at_calls_in_the_order_of_time_and_equal_times_in_the_order_of_calls():
    order = []

    def note(name, due):
        order.append((name, here().time() >= due - here()._clock_resolution))

    now = here().time()
    for delay, name in ((0.03, "c"), (0.01, "a"), (0.02, "b")):
        here().call_at(now + delay, note, name, now + delay)
    here().call_at(now - 1, order.append, "past")
    here().call_soon(order.append, "soon")
    handle = here().call_at(now + 0.005, order.append, "cancelled")
    assert handle.when() == now + 0.005
    handle.cancel()
    await until(lambda: len(order) == 5)
    assert order == ["soon", "past", ("a", True), ("b", True), ("c", True)]


async def test_call_later_is_never_early_and_runs_in_its_context():
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    late = asyncio.get_running_loop().create_future()
    started = time.perf_counter()
    here().call_later(0.02, lambda: late.set_result((time.perf_counter() - started, variable.get())), context=context)
    elapsed, where = await late
    assert elapsed >= 0.02
    assert where == "inside"


async def test_timeout_ends_what_waits_for_io_and_leaves_no_operation():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await here().sock_recv(ours, 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(here().sock_recv(ours, 10), 0.02)
        assert not here().outstanding() or not any(
            op for op in here().proactor.pending.values() if op.endpoint.handle == ours.fileno()
        )
        theirs.send(b"x")
        async with asyncio.timeout(PATIENCE_S) as scope:
            scope.reschedule(None)
            assert await here().sock_recv(ours, 10) == b"x"


async def test_a_task_group_cancels_the_io_of_its_others():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                receiving = group.create_task(here().sock_recv(ours, 10))
                await turns()
                group.create_task(fail())
        assert caught.group_contains(ZeroDivisionError)
        assert receiving.cancelled()


async def fail():
    raise ZeroDivisionError


# -- connections -----------------------------------------------------------------------------------------------


async def test_connect_accepted_socket_makes_a_transport_of_a_connection_accepted_elsewhere():
    with socket.create_server((LOCALHOST, 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        accepted, _ = listener.accept()
    with peer:
        transport, protocol = await here().connect_accepted_socket(Recorder, accepted)
        peer.sendall(b"ping")
        assert await protocol.receives(4) == b"ping"
        transport.write(b"pong")
        assert peer.recv(10) == b"pong"
        assert transport.get_extra_info("peername") == peer.getsockname()
        transport.close()
        await protocol.gone()


async def test_names_are_looked_up():
    assert (await here().getaddrinfo("localhost", 80, family=socket.AF_INET))[0][4] == (LOCALHOST, 80)
    assert (await here().getnameinfo((LOCALHOST, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)) == (
        LOCALHOST,
        "80",
    )


def test_what_windows_lacks_is_not_implemented_rather_than_wrong(nothing_left):
    with running() as loop:
        for name in ("create_unix_connection", "create_unix_server"):
            with pytest.raises(NotImplementedError):
                loop.run_until_complete(getattr(loop, name)(Recorder, "path"))


# -- running ---------------------------------------------------------------------------------------------------


def test_asyncio_runner_runs_on_the_factory_and_leaves_nothing(nothing_left):
    order = []

    async def forever():
        try:
            await asyncio.sleep(3600)
        finally:
            order.append("cancelled")

    async def generate():
        try:
            yield 1
        finally:
            order.append("generator closed")

    async def main():
        assert isinstance(asyncio.get_running_loop(), iocp_loop.IocpEventLoop)
        main.task = asyncio.ensure_future(forever())
        main.generator = generate()
        await anext(main.generator)
        variable.set("kept")
        return asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=WatchedLoop) as runner:
        loop = runner.run(main())
        assert runner.get_loop() is loop
        assert runner.run(seen()) == "kept"  # One context for all that a runner runs.
        with pytest.raises(ZeroDivisionError):
            runner.run(fail())
    assert loop.is_closed()
    assert order == ["cancelled", "generator closed"]


@pytest.mark.parametrize("debug", [True, False])
def test_iocp_loop_run_runs_a_coroutine(debug, nothing_left):
    async def main():
        return asyncio.get_running_loop().get_debug(), isinstance(asyncio.get_running_loop(), iocp_loop.IocpEventLoop)

    assert iocp_loop.run(main(), debug=debug) == (debug, True)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="IsolatedAsyncioTestCase takes a loop_factory from 3.13 on")
def test_isolated_asyncio_test_cases_run_on_our_loop(nothing_left):
    loops = []

    class Case(unittest.IsolatedAsyncioTestCase):
        loop_factory = WatchedLoop

        async def asyncSetUp(self):
            loops.append(asyncio.get_running_loop())

        async def test_connection(self):
            server = await asyncio.start_server(lambda _reader, writer: writer.close(), LOCALHOST, 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            server.close()
            await server.wait_closed()
            loops.append(asyncio.get_running_loop())

    result = unittest.TestResult()
    Case("test_connection").run(result)
    assert result.wasSuccessful(), result.errors + result.failures
    assert loops[0] is loops[1]
    assert isinstance(loops[0], iocp_loop.IocpEventLoop)


def test_one_loop_per_thread_in_several_threads_at_once(nothing_left):
    """Each serves itself a hundred messages over TCP while the others do the same; nothing is shared but the process."""
    counts, errors, together = [], [], threading.Barrier(4)

    async def main():
        async def echo(reader, writer):
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(echo, LOCALHOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for n in range(100):
            writer.write(b"%d\n" % n)
            assert await reader.readline() == b"%d\n" % n
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return n + 1

    def work():
        try:
            together.wait(PATIENCE_S)
            with asyncio.Runner(loop_factory=WatchedLoop) as runner:
                counts.append(runner.run(main()))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE_S)
    assert not errors
    assert counts == [100] * 4


# What CPython's main passes besides, read from its source: python/cpython#153134.
PASSED_BY_MAIN = {
    "_make_socket_transport": {"waiter", "extra", "server", "context"},
    "_make_ssl_transport": {
        "waiter",
        "server_side",
        "server_hostname",
        "extra",
        "server",
        "ssl_handshake_timeout",
        "ssl_shutdown_timeout",
        "context",
    },
}


@pytest.mark.parametrize("hook", private.HOOKS)
def test_a_hook_takes_what_asyncio_passes_to_its_own(hook):
    """By name and by place, on the Python that runs this; and what its main passes, by name."""
    ours = inspect.signature(getattr(iocp_loop.IocpEventLoop, hook)).parameters
    takes_any_name = any(each.kind is each.VAR_KEYWORD for each in ours.values())
    theirs = inspect.signature(getattr(asyncio.ProactorEventLoop, hook)).parameters
    for place, (name, parameter) in enumerate(theirs.items()):
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty:
            # By place: asyncio passes what has no default so.
            assert place < len(ours)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            assert name in ours or takes_any_name, f"{hook}({name}=)"
    for name in PASSED_BY_MAIN.get(hook, ()):
        assert name in ours or takes_any_name, f"{hook}({name}=)"
