"""uvicorn, started as its users start it, serving a Starlette app over HTTP and websockets on our loop."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import websockets

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture
def server():
    """`python -m uvicorn --loop iocp_loop:new_event_loop`: its port, and the process, which must end by itself."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "uvicorn", "starlette_app:app", "--app-dir", str(HERE)]
    command += ["--loop", "iocp_loop:new_event_loop", "--port", str(port), "--no-access-log"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    log = b""
    while b"running on" not in log:
        line = process.stdout.readline()
        assert line, log.decode()
        log += line
    yield port, process
    if process.poll() is None:
        process.kill()
    process.stdout.close()
    process.wait()


async def use(port):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        loop_name = (await client.get("/who")).json()["loop"]
        bodies = [os.urandom(1000 * (number + 1)) for number in range(40)]
        answers = await asyncio.gather(*(client.post("/echo", content=body) for body in bodies))
        echoed = [answer.content for answer in answers] == bodies
        async with websockets.connect(f"ws://127.0.0.1:{port}/socket") as connection:
            for number in range(100):
                await connection.send(f"message {number}")
            heard = [await connection.recv() for _ in range(100)]
        await client.get("/stop")
    return loop_name, echoed, heard


def test_http_and_websockets_are_served_and_ctrl_c_ends_it(server, run):
    port, process = server
    loop_name, echoed, heard = run(use(port))
    rest, _ = process.communicate(timeout=60)
    assert loop_name == "iocp_loop._loop._event_loop.IocpEventLoop"
    assert echoed
    assert heard == [f"MESSAGE {number}" for number in range(100)]
    log = rest.decode()
    assert "Finished server process" in log
    assert "Traceback" not in log
    assert "Warning" not in log
