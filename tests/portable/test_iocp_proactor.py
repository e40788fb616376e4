"""The stdlib proactor's methods over the fake kernel: datagrams, pipes, connections and files, each a future.

What must hold in each: a future that was given up loses nothing, and leaves nothing open; what is received is what was
sent, in order; an error is told to whoever awaits, and to nobody else.
"""

import asyncio
import contextlib
import gc
import sys
import types

import pytest
from fakes.datagrams import PAYLOAD_MAX
from fakes.kernel import Chances, socket_module
from fakes.pipes import FakePipeEnd
from fakes.rules import Interrupted
from fakes.stage import BaseStage

from iocp_loop._asyncio import _futures
from iocp_loop._asyncio import _private as private
from iocp_loop._core._kept import ORPHANS
from iocp_loop._core._operation import SETTLED
from iocp_loop._handles import _pipes, _sockets
from iocp_loop._handles._opening import open_socket
from iocp_loop._win32.constants import Error, Status, WsaError

NAME = r"\\.\pipe\fake"


class Stage(BaseStage):
    """A loop, its futures, and handles that belong to the test."""

    def __init__(self, seed=0, chances=None):
        super().__init__(seed, chances)
        self.futures = self.loop._stdlib_proactor
        self.mine = []

    def known(self, sock):
        """A fake socket that the futures know; a real one they would register by themselves."""
        self.futures.adopt(sock, open_socket(self.loop.proactor, sock))
        self.mine.append(sock)
        return sock

    def pair(self):
        return [self.known(sock) for sock in self.kernel.socketpair()]

    def parties(self):
        left, right = self.kernel.datagram_socket(), self.kernel.datagram_socket()
        return self.known(left), self.known(right)

    def pipes(self, *, message_mode=False):
        pair = self.kernel.pipe_pair(message_mode=message_mode)
        self.mine += pair
        return pair

    async def given_up_sometimes(self, make):
        """The result of what `make` starts, or None where it was given up; an exception is raised."""
        future = make()
        for _ in range(self.random.randrange(4)):
            if not future.done():
                await asyncio.sleep(0)
        if self.random.random() < 0.4:
            future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            return None

    def look_at_what_is_left(self):
        self.loop.close()
        self.kernel.settle_all()
        for thing in self.mine:
            thing.close()
        self.mine.clear()
        assert self.loop.reports == []
        super().look_at_what_is_left()


# -- datagrams -------------------------------------------------------------------------------------------------


def sender(sock, messages, address, random):
    for message in messages:
        while True:
            try:
                sock.sendto(message, address)
                break
            except BlockingIOError:
                yield False
        yield True


def test_datagrams_given_up_at_any_moment_are_received_once_and_in_order(schedules):
    """recvfrom and recvfrom_into, half of them cancelled; a buffer that is too short costs this one datagram."""

    def run(seed):
        stage = Stage(seed, Chances(late_success=0.8))
        random = stage.random
        receiver, peer = stage.parties()
        messages = [b"%d," % number * random.choice((1, 2, 30)) for number in range(30)] + [b"end"]
        stage.kernel.act(sender(peer, messages, receiver.name, random))
        received = []

        async def receive():
            while b"end" not in received:
                size = random.choice((5, 200))
                buffer = bytearray(size)
                into = random.random() < 0.5
                try:
                    result = await stage.given_up_sometimes(
                        lambda: (
                            stage.futures.recvfrom_into(receiver, buffer, random.choice((0, size)))
                            if into
                            else stage.futures.recvfrom(receiver, size)
                        )
                    )
                except OSError as exc:
                    assert exc.winerror == WsaError.MSGSIZE
                    continue
                if result is not None:
                    assert result[1] == peer.name
                    received.append(bytes(buffer[: result[0]] if into else result[0]))

        stage.run(receive())
        rest, missing = iter(messages), []
        for datagram in received:
            # Raises StopIteration if it came twice, or in another order.
            while (message := next(rest)) != datagram:
                missing.append(message)
        assert all(len(message) > 5 for message in missing)

    schedules(run, 150)


