"""What a peer still sends to a connection that was closed does not cost it our last words; see `_lingering`."""

import asyncio

import pytest
from fakes.kernel import Chances
from fakes.recorders import StreamStage, wait_until_connected

from iocp_loop._transports import _lingering
from iocp_loop._transports._lingering import LINGER_S, ROUND_S, SILENCE_S

ANSWER = b"413 Content Too Large"


class Stage(StreamStage):
    """One end that is ours, and a raw peer."""

    def __init__(self, seed=0, **chances):
        super().__init__(seed, Chances(would_block=0, partial_send=0, **chances))
        self.sock, self.peer = self.kernel.socketpair()
        self.sock.capacity = self.peer.capacity = 1_000_000
        self.ours = self.end(self.sock, skip_port=True)

    def play(self, scenario):
        async def whole():
            await wait_until_connected(self.ours)
            await scenario()
            self.peer.close()

        self.run(whole())


async def until_over(stage):
    while stage.loop._services.lingerings:
        await asyncio.sleep(0.01)


async def answer_and_close(stage):
    stage.ours.transport.write(ANSWER)
    stage.ours.transport.close()
    assert await stage.ours.lost is None


def heard(peer):
    """All that has arrived at the peer. Raises ConnectionResetError if a reset has taken it away."""
    received = bytearray()
    while True:
        try:
            part = peer.recv(1000)
        except BlockingIOError:
            return bytes(received), "open"
        if not part:
            return bytes(received), "ended"
        received += part


def test_a_peer_that_is_still_sending_gets_the_answer_and_the_end():
    stage = Stage()

    async def scenario():
        stage.peer.deliver(b"x" * 1000)
        await answer_and_close(stage)
        for _ in range(20):
            assert stage.peer.send(b"more of it") == 10
            await asyncio.sleep(0.1)
        assert not stage.sock.inbound
        assert heard(stage.peer) == (ANSWER, "ended")

    stage.play(scenario)


def test_for_the_program_the_connection_is_over_at_once():
    """connection_lost() in its turn, its socket closed, nothing more delivered."""
    stage = Stage(inline=0)

    async def scenario():
        stage.ours.transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.ours.lost.done()
        assert stage.kernel.now_ms == 0
        assert stage.sock.fileno() == -1
        assert repr(stage.ours.transport) == "<StreamTransport closed>"
        stage.peer.deliver(b"late")
        await asyncio.sleep(0.1)
        assert not stage.ours.received
        stage.ours.transport.close()
        stage.ours.transport.abort()
        assert not stage.sock.closed

    stage.play(scenario)


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_it_ends_with_the_peer(how):
    stage = Stage()

    async def scenario():
        await answer_and_close(stage)
        assert not stage.sock.closed
        getattr(stage.peer, how)(*(1,) * (how == "shutdown"))
        await until_over(stage)
        assert stage.sock.closed
        assert stage.kernel.now_ms < 100
        assert "CancelIoEx" not in stage.kernel.calls

    stage.play(scenario)


def test_it_ends_after_a_while_of_silence():
    stage = Stage()

    async def scenario():
        await answer_and_close(stage)
        await asyncio.sleep(SILENCE_S / 2)
        stage.peer.deliver(b"a sign of life")
        await asyncio.sleep(SILENCE_S - 0.01)
        assert not stage.sock.closed
        await asyncio.sleep(ROUND_S + 0.1)
        assert stage.sock.closed
        assert heard(stage.peer) == (ANSWER, "ended")

    stage.play(scenario)


def test_it_ends_in_time_whatever_comes():
    stage = Stage()

    async def scenario():
        await answer_and_close(stage)
        begun = stage.loop.time()
        while not stage.sock.closed:
            stage.peer.deliver(b"and more")
            await asyncio.sleep(0.05)
        assert LINGER_S <= stage.loop.time() - begun <= LINGER_S + ROUND_S + 0.1

    stage.play(scenario)


def test_it_ends_when_too_much_comes(monkeypatch):
    monkeypatch.setattr(_lingering, "DROPPED_MAX", 5000)
    stage = Stage()

    async def scenario():
        await answer_and_close(stage)
        for _ in range(5):
            stage.peer.deliver(bytes(1000))
            await asyncio.sleep(0.01)
        assert not stage.sock.closed
        begun = stage.loop.time()
        stage.peer.deliver(b"x")
        await until_over(stage)
        assert stage.sock.closed
        assert stage.loop.time() - begun < SILENCE_S

    stage.play(scenario)


def test_of_too_many_the_oldest_ends(monkeypatch):
    monkeypatch.setattr(_lingering, "LINGERING_MAX", 2)
    stage = Stage()

    async def scenario():
        pairs = [(stage.sock, stage.peer, stage.ours)]
        for _ in range(3):
            sock, peer = stage.kernel.socketpair()
            pairs.append((sock, peer, stage.end(sock, skip_port=True)))
        for _, _, end in pairs:
            await wait_until_connected(end)
            end.transport.close()
            await end.lost
        await asyncio.sleep(0.01)
        assert [sock.closed for sock, _, _ in pairs] == [True, True, False, False]
        for _, peer, _ in pairs[1:]:
            peer.close()

    stage.play(scenario)


def test_it_ends_with_the_loop():
    stage = Stage()
    lingerings = stage.loop._services.lingerings

    async def scenario():
        await answer_and_close(stage)
        assert len(lingerings) == 1

    stage.play(scenario)
    assert stage.sock.closed
    assert not lingerings


