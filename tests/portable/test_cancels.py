"""What a cancel does beside what was asked: Windows ends a receive's siblings, and some providers do not cancel at all."""

import asyncio

import pytest
from fakes.arena import PatternArena
from fakes.kernel import Chances, FakeKernel
from fakes.profiles import PROFILES
from fakes.recorders import StreamStage, wait_until_connected
from fakes.stage import BaseStage, Interrupted

from iocp_loop._core._cancels import CANCELS_MAX
from iocp_loop._core._operation import IoType, ThreadOperation, ignore
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles import _readiness
from iocp_loop._handles._opening import open_socket
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.constants import Status

LAYERED = ["base", "all", "flat", "mute"]
SENT = b"abcdefghi"
QUICK = Chances(slow_cancel=0, late_success=0, idle=0, would_block=0)


@pytest.fixture(params=PROFILES)
def system(request, monkeypatch):
    """Each system in turn."""
    monkeypatch.setattr(FakeKernel, "default_profile", PROFILES[request.param])
    return request.param


class Stage(BaseStage):
    """A pair of sockets that the loop's futures know, and that the test owns."""

    def __init__(self, seed=0, chances=None, layered=""):
        super().__init__(seed, chances)
        self.kernel.layered = layered
        self.futures = self.loop._stdlib_proactor
        self.socks = list(self.kernel.socketpair())
        for sock in self.socks:
            self.know(sock)

    def know(self, sock):
        self.futures.adopt(
            sock, self.loop.proactor.register(OverlappedSocket(sock.fileno()), skip_port=self.random.random() < 0.5)
        )

    def look_at_what_is_left(self):
        for sock in self.socks:
            sock.close()
        assert self.loop.reports == []
        super().look_at_what_is_left()


def sender(sock, messages):
    for message in messages:
        yield False
        while message:
            try:
                message = message[sock.send(message) :]
            except BlockingIOError:
                yield False
        yield True


def pipe_writer(pipe, messages):
    for message in messages:
        yield False
        while message:
            written = pipe.write(message)
            message = message[written:]
            yield bool(written)


def datagram_sender(sock, address, messages):
    for message in messages:
        yield False
        while True:
            try:
                sock.sendto(message, address)
                break
            except BlockingIOError:
                yield False
        yield True


class Streams(Stage):
    """Its own sockets, or some that belong to another port."""

    is_shared = False

    def __init__(self, seed):
        super().__init__(seed)
        if self.is_shared:
            for sock in self.socks:
                sock.close()
            self.socks = list(self.kernel.socketpair())
            for sock in self.socks:
                self.kernel.give_away(sock)
                self.futures.adopt(sock, open_socket(self.loop.proactor, sock))

    async def receive(self):
        return await self.futures.recv(self.socks[0], 100)

    def send(self, messages):
        self.kernel.act(sender(self.socks[1], messages))


class ForeignStreams(Streams):
    is_shared = True


class Pipes(Streams):
    def __init__(self, seed):
        super().__init__(seed)
        for sock in self.socks:
            sock.close()
        self.socks = list(self.kernel.pipe_pair())

    def send(self, messages):
        self.kernel.act(pipe_writer(self.socks[1], messages))


class Datagrams(Streams):
    def __init__(self, seed):
        super().__init__(seed)
        for sock in self.socks:
            sock.close()
        self.socks = [self.kernel.datagram_socket(), self.kernel.datagram_socket()]
        self.futures.adopt(self.socks[0], open_socket(self.loop.proactor, self.socks[0]))

    async def receive(self):
        data, address = await self.futures.recvfrom(self.socks[0], 100)
        assert address == self.socks[1].getsockname()
        return data

    def send(self, messages):
        self.kernel.act(datagram_sender(self.socks[1], self.socks[0].getsockname(), messages))


