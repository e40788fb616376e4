"""IocpProactor's futures over the fake kernel: what `sock_recv` and `sock_sendall` promise when they are cancelled.

A receive that was given up, by a time-out say, may have succeeded all the same: its bytes begin the next one.
"""

import asyncio

from fakes.kernel import Chances, FakeKernel
from fakes.loop import FakeLoop

from iocp_loop._handles._sockets import OverlappedSocket


class Stage:
    """One seed: a kernel, a loop, and a pair of sockets that the loop's futures know."""

    def __init__(self, seed, chances=None):
        self.kernel = FakeKernel(seed, chances)
        self.random = self.kernel.random
        self.loop = FakeLoop(self.kernel)
        self.futures = self.loop._stdlib_proactor
        self.socks = self.kernel.socketpair()
        for sock in self.socks:
            skip_port = self.random.random() < 0.7
            # Its owner is the test, as a socket given to sock_recv belongs to the program.
            self.futures.adopt(sock, self.loop.proactor.register(OverlappedSocket(sock.fileno()), skip_port=skip_port))

    def run(self, scenario):
        try:
            self.loop.run_until_complete(scenario)
        except BaseException:
            self.loop.take_apart()
            raise
        self.loop.close()
        self.kernel.settle_all()  # The peer takes what is on its way to it.
        for sock in self.socks:
            sock.close()
        assert self.loop.proactor.pending == {}
        assert self.loop.reports == []
        self.kernel.check()
        self.loop.arena.check()


async def settle_or_cancel(random, task):
    """Let it run a few turns; then perhaps cancel it, and wait for what comes of that. Its result, or None."""
    for _ in range(random.randrange(4)):
        if task.done():
            break
        await asyncio.sleep(0)
    if random.random() < 0.5:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


def check_receives(seed, receive_some):
    """The peer sends in pieces; `receive_some(stage, sock, size)` is a future or task; half of them are cancelled."""
    stage = Stage(seed)
    random = stage.random
    sock, peer = stage.socks
    sent = b"".join(b"%d," % number for number in range(40))
    stage.kernel.act(sender(peer, sent, random))
    received = bytearray()

    async def receive():
        while True:
            size = random.choice((1, 7, 100))
            buffer = bytearray(size)
            result = await settle_or_cancel(random, receive_some(stage, sock, size, buffer))
            buffer.extend(b"!")  # It is ours again: nothing may pin it any more.
            chunk = buffer[:result] if isinstance(result, int) else result
            if result is not None:
                assert len(chunk) <= size
                received.extend(chunk)
            if chunk == b"":
                return

    stage.run(receive())
    assert received == sent


def test_a_sock_recv_given_up_at_any_moment_loses_no_byte(schedules):
    """Tasks around sock_recv and sock_recv_into, cancelled as a time-out does it."""

    def receive_some(stage, sock, size, buffer):
        if stage.random.random() < 0.5:
            return stage.loop.create_task(stage.loop.sock_recv(sock, size))
        return stage.loop.create_task(stage.loop.sock_recv_into(sock, buffer))

    schedules(lambda seed: check_receives(seed, receive_some), 300)


def test_a_future_given_up_at_any_moment_loses_no_byte(schedules):
    """The futures themselves, cancelled, and the next one asked for as soon as the last says it is done."""

    def receive_some(stage, sock, size, buffer):
        if stage.random.random() < 0.5:
            return stage.futures.recv(sock, size)
        return stage.futures.recv_into(sock, buffer)

    schedules(lambda seed: check_receives(seed, receive_some), 300)


def sender(sock, data, random):
    """Sends all of it in pieces, then the end of the stream."""
    while data:
        try:
            count = sock.send(data[: random.choice((1, 5, 50))])
        except BlockingIOError:
            yield False
            continue
        data = data[count:]
        yield True
    sock.write_closed = True


def test_sends_follow_each_other_in_order(schedules):
    """send after send, awaited; a slow reader on the other side gets every byte."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.5))
        sock, peer = stage.socks
        received = bytearray()
        stage.kernel.act(reader(peer, received, stage.random))
        messages = [b"%d;" % number * stage.random.randrange(1, 30) for number in range(10)]

        async def send():
            for message in messages:
                assert await stage.futures.send(sock, message) == len(message)

        stage.run(send())
        assert received == b"".join(messages)

    schedules(run, 200)


def reader(sock, received, random):
    while not sock.closed:
        try:
            received += sock.recv(random.choice((1, 100)))
        except BlockingIOError:
            yield False
        else:
            yield True


def test_a_cancelled_future_is_cancelled_when_the_kernel_has_let_go():
    """cancel() asks; until the packet has come the future is not done, and the buffer belongs to the kernel."""
    stage = Stage(0, Chances(inline=0, slow_cancel=1, late_success=0))
    sock, _ = stage.socks

    async def cancel():
        future = stage.futures.recv_into(sock, bytearray(8))
        assert future.cancel("why")
        assert future.cancel("twice")
        assert not future.done()
        assert len(stage.loop.proactor.pending) == 1
        try:
            await future
        except asyncio.CancelledError:
            pass
        assert future.cancelled()
        assert stage.loop.proactor.pending == {}
        assert not future.cancel()

    stage.run(cancel())


def test_closing_the_loop_takes_every_future_back(schedules):
    """Receives and sends outstanding, the loop is closed under them: bounded, and nothing is left."""

    def run(seed):
        stage = Stage(seed)
        sock, peer = stage.socks
        peer.capacity = 10

        async def start():
            # Kept: a future that nobody holds would be another story.
            stage.outstanding = [stage.futures.recv(sock, 10), stage.futures.send(sock, b"x" * 100)]
            for _ in range(stage.random.randrange(3)):
                await asyncio.sleep(0)

        stage.run(start())

    schedules(run, 200)
