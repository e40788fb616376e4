"""Stomp mode: use after release is an error at that instant.

What must crash is done in a child process, and its evidence is demanded: what faulthandler printed, and that the line
after the crime was never reached. An exit status alone proves nothing: under Wine a process may die with status 0.
"""

import ctypes
import gc
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from iocp_loop._core import _arena, _kept, _operation
from iocp_loop._core._operation import PlainOperation, ReadOperation
from iocp_loop._debug import stomp
from iocp_loop._debug.stomp import PAGE_SIZE, StompArena
from iocp_loop._win32 import prototypes
from iocp_loop._win32.constants import Memory, Status
from iocp_loop.lowlevel import IoType, LifetimeError

ROOT = Path(__file__).parents[2]
BEFORE, AFTER = "reached the crime", "survived the crime"


def run_child(code, **environ):
    """The child's output: stdout and stderr in one, and its exit status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IOCP_LOOP_STOMP": "1"} | environ
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", DIE_QUIETLY + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=120,
        check=False,
    )
    return done.stdout.decode(errors="replace"), done.returncode


# Die of an access violation at once, with no debugger and no message box: the process's last word is ExitProcess, called
# with a non-zero argument.
DIE_QUIETLY = """
import ctypes
kernel32 = ctypes.WinDLL("kernel32")
kernel32.SetUnhandledExceptionFilter.argtypes = [ctypes.c_void_p]
kernel32.SetUnhandledExceptionFilter(ctypes.cast(kernel32.ExitProcess, ctypes.c_void_p))
"""

PREPARE = """
import ctypes, socket
from iocp_loop._handles._opening import open_socket
from iocp_loop._core._proactor import Proactor
proactor = Proactor()
sock, peer = socket.socketpair()
sock.setblocking(False)
endpoint = open_socket(proactor, sock, sock)
results = []
operation = endpoint.receive_operation(lambda op, status, count: results.append((status, count)), proactor.arena.buffer(64))
"""


@pytest.mark.parametrize(
    "crime",
    [
        pytest.param("operation.type = 1", id="write_to_an_operation"),
        pytest.param("operation.Internal", id="read_of_an_operation"),
        pytest.param("bytes(view)", id="read_of_a_buffer"),
        pytest.param("view[0:1] = b'x'", id="write_to_a_buffer"),
    ],
)
def test_touching_memory_after_its_release_stops_the_process_there(crime):
    """In a child: release, say so, touch."""
    code = f"""
{PREPARE}
buffer = operation.buffer
view = memoryview(buffer).cast("B")
proactor.release(operation)
proactor.arena.release_buffer(buffer)
print({BEFORE!r}, flush=True)
{crime}
print({AFTER!r}, flush=True)
"""
    output, status = run_child(code)
    assert BEFORE in output
    assert AFTER not in output
    assert "access violation" in output
    assert status != 0


def test_the_same_crime_without_stomp_mode_goes_unnoticed():
    """What the mode is for: on the heap nothing happens, which is the dangerous case."""
    code = f"{PREPARE}\nproactor.release(operation)\noperation.type = 1\nprint({AFTER!r}, flush=True)"
    output, status = run_child(code, IOCP_LOOP_STOMP="0")
    assert AFTER in output
    assert status == 0


def test_a_buffer_overrun_faults_at_the_first_byte_past_the_end():
    code = f"""
import ctypes
from iocp_loop._debug.stomp import StompArena
arena = StompArena()
buffer = arena.buffer(4096)
address = ctypes.addressof(buffer)
ctypes.memset(address, 1, 4096)
print({BEFORE!r}, flush=True)
ctypes.memset(address, 1, 4097)
print({AFTER!r}, flush=True)
"""
    output, _ = run_child(code)
    assert BEFORE in output
    assert AFTER not in output
    assert "access violation" in output


def test_a_late_kernel_write_to_a_released_buffer_is_an_error_and_not_corruption():
    """In a child: the buffer of a pended receive is released, then the data comes.

    QUIRK(wine): the packet says ACCESS_VIOLATION. Windows has locked the pages and writes to them all the same, where
    nobody reads them: either way the memory of nobody else is touched.
    """
    code = f"""
{PREPARE}
proactor.submit(operation)
proactor.arena.release_buffer(operation.buffer)
print({BEFORE!r}, flush=True)
peer.send(b"late")
while not results:
    settled = proactor.select(5)
    for _ in range(len(settled)):
        op, status, count = settled.popleft()
        op.deliver(op, status, count)
