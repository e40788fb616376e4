"""A process whose loop runs where no signals are: see test_signals.py. Prints "served" when it has.

elsewhere_child.py thread           in a thread that was the first to import threading, as in a service
elsewhere_child.py interpreter      in a sub-interpreter
"""

import _thread
import sys

CODE = f"""
import asyncio, sys
sys.path[:] = {sys.path!r}
import iocp_loop

async def main():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    answer = await reader.readline()
    writer.close()
    server.close()
    await server.wait_closed()
    await asyncio.to_thread(asyncio.get_running_loop().call_soon_threadsafe, print)
    return answer

for _ in range(2):
    with asyncio.Runner(loop_factory=iocp_loop.new_event_loop) as runner:
        assert runner.run(main()) == b"hello\\n"
print("served", flush=True)
"""


def in_thread() -> None:
    assert "threading" not in sys.modules
    over = _thread.allocate_lock()
    over.acquire()

    def body() -> None:
        try:
            exec(CODE, {"__name__": "__main__"})
        finally:
            over.release()

    _thread.start_new_thread(body, ())
    over.acquire()


def in_interpreter() -> None:
    try:
        import _interpreters as interpreters

        inner = interpreters.create()
        failure = interpreters.exec(inner, CODE)
        assert failure is None, failure
    except ImportError:
        import _xxsubinterpreters as interpreters

        inner = interpreters.create(isolated=False)  # An isolated one has no threads before 3.13.
        interpreters.run_string(inner, CODE)
    interpreters.destroy(inner)


{"thread": in_thread, "interpreter": in_interpreter}[sys.argv[1]]()
