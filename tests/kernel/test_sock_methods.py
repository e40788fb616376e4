"""loop.sock_*: bare sockets, and what a cancelled call leaves behind: no byte lost, no socket open."""

import asyncio
import socket

import pytest

from iocp_loop._core._operation import IoType

from .peers import LOCALHOST, client, pattern, receive_exactly, reset
from .watched import here, pending, turns, until, wait_until


@pytest.fixture
def pair():
    """(ours, peer): a non-blocking socket for the loop, and the blocking other end."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    peer.settimeout(10)
    with ours, peer:
        yield ours, peer


async def test_sock_recv_brings_what_is_there_and_waits_when_nothing_is(pair):
    ours, peer = pair
    peer.sendall(b"now")
    assert await here().sock_recv(ours, 100) == b"now"
    task = asyncio.ensure_future(here().sock_recv(ours, 3))
    await turns()
    assert not task.done()
    peer.sendall(b"later")
    assert await task == b"lat"
    assert await here().sock_recv(ours, 3) == b"er"
    peer.close()
    assert await here().sock_recv(ours, 3) == b""


async def test_sock_recv_into_fills_the_callers_buffer_and_lets_go_of_it(pair):
    ours, peer = pair
    buffer = bytearray(10)
    task = asyncio.ensure_future(here().sock_recv_into(ours, memoryview(buffer)[2:]))
    await turns()
    with pytest.raises(BufferError):
        buffer.append(0)  # Pinned: the kernel may write to it.
    peer.sendall(b"abc")
    assert await task == 3
    assert buffer == b"\0\0abc\0\0\0\0\0"
    del task
    buffer.append(0)


async def test_sock_recv_into_a_readonly_buffer_is_refused(pair):
    with pytest.raises((TypeError, ValueError, BufferError)):
        await here().sock_recv_into(pair[0], b"constant")


async def test_sock_sendall_sends_more_than_any_buffer_holds(pair):
    ours, peer = pair
    message = pattern(16 << 20)
    received, _ = await asyncio.gather(
        asyncio.to_thread(receive_exactly, peer, len(message)), here().sock_sendall(ours, bytearray(message))
    )
    assert received == message


async def test_sends_of_one_socket_keep_their_order(pair):
    """The first is still in flight when the others come."""
    ours, peer = pair
    parts = [pattern(8 << 20, seed=n) for n in range(2)] + [b"end"]
    tasks = [asyncio.ensure_future(here().sock_sendall(ours, part)) for part in parts]
    await turns()
    assert await asyncio.to_thread(receive_exactly, peer, (16 << 20) + 3) == b"".join(parts)
    await asyncio.gather(*tasks)


async def test_a_buffer_of_wide_items_is_sent_as_its_bytes(pair):
    ours, peer = pair
    await here().sock_sendall(ours, memoryview(b"abcdefgh").cast("I"))
    assert receive_exactly(peer, 8) == b"abcdefgh"


async def test_a_reset_is_a_connection_reset_error(pair):
    ours, peer = pair
    task = asyncio.ensure_future(here().sock_recv(ours, 1))
    await turns()
    reset(peer)
    with pytest.raises(ConnectionResetError):
        await task


async def test_sock_accept_brings_a_nonblocking_socket_and_its_address():
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        for _ in range(3):
            task = asyncio.ensure_future(here().sock_accept(listener))
            await turns()
            with client(listener.getsockname()) as sock:
                conn, address = await task
                with conn:
                    assert address == sock.getsockname()
                    assert conn.gettimeout() == 0
                    sock.sendall(b"x")
                    assert await here().sock_recv(conn, 1) == b"x"


async def test_sock_connect_resolves_names_and_connects():
    with socket.create_server((LOCALHOST, 0)) as listener, socket.socket() as sock:
        sock.setblocking(False)
        await here().sock_connect(sock, ("localhost", listener.getsockname()[1]))
        assert sock.getpeername() == listener.getsockname()
        peer, address = listener.accept()
        with peer:
            assert address == sock.getsockname()


# -- cancelled -------------------------------------------------------------------------------------------------


async def test_a_cancelled_receive_ends_when_the_kernel_has_let_go(pair):
    ours, peer = pair
    task = asyncio.ensure_future(here().sock_recv(ours, 1))
    await turns()
    (operation,) = pending(IoType.READ)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not operation.pending
    peer.sendall(b"x")
    assert await here().sock_recv(ours, 1) == b"x"


@pytest.mark.parametrize("into", [False, True])
async def test_a_receive_cancelled_after_its_data_came_loses_no_byte(pair, into):
    """The kernel has finished, the loop has not looked yet; the next receives get the bytes, in order."""
    ours, peer = pair
    call = here().sock_recv_into(ours, bytearray(100)) if into else here().sock_recv(ours, 100)
    task = asyncio.ensure_future(call)
    await turns()
    (operation,) = pending(IoType.READ)
    peer.sendall(b"first,")
    wait_until(lambda: operation.Internal != 0x103)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    peer.sendall(b"second")
    buffer = bytearray(2)
    assert await here().sock_recv_into(ours, buffer) == 2
    received = bytes(buffer)
    while len(received) < 12:
        received += await here().sock_recv(ours, 3)
    assert received == b"first,second"


async def test_time_outs_that_race_with_data_lose_no_byte(pair):
    """A reader that gives up again and again while a thread sends."""
    ours, peer = pair
    message = pattern(3000)

    def send():
        for n in range(0, len(message), 50):
            peer.sendall(message[n : n + 50])

    sending = asyncio.ensure_future(asyncio.to_thread(send))
    received = bytearray()
    deadline = here().time() + 60
    while len(received) < len(message):
        assert here().time() < deadline, f"{len(received)} bytes came"
        task = asyncio.ensure_future(here().sock_recv(ours, 4096))
        await turns(2)
        task.cancel()
        try:
            received += await task
        except asyncio.CancelledError:
            continue
    await sending
    assert received == message


async def test_a_cancelled_accept_leaves_no_socket_and_the_listener_serves_on():
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        task = asyncio.ensure_future(here().sock_accept(listener))
        await turns()
        (operation,) = pending(IoType.ACCEPT)
        accepting = operation.arriving
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert accepting.fileno() == -1
        task = asyncio.ensure_future(here().sock_accept(listener))
        with client(listener.getsockname()):
            conn, _ = await task
            conn.close()


async def test_an_accept_cancelled_after_its_client_came_closes_that_connection():
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        task = asyncio.ensure_future(here().sock_accept(listener))
        await turns()
        (operation,) = pending(IoType.ACCEPT)
        with client(listener.getsockname()) as sock:
            wait_until(lambda: operation.Internal != 0x103)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sock.recv(1) == b""


async def test_a_cancelled_send_gives_the_callers_buffer_back(pair):
    ours, peer = pair
    data = bytearray(64 << 20)
    task = asyncio.ensure_future(here().sock_sendall(ours, data))
    await until(lambda: pending(IoType.WRITE))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    data.append(0)
    assert not pending(IoType.WRITE)


async def test_a_socket_closed_under_its_receive_ends_the_receive(pair):
    ours, _peer = pair
    task = asyncio.ensure_future(here().sock_recv(ours, 1))
    await turns()
    ours.close()
    with pytest.raises(OSError):
        async with asyncio.timeout(10):
            await task


# -- sockets of another loop or process ------------------------------------------------------------------------


async def test_a_socket_that_belongs_to_another_port_is_served_all_the_same(pair, port):
    """Associated with a bare port before, as a socket shared with another loop or process is."""
    ours, peer = pair
    port.associate(ours.fileno(), 5)
    task = asyncio.ensure_future(here().sock_recv(ours, 10))
    await turns()
    peer.sendall(b"in")
    assert await task == b"in"
    await here().sock_sendall(ours, b"out")
    assert receive_exactly(peer, 3) == b"out"


async def test_what_sock_recv_brought_is_never_received_into_again(pair):
    """Each receive is filled to its last byte: such a buffer is the result itself, uncopied."""
    ours, peer = pair
    message = pattern(1 << 20)
    sending = asyncio.create_task(asyncio.to_thread(peer.sendall, message))
    pieces = []
    while sum(map(len, pieces)) < len(message):
        pieces.append(await here().sock_recv(ours, 1000))
    await sending
    assert {len(piece) for piece in pieces} >= {1000}
    assert b"".join(pieces) == message


async def test_receiving_a_negative_number_of_bytes_is_a_value_error(pair):
    ours, peer = pair
    with pytest.raises(ValueError, match="must be 0 or more, not -1"):
        await here().sock_recv(ours, -1)
    peer.sendall(b"x")
    assert await here().sock_recv(ours, 1) == b"x"
