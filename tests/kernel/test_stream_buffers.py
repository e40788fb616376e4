"""What a TCP transport receives into: a buffer that becomes the message, none while idle; and when it is asked to."""

import asyncio
import socket

import pytest

from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._transports import _idle, _reader
from iocp_loop._transports._reader import RECEIVE_SIZES
from iocp_loop._transports._reading import Idleness

from .peers import LOCALHOST, Buffered, Echo, Recorder, client, connected, pattern, receive_exactly, reset, serving
from .watched import here, turns, until, wait_until


class Keeper(Recorder):
    """Keeps every bytes object that it was given."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def data_received(self, data):
        self.kept.append(data)
        super().data_received(data)


def idleness(transport):
    return transport._reader._idleness


async def rest(transport):
    """Two rounds in which nothing comes."""
    await bring_to(transport, Idleness.RESTING)


async def bring_to(transport, state):
    """Let nothing come until the transport is in that state of rest."""
    await turns()
    here()._services.idle_rounds.go()
    if state is not Idleness.QUIET:
        here()._services.idle_rounds.go()
    if state is Idleness.RESTING:
        await until(lambda: idleness(transport) is Idleness.RESTING)
    assert idleness(transport) is state


# -- messages and buffers --------------------------------------------------------------------------------------


class KeeperPausing(Keeper):
    """Pauses in every callback, so that the next receive is submitted by resume_reading()."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self.transport.resume_reading)


class KeeperReplaced(Keeper):
    """Is replaced by a buffered protocol, and that by this one again, whenever data come."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.set_protocol(Interlude(self))


class Interlude(asyncio.BufferedProtocol):
    def __init__(self, keeper):
        self.keeper = keeper

    def get_buffer(self, sizehint):
        self.buffer = bytearray(70_000)
        return self.buffer

    def buffer_updated(self, nbytes):
        self.keeper.kept.append(bytes(self.buffer[:nbytes]))
        self.keeper.received += self.buffer[:nbytes]
        self.keeper.transport.set_protocol(self.keeper)


@pytest.mark.parametrize("factory", [Keeper, KeeperPausing, KeeperReplaced])
async def test_what_a_protocol_keeps_is_never_received_into_again(factory):
    """24 MiB through full buffers of every size: a buffer that became a message is the protocol's."""
    size = 24 << 20
    async with connected(factory) as (transport, protocol, peer):
        message = pattern(size)
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, message))
        assert await protocol.receives(size) == message
        await sending
        assert b"".join(protocol.kept) == message
        transport.set_protocol(protocol)


async def test_a_stream_that_fills_its_buffers_is_delivered_in_the_largest():
    async with connected(Keeper) as (_, protocol, peer):
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, bytes(64 << 20)))
        await protocol.receives(64 << 20)
        await sending
        assert max(map(len, protocol.kept)) == RECEIVE_SIZES[-1]


async def test_messages_as_large_as_a_buffer_do_not_change_it_back_and_forth():
    """16 KiB fill the second buffer, and would fill it again: the third stays."""
    size = RECEIVE_SIZES[1]
    async with serving(Echo) as (_, address):
        with client(address) as sock:
            for _ in range(4):
                await asyncio.to_thread(exchange, sock, size)
            (reader,) = readers()
            before = reader._operation.buffer
            for _ in range(20):
                await asyncio.to_thread(exchange, sock, size)
            assert reader._operation.buffer is before


def exchange(sock, size):
    sock.sendall(bytes(size))
    receive_exactly(sock, size)


def readers():
    """Those whose receive is out, on this loop."""
    sinks = [getattr(operation.deliver, "__self__", None) for operation in here().proactor.pending.values()]
    return [sink for sink in sinks if isinstance(sink, _reader.Reader)]


async def test_without_memory_for_the_next_receive_the_connection_ends_and_is_reported():
    """What was received before is delivered all the same."""
    async with connected() as (_, protocol, peer):

        def no_memory(handle, size):
            raise MemoryError("provoked")

        await turns()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OverlappedSocket, "receive_buffer", no_memory)
            peer.sendall(bytes(RECEIVE_SIZES[0]))
            assert isinstance(await protocol.gone(), MemoryError)
        assert len(protocol.received) == RECEIVE_SIZES[0]
        assert protocol.events == ["made", "data", "lost"]
        here().expect_report("no memory to receive into")


# -- when the next receive is submitted ------------------------------------------------------------------------


class Answering(Recorder):
    """Answers from a callback, as a task would."""

    def __init__(self):
        super().__init__()
        self.order = []

    def data_received(self, data):
        super().data_received(data)
        here().call_soon(self.order.append, "answered")


