"""What test_uvicorn.py lets uvicorn serve, in a process of its own."""

import asyncio
import signal

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute


async def who(_request):
    """Which loop serves this request."""
    loop = asyncio.get_running_loop()
    return JSONResponse({"loop": f"{type(loop).__module__}.{type(loop).__qualname__}"})


async def echo(request):
    """The body, back."""
    return PlainTextResponse(await request.body())


async def stop(_request):
    """End the server as Ctrl+C would."""
    asyncio.get_running_loop().call_later(0.1, signal.raise_signal, signal.SIGINT)
    return PlainTextResponse("stopping")


async def socket_echo(websocket):
    """Every message, back, until the client leaves."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    routes=[
        Route("/who", who),
        Route("/echo", echo, methods=["POST"]),
        Route("/stop", stop),
        WebSocketRoute("/socket", socket_echo),
    ]
)
