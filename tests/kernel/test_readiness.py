"""add_reader and add_writer against the real kernel: told while it is true, never left waiting, and what it costs."""

import asyncio
import contextlib
import contextvars
import socket
import time

import pytest

import iocp_loop
from iocp_loop._core._operation import IoType
from iocp_loop._handles import _readiness
from iocp_loop._handles._readiness import GROUP_MAX, Interest
from iocp_loop._win32.constants import Ioctl, Status, WsaError

from .peers import LOCALHOST, Recorder, connected, receive_exactly, reset
from .watched import PATIENCE_S, failed, here, pending, running, turns, until


@contextlib.contextmanager
def pair(family=socket.AF_INET):
    """(a non-blocking socket, its blocking peer), both closed at the end."""
    ours, peer = socket.socketpair(family)
    with ours, peer:
        ours.setblocking(False)
        peer.settimeout(PATIENCE_S)
        yield ours, peer


@contextlib.contextmanager
def reading(sock, callback, *args):
    """A reader, removed at the end if it is still there."""
    here().add_reader(sock, callback, *args)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            here().remove_reader(sock)


@contextlib.contextmanager
def writing(sock, callback, *args):
    """As `reading`, for a writer."""
    here().add_writer(sock, callback, *args)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            here().remove_writer(sock)


