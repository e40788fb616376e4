"""Every program of README.md and docs/ is run as it stands there, and prints what stands below it.

A block that is no whole program says so in a comment before it; see `pages`.
"""

import os
import socket
import subprocess
import sys

import pytest

from documentation.pages import BLOCKS, COMMANDS, OTHERS, PROGRAMS, PYTHON, ROOT, SERVERS, suites

TIMEOUT_S = 60
# Where each command of the pages is run, beside the reader's own machine: a file, and what stands in it.
RUN_IN = {
    "pip install .": (".ci/run", "tools/dev.py package"),
    "python3 tools/dev.py demo": (".github/workflows/ci.yml", "tools/dev.py"),
    "python3 tools/dev.py test": (".ci/run", "tools/dev.py test"),
    "python -m iocp_loop doctor": ("tests/kernel/test_cli.py", '"doctor"'),
    "python -m iocp_loop doctor --check --report report.txt": ("tests/kernel/test_check.py", "report"),
    "python -m uvicorn uvicorn_app:app --loop iocp_loop:new_event_loop": (
        "tests/kernel/test_examples.py",
        "uvicorn_app",
    ),
}
# What shows no code: how a message travels, what a tool prints.
LANGUAGES = {"python", "console", "text"}


def environment() -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("IOCP_LOOP_", "PYTEST_"))}
    return environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def run(folder, *arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_does_what_its_page_says(block, tmp_path):
    (tmp_path / "program.py").write_text(block.text, encoding="utf-8")
    ended = run(tmp_path, "program.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    if block.output is not None:
        assert ended.stdout == block.output


@pytest.mark.parametrize("block", SERVERS, ids=str)
def test_a_server_echoes_a_line(block, tmp_path):
    """On a free port in the place of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own_port = block.mode.removeprefix("serves ")
    assert own_port in block.text
    (tmp_path / "program.py").write_text(block.text.replace(own_port, str(port)), encoding="utf-8")
    server = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment())
    try:
        with connected(port, server) as client:
            client.sendall(b"hello\n")
            assert client.makefile("rb").readline() == b"hello\n"
    finally:
        server.kill()
        server.wait()


def connected(port, server):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        except ConnectionRefusedError:
            assert server.poll() is None, "the server has ended"


@pytest.mark.parametrize(("test", "conftest"), suites(), ids=str)
def test_a_test_passes_beside_its_conftest(test, conftest, tmp_path):
    if conftest is not None:
        (tmp_path / "conftest.py").write_text(conftest.text, encoding="utf-8")
    (tmp_path / "test_it.py").write_text(test.text, encoding="utf-8")
    ended = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


def test_no_block_is_left_out():
    assert OTHERS == []
    assert PYTHON
    assert {block.language for block in BLOCKS} <= LANGUAGES, "a block without a language is nobody's to run"


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_a_command_is_run_somewhere(block, command):
    file, words = RUN_IN[command]
    assert words in (ROOT / file).read_text(encoding="utf-8")
