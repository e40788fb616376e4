"""Experiments: questions about the system that only a run on it can decide, each tried on handles of its own.

The package was written from published knowledge about Windows, and tested under Wine. Where the two are said to differ,
the code is right in either case, and the tests' fake kernel plays the harder one (docs/windows.md). An experiment finds
out which case it is. Its answer is one of a few words, and it raises nothing but KeyboardInterrupt.

The loop makes no experiments. They use the loopback only, so nothing leaves this machine.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import NoReturn

from .._core._arena import HeapArena
from .._core._operation import OverlappedEx, ignore
from .._core._proactor import Proactor
from .._handles import _pipes
from .._handles._base import StreamHandle
from .._handles._blocking import console_mode
from .._handles._opening import open_socket
from .._win32.constants import FileFlag, Status
from .._win32.kernel import Win32Kernel, win32_kernel
from .._win32.prototypes import bind
from .._win32.types import DWORD
from . import _timing
from ._answers import Answer, Experiment
from ._probes import connected, first_result

LARGE = 16 << 20  # bytes: more than a kernel takes at once, unless it takes any amount
SMALL = 64 << 10  # bytes: so few that every kernel takes them
ROUNDS = 200
PATIENCE_S = 2.0
LOCK_S = 0.5  # How long a query of a handle may take before its file object counts as locked.
AT_ONCE_S = 0.5
CONSOLE_S = 20.0  # The time-out for a child with a console of its own.


@contextmanager
def _proactor() -> "Generator[Proactor]":
    """A proactor that cancels an operation only once, on every system."""
    kernel = win32_kernel()
    kernel.forgets_cancels = False
    proactor = Proactor(arena=HeapArena(), kernel=kernel)
    try:
        yield proactor
    finally:
        proactor.close()


def _receive(proactor: Proactor, handle: StreamHandle) -> OverlappedEx:
    return handle.receive_operation(ignore, proactor.arena.buffer(16))


def _cancelled(proactor: Proactor, handle: StreamHandle) -> bool:
    """Submit a receive and cancel it. Returns whether its packet reports it as cancelled."""
    receive = _receive(proactor, handle)
    proactor.submit(receive)
    proactor.cancel(receive)
    settled = first_result(proactor)
    return settled is not None and settled[1] == Status.CANCELLED


# -- how connections end -------------------------------------------------------------------------------------------


def _end_of(sock: socket.socket, size: int) -> Answer:
    """How a peer sees the end of a connection that has sent `size` bytes."""
    sock.settimeout(PATIENCE_S)
    received = 0
    try:
        while data := sock.recv(1 << 16):
            received += len(data)
    except ConnectionError as exc:
        return Answer("resets", f"{type(exc).__name__} after {received:,} of {size:,} bytes")
    return Answer("ends" if received == size else "ends early", f"{received:,} of {size:,} bytes")


def close_after_a_cancelled_receive(*, shut_down: bool) -> Answer:
    """Cancel a receive, send, close: does the peer receive everything, and the end of the stream?"""
    with _proactor() as proactor, connected(socket.AF_INET) as (here, there):
        endpoint = open_socket(proactor, here)
        if not _cancelled(proactor, endpoint):
            return Answer("not tried", "the receive was not cancelled")
        here.sendall(bytes(SMALL))
        if shut_down:
            here.shutdown(socket.SHUT_WR)
        proactor.forget(endpoint)
        here.close()
        return _end_of(there, SMALL)


def close_with_bytes_unread() -> Answer:
    """Close a socket with unread data."""
    with connected(socket.AF_INET) as (here, there):
        there.sendall(b"unread")
        time.sleep(0.05)  # Until it has arrived over the loopback.
        here.close()
        return _end_of(there, 0)


# -- sending -------------------------------------------------------------------------------------------------------


def send_of_any_size() -> Answer:
    """Send more than any buffer holds in one call, to a peer that does not read."""
    with connected(socket.AF_INET) as (here, _there):
        taken = here.send(bytes(LARGE))
    return Answer("whole" if taken == LARGE else "in part", f"{taken:,} of {LARGE:,} bytes")


# -- cancelling ----------------------------------------------------------------------------------------------------


def cancel_of_one_receive() -> Answer:
    """Cancel one of two receives that wait on one TCP socket: what happens to the other?"""
    with _proactor() as proactor, connected(socket.AF_INET) as (here, _there):
        endpoint = open_socket(proactor, here)
        first, second = _receive(proactor, endpoint), _receive(proactor, endpoint)
        proactor.submit(first)
        proactor.submit(second)
        proactor.cancel(second)
        ended: list[OverlappedEx] = []
        while (settled := first_result(proactor, 0.3)) is not None:
            ended.append(settled[0])
        answers = {(True, True): "both end", (False, True): "one ends", (False, False): "none ends"}
        return Answer(answers.get((first in ended, second in ended), "the other ends"))


def plain_cancels() -> Answer:
    """Cancel receives once each: does every packet come? And is it there when CancelIoEx returns?"""
    forgotten = later = 0
    with _proactor() as proactor, connected(socket.AF_INET) as (here, _there):
        endpoint = open_socket(proactor, here)
        receive = _receive(proactor, endpoint)
        for _ in range(ROUNDS):
            proactor.submit(receive)
            proactor.cancel(receive)
            proactor.poll(0)
            later += not proactor.settled
            if first_result(proactor, 0.5) is None:
                forgotten += 1
                proactor.cancel_all(endpoint)
                if first_result(proactor) is None:
                    break
        detail = f"{forgotten} of {ROUNDS} forgotten; the packet of {later} came after the call"
    return Answer("forgotten" if forgotten else "told", detail)


def _bytes_lost(proactor: Proactor, handle: StreamHandle, write: Callable[[bytes], object]) -> Answer:
    """Cancel receives while a thread writes a byte for each: does every byte arrive all the same?"""
    turn, done = threading.Semaphore(0), threading.Semaphore(0)

    def writer() -> None:
        for _ in range(ROUNDS):
            turn.acquire()
            write(b"x")
            done.release()

    threading.Thread(target=writer, daemon=True).start()
    receive = _receive(proactor, handle)
    lost = cancelled = 0
    for number in range(ROUNDS):
        proactor.submit(receive)
        turn.release()
        for _ in range(number % 5):
            time.sleep(0)  # So that the write comes before the cancel, during it, or after it.
        proactor.cancel(receive)
        settled = first_result(proactor)
        if settled is None or not done.acquire(timeout=PATIENCE_S):
            return Answer("not tried", "a receive was not told, or the other end cannot write")
        if settled[1] == Status.CANCELLED:
            cancelled += 1
            proactor.submit(receive)
            if first_result(proactor) is None:
                lost += 1
                proactor.cancel_all(handle)
                first_result(proactor)
    return Answer("lost" if lost else "none lost", f"{lost} of {ROUNDS}; {cancelled} receives were cancelled")


def bytes_that_meet_a_cancel_on_a_socket() -> Answer:
    """Cancel a receive on a socket while data arrive, as an idle connection of ours does."""
    with _proactor() as proactor, connected(socket.AF_INET) as (here, there):
        there.setblocking(True)
        return _bytes_lost(proactor, open_socket(proactor, here), there.sendall)


def bytes_that_meet_a_cancel_on_a_pipe() -> Answer:
    """Cancel a read of a named pipe while data arrive."""
    with _proactor() as proactor:
        kernel, name = proactor.kernel, rf"\\.\pipe\iocp_loop-check-{os.getpid()}"
        handles = [_pipes.create_instance(kernel, name, first=True)]
        try:
            access = FileFlag.GENERIC_READ | FileFlag.GENERIC_WRITE
            handles.append(kernel.CreateFileW(name, access, 0, 0, FileFlag.OPEN_EXISTING, 0, 0))
            written, buffer = DWORD(), ctypes.create_string_buffer(1)

            def write(data: bytes) -> None:
                buffer.value = data
                where, place = ctypes.addressof(buffer), ctypes.addressof(written)
                kernel.WriteFileBlocking(handles[1], where, len(data), place, 0)

            return _bytes_lost(proactor, _pipes.open_overlapped(proactor, handles[0]), write)
        finally:
            for handle in handles:
                kernel.CloseHandle(handle)


# -- other handles -------------------------------------------------------------------------------------------------


def lock_of_a_file() -> Answer:
    """Ask what kind of handle a pipe has, while another thread waits in a read of it."""
    from msvcrt import get_osfhandle

    reading, writing = os.pipe()
    try:
        handle = get_osfhandle(reading)
        reader = threading.Thread(target=os.read, args=(reading, 1), daemon=True)
        reader.start()
        time.sleep(0.2)  # Until it is in the kernel, which cannot be observed.
        asker = threading.Thread(target=bind("GetFileType"), args=(handle,), daemon=True)
        started = time.perf_counter()
        asker.start()
        asker.join(LOCK_S)
        waits, taken = asker.is_alive(), time.perf_counter() - started
        os.write(writing, b"x")
        reader.join(PATIENCE_S)
        asker.join(PATIENCE_S)
    finally:
        os.close(writing)
        os.close(reading)
    return Answer("waits" if waits else "answers", "" if waits else f"after {taken * 1000:.1f} ms")


def cancelled_console_read() -> Answer:
    """Cancel a read of a console at which nobody types. Done in a child, which has a console of its own."""
    code = "from iocp_loop._cli._experiments import read_console; read_console()"
    child = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CONSOLE_S,
        check=False,
        creationflags=subprocess.CREATE_NO_WINDOW,  # type: ignore[attr-defined, unused-ignore]
    )
    short, _, detail = child.stdout.strip().partition(";")
    return Answer(short or "no answer", detail.strip())


def read_console() -> None:
    """Make the experiment in that child, and print the answer."""
    kernel = win32_kernel()
    access = FileFlag.GENERIC_READ | FileFlag.GENERIC_WRITE
    handle = kernel.CreateFileW("CONIN$", access, 3, 0, FileFlag.OPEN_EXISTING, 0, 0)
    if console_mode(kernel, handle) is None:
        _say("not tried; the child has no console")
    buffer, count, result = ctypes.create_unicode_buffer(8), DWORD(77), list[tuple[bool, int]]()

    def read() -> None:
        worked = kernel.ReadConsoleW(handle, ctypes.addressof(buffer), 8, ctypes.addressof(count), 0)
        result.append((bool(worked), kernel.last_error()))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    time.sleep(0.3)  # Until it is in the kernel.
    kernel.CancelIoEx(handle, 0)
    thread.join(PATIENCE_S)
    if result:
        worked, code = result[0]
        _say(f"{'succeeds' if worked else 'fails'}; last error {code}, count {count.value} (77 before)")
    _say("goes on;")


def _say(answer: str) -> NoReturn:
    sys.stdout.write(answer)
    sys.stdout.flush()
    os._exit(0)  # Even if a thread is in a call that does not end.


# -- names and networks --------------------------------------------------------------------------------------------


def refused_connect(*, hastened: bool) -> Answer:
    """Connect to a port of this machine on which nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    with socket.socket() as sock:
        if hastened:
            Win32Kernel().hasten_refusal(sock)
        started = time.perf_counter()
        with contextlib.suppress(ConnectionError):
            sock.connect(address)
        taken = time.perf_counter() - started
    return Answer("at once" if taken < AT_ONCE_S else "later", f"after {taken:.3f} s")