async def test_the_next_receive_waits_for_the_task_that_the_data_woke():
    """The task's answer goes out first: a peer that is quick has its next message there before the receive."""
    async with connected(Answering) as (transport, protocol, peer):
        await turns()
        submit = here().proactor.submit

        def noted(operation):
            if operation is transport._reader._operation:
                protocol.order.append("submitted")
            return submit(operation)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here().proactor, "submit", noted)
            for _ in range(3):
                peer.sendall(b"question")
                await protocol.receives(8)
                await turns()
        assert protocol.order == ["answered", "submitted"] * 3


async def test_a_loop_that_always_has_callbacks_receives_all_the_same():
    """Its receives are submitted within a turn, though at no time nothing is queued."""
    async with connected() as (transport, protocol, peer):
        going = True

        def again():
            if going:
                here().call_soon(again)

        again()
        for _ in range(100):
            peer.sendall(b"x")
            await protocol.receives(1)
        going = False


async def test_a_receive_that_cannot_be_submitted_after_its_callbacks_ends_its_connection_and_the_loop_goes_on():
    async with connected(Answering) as (transport, protocol, peer):
        await turns()

        def broken(operation):
            raise ZeroDivisionError("provoked")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here().proactor, "submit", broken)
            peer.sendall(b"x")
            await protocol.receives(1)
            await turns()
        report = here().expect_report("the next receive cannot be submitted")
        assert report["transport"] is transport
        assert isinstance(report["exception"], ZeroDivisionError)
        assert await protocol.gone() is report["exception"]


@pytest.mark.parametrize("refusals", [1, 2])
async def test_where_the_next_receive_cannot_be_submitted_at_once_it_is_tried_again_and_then_the_connection_ends(
    refusals,
):
    """As above, where no callback has to run first: it is known to be nobody's, whatever the exception came from."""

    class Breaking(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if data == b"data":
                patch.setattr(here().proactor, "submit", no_memory)

    def no_memory(operation):
        nonlocal refusals
        refusals -= 1
        if not refusals:
            patch.undo()
        raise MemoryError("provoked")

    ends = refusals == 2
    with pytest.MonkeyPatch.context() as patch:
        async with connected(Breaking) as (_, protocol, peer):
            await turns()
            peer.sendall(b"data")
            if ends:
                assert isinstance(await protocol.gone(), MemoryError)
                here().expect_report("the next receive cannot be submitted")
            else:
                await protocol.receives(4)
                peer.sendall(b"more")
                await protocol.receives(4)
            here().expect_report("delivering READ")


def no_first_buffer(patch):
    def no_memory(handle, size):
        raise MemoryError("provoked")

    patch.setattr(OverlappedSocket, "receive_buffer", no_memory)


async def test_without_memory_for_the_first_receive_create_connection_returns_and_the_connection_ends(monkeypatch):
    with socket.create_server((LOCALHOST, 0)) as listener:
        no_first_buffer(monkeypatch)
        _, protocol = await here().create_connection(Recorder, *listener.getsockname())
        assert isinstance(await protocol.gone(), MemoryError)
        here().expect_report("provoked")


async def test_without_memory_for_its_first_receive_an_accepted_connection_ends_and_the_next_one_is_served(monkeypatch):
    made = []

    def factory():
        made.append(Echo())
        return made[-1]

    async with serving(factory) as (_, address):
        with pytest.MonkeyPatch.context() as patch:
            no_first_buffer(patch)
            with client(address):
                await until(lambda: made)
                assert isinstance(await made[0].gone(), MemoryError)
            here().expect_report("provoked")
        with client(address) as peer:
            peer.sendall(b"alive")
            assert await asyncio.to_thread(receive_exactly, peer, 5) == b"alive"
        await made[1].gone()


async def test_a_receive_that_waits_for_its_callbacks_is_forgotten_when_they_close_the_transport():
    class Closing(Recorder):
        def data_received(self, data):
            super().data_received(data)
            here().call_soon(self.transport.close)

    async with connected(Closing) as (transport, protocol, peer):
        peer.sendall(b"the last")
        assert await protocol.gone() is None
        assert protocol.events == ["made", "data", "lost"]


# -- connections at rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_a_connection_where_nothing_comes_gives_its_buffer_back_and_wakes_with_the_next_message(factory):
    async with connected(factory) as (transport, protocol, peer):
        await turns()
        for number in range(3):
            await rest(transport)
            assert transport._reader._operation.buffer == b""
            assert transport._reader._operation.wsabuf.len == 0
            assert transport.is_reading()
            message = pattern(5000, number)
            peer.sendall(message)
            assert await protocol.receives(5000) == message
            assert idleness(transport) is Idleness.AWAKE
            peer.sendall(b"and on")
            assert await protocol.receives(6) == b"and on"


async def test_to_rest_costs_a_cancel_and_a_receive_and_to_wake_one_receive_more():
    async with connected() as (transport, protocol, peer):
        await turns()
        before = here().counts.copy()
        await rest(transport)
        await turns()
        resting = here().counts - before
        assert resting["WSARecv"] == 1
        assert resting["CancelIoEx"] >= 1  # QUIRK(wine): asked again until it was heard.
        before = here().counts.copy()
        peer.sendall(b"x")
        await protocol.receives(1)
        await turns()
        assert (here().counts - before)["WSARecv"] == 2  # This message's, and the next one's.


async def test_a_connection_that_was_busy_gives_its_large_buffer_back():
    async with connected(Keeper) as (transport, protocol, peer):
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, bytes(64 << 20)))
        await protocol.receives(64 << 20)
        await sending
        assert len(transport._reader._operation.buffer) > RECEIVE_SIZES[0]
        await rest(transport)
        peer.sendall(b"hello")
        assert await protocol.receives(5) == b"hello"
        assert len(transport._reader._operation.buffer) == RECEIVE_SIZES[0]


