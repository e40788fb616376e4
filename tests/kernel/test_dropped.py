"""Loops that are dropped without being closed: the collector closes them, in whatever order it takes their parts.

At most asyncio's own ResourceWarnings come of it: no LifetimeError, nothing kept for the life of the process, no wait.
"""

import asyncio
import gc
import socket
import sys
import time
import warnings

import pytest

import iocp_loop
from iocp_loop._core import _kept

from .test_handles import Event


async def nothing(loop):
    return ()


async def a_server_and_its_clients(loop):
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    return server, [await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(3)]


async def a_paused_connection(loop):
    server, clients = await a_server_and_its_clients(loop)
    for _, writer in clients:
        writer.transport.pause_reading()
    return server, clients


async def datagram_endpoints(loop):
    return [
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)) for _ in range(3)
    ]


async def watchers_and_bare_receives(loop):
    pairs = [socket.socketpair() for _ in range(3)]
    for one, other in pairs:
        one.setblocking(False)
        other.setblocking(False)
        loop.add_reader(one, print)
        loop.create_task(loop.sock_recv(other, 10))
    await asyncio.sleep(0)
    return pairs


async def waits_for_handles(loop):
    events = [Event() for _ in range(3)]
    return events, [loop.wait_for_handle(event.handle) for event in events]


async def tasks_in_the_middle(loop):
    server, clients = await a_server_and_its_clients(loop)
    for reader, _ in clients:
        loop.create_task(reader.read())
    loop.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    return server, clients


async def a_pipe_server(loop):
    return await loop.start_serving_pipe(asyncio.Protocol, rf"\\.\pipe\dropped-{time.perf_counter_ns()}")


STATES = (
    nothing,
    a_server_and_its_clients,
    a_paused_connection,
    datagram_endpoints,
    watchers_and_bare_receives,
    waits_for_handles,
    tasks_in_the_middle,
    a_pipe_server,
)


@pytest.fixture
def said(monkeypatch):
    """What finalizers had to say."""
    said = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda report: said.append(f"{report.exc_type.__name__}: {report.exc_value}")
    )
    return said


@pytest.mark.parametrize("loop_last", [False, True], ids=["loop first", "loop last"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_loop_that_is_dropped_is_closed_by_the_collector(state, loop_last, said):
    """The collector takes what is old first; what was frozen meanwhile comes last."""
    orphans = list(_kept.ORPHANS)
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            loop = iocp_loop.new_event_loop()
            loop.set_exception_handler(lambda _loop, report: None)  # "Task was destroyed but it is pending!"
            if loop_last:
                gc.freeze()
            kept = loop.run_until_complete(state(loop))
            gc.collect()
            gc.unfreeze()
            del loop, kept
            started = time.perf_counter()
            gc.collect()
            assert time.perf_counter() - started < 2
    finally:
        gc.unfreeze()
        gc.enable()
    assert not said
    assert orphans == _kept.ORPHANS


def test_a_proactor_that_is_dropped_is_closed_by_the_collector(said):
    from iocp_loop._core._proactor import Proactor

    from .receiving import Receiver

    proactor = Proactor()
    receiver = Receiver(proactor)
    receiver.submit()
    orphans = list(_kept.ORPHANS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del proactor, receiver
        gc.collect()
    assert not said
    assert orphans == _kept.ORPHANS
