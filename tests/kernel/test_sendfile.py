"""Files to sockets: the right bytes from the right offset, and no peer that can hold up or break more than its own."""

import asyncio
import contextlib
import ctypes
import io
import msvcrt
import os
import re
import socket

import pytest

from iocp_loop._core._operation import IoType
from iocp_loop._transports import _sendfile

from .peers import LOCALHOST, Recorder, connected, pattern, receive_all, receive_exactly, reset, serving
from .test_tls import server_context, tls_client
from .watched import PATIENCE_S, here, pending, until

SIZE = 300_000
GIB = 1 << 30
MIB = 1 << 20
RANGES = [(0, None), (1000, None), (0, 5000), (70_000, 60_000), (SIZE - 10, 100), (SIZE, None), (SIZE + 10, None)]


@pytest.fixture
def file(tmp_path):
    """A file of SIZE bytes, its position somewhere in the middle."""
    path = tmp_path / "file"
    path.write_bytes(pattern(SIZE))
    with path.open("rb") as file:
        file.seek(123)
        yield file


@pytest.fixture
def large(tmp_path):
    """More than any socket's buffers hold."""
    path = tmp_path / "large"
    path.write_bytes(pattern(24 * MIB))
    with path.open("rb") as file:
        yield file


@contextlib.asynccontextmanager
async def bare_pair():
    """(a non-blocking socket for sock_sendfile, its blocking peer)."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    sock.setblocking(False)
    peer.settimeout(PATIENCE_S)
    with sock, peer:
        yield sock, peer


def value_of(argument):
    """The number in a prepared argument of ctypes, which shows it in its repr only."""
    return int(re.search(r"\((\d+)\)", repr(argument))[1])


def transmits_pending():
    return pending(IoType.TRANSMIT_FILE)


# -- which bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "count"), RANGES)
async def test_a_transport_sends_the_bytes_asked_for_and_the_files_position_follows(file, offset, count):
    expected = pattern(SIZE)[offset:][:count]
    async with connected() as (transport, _, peer):
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_all, peer))
        assert await here().sendfile(transport, file, offset, count) == len(expected)
        if expected:
            assert file.tell() == offset + len(expected)
            assert here().counts["TransmitFile"]
        transport.close()
        assert await receiving == expected


@pytest.mark.parametrize(("offset", "count"), RANGES)
async def test_a_bare_socket_sends_the_bytes_asked_for_and_the_files_position_follows(file, offset, count):
    expected = pattern(SIZE)[offset:][:count]
    async with bare_pair() as (sock, peer):
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_all, peer))
        assert await here().sock_sendfile(sock, file, offset, count) == len(expected)
        if expected:
            assert file.tell() == offset + len(expected)
            assert here().counts["TransmitFile"]
        sock.close()
        assert await receiving == expected


async def test_a_file_of_several_chunks_is_sent_chunk_by_chunk(file, monkeypatch):
    monkeypatch.setattr(_sendfile, "TRANSMIT_CHUNK", 64 * 1024)
    async with connected() as (transport, _, peer):
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, SIZE))
        assert await here().sendfile(transport, file) == SIZE
        assert await receiving == pattern(SIZE)
        assert here().counts["TransmitFile"] == -(-SIZE // (64 * 1024))


@pytest.fixture
def sparse(tmp_path):
    """A file of 3 GiB that takes no room: zeros, and at its end something to know it by."""
    with (tmp_path / "sparse").open("w+b") as file:
        mark_sparse = ctypes.WinDLL("kernel32").DeviceIoControl
        handle, fsctl_set_sparse, taken = msvcrt.get_osfhandle(file.fileno()), 0x900C4, ctypes.c_uint32()
        # Where this fails (Wine), the file system makes it sparse by itself.
        mark_sparse(ctypes.c_void_p(handle), fsctl_set_sparse, None, 0, None, 0, ctypes.byref(taken), None)
        file.seek(3 * GIB - 100_000)
        file.write(pattern(100_000))
        file.flush()
        yield file


async def test_the_end_of_a_file_of_three_gibibytes_is_found(sparse):
    async with connected() as (transport, _, peer):
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, 100_010))
        assert await here().sendfile(transport, sparse, 3 * GIB - 100_010) == 100_010
        assert await receiving == bytes(10) + pattern(100_000)
        assert sparse.tell() == 3 * GIB


async def test_a_file_over_two_gibibytes_is_asked_for_in_chunks_that_follow_each_other(sparse):
    """At the seam: each TransmitFile is answered at once as if it had sent what it was asked for."""
    asked = []

    def transmit(_function, args):
        (operation,) = transmits_pending()
        offset, count = operation.Offset + (operation.OffsetHigh << 32), value_of(args[2])
        asked.append((offset, count))
        operation.InternalHigh = count
        return 1

    here().watched.faults["TransmitFile"] = transmit
    async with connected() as (transport, _, _peer):
        assert await here().sendfile(transport, sparse) == 3 * GIB
    assert asked[0][0] == 0
    assert all(offset + count == following for (offset, count), (following, _) in zip(asked, asked[1:], strict=False))
    assert sum(asked[-1]) == 3 * GIB
    assert max(count for _, count in asked) < 2 * GIB


async def test_what_was_written_before_comes_before_the_file_and_what_is_written_after_behind(file):
    head = pattern(8 * MIB, seed=1)
    async with connected() as (transport, _, peer):
        transport.write(head)
        sending = asyncio.ensure_future(here().sendfile(transport, file))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"in between")
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, len(head) + SIZE + 4))
        assert await sending == SIZE
        transport.write(b"tail")
        assert await receiving == head + pattern(SIZE) + b"tail"


# -- what TransmitFile does not take ---------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "count"), [(0, None), (10, None), (10, 100_000)])
@pytest.mark.parametrize("bare", [False, True])
async def test_a_file_in_memory_is_read_and_sent(offset, count, bare):
    memory = io.BytesIO(pattern(SIZE))
    expected = pattern(SIZE)[offset:][:count]
    async with bare_pair() if bare else connected() as (target, *_, peer):
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, len(expected)))
        send = here().sock_sendfile if bare else here().sendfile
        assert await send(target, memory, offset, count) == len(expected)
        assert await receiving == expected
        assert memory.tell() == offset + len(expected)
        assert not here().counts["TransmitFile"]


async def test_a_pipe_is_read_to_its_end_and_not_taken_for_an_empty_file():
    read, write = os.pipe()
    with open(read, "rb") as pipe, open(write, "wb") as writer:
        writer.write(b"through the pipe")
        writer.close()
        async with connected() as (transport, _, peer):
            assert await here().sendfile(transport, pipe) == 16
            assert await asyncio.to_thread(receive_exactly, peer, 16) == b"through the pipe"


@pytest.mark.parametrize("bare", [False, True])
async def test_without_a_fall_back_what_is_no_regular_file_is_refused(bare):
    async with bare_pair() if bare else connected() as (target, *_, _peer):
        send = here().sock_sendfile if bare else here().sendfile
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await send(target, io.BytesIO(b"x"), fallback=False)


async def test_over_tls_the_file_is_read_encrypted_and_sent(file):
    class Sender(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.sending = asyncio.ensure_future(self.send())

        async def send(self):
            with pytest.raises(RuntimeError, match="fallback is disabled"):
                await here().sendfile(self.transport, file, fallback=False)
            assert await here().sendfile(self.transport, file, 1000) == SIZE - 1000
            self.transport.close()

    def receive():
        with tls_client(address) as sock:
            return receive_exactly(sock, SIZE - 1000)

    async with serving(Sender, ssl=server_context()) as (_, address):
        assert await asyncio.to_thread(receive) == pattern(SIZE)[1000:]
        assert not here().counts["TransmitFile"]


# -- faults ----------------------------------------------------------------------------------------------------


async def test_a_closing_transport_refuses(file):
    async with connected() as (transport, _, _peer):
        transport.close()
        with pytest.raises(RuntimeError, match="closing"):
            await here().sendfile(transport, file)


@pytest.mark.parametrize("bare", [False, True])
async def test_cancelled_in_the_middle_the_file_is_let_go_and_the_next_one_is_served(large, bare):
    """The peer reads nothing, so TransmitFile waits."""
    async with bare_pair() if bare else connected() as (target, *_, _peer):
        send = here().sock_sendfile if bare else here().sendfile
        sending = asyncio.ensure_future(send(target, large))
        await until(transmits_pending)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not transmits_pending()
        assert here()._services.transmits_running == 0
        large.seek(0)  # Usable, and nobody else moves its position any more.
        assert large.read(100) == pattern(100)


@pytest.mark.asks_again
async def test_transfers_cancelled_while_they_make_progress_all_end(large):
    """QUIRK(wine): a cancel in the first moments, while bytes still go out, is forgotten: one in thirty, if asked once."""
    for _ in range(40):
        async with bare_pair() as (sock, _peer):
            sending = asyncio.ensure_future(here().sock_sendfile(sock, large))
            await until(transmits_pending)
            sending.cancel()
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(asyncio.CancelledError):
                    await sending


@pytest.mark.parametrize("bare", [False, True])
async def test_a_peer_that_is_gone_in_the_middle_is_a_connection_error(large, bare):
    async with bare_pair() if bare else connected() as (target, *_, peer):
        send = here().sock_sendfile if bare else here().sendfile
        sending = asyncio.ensure_future(send(target, large))
        await until(transmits_pending)
        await asyncio.to_thread(peer.recv, 100_000)
        reset(peer)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ConnectionError):
                await sending
        assert here()._services.transmits_running == 0


async def test_a_transport_aborted_in_the_middle_is_a_connection_error(large):
    async with connected() as (transport, protocol, _peer):
        sending = asyncio.ensure_future(here().sendfile(transport, large))
        await until(transmits_pending)
        transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ConnectionError):
                await sending
        assert await protocol.gone() is None


async def test_a_file_that_became_shorter_is_an_error_and_not_an_endless_loop(file):
    """At the seam: TransmitFile succeeds, and has sent nothing."""
    here().watched.faults["TransmitFile"] = lambda _function, _args: 1
    async with connected() as (transport, _, _peer):
        with pytest.raises(EOFError, match="shorter"):
            await here().sendfile(transport, file)


async def test_two_slow_clients_do_not_hold_up_a_third(large, tmp_path):
    """Client editions of Windows run two TransmitFile calls at a time: both are taken by peers that read nothing."""
    (tmp_path / "small").write_bytes(pattern(2 * MIB))
    async with contextlib.AsyncExitStack() as stack:
        slow = []
        for _ in range(2):
            transport, _, _ = await stack.enter_async_context(connected())
            slow.append(asyncio.ensure_future(here().sendfile(transport, large)))
        await until(lambda: len(transmits_pending()) == 2)
        transport, _, peer = await stack.enter_async_context(connected())
        small = stack.enter_context((tmp_path / "small").open("rb"))
        receiving = asyncio.ensure_future(asyncio.to_thread(receive_exactly, peer, 2 * MIB))
        async with asyncio.timeout(PATIENCE_S):
            assert await here().sendfile(transport, small) == 2 * MIB
        assert await receiving == pattern(2 * MIB)
        assert not any(sending.done() for sending in slow)
        for sending in slow:
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending


@pytest.mark.parametrize("native", [True, False], ids=["native", "copied"])
async def test_a_sendfile_cancelled_while_earlier_writes_wait_leaves_a_connection_that_writes(large, native):
    file = large if native else io.BytesIO(pattern(1000))
    async with connected() as (transport, _, peer):
        written = pattern(16 * MIB)
        transport.write(written)
        task = asyncio.create_task(here().sendfile(transport, file))
        await until(lambda: "sendfile" in repr(transport))
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"too early")
        # Another one is refused, and takes nobody's turn by that.
        with pytest.raises(RuntimeError):
            await here().sendfile(transport, file)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"too early")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        transport.write(b"and more")
        assert await asyncio.to_thread(receive_exactly, peer, len(written) + 8) == written + b"and more"
        # The next file has its turn.
        file.seek(0)
        sent = asyncio.create_task(here().sendfile(transport, file, 0, 1000))
        assert await asyncio.to_thread(receive_exactly, peer, 1000) == pattern(24 * MIB)[:1000]
        assert await sent == 1000


async def test_the_end_of_file_waits_for_the_file_that_goes_out_before_it(large):
    async with connected() as (transport, _, peer):
        sending = asyncio.create_task(here().sendfile(transport, large))
        await until(lambda: pending(IoType.TRANSMIT_FILE))
        transport.write_eof()
        assert await asyncio.to_thread(receive_all, peer) == pattern(24 * MIB)
        assert await sending == 24 * MIB