def fill(sock):
    """Send until the socket takes no more; the number of bytes."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(256 * 1024))
    return sent


async def polled(count=1):
    """Wait until that many requests are in the kernel."""
    await until(lambda: len(pending(IoType.POLL)) == count, f"{count} polls")


async def nothing_polled():
    """Wait until nothing is left of any registration."""
    await until(lambda: not _readiness.of(here().proactor)._watches, "the last watch to go")
    assert not pending(IoType.POLL)


# -- what is told ----------------------------------------------------------------------------------------------


async def test_a_reader_is_called_again_and_again_while_data_wait_and_then_no_more():
    """It takes one byte of five each time."""
    with pair() as (sock, peer):
        taken = []
        with reading(sock, lambda: taken.append(sock.recv(1))):
            peer.sendall(b"abcde")
            await until(lambda: len(taken) == 5)
            await polled()
            assert b"".join(taken) == b"abcde"
        await nothing_polled()


async def test_a_writer_is_called_while_there_is_room_and_again_when_there_is_room_again():
    with pair() as (sock, peer):
        calls = []
        with writing(sock, calls.append, "room"):
            await until(lambda: len(calls) >= 3)
            size = fill(sock)
            await polled()
            calls.clear()
            await turns()
            assert not calls
            await asyncio.to_thread(receive_exactly, peer, size)
            await until(lambda: calls)
        await nothing_polled()


async def test_reader_and_writer_of_one_socket_are_told_apart():
    with pair() as (sock, peer):
        told = []
        size = fill(sock)
        with reading(sock, told.append, "read"), writing(sock, told.append, "write"):
            await polled()
            assert not told
            peer.sendall(b"x")
            await until(lambda: told)
            assert set(told) == {"read"}
            sock.recv(1)
            await polled()
            told.clear()
            await asyncio.to_thread(receive_exactly, peer, size)
            await until(lambda: told)
            assert set(told) == {"write"}
        await nothing_polled()


async def test_a_writer_added_while_the_reader_is_polled_for_loses_no_event_of_either():
    """The request is out; it is taken back and made anew for both. Data arrive in between, each time."""
    with pair() as (sock, peer):
        for _ in range(20):
            told = set()
            with reading(sock, told.add, "read"):
                await polled()
                with writing(sock, told.add, "write"):
                    peer.sendall(b"x")
                    await until(lambda told=told: told == {"read", "write"})
                assert sock.recv(10) == b"x"
        await nothing_polled()


async def test_a_callback_that_removes_itself_is_called_once():
    with pair() as (sock, peer):
        calls = []

        def once():
            calls.append(here().remove_reader(sock))

        with reading(sock, once):
            peer.sendall(b"stays")
            await until(lambda: calls)
            await turns(10)
            assert calls == [True]
            assert not here().remove_reader(sock)
        await nothing_polled()


async def test_a_reader_removed_by_the_writer_in_the_same_turn_is_not_called():
    """Both are ready; whichever runs first removes both."""
    with pair() as (sock, peer):
        peer.sendall(b"x")
        calls = []

        def first(name):
            calls.append(name)
            here().remove_reader(sock)
            here().remove_writer(sock)

        here().add_reader(sock, first, "read")
        here().add_writer(sock, first, "write")
        await until(lambda: calls)
        await turns(10)
        assert len(calls) == 1
        await nothing_polled()


async def test_a_second_reader_replaces_the_first():
    with pair() as (sock, peer):
        told = []
        with reading(sock, told.append, "first"):
            await polled()
            with reading(sock.fileno(), told.append, "second"):
                peer.sendall(b"x")
                await until(lambda: told)
                assert set(told) == {"second"}
            assert not here().remove_reader(sock)
        await nothing_polled()


async def test_a_listening_socket_is_readable_when_a_client_has_come():
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        accepted = []
        with reading(listener, lambda: accepted.append(listener.accept()[0])):
            with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
                await until(lambda: len(accepted) == 2)
            for conn in accepted:
                conn.close()
        await nothing_polled()


async def test_a_datagram_socket_is_readable_when_a_datagram_has_come_even_an_empty_one():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        sock.bind((LOCALHOST, 0))
        sock.setblocking(False)
        received = []
        with reading(sock, lambda: received.append(sock.recv(100))):
            for data in (b"", b"datagram"):
                peer.sendto(data, sock.getsockname())
            await until(lambda: len(received) == 2)
        assert received == [b"", b"datagram"]
        await nothing_polled()


async def test_an_ipv6_socket_is_polled_too():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        listener.setblocking(False)
        called = asyncio.Event()
        with reading(listener, called.set), socket.create_connection(listener.getsockname()[:2]):
            await called.wait()
        listener.accept()[0].close()
        await nothing_polled()


async def test_a_connect_is_reported_to_the_writer():
    with socket.create_server((LOCALHOST, 0)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.connect(listener.getsockname())
        done = asyncio.Event()
        with writing(sock, done.set):
            await done.wait()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getpeername() == listener.getsockname()
        await nothing_polled()


async def test_a_connect_that_fails_is_reported_to_the_writer():
    """To a port that nobody listens on."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        done = asyncio.Event()
        with writing(sock, done.set):
            await asyncio.wait_for(done.wait(), PATIENCE_S)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == WsaError.CONNREFUSED
        await nothing_polled()


# -- the other end goes away -----------------------------------------------------------------------------------


async def test_the_end_of_the_stream_wakes_the_reader():
    with pair() as (sock, peer):
        ended = asyncio.Event()
        with reading(sock, ended.set):
            await polled()
            peer.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(ended.wait(), PATIENCE_S)
        assert sock.recv(1) == b""
        await nothing_polled()


async def test_the_end_of_the_stream_does_not_wake_a_writer_that_waits_for_room():
    """Else it would be told of it in every turn, and the processor would burn."""
    with pair() as (sock, peer):
        fill(sock)
        calls = []
        with writing(sock, calls.append, "room"):
            await polled()
            peer.shutdown(socket.SHUT_WR)
            await turns(10)
            assert not calls
            assert here().counts["NtDeviceIoControlFile"] == 1
        await nothing_polled()


@pytest.mark.parametrize("full", [False, True])
async def test_a_reset_wakes_reader_and_writer(full):
    with pair() as (sock, peer):
        if full:
            fill(sock)
        told = set()
        with reading(sock, told.add, "read"), writing(sock, told.add, "write"):
            reset(peer)
            await until(lambda: told == {"read", "write"})
        await nothing_polled()


