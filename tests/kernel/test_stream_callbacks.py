"""Protocol callbacks of a TCP transport: their order, their context, their exceptions, and what the transport tells."""

import asyncio
import contextvars
import gc
import logging
import socket
import time
import warnings

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._transports._reader import HELD

from .peers import LOCALHOST, Buffered, Recorder, client, connected, receive_exactly, reset, serving
from .watched import here, pending, turns, until

marker: contextvars.ContextVar[str] = contextvars.ContextVar("marker", default="none")


async def test_callbacks_come_in_asyncios_order():
    async with connected() as (transport, protocol, peer):
        peer.sendall(b"x")
        await protocol.receives(1)
        peer.shutdown(socket.SHUT_WR)
        await protocol.gone()
        assert protocol.events == ["made", "data", "eof", "lost"]


async def test_nothing_is_delivered_after_connection_lost():
    """Data and a reset arrive together with an abort."""
    async with connected() as (transport, protocol, peer):
        peer.sendall(b"x")
        transport.abort()
        reset(peer)
        await protocol.gone()
        await turns(10)
        assert protocol.events == ["made", "lost"]


async def test_close_inside_data_received_delivers_nothing_more():
    async with connected() as (transport, protocol, peer):

        def close(data):
            Recorder.data_received(protocol, data)
            transport.close()

        protocol.data_received = close
        peer.sendall(bytes(100_000))
        await protocol.gone()
        assert protocol.events == ["made", "data", "lost"]


