"""aiohttp: server and client on one loop."""

import asyncio
import io

from aiohttp import ClientSession, web

REQUESTS = 200


async def echo(request):
    return web.Response(body=await request.read())


async def socket_echo(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_bytes(message.data)
    return socket


async def serve():
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/echo", echo)
    app.router.add_get("/socket", socket_echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def test_200_concurrent_requests_are_answered_each_with_its_own_body(run):
    async def main():
        runner, url = await serve()
        async with ClientSession() as session:

            async def ask(number):
                body = number.to_bytes(2, "big") * (500 + 37 * number)
                async with session.post(f"{url}/echo", data=body) as response:
                    return response.status == 200 and await response.read() == body

            answers = await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
        await runner.cleanup()
        return answers

    assert run(main()) == [True] * REQUESTS


def test_a_large_body_goes_both_ways(run):
    async def main():
        runner, url = await serve()
        body = bytes(range(256)) * 32 * 1024
        upload = io.BytesIO(body)
        async with ClientSession() as session, session.post(f"{url}/echo", data=upload) as response:
            same = await response.read() == body
        await runner.cleanup()
        return same

    assert run(main())


def test_websocket_messages_come_back_in_order(run):
    async def main():
        runner, url = await serve()
        async with ClientSession() as session, session.ws_connect(f"{url}/socket") as socket:
            for number in range(300):
                await socket.send_bytes(number.to_bytes(2, "big") * (number + 1))
            received = [(await socket.receive()).data for _ in range(300)]
        await runner.cleanup()
        return received

    assert run(main()) == [number.to_bytes(2, "big") * (number + 1) for number in range(300)]