# -- sockets closed while they are polled ----------------------------------------------------------------------


async def test_a_socket_closed_while_polled_wakes_its_callbacks_once_and_is_forgotten():
    """Nobody removed them: whoever waits for readiness must not wait for ever."""
    with pair() as (sock, _):
        told = []
        fill(sock)
        fd = sock.fileno()
        here().add_reader(sock, told.append, "read")
        here().add_writer(sock, told.append, "write")
        await polled()
        sock.close()
        await until(lambda: len(told) == 2)
        await nothing_polled()
        assert sorted(told) == ["read", "write"]
        assert not here().remove_reader(fd)
        assert not here().remove_writer(fd)


async def test_a_socket_closed_in_the_turn_it_was_added_in_wakes_its_callback_too():
    """The request is refused, for there is no such socket any more."""
    with pair() as (sock, _):
        told = []
        here().add_reader(sock, told.append, "read")
        sock.close()
        await until(lambda: told)
        await nothing_polled()
        assert told == ["read"]


async def test_a_closed_socket_is_removed_by_its_object():
    with pair() as (sock, peer):
        here().add_reader(sock, peer.close)
        await polled()
        sock.close()
        assert here().remove_reader(sock)
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            here().remove_reader(sock)
        await nothing_polled()
        assert peer.fileno() != -1


@contextlib.contextmanager
def with_handle(value):
    """(a connected non-blocking socket whose handle has this value, which was free; its peer)."""
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            sock = stack.enter_context(socket.socket())
            if sock.fileno() == value:
                break
        else:
            pytest.skip("the system does not use the handle's value again")
        listener = stack.enter_context(socket.create_server((LOCALHOST, 0)))
        sock.connect(listener.getsockname())
        sock.setblocking(False)
        yield sock, stack.enter_context(listener.accept()[0])


@pytest.mark.parametrize("removed", [False, True])
async def test_a_new_socket_with_the_handle_of_a_closed_one_gets_its_own_events(removed):
    """The old request's answer, "closed", is in the port already when the new socket is registered."""
    with pair() as (old, _):
        told = []
        value = old.fileno()
        here().add_reader(old, told.append, "old")
        await polled()
        if removed:
            here().remove_reader(old)
        old.close()
        with with_handle(value) as (new, peer), reading(new, told.append, "new"):
            await polled()
            assert not told  # The old one was replaced before its answer was looked at.
            peer.sendall(b"x")
            await until(lambda: told)
            assert set(told) == {"new"}
        await nothing_polled()


async def test_a_new_socket_with_the_handle_of_one_whose_duplicate_lives_gets_its_own_events():
    """A duplicate keeps the old socket open, so the old request says nothing, and is still out."""
    with pair() as (old, _), old.dup():
        value = old.fileno()
        told = []
        here().add_reader(old, told.append, "old")
        await polled()
        old.close()
        with with_handle(value) as (new, peer), reading(new, told.append, "new"):
            peer.sendall(b"x")
            await until(lambda: told)
            assert set(told) == {"new"}
        await nothing_polled()


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, object(), None, "1"])
async def test_what_has_no_descriptor_is_refused(bad):
    for method in (here().add_reader, here().add_writer):
        with pytest.raises(ValueError, match="Invalid file"):
            method(bad, print)
    for method in (here().remove_reader, here().remove_writer):
        with pytest.raises(ValueError, match="Invalid file"):
            method(bad)


async def test_a_handle_that_is_no_socket_is_refused():
    """QUIRK(wine): SIO_BASE_HANDLE answers any number, so there it is the request that is refused, and it is told."""
    called = asyncio.Event()
    port = here().proactor.port.fileno()
    try:
        here().add_reader(port, called.set)
    except ValueError as exc:
        assert f"Invalid file descriptor: {port}" in str(exc)
    else:
        await asyncio.wait_for(called.wait(), PATIENCE_S)
        assert not here().remove_reader(port)
        await nothing_polled()