async def test_a_message_within_each_round_keeps_a_connection_awake():
    async with connected() as (transport, protocol, peer):
        await turns()
        for _ in range(3):
            here()._services.idle_rounds.go()
            assert idleness(transport) is Idleness.QUIET
            peer.sendall(b"here")
            await protocol.receives(4)
            assert idleness(transport) is Idleness.AWAKE
        assert not here().counts["CancelIoEx"]


async def test_data_that_come_while_the_receive_is_being_cancelled_are_delivered():
    """The cancel finds the receive done: its packet brings the data, and nobody rests."""
    async with connected() as (transport, protocol, peer):
        await turns()
        here()._services.idle_rounds.go()
        operation = transport._reader._operation
        peer.sendall(b"just now")
        # Until the kernel has finished, without letting the loop see it.
        wait_until(lambda: operation.Internal != 0x103)
        here()._services.idle_rounds.go()
        assert idleness(transport) is Idleness.SHEDDING
        assert await protocol.receives(8) == b"just now"
        assert idleness(transport) is Idleness.AWAKE
        peer.sendall(b"and then")
        assert await protocol.receives(8) == b"and then"


async def test_a_resting_connection_hears_of_the_end_and_of_a_reset():
    async with connected() as (transport, protocol, peer):
        await turns()
        await rest(transport)
        peer.close()
        assert await protocol.gone() is None
        assert protocol.events == ["made", "eof", "lost"]
    async with connected() as (transport, protocol, peer):
        await turns()
        await rest(transport)
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionResetError)


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("state", [Idleness.QUIET, Idleness.SHEDDING, Idleness.RESTING])
async def test_a_connection_can_be_closed_in_every_state_of_rest(state, end):
    async with connected() as (transport, protocol, peer):
        await bring_to(transport, state)
        getattr(transport, end)()
        assert await protocol.gone() is None
        assert len(here()._services.idle_rounds) == 0


@pytest.mark.parametrize("state", [Idleness.QUIET, Idleness.SHEDDING, Idleness.RESTING])
async def test_a_connection_can_be_paused_and_resumed_in_every_state_of_rest(state):
    async with connected() as (transport, protocol, peer):
        await bring_to(transport, state)
        transport.pause_reading()
        peer.sendall(b"held,")
        await turns(10)
        assert protocol.received == b""
        transport.resume_reading()
        assert await protocol.receives(5) == b"held,"
        peer.sendall(b"newer")
        assert await protocol.receives(5) == b"newer"


async def test_a_protocol_set_while_the_connection_rests_gets_what_comes():
    async with connected() as (transport, first, peer):
        await turns()
        for factory in (Recorder, Buffered):
            await rest(transport)
            second = factory()
            transport.set_protocol(second)
            peer.sendall(b"for the next one")
            assert await second.receives(16) == b"for the next one"
            assert first.received == b""
        transport.set_protocol(first)


async def test_many_idle_connections_come_to_rest_by_themselves_and_then_nothing_happens_any_more(monkeypatch):
    """No more timer is set when all have given their buffers back."""
    monkeypatch.setattr(_idle, "ROUND_S", 0.01)
    monkeypatch.setattr(_idle, "CANCELS_AT_ONCE_MAX", 7)
    count = _idle.BUFFERS_MIN + 1
    protocols = []

    def serve():
        protocols.append(Recorder())
        return protocols[-1]

    async with serving(serve) as (_, address):
        clients = [client(address) for _ in range(count)]
        await until(lambda: len(protocols) == count and all(each.transport for each in protocols))
        await until(lambda: len(here()._services.idle_rounds) < _idle.BUFFERS_MIN, "buffers given back")
        await until(lambda: not here()._services.idle_rounds._is_going, "an end of the rounds")
        for number, sock in enumerate(clients):
            sock.sendall(bytes([number]))
        await until(lambda: all(each.received for each in protocols))
        assert sorted(each.received[0] for each in protocols) == list(range(count))
        for sock in clients:
            sock.close()
        for protocol in protocols:
            await protocol.gone()


async def test_few_connections_have_no_timer():
    async with connected():
        await turns()
        assert not here()._scheduled