def test_a_task_that_is_cancelled_gives_its_datagram_back():
    """What sock_recvfrom does with a result that comes together with its task's cancellation: the next one has it."""
    stage = Stage()
    receiver, peer = stage.parties()

    async def scenario():
        stage.futures.give_back_datagram(receiver, b"second", peer.name)
        stage.futures.give_back_datagram(receiver, b"first", peer.name)
        assert await stage.futures.recvfrom(receiver, 100) == (b"first", peer.name)
        buffer = bytearray(100)
        assert await stage.futures.recvfrom_into(receiver, buffer) == (6, peer.name)
        assert buffer[:6] == b"second"
        stage.futures.give_back_datagram(receiver, b"too long", peer.name)
        with pytest.raises(OSError, match="READ_FROM") as raised:
            await stage.futures.recvfrom(receiver, 3)
        assert raised.value.winerror == WsaError.MSGSIZE
        assert not stage.futures.endpoint(receiver).unread_datagrams

    stage.run(scenario())


@pytest.mark.parametrize("is_blocking", [False, True])
def test_datagrams_leave_in_order_whether_the_socket_takes_them_at_once_or_not(schedules, is_blocking):
    """On a blocking socket its own call would hold up the loop: the fake kernel notices one."""

    def run(seed):
        stage = Stage(seed, Chances(would_block=0.5))
        sock, peer = stage.parties()
        messages = [b"%d" % number * stage.random.randrange(5) for number in range(15)]
        sock.setblocking(is_blocking)

        async def send():
            for message in messages:
                assert await stage.futures.sendto(sock, message, 0, peer.name) == len(message)
            with pytest.raises(OSError, match="WRITE_TO|sendto") as raised:
                await stage.futures.sendto(sock, bytes(PAYLOAD_MAX + 1), 0, peer.name)
            assert raised.value.winerror == WsaError.MSGSIZE

        stage.run(send())
        assert sock.sent == [(peer.name, message) for message in messages]

    schedules(run, 60)


def test_a_datagram_socket_is_connected_at_once_and_to_an_address_only():
    stage = Stage()
    sock, peer = stage.parties()

    async def connect():
        assert await stage.futures.connect(sock, peer.name) is None
        assert sock.getpeername() == peer.name
        with pytest.raises(TypeError):
            stage.futures.connect(sock, "nowhere")

    stage.run(connect())


# -- pipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_mode", [False, True])
def test_a_pipe_is_read_to_its_end_however_often_a_read_is_given_up(schedules, message_mode):
    """recv and recv_into, cancelled at any moment; messages longer than the buffer come in pieces."""

    def run(seed):
        stage = Stage(seed)
        random = stage.random
        ours, theirs = stage.pipes(message_mode=message_mode)
        messages = [b"%d;" % number * random.randrange(1, 20) for number in range(12)]
        received = bytearray()

        async def write():
            for message in messages:
                assert await stage.futures.send(theirs, message) == len(message)
            await asyncio.sleep(0.01)  # Its packet is not out of the port's hands before.
            stage.loop.proactor.forget(stage.futures.endpoint(theirs))
            theirs.close()

        async def read():
            while True:
                size = random.choice((1, 7, 100))
                buffer = bytearray(size)
                into = random.random() < 0.5
                result = await stage.given_up_sometimes(
                    lambda: stage.futures.recv_into(ours, buffer) if into else stage.futures.recv(ours, size)
                )
                buffer.extend(b"!")  # It is ours again: nothing may pin it any more.
                if result is not None:
                    chunk = buffer[:result] if into else result
                    received.extend(chunk)
                    if not chunk:
                        return

        async def both():
            writing = stage.loop.create_task(write())
            await read()
            await writing

        stage.run(both())
        assert received == b"".join(messages)

    schedules(run, 80)