def datagram_to_nobody() -> Answer:
    """Send a datagram that nobody receives: does an unconnected socket learn of it?"""
    with socket.socket(type=socket.SOCK_DGRAM) as nobody, socket.socket(type=socket.SOCK_DGRAM) as sock:
        nobody.bind(("127.0.0.1", 0))
        sock.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
        nobody.close()
        sock.sendto(b"anybody?", address)
        sock.settimeout(AT_ONCE_S)
        try:
            sock.recvfrom(100)
        except TimeoutError:
            return Answer("nothing")
        except OSError as exc:
            return Answer("an error", f"WinError {getattr(exc, 'winerror', exc.errno)}")
    return Answer("a datagram")


WINES = ("Wine 8", "Wine 10")


def _expected(windows: str | None, wine: str | None) -> Mapping[str, str]:
    found = {} if windows is None else {"Windows": windows}
    return MappingProxyType(found | ({} if wine is None else dict.fromkeys(WINES, wine)))


EXPERIMENTS = (
    Experiment(
        "closed after a cancelled receive",
        partial(close_after_a_cancelled_receive, shut_down=False),
        "whether what was sent is safe without a shutdown; the loop shuts down first",
        _expected("resets", "ends"),
        "a_cancelled_receive_resets",
    ),
    Experiment(
        "the same, shut down for sending before",
        partial(close_after_a_cancelled_receive, shut_down=True),
        "that what was written before close() arrives",
        _expected("ends", "ends"),
        promised=True,
    ),
    Experiment(
        "closed with bytes unread",
        close_with_bytes_unread,
        "why a connection lingers when it is closed",
        # QUIRK(wine): in Wine 8 a receive that need not wait reports a reset as the end of the stream.
        MappingProxyType({"Windows": "resets", "Wine 8": "ends", "Wine 10": "resets"}),
    ),
    Experiment(
        "a send of 16 MiB",
        send_of_any_size,
        "why no call of ours is given more than 1 MiB",
        MappingProxyType({"Windows": "whole", "Wine 8": "in part", "Wine 10": "whole"}),
        "sends_whole",
    ),
    Experiment(
        "cancel of one receive of two",
        cancel_of_one_receive,
        "why a receive that was a bystander is begun again",
        _expected("both end", "one ends"),
        "a_cancel_ends_all_receives",
    ),
    Experiment(
        "cancels that are asked for once",
        plain_cancels,
        "that close() ends; Wine 8 is asked again",
        MappingProxyType({"Windows": "told", "Wine 10": "told"}),
        promised=True,
    ),
    Experiment(
        "bytes that meet a cancel, socket",
        bytes_that_meet_a_cancel_on_a_socket,
        "that an idle connection may cancel its receive",
        _expected("none lost", "none lost"),
        promised=True,
    ),
    Experiment(
        "bytes that meet a cancel, pipe",
        bytes_that_meet_a_cancel_on_a_pipe,
        "whether a read of a named pipe that is given up may cost data",
        _expected(None, "none lost"),
    ),
    Experiment(
        "a handle that a thread reads from",
        lock_of_a_file,
        "why standard input is looked into before it is read",
        _expected("waits", "answers"),
    ),
    Experiment(
        "a cancelled read of a console",
        cancelled_console_read,
        "why the count is cleared before each read of a console",
        _expected(None, None),
    ),
    Experiment(
        "a refused connect",
        partial(refused_connect, hastened=False),
        "why the loop asks for no repetition",
        _expected("later", "at once"),
    ),
    Experiment(
        "the same, asked not to repeat",
        partial(refused_connect, hastened=True),
        "that a connect to nobody on this machine fails at once",
        _expected("at once", "at once"),
        promised=True,
    ),
    Experiment(
        "a datagram to nobody",
        datagram_to_nobody,
        "what error_received() hears",
        _expected("an error", "nothing"),
    ),
    Experiment(
        "a wait of a millisecond",
        _timing.waits_of_a_millisecond,
        "how late timers are",
        _expected("a tick", "about 1 ms"),
        "tick_ms",
    ),
    Experiment(
        "a sleep of a millisecond",
        _timing.sleeps_of_a_millisecond,
        "whether timers are finer than the tick",
        _expected("by a timer", "by the port"),
        "has_fine_timers",
    ),
)