async def test_close_inside_connection_made_loses_the_connection_after_it():
    class Shy(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.close()

    async with connected(Shy) as (_, protocol, peer):
        await protocol.gone()
        assert protocol.events == ["made", "lost"]
        assert peer.recv(1) == b""


# -- exceptions ------------------------------------------------------------------------------------------------


def broken(*_args):
    raise ZeroDivisionError("a bug of the protocol's")


async def test_an_exception_in_connection_made_is_reported_and_the_connection_goes_on():
    class Broken(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            broken()

    async with connected(Broken) as (transport, protocol, peer):
        report = here().expect_report("connection_made")
        assert report["transport"] is transport
        peer.sendall(b"goes on")
        assert await protocol.receives(7) == b"goes on"


async def test_an_exception_in_data_received_is_reported_and_the_connection_goes_on():
    async with connected() as (transport, protocol, peer):
        protocol.data_received = broken
        peer.sendall(b"x")
        await until(lambda: here().reports)
        report = here().expect_report("ZeroDivisionError")
        assert report["transport"] is transport
        assert report["protocol"] is protocol
        del protocol.data_received
        peer.sendall(b"goes on")
        assert await protocol.receives(7) == b"goes on"


async def test_an_exception_in_data_received_of_held_data_is_reported_and_the_connection_goes_on():
    async with connected() as (transport, protocol, peer):
        await turns()
        transport.pause_reading()
        peer.sendall(b"x")
        await until(lambda: transport._reader.receive is HELD)
        protocol.data_received = broken
        transport.resume_reading()
        await until(lambda: here().reports)
        here().expect_report("ZeroDivisionError")
        del protocol.data_received
        peer.sendall(b"goes on")
        assert await protocol.receives(7) == b"goes on"


async def test_an_exception_in_eof_received_ends_the_connection_with_it():
    async with connected() as (_, protocol, peer):
        protocol.eof_received = broken
        peer.shutdown(socket.SHUT_WR)
        assert isinstance(await protocol.gone(), ZeroDivisionError)
        assert here().expect_report("eof_received")["protocol"] is protocol


async def test_an_exception_in_connection_lost_is_reported_and_everything_is_given_back():
    async with connected() as (transport, protocol, _peer):

        def lost(exc):
            Recorder.connection_lost(protocol, exc)
            broken()

        protocol.connection_lost = lost
        transport.close()
        await protocol.gone()
        await until(lambda: here().reports)
        here().expect_report("ZeroDivisionError")


async def test_an_exception_of_one_connection_does_not_touch_the_others_in_its_batch():
    """Ten connections have data in the same batch; the protocol of every second one raises."""
    protocols = []

    class EverySecond(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            protocols.append(self)
            self.number = len(protocols)

        def data_received(self, data):
            super().data_received(data)
            if self.number % 2:
                broken()

    async with serving(EverySecond) as (_, address):
        clients = [client(address) for _ in range(10)]
        await until(lambda: len(protocols) == 10)
        for sock in clients:
            sock.sendall(b"x")
        await until(lambda: all(protocol.received for protocol in protocols))
        await until(lambda: len(here().reports) == 5)
        here().reports.clear()
        for sock in clients:
            sock.sendall(b"y")
        await until(lambda: all(protocol.received == b"xy" for protocol in protocols))
        here().reports.clear()
        for sock in clients:
            sock.close()
        await until(lambda: all(protocol.lost.done() for protocol in protocols))


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_in_data_received_leaves_the_loop_usable(exception, nothing_left):
    """It leaves run_forever; the connection that raised it and the others go on when the loop runs again."""
    from .watched import running

    class Interrupting(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if self.received == b"stop":
                raise exception

    with running() as loop, socket.create_server((LOCALHOST, 0)) as listener:

        async def connect():
            return await loop.create_connection(Interrupting, *listener.getsockname())

        transport, protocol = loop.run_until_complete(connect())
        peer, _ = listener.accept()
        peer.sendall(b"stop")
        with pytest.raises(exception):
            loop.run_forever()
        peer.sendall(b"more")
        loop.run_until_complete(protocol.receives(8))
        transport.close()
        loop.run_until_complete(protocol.gone())
        peer.close()


# -- context ---------------------------------------------------------------------------------------------------


class Contextual(Recorder):
    """Notes the context variable in each callback."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __getattribute__(self, name):
        if name in (
            "connection_made",
            "data_received",
            "eof_received",
            "connection_lost",
            "pause_writing",
            "resume_writing",
        ):
            object.__getattribute__(self, "seen")[name] = marker.get()
        return object.__getattribute__(self, name)


async def test_every_callback_runs_in_the_context_that_made_the_connection():
    """The variable is set for the connecting task only."""

    async def connect(address):
        marker.set("the connection's")
        transport, protocol = await here().create_connection(Contextual, *address)
        protocol.keep_open_after_eof = True
        return transport, protocol

    with socket.create_server((LOCALHOST, 0)) as listener:
        transport, protocol = await asyncio.create_task(connect(listener.getsockname()))
        peer, _ = listener.accept()
    with peer:
        transport.set_write_buffer_limits(0)
        size = 0
        while not transport.get_write_buffer_size():
            transport.write(bytes(4 << 20))
            size += 4 << 20
        assert protocol.seen.pop("pause_writing") == "none"  # Called from within write(): in the caller's context.
        await asyncio.to_thread(receive_exactly, peer, size)
        peer.sendall(b"x")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.events and "resume" in protocol.events)
        transport.close()
        await protocol.gone()
    assert set(protocol.seen) == {
        "connection_made",
        "data_received",
        "eof_received",
        "connection_lost",
        "resume_writing",
    }
    assert set(protocol.seen.values()) == {"the connection's"}


async def test_what_a_callback_sets_is_seen_by_the_next_one_and_by_nobody_else():
    class Setting(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            marker.set("made")

        def data_received(self, data):
            super().data_received(data)
            self.seen = marker.get()

    async with connected(Setting) as (_, protocol, peer):
        peer.sendall(b"x")
        await protocol.receives(1)
        assert protocol.seen == "made"
        assert marker.get() == "none"


async def test_each_accepted_connection_has_a_context_of_its_own():
    seen = []

    class Setting(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.append(marker.get())
            marker.set("a connection's")

    marker.set("the server's")
    async with serving(Setting) as (_, address):
        for n in range(3):
            with client(address):
                await until(lambda: len(seen) == n + 1)
    assert seen == ["the server's"] * 3


# -- what the transport tells ----------------------------------------------------------------------------------


async def test_extra_info_names_the_addresses_and_the_socket_and_stays_after_close():
    async with connected() as (transport, protocol, peer):
        sock = transport.get_extra_info("socket")
        assert sock.fileno() > 0
        assert transport.get_extra_info("sockname") == peer.getpeername() == sock.getsockname()
        assert transport.get_extra_info("peername") == peer.getsockname()
        assert transport.get_extra_info("nonsense") is None
        assert transport.get_extra_info("nonsense", 5) == 5
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        await protocol.gone()
        assert transport.get_extra_info("peername") == peer.getsockname()
        assert "closed" in repr(transport)


async def test_extra_info_of_an_accepted_connection_is_the_same_as_its_peers():
    protocols = []

    class Kept(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            protocols.append(self)

    async with serving(Kept) as (_, address):
        with client(address) as sock:
            await until(lambda: protocols)
            transport = protocols[0].transport
            assert transport.get_extra_info("peername") == sock.getsockname()
            assert transport.get_extra_info("sockname") == sock.getpeername()
            assert transport.get_extra_info("socket").getpeername() == sock.getsockname()
            assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.close()
            await protocols[0].gone()


async def test_extra_info_first_asked_for_after_close_still_names_the_addresses():
    protocols = []

    class Kept(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            protocols.append(self)

    async with serving(Kept) as (_, address):
        with client(address) as sock:
            name = sock.getsockname()
            await until(lambda: protocols)
        await protocols[0].gone()
        assert protocols[0].transport.get_extra_info("peername") == name


async def test_repr_tells_the_state():
    async with connected() as (transport, _, _peer):
        assert "open" in repr(transport)
        assert "+straight" in repr(transport)
        transport.pause_reading()
        assert "+paused" in repr(transport)
        transport.abort()
        assert "closing" in repr(transport) or "closed" in repr(transport)


async def test_reading_can_be_asked_about_and_paused_and_resumed_twice():
    async with connected() as (transport, protocol, _peer):
        assert transport.is_reading()
        transport.resume_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        transport.close()
        assert not transport.is_reading()
        transport.pause_reading()
        transport.resume_reading()
        await protocol.gone()
        transport.resume_reading()


async def test_a_slow_callback_is_reported_in_debug_mode_though_no_handle_runs_it(caplog):
    loop = here()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.02

    class Slow(Recorder):
        def data_received(self, data):
            super().data_received(data)
            time.sleep(0.05)

    async with connected(Slow) as (_, protocol, peer):
        with caplog.at_level(logging.WARNING, "asyncio"):
            peer.sendall(b"x")
            await protocol.receives(1)
            await turns()
    assert any("Delivering" in record.message and "READ" in record.message for record in caplog.records)
    loop.set_debug(False)


def test_a_transport_that_dies_unclosed_warns_and_leaves_nothing(nothing_left):
    """Paused with data held, nothing of it is in the kernel's hands, so the collector may take it."""
    from .watched import running

    with running() as loop, socket.create_server((LOCALHOST, 0)) as listener:

        async def connect():
            transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
            await until(lambda: pending(IoType.READ))  # The first receive is submitted a turn after the return.
            transport.pause_reading()
            peer, _ = listener.accept()
            peer.sendall(b"x")
            await until(lambda: transport._reader.receive is HELD)
            return peer

        peer = loop.run_until_complete(connect())
        gc.disable()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                gc.collect()
        finally:
            gc.enable()
        assert any("unclosed transport" in str(warning.message) for warning in caught)
        assert loop.outstanding() == []
        peer.close()


async def test_a_buffered_protocol_gets_the_same_callbacks():
    async with connected(Buffered) as (_, protocol, peer):
        peer.sendall(b"x")
        await protocol.receives(1)
        peer.shutdown(socket.SHUT_WR)
        assert await protocol.gone() is None
        assert protocol.events == ["made", "eof", "lost"]
