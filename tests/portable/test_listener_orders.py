"""The listener on the real loop over the fake kernel, through seeded schedules.

What must hold in each: a client that stays is served in full, or dropped because of what its own protocol factory or
transport did; whatever accepts, sockets and factories do, the next client is served; an accept that fails for ever
keeps nobody busy; when a listener is closed, nothing of it is left.
"""

import asyncio

import pytest
from fakes.kernel import Chances, socket_module
from fakes.servers import Client, ServerStage
from fakes.stage import Interrupted

from iocp_loop._asyncio import _private as private
from iocp_loop._handles import _sockets
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._transports import _acceptor, _listener


@pytest.fixture(autouse=True)
def sockets_of_the_fake_kernel(monkeypatch):
    monkeypatch.setattr(_sockets, "socket", socket_module())


class SocketClient(Client):
    def steps(self):
        random = self.stage.random
        for _ in range(random.randrange(6)):
            yield True
        if self.stage.listener.closed:
            self.is_over = True
            return
        sock = self.stage.kernel.connect_to(self.stage.listener)
        yield True
        rest = self.message
        leaves_after = None if self.stays else random.randrange(4)
        while len(self.heard) < len(self.message) and leaves_after != 0:
            acted = False
            try:
                if rest:
                    rest = rest[sock.send(rest) :]
                    acted = True
            except BlockingIOError:
                pass
            except OSError:
                break
            try:
                chunk = sock.recv(random.choice((1, 100)))
            except BlockingIOError:
                pass
            except OSError:
                break
            else:
                self.heard += chunk
                acted = True
                if not chunk:
                    break
            if leaves_after is not None:
                leaves_after -= 1
                acted = True
            yield acted
        sock.close()
        self.is_over = True


class Stage(ServerStage):
    """One listener."""

    client_type = SocketClient

    def __init__(self, seed, chances=None):
        super().__init__(seed, chances)
        self.listener = self.kernel.listen()

    def is_closed(self):
        return self.listener.closed

    def serve(self):
        arguments = [self.loop, [self.listener], self.make_echo, None, 100, None]
        self.server = private.Server(*arguments, *[None] * (6 + 2 - len(arguments) - 1))
        chances, self.kernel.chances = self.kernel.chances, Chances()
        self.server._start_serving()
        self.kernel.chances = chances


def play(seed, chances, *, wildly):
    stage = Stage(seed, chances)
    stage.serve()
    if wildly:
        stage.budget = 10
        stage.meddle = stage.meddle_wildly

    async def scenario():
        await stage.clients_come()
        await stage.finish()

    stage.run_through_interrupts(scenario())
    return stage, stage.unserved()


def test_every_client_that_stays_is_served(schedules):
    """Others leave before they are accepted, or while they are served; accepts fail now and then."""

    def run(seed):
        stage, unserved = play(seed, Chances(accept_failure=0.2), wildly=False)
        assert unserved == []
        assert stage.loop.reports == []

    schedules(run, 100)


def test_a_factory_or_callback_that_raises_or_closes_loses_its_own_client(schedules):
    """Also MemoryError, KeyboardInterrupt and SystemExit, after which the loop is run again."""

    def run(seed):
        stage, unserved = play(seed, Chances(accept_failure=0.2), wildly=True)
        assert len(unserved) <= stage.dropped
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    schedules(run, 120)


def test_sockets_and_buffers_that_run_out_are_waited_for(schedules):
    """AcceptEx answers WSAENOBUFS, socket() WSAEMFILE, the port refuses the new socket: that concerns one client."""

    def run(seed):
        play(seed, Chances(accept_failure=0.1, submit_failure=0.1, no_handle=0.1), wildly=seed % 2 == 0)

    schedules(run, 60)


@pytest.mark.parametrize("fault", ["memory_error", "interrupt"])
def test_exceptions_out_of_the_kernel_do_not_silence_the_listener(schedules, fault):
    """Any call may raise MemoryError, and so may each piece of memory that is asked for; or KeyboardInterrupt."""

    def run(seed):
        chances = Chances(accept_failure=0.1)
        stage = Stage(seed, chances)
        stage.serve()

        async def scenario():
            for _ in range(12):
                SocketClient(stage, stays=True)
                setattr(chances, fault, 0.05)
                await asyncio.sleep(0)
                setattr(chances, fault, 0)
            await stage.finish()

        stage.run_through_interrupts(scenario())

    schedules(run, 100)


def test_a_server_that_is_closed_at_any_moment_leaves_nothing(schedules):
    """Closed in the middle of a rush, also by its own factory and by a callback."""

    def run(seed):
        stage = Stage(seed, Chances(accept_failure=0.2, slow_cancel=0.8))
        stage.serve()
        random = stage.random

        def close_sometimes(*_):
            if random.random() < 0.2:
                stage.server.close()

        stage.raise_something = stage.meddle = close_sometimes

        async def scenario():
            for _ in range(12):
                SocketClient(stage, stays=random.random() < 0.7)
                await asyncio.sleep(0)
                if random.random() < 0.05:
                    stage.server.close()
            stage.raise_something = stage.meddle = lambda *_: (
                None
            )  # Who comes last is served, by a server that is open.
            await stage.finish()

        stage.run(scenario())

    schedules(run, 200)


def test_a_loop_that_is_closed_closes_its_listener(schedules):
    """Nobody has stopped the server: accepts are outstanding, or wait to be posted again."""

    def run(seed):
        stage = Stage(seed, Chances(submit_failure=0.2, slow_cancel=0.8))
        stage.serve()
        stage.run(asyncio.sleep(stage.random.choice((0, 0.5, 2))))

    schedules(run, 100)


def test_accepts_that_fail_for_ever_keep_nobody_busy_and_are_tried_again():
    """Ten seconds in which every accept fails at once; then the system has recovered, and a client is served."""
    stage = Stage(0, Chances(inline=0))
    accept, most = stage.kernel.AcceptEx, 4 * (_acceptor.ERRORS_AT_ONCE_MAX + 20)

    def accept_not_too_often(*args):
        if stage.kernel.accepts_fail and stage.kernel.calls.get("AcceptEx", 0) > most:
            stage.kernel.violation("accepts that fail are posted again and again")
        return accept(*args)

    stage.kernel.AcceptEx = accept_not_too_often
    stage.serve()

    async def scenario():
        stage.kernel.accepts_fail = True
        await asyncio.sleep(10)
        stage.kernel.accepts_fail = False
        await stage.finish()

    stage.run(scenario())
    assert stage.loop.reports == []


def test_an_interrupt_where_an_accept_is_read_leaves_the_listener_with_all_its_accepts(monkeypatch):
    """The only one that is out: the client of this moment is lost, and the next one is served."""
    stage = Stage(0, Chances(inline=0, idle=0))
    monkeypatch.setattr(_listener, "ACCEPTS_MIN", 1)
    stage.serve()
    read = OverlappedSocket.accepted_addresses

    def interrupted(*_args):
        monkeypatch.setattr(OverlappedSocket, "accepted_addresses", read)
        raise Interrupted

    async def scenario():
        SocketClient(stage, stays=False)
        await stage.until(lambda: OverlappedSocket.accepted_addresses is read)
        await stage.finish()

    monkeypatch.setattr(OverlappedSocket, "accepted_addresses", interrupted)
    stage.run_through_interrupts(scenario())