async def test_the_socket_of_a_transport_is_refused():
    async with connected(Recorder) as (transport, _, peer):
        sock = transport.get_extra_info("socket")
        for fd in (sock, sock.fileno()):
            for call in (
                lambda fd=fd: here().add_reader(fd, print),
                lambda fd=fd: here().add_writer(fd, print),
                lambda fd=fd: here().remove_reader(fd),
                lambda fd=fd: here().remove_writer(fd),
            ):
                with pytest.raises(RuntimeError, match=r"File descriptor \d+ is used by transport"):
                    call()
        with peer.dup() as other, reading(other, print):
            pass
    if here().proactor.attached:
        await nothing_polled()


def test_a_closed_loop_refuses_to_add_and_has_nothing_to_remove():
    with pair() as (sock, _), running() as loop:
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.add_reader(sock, print)
        with pytest.raises(RuntimeError, match="closed"):
            loop.add_writer(sock, print)
        assert not loop.remove_reader(sock)
        assert not loop.remove_writer(sock)


# -- in the loop -----------------------------------------------------------------------------------------------


async def test_a_callback_runs_in_the_context_it_was_added_in():
    variable = contextvars.ContextVar("variable", default="outside")
    seen = []
    with pair() as (sock, peer):
        variable.set("inside")
        with reading(sock, lambda: seen.append(variable.get())):
            variable.set("later")
            peer.sendall(b"x")
            await until(lambda: seen)
            assert set(seen) == {"inside"}
        await nothing_polled()


async def test_a_busy_loop_tells_a_reader_once_for_each_time_it_is_ready():
    """Something is queued in every turn. A callback that waited in the queue for the next turn, while the socket was
    polled again, would be told twice and find nothing the second time."""
    with pair() as (sock, peer):
        taken, busy = [], True

        def spin():
            if busy:
                here().call_soon(spin)

        spin()
        with reading(sock, lambda: taken.append(sock.recv(10))):
            for n in range(50):
                peer.sendall(b"%d" % n)
                await until(lambda n=n: len(taken) > n)
        busy = False
        assert taken == [b"%d" % n for n in range(50)]
        await nothing_polled()


async def test_a_callback_that_raises_is_reported_and_called_again_and_the_others_go_on():
    with pair() as (sock, peer), pair() as (other, other_peer):
        calls, told = [], []

        def raises():
            calls.append(sock.recv(1))
            if len(calls) == 1:
                raise RuntimeError("from the reader")

        with reading(sock, raises), reading(other, lambda: told.append(other.recv(1))):
            peer.sendall(b"xx")
            other_peer.sendall(b"y")
            await until(lambda: len(calls) == 2 and told)
        here().expect_report("from the reader")
        await nothing_polled()


def test_closing_a_loop_that_watches_sockets_is_quick_and_leaves_nothing():
    with contextlib.ExitStack() as stack:
        loop = iocp_loop.new_event_loop()
        for _ in range(2 * GROUP_MAX):
            sock, _ = stack.enter_context(pair())
            loop.add_reader(sock, print)
        loop.call_soon(loop.call_soon, loop.stop)
        loop.run_forever()
        assert len(pending(IoType.POLL, loop)) == 2 * GROUP_MAX
        before = time.perf_counter()
        loop.close()
        assert time.perf_counter() - before < 2
        assert not loop.proactor.pending
        assert not loop.proactor.endpoints


def exchange(sock, question, size):
    """Send and receive at the same time; yields what it must wait for, and is sent what has come true."""
    data = memoryview(question)
    answer = b""
    while len(answer) < size:
        ready = yield {"r", "w"} if data else {"r"}
        if "w" in ready:
            with contextlib.suppress(BlockingIOError):
                data = data[sock.send(data) :]
        if "r" in ready:
            answer += sock.recv(64 * 1024)
    return answer


