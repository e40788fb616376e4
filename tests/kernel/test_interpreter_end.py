"""Programs that end in every state a loop can be in: by exit status, by what they say on stderr, and in bounded time.

Each is a process of its own. It prints nothing but what asyncio itself would say: at most a ResourceWarning, and with
`-W ignore::ResourceWarning` nothing at all.
"""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
# From its last line to its end a program takes some hundredths of a second; a loop that waits for what never comes gives
# up after five (CLOSE_TIMEOUT_S).
SLOW_S = 4.5

BEGIN = """
    import asyncio, ctypes, os, socket, sys, threading, time
    import iocp_loop

    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.CreateEventW.restype = ctypes.c_void_p
    kernel32.SetEvent.argtypes = [ctypes.c_void_p]
    event = kernel32.CreateEventW(None, True, False, None)
    loop = iocp_loop.new_event_loop()


    def turn(count=3):
        for _ in range(count):
            loop.run_until_complete(asyncio.sleep(0))


    async def connection():
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        return server, *await asyncio.open_connection(*server.sockets[0].getsockname())
"""

END = """
print("the last line", flush=True)
"""

# What the program has done when its last line is over; the loop is never closed unless it says so.
STATES = {
    "nothing was ever run": "",
    "it was closed": "loop.close()",
    "a wait for a handle that is signalled as the program ends": """
        waiting = loop.wait_for_handle(event)
        turn()
        kernel32.SetEvent(event)
    """,
    "a wait for a handle that is signalled while the interpreter ends": """
        class AtTheEnd:
            def __del__(self, signal=kernel32.SetEvent, event=event, sleep=time.sleep):
                signal(event)
                sleep(0.2)  # The thread has the time to see it, and must not get the better of the end.

        sys.at_the_end = AtTheEnd()
        waiting = loop.wait_for_handle(event)
        turn()
    """,
    "a wait for a handle that is never signalled": """
        waiting = loop.wait_for_handle(event)
        turn()
    """,
    "a wait whose time is up as the program ends": """
        waiting = [loop.wait_for_handle(event, 0.001 * n) for n in range(100)]
        turn()
    """,
    "a hundred waits, and every second one signalled": """
        events = [kernel32.CreateEventW(None, True, False, None) for _ in range(100)]
        waits = [loop.wait_for_handle(each) for each in events]
        turn()
        for each in events[::2]:
            kernel32.SetEvent(each)
    """,
    "a wait of a loop that was dropped": """
        waiting = loop.wait_for_handle(event)
        turn()
        del loop, waiting
    """,
    "a wait of a loop that the interpreter drops last": """
        waiting = loop.wait_for_handle(event)
        turn()
        sys.kept_to_the_end = loop
    """,
    "a subprocess that runs on": """
        code = "import sys; sys.stdin.read()"
        process = loop.run_until_complete(
            asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", code, stdin=asyncio.subprocess.PIPE)
        )
    """,
    "a connection, its server and a datagram endpoint": """
        kept = loop.run_until_complete(connection())
        datagrams = loop.run_until_complete(
            loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        )
    """,
    "a task in the middle of a read": """
        server, reader, writer = loop.run_until_complete(connection())
        task = loop.create_task(reader.read())
        turn()
        task._log_destroy_pending = False  # asyncio's own word about it
    """,
    "a watcher and a pending sock_recv": """
        one, other = socket.socketpair()
        for each in (one, other):
            each.setblocking(False)
        loop.add_reader(one, print)
        task = loop.create_task(loop.sock_recv(other, 10))
        turn()
        task._log_destroy_pending = False
    """,
    "a blocking read of standard input": """
        loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, sys.stdin))
        turn()
    """,
    "a blocking read, and a loop that the interpreter drops last": """
        loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, sys.stdin))
        turn()
        sys.kept_to_the_end = loop
    """,
    "a loop that runs in a daemon thread": """
        kept = loop.create_task(asyncio.sleep(3600))
        kept._log_destroy_pending = False
        threading.Thread(target=loop.run_forever, daemon=True).start()
        started = threading.Event()
        loop.call_soon_threadsafe(started.set)
        started.wait()
    """,
    "a loop that runs in a daemon thread, with a wait for a handle and a connection": """
        async def work():
            kept.append(await connection())
            kept.append(loop.wait_for_handle(event))
            started.set()

        kept, started = [], threading.Event()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(work(), loop)
        started.wait()
        kernel32.SetEvent(event)
    """,
    "a loop that another thread calls without a pause": """
        threading.Thread(target=loop.run_forever, daemon=True).start()


        def call():
            while True:
                loop.call_soon_threadsafe(int)


        threading.Thread(target=call, daemon=True).start()
        time.sleep(0.2)  # Not for an order: so that it is in full swing.
    """,
    "a loop that was left by SystemExit": """
        async def main():
            global waiting, kept
            waiting = loop.wait_for_handle(event)
            kept = await connection()
            sys.exit(0)

        print("the last line", flush=True)
        loop.run_until_complete(main())
    """,
    "a loop that is used and closed by an atexit callback": """
        import atexit


        def at_exit():
            loop.run_until_complete(asyncio.sleep(0.001))
            loop.close()


        atexit.register(at_exit)
        waiting = loop.wait_for_handle(event)
        turn()
    """,
}


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,  # open to the end: nothing to read, and no end of it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(code: str) -> tuple[int, str, float]:
    """Exit status and stderr of a program, and the seconds from its last line to its end."""
    child = start([sys.executable, "-W", "ignore::ResourceWarning", "-X", "faulthandler", "-c", code + END])
    try:
        child.stdout.readline()
        started = time.monotonic()
        # communicate() would close standard input.
        status = child.wait(PATIENCE_S)
        seconds = time.monotonic() - started
        said = child.stderr.read().decode()
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            stream.close()
    return status, said, seconds


@pytest.mark.parametrize("state", STATES)
def test_a_program_ends_cleanly_and_soon_when(state):
    status, said, seconds = run(textwrap.dedent(BEGIN) + textwrap.dedent(STATES[state]))
    assert (status, said) == (0, "")
    assert seconds < SLOW_S