@pytest.fixture
def pipe_objects(monkeypatch):
    """Of the kernel of the stage that is given: each end is its own object."""

    def of(stage):
        monkeypatch.setattr(
            private, "PipeHandle", lambda handle: stage.kernel.thing(handle, FakePipeEnd), raising=False
        )
        return stage

    return of


def instance(stage):
    handle = _pipes.create_instance(stage.kernel, NAME, first=False)
    pipe = stage.kernel.thing(handle, FakePipeEnd)
    stage.mine.append(pipe)
    return pipe


def test_a_pipe_instance_meets_its_client_before_or_after_it_waits(schedules, pipe_objects):
    """A client that was there first is a failure of the kernel's that means success."""

    def run(seed):
        stage = pipe_objects(Stage(seed))

        async def scenario():
            pipe = instance(stage)
            accepting = None
            if comes_later := stage.random.random() < 0.5:
                accepting = stage.futures.accept_pipe(pipe)
                await asyncio.sleep(0)
            client = await stage.futures.connect_pipe(NAME)
            stage.mine.append(client)
            assert await (accepting if comes_later else stage.futures.accept_pipe(pipe)) is pipe
            assert client.peer is pipe

        stage.run(scenario())

    schedules(run, 40)


def test_a_client_that_went_before_it_was_waited_for_is_an_error(pipe_objects):
    stage = pipe_objects(Stage())

    async def scenario():
        pipe = instance(stage)
        stage.kernel.open_pipe(NAME).close()
        with pytest.raises(BrokenPipeError, match="PIPE_CONNECT") as raised:
            await stage.futures.accept_pipe(pipe)
        assert raised.value.winerror == Error.NO_DATA

    stage.run(scenario())


def test_a_client_waits_for_a_free_instance_and_does_not_wait_for_a_pipe_that_is_not_there(pipe_objects):
    stage = pipe_objects(Stage())
    instances = []

    async def scenario():
        with pytest.raises(FileNotFoundError, match="no pipe of this name"):
            await stage.futures.connect_pipe(NAME)
        instance(stage)
        stage.mine.append(await stage.futures.connect_pipe(NAME))
        stage.loop.call_later(1, lambda: instances.append(instance(stage)))
        client = await stage.futures.connect_pipe(NAME)
        stage.mine.append(client)
        assert [client.peer] == instances
        assert stage.kernel.calls["WaitNamedPipeW"]

    stage.run(scenario())


# -- connections -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def sockets_of_the_fake_kernel(monkeypatch):
    monkeypatch.setattr(_sockets, "socket", socket_module())
    # A descriptor is the handle, on every system.
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(get_osfhandle=lambda descriptor: descriptor))


def test_accepts_given_up_at_any_moment_leave_no_socket_open(schedules):
    """Also where the accept succeeded all the same: its client is told by the end, and waits for nobody."""

    def run(seed):
        stage = Stage(seed, Chances(accept_failure=0.1, late_success=0.8))
        listener = stage.known(stage.kernel.listen())
        listener.setblocking(stage.random.random() < 0.5)  # So will be the connections.
        clients = [stage.known(stage.kernel.socket()) for _ in range(6)]

        async def scenario():
            connecting = [stage.futures.connect(client, listener.name) for client in clients]
            served = []
            for _ in range(8):
                accepting = stage.futures.accept(listener)
                for _ in range(stage.random.randrange(5)):
                    await asyncio.sleep(0)
                accepting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    try:
                        conn, name = await accepting
                    except OSError as exc:
                        assert exc.winerror in (WsaError.NOBUFS, WsaError.CONNRESET)
                    else:
                        assert name == conn.getpeername()
                        assert conn.gettimeout() == listener.gettimeout()
                        served.append(conn)
            await asyncio.gather(*connecting)
            assert all(client.getpeername() == listener.name for client in clients)
            assert {conn.peer for conn in served} <= set(clients)
            for conn in served:
                conn.close()

        stage.run(scenario())

    schedules(run, 80)


