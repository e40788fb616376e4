"""The comparison with CPython's suite as text; and a command line for it.

    python suite_report.py [--stomp] [--loop ours|hybrid] [MODULE[:TEST] ...]

asks the standard library's loop about every test, not only about those that ours did not pass.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable

from suite_runner import Comparison, Outcomes, Request, compare
from suite_tables import MODULES

_HEADINGS = ("module", "loop", "tests", "ok", "skip", "bad", "stdlib: bad", "worse", "better", "met the loop")


def _counts(outcomes: Outcomes) -> tuple[int, int, int]:
    words = Counter(outcome.word for outcome in outcomes.values())
    good = words["ok"] + words["expected failure"]
    return good, words["skip"], words.total() - good - words["skip"]


def _row(comparison: Comparison) -> tuple[str, ...]:
    request = comparison.request
    good, skipped, bad = _counts(comparison.ours)
    numbers = (len(comparison.ours), good, skipped, bad, _counts(comparison.stdlib)[2])
    worse, better = len(comparison.worse), len(comparison.better)
    loop = request.loop + (" stomp" if request.stomp else "")
    return (request.module, loop, *map(str, (*numbers, worse, better, comparison.made("tested"))))


def table(comparisons: Iterable[Comparison]) -> str:
    """One row per module, loop and mode; below, every test that is not good on both loops, skips left out."""
    comparisons = list(comparisons)
    rows = [_HEADINGS, *map(_row, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    for comparison in comparisons:
        for verdict, names in (
            ("worse", comparison.worse),
            ("both", comparison.both_bad),
            ("better", comparison.better),
        ):
            for name in names:
                theirs = comparison.stdlib.get(name)
                pair = f"{comparison.ours[name].word} / {theirs.word if theirs else '-'}"
                lines.append(f"  {verdict}: {comparison.request.module}.{name}: {pair}")
    return "\n".join(lines)


def describe(comparison: Comparison) -> str:
    """Every test that is worse on our loop, with what it said."""
    request = comparison.request
    parts = [f"{request.module} on {request.loop}{' in stomp mode' if request.stomp else ''}:"]
    for name, (mine, theirs) in comparison.worse.items():
        parts.append(f"{name}: {mine.word}; on the standard library's loop: {theirs.word}\n{mine.detail}")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stomp", action="store_true", help="in stomp mode")
    parser.add_argument("--loop", choices=("ours", "hybrid"), default="ours")
    parser.add_argument("modules", nargs="*", metavar="MODULE[:TEST]")
    options = parser.parse_args(arguments)
    comparisons = []
    for name in options.modules or [module.name for module in MODULES if options.loop in module.loops]:
        module, _, test = name.partition(":")
        only = frozenset([test]) if test else None
        comparison = compare(Request(module, options.loop, options.stomp, only), whole=True)
        comparisons.append(comparison)
        print(_row(comparison), flush=True)
        if comparison.worse:
            print(describe(comparison), flush=True)
    print(table(comparisons))
    return 1 if any(comparison.worse for comparison in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
