"""Where the microseconds of an echoed message go: docs/profile.md.

    python3 tools/dev.py python benchmarks/hotpath.py [--out docs/profile.md]

No sampling: a sampler would say which line is slow on a machine that is busy with something else. Steps of the path
are timed alone, in a tight loop, best of several. The user-mode time of a whole message is divided among the rooms by
counted instructions: an estimate, because an instruction that calls into ctypes counts as one like any other.
"""

import argparse
import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counts
import machine
import pingpong

REPEATS = 5
LOOPS = 500
SIZE = 1024
MESSAGE = bytes(SIZE)


def best_us(work: Callable[[], Any], loops: int = LOOPS) -> float:
    """Microseconds of one call of `work`, the best of several: the rest is other people's noise."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(loops):
            work()
        found.append((time.perf_counter() - started) / loops * 1e6)
    return min(found)


def whole_us(connections: int) -> tuple[float, float]:
    """Microseconds of one echoed message, wall clock and user mode, both ends on our loop."""
    from iocp_loop import IocpEventLoop

    count = 20_000  # CPU times come in steps of 10 or 15.6 ms
    marks: list[tuple[float, float]] = []
    best = (1e9, 1e9)
    for _ in range(2):
        marks.clear()
        loop = IocpEventLoop()
        take = lambda: marks.append((time.perf_counter(), os.times().user))  # noqa: E731
        try:
            loop.run_until_complete(pingpong.echo(connections, SIZE, count // 2, take, take))
        finally:
            loop.close()
        wall, user = ((marks[1][i] - marks[0][i]) / count * 1e6 for i in range(2))
        best = (min(best[0], wall), min(best[1], user))
    return best


class Steps:
    """The steps of the path, on a connection of its own."""

    def __init__(self) -> None:
        from iocp_loop import IocpEventLoop

        self.loop = IocpEventLoop()
        self.ours, self.peer = socket.socketpair()
        self.empty_ours, self.empty_peer = socket.socketpair()
        for sock in (self.ours, self.peer, self.empty_ours, self.empty_peer):
            sock.setblocking(False)

    def close(self) -> None:
        self.loop.close()
        for sock in (self.ours, self.peer, self.empty_ours, self.empty_peer):
            sock.close()

    def measure(self) -> list[tuple[str, str, float]]:
        """(step, kind, microseconds); kind is kernel, ctypes or C."""
        kernel = self.loop.proactor.kernel
        buffer = (ctypes.c_char * 2048)()
        return [
            ("`socket.send` of 1 KiB, and `socket.recv` of it", "2 kernel calls", best_us(self._send_and_receive)),
            ("`WSARecv` that pends, `CancelIoEx`, its packet", "3 kernel calls", self._pend_us()),
            ("`GetQueuedCompletionStatusEx` of an empty port", "1 kernel call", best_us(lambda: self._poll(0))),
            ("a ctypes call with 7 prepared arguments, as `WSARecv`'s", "ctypes", self._call_us(7)),
            ("a ctypes call with 4 prepared arguments", "ctypes", self._call_us(4)),
            ("a ctypes call with 1 converted argument", "ctypes", best_us(lambda: kernel.RtlNtStatusToDosError(0))),
            ("`ctypes.get_last_error`", "ctypes", best_us(kernel.last_error, 20_000)),
            ("`buffer[:1024]`, the bytes object for the protocol", "C", best_us(lambda: buffer[:SIZE], 20_000)),
            ("a Python function that does nothing", "Python", best_us(_nothing, 20_000)),
        ]

    def _poll(self, timeout_ms: int) -> None:
        self.loop.proactor.poll(timeout_ms)

    def _send_and_receive(self) -> None:
        self.ours.send(MESSAGE)
        while True:
            try:
                self.peer.recv(SIZE)
                return
            except BlockingIOError:
                # Not there yet: the machine is busy.
                pass

    def _pend_us(self) -> float:

        from iocp_loop._handles._opening import open_socket

        proactor = self.loop.proactor
        endpoint = open_socket(proactor, self.empty_peer)
        operation = endpoint.receive_operation(lambda *_: None, (ctypes.c_char * 2048)())

        def once() -> None:
            proactor.submit(operation)
            proactor.cancel(operation)
            while operation.pending:
                proactor.poll(0)
            proactor.settled.clear()

        return best_us(once, 300)

    def _call_us(self, count: int) -> float:
        """What ctypes itself takes: the C library's `labs`, which ignores all but its first argument."""
        from iocp_loop._win32.prototypes import argument

        function = type(self.loop.proactor.kernel.WSARecv)(("labs", ctypes.CDLL("ucrtbase")))
        arguments = tuple(argument(ctypes.c_size_t, i) for i in range(count))
        return best_us(lambda: function(*arguments), 20_000)


def _nothing() -> None:
    pass


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def rooms_table(found: dict[str, dict[str, float]], python_us: float) -> str:
    """Instructions by room, and their part of the time that is Python's."""
    instructions = found["instructions"]
    total = sum(instructions.values())
    rows = []
    for room, number in instructions.items():
        functions = found["functions"].get(room, 0)
        calls = found["C calls"].get(room, 0)
        rows.append(
            (f"`{room}`", f"{functions:.2f}", f"{number:.1f}", f"{calls:.2f}", f"{python_us * number / total:.2f}")
        )
    everything = [sum(found[kind].values()) for kind in ("functions", "instructions", "C calls")]
    rows.append(("all", f"{everything[0]:.2f}", f"{everything[1]:.1f}", f"{everything[2]:.2f}", f"{python_us:.2f}"))
    return table(("room", "functions", "instructions", "C calls", "µs"), rows)


def page() -> str:
    steps = Steps()
    try:
        measured = steps.measure()
    finally:
        steps.close()
    about = machine.describe()
    parts = [
        "# Where the time goes\n",
        "Generated by `python3 tools/dev.py python benchmarks/hotpath.py --out docs/profile.md`.\n",
        f"{about['system']}, {about['python']}, {about['processor']}, one processor. "
        + ("**Wine, not Windows**: kernel calls cost what wineserver costs.\n" if about["wine"] else ""),
        "\n## The steps, each alone\n\n1 KiB, best of several runs in a tight loop.\n",
        table(("step", "kind", "µs"), [(what, kind, f"{us:.2f}") for what, kind, us in measured]),
        "\n## An echoed message\n\nBoth ends on one loop; one message received and one sent is one message echoed.\n",
    ]
    for connections in (1, 100):
        wall, user = whole_us(connections)
        found = counts.python_counts("iocp_loop", f"echo{connections}")
        parts.append(
            f"\n### {connections} connection{'s' if connections > 1 else ''}: {wall:.1f} µs, "
            f"{user:.1f} µs of them in user mode\n\n"
            "The user-mode time (a clock of 10 ms steps or more, over 20,000 messages), divided among the rooms by "
            "counted instructions: an estimate; time in ctypes and in the DLLs is in it.\n\n"
        )
        parts.append(rooms_table(found, user))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    text = page()
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