async def given_up(task):
    """Whether it was: cancelled, and not done before."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("kind", [Streams, ForeignStreams, Pipes, Datagrams])
def test_a_receive_goes_on_when_another_one_beside_it_times_out(schedules, system, kind):
    """Several wait for the same socket, and all but one are given up, while the bytes come, before, or after.

    The one that stays gets what came for the others too late.
    """

    def run(seed):
        stage = kind(seed)
        received = []
        stage.run(receive(stage, received))
        assert sorted(b"".join(received)) == sorted(SENT)  # Which receive is served first is the kernel's affair.

    async def receive(stage, received):
        waiting = [asyncio.ensure_future(stage.receive()) for _ in range(3)]
        await asyncio.sleep(0)
        stays = waiting.pop(stage.random.randrange(3))
        when = stage.random.choice(("before", "while", "after"))
        if when == "before":
            stage.send([SENT])
        for task in waiting:
            task.cancel()
        if when == "while":
            stage.send([SENT])
        for task in waiting:
            if not await given_up(task):
                received.append(task.result())
        if when == "after":
            stage.send([SENT])
        if b"".join(received) == SENT:
            await given_up(stays)
            return
        received.append(await stays)
        while sum(map(len, received)) < len(SENT):
            received.append(await stage.receive())

    schedules(run, 150)


def test_a_receive_given_up_on_a_shared_socket_leaves_nobody_watching_it():
    """Before the socket is ready again."""
    stage = ForeignStreams(0)

    async def scenario():
        receiving = asyncio.ensure_future(stage.receive())
        await asyncio.sleep(0.01)
        assert len(_readiness.of(stage.loop.proactor)._watches) == 1
        assert await given_up(receiving)
        await asyncio.sleep(0.01)
        assert len(_readiness.of(stage.loop.proactor)._watches) == 0

    stage.run(scenario())


def test_a_reset_of_a_shared_socket_is_told_although_its_recv_calls_it_the_end():
    """As Wine 8's does; readiness has said that it was a reset."""
    stage = ForeignStreams(0)

    async def scenario():
        receiving = asyncio.ensure_future(stage.receive())
        await asyncio.sleep(0.01)
        endpoint = stage.futures.endpoint(stage.socks[0])
        stage.socks[1].close()
        endpoint._reading._on_ready(closed=False, reset=True)
        with pytest.raises(ConnectionResetError):
            await receiving

    stage.run(scenario())


@pytest.mark.parametrize("kind", [Streams, ForeignStreams, Pipes])
def test_bytes_that_are_given_back_are_for_the_receive_that_waits(kind):
    """As many as it has room for; the rest is for the next one."""
    stage = kind(0)
    sock = stage.socks[0]

    async def scenario():
        waiting = asyncio.ensure_future(stage.futures.recv(sock, 3))
        await asyncio.sleep(0.01)
        stage.futures.give_back(sock, b"kept")
        assert await waiting == b"kep"
        buffer = bytearray(3)
        assert await stage.futures.recv_into(sock, buffer) == 1
        assert buffer == b"t\0\0"

    stage.run(scenario())


@pytest.mark.parametrize("sender", [("127.0.0.1", 5), ("::1", 5, 0, 0), None])
def test_a_datagram_that_is_given_back_is_for_the_receive_that_waits(sender):
    """With its sender; what is longer than the buffer is cut off."""
    stage = Datagrams(0)
    sock = stage.socks[0]

    async def scenario():
        for data in (b"all", b"longer"):
            waiting = asyncio.ensure_future(stage.futures.recvfrom(sock, 3))
            await asyncio.sleep(0.01)
            stage.futures.give_back_datagram(sock, data, sender)
            assert await waiting == (data[:3], sender)

    stage.run(scenario())