print("STATUS", hex(results[0][0]), results[0][1], flush=True)
assert proactor.close() == []
print("CLOSED", flush=True)
peer.close()
"""
    output, status = run_child(code)
    assert BEFORE in output
    assert "CLOSED" in output
    assert f"STATUS {Status.ACCESS_VIOLATION:#x} 0" in output or "STATUS 0x0 4" in output
    assert status == 0


def test_releasing_what_the_kernel_owns_raises_before_any_harm_is_done():
    code = f"""
{PREPARE}
from iocp_loop.lowlevel import LifetimeError
proactor.submit(operation)
try:
    proactor.release(operation)
except LifetimeError as exc:
    print("REFUSED", exc, flush=True)
peer.send(b"fine")
settled = proactor.select(5)
print("RESULT", settled[0][1:], operation.buffer[:4], flush=True)
proactor.close()
peer.close()
"""
    output, status = run_child(code)
    assert "REFUSED" in output
    assert "the kernel owned it" in output
    assert "RESULT (0, 4) b'fine'" in output
    assert status == 0


def test_a_released_address_is_never_given_out_again():
    arena = StompArena()
    seen = set()
    for _ in range(50):
        operation = arena.operation(ReadOperation, IoType.READ)
        assert operation.address not in seen
        seen.add(operation.address)
        arena.release(operation)


def test_of_arenas_that_are_gone_no_more_pages_stay_reserved_than_of_one(monkeypatch):
    """A process that makes many loops, one after the other: it may have so many regions of memory and no more."""
    monkeypatch.setattr(stomp, "QUARANTINE_MAX", 3)
    monkeypatch.setattr(stomp, "_quarantine", deque())
    given_back, free = [], prototypes.bind("VirtualFree")
    for _ in range(10):
        arena = StompArena()
        arena._free = lambda *args: (given_back.append(args[0]) if args[2] == Memory.RELEASE else None, free(*args))[1]
        arena.release(arena.operation(PlainOperation, IoType.WAIT))
    assert len(given_back) == 7


def test_releasing_twice_is_once():
    arena = StompArena()
    operation, buffer = arena.operation(PlainOperation, IoType.WAIT), arena.buffer(1)
    for _ in range(2):
        arena.release(operation)
        arena.release_buffer(buffer)


def test_blocks_that_died_give_their_pages_back_when_the_next_one_is_placed():
    arena = StompArena()
    operation, buffer = arena.operation(PlainOperation, IoType.WAIT), arena.buffer(10)
    assert len(arena._blocks) == 2
    del operation, buffer
    alive = arena.buffer(1)
    assert list(arena._blocks) == [ctypes.addressof(alive)]


def test_a_block_that_the_process_keeps_for_ever_keeps_its_pages(monkeypatch):
    kept, reports = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(str(report.exc_value)))
    monkeypatch.setattr(_kept, "ORPHANS", kept)
    monkeypatch.setattr(stomp, "ORPHANS", kept)
    arena = StompArena()
    operation, buffer = arena.operation(PlainOperation, IoType.WAIT), arena.buffer(10)
    operation.buffer, operation.state = buffer, _operation.PENDING
    lost = operation.address
    del operation, buffer
    gc.collect()
    assert "lost its last reference" in reports[0]
    assert [each.address for each in kept] == [lost]
    alive = arena.buffer(1)
    assert len(arena._blocks) == 3
    ctypes.memset(lost, 0, ctypes.sizeof(PlainOperation))
    kept[0].buffer[9] = b"x"
    kept[0].state = _operation.SETTLED
    del alive


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE, PAGE_SIZE + 1, 256 * 1024])
def test_a_block_of_any_size_is_usable_to_its_last_byte(size):
    arena = StompArena()
    buffer = arena.buffer(size)
    ctypes.memset(ctypes.addressof(buffer), 0xAB, size)
    assert buffer[:] == b"\xab" * size
    arena.release_buffer(buffer)


def test_an_operation_is_not_released_from_under_the_kernel(proactor):
    arena = StompArena()
    operation = arena.operation(PlainOperation, IoType.WAIT)
    operation.state = _arena.KERNEL_OWNED and next(iter(_arena.KERNEL_OWNED))
    with pytest.raises(LifetimeError):
        arena.release(operation)
    operation.state = type(operation.state).IDLE


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("0", False), ("", False)])
def test_the_environment_decides(monkeypatch, value, wanted):
    monkeypatch.setenv(_arena.STOMP_VARIABLE, value)
    assert _arena.stomp_wanted() is wanted
    assert isinstance(_arena.default_arena(), StompArena) is wanted
