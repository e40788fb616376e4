"""anyio: its task groups, sockets, processes and threads on our loop."""

import socket
import sys

import anyio
import anyio.abc

import iocp_loop


def run_anyio(main):
    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": iocp_loop.new_event_loop})


def test_tcp_clients_are_served_in_a_task_group():
    async def main():
        async def serve(stream):
            async with stream:
                async for data in stream:
                    await stream.send(data[::-1])

        answers = []

        async def ask(port, number):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                question = bytes([number]) + b"question"
                await stream.send(question)
                answers.append(await stream.receive() == question[::-1])

        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, serve)
                async with anyio.create_task_group() as clients:
                    for number in range(50):
                        clients.start_soon(ask, port, number)
                group.cancel_scope.cancel()
        return answers

    assert run_anyio(main) == [True] * 50


def test_udp_datagrams_arrive():
    async def main():
        async with await anyio.create_udp_socket(local_host="127.0.0.1", family=socket.AF_INET) as receiver:
            port = receiver.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket("127.0.0.1", port) as sender:
                await sender.send(b"ping")
                data, _address = await receiver.receive()
        return data

    assert run_anyio(main) == b"ping"


def test_a_process_is_talked_to_and_waited_for():
    async def main():
        code = "import sys; print(sys.stdin.read().upper(), end=''); sys.exit(3)"
        result = await anyio.run_process([sys.executable, "-c", code], input=b"shout", check=False)
        return result.returncode, result.stdout

    assert run_anyio(main) == (3, b"SHOUT")


def test_a_time_out_ends_a_blocked_receive_and_loses_nothing():
    async def main():
        left, right = socket.socketpair()
        for sock in (left, right):
            sock.setblocking(False)
        with left, right:
            with anyio.move_on_after(0.05) as scope:
                await anyio.wait_readable(left)
            right.send(b"late")
            await anyio.wait_readable(left)
            return scope.cancelled_caught, left.recv(10)

    assert run_anyio(main) == (True, b"late")


def test_work_in_threads_comes_back_to_the_loop():
    async def main():
        return await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 0) or "done")

    assert run_anyio(main) == "done"
