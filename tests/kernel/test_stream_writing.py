"""Writing on a TCP transport: order, flow control, vectors, end of file, and what closing does to what is queued."""

import asyncio
import logging
import socket

import pytest

from iocp_loop._core._operation import GATHER_MAX
from iocp_loop._transports._flow import HIGH_WATER_DEFAULT
from iocp_loop._transports._writer import JOIN_MAX
from iocp_loop._transports._writing import Phase

from .peers import Buffered, Recorder, connected, pattern, receive_all, receive_exactly, reset
from .watched import here, turns, until

# More than any socket buffer takes at once, so that the rest is queued.
PLENTY = 16 << 20


async def blocked(transport):
    """Write until the kernel takes no more at once; what was written."""
    written = bytearray()
    while not transport.get_write_buffer_size() and not transport.is_closing():
        part = pattern(4 << 20, seed=len(written))
        transport.write(part)
        written += part
    return written


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [1, 10_000, PLENTY])
async def test_what_is_written_arrives_whole_from_every_kind_of_buffer(kind, size):
    async with connected() as (transport, _, peer):
        message = pattern(size)
        transport.write(kind(message))
        assert await asyncio.to_thread(receive_exactly, peer, size) == message


async def test_a_buffer_may_be_changed_as_soon_as_write_returns():
    """Half of it is in the kernel, half of it queued, when the caller scribbles over it."""
    async with connected() as (transport, _, peer):
        message = pattern(PLENTY)
        data = bytearray(message)
        transport.write(data)
        data[:] = bytes(len(data))
        later = bytearray(b"while flushing")
        transport.write(later)
        later[:] = bytes(len(later))
        assert await asyncio.to_thread(receive_exactly, peer, PLENTY + 14) == message + b"while flushing"


async def test_a_memoryview_of_other_items_or_with_steps_is_sent_as_its_bytes():
    async with connected() as (transport, _, peer):
        transport.write(memoryview(b"abcdefgh").cast("I"))
        transport.write(memoryview(b"a-b-c-d-")[::2])
        assert await asyncio.to_thread(receive_exactly, peer, 12) == b"abcdefghabcd"


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"]])
async def test_what_is_no_buffer_is_a_type_error(wrong):
    async with connected() as (transport, _, peer):
        with pytest.raises(TypeError):
            transport.write(wrong)
        transport.write(b"")
        transport.write(b"fine")
        assert receive_exactly(peer, 4) == b"fine"


async def test_writes_keep_their_order_while_a_send_is_in_flight():
    """More small writes join the queue than one gathered send takes."""
    async with connected() as (transport, _, peer):
        written = await blocked(transport)
        for n in range(3 * GATHER_MAX + 1):
            part = pattern(100 + n, seed=n)
            transport.write(part)
            written += part
        assert await asyncio.to_thread(receive_exactly, peer, len(written)) == written
        await until(lambda: not transport.get_write_buffer_size())
        assert transport._writer.phase in (Phase.DIRECT, Phase.GATHERING)


@pytest.mark.parametrize("size", [10, JOIN_MAX])
async def test_writelines_sends_every_piece_in_order(size):
    """Joined where that is cheap, described piece by piece where it is not; empty pieces are nothing."""
    async with connected() as (transport, _, peer):
        pieces = [pattern(size, seed=n) for n in range(5)]
        transport.writelines([pieces[0], b"", bytearray(pieces[1]), memoryview(pieces[2]), *pieces[3:]])
        transport.writelines([])
        transport.writelines(iter([b"end"]))
        expected = b"".join(pieces) + b"end"
        assert await asyncio.to_thread(receive_exactly, peer, len(expected)) == expected


# -- flow control ----------------------------------------------------------------------------------------------