async def ready_for(fd, wanted):
    """Wait for "r", "w" or both; those that have come true."""
    future, ready = here().create_future(), set()

    def wake(what):
        ready.add(what)
        if not future.done():
            future.set_result(None)

    if "r" in wanted:
        here().add_reader(fd, wake, "r")
    if "w" in wanted:
        here().add_writer(fd, wake, "w")
    try:
        await future
    finally:
        here().remove_reader(fd)
        here().remove_writer(fd)
    return ready


# -- tasks that wait -------------------------------------------------------------------------------------------


async def test_a_task_waits_until_there_is_something_to_read_and_not_at_all_if_there_is():
    with pair() as (ours, peer):
        waiting = asyncio.create_task(here().wait_readable(ours))
        await polled()
        assert not waiting.done()
        peer.send(b"x")
        await waiting
        await here().wait_readable(ours)
        assert ours.recv(2) == b"x"
        await nothing_polled()


async def test_a_task_waits_until_there_is_room_to_write():
    with pair() as (ours, peer):
        await here().wait_writable(ours)
        sent = fill(ours)
        waiting = asyncio.create_task(here().wait_writable(ours))
        await polled()
        assert not waiting.done()
        await asyncio.to_thread(receive_exactly, peer, sent)
        await waiting
        await nothing_polled()


async def test_any_number_of_tasks_wait_for_one_socket_beside_its_reader_and_writer():
    """Readers, writers and a callback: each is told of its own, and once."""
    with pair() as (ours, peer):
        sent, called = fill(ours), []
        readers = [asyncio.create_task(here().wait_readable(ours)) for _ in range(5)]
        writers = [asyncio.create_task(here().wait_writable(ours)) for _ in range(5)]
        with reading(ours, lambda: called.append(ours.recv(1))):
            await polled()
            peer.send(b"x")
            await asyncio.gather(*readers)
            await until(lambda: called == [b"x"], "the callback")
            assert not any(writer.done() for writer in writers)
            await asyncio.to_thread(receive_exactly, peer, sent)
            await asyncio.gather(*writers)
        await nothing_polled()


async def test_a_task_that_is_cancelled_waits_no_more_and_the_others_go_on():
    with pair() as (ours, peer):
        given_up, other = (asyncio.create_task(here().wait_readable(ours)) for _ in range(2))
        await polled()
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        peer.send(b"x")
        await other
        fill(ours)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await here().wait_writable(ours)
        await nothing_polled()


async def test_a_socket_that_is_closed_ends_the_wait_for_it():
    """Closed while it is polled, and before it is."""
    for first_polled in (True, False):
        with pair() as (ours, _peer):
            waiting = asyncio.create_task(here().wait_readable(ours))
            if first_polled:
                await polled()
            else:
                await asyncio.sleep(0)
            ours.close()
            await waiting
            await nothing_polled()


async def test_who_can_not_be_waited_for_is_refused_as_by_add_reader():
    with pair() as (ours, _peer):
        ours.close()
        with pytest.raises(ValueError, match="descriptor"):
            await here().wait_readable(ours)
    with pytest.raises(ValueError, match="Invalid file object"):
        await here().wait_writable(object())
    async with connected(Recorder) as (transport, _protocol, _peer):
        with pytest.raises(RuntimeError, match="transport"):
            await here().wait_readable(transport.get_extra_info("socket"))


def test_a_closed_loop_lets_nobody_wait():
    loop = iocp_loop.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        wait = loop.wait_readable(0)
        wait.send(None)


