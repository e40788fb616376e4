"""The trap of overlapped I/O, sprung and caught: memory that is freed while the kernel is still going to write to it.

    python examples/use_after_free.py           play every scene, each in a process of its own, and check its evidence
    python examples/use_after_free.py SCENE     play one here

The mistake is always the same. A session is deleted, or its buffer used for something else, while a receive is pending
on it. Cancelling does not help: it asks, and gives nothing back. The kernel writes when it likes.
"""

import ctypes
import faulthandler
import gc
import msvcrt
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

from iocp_loop.lowlevel import IoType, LifetimeError, OverlappedEx, OverlappedSocket, Proactor, error_of

SECRET = b"a late packet"


def pending_receive(buffer=None) -> SimpleNamespace:
    """A proactor with one connection, and a receive pending on it; `peer` is who may send."""
    here, peer = socket.socketpair()
    here.setblocking(False)
    proactor = Proactor()
    endpoint = proactor.register(OverlappedSocket(here.fileno(), here))
    buffer = proactor.arena.buffer(64) if buffer is None else buffer
    receive = endpoint.receive_operation(print, buffer)
    proactor.submit(receive)
    assert receive.io_type is IoType.READ and receive.pending
    return SimpleNamespace(proactor=proactor, endpoint=endpoint, receive=receive, buffer=buffer, peer=peer)


def trap() -> None:
    """What happens without a net: one session's late packet lands in another session's memory."""
    pool = bytearray(64)  # A pool of one slot, as servers keep for speed.
    alice = pending_receive((ctypes.c_char * 64).from_buffer(pool))
    # Alice's session is deleted here, and its slot goes to Bob. The receive, alas, is still pending.
    pool[:3] = b"Bob"
    alice.peer.send(SECRET)
    alice.proactor.select(5)
    print(f"Bob's name is now {bytes(pool[:13])!r}; nothing was reported")


def lost() -> None:
    """The last reference to a pending operation goes: it is caught in __del__, and its memory is kept."""
    sys.unraisablehook = lambda hook: print(f"reported: {type(hook.exc_value).__name__}: {hook.exc_value}")
    session = pending_receive()
    buffer_address = session.receive.wsabuf.buf
    # Nobody should do this: forget what is pending.
    session.proactor.pending.clear()
    session.endpoint.operations.clear()
    session.receive = session.buffer = None
    gc.collect()
    session.peer.send(SECRET)
    packets = session.proactor.port.wait(5)
    written = ctypes.string_at(buffer_address, packets[0].byte_count)
    print(f"afterwards the kernel wrote {written!r}: into the operation that was kept, and into nobody else")


def released() -> None:
    """An operation is given back while it is pending: refused."""
    session = pending_receive()
    try:
        session.proactor.release(session.receive)
    except LifetimeError as exc:
        print(f"refused: LifetimeError: {exc}")
    session.proactor.close()


def reused() -> None:
    """An operation is submitted a second time while it is pending: refused."""
    session = pending_receive()
    try:
        session.proactor.submit(session.receive)
    except LifetimeError as exc:
        print(f"refused: LifetimeError: {exc}")
    session.proactor.close()


def expect_a_crash() -> None:
    """Print the stack when the process dies, and no dialog, report or debugger."""
    faulthandler.enable()
    msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)


def stale_read() -> None:
    """Stomp mode: our own read of a released buffer kills the process where it happens."""
    expect_a_crash()
    session = pending_receive()
    session.peer.send(SECRET)
    _operation, _status, byte_count = session.proactor.select(5).popleft()
    session.proactor.arena.release_buffer(session.buffer)
    print(f"the buffer of {byte_count} bytes was released; reading it", flush=True)
    print("read all the same:", session.buffer[:byte_count])


def stale_operation() -> None:
    """Stomp mode: so does a look at a released operation."""
    expect_a_crash()
    session = pending_receive()
    session.peer.send(SECRET)
    operation, _status, _byte_count = session.proactor.select(5).popleft()
    session.proactor.release(operation)
    print("the operation was released; asking the kernel's byte count of it", flush=True)
    print("read all the same:", OverlappedEx.from_address(operation.address).InternalHigh)


def late_write() -> None:
    """Stomp mode: a buffer is released while the kernel is going to write to it. The write finds no memory."""
    expect_a_crash()
    session = pending_receive()
    session.proactor.arena.release_buffer(session.buffer)  # The mistake.
    session.peer.send(SECRET)
    operation, status, byte_count = session.proactor.select(5).popleft()
    if status:
        print(f"the packet says: {error_of(operation, status)}")
        return
    # Windows had locked the pages when the receive began, and wrote to them although they belong to nobody now.
    print(f"the packet says {byte_count} bytes; reading them", flush=True)
    print("read all the same:", session.buffer[:byte_count])


# What each scene must show; those with True run in stomp mode. An access violation is told by faulthandler.
FAULT = "access violation"
SCENES = {
    trap: (False, ["Bob's name is now b'a late packet'"]),
    lost: (False, ["reported: LifetimeError", "wrote b'a late packet'"]),
    released: (False, ["refused: LifetimeError"]),
    reused: (False, ["refused: LifetimeError"]),
    stale_read: (True, ["was released", FAULT]),
    stale_operation: (True, ["was released", FAULT]),
    late_write: (True, ["the packet says"]),
}


def play_all() -> int:
    failed = 0
    for scene, (stomp, evidence) in SCENES.items():
        environ = os.environ | {"IOCP_LOOP_STOMP": str(int(stomp)), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, __file__, scene.__name__]
        child = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
        output = child.stdout + child.stderr
        caught = all(words in output for words in evidence) and "read all the same" not in output
        failed += not caught
        print(f"{scene.__name__}: {scene.__doc__}")
        for line in output.splitlines()[:6]:
            print(f"    | {line}")
        print(f"    exit status {child.returncode}: {'as it should be' if caught else 'NOT as it should be'}\n")
    print("every scene as it should be" if not failed else f"{failed} scenes not as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        globals()[sys.argv[1]]()
    else:
        sys.exit(play_all())
