"""The libraries ring's comparing, its page and its table: what needs neither Wine nor a network."""

import json
import re
import sys
from pathlib import Path

import pytest

RING = Path(__file__).resolve().parents[1] / "libraries"
sys.path.insert(0, str(RING))

import outcomes  # noqa: E402
import page  # noqa: E402
import table  # noqa: E402


def lines(*events):
    return [json.dumps(event) for event in events]


def start(test):
    return {"event": "start", "test": test, "made": {}}


def stop(test, word="ok", detail=""):
    return {"event": "stop", "test": test, "word": word, "detail": detail, "made": {"tested": 1}}


def end(status=0, **made):
    return {"event": "end", "status": status, "made": made}


def a_run(**words):
    return outcomes.Run({test: outcomes.Outcome(word) for test, word in words.items()}, outcomes.Counter(tested=1))


# ---- what a child reports


def test_a_child_s_report_is_read_to_its_end():
    run = outcomes.Run()
    events = lines(start("a"), stop("a"), start("b"), stop("b", "fail", "why"), end(other=2))
    assert outcomes.read_events(events, run, hung=False, tail="")
    assert run.outcomes == {"a": outcomes.Outcome("ok"), "b": outcomes.Outcome("fail", "why")}
    assert run.made == {"tested": 2, "other": 2}


@pytest.mark.parametrize(("hung", "word"), [(False, "died"), (True, "hung")])
def test_a_child_that_ends_too_early_takes_the_running_test_with_it(hung, word):
    run = outcomes.Run()
    assert not outcomes.read_events(lines(start("a"), stop("a"), start("b")), run, hung=hung, tail="the stacks")
    assert run.outcomes["b"] == outcomes.Outcome(word, "the stacks")
    assert not run.troubles


def test_a_pytest_that_could_not_begin_is_trouble():
    run = outcomes.Run()
    assert outcomes.read_events(lines(end(4)), run, hung=False, tail="no such option")
    assert run.troubles == ["pytest ended with status 4\nno such option"]


def test_a_death_between_two_tests_is_trouble():
    run = outcomes.Run()
    assert not outcomes.read_events([*lines(start("a"), stop("a")), '{"event": "sta'], run, hung=False, tail="x")
    assert run.outcomes["a"].word == "ok"
    assert run.troubles == ["the process died between two tests\nx"]


# ---- the comparison


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        ("ok", "ok", "passed"),
        ("ok", "expected failure", "passed"),
        ("skip", "skip", "skipped"),
        ("fail", "ok", "ours"),
        ("skip", "ok", "ours"),
        ("fail", "skip", "ours"),
        ("absent", "ok", "ours"),
        ("ok", "hung", "stdlib"),
        ("ok", "skip", "stdlib"),
        ("skip", "fail", "stdlib"),
        ("fail", "error", "failed"),
        ("died", "hung", "failed"),
    ],
)
def test_two_words_give_a_verdict(mine, theirs, verdict):
    assert outcomes.verdict(mine, theirs) == verdict


def test_what_differs_again_and_again_is_told_from_what_comes_out_as_it_likes():
    comparison = outcomes.Comparison(a_run(a="fail", b="fail", c="ok", d="ok"), a_run(a="ok", b="ok", c="ok", d="fail"))
    assert [difference.test for difference in comparison.find_differences()] == ["a", "b", "d"]
    comparison.add(a_run(a="fail", b="ok", d="ok"), a_run(a="ok", b="ok", d="hung"))
    assert [difference.kind for difference in comparison.differences] == ["ours", "unsteady", "stdlib"]


def test_a_test_that_one_run_does_not_have_differs():
    comparison = outcomes.Comparison(a_run(a="ok"), a_run(a="ok", b="ok"))
    (difference,) = comparison.find_differences()
    assert (difference.test, difference.ours, difference.kind) == ("b", ["absent"], "ours")


def test_a_test_that_a_broken_off_run_did_not_come_to_is_no_difference():
    comparison = outcomes.Comparison(a_run(a="ok"), a_run(a="ok", b="ok"))
    comparison.ours.troubles.append("not at its end after 600 s")
    assert comparison.verdicts() == {"a": "passed"}
    assert comparison.problems() == ["ours: not at its end after 600 s"]


def test_a_run_that_made_no_loop_proves_nothing():
    without = outcomes.Run({"a": outcomes.Outcome("ok")})
    assert outcomes.Comparison(without, a_run(a="ok")).problems() == ["ours: no loop was made"]
    assert "stdlib: no test was run" in outcomes.Comparison(a_run(a="ok"), outcomes.Run()).problems()


# ---- the page

LIBRARY = table.Library(
    "lib", "1.0", "", "lib", (), (), excluded={"t.py::net": "needs a network"}, ours={"t.py::slow": "it is slow"}
)


def found(**changes):
    comparison = outcomes.Comparison(a_run(**{"t.py::slow[1]": "fail", "t.py::b": "ok", "c": "fail"}),
                                     a_run(**{"t.py::slow[1]": "ok", "t.py::b": "ok", "c": "fail"}))  # fmt: skip
    comparison.find_differences()
    return (
        {"library": "lib", "version": "1.0", "python": "3.13.11", "system": "Wine 8.0"}
        | outcomes.result(comparison)
        | changes
    )


def test_the_page_counts_and_gives_the_cause():
    text = page.page((LIBRARY,), {"lib": found()})
    assert "| lib | 1.0 | 3 | 1 | 0 | 1 | 1 | 0 | 0 | 1 |" in text
    assert "- Fails on ours only: `t.py::slow[1]`: it is slow." in text
    assert "- Not run: `t.py::net`: needs a network." in text
    assert "under Wine 8.0, not on Windows" in text


def test_the_page_hides_neither_what_is_not_explained_nor_what_went_wrong():
    unknown = LIBRARY._replace(ours={})
    text = page.page((unknown,), {"lib": found(problems=["ours: not at its end after 900 s"])})
    assert page.UNEXPLAINED in text
    assert "- Incomplete: ours: not at its end after 900 s." in text


def test_the_page_is_the_one_that_the_results_make():
    kept = (RING.parents[1] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert kept == page.page(table.LIBRARIES, page.read_results())


# ---- the table


def test_a_pattern_covers_a_test_with_its_parameters_and_a_class_with_its_methods():
    assert table.covers("t.py::C", "t.py::C::m")
    assert table.covers("t.py::C::m", "t.py::C::m[1]")
    assert not table.covers("t.py::C::m", "t.py::C::more")


@pytest.mark.parametrize("library", table.LIBRARIES, ids=lambda library: library.name)
def test_a_library_is_pinned_with_what_it_needs(library):
    assert re.fullmatch("[0-9a-f]{64}", library.sha256)
    lock = (RING / "locks" / f"{library.name}.txt").read_text().splitlines()
    assert f"{library.name}=={library.version}" in lock
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lock)


@pytest.mark.parametrize("library", table.LIBRARIES, ids=lambda library: library.name)
def test_a_result_is_of_the_version_in_the_table(library):
    result = page.read_results().get(library.name)
    if result is None:
        pytest.skip("not run yet")
    assert result["version"] == library.version
    # No sentence is left over about what does not differ any more.
    for patterns, kind in ((library.ours, "ours"), (library.stdlib, "stdlib")):
        for pattern in patterns:
            covered = [each for each in result["differences"] if table.covers(pattern, each["test"])]
            assert covered, f"{pattern}: nothing differs there"
            assert any(each["kind"] in (kind, "unsteady") for each in covered)