async def test_a_generator_that_asks_for_reading_writing_or_both_is_driven_as_psycopg_drives_its_own():
    """One future per wait, reader and writer added for it and removed by it, by descriptor and not by object."""

    async def drive(generator, fd):
        try:
            wanted = next(generator)
            while True:
                wanted = generator.send(await ready_for(fd, wanted))
        except StopIteration as exc:
            return exc.value

    def answer(peer, size):
        peer.sendall(receive_exactly(peer, size)[::-1])

    with pair() as (sock, peer):
        for size in (10, 3_000_000, 10):
            question = (b"0123456789" * (size // 10))[:size]
            answering = asyncio.create_task(asyncio.to_thread(answer, peer, size))
            got = await drive(exchange(sock, question, size), sock.fileno())
            await answering
            assert got == question[::-1]
        await nothing_polled()


async def test_a_descriptor_that_only_signals_is_driven_as_pyzmq_drives_its_own():
    """The signal is taken, then work is done until there is none, also work that gave no signal of its own."""
    with pair() as (signal, peer):
        work, done = [], []

        def on_signal():
            with contextlib.suppress(BlockingIOError):
                signal.recv(4096)
            while work:
                done.append(work.pop(0))

        with reading(signal.fileno(), on_signal):
            for n in range(100):
                work.append(n)
                if n % 3 == 0:
                    peer.sendall(b"!")
                if n % 10 == 0:
                    await turns(1)
            await until(lambda: len(done) == 100)
        assert done == list(range(100))
        await nothing_polled()


async def test_two_hundred_sockets_are_each_told_what_is_theirs():
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair()) for _ in range(200)]
        received = {}

        def take(n, sock):
            received[n] = sock.recv(10)

        for n, (sock, _) in enumerate(pairs):
            here().add_reader(sock, take, n, sock)
        await polled(200)
        assert here().counts["NtCreateFile"] == -(-200 // GROUP_MAX)
        for n, (_, peer) in enumerate(pairs):
            peer.sendall(b"%d" % n)
        await until(lambda: len(received) == 200)
        assert received == {n: b"%d" % n for n in range(200)}
        for sock, _ in pairs[::2]:
            here().remove_reader(sock)
        await polled(100)
        for sock, _ in pairs[1::2]:
            here().remove_reader(sock)
        await nothing_polled()
        # The devices are used again, not opened again.
        sock, peer = pairs[0]
        with reading(sock, take, "again", sock):
            peer.sendall(b"again")
            await until(lambda: "again" in received)
        assert here().counts["NtCreateFile"] == -(-200 // GROUP_MAX)
        await nothing_polled()


# -- what it costs ---------------------------------------------------------------------------------------------

CALLS = ("NtDeviceIoControlFile", "GetQueuedCompletionStatusEx", "CancelIoEx", "WSAIoctl", "PostQueuedCompletionStatus")


class Cost:
    """The kernel calls made since it was made."""

    def __init__(self):
        self._before = here().counts.copy()

    def __call__(self):
        return {name: count for name in CALLS if (count := here().counts[name] - self._before[name])}


async def test_an_event_of_a_reader_that_stays_costs_one_request_and_at_most_one_wait():
    """A hundred events, each answered by the peer's next one only after it was dealt with."""
    with pair() as (sock, peer):
        done = here().create_future()
        left = 100

        def take():
            nonlocal left
            sock.recv(1)
            left -= 1
            if left:
                peer.send(b"x")
            else:
                done.set_result(None)

        with reading(sock, take):
            await polled()
            cost = Cost()
            peer.send(b"x")
            await done
            spent = cost()
        assert spent.pop("NtDeviceIoControlFile") in (99, 100)
        # The next event is there when its request is made, which brings no packet: the port is looked at now and then.
        assert spent.pop("GetQueuedCompletionStatusEx") <= 100
        assert not spent
        await nothing_polled()


async def test_a_wait_that_adds_and_removes_its_reader_costs_one_request_and_one_look_at_the_handle():
    """As a future-based library waits. The handle may mean another socket each time."""
    with pair() as (sock, peer):
        cost = None
        for n in range(11):
            if n == 1:
                cost = Cost()  # The first wait opened the device.
            ready = here().create_future()
            here().add_reader(sock, lambda ready=ready: ready.done() or ready.set_result(None))
            here().call_soon(peer.send, b"x")
            await ready
            here().remove_reader(sock)
            sock.recv(1)
        spent = cost()
        assert spent.pop("NtDeviceIoControlFile") == 10
        assert spent.pop("WSAIoctl") == 10
        assert spent.pop("GetQueuedCompletionStatusEx") <= 30
        assert not spent
        await nothing_polled()


async def test_removed_and_added_again_within_a_turn_before_any_request_costs_no_call_of_its_own():
    with pair() as (sock, _):
        cost = Cost()
        for _ in range(5):
            here().add_reader(sock, print)
            here().add_writer(sock, print)
            here().remove_reader(sock)
            here().remove_writer(sock)
        await turns()
        assert "NtDeviceIoControlFile" not in cost()
        assert "CancelIoEx" not in cost()
        with reading(sock, print), writing(sock, lambda: here().remove_writer(sock)):
            await polled()
        assert cost()["NtDeviceIoControlFile"] == 2  # One for both; and for the reader alone, once the writer had room.
        await nothing_polled()


async def test_a_watched_socket_on_which_nothing_happens_costs_nothing():
    with pair() as (sock, _), reading(sock, print):
        await polled()
        cost = Cost()
        await asyncio.sleep(0.05)
        assert cost().get("NtDeviceIoControlFile", 0) == 0
        assert cost()["GetQueuedCompletionStatusEx"] <= 4
    await turns()
    await nothing_polled()


# -- faults ----------------------------------------------------------------------------------------------------


async def test_a_request_that_the_kernel_refuses_wakes_its_callback():
    with pair() as (sock, _):
        here().watched.faults["NtDeviceIoControlFile"] = lambda _function, _args: Status.INVALID_HANDLE
        called = asyncio.Event()
        here().add_reader(sock, called.set)
        await called.wait()
        assert not here().remove_reader(sock)
        await nothing_polled()


async def test_a_device_that_cannot_be_opened_is_an_error_of_add_reader():
    with pair() as (sock, peer):
        here().watched.faults["NtCreateFile"] = lambda _function, _args: Status.INSUFFICIENT_RESOURCES
        with pytest.raises(OSError, match="Afd"):
            here().add_reader(sock, print)
        del here().watched.faults["NtCreateFile"]
        called = asyncio.Event()
        with reading(sock, called.set):
            peer.sendall(b"x")
            await called.wait()
        await nothing_polled()


async def test_a_layered_provider_that_hides_the_base_socket_is_asked_another_way():
    """It fails SIO_BASE_HANDLE; SIO_BSP_HANDLE_POLL is answered."""
    asked = []

    def layered(function, args):
        asked.append(args[1])
        if args[1] == Ioctl.SIO_BASE_HANDLE:
            return failed("WSAIoctl", WsaError.OPNOTSUPP)
        return function(args[0], Ioctl.SIO_BASE_HANDLE, *args[2:])

    with pair() as (sock, peer):
        here().watched.faults["WSAIoctl"] = layered
        called = asyncio.Event()
        with reading(sock, called.set):
            peer.sendall(b"x")
            await called.wait()
        assert asked == [Ioctl.SIO_BASE_HANDLE, Ioctl.SIO_BSP_HANDLE_POLL]
        await nothing_polled()


def test_readiness_needs_no_asyncio(proactor):
    """Straight from a proactor: `select` tells the sinks."""
    with pair() as (sock, peer):
        told = []
        registration = _readiness.of(proactor).watch(sock.fileno(), Interest.READ, lambda *what: told.append(what))
        peer.sendall(b"x")
        while not told:
            settled = proactor.select(PATIENCE_S)
            while settled:
                operation, status, byte_count = settled.popleft()
                operation.deliver(operation, status, byte_count)
        assert told == [(False, False)]
        _readiness.of(proactor).unwatch(registration)
        _readiness.of(proactor).unwatch(registration)
        proactor.select(0)
        proactor.select(0)
        assert "watches=0" in repr(_readiness.of(proactor))
        for endpoint in list(proactor.endpoints.values()):
            proactor.close_endpoint(endpoint)