async def test_pause_writing_comes_above_the_high_mark_and_resume_writing_at_the_low_one():
    async with connected() as (transport, protocol, peer):
        assert transport.get_write_buffer_limits() == (HIGH_WATER_DEFAULT // 4, HIGH_WATER_DEFAULT)
        written = await blocked(transport)
        assert protocol.events == ["made", "pause"]
        transport.write(b"more")
        assert protocol.events == ["made", "pause"]  # Once, not for every write.
        await asyncio.to_thread(receive_exactly, peer, len(written) + 4)
        await until(lambda: "resume" in protocol.events)
        assert protocol.events == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() == 0


async def test_what_is_in_flight_counts_for_flow_control_at_once():
    """The rest of one write, all of it in one overlapped send, is in the buffer size before anything has come back."""
    async with connected() as (transport, protocol, peer):
        written = await blocked(transport)
        assert transport.get_write_buffer_size() > HIGH_WATER_DEFAULT
        size = transport.get_write_buffer_size()
        transport.write(b"12345")
        assert transport.get_write_buffer_size() == size + 5
        await asyncio.to_thread(receive_exactly, peer, len(written) + 5)


async def test_limits_are_worked_out_from_each_other_and_checked():
    async with connected() as (transport, _, _peer):
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(0)
        assert transport.get_write_buffer_limits() == (0, 0)
        for high, low in ((10, 11), (10, -1), (-1, None)):
            with pytest.raises(ValueError, match="must be >= "):
                transport.set_write_buffer_limits(high, low)


async def test_a_high_mark_of_zero_pauses_at_the_first_queued_byte_and_resumes_when_all_is_out():
    async with connected() as (transport, protocol, peer):
        transport.set_write_buffer_limits(0)
        written = await blocked(transport)
        assert protocol.events[-1] == "pause"
        await asyncio.to_thread(receive_exactly, peer, len(written))
        await until(lambda: protocol.events[-1] == "resume")


async def test_writing_from_resume_writing_goes_on_in_order():
    class Persistent(Recorder):
        rounds = 3

        def resume_writing(self):
            super().resume_writing()
            if self.rounds:
                self.rounds -= 1
                self.transport.write(pattern(PLENTY, self.rounds))

    async with connected(Persistent) as (transport, protocol, peer):
        transport.write(pattern(PLENTY, 3))
        expected = b"".join(pattern(PLENTY, n) for n in (3, 2, 1, 0))
        assert await asyncio.to_thread(receive_exactly, peer, len(expected)) == expected
        await until(lambda: not transport.get_write_buffer_size())


@pytest.mark.parametrize("callback", ["pause_writing", "resume_writing"])
@pytest.mark.parametrize("end", ["abort", "close"])
async def test_a_protocol_may_end_the_connection_from_a_flow_control_callback(callback, end):
    async with connected() as (transport, protocol, peer):
        setattr(protocol, callback, lambda: getattr(transport, end)())
        written = await blocked(transport)
        assert transport.is_closing() is (callback == "pause_writing")
        if callback == "resume_writing" or end == "close":
            await asyncio.to_thread(receive_exactly, peer, len(written))
        assert await protocol.gone() is None


@pytest.mark.parametrize("callback", ["pause_writing", "resume_writing"])
async def test_a_flow_control_callback_that_raises_is_reported_and_the_connection_goes_on(callback):
    async with connected() as (transport, protocol, peer):

        def broken():
            raise ZeroDivisionError(callback)

        setattr(protocol, callback, broken)
        written = await blocked(transport)
        await asyncio.to_thread(receive_exactly, peer, len(written))
        await until(lambda: here().reports)
        report = here().expect_report(f"protocol.{callback}() failed")
        assert report["transport"] is transport
        assert report["protocol"] is protocol
        transport.write(b"goes on")
        assert await asyncio.to_thread(receive_exactly, peer, 7) == b"goes on"


# -- end of file and closing -----------------------------------------------------------------------------------


async def test_write_eof_sends_what_is_queued_and_then_the_end_while_reading_goes_on():
    async with connected() as (transport, protocol, peer):
        assert transport.can_write_eof()
        written = await blocked(transport)
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.write(b"too late")
        assert await asyncio.to_thread(receive_all, peer) == written
        peer.sendall(b"still listening")
        assert await protocol.receives(15) == b"still listening"
        assert not transport.is_closing()


async def test_write_eof_with_nothing_queued_sends_the_end_at_once():
    async with connected() as (transport, _, peer):
        transport.write(b"all")
        transport.write_eof()
        assert receive_all(peer) == b"all"


async def test_a_protocol_that_keeps_open_after_the_peers_end_can_still_write():
    async with connected() as (transport, protocol, peer):
        protocol.keep_open_after_eof = True
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.events)
        await turns(5)
        assert not transport.is_closing()
        transport.write(b"goodbye")
        transport.close()
        assert await protocol.gone() is None
        assert receive_all(peer) == b"goodbye"
        assert protocol.events == ["made", "eof", "lost"]


