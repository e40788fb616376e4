"""Readiness on the real loop over the fake kernel: watchers, and transports and listeners on sockets of other ports.

What must hold in each schedule: a callback runs only while it is the one that watches, and for the socket that it was
given, however often handles' values are used again; what is ready is told, and what is read is what was sent; one that
watches a socket that is closed is woken once more, and forgotten. A transport on a socket of another port does what any
other does.
"""

import asyncio
import contextlib

from fakes.kernel import Chances
from fakes.recorders import StreamStage, finish_in_order
from fakes.stage import BaseStage, Interrupted

from iocp_loop._handles import _readiness
from iocp_loop._handles._opening import open_socket
from iocp_loop._transports import _reader, _writer


class ForeignStage(StreamStage):
    """Connections of whose sockets most belong to another port."""

    def make_transport(self, sock, end, skip_port):
        if self.random.random() < 0.8:
            self.kernel.give_away(sock)
        super().make_transport(sock, end, skip_port)


def test_a_stream_on_a_shared_socket_receives_every_byte_in_order(schedules, monkeypatch):
    """Both ends of two connections write, pause and resume at random; then all is ended in order."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = ForeignStage(seed)
        for buffered in (False, seed % 4 == 0):
            for end in stage.connection(buffered=buffered):
                end.meddle = stage.meddle

        async def orderly():
            await stage.act_for_a_while()
            await finish_in_order(stage)

        stage.run(orderly())
        assert stage.loop.reports == []

    schedules(run, 40)


def test_whatever_a_callback_does_or_raises_on_a_shared_socket(schedules, monkeypatch):
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)

    def run(seed):
        stage = ForeignStage(seed, Chances(would_block=0.5))
        for buffered in (False, seed % 2 == 0):
            for end in stage.connection(buffered=buffered):
                end.sock.capacity = stage.random.choice((64, 500, 5000))
        stage.play_wildly()

    schedules(run, 40)


def test_memory_that_is_missing_now_and_then_deafens_no_shared_connection(schedules, monkeypatch):
    """Also where it is the poll of a socket that cannot be asked for."""
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))

    def run(seed):
        stage = ForeignStage(seed, Chances(would_block=0.4))
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_short_of_memory()

    schedules(run, 60)


def test_an_interrupt_at_any_call_of_the_kernel_loses_no_byte_and_no_shared_connection(schedules, monkeypatch):
    monkeypatch.setattr(_reader, "RECEIVE_SIZES", (8, 32, 128, 256))
    monkeypatch.setattr(_writer, "CORKED_SIZE_MAX", 200)

    def run(seed):
        stage = ForeignStage(seed, Chances(would_block=0.4))
        for buffered in (False, seed % 2 == 0):
            stage.connection(buffered=buffered)
        stage.play_through_kernel_interrupts()

    schedules(run, 60)


def test_operations_on_shared_sockets_are_given_up_without_loss(schedules):
    """sock_recv, sock_sendall, sock_accept and sock_connect, some of them cancelled; every byte arrives."""

    def run(seed):
        stage = BaseStage(seed, Chances(would_block=0.4))
        kernel, loop, random = stage.kernel, stage.loop, stage.random
        listener, client = kernel.listen(), kernel.socket()
        client.setblocking(False)
        message = b"".join(b"%d," % number for number in range(30))

        def known(sock):
            kernel.give_away(sock)
            loop._stdlib_proactor.adopt(sock, open_socket(loop.proactor, sock))
            return sock

        async def patiently(make):
            """Given up now and then, and tried again."""
            while True:
                task = loop.create_task(make())
                for _ in range(random.randrange(6)):
                    await asyncio.sleep(0)
                if random.random() < 0.4:
                    task.cancel()
                try:
                    return await task
                except asyncio.CancelledError:
                    pass

        async def scenario():
            known(listener)
            known(client)
            connecting = loop.create_task(connect(client, listener.name))
            accepted, name = await loop.sock_accept(listener)
            await connecting
            assert name == client.getsockname()
            known(accepted)
            sending = loop.create_task(loop.sock_sendall(client, message))
            received = b""
            while len(received) < len(message):
                received += await patiently(lambda: loop.sock_recv(accepted, random.choice((1, 10, 100))))
            assert received == message
            await sending
            for sock in (listener, client, accepted):
                loop.proactor.forget(loop._stdlib_proactor.endpoint(sock))
                sock.close()

        async def connect(sock, address):
            await loop._stdlib_proactor.connect(sock, address)

        stage.run(scenario())
        assert loop.reports == []

    schedules(run, 100)


class Watched:
    """One connection: its left end is watched by the loop, its right one belongs to a peer without any loop."""

    def __init__(self, stage):
        self.stage = stage
        self.sock, self.peer = stage.kernel.socketpair()
        self.received = bytearray()
        self.sent = bytearray()
        self.heard = bytearray()  # by the peer
        self.to_send = b""
        self.has_said_all = False
        self.watching = {"reader": None, "writer": None}  # which callback, by its number
        self.woken_after_close = {"reader": 0, "writer": 0}
        self.watching_at_close = {"reader": None, "writer": None}
        stage.kernel.act(self.peer_steps())

    def peer_steps(self):
        random = self.stage.random
        for number in range(20):
            if random.random() < 0.3:
                yield False
            try:
                self.peer.send(b"%d," % number)
            except BlockingIOError:
                yield False
            except OSError:
                break
            with contextlib.suppress(OSError):
                self.heard += self.peer.recv(100)
            yield True
        self.has_said_all = True
        while not self.sock.closed:
            count = len(self.heard)
            with contextlib.suppress(OSError):
                self.heard += self.peer.recv(100)
            yield len(self.heard) > count
        self.peer.close()

    def watch(self, kind):
        for other in self.stage.watched:
            # Whose handle had this value before, and was closed: who still watches it would be told of ours, as on
            # asyncio's selector loops.
            if other.sock.closed and other.sock.handle == self.sock.handle:
                other.unwatch("reader")
                other.unwatch("writer")
        self.stage.serial += 1
        number = self.stage.serial
        getattr(self.stage.loop, f"add_{kind}")(self.sock, self.on_ready, kind, number)
        self.watching[kind] = number

    def unwatch(self, kind):
        remove = getattr(self.stage.loop, f"remove_{kind}")
        if self.sock.closed:
            with contextlib.suppress(ValueError):  # Nobody watched it any more.
                remove(self.sock)
            if not self.woken_after_close[kind]:
                self.watching_at_close[kind] = None  # It will not be woken any more.
        else:
            assert remove(self.sock) is (self.watching[kind] is not None)
        self.watching[kind] = None

    def on_ready(self, kind, number):
        try:
            self.check_and_transfer(kind, number)
        except AssertionError as exc:
            # In a callback it would be reported, and the callback be called again and again.
            self.stage.failure = self.stage.failure or exc
            raise Interrupted from exc
        self.stage.meddle(self)

    def check_and_transfer(self, kind, number):
        assert self.watching[kind] == number, f"{kind} {number} was removed or replaced, and is told all the same"
        if self.sock.closed:
            assert self.watching_at_close[kind] == number
            self.woken_after_close[kind] += 1
            return
        try:
            is_over = self.read() if kind == "reader" else self.write()
        except BlockingIOError:
            is_over = False
        except ConnectionError:
            is_over = True
        if is_over:
            # As every program does: it would be told again and again.
            self.unwatch(kind)

    def read(self):
        chunk = self.sock.recv(self.stage.random.choice((1, 100)))
        self.received += chunk
        return not chunk

    def write(self):
        if self.to_send:
            count = self.sock.send(self.to_send)
            self.sent += self.to_send[:count]
            self.to_send = self.to_send[count:]
        return not self.to_send

    @property
    def is_quiet(self):
        return self.has_said_all and self.received == self.peer.sent and self.heard == self.sock.sent

    def close(self):
        self.watching_at_close = dict(self.watching)
        self.sock.close()


class WatchStage(BaseStage):
    """Some connections that are watched."""

    def __init__(self, seed, chances=None):
        super().__init__(seed, chances)
        self.serial = 0
        self.budget = 40
        self.raised = []
        self.failure = None  # an assertion that did not hold in a callback
        self.watched = []
        for _ in range(3):
            self.watched.append(Watched(self))

    def meddle(self, watched):
        if not self.budget or self.random.random() < 0.6:
            return
        self.budget -= 1
        match self.random.randrange(8):
            case 0:
                self.raised.append(self.random.choice((RuntimeError, MemoryError))("from a callback"))
                raise self.raised[-1]
            case 1:
                raise self.random.choice((Interrupted, SystemExit))
            case _:
                self.act()

    def act(self):
        watched = self.random.choice(self.watched)
        kind = self.random.choice(("reader", "writer"))
        if watched.sock.closed:
            if self.random.random() < 0.3:
                watched.unwatch(kind)
            return
        match self.random.randrange(10):
            case 0 | 1 | 2 | 3:
                watched.to_send += b"<%d>" % self.serial
                watched.watch(kind)
            case 4 | 5:
                watched.unwatch(kind)
            case 6 if len(self.watched) < 8:
                watched.close()
                # Its handle's value is likely to be the next one's.
                self.watched.append(Watched(self))
                self.watched[-1].watch(kind)
            case 7:
                watched.unwatch(kind)
                watched.watch(kind)


def test_watchers_are_told_of_what_is_ready_and_of_nothing_else(schedules, monkeypatch):
    """Added, replaced and removed at random, also in callbacks; sockets are closed under them; callbacks raise."""
    monkeypatch.setattr(_readiness, "GROUP_MAX", 2)

    def run(seed):
        stage = WatchStage(seed)

        async def scenario():
            await asyncio.sleep(0)
            for _ in range(30):
                stage.act()
                await asyncio.sleep(stage.random.choice((0, 0, 0.01)))
            stage.budget = 0
            await finish(stage)

        stage.run_through_interrupts(scenario())
        assert stage.failure is None
        assert all(report["exception"] in stage.raised for report in stage.loop.reports)

    async def finish(stage):
        for watched in stage.watched:
            if not watched.sock.closed:
                watched.watch("reader")
                watched.watch("writer")
        for _ in range(200):
            if all(watched.sock.closed or watched.is_quiet for watched in stage.watched):
                break
            await asyncio.sleep(0.01)
        for watched in stage.watched:
            if not watched.sock.closed:
                assert watched.received == watched.peer.sent
                assert watched.heard == watched.sent == watched.sock.sent
                watched.close()
        await asyncio.sleep(1)
        for watched in stage.watched:
            for kind, number in watched.watching_at_close.items():
                # Twice where an answer of before was still on its way.
                assert watched.woken_after_close[kind] in ((0,) if number is None else (1, 2)), (
                    f"{kind} of {watched.sock}"
                )

    schedules(run, 70)
