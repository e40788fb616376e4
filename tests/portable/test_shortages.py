"""What the kernel has no memory for is begun again after a while: each kind of operation, and whatever comes between."""

import asyncio

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.stage import BaseStage, Interrupted
from fakes.timers import LATE_MS_MAX

from iocp_loop._core import _shortages
from iocp_loop._core._fine_timer import SAME_S
from iocp_loop._core._operation import SEND_MAX, IoType
from iocp_loop._core._proactor import Proactor
from iocp_loop._core._shortages import PAUSE_MAX_S, REFUSALS_MAX
from iocp_loop._handles import _sockets
from iocp_loop._handles._opening import open_socket
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._transports import _sendfile
from iocp_loop._win32.constants import LENGTH_MAX, Error, Status, WsaError
from iocp_loop._win32.errors import SHORTAGES, status_from_winerror, winerror_from_status

SCARCE = [status for status in Status if winerror_from_status(status, is_socket=True) == WsaError.NOBUFS]


class Refusing:
    """One operation on a proactor of its own; its calls are refused until the test says otherwise."""

    def __init__(self, status=Status.INSUFFICIENT_RESOURCES, *, inline=False):
        self.kernel = FakeKernel(
            0, Chances(inline=1 if inline else 0, would_block=0, idle=0, late_success=0, coarse_wait=0)
        )
        self.proactor = Proactor(kernel=self.kernel)
        self.kernel.watch(self.proactor)
        self.sock, self.peer = self.kernel.socketpair()
        self.endpoint = self.proactor.register(OverlappedSocket(self.sock.fileno(), self.sock), skip_port=True)
        buffer = self.proactor.arena.buffer(10)
        self.operation = self.endpoint.receive_operation(self.deliver, buffer)
        self.results = []
        self.is_open = True
        self.status = status
        self.kernel.chances.submit_failure = 1

    def deliver(self, operation, status, byte_count):
        if not self.proactor.shortages.begin_again(operation, status, lambda: self.is_open):
            self.results.append((winerror_from_status(status, is_socket=True), byte_count))

    def turn(self, timeout=60):
        settled = self.proactor.select(timeout)
        while settled:
            operation, status, byte_count = settled.popleft()
            operation.deliver(operation, status, byte_count)

    def until_done(self):
        while not self.results:
            self.turn()

    def close(self):
        assert self.proactor.close() == []
        self.kernel.check()


@pytest.fixture
def refusing(request):
    it = Refusing()
    yield it
    it.close()


def test_it_is_begun_again_with_growing_pauses_until_the_kernel_takes_it(refusing):
    it, times = refusing, []
    begin = it.operation.start
    it.operation.start = lambda *args: times.append(it.kernel.now_ms) or begin(*args)
    it.proactor.submit(it.operation)
    while len(times) < 14:
        it.turn()
    pauses = [after - before for before, after in zip(times, times[1:], strict=False)]
    for pause, wanted in zip(pauses[:6] + pauses[-3:], [1, 2, 4, 8, 16, 32, *[PAUSE_MAX_S * 1000] * 3], strict=True):
        assert wanted <= pause <= wanted + LATE_MS_MAX + SAME_S * 1000
    it.kernel.chances.submit_failure = 0
    it.peer.deliver(b"abc")
    it.until_done()
    assert it.results == [(0, 3)]
    assert it.operation.stop is None


def test_who_has_a_way_of_its_own_to_stop_has_it_again(refusing):
    """While it waits, stopping it needs nobody; a thread's call, once begun again, is stopped as ever."""
    it, stop = refusing, object()
    it.operation.stop = stop
    it.proactor.submit(it.operation)
    it.turn()
    assert it.operation.stop is not stop
    it.kernel.chances.submit_failure = 0
    for _ in range(3):
        it.turn(1)
    assert it.operation.stop is stop
    it.operation.stop = None
    it.peer.deliver(b"x")
    it.until_done()
    it.kernel.chances.submit_failure = 1
    it.operation.stop = stop
    it.proactor.submit(it.operation)
    it.turn()
    it.proactor.cancel(it.operation)
    assert it.operation.stop is stop