@pytest.mark.parametrize("moment", ["at once", "paused", "in the middle of a large write", "after its end of file"])
def test_it_lingers_whatever_the_receive_was_doing(moment):
    """Not armed yet; held back with bytes that nobody wants; out while the writes go out; half closed."""
    stage = Stage()

    async def scenario():
        transport, capacity = stage.ours.transport, stage.peer.capacity
        if moment == "paused":
            await asyncio.sleep(0.01)
            transport.pause_reading()
            stage.peer.deliver(b"held")
            await asyncio.sleep(0.01)
            stage.peer.deliver(b"and not even received")
        elif moment == "in the middle of a large write":
            stage.peer.capacity = 0
        elif moment == "after its end of file":
            transport.write(ANSWER)
            transport.write_eof()
            await asyncio.sleep(0.01)
        if moment != "after its end of file":
            transport.write(ANSWER)
        transport.close()
        await asyncio.sleep(0.01)
        stage.peer.capacity = capacity
        assert await stage.ours.lost is None
        stage.peer.send(b"more")
        await asyncio.sleep(0.01)
        assert not stage.sock.inbound
        assert heard(stage.peer) == (ANSWER, "ended")
        assert not stage.sock.closed

    stage.play(scenario)


def test_closed_in_connection_made_it_has_its_say():
    """A server that is overloaded says so, and the request comes after that."""
    stage = StreamStage(0, Chances(would_block=0, partial_send=0))
    sock, peer = stage.kernel.socketpair()
    sock.capacity = peer.capacity = 1000
    end = stage.end(sock, skip_port=True)
    end.meddle = lambda: (end.transport.write(ANSWER), end.transport.close()) if not end.lost.done() else None

    async def scenario():
        assert await end.lost is None
        peer.send(b"GET / HTTP/1.1")
        await asyncio.sleep(0.01)
        assert heard(peer) == (ANSWER, "ended")
        peer.close()

    stage.run(scenario())


def test_an_abort_does_not_linger_nor_does_the_end_of_a_connection_whose_peer_has_ended():
    for how in ("abort", "end of file"):
        stage = Stage()

        async def scenario(stage=stage, how=how):
            if how == "abort":
                stage.ours.transport.abort()
            else:
                stage.peer.shutdown(1)
                await stage.ours.eof
                stage.ours.transport.close()
            assert await stage.ours.lost is None
            assert not stage.loop._services.lingerings
            assert stage.sock.closed

        stage.play(scenario)


def test_an_idle_connection_that_has_given_its_buffer_back_lingers_too():
    """What is out is a receive of no bytes: that it is over says that something came, and not that this was the end."""
    stage = Stage()

    async def scenario():
        await asyncio.sleep(0.01)
        for _ in range(3):
            stage.loop._services.idle_rounds.go()
            await asyncio.sleep(0.01)
        await answer_and_close(stage)
        stage.peer.send(b"more")
        await asyncio.sleep(0.1)
        assert not stage.sock.closed
        assert not stage.sock.inbound
        assert heard(stage.peer) == (ANSWER, "ended")
        stage.peer.shutdown(1)
        await until_over(stage)
        assert stage.kernel.now_ms < 500

    stage.play(scenario)


def test_a_receive_that_was_asked_to_end_for_another_reason_is_followed_by_one_of_ours_and_that_one_by_none():
    """An idle round's cancel is on its way when the connection closes."""
    stage = Stage(inline=0, slow_cancel=1, late_success=0)

    async def scenario():
        await asyncio.sleep(0.01)
        stage.ours.transport.close()
        [operation] = stage.loop.proactor.pending.values()
        stage.loop.proactor.cancel(operation)
        assert await stage.ours.lost is None
        await asyncio.sleep(0.01)
        assert not stage.sock.closed
        assert operation.pending
        stage.loop.proactor.cancel(operation)
        await until_over(stage)
        assert stage.loop.time() < SILENCE_S

    stage.play(scenario)


def test_no_schedule_leaves_a_handle_or_an_operation(schedules):
    """Peers that send, end, reset or say nothing, while calls fail, raise and are interrupted."""

    def run(seed):
        stage = StreamStage(seed, Chances(submit_failure=0.1, slow_cancel=0.7))
        random, kernel = stage.random, stage.kernel

        async def scenario():
            peers = []
            for _ in range(4):
                sock, peer = kernel.socketpair()
                end = stage.end(sock)
                peers.append(peer)
                await wait_until_connected(end)
                end.write(bytes(random.randrange(100)))
                end.transport.close()
            kernel.chances.memory_error = random.choice((0, 0.1))
            kernel.chances.interrupt = random.choice((0, 0.1))
            for _ in range(20):
                peer = random.choice(peers)
                match random.randrange(5):
                    case 0 if not peer.closed:
                        peer.close()
                    case 1 if not peer.closed and peer.peer is not None:
                        peer.shutdown(1)
                    case _ if not peer.write_closed:
                        peer.deliver(b"data")
                await asyncio.sleep(random.choice((0, 0.01, 0.3)))
            kernel.chances.memory_error = kernel.chances.interrupt = 0
            for peer in peers:
                while peer.inbound:
                    peer.inbound.clear()
                    await asyncio.sleep(0.01)
            for end in stage.ends:
                await end.lost
            await until_over(stage)
            for peer in peers:
                peer.close()

        stage.run_through_interrupts(scenario())

    schedules(run, 150)
