"""Child processes: every way to start one, to talk to it, to end it, and to be told of its end."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from .platforms import not_under_wine
from .watched import PATIENCE_S, here, running, until

# Isolated, without site: starts in a third of the time.
PYTHON = (sys.executable, "-I", "-S", "-c")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


class Watching(asyncio.SubprocessProtocol):
    """Keeps what it is told, in order."""

    def __init__(self):
        self.events = []
        self.received = {1: b"", 2: b""}
        self.exited = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def pipe_data_received(self, fd, data):
        self.received[fd] += data

    def pipe_connection_lost(self, fd, exc):
        self.events.append(f"pipe {fd} lost")

    def process_exited(self):
        self.events.append("exited")
        self.exited.set_result(self.transport.get_returncode())

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)


async def python(code, *args, **options):
    return await asyncio.create_subprocess_exec(*PYTHON, code, *args, **options)


async def within(awaitable):
    async with asyncio.timeout(3 * PATIENCE_S):
        return await awaitable


# -- starting --------------------------------------------------------------------------------------------------


async def test_a_program_gets_its_arguments_and_its_output_and_code_come_back():
    process = await python("import sys; print(sys.argv[1:]); sys.exit(7)", "one", "two words", 'a "quote"', **PIPES)
    output, errors = await within(process.communicate())
    assert output.split() == b"['one', 'two words', 'a \"quote\"']".split()
    assert errors == b""
    assert process.returncode == 7
    assert await process.wait() == 7


async def test_a_shell_command_is_run():
    process = await asyncio.create_subprocess_shell("echo hello& exit 3", stdout=subprocess.PIPE)
    output, _ = await within(process.communicate())
    assert (output.strip(), process.returncode) == (b"hello", 3)


async def test_popens_keyword_arguments_reach_the_child(tmp_path):
    startup = subprocess.STARTUPINFO()
    startup.dwFlags |= subprocess.STARTF_USESHOWWINDOW
    startup.wShowWindow = subprocess.SW_HIDE
    process = await python(
        "import os, sys; print(os.getcwd()); print(os.environ['ASKED']); print(sys.stdin.read())",
        cwd=tmp_path,
        env={**os.environ, "ASKED": "for"},
        startupinfo=startup,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
        close_fds=True,
        bufsize=0,
        **PIPES,
    )
    output, errors = await within(process.communicate(b"and read"))
    assert errors == b""
    cwd, asked, read = output.decode().split("\n")[:3]
    assert os.path.samefile(cwd.strip(), tmp_path)
    assert (asked.strip(), read.strip()) == ("for", "and read")


@pytest.mark.parametrize(
    "option", [{"universal_newlines": True}, {"text": True}, {"encoding": "ascii"}, {"bufsize": 1}]
)
async def test_what_asyncio_refuses_is_refused(option):
    with pytest.raises(ValueError):
        await here().subprocess_exec(Watching, *PYTHON, "pass", **option)


async def test_output_goes_where_it_is_sent(tmp_path):
    with (tmp_path / "out").open("w+b") as file:
        process = await python(
            "import sys; print('both'); print('ways', file=sys.stderr)", stdout=file, stderr=asyncio.subprocess.STDOUT
        )
        assert await within(process.wait()) == 0
        file.seek(0)
        assert sorted(file.read().split()) == [b"both", b"ways"]
    process = await python("print('nowhere')", stdout=subprocess.DEVNULL)
    assert await within(process.wait()) == 0


async def test_a_program_that_does_not_exist_is_a_file_not_found_error_and_leaves_nothing():
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec("there is no such program", **PIPES)
    assert not here().outstanding()


async def test_a_protocol_is_told_everything_in_order():
    transport, protocol = await here().subprocess_exec(
        Watching, *PYTHON, "import sys; sys.stdout.write('out'); sys.stderr.write('err')"
    )
    assert transport.get_pid() > 0
    assert transport.get_pipe_transport(0) is not None
    assert transport.get_returncode() is None
    await within(protocol.lost)
    assert protocol.received == {1: b"out", 2: b"err"}
    assert protocol.events[0] == "made"
    assert protocol.events[-1] == "lost"
    assert sorted(protocol.events[1:-1]) == ["exited", "pipe 0 lost", "pipe 1 lost", "pipe 2 lost"]
    assert transport.get_returncode() == 0
    transport.close()


# -- talking ---------------------------------------------------------------------------------------------------


async def test_a_child_that_floods_both_outputs_while_it_is_fed_is_read_whole():
    size = 500_000
    code = (
        "import sys, threading\n"
        "n = int(sys.argv[1])\n"
        "flood = threading.Thread(target=lambda: sys.stderr.buffer.write(b'e' * n))\n"
        "flood.start()\n"
        "sys.stdout.buffer.write(sys.stdin.buffer.read().upper())\n"
        "flood.join()\n"
    )
    process = await python(code, str(size), **PIPES)
    output, errors = await within(process.communicate(b"i" * size))
    assert (output == b"I" * size, errors == b"e" * size, process.returncode) == (True, True, 0)


async def test_a_conversation_line_by_line():
    process = await python("import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)", **PIPES)
    for line in (b"abc", b"defg"):
        process.stdin.write(line + b"\n")
        await within(process.stdin.drain())
        assert (await within(process.stdout.readline())).strip() == line[::-1]
    process.stdin.close()
    assert await within(process.wait()) == 0
    assert await process.stdout.read() == b""
    await process.stderr.read()


async def test_a_child_that_closes_its_pipes_early_is_still_running_until_it_exits():
    code = "import os, sys; os.close(1); os.close(2); sys.stdin.read(); os._exit(5)"
    transport, protocol = await here().subprocess_exec(Watching, *PYTHON, code)
    await until(lambda: {"pipe 1 lost", "pipe 2 lost"} <= set(protocol.events))
    assert transport.get_returncode() is None
    assert "exited" not in protocol.events
    transport.get_pipe_transport(0).close()
    assert await within(protocol.exited) == 5
    await within(protocol.lost)
    transport.close()


async def test_a_child_that_does_not_read_its_input_is_no_error_of_communicate():
    process = await python("import os; os._exit(4)", **PIPES)
    output, errors = await within(process.communicate(b"x" * 1_000_000))
    assert (output, errors, process.returncode) == (b"", b"", 4)


# -- the end ---------------------------------------------------------------------------------------------------


async def test_the_exit_is_reported_on_exit_though_a_grandchild_keeps_the_pipe_open():
    """The grandchild inherits stdout and waits for its own stdin, which the test holds."""
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import sys; sys.stdin.read()'])\n"
        "print('started', flush=True)\n"
    )
    process = await python(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert (await within(process.stdout.readline())).strip() == b"started"
    assert await within(process.wait()) == 0
    rest = asyncio.ensure_future(process.stdout.read())
    await asyncio.sleep(0)
    assert not rest.done()
    process.stdin.close()  # Lets the grandchild go, and with it the pipe.
    assert await within(rest) == b""


@pytest.mark.parametrize("how", ["kill", "terminate", "SIGTERM"])
async def test_a_child_is_ended_by_force(how):
    process = await python(
        "import sys; print(1, flush=True); sys.stdin.read()", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    await within(process.stdout.readline())
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        getattr(process, how)()
    assert await within(process.wait()) == 1  # TerminateProcess(handle, 1)
    assert await within(process.stdout.read()) == b""


async def test_signals_to_a_child_that_has_exited_are_no_crash():
    transport, protocol = await here().subprocess_exec(Watching, *PYTHON, "pass")
    await within(protocol.lost)
    for end in (transport.kill, transport.terminate):
        with pytest.raises(ProcessLookupError):
            end()
    transport.close()


@not_under_wine("GenerateConsoleCtrlEvent knows no CTRL_BREAK_EVENT")
async def test_ctrl_break_reaches_a_child_in_a_group_of_its_own():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGBREAK, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.01)\n"
    )
    process = await python(code, stdout=subprocess.PIPE, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP)
    await within(process.stdout.readline())
    process.send_signal(signal.CTRL_BREAK_EVENT)
    assert await within(process.wait()) == 9


async def test_closing_the_transport_of_a_running_child_kills_it():
    transport, protocol = await here().subprocess_exec(Watching, *PYTHON, "import sys; sys.stdin.read()")
    process = transport.get_extra_info("subprocess")
    transport.close()
    await within(protocol.lost)
    assert process.wait(PATIENCE_S) is not None


async def test_a_cancelled_wait_can_be_repeated():
    process = await python("import sys; sys.stdin.read()", stdin=subprocess.PIPE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await process.wait()
    process.stdin.close()
    assert await within(process.wait()) == 0


async def test_a_hundred_children_at_a_time_each_report_their_own_end():
    async def one(n):
        process = await asyncio.create_subprocess_exec("cmd", "/c", "exit", str(n), stdin=subprocess.DEVNULL)
        return await process.wait()

    assert await within(asyncio.gather(*map(one, range(100)))) == list(range(100))


def test_a_loop_in_another_thread_runs_children(nothing_left):
    """Two loops in two threads, while the main thread runs none."""
    answers = []

    def work(n):
        with running() as loop:

            async def child():
                process = await python(f"print({n})", stdout=subprocess.PIPE)
                output, _ = await within(process.communicate())
                return output.strip(), process.returncode

            answers.append(loop.run_until_complete(child()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE_S)
    assert sorted(answers) == [(b"0", 0), (b"1", 0)]


def test_a_child_may_outlive_its_loop(nothing_left):
    """Closing the loop takes the wait back, and neither ends the child nor waits for it."""
    with running() as loop:

        async def start():
            process = subprocess.Popen((*PYTHON, "import sys; sys.stdin.read(); sys.exit(6)"), stdin=subprocess.PIPE)
            loop.wait_for_handle(int(process._handle))
            await asyncio.sleep(0)
            return process

        process = loop.run_until_complete(start())
        loop._settle = lambda: asyncio.sleep(0)  # The wait is what is left on purpose.
    loop.left.clear()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 6


def test_a_transport_of_a_child_that_outlives_its_loop_warns_once_and_lets_it_live(nothing_left):
    """Nobody closed it: a ResourceWarning says so, and no 'Event loop is closed' noise follows."""
    import gc
    import warnings

    unraisable = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with running() as loop:
                loop._settle = lambda: asyncio.sleep(0)
                start = loop.subprocess_exec(
                    Watching, *PYTHON, "import sys; sys.exit(6)", stdin=None, stdout=None, stderr=None
                )
                transport = loop.run_until_complete(start)[0]
                process = transport.get_extra_info("subprocess")
            loop.left.clear()
            del transport
            gc.collect()
    finally:
        sys.unraisablehook = hook
    assert process.wait(2 * PATIENCE_S) is not None
    assert any("unclosed transport" in str(warning.message) for warning in caught)
    assert not [entry for entry in unraisable if "Event loop is closed" in str(entry.exc_value)]