@pytest.mark.parametrize("told", ["at once", "by a packet", "now so, now so"])
def test_patience_ends_and_the_operation_fails_with_what_the_kernel_says(refusing, told):
    it, submits = refusing, []
    begin = it.operation.start

    def start(*args):
        submits.append(it.kernel.now_ms)
        at_once = told == "at once" or (told != "by a packet" and len(submits) % 2)
        it.kernel.chances.submit_failure = 1 if at_once else 0
        it.kernel.chances.late_failure = 0 if at_once else 1
        return begin(*args)

    it.operation.start = start
    it.proactor.submit(it.operation)
    it.until_done()
    assert it.results == [(WsaError.NOBUFS, 0)]
    assert len(submits) == REFUSALS_MAX + 1
    assert 60 <= it.kernel.now_ms / 1000 <= 70
    assert it.operation.start is start


def test_patience_begins_anew_once_there_was_a_success(refusing):
    it, begin = refusing, refusing.operation.start
    for _ in range(2):
        it.kernel.chances.submit_failure = 1
        it.proactor.submit(it.operation)
        while it.operation.refusals < REFUSALS_MAX - 1:
            it.turn()
        assert it.results == []
        it.kernel.chances.submit_failure = 0
        it.peer.deliver(b"x")
        it.until_done()
        assert it.results == [(0, 1)]
        it.results.clear()
    it.proactor.submit(it.operation)
    assert it.operation.start is begin  # From here on a success costs nothing again.


@pytest.mark.parametrize("status", SCARCE, ids=lambda status: status.name)
def test_it_waits_whatever_the_kernel_is_short_of(refusing, status):
    it = refusing
    it.kernel.chances.submit_failure = 0
    it.proactor.settle_inline(it.operation, status, 0)
    it.turn()
    assert it.operation.pending
    assert it.results == []
    it.proactor.cancel(it.operation)
    it.until_done()
    assert it.results == [(Error.OPERATION_ABORTED, 0)]


@pytest.mark.parametrize("code", sorted(SHORTAGES))
def test_it_waits_however_a_pipe_says_it(refusing, code):
    it = refusing
    it.endpoint.kind = "pipe"
    it.proactor.settle_inline(it.operation, status_from_winerror(code), 0)
    it.turn()
    assert it.operation.pending


@pytest.mark.parametrize("code", [WsaError.CONNRESET, WsaError.MFILE, Error.INVALID_PARAMETER])
def test_no_other_failure_waits(refusing, code):
    it = refusing
    it.proactor.settle_inline(it.operation, status_from_winerror(code), 0)
    it.turn()
    assert it.results == [(code, 0)]


@pytest.mark.parametrize("io_type", [io_type for io_type in IoType if io_type not in _shortages.REPEATABLE])
def test_what_has_others_to_look_after_it_is_not_begun_again(refusing, io_type):
    """A connect that finds no buffers may have run out of ports; accepts have their listener."""
    it = refusing
    it.operation.io_type = io_type
    it.proactor.settle_inline(it.operation, Status.INSUFFICIENT_RESOURCES, 0)
    it.turn()
    assert it.results == [(WsaError.NOBUFS, 0)]


def test_a_cancel_ends_it_at_once_and_without_the_kernel(refusing):
    it = refusing
    it.proactor.submit(it.operation)
    it.turn()
    assert it.operation.pending
    it.proactor.cancel(it.operation)
    it.until_done()
    assert it.results == [(Error.OPERATION_ABORTED, 0)]
    assert "CancelIoEx" not in it.kernel.calls
    it.kernel.chances.submit_failure = 0
    it.proactor.submit(it.operation)
    it.peer.deliver(b"xy")
    it.results.clear()
    it.until_done()
    assert it.results == [(0, 2)]


def test_closing_its_endpoint_ends_it_and_closes_the_handle(refusing):
    it = refusing
    it.proactor.submit(it.operation)
    it.turn()
    it.proactor.close_endpoint(it.endpoint)
    assert it.sock.closed
    it.until_done()
    assert it.results == [(Error.OPERATION_ABORTED, 0)]


def test_one_that_an_interrupt_has_left_on_a_closing_endpoint_is_not_begun_again(refusing):
    it, calls = refusing, []
    it.proactor.submit(it.operation)
    it.turn()
    it.operation.start = lambda *args: calls.append(args)
    it.endpoint.closing = True  # And nothing else: the interrupt came before its operations were cancelled.
    it.until_done()
    assert it.results == [(Error.OPERATION_ABORTED, 0)]
    assert calls == []


