"""Benchmarks: our loop, asyncio's and winloop, interleaved in one run.

    python3 tools/dev.py bench [ROW ...] [--loops a,b] [--rounds N] [--seconds S] [--warm S] [--out FILE] [--list]

ROW is a name or its beginning; `--quick` is the two rows that tell most.

Each loop's server is a process of its own. All servers of a row stand ready at the same time, and the load generator
goes round, A B C A B C, a slice of a second each: whatever else the machine does falls on all loops alike, which it
would not if each measurement had to wait for a process to start. An idle server costs the others nothing. Each row has
fresh processes, so that one row's garbage is not the next one's burden. Ratios are taken within a round; their median
is what counts.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import loops
import machine
from generator import Generator, GeneratorError
from rows import LESS_IS_BETTER, MILLISECONDS, PER_CONNECTION, QUICK, ROWS, Row

HERE = Path(__file__).parent
# The row of accepted sockets without a loop, in the memory rows.
BARE = "bare"
MEMORY_ROUNDS = 2
MEMORY_WAIT_S = 60.0
# A connection is idle when nothing has come for so long: ours has given its receive buffer back by then.
IDLE_S = 12.0


# What a server says when its clients vanish is of no interest, unless somebody debugs it.
ERRORS = None if "--verbose" in sys.argv else subprocess.DEVNULL


class HostError(Exception):
    """The process under test could not do it; the text says why."""


class Host:
    """A process with one loop and one scenario in it; see host.py."""

    def __init__(self, loop_name: str, scenario: str) -> None:
        command = [sys.executable, str(HERE / "host.py"), loop_name, scenario]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=ERRORS, text=True
        )
        self.first = self._read()
        if "unsupported" in self.first:
            raise HostError(self.first["unsupported"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HostError(f"the server ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise HostError(f"the server is gone: {exc}") from exc
        answer = self._read()
        if "error" in answer:
            raise HostError(answer["error"])
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has died already.
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bench:
    """One run: its options, its load generators, its results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.generators: dict[bool, Generator] = {}

    def generator(self, row: Row) -> Generator:
        if row.python_load not in self.generators:
            self.generators[row.python_load] = Generator(native=not row.python_load)
        return self.generators[row.python_load]

    def close(self) -> None:
        for generator in self.generators.values():
            generator.close()

    def measure(self, row: Row, names: list[str]) -> dict[str, Any]:
        """All rounds of one row: per loop a list of slices, or why there are none."""
        if row.unit == PER_CONNECTION:
            return self._measure_memory(row, names)
        hosts: dict[str, Host] = {}
        slices: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        missing: dict[str, str] = {}
        for name in names:
            try:
                hosts[name] = Host(name, row.scenario)
            except HostError as exc:
                missing[name] = str(exc)
        try:
            for _ in range(self.options.rounds):
                for name in names:
                    if name in hosts and name not in missing:
                        try:
                            slices[name].append(self._slice(row, hosts[name]))
                        except (HostError, GeneratorError) as exc:
                            missing[name] = str(exc)
        finally:
            for host in hosts.values():
                host.close()
        return {"unit": row.unit, "slices": {n: s for n, s in slices.items() if n not in missing}, "missing": missing}

    def _measure_memory(self, row: Row, names: list[str]) -> dict[str, Any]:
        """A fresh process each time: one that has held connections before would take its own freed memory again."""
        slices: dict[str, list[dict[str, float]]] = {}
        missing: dict[str, str] = {}
        for name in (*names, BARE):
            try:
                rounds = range(min(self.options.rounds, MEMORY_ROUNDS))
                slices[name] = [{"value": self._held_bytes(row, name), "user_us": 0.0} for _ in rounds]
            except (HostError, GeneratorError) as exc:
                missing[name] = str(exc)
        return {"unit": row.unit, "slices": slices, "missing": missing}

    def _held_bytes(self, row: Row, name: str) -> float:
        host = Host("proactor", "bare") if name == BARE else Host(name, row.scenario)
        try:
            verb = "hold" if name == BARE else row.verb
            order = f"{verb} 127.0.0.1 {host.first['port']} {{}} 0 0 0"
            generator = self.generator(row)
            # What the first connection brings with it, such as modules, belongs to none of them.
            generator.order(order.format(1))
            before = memory_with(host, 1)
            generator.order("drop - 0 0 0 0 0")
            if name != BARE:
                memory_with(host, 0)
            generator.order(order.format(row.connections))
            memory_with(host, row.connections + (name == BARE))
            time.sleep(IDLE_S)
            after = memory_with(host, row.connections + (name == BARE))
            generator.order("drop - 0 0 0 0 0")
        finally:
            host.close()
        return (after - before) / row.connections

    def _slice(self, row: Row, host: Host) -> dict[str, float]:
        if not row.verb:
            return measure_itself(row, host)
        begun: dict[str, float] = {}
        order = f"{row.verb} 127.0.0.1 {host.first['port']} {row.connections} {row.what}"
        text = f"{order} {self.options.warm} {self.options.seconds}"
        result = self.generator(row).order(text, lambda: begun.update(host.ask("times")))
        ended = host.ask("times")
        amount = result["bytes"] if row.unit == "bytes/s" else result["messages"]
        if not amount:
            raise GeneratorError("nothing came back")
        # Of a message, or of a mebibyte.
        parts = amount / 2**20 if row.unit == "bytes/s" else amount
        cpu = {f"{kind}_us": (ended[kind] - begun[kind]) / parts * 1e6 for kind in ("user", "system")}
        latency = {key: result[key] for key in ("p50_us", "p90_us", "p99_us", "max_us")}
        return {"value": amount / result["seconds"], "amount": amount, **cpu, **latency}