async def test_a_protocol_that_does_not_is_closed():
    async with connected() as (transport, protocol, peer):
        peer.shutdown(socket.SHUT_WR)
        assert await protocol.gone() is None
        assert receive_all(peer) == b""
        assert protocol.events == ["made", "eof", "lost"]


async def test_close_flushes_what_is_queued():
    """The peer sends nothing meanwhile: TCP answers data that nobody reads with a reset, which would overtake the queue."""
    async with connected() as (transport, protocol, peer):
        await turns()
        written = await blocked(transport)
        transport.close()
        assert transport.is_closing()
        transport.write(b"too late")
        transport.close()
        assert await asyncio.to_thread(receive_all, peer) == written
        assert await protocol.gone() is None
        assert "data" not in protocol.events


async def test_close_with_nothing_queued_loses_the_connection_in_a_later_turn():
    async with connected() as (transport, protocol, peer):
        transport.close()
        assert protocol.events == ["made"]
        assert await protocol.gone() is None
        assert receive_all(peer) == b""


async def test_close_after_write_eof_flushes_first():
    async with connected() as (transport, protocol, peer):
        written = await blocked(transport)
        transport.write_eof()
        transport.close()
        assert await asyncio.to_thread(receive_all, peer) == written
        assert await protocol.gone() is None


async def test_abort_forgets_what_is_queued_and_does_not_wait_for_the_peer():
    async with connected() as (transport, protocol, peer):
        await blocked(transport)
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert await protocol.gone() is None
        transport.abort()
        transport.close()


async def test_abort_ends_a_close_that_waits_for_a_peer_who_reads_nothing():
    async with connected() as (transport, protocol, peer):
        await blocked(transport)
        transport.close()
        await turns(10)
        assert "lost" not in protocol.events
        transport.abort()
        assert await protocol.gone() is None


async def test_a_reset_while_a_send_is_in_flight_ends_the_connection_with_its_error():
    async with connected() as (transport, protocol, peer):
        transport.pause_reading()
        await blocked(transport)
        reset(peer)
        error = await protocol.gone()
        assert isinstance(error, ConnectionError)
        assert error.winerror in (10053, 10054)


async def test_a_reset_while_close_flushes_ends_the_connection_with_its_error():
    async with connected() as (transport, protocol, peer):
        await blocked(transport)
        transport.close()
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionError)


async def test_writing_to_a_connection_that_was_reset_ends_it_without_raising():
    """Nobody reads here, so the write is the first to notice; and those after it are silent, then warned about once."""

    class Deaf(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async with connected(Deaf) as (transport, protocol, peer):
        reset(peer)
        await until(lambda: transport.write(b"x") or transport.is_closing())
        assert isinstance(await protocol.gone(), ConnectionError)


async def test_writing_on_and_on_to_a_closed_transport_is_warned_about(caplog):
    async with connected() as (transport, protocol, _peer):
        transport.abort()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(10):
                transport.write(b"x")
        assert any("socket.send() raised exception" in record.message for record in caplog.records)
        await protocol.gone()


async def test_streams_drain_waits_for_the_peer():
    """asyncio's own StreamWriter on our transport."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        peer.settimeout(10)
        await blocked(writer.transport)
        draining = asyncio.ensure_future(writer.drain())
        await turns(10)
        assert not draining.done()
        size = writer.transport.get_write_buffer_size()
        receiving = asyncio.to_thread(receive_all, peer)
        writer.write(b"last")
        writer.write_eof()
        received, _ = await asyncio.gather(receiving, draining)
        assert received.endswith(b"last")
        assert len(received) > size
        peer.sendall(b"line\nrest")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()


async def test_a_buffered_protocol_writes_like_any_other():
    async with connected(Buffered) as (transport, _, peer):
        transport.write(b"x")
        assert receive_exactly(peer, 1) == b"x"