@pytest.mark.parametrize("asked", ["one", "all"])
def test_a_cancel_that_wine_forgets_is_asked_again(monkeypatch, asked):
    """Of one receive, and of all that a closing handle has."""
    monkeypatch.setattr(FakeKernel, "forgets_cancels", True, raising=False)
    cancel, forgotten = FakeKernel.CancelIoEx, []

    def forgetful(kernel, handle, address):
        if len(forgotten) < 3:
            forgotten.append(address)
            return 1
        return cancel(kernel, handle, address)

    monkeypatch.setattr(FakeKernel, "CancelIoEx", forgetful)
    stage = Stage(chances=QUICK)
    sock = stage.socks[0]

    async def scenario():
        receiving = asyncio.ensure_future(stage.futures.recv(sock, 100))
        await asyncio.sleep(0)
        if asked == "one":
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
        else:
            stage.loop.proactor.close_endpoint(stage.futures.endpoint(sock))
            with pytest.raises(OSError, match="operation aborted"):
                await receiving
        assert len(forgotten) == 3

    stage.run(scenario())


def test_a_receive_that_ends_because_its_socket_was_closed_is_not_begun_again():
    """The handle's value may be a stranger's by then."""
    stage = Stage(chances=QUICK, layered="all")  # Where it is closed before its packets have come.
    sock, _ = stage.socks

    async def scenario():
        first, second = (asyncio.ensure_future(stage.futures.recv(sock, 100)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        stage.kernel.settle_all()
        calls = stage.kernel.calls["WSARecv"]
        stage.socks.remove(sock)
        sock.close()
        with pytest.raises(OSError, match="operation aborted"):
            await second
        assert first.cancelled()
        assert stage.kernel.calls["WSARecv"] == calls

    stage.run(scenario())


@pytest.mark.parametrize("layered", LAYERED)
def test_a_provider_that_refuses_skip_mode_and_cancels_costs_no_byte_and_no_connection(schedules, layered):
    """Security software between Winsock and the system's sockets."""

    def run(seed):
        stage = StreamStage(seed)
        stage.kernel.layered = layered
        for end in stage.connection():
            end.meddle = stage.meddle
        stage.run(talk_and_close(stage))
        assert stage.loop.reports == []

    async def talk_and_close(stage):
        await stage.act_for_a_while()
        stage.budget = 0
        for end in stage.ends:
            await wait_until_connected(end)
            end.transport.resume_reading()
        await asyncio.sleep(0.01)
        for end in stage.random.sample(stage.ends, len(stage.ends)):
            end.transport.close() if stage.random.random() < 0.5 else end.transport.abort()
        for end in stage.ends:
            await end.lost

    schedules(run, 150)


@pytest.mark.parametrize("layered", LAYERED)
def test_a_receive_that_nobody_can_cancel_is_given_up_when_it_ends(layered):
    """The socket under the layers is asked; if that refuses too, what comes at last begins the next receive."""
    stage = Stage(chances=QUICK, layered=layered)
    sock, peer = stage.socks

    async def scenario():
        receiving = asyncio.ensure_future(stage.futures.recv(sock, 100))
        await asyncio.sleep(0)
        receiving.cancel()
        stage.loop.call_later(0.01, lambda: stage.kernel.act(sender(peer, [b"late"])))
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert (stage.kernel.now_ms > 0) is (layered != "base")
        assert await stage.futures.recv(sock, 100) == b"late"

    stage.run(scenario())


@pytest.mark.parametrize("layered", LAYERED)
def test_a_loop_closes_at_once_although_nothing_can_be_cancelled(layered):
    stage = Stage(chances=QUICK, layered=layered)
    endpoints = [
        stage.loop.proactor.register(OverlappedSocket(sock.fileno(), sock)) for sock in stage.kernel.socketpair()
    ]

    async def scenario():
        for endpoint in endpoints:
            receive = stage.futures._receive(endpoint, endpoint.receive_buffer(100), 0)
            stage.futures._submit(receive, None, lambda _operation, count: count)
        await asyncio.sleep(0)

    stage.run(scenario())
    assert stage.kernel.now_ms == 0


@pytest.mark.parametrize("fails_at", [0, 1])
@pytest.mark.parametrize("exc", [Interrupted, MemoryError])
def test_cancels_without_memory_are_all_asked_although_one_is_cut_short_once_more(exc, fails_at):
    """Two connections end while memory is missing; and of the two questions that are asked later, one raises again."""
    stage = StreamStage(0, Chances(slow_cancel=0, late_success=0, idle=0))
    ends = [stage.connection()[0], stage.connection()[0]]
    cancel, raising = stage.kernel.CancelIoEx, [fails_at]

    def cancel_or_raise(*args):
        if raising:
            raising[0] -= 1
            if raising[0] < 0:
                raising.clear()
                raise exc
        return cancel(*args)

    async def scenario():
        for end in stage.ends:
            await wait_until_connected(end)
        await asyncio.sleep(0.01)
        stage.kernel.chances.memory_error = 1
        for end in ends:
            end.transport.abort()
        stage.kernel.chances.memory_error = 0
        stage.kernel.CancelIoEx = cancel_or_raise
        for end in ends:
            assert await end.lost is None
        assert not raising
        for end in stage.ends:
            end.transport.abort()
            await end.lost

    stage.run_through_interrupts(scenario())


def test_a_cancel_without_memory_is_asked_for_as_long_as_it_takes():
    """Nothing else can happen meanwhile: a wait without end would be one."""
    stage = StreamStage(0, QUICK)
    stage.connection()
    asked, cancel = [], stage.kernel.CancelIoEx

    def cancel_or_raise(*args):
        asked.append(stage.kernel.now_ms)
        if len(asked) < 5:
            raise MemoryError
        return cancel(*args)

    async def scenario():
        for end in stage.ends:
            await wait_until_connected(end)
        await asyncio.sleep(0.01)
        stage.kernel.CancelIoEx = cancel_or_raise
        for end in stage.ends:
            end.transport.abort()
            await end.lost

    stage.run(scenario())
    assert asked[4] > asked[3] > asked[2], "it is not spun on either"
    assert asked[4] - asked[0] <= 250, "ms: nobody notices the wait"


def test_a_proactor_that_closes_while_memory_is_missing_leaves_nothing_in_the_kernel():
    """All that was asked was asked in vain; kept for the life of the process is only what the kernel does not return."""
    kernel = FakeKernel(0, QUICK)
    proactor = Proactor(kernel=kernel, arena=PatternArena())
    kernel.watch(proactor)
    sock, peer = kernel.socketpair()
    endpoint = proactor.register(OverlappedSocket(sock.fileno(), sock))
    proactor.submit(endpoint.receive_operation(ignore, proactor.arena.buffer(16)))
    cancel, in_vain = kernel.CancelIoEx, 4 * [MemoryError]

    def cancel_or_raise(*args):
        if in_vain:
            raise in_vain.pop()
        return cancel(*args)

    kernel.CancelIoEx = cancel_or_raise
    try:
        assert proactor.close(timeout=0.2) == []
    finally:
        peer.close()  # Which ends it in any case.
    assert (in_vain, sock.closed) == ([], True)
    kernel.check()


# -- one receive on a proactor of its own ----------------------------------------------------------------------


class Receiving:
    """A receive that is under way; `asked` is what the kernel was asked to cancel, by address."""

    def __init__(self, layered="", **chances):
        self.kernel = FakeKernel(0, Chances(**vars(QUICK) | chances))
        self.kernel.layered = layered
        self.proactor = Proactor(kernel=self.kernel, arena=PatternArena())
        self.kernel.watch(self.proactor)
        self.sock, self.peer = self.kernel.socketpair()
        self.endpoint = self.proactor.register(OverlappedSocket(self.sock.fileno(), self.sock))
        buffer = self.proactor.arena.buffer(16)
        self.operation = self.endpoint.receive_operation(ignore, buffer)
        self.proactor.submit(self.operation)
        self.asked, self.failures = [], []
        self._cancel, self.kernel.CancelIoEx = self.kernel.CancelIoEx, self.cancel_or_raise

    def cancel_or_raise(self, handle, address):
        if self.failures:
            raise self.failures.pop()
        self.asked.append(address)
        return self._cancel(handle, address)

    def thread_operation(self):
        """What a thread of ours does on the same handle; `stop` ends it."""
        operation = ThreadOperation(IoType.WAIT)
        operation.endpoint, operation.deliver, operation.args = self.endpoint, ignore, ()
        operation.start = lambda: Status.PENDING
        operation.stop = lambda: self.proactor.complete(operation, Status.CANCELLED, 0)
        self.proactor.submit(operation)
        operation.Internal = Status.PENDING
        return operation

    def statuses(self):
        settled = self.proactor.select(1)
        found = [status for _, status, _ in settled]
        settled.clear()
        return found

    def close(self):
        assert self.proactor.close() == []
        self.peer.close()
        self.kernel.check()


@pytest.fixture
def receiving(request):
    it = Receiving(**getattr(request, "param", {}))
    yield it
    it.close()


def test_a_single_cancel_without_memory_is_asked_before_the_next_wait(receiving):
    receiving.failures.append(MemoryError)
    receiving.proactor.cancel(receiving.operation)
    assert receiving.asked == []
    assert receiving.statuses() == [Status.CANCELLED]
    assert receiving.asked == [receiving.operation.address]


def test_a_cancel_without_memory_is_not_asked_of_what_has_ended_meanwhile(receiving):
    """Its address may be another operation's by then."""
    receiving.failures.append(MemoryError)
    receiving.proactor.cancel(receiving.operation)
    receiving.peer.deliver(b"abc")
    receiving.proactor.poll(1000)
    assert receiving.statuses() == [Status.SUCCESS]
    receiving.proactor.select(0)
    assert receiving.asked == []


def test_a_cancel_that_was_interrupted_may_be_asked_again(receiving):
    receiving.failures.append(Interrupted)
    with pytest.raises(Interrupted):
        receiving.proactor.cancel(receiving.operation)
    receiving.proactor.cancel(receiving.operation)
    receiving.proactor.cancel(receiving.operation)
    assert receiving.asked == [receiving.operation.address], "twice is once"
    assert receiving.statuses() == [Status.CANCELLED]


@pytest.mark.parametrize("receiving", [{"layered": "base", "slow_cancel": 1}], indirect=True)
def test_a_cancel_that_the_socket_under_the_layers_has_heard_closes_nothing_early(receiving):
    receiving.proactor.close_endpoint(receiving.endpoint)
    assert not receiving.sock.closed
    assert receiving.statuses() == [Status.CANCELLED]
    assert receiving.sock.closed


@pytest.mark.parametrize("forgotten", [0, 1, 7, CANCELS_MAX, 10 * CANCELS_MAX])
def test_wine_is_asked_until_it_has_heard_and_not_for_ever(receiving, monkeypatch, forgotten):
    it, cancel = receiving, receiving._cancel
    monkeypatch.setattr(it.proactor.cancels, "_forgets", True)
    it._cancel = lambda *args: 1 if len(it.asked) <= forgotten else cancel(*args)
    it.proactor.cancel(it.operation)
    assert it.asked == [it.operation.address] * (1 + min(forgotten, CANCELS_MAX))
    it._cancel = cancel
    if forgotten > CANCELS_MAX:
        it.peer.deliver(b"x")
    assert it.statuses() == [Status.SUCCESS if forgotten > CANCELS_MAX else Status.CANCELLED]


def test_what_a_thread_of_ours_does_is_stopped_by_its_own_way(receiving, monkeypatch):
    """And the kernel, asked for its own on the same handle, is not asked for that."""
    monkeypatch.setattr(receiving.proactor.cancels, "_forgets", True)
    threads = receiving.thread_operation()
    receiving.proactor.cancel_all(receiving.endpoint)
    assert receiving.asked == [0]
    assert not threads.pending
    assert receiving.statuses() + receiving.statuses() == [Status.CANCELLED, Status.CANCELLED]
    receiving.thread_operation()
    receiving.proactor.cancel_all(receiving.endpoint)
    assert receiving.asked == [0]
    assert receiving.statuses() == [Status.CANCELLED]