def test_a_handle_that_nobody_else_may_close_is_not_asked_for(refusing):
    it = refusing
    it.operation.deliver = lambda *result: (
        it.proactor.shortages.begin_again(*result[:2]) or it.results.append(result[1:])
    )
    it.proactor.submit(it.operation)
    it.turn()
    it.kernel.chances.submit_failure = 0
    it.peer.deliver(b"ab")
    it.until_done()
    assert it.results == [(0, 2)]


def test_a_handle_that_its_owner_has_closed_meanwhile_is_not_touched(refusing):
    """Its value may be a stranger's."""
    it = refusing
    it.proactor.submit(it.operation)
    it.turn()
    calls = []
    it.operation.start = lambda *args: calls.append(args)
    it.is_open = False
    it.until_done()
    assert it.results == [(WsaError.NOTSOCK, 0)]
    assert calls == []


def test_an_interrupt_at_any_call_loses_none(schedules):
    """Out of the call that begins it again, before it or behind it."""

    def run(seed):
        it = Refusing(inline=seed % 2 == 0)
        it.kernel.random.seed(seed)
        it.kernel.chances.submit_failure, it.kernel.chances.interrupt = 0.5, 0.3
        it.peer.deliver(b"abc")
        while True:
            try:
                if not it.proactor.holds(it.operation):
                    it.proactor.submit(it.operation)
                break
            except Interrupted:
                continue
        while not it.results:
            try:
                it.turn()
            except Interrupted:
                continue
        assert it.results == [(0, 3)]
        it.kernel.chances.interrupt = 0
        it.close()

    schedules(run, 200)


# -- futures ---------------------------------------------------------------------------------------------------


class Stage(BaseStage):
    def __init__(self, **chances):
        super().__init__(0, Chances(inline=0, would_block=1, idle=0, late_success=0, **chances))
        self.sock, self.peer = self.kernel.socketpair()

    def play(self, scenario):
        async def whole():
            await scenario()
            self.sock.close()
            self.peer.close()

        self.run(whole())


def known(stage):
    """As a `socket.socket` would be."""
    endpoint = open_socket(stage.loop.proactor, stage.sock)
    stage.loop._stdlib_proactor.adopt(stage.sock, endpoint)
    return stage.sock


def test_a_future_waits_for_memory_with_its_operation():
    stage = Stage()

    async def scenario():
        sock = known(stage)
        stage.kernel.chances.submit_failure = 1
        receiving = asyncio.ensure_future(stage.loop.sock_recv(sock, 10))
        sending = asyncio.ensure_future(stage.loop.sock_sendall(sock, b"to the peer"))
        await asyncio.sleep(1)
        assert not receiving.done()
        assert not sending.done()
        stage.peer.deliver(b"to us")
        stage.kernel.chances.submit_failure = 0
        assert await receiving == b"to us"
        await sending
        assert stage.peer.inbound == b"to the peer"

    stage.play(scenario)


def test_a_file_to_a_bare_socket_waits_for_memory_with_its_operation(tmp_path, monkeypatch):
    """Nobody here owns the socket, so whether it is still open is asked of its object."""
    monkeypatch.setattr(_sendfile, "TRANSMITS_MAX", 0)
    path = tmp_path / "file"
    path.write_bytes(b"to the peer")
    stage = Stage()

    async def scenario():
        sock = known(stage)
        stage.kernel.chances.submit_failure = 1
        with path.open("rb") as file:
            sending = asyncio.ensure_future(stage.loop._sock_sendfile_native(sock, file, 0, None))
            await asyncio.sleep(1)
            assert not sending.done()
            stage.kernel.chances.submit_failure = 0
            assert await sending == 11
        assert stage.peer.inbound == b"to the peer"

    stage.play(scenario)


def test_a_future_that_is_cancelled_while_it_waits_for_memory_is_cancelled_at_once():
    stage = Stage(submit_failure=1)

    async def scenario():
        receiving = asyncio.ensure_future(stage.loop.sock_recv(known(stage), 10))
        await asyncio.sleep(1)
        before = stage.kernel.now_ms
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert stage.kernel.now_ms == before

    stage.play(scenario)


def test_a_socket_that_is_closed_while_its_future_waits_for_memory_says_so():
    stage = Stage(submit_failure=1)

    async def scenario():
        receiving = asyncio.ensure_future(stage.loop.sock_recv(known(stage), 10))
        await asyncio.sleep(1)
        stage.sock.close()
        with pytest.raises(OSError, match="READ") as caught:
            await receiving
        assert caught.value.winerror == WsaError.NOTSOCK

    stage.play(scenario)


