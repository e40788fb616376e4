"""Scenarios that need no load generator: each does its work once per `run` and says how much, and how long it took."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ECHO_LINES = (
    "import sys\nfor line in sys.stdin.buffer:\n    sys.stdout.buffer.write(line)\n    sys.stdout.buffer.flush()\n"
)
HERE = Path(__file__).parent


class Micro:
    """`work` does `count` things."""

    count = 0

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    async def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        seconds = await self.work()
        # A scenario that measures elsewhere, such as in a child, says so itself.
        return {"count": self.count, "seconds": time.perf_counter() - started if seconds is None else seconds}

    async def work(self) -> float | None:
        raise NotImplementedError


class CallSoon(Micro):
    """100 callbacks in a turn."""

    count = 50_000

    async def work(self) -> None:
        for _ in range(self.count // 100):
            for _ in range(100):
                self.loop.call_soon(_nothing)
            await asyncio.sleep(0)


class LoopTurn(Micro):
    """One callback in a turn, which asks for the next one: what a turn of the loop costs, with its look at the port."""

    count = 5_000

    async def work(self) -> None:
        done = self.loop.create_future()
        left = self.count

        def again() -> None:
            nonlocal left
            left -= 1
            if left:
                self.loop.call_soon(again)
            else:
                done.set_result(None)

        again()
        await done


class CallSoonThreadsafe(Micro):
    """Another thread calls as fast as it can."""

    count = 10_000

    async def work(self) -> None:
        done = self.loop.create_future()
        left = self.count

        def called() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)

        def call() -> None:
            for _ in range(self.count):
                self.loop.call_soon_threadsafe(called)

        thread = threading.Thread(target=call)
        thread.start()
        await done
        thread.join()


class ThreadWake(Micro):
    """Another thread calls, and waits until it was heard: every call finds the loop asleep."""

    count = 1_000

    async def work(self) -> None:
        heard = threading.Semaphore(0)

        def call() -> None:
            for _ in range(self.count):
                self.loop.call_soon_threadsafe(heard.release)
                heard.acquire()

        await self.loop.run_in_executor(None, call)


class Timers(Micro):
    """100,000 timers due within a tenth of a second, half of them cancelled before they are."""

    count = 100_000

    async def work(self) -> None:
        done = self.loop.create_future()
        left = self.count // 2

        def due() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)

        handles = [self.loop.call_later(0.1 * (i * 7919 % 1000) / 1000, due) for i in range(self.count)]
        for handle in handles[::2]:
            handle.cancel()
        await done


class TaskSwitch(Micro):
    """100 tasks that yield in turn."""

    count = 50_000

    async def work(self) -> None:
        async def turn() -> None:
            for _ in range(self.count // 100):
                await asyncio.sleep(0)

        await asyncio.gather(*(turn() for _ in range(100)))


class SubprocessPingPong(Micro):
    """A line of 64 bytes to a child's standard input, and back from its standard output."""

    count = 500

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        pipe = asyncio.subprocess.PIPE
        self.child = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", ECHO_LINES, stdin=pipe, stdout=pipe
        )

    async def work(self) -> None:
        line = b"x" * 63 + b"\n"
        reader, writer = self.child.stdout, self.child.stdin
        assert reader is not None and writer is not None
        for _ in range(self.count):
            writer.write(line)
            if await reader.readline() != line:
                raise RuntimeError("wrong bytes came back")


class PipeServer(asyncio.Protocol):
    """Echo on a named pipe."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class PipePingPong(Micro):
    """64 bytes through a named pipe and back, both ends on the loop."""

    count = 1_000

    async def start(self, loop: Any) -> None:
        self.loop = loop
        address = rf"\\.\pipe\iocp_loop-bench-{id(self):x}"
        await loop.start_serving_pipe(PipeServer, address)
        self.reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self.reader)
        self.transport, _ = await loop.create_pipe_connection(lambda: protocol, address)

    async def work(self) -> None:
        message = b"x" * 64
        for _ in range(self.count):
            self.transport.write(message)
            if await self.reader.readexactly(64) != message:
                raise RuntimeError("wrong bytes came back")


class StartUp(Micro):
    """In a fresh process: import the loop's module, make a loop, run nothing on it, close it."""

    count = 1

    async def start(self, _loop: asyncio.AbstractEventLoop) -> None:
        # What is imported is the module our own loop came from.
        self.name = sys.argv[1]

    async def work(self) -> float:
        # Nothing else runs on this loop, so it may wait.
        command = [sys.executable, str(HERE / "start_up.py"), self.name]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: ASYNC221


def _nothing() -> None:
    pass


MICRO: dict[str, Any] = {
    "call_soon": CallSoon,
    "loop_turn": LoopTurn,
    "call_soon_threadsafe": CallSoonThreadsafe,
    "thread_wake": ThreadWake,
    "timers_100k": Timers,
    "task_switch": TaskSwitch,
    "subprocess_ping_pong": SubprocessPingPong,
    "pipe_ping_pong": PipePingPong,
    "start_up": StartUp,
}
