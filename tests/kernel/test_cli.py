"""The command line, as its users run it: in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import iocp_loop
from iocp_loop._cli import _commands, _demo, _doctor

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300  # A child takes seconds; a busy machine has its own idea of them.


def python(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a child that finds this checkout."""
    child = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return child.returncode, child.stdout


def test_demo_verifies_both_loops_and_leaves_nothing_pending():
    status, output = python(
        "-W", "error", "-m", "iocp_loop", "demo", "--seconds", "1", "--clients", "10", "--size", "3000"
    )
    assert status == 0, output
    assert output.rstrip().endswith("all is well")
    for loop in ("iocp_loop", "ProactorEventLoop"):
        messages, rate = re.search(rf"^  {loop} +([\d,]+) +([\d,]+)$", output, re.MULTILINE).groups()
        assert int(messages.replace(",", "")) > 0, output
        assert int(rate.replace(",", "")) > 0, output
        verified = re.search(rf"{loop}: ([\d,]+) messages verified byte for byte", output)
        assert int(verified[1].replace(",", "")) >= int(messages.replace(",", "")), output
    assert re.search(r"ratio: \d+\.\d\d in the median round", output)
    assert re.search(r"operations on iocp_loop: READ [\d,]+,.* ACCEPT \d+, CONNECT 10$", output, re.MULTILINE), output
    assert "pending at exit: 0 operations, 0 endpoints" in output
    assert "\r" not in output.replace("\r\n", "\n")  # No terminal, no live line.


def test_demo_fails_when_a_byte_comes_back_changed():
    """A server that turns the last byte of a message over, on our loop and on asyncio's."""
    program = """if True:
        import sys
        from iocp_loop._cli import _commands, _demo
        def spoil(self, data):
            self._transport.write(data[:-1] + bytes([data[-1] ^ 1]))
        _demo.EchoServer.data_received = spoil
        sys.exit(_commands.main(["demo", "--seconds", "0.4", "--clients", "3"]))
    """
    status, output = python("-c", program)
    assert status == 1, output
    assert "message 1 came back changed" in output
    assert "something is wrong" in output


def test_demo_fails_when_a_connection_is_lost():
    """A server that hangs up on its third message."""
    program = """if True:
        import sys
        from iocp_loop._cli import _commands, _demo
        echo = _demo.EchoServer.data_received
        def hang_up(self, data):
            self.count = getattr(self, "count", 0) + 1
            echo(self, data) if self.count < 3 else self._transport.abort()
        _demo.EchoServer.data_received = hang_up
        sys.exit(_commands.main(["demo", "--seconds", "0.4", "--clients", "3"]))
    """
    status, output = python("-c", program)
    assert status == 1, output
    assert "connection lost" in output


def test_doctor_finds_that_the_loop_can_work_here():
    status, output = python("-W", "error", "-m", "iocp_loop", "doctor")
    assert status == 0, output
    assert output.rstrip().endswith("the loop can work here")
    assert iocp_loop.__version__ in output
    assert _doctor.system_name() in output
    for feature in _doctor.FEATURES:
        assert re.search(rf"^{re.escape(feature.name)} +(yes|NO) ", output, re.MULTILINE), output
    # What Windows 10 and Wine have both, and the loop relies on.
    for name in (
        "completion port",
        "extension functions",
        "AFD poll",
        "waits by thread",
        "inline completions, IPv4",
    ):
        assert re.search(rf"^{name} +yes +in use", output, re.MULTILINE), output


def test_doctor_says_that_the_loop_cannot_work_without_what_it_needs(monkeypatch, capsys):
    broken = _doctor.Feature("luck", lambda: _doctor.Finding(False, "none"), "all", "no luck", needed=True)
    spare = _doctor.Feature("charm", lambda: _doctor.Finding(False, "none"), "", "no charm")
    monkeypatch.setattr(_doctor, "FEATURES", (spare, broken))
    assert _commands.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "without it: no charm" in output
    assert output.rstrip().endswith("the loop cannot work here: luck")


def test_version_is_the_version():
    assert python("-m", "iocp_loop", "version") == (0, f"{iocp_loop.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["demo", "--clients", "0"], ["demo", "--size", "15"]])
def test_a_wrong_command_line_is_explained(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        _commands.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: python -m iocp_loop" in capsys.readouterr().err


def test_ctrl_c_is_status_130(monkeypatch, capsys):
    def interrupted(**_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "run_demo", interrupted)
    assert _commands.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_live_line_stays_on_its_line_and_leaves_nothing_behind(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    line = _demo.LiveLine()
    line.show("a text that is longer than the terminal is wide")
    line.show("short")
    line.keep("end")
    wide, short, end = capsys.readouterr().out.split("\r")[1:]
    assert wide == "a text that is long"
    assert short == "short".ljust(len(wide))
    assert end == "end".ljust(len("short")) + "\n"
