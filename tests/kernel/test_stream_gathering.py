"""Many writes in one turn of the loop: gathered, joined in memory that the loop keeps, and sent together."""

import asyncio
import random
import socket

import pytest

from iocp_loop._transports import _writer
from iocp_loop._transports._flow import HIGH_WATER_DEFAULT
from iocp_loop._transports._joining import JoinBuffer
from iocp_loop._transports._writer import CORKED_SIZE_MAX, CORKED_SIZE_MIN, JOIN_MAX, TURN_SIZE_MAX

from .peers import LOCALHOST, Recorder, connected, pattern, receive_all, receive_exactly, reset
from .watched import here, turns, until


class CountedSocket(socket.socket):
    """Counts what it sends; `keep` holds what it was given, as an error's traceback would."""

    def __init__(self, *args):
        super().__init__(*args)
        self.sent_sizes = []
        self.keep = None

    def send(self, data, flags=0):
        count = super().send(data, flags)
        self.sent_sizes.append(count)
        if self.keep is not None:
            self.keep.append(memoryview(data))
        return count


async def counted(stack_of_peers):
    """(transport, protocol, counted socket, peer) of a connection; the peer is closed with the list's owner."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = CountedSocket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        await here().sock_connect(sock, listener.getsockname())
        peer, _ = listener.accept()
    peer.settimeout(10)
    stack_of_peers.append(peer)
    transport, protocol = await here().create_connection(Recorder, sock=sock)
    return transport, protocol, sock, peer


@pytest.fixture
def peers():
    made = []
    yield made
    for peer in made:
        peer.close()


async def end(transport, protocol):
    transport.abort()
    await protocol.gone()


async def test_the_first_write_of_a_turn_goes_out_at_once_and_the_others_together(peers):
    transport, protocol, sock, peer = await counted(peers)
    for number in range(50):
        transport.write(b"%03d" % number)
    assert sock.sent_sizes == [3]
    assert transport.get_write_buffer_size() == 3 * 49
    await turns(1)
    assert sock.sent_sizes == [3, 3 * 49]
    assert receive_exactly(peer, 150) == b"".join(b"%03d" % number for number in range(50))
    await end(transport, protocol)


async def test_what_becomes_much_in_one_turn_is_sent_within_it_and_no_reason_to_pause_if_the_kernel_takes_it(peers):
    transport, protocol, sock, peer = await counted(peers)
    transport.write(b"x")
    for _ in range(CORKED_SIZE_MIN // 1024 - 1):
        transport.write(bytes(1024))
    assert sock.sent_sizes == [1]
    assert protocol.events == ["made"]
    transport.write(bytes(1024))
    assert sock.sent_sizes == [1, CORKED_SIZE_MIN]
    assert transport.get_write_buffer_size() == 0
    assert protocol.events == ["made"]
    assert await asyncio.to_thread(receive_exactly, peer, 1 + CORKED_SIZE_MIN) == b"x" + bytes(CORKED_SIZE_MIN)
    await end(transport, protocol)


@pytest.mark.parametrize("how", ["what was refused is out in a moment", "more was taken than a kernel keeps"])
async def test_more_is_gathered_for_a_peer_that_was_seen_to_read(peers, monkeypatch, how):
    transport, protocol, sock, peer = await counted(peers)
    if how == "more was taken than a kernel keeps":
        monkeypatch.setattr(_writer, "PROOF_SIZE", CORKED_SIZE_MIN)
        size = CORKED_SIZE_MIN + 1024
    else:
        monkeypatch.setattr(_writer, "FAST_S", 1e6)
        size = 32 << 20
    taking = asyncio.create_task(asyncio.to_thread(receive_exactly, peer, size))
    if size > CORKED_SIZE_MAX:
        transport.write(bytes(size))
        assert transport.get_write_buffer_size()
    else:
        for _ in range(size // 1024):
            transport.write(bytes(1024))
    await taking
    await until(lambda: not transport.get_write_buffer_size())
    await turns(1)
    sock.sent_sizes.clear()
    for _ in range(CORKED_SIZE_MAX // 1024 + 1):
        transport.write(bytes(1024))
    assert CORKED_SIZE_MAX in sock.sent_sizes
    await end(transport, protocol)


@pytest.mark.parametrize("size", [16, 1024, 100 * 1024, 2 << 20])
async def test_a_turn_sends_so_much_and_then_the_mark_counts(peers, size):
    """However much the kernel takes, and in pieces of any size: who writes and drains lets others have their turn."""
    transport, protocol, sock, peer = await counted(peers)
    taking = asyncio.create_task(asyncio.to_thread(receive_all, peer))
    written = 0
    here().call_soon(bool)  # Somebody waits.
    while "pause" not in protocol.events:
        transport.write(bytes(size))
        written += size
    assert transport.get_write_buffer_size() > HIGH_WATER_DEFAULT
    assert written <= TURN_SIZE_MAX + CORKED_SIZE_MAX + HIGH_WATER_DEFAULT + 3 * size
    assert written // size <= (TURN_SIZE_MAX + HIGH_WATER_DEFAULT) // size + 3
    await until(lambda: "resume" in protocol.events)
    transport.close()
    assert await taking == bytes(written)
    await protocol.gone()


@pytest.mark.parametrize("high", [0, 10, HIGH_WATER_DEFAULT - 1, 256 * 1024, 2 * CORKED_SIZE_MAX])
async def test_a_mark_that_was_set_is_never_passed_by_more_than_one_write(peers, high):
    """Up to there it is gathered, and then sent; what comes after that in the same turn makes the protocol pause."""
    transport, protocol, _, peer = await counted(peers)
    transport.set_write_buffer_limits(high=high)
    written = 0
    while "pause" not in protocol.events:
        assert transport.get_write_buffer_size() <= high
        transport.write(bytes(1000))
        written += 1000
    assert high < transport.get_write_buffer_size() <= high + 1000
    receiving = asyncio.create_task(asyncio.to_thread(receive_exactly, peer, written))
    await until(lambda: "resume" in protocol.events)
    assert await receiving == bytes(written)
    await end(transport, protocol)


async def test_a_peer_that_never_reads_is_not_worth_more_memory_than_its_mark(peers):
    """One that writes and drains to it keeps what one gathered send left, and what passed the mark behind that."""
    transport, protocol, _, _peer = await counted(peers)
    for _ in range(20_000):
        transport.write(bytes(4096))
        if protocol.events.count("pause") > protocol.events.count("resume"):
            await turns(3)
            if protocol.events.count("pause") > protocol.events.count("resume"):
                break
    else:
        pytest.fail("the kernel takes everything")
    assert transport.get_write_buffer_size() <= CORKED_SIZE_MIN + HIGH_WATER_DEFAULT + 2 * 4096
    await end(transport, protocol)


async def test_a_peer_that_reads_slowly_is_not_worth_more_either(peers, monkeypatch):
    transport, protocol, sock, peer = await counted(peers)
    monkeypatch.setattr(_writer, "FAST_S", -1)
    size = 32 << 20
    transport.write(bytes(size))
    assert await asyncio.to_thread(receive_exactly, peer, size) == bytes(size)
    await until(lambda: not transport.get_write_buffer_size())
    await turns(1)
    sock.sent_sizes.clear()
    for _ in range(CORKED_SIZE_MIN // 1024 + 1):
        transport.write(bytes(1024))
    assert CORKED_SIZE_MIN in sock.sent_sizes
    await end(transport, protocol)


async def test_a_large_write_after_small_ones_follows_them_uncopied(peers):
    """Too much to be joined: they go together, in one overlapped send of the three pieces."""
    transport, protocol, sock, peer = await counted(peers)
    large = pattern(CORKED_SIZE_MAX)
    receiving = asyncio.create_task(asyncio.to_thread(receive_exactly, peer, 3 + len(large)))
    for data in (b"1", b"2", b"3", large):
        transport.write(data)
    assert sock.sent_sizes == [1]
    assert await receiving == b"123" + large
    assert len(sock.sent_sizes) == 1  # An overlapped send takes the pieces from where they are.
    await end(transport, protocol)


async def test_pieces_of_all_kinds_and_sizes_arrive_in_order(peers):
    """Twenty seeds of writes and writelines, of every size that makes a difference, in turns of several each."""
    sizes = (0, 1, 100, 1000, 40_000, JOIN_MAX, JOIN_MAX + 1, CORKED_SIZE_MAX - 1, CORKED_SIZE_MAX, CORKED_SIZE_MAX + 1)
    for seed in range(20):
        dice = random.Random(seed)
        async with connected() as (transport, _, peer):
            receiving = asyncio.create_task(asyncio.to_thread(receive_all, peer))
            written = bytearray()
            for number in range(40):
                kind = dice.choice((bytes, bytearray, memoryview))
                pieces = [kind(pattern(dice.choice(sizes), number + k)) for k in range(dice.choice((0, 1, 1, 2, 5)))]
                if len(pieces) == 1:
                    transport.write(pieces[0])
                elif dice.random() < 0.5:
                    transport.writelines(pieces)
                else:
                    transport.writelines(iter([bytes(piece) for piece in pieces]))
                written += b"".join(pieces)
                if dice.random() < 0.2:
                    await turns(1)
            transport.close()
            assert await receiving == written


async def test_the_caller_may_change_a_gathered_buffer_as_soon_as_the_call_returns(peers):
    transport, protocol, _, peer = await counted(peers)
    transport.write(b"first,")
    for method in (transport.write, lambda data: transport.writelines([data, b","])):
        data = bytearray(b"mine")
        method(data)
        data[:] = b"gone"
    await turns(1)
    assert receive_exactly(peer, 15) == b"first,minemine,"
    await end(transport, protocol)


async def test_a_send_that_keeps_what_it_was_given_does_no_harm(peers):
    """The memory for joining is then somebody else's, and the next join takes new memory."""
    transport, protocol, sock, peer = await counted(peers)
    sock.keep = []
    for turn in range(3):
        for number in range(5):
            transport.write(b"%d%d" % (turn, number))
        await turns(1)
    assert receive_exactly(peer, 30) == b"".join(b"%d%d" % (turn, n) for turn in range(3) for n in range(5))
    assert b"".join(sock.keep) == b"".join(b"%d%d" % (turn, n) for turn in range(3) for n in range(5))
    await end(transport, protocol)


async def test_a_reset_between_gathering_and_sending_ends_the_connection_with_its_error():
    async with connected() as (transport, protocol, peer):
        transport.write(b"1")
        transport.write(b"2")
        transport.write(b"3")
        reset(peer)
        assert isinstance(await protocol.gone(), ConnectionError)
        assert here().reports == []


@pytest.mark.parametrize("wrong", ["text", 5, None])
async def test_what_is_no_buffer_among_the_lines_is_a_type_error_and_nothing_is_sent(wrong):
    async with connected() as (transport, _, peer):
        with pytest.raises(TypeError):
            transport.writelines([b"good", wrong])
        transport.write(b"sent")
        assert receive_exactly(peer, 4) == b"sent"


def test_a_join_buffer_holds_one_join_at_a_time():
    buffer = JoinBuffer()
    with buffer.join([b"long one,", b"of two"]) as data:
        assert bytes(data) == b"long one,of two"
    with buffer.join([b"short"]) as data:
        assert bytes(data) == b"short"
    kept = buffer.join([b"kept"])
    with buffer.join([b"new"]) as data:
        assert bytes(data) == b"new"
    assert bytes(kept) == b"kept"
