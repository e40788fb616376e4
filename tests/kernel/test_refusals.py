"""What a provider between Winsock and the system may refuse, on the real kernel: it costs speed, and nothing else."""

import asyncio
import socket

import pytest

from .peers import LOCALHOST, Echo, client, pattern, serving
from .watched import failed, running, until

ERROR_NOT_SUPPORTED = 50
REFUSALS = [1, 50, 87]


@pytest.mark.parametrize("code", REFUSALS)
def test_a_loop_works_where_skip_mode_is_refused(code):
    """Whatever the error; ERROR_INVALID_PARAMETER is not taken for "belongs to another port"."""
    with running() as loop:
        loop.watched.faults["SetFileCompletionNotificationModes"] = lambda _function, _args: failed("", code)

        async def talk():
            async with serving(Echo) as (_, address):
                reader, writer = await asyncio.open_connection(*address)
                message = pattern(1 << 20)
                writer.write(message)
                assert await reader.readexactly(len(message)) == message
                kinds = {type(endpoint).__name__ for endpoint in loop.proactor.endpoints.values()}
                writer.close()
                await writer.wait_closed()
                return kinds

        assert loop.run_until_complete(talk()) == {"OverlappedSocket"}
        assert loop.reports == []


def test_a_connection_ends_where_cancels_are_refused():
    """By both ends, on the client's and on the server's side; the peer sees the end."""
    with running() as loop:
        loop.watched.faults["CancelIoEx"] = lambda _function, _args: failed("", ERROR_NOT_SUPPORTED)

        async def talk():
            served = []
            async with serving(lambda: served.append(Echo()) or served[-1]) as (_, address):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                writer.close()
                await writer.wait_closed()
                with client(address) as sock:
                    sock.settimeout(10)
                    sock.sendall(b"x")
                    assert await asyncio.to_thread(sock.recv, 1) == b"x"
                    served[-1].transport.close()
                    assert await asyncio.to_thread(sock.recv, 1) == b""

        loop.run_until_complete(talk())
        del loop.watched.faults["CancelIoEx"]
        assert loop.reports == []


def test_a_receive_outlives_the_time_out_of_another_one_on_its_socket():
    """As on Windows, where cancelling one receive of a socket ends all of them."""
    with running() as loop:
        # A socket of its own has nothing but receives outstanding here.
        loop.watched.faults["CancelIoEx"] = lambda function, args: function(args[0], 0)

        async def talk():
            left, right = socket.socketpair()
            with left, right:
                left.setblocking(False)
                stays = asyncio.ensure_future(loop.sock_recv(left, 100))
                buffer = bytearray(100)
                into = asyncio.ensure_future(loop.sock_recv_into(left, buffer))
                for _ in range(3):
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(loop.sock_recv(left, 100), 0.01)
                assert not stays.done()
                assert not into.done()
                right.sendall(b"first")
                await until(lambda: stays.done() or into.done())
                right.sendall(b"second")
                assert {await stays, bytes(buffer[: await into])} == {b"first", b"second"}

        loop.run_until_complete(talk())
        assert loop.reports == []


def test_bytes_that_came_for_a_receive_given_up_are_given_to_the_one_that_waits():
    """The cancel is late: both are in the kernel, and the first one gets the bytes while it is given up."""
    with running() as loop:

        async def talk():
            left, right = socket.socketpair()
            with left, right:
                left.setblocking(False)
                first, second = (asyncio.ensure_future(loop.sock_recv(left, 100)) for _ in range(2))
                await asyncio.sleep(0)
                right.sendall(b"bytes")
                await until(lambda: any(op.Internal == 0 for op in list(loop.proactor.pending.values())))
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
                assert await asyncio.wait_for(second, 10) == b"bytes"

        loop.run_until_complete(talk())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_datagram_is_given_to_the_receive_that_waits_with_its_sender(family):
    with running() as loop:

        async def talk():
            host = LOCALHOST if family == socket.AF_INET else "::1"
            with socket.socket(family, socket.SOCK_DGRAM) as left, socket.socket(family, socket.SOCK_DGRAM) as right:
                left.bind((host, 0))
                right.bind((host, 0))
                left.setblocking(False)
                waiting = asyncio.ensure_future(loop.sock_recvfrom(left, 100))
                await asyncio.sleep(0)
                loop._stdlib_proactor.give_back_datagram(left, b"datagram", right.getsockname())
                assert await asyncio.wait_for(waiting, 10) == (b"datagram", right.getsockname())

        loop.run_until_complete(talk())