def test_a_refused_connection_and_a_bad_address_are_told():
    stage = Stage()
    client = stage.known(stage.kernel.socket())

    async def scenario():
        with pytest.raises(ConnectionRefusedError, match="CONNECT"):
            await stage.futures.connect(client, ("127.0.0.1", 9))
        with pytest.raises(TypeError):
            stage.futures.connect(client, 5)

    stage.run(scenario())


def test_accepts_end_when_the_server_stops_serving():
    """What a stdlib loop calls before it closes its listener."""
    stage = Stage(0, Chances(inline=0))
    listener = stage.known(stage.kernel.listen())

    async def scenario():
        accepting = stage.futures.accept(listener)
        stranger, _ = stage.pair()
        stage.futures._stop_serving(stranger)  # It has nothing to end.
        assert not accepting.done()
        stage.futures._stop_serving(listener)
        with pytest.raises(ConnectionAbortedError, match="ACCEPT"):
            await accepting

    stage.run(scenario())


def test_a_file_goes_out_by_the_kernel(schedules):
    """TransmitFile from an offset; what the peer's buffer has no room for waits in the kernel."""

    def run(seed):
        stage = Stage(seed)
        sock, peer = stage.pair()
        content = bytes(range(200))
        stage.kernel.files[7] = content
        file = types.SimpleNamespace(fileno=lambda: 7)

        async def scenario():
            sending = stage.futures.sendfile(sock, file, 50, 100)
            received = b""
            while len(received) < 100:
                received += await stage.futures.recv(peer, 1000)
            assert await sending == 100
            assert received == content[50:150]

        stage.run(scenario())

    schedules(run, 20)


# -- the record of a handle ------------------------------------------------------------------------------------


def test_a_handle_whose_value_is_used_again_has_a_record_of_its_own():
    """The old object lives on, closed, in a traceback say; the new one must not get its endpoint."""
    stage = Stage()

    async def scenario():
        old, peer = stage.kernel.pipe_pair()
        stage.mine.append(peer)
        endpoint = stage.futures.endpoint(old)
        assert stage.futures.endpoint(old) is endpoint
        old.close()
        with pytest.raises(OSError, match="closed FakePipeEnd") as raised:
            stage.futures.recv(old, 10)
        assert raised.value.winerror == WsaError.NOTSOCK
        stage.kernel._free_handles[:] = [old.handle]
        stage.kernel.random.seed(1)
        new = stage.kernel.make(FakePipeEnd)
        stage.mine.append(new)
        assert new.handle == old.handle
        assert stage.futures.endpoint(new) is not endpoint
        assert endpoint.closing
        assert endpoint.key not in stage.loop.proactor.endpoints

    stage.run(scenario())


def test_the_record_goes_with_its_object():
    """A pipe object is collected: nobody can use its endpoint any more."""
    stage = Stage()

    async def scenario():
        pipe, peer = stage.kernel.pipe_pair()
        stage.mine.append(peer)
        endpoint = stage.futures.endpoint(pipe)
        pipe.close()
        peer.peer = None
        del pipe
        gc.collect()
        assert endpoint.closing
        assert endpoint.key not in stage.loop.proactor.endpoints

    stage.run(scenario())


def test_sizes_that_make_no_sense_are_refused():
    stage = Stage()
    left, _ = stage.parties()

    async def scenario():
        with pytest.raises(ValueError, match="must be 0 or more, not -1"):
            stage.futures.recvfrom(left, -1)
        with pytest.raises(ValueError, match="nbytes is 9, but the buffer holds 8"):
            stage.futures.recvfrom_into(left, bytearray(8), 9)
        assert stage.loop.proactor.pending == {}

    stage.run(scenario())


# -- interrupts, and the end -----------------------------------------------------------------------------------


