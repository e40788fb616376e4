"""`doctor --check`: the experiments that only a run on a system can decide. Under Wine their answers are known."""

import dataclasses
import getpass
import re
import socket
import subprocess
import sys

import pytest
from fakes import profiles

from iocp_loop._cli import _commands, _doctor
from iocp_loop._cli._experiments import EXPERIMENTS, WINES, Answer, Experiment

from .platforms import UNDER_WINE

KIND = _doctor.system_kind()
PATIENCE_S = 300


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """(exit status, what was printed, the report) of a process that checks this system."""
    report = tmp_path_factory.mktemp("check") / "report.txt"
    child = subprocess.run(
        [sys.executable, "-W", "error", "-m", "iocp_loop", "doctor", "--check", "--report", str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return child.returncode, child.stdout, report.read_text(encoding="utf-8")


def test_this_system_keeps_what_the_loop_relies_on(checked):
    status, output, _ = checked
    assert status == 0, output
    assert "the loop can work here" in output


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_experiment_has_an_answer(checked, experiment):
    _, output, _ = checked
    (line,) = re.findall(rf"^{re.escape(experiment.name)}  .*$", output, re.MULTILINE)
    if experiment.expected.get(KIND) is None:
        assert "nobody had an answer" in line
    elif UNDER_WINE or experiment.promised:
        assert f"as expected of {KIND}" in line, output
        assert "NOT" not in line
    if experiment.switch:
        assert f"[{experiment.switch}]" in line


def test_the_report_says_the_same_and_names_nobody(checked):
    _, output, report = checked
    assert set(report.splitlines()[1:]) < set(output.splitlines())
    for private in (getpass.getuser(), socket.gethostname(), sys.prefix, __file__):
        assert not re.search(rf"(?<![\w.]){re.escape(private)}(?![\w.])", report), private
    assert not re.search(r"\d+\.\d+\.\d+\.\d+|[A-Z]:\\", report)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_provider_of_sockets_is_named(family, checked):
    name, _, layers = _doctor.provider_name(family).rpartition(", ")
    assert re.search(r"[Tt][Cc][Pp]", name)
    assert re.fullmatch(r"\d+ layers?", layers)
    assert name in checked[2]


def test_each_switch_of_the_profiles_is_decided_by_one_experiment_and_says_the_same():
    switches = {field.name for field in dataclasses.fields(profiles.Profile)} - {"name"}
    deciding = {experiment.switch: experiment for experiment in EXPERIMENTS if experiment.switch}
    assert set(deciding) == switches
    for switch, experiment in deciding.items():
        is_other_answer = experiment.expected["Windows"] != experiment.expected["Wine 8"]
        assert is_other_answer == (getattr(profiles.WINDOWS, switch) != getattr(profiles.WINE_8, switch))


def test_what_is_known_of_a_system_is_known_by_its_name():
    assert {kind for experiment in EXPERIMENTS for kind in experiment.expected} == {"Windows", *WINES}


def printed_of(monkeypatch, capsys, *experiments):
    monkeypatch.setattr(_doctor, "FEATURES", ())
    monkeypatch.setattr(_doctor, "EXPERIMENTS", experiments)
    status = _commands.main(["doctor", "--check"])
    return status, capsys.readouterr().out


def test_a_broken_promise_is_told_and_is_status_1(monkeypatch, capsys):
    broken = Experiment("gravity", lambda: Answer("up", "by 1 m"), "apples", {KIND: "down"}, promised=True)
    status, output = printed_of(monkeypatch, capsys, broken)
    assert status == 1
    assert re.search(rf"^gravity +up +NOT as expected of {KIND}: down$", output, re.MULTILINE)
    assert "    by 1 m\n    decides: apples\n" in output
    assert output.rstrip().endswith("the loop relies on another answer: gravity")


def test_another_answer_than_expected_is_no_fault_where_the_loop_does_not_rely_on_it(monkeypatch, capsys):
    status, output = printed_of(monkeypatch, capsys, Experiment("gravity", lambda: Answer("up"), "", {KIND: "down"}))
    assert status == 0
    assert "NOT as expected" in output


@pytest.mark.parametrize("exc", [OSError("no"), AttributeError("no"), subprocess.TimeoutExpired("x", 1)])
def test_an_experiment_that_cannot_be_made_is_an_answer(exc):
    def fail():
        raise exc

    assert Experiment("", fail, "").answer().short == "not tried"


def test_a_report_that_cannot_be_written_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(_doctor, "FEATURES", ())
    assert _commands.main(["doctor", "--report", str(tmp_path / "no such folder" / "report")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_check_no_experiment_is_made(monkeypatch, capsys):
    monkeypatch.setattr(_doctor, "FEATURES", ())
    monkeypatch.setattr(_doctor, "EXPERIMENTS", (Experiment("x", lambda: pytest.fail("made"), ""),))
    assert _commands.main(["doctor"]) == 0
    assert "only a run can decide" not in capsys.readouterr().out