def memory_with(host: Host, connections: int) -> int:
    """The host's memory once it has that many connections."""
    deadline = time.monotonic() + MEMORY_WAIT_S
    while True:
        answer = host.ask("memory")
        if answer["connections"] == connections:
            return answer["bytes"]
        if time.monotonic() > deadline:
            raise HostError(f"{answer['connections']} of {connections} connections after {MEMORY_WAIT_S:.0f} s")
        time.sleep(0.2)


def measure_itself(row: Row, host: Host) -> dict[str, float]:
    before = host.ask("times")
    result = host.ask("run")
    after = host.ask("times")
    cpu = {f"{kind}_us": (after[kind] - before[kind]) / result["count"] * 1e6 for kind in ("user", "system")}
    value = result["seconds"] * 1e3 if row.unit == MILLISECONDS else result["count"] / result["seconds"]
    return {"value": value, "amount": result["count"], **cpu}


def ratios(measured: dict[str, Any], ours: str, other: str, key: str = "value") -> list[float]:
    """Ours against the other, round by round."""
    slices = measured["slices"]
    pairs = zip(slices.get(ours, ()), slices.get(other, ()), strict=False)
    return [a[key] / b[key] for a, b in pairs if b[key]]


def figure(number: float) -> str:
    """Three digits are enough, and never fewer."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def print_row(name: str, measured: dict[str, Any], names: list[str]) -> None:
    ours = names[0]
    unit = measured["unit"]
    print(f"\n{name}  ({unit}{', less is better' if unit in LESS_IS_BETTER else ''})")
    for loop in (*names, BARE):
        if loop not in measured["slices"] and loop not in measured["missing"]:
            continue
        if loop in measured["missing"]:
            print(f"  {loop:10} n/a: {measured['missing'][loop]}")
            continue
        slices = measured["slices"][loop]
        values = sorted(each["value"] for each in slices)
        against = ""
        found = sorted(ratios(measured, ours, loop)) if loop != ours else []
        if found:
            against = f"  ours {median(found):5.2f}x ({found[0]:.2f}-{found[-1]:.2f})"
        user = median(each["user_us"] for each in slices)
        spread = f"({figure(values[0])}-{figure(values[-1])})"
        print(f"  {loop:10} {figure(median(values)):>14} {spread}  user {user:8.3f} us{against}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--loops", default=",".join(loops.NAMES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the servers print")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(arguments)


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    wanted = options.rows or (QUICK if options.quick else [""])
    return [row for row in ROWS if any(row.name.startswith(beginning) for beginning in wanted)]


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    rows = chosen_rows(options)
    if options.list or not rows:
        print("\n".join(row.name for row in ROWS))
        return 0 if options.list else 2
    names = [name for name in options.loops.split(",") if name]
    absent = {name: why for name in names if (why := loops.why_missing(name))}
    present = [name for name in names if name not in absent]
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "when": time.strftime("%Y-%m-%d"),
        "rows": {},
        "absent": absent,
    }
    results["loops"] = {name: loops.version(name) for name in present}
    results["options"] = {"rounds": options.rounds, "seconds": options.seconds, "warm": options.warm}
    print("  ".join(f"{key}: {text}" for key, text in results["machine"].items()))
    for name, why in absent.items():
        print(f"{name} is missing: {why}")
    bench = Bench(options)
    try:
        for row in rows:
            results["rows"][row.name] = measured = bench.measure(row, present)
            print_row(row.name, measured, present)
            results["generator"] = {str(kind): one.title for kind, one in bench.generators.items()}
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        bench.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
