"""Every example does what it says: run as a program, its output read, its exit status looked at."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE_S = 400  # use_after_free.py alone starts eight processes.


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    """A child that finds this checkout; its output is one pipe."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    child = start("-W", "error", *arguments, **environ)
    output, _ = child.communicate(timeout=PATIENCE_S)
    return child.returncode, output


@pytest.fixture
def serving():
    """`serving(*arguments, pattern=...)` starts a server and returns what its line "I am up" has for the pattern."""
    children = []

    def start_and_wait(*arguments: str, pattern: str) -> str:
        child = start(*arguments)
        children.append(child)
        lines = []
        while not (found := re.search(pattern, lines[-1] if lines else "")):
            lines.append(child.stdout.readline())
            assert lines[-1], "".join(lines)
        return found[1]

    yield start_and_wait
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("stomp", ["0", "1"])
def test_worker_threads_serve_real_clients_and_stop_clean(stomp):
    status, output = run(str(EXAMPLES / "worker_threads.py"), "--selftest", IOCP_LOOP_STOMP=stomp)
    assert status == 0, output
    assert "20 clients, 500 messages, every byte compared; 23 sessions served" in output
    assert "after the stop: 0 sessions, 0 pending operations, 0 endpoints, 0 workers" in output
    # Five clients reset their connection; the accepts and the three idle sessions were cancelled.
    assert "sessions ended by WinError: {" in output
    assert "10054: 5" in output
    # All five workers had something to do.
    assert len(re.findall(r"'worker \d': \d+", output)) == 5, output


def test_use_after_free_is_caught_in_every_scene():
    status, output = run(str(EXAMPLES / "use_after_free.py"))
    assert status == 0, output
    assert output.rstrip().endswith("every scene as it should be")
    # The trap itself: without a net, a stranger's memory changes, silently.
    assert "Bob's name is now b'a late packet'; nothing was reported" in output
    assert "refused: LifetimeError" in output


def test_echo_server_echoes(serving):
    port = serving(str(EXAMPLES / "echo_server.py"), "0", pattern=r"echo on port (\d+), IocpEventLoop")
    message = os.urandom(300_000)
    with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        echoed = b""
        while some := sock.recv(65536):
            echoed += some
    assert echoed == message


def test_streams_chat_passes_on_what_is_said():
    status, output = run(str(EXAMPLES / "streams_chat.py"), "--demo")
    assert status == 0, output
    assert "Cy hears: Ben: anybody there?" in output


def test_a_game_loop_ticks_as_often_as_it_should_and_tells_every_client():
    status, output = run(str(EXAMPLES / "game_loop.py"), "--compare", "--clients", "6", "--seconds", "0.5")
    assert status == 0, output
    assert re.findall(r"(\w+) +(\d+) Hz +(\d+) ticks", output) == [
        (loop, hz, ticks) for hz, ticks in (("60", "30"), ("240", "120")) for loop in ("iocp", "stdlib")
    ]


def test_uvicorn_app_is_served_on_our_loop(serving):
    pytest.importorskip("uvicorn")
    port = serving(
        *("-m", "uvicorn", "uvicorn_app:app", "--app-dir", str(EXAMPLES), "--port", "0"),
        *("--loop", "iocp_loop:new_event_loop"),
        pattern=r"running on http://127\.0\.0\.1:(\d+)",
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert answer.read() == b"served by IocpEventLoop\n"


def test_pytest_loops_runs_its_test_on_both_loops():
    folder = str(EXAMPLES / "pytest_loops")
    status, output = run(
        *("-m", "pytest", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider", "--rootdir", folder, folder),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    assert status == 0, output
    assert "2 passed" in output


def test_a_stdio_server_starts_tools_while_it_waits_for_requests():
    child = subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", str(EXAMPLES / "stdio_server.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def ask(**request):
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    assert ask(id=1, echo="hello") == {"id": 1, "echo": "hello"}
    answer = ask(id=2, run=[sys.executable, "-S", "-E", "-c", "print(6 * 7)"])
    assert (answer["id"], answer["status"], answer["output"].strip()) == (2, 0, "42")
    assert "FileNotFoundError" in ask(id=3, run=["no such tool"])["error"]
    assert ask(id=4, echo="x" * 200_000)["echo"] == "x" * 200_000
    child.stdin.close()
    assert child.stdout.read() == b""
    assert child.wait(PATIENCE_S) == 0
    child.stdout.close()
