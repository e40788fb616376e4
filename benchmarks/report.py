"""docs/benchmarks.md and its plots, from results that run.py and counts.py wrote. Needs matplotlib for the plots.

    python benchmarks/report.py RESULTS.json [MORE.json ...] [--counts COUNTS.json] [--out docs]

Any Python will do, not only the Windows one. Rows of a later file take the place of rows of an earlier one.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from loops import NAMES, TITLES
from rows import LESS_IS_BETTER, ROWS

OURS, *OTHERS = NAMES
COLOURS = {"iocp_loop": "#1f6feb", "proactor": "#8b949e", "winloop": "#d29922", "selector": "#c9d1d9"}
COUNTED = {"echo1": "echo, 1 connection", "echo10": "echo, 10 connections", "echo100": "echo, 100 connections"}
COUNTED |= {"visits": "accept and close", "wake_ups": "wake-up"}
# A ratio within this of 1 is called even: the machine's noise.
EVEN = 0.05


def values(row: dict[str, Any], loop: str, key: str = "value") -> list[float]:
    return [each[key] for each in row["slices"].get(loop, ())]


def advantage(row: dict[str, Any], other: str) -> tuple[float, float, float] | None:
    """How many times better ours is, round by round: median, least, most. Above 1 is good whatever the unit."""
    pairs = zip(values(row, OURS), values(row, other), strict=False)
    less = row["unit"] in LESS_IS_BETTER
    found = sorted((b / a if less else a / b) for a, b in pairs if a > 0 and b > 0)
    return (median(found), found[0], found[-1]) if found else None


def number(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def ratio_cell(row: dict[str, Any], other: str) -> str:
    if other in row["missing"]:
        return "n/a"
    found = advantage(row, other)
    if found is None:
        return "-"
    middle, least, most = found
    text = f"{middle:.2f}x"
    return f"{f'**{text}**' if middle < 1 - EVEN else text} ({least:.2f}-{most:.2f})"


def results_table(rows: dict[str, Any], present: list[str]) -> str:
    lines = []
    for name, row in rows.items():
        figures = [number(median(values(row, loop))) if values(row, loop) else "n/a" for loop in present]
        cells = [ratio_cell(row, loop) for loop in present if loop != OURS]
        lines.append([f"`{name}`", *cells, row["unit"], *figures])
    ratio_titles = [f"ours / {loop}" for loop in present if loop != OURS]
    return table(["row", *ratio_titles, "unit", *present], lines)


def cpu_table(rows: dict[str, Any], present: list[str]) -> str:
    """User-mode CPU of the server process per message, over all rounds together."""
    lines = []
    for name, row in rows.items():
        found = {loop: user_us(row, loop) for loop in present}
        ours = found.get(OURS)
        if row["unit"] not in ("messages/s", "requests/s", "connections/s") or not ours:
            continue
        cells = [f"{found[loop]:.1f}" if found[loop] else "n/a" for loop in present]
        ratios = [f"{ours / found[loop]:.2f}x" if found[loop] else "n/a" for loop in present if loop != OURS]
        lines.append([f"`{name}`", *cells, *ratios])
    return table(["row", *present, *(f"ours / {loop}" for loop in present if loop != OURS)], lines)


def user_us(row: dict[str, Any], loop: str) -> float | None:
    slices = row["slices"].get(loop)
    if not slices or "amount" not in slices[0]:
        return None
    return sum(each["user_us"] * each["amount"] for each in slices) / sum(each["amount"] for each in slices)


def losses(rows: dict[str, Any]) -> str:
    lines = []
    for name, row in rows.items():
        for other in OTHERS:
            found = advantage(row, other)
            if found is not None and found[0] < 1 - EVEN:
                lines.append([f"`{name}`", TITLES[other], f"{found[0]:.2f}x ({found[1]:.2f}-{found[2]:.2f})"])
        if OURS in row["missing"]:
            lines.append([f"`{name}`", "-", f"n/a: {row['missing'][OURS]}"])
    return table(["row", "against", "ours"], lines) if lines else "Nowhere in these rows.\n"


def absences(rows: dict[str, Any]) -> str:
    lines = [f"* `{name}`, {loop}: {why}" for name, row in rows.items() for loop, why in row["missing"].items()]
    return "\n".join(lines) + "\n" if lines else ""


def counts_section(counts: dict[str, Any]) -> str:
    """NT calls, allocations and Python's work, for every loop that was counted."""
    parts = []
    trace, python = counts.get("trace", {}), counts.get("python", {})
    if trace:
        lines = [
            [title, *(f"{trace[loop][work]['nt_calls']:.2f}" for loop in trace)] for work, title in COUNTED.items()
        ]
        parts += ["Entries into the kernel (ntdll's Nt functions) per round trip, connection, wake-up:\n"]
        parts.append(table(["", *trace], lines))
        lines = [
            [title, *(f"{trace[loop][work]['allocations']:.1f}" for loop in trace)] for work, title in COUNTED.items()
        ]
        parts += ["Heap allocations per message, connection, wake-up (`PYTHONMALLOC=malloc`):\n"]
        parts.append(table(["", *trace], lines))
    for kind in ("instructions", "functions"):
        if python:
            lines = [
                [title, *(f"{sum(python[loop][work][kind].values()):.1f}" for loop in python)]
                for work, title in COUNTED.items()
            ]
            parts += [f"Python {kind} per message, connection, wake-up, outside the program itself:\n"]
            parts.append(table(["", *python], lines))
    calls = [
        [COUNTED[work], ", ".join(f"{n} {c:.3g}" for n, c in found.items())] for work, found in counts["seam"].items()
    ]
    parts += ["Ours, calls at the Kernel seam and on the C socket, per message, connection, wake-up:\n"]
    parts.append(table(["", "calls"], calls))
    return "\n".join(parts)


