"""Closing a loop: bounded in time, whatever the kernel does; nothing is freed that it may still write to."""

import asyncio
import gc
import socket
import time

import pytest

import iocp_loop
from iocp_loop._core._operation import IoType

from .peers import LOCALHOST, Echo, Recorder, client
from .watched import WatchedKernel, orphans_expected, pending, running, turns


def test_closing_twice_is_once_and_a_closed_loop_says_so(nothing_left):
    loop = iocp_loop.new_event_loop()
    loop.close()
    loop.close()
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)


def test_a_running_loop_cannot_be_closed(nothing_left):
    with running() as loop:

        async def main():
            with pytest.raises(RuntimeError, match="running"):
                loop.close()

        loop.run_until_complete(main())


def test_a_loop_that_never_ran_closes(nothing_left):
    iocp_loop.new_event_loop().close()


def test_closing_stops_servers_and_gives_everything_back(nothing_left):
    """A server with a client, never closed by its program."""
    loop = iocp_loop.IocpEventLoop()
    loop.set_exception_handler(lambda _loop, report: pytest.fail(str(report)))
    protocols = []

    def factory():
        protocols.append(Echo())
        return protocols[-1]

    server = loop.run_until_complete(loop.create_server(factory, LOCALHOST, 0))
    address = server.sockets[0].getsockname()
    with client(address) as sock:

        async def accepted():
            while not protocols or not protocols[0].transport:
                await asyncio.sleep(0.001)

        loop.run_until_complete(accepted())
        loop.close()
        assert loop.proactor.pending == {}
        assert loop.proactor.endpoints == {}
        assert loop.proactor.port.closed
        with pytest.raises(ConnectionRefusedError):
            client(address)
        assert sock.recv(1) == b""
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        protocols[0].transport._handle and protocols.clear()
        gc.collect()
    del server


def test_pending_futures_of_a_closed_loop_hold_no_operation(nothing_left):
    loop = iocp_loop.IocpEventLoop()
    ours, peer = socket.socketpair()
    ours.setblocking(False)

    async def start():
        future = loop._stdlib_proactor.recv(ours, 10)
        await turns()
        return [future]

    (future,) = loop.run_until_complete(start())
    operation = future._operation
    loop.close()
    assert not operation.pending
    ours.close()
    peer.close()


@pytest.mark.slow
def test_an_operation_that_never_ends_holds_the_close_up_for_a_bounded_time_and_is_reported():
    """The kernel says "pending" to a receive, and nothing more, whatever it is asked."""
    kernel = WatchedKernel()
    reports = []
    loop = iocp_loop.IocpEventLoop(kernel=kernel)
    loop.set_exception_handler(lambda _loop, report: reports.append(report["message"]))
    listener = socket.create_server((LOCALHOST, 0))

    async def connect():
        transport, protocol = await loop.create_connection(Recorder, *listener.getsockname())
        await turns()
        return transport, protocol

    loop.run_until_complete(turns())
    kernel.swallow("WSARecv")
    transport, _protocol = loop.run_until_complete(connect())
    handle = transport.get_extra_info("socket")
    (stuck,) = pending(IoType.READ, loop)
    with orphans_expected(1):
        before = time.perf_counter()
        loop.close()
        took = time.perf_counter() - before
    assert took < 30
    assert loop.is_closed()
    assert len(reports) == 1
    assert "1 operations did not end in time" in reports[0]
    assert "READ" in reports[0]
    assert handle.fileno() != -1  # Its value must not be given to another socket: the kernel is still using it.
    assert stuck.pending
    listener.close()


def test_a_loop_with_a_thousand_pending_operations_closes_quickly(nothing_left):
    loop = iocp_loop.IocpEventLoop()
    loop.set_debug(False)  # Debug mode takes a stack for every future.
    pairs = [socket.socketpair() for _ in range(100)]

    async def start():
        for ours, _ in pairs:
            ours.setblocking(False)
            for _ in range(10):
                loop._stdlib_proactor.recv(ours, 10)

    loop.run_until_complete(start())
    assert len(loop.proactor.pending) > 900
    loop.close()
    assert loop.proactor.pending == {}
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_many_loops_one_after_the_other_leave_no_handle(nothing_left):
    from .test_leaks import handle_count

    def one():
        loop = iocp_loop.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    for _ in range(5):
        one()
    gc.collect()
    before = handle_count()
    for _ in range(50):
        one()
    gc.collect()
    assert handle_count() <= before + 2


def test_asyncio_run_on_the_factory_leaves_nothing(nothing_left):
    async def main():
        server = await asyncio.start_server(lambda r, w: w.close(), LOCALHOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return 42

    with asyncio.Runner(loop_factory=iocp_loop.new_event_loop) as runner:
        assert runner.run(main()) == 42
        proactor = runner.get_loop().proactor
    assert proactor.pending == {}
    assert proactor.endpoints == {}
    assert iocp_loop.run(main()) == 42
