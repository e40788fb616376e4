"""An ASGI application under uvicorn (0.36 or newer) on this loop. From this folder:

    pip install uvicorn
    python -m uvicorn uvicorn_app:app --loop iocp_loop:new_event_loop

or `python uvicorn_app.py`, which says the same in Python.
"""

import asyncio


async def app(scope, receive, send):
    """Answers every request with the name of the loop it ran on."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert scope["type"] == "http"
    body = f"served by {type(asyncio.get_running_loop()).__name__}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=8000, loop="iocp_loop:new_event_loop")