def test_an_interrupted_receive_loses_no_byte(schedules):
    """KeyboardInterrupt before or after the call that submits it, or in a wait; then asked for again."""

    def run(seed):
        stage = Stage(seed)
        sock, peer = stage.pair()
        sent = b"".join(b"%d," % number for number in range(40))
        stage.kernel.act(byte_sender(peer, sent, stage.random))
        received = bytearray()

        async def receive():
            while len(received) < len(sent):
                stage.kernel.chances.interrupt = 0.2
                try:
                    future = stage.futures.recv(sock, stage.random.choice((1, 10)))
                except Interrupted:
                    stage.kernel.chances.interrupt = 0
                    while stage.loop.proactor.pending or stage.loop.proactor.settled:  # What it brings comes first.
                        await asyncio.sleep(0)
                    continue
                finally:
                    stage.kernel.chances.interrupt = 0
                received.extend(await future)

        stage.run_through_interrupts(receive())
        assert received == sent

    schedules(run, 100)


def byte_sender(sock, data, random):
    while data:
        try:
            count = sock.send(data[: random.choice((1, 5, 50))])
        except BlockingIOError:
            yield False
            continue
        data = data[count:]
        yield True


def test_a_receive_without_memory_fails_and_the_next_one_gets_the_bytes(schedules):
    """WSARecv raises MemoryError, or the operation's own memory is missing: nothing was received."""

    def run(seed):
        stage = Stage(seed)
        sock, peer = stage.pair()
        sent = b"".join(b"%d," % number for number in range(40))
        stage.kernel.act(byte_sender(peer, sent, stage.random))
        received = bytearray()

        async def receive():
            while len(received) < len(sent):
                stage.kernel.chances.memory_error = 0.2
                try:
                    future = stage.futures.recv(sock, 10)
                except MemoryError:
                    continue
                finally:
                    stage.kernel.chances.memory_error = 0
                try:
                    received.extend(await future)
                except OSError as exc:
                    assert exc.winerror == WsaError.NOBUFS

        stage.run(receive())
        assert received == sent

    schedules(run, 60)


def test_select_delivers_what_has_come_and_returns_nothing():
    """What asyncio.ProactorEventLoop expects of its proactor."""
    stage = Stage()
    sock, peer = stage.pair()

    async def scenario():
        receiving = stage.futures.recv(sock, 10)
        peer.deliver(b"data")
        assert stage.futures.select(1) == []
        assert receiving.done()
        assert receiving.result() == b"data"
        assert receiving._ov.state is not SETTLED  # Its memory was given back.

    stage.run(scenario())


def test_closing_cancels_what_is_out_and_reports_what_never_ends():
    """Twice is once; a driver that answers no cancel does not hold it up."""
    stage = Stage(0, Chances(stuck=1))
    sock, _ = stage.pair()
    stage.loop.proactor.close = lambda close=stage.loop.proactor.close: close(0.001)
    future = stage.futures.recv(sock, 10)
    stage.futures.close()
    (report,) = stage.loop.reports
    assert "1 operations did not end in time" in report["message"]
    stage.futures.close()
    assert len(stage.loop.reports) == 1
    assert "closed" in repr(stage.futures)
    orphan = ORPHANS.pop()
    assert future._ov is orphan
    orphan.state = SETTLED
    stage.kernel.give_up()
    stage.loop.close()


def test_an_operation_that_is_delivered_to_nobody_says_so():
    """The sink of an operation that has no future: a bug of ours, and no silence."""
    stage = Stage()
    sock, _ = stage.pair()
    endpoint = stage.futures.endpoint(sock)
    operation = endpoint.receive_operation(_futures.undelivered, memoryview(bytearray(1)))
    with pytest.raises(AssertionError, match="settled while it had no future"):
        operation.deliver(operation, Status.SUCCESS, 0)
    stage.run(asyncio.sleep(0))