def plot_ratios(rows: dict[str, Any], others: list[str], out: Path) -> None:
    """One picture: how many times faster ours is, row by row."""
    from matplotlib import pyplot as plt

    names = [name for name, row in rows.items() if OURS in row["slices"]]
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(names) + 1.2))
    height = 0.8 / len(others)
    for i, other in enumerate(others):
        found = [advantage(rows[name], other) for name in names]
        at = [place + height * (i - (len(others) - 1) / 2) for place in range(len(names))]
        axes.barh(at, [each[0] if each else 0 for each in found], height, label=TITLES[other], color=COLOURS[other])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25x", "0.5x", "1x", "2x", "4x", "8x"])
    axes.set_xlim(0.2, 12)
    axes.invert_yaxis()
    axes.set_xlabel("iocp_loop is so many times better (median of the rounds; log scale)")
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def plot_echo(rows: dict[str, Any], present: list[str], out: Path) -> None:
    """Echo, messages per second by connections, one panel for each size."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4))
    sizes = {"64": "64 B", "1k": "1 KiB", "64k": "64 KiB"}
    for axes, (size, title) in zip(panels, sizes.items(), strict=True):
        for loop in present:
            points = []
            for connections in (1, 10, 100, 1000):
                row = rows.get(f"echo_{size}_{connections}conns")
                if row and values(row, loop):
                    points.append((connections, median(values(row, loop))))
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=TITLES[loop], color=COLOURS[loop])
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{title} messages", fontsize=9)
        axes.set_xlabel("connections")
    panels[0].set_ylabel("messages per second")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


HOW = """\
Each row: up to {rounds} rounds, each a slice of about {seconds} s for every loop in turn, after {warm} s of warm-up;
the load generator is a process of its own ({generator}). Ratios are taken round by
round; given are their median, least and most. Above 1 is better for ours in every row; what is below 0.95 is bold.
"""


def page(results: dict[str, Any], counts: dict[str, Any] | None) -> str:
    rows, about, options = results["rows"], results["machine"], results["options"]
    present = [loop for loop in NAMES if loop in results["loops"]]
    label = "**Measured under Wine, not on Windows.** A kernel call there costs 10 to 40 µs, which brings all loops "
    label += "nearer to each other; counts and user-mode CPU carry over, messages per second do not.\n"
    versions = ", ".join(f"{TITLES[loop]} {results['loops'][loop]}".strip() for loop in present)
    pinned = ", pinned to one processor" if about["wine"] else ""
    generator = "; ".join(results.get("generator", {}).values()) or "native"
    parts = [
        "# Benchmarks\n",
        "Generated by `benchmarks/report.py`; `python3 tools/dev.py bench --page FOLDER` makes it of your machine.\n",
        (
            f"{about['system']}; {about['python']}; {about['processor']}{pinned}; {results['when']}. "
            f"Loops: {versions}.\n"
        ),
        label if about["wine"] else "",
        "".join(f"* {note}\n" for note in results.get("notes", ())),
        HOW.format(generator=generator, **options),
        "![How many times better ours is](benchmarks-ratios.png)\n\n![Echo](benchmarks-echo.png)\n",
        "## Where we lose\n\n" + losses(rows),
        "## All rows\n\n" + results_table(rows, present),
        "## User-mode CPU of the server, µs per message\n\n" + cpu_table(rows, present),
    ]
    if counts is not None:
        parts.append("## Counts\n\nThe same in every run, on any machine.\n\n" + counts_section(counts))
    if missing := absences(rows):
        parts.append("## Not available\n\n" + missing)
    return "\n".join(part for part in parts if part)


def load(paths: list[Path]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for path in paths:
        one = json.loads(path.read_text())
        rows = results.get("rows", {}) | one["rows"]
        results = {**results, **one, "loops": results.get("loops", {}) | one["loops"], "rows": rows}
    order = {row.name: i for i, row in enumerate(ROWS)}
    results["rows"] = dict(sorted(results["rows"].items(), key=lambda item: order.get(item[0], len(order))))
    return results


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    results = load(options.results)
    counts = json.loads(options.counts.read_text()) if options.counts else None
    options.out.mkdir(exist_ok=True)
    text = page(results, counts)
    (options.out / "benchmarks.md").write_text(text, encoding="utf-8", newline="\n")
    present = [loop for loop in NAMES if loop in results["loops"]]
    plot_ratios(results["rows"], [loop for loop in OTHERS if loop in present], options.out / "benchmarks-ratios.png")
    plot_echo(results["rows"], present, options.out / "benchmarks-echo.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
