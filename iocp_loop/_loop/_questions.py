"""Finding out what kind of handle a file object of the program has, on a thread of its own.

The file object behind a handle that was opened for synchronous I/O has a lock, and a read that waits keeps it, such as
`input()` in a thread, or in a child that inherited standard input. Any query of the handle waits for that lock (see
`_blocking`), without a time-out, and Ctrl+C does not end it. So the loop's thread must not ask. If there is no answer
in time, the caller gets an error; the asking thread ends when the lock is free.
"""

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core._endpoint import Kind
from .._handles import _pipes
from .._handles._blocking import kind_of
from .._win32.constants import Error
from .._win32.errors import os_error
from .._win32.kernel import Kernel

if TYPE_CHECKING:
    from ._turn import TurningLoop

# How long an answer may take, in seconds. A handle that is not in use answers in microseconds.
PATIENCE_S = 1.0


@dataclass(frozen=True)
class Facts:
    """The facts about one handle.

    Attributes:
        is_overlapped: it was opened with FILE_FLAG_OVERLAPPED.
        kind: the result of `_blocking.kind_of`; None if it is overlapped.
    """

    is_overlapped: bool
    kind: Kind | None


def ask(kernel: Kernel, handle: int) -> Facts:
    """Ask on this thread. Raises OSError if it is not a handle."""
    is_overlapped = _pipes.is_overlapped(kernel, handle)
    return Facts(is_overlapped, None if is_overlapped else kind_of(kernel, handle))


async def ask_aside(loop: "TurningLoop", handle: int) -> Facts | None:
    """Ask on another thread. None if it is not a handle, or no thread can be started: then the caller may `ask`.

    Raises:
        OSError: with `winerror` 170, if somebody is waiting in a read of the same handle.
    """
    answered: asyncio.Future[Facts | None] = loop.create_future()

    def settle(facts: Facts | None) -> None:
        if not answered.done():
            answered.set_result(facts)

    def work() -> None:
        try:
            facts = ask(loop.proactor.kernel, handle)
        except OSError:
            facts = None
        try:
            loop.call_soon_threadsafe(settle, facts)
        except RuntimeError:
            pass  # The loop was closed meanwhile.

    try:
        threading.Thread(target=work, name=f"iocp_loop: asking about handle {handle}", daemon=True).start()
    except RuntimeError:
        return None
    done, _ = await asyncio.wait({answered}, timeout=PATIENCE_S)
    if not done:
        advice = (
            "another read of it is waiting, here or in a process that has inherited it: it does one thing at a time"
        )
        raise os_error(Error.BUSY, "NtQueryInformationFile", f"handle {handle}", advice)
    return answered.result()