def reading(peer, received):
    """Takes all that comes; what comes last is left to whoever wants to look."""
    while True:
        received.extend(peer.inbound)
        peer.inbound.clear()
        yield False


def test_an_interrupt_before_the_next_piece_sends_none_twice_and_leaves_none_out():
    stage = Stage()
    data = bytes(range(256)) * (3 * SEND_MAX // 256)
    received, submit, calls = bytearray(), stage.loop.proactor.submit, []

    def interrupted_once(operation):
        if operation.io_type is IoType.WRITE:
            calls.append(operation)
            if len(calls) == 2:
                raise Interrupted
        return submit(operation)

    async def scenario():
        stage.kernel.act(reading(stage.peer, received))
        stage.loop.proactor.submit = interrupted_once
        await stage.loop.sock_sendall(known(stage), data)
        await asyncio.sleep(1)
        received.extend(stage.peer.inbound)
        stage.kernel._actors.clear()
        stage.sock.close()
        stage.peer.close()

    stage.run_through_interrupts(scenario())
    assert len(calls) == 4
    assert received == data


def test_a_buffer_of_any_size_is_sent_in_pieces():
    stage = Stage()
    data = bytes(range(256)) * (3 * SEND_MAX // 256) + b"and a rest"
    received = bytearray()

    async def scenario():
        stage.kernel.act(reading(stage.peer, received))
        await stage.loop.sock_sendall(known(stage), data)
        await asyncio.sleep(1)
        received.extend(stage.peer.inbound)
        stage.kernel._actors.clear()

    stage.play(scenario)
    assert received == data
    assert stage.kernel.largest_send <= SEND_MAX
    assert stage.kernel.calls["WSASend"] == 4


@pytest.mark.parametrize("cancelled", [None, 0, 1])
def test_the_pieces_of_several_do_not_alternate(cancelled):
    """One is cancelled: that costs its own bytes, and the others go out whole."""
    stage = Stage()
    received = bytearray()
    parts = [bytes([number]) * (2 * SEND_MAX + number) for number in range(3)]

    async def scenario():
        sock = known(stage)
        tasks = [asyncio.ensure_future(stage.loop.sock_sendall(sock, part)) for part in parts]
        await asyncio.sleep(0)
        if cancelled is not None:
            tasks[cancelled].cancel()
        stage.kernel.act(reading(stage.peer, received))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [n == cancelled for n in range(3)]
        await asyncio.sleep(1)
        received.extend(stage.peer.inbound)
        stage.kernel._actors.clear()

    stage.play(scenario)
    whole = b"".join(part for number, part in enumerate(parts) if number != cancelled)
    if cancelled == 0:
        assert received.endswith(whole)
        assert set(received[: -len(whole)]) <= {0}
    else:
        assert received == whole


def test_a_cancelled_sendall_sends_no_further_piece():
    stage = Stage()
    stage.peer.capacity = 1

    async def scenario():
        sending = asyncio.ensure_future(stage.loop.sock_sendall(known(stage), bytes(3 * SEND_MAX)))
        await asyncio.sleep(1)
        assert not sending.done()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    stage.play(scenario)
    assert stage.kernel.calls["WSASend"] <= 2


# -- sizes that no call can name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LENGTH_MAX, LENGTH_MAX + 1, 2**32, 2**32 + 1])
def test_no_length_is_cut_to_its_lower_half(monkeypatch, size):
    """4 GiB is 0 in 32 bits: a receive of that size would be the end of the stream, and a send of it nothing."""
    it, chunk = Refusing(), b"only its length counts"
    try:
        memory = it.proactor.arena.buffer(10)
        monkeypatch.setattr(
            _sockets, "len", lambda thing: size if thing in (memory, chunk) else len(thing), raising=False
        )
        it.endpoint.set_receive_buffer(it.operation, memory)
        assert it.operation.wsabuf.len == LENGTH_MAX
        sending = it.endpoint.send_operation(it.deliver)
        it.endpoint.set_send_vector(sending, [chunk, b"next"])
        assert sending.wsabufs[0].len == LENGTH_MAX
        assert it.kernel._arguments("WSASend", sending.args)[2] == 1
    finally:
        it.close()
