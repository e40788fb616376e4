"""What kind of handle a file object of the program's has: asked on a thread of its own.

A handle that was opened for synchronous I/O has a lock, and whoever reads it in a way that waits keeps it: `input()` in
a thread, a child that has inherited standard input. Any question about the handle waits for that lock (see
`_blocking`), without a time-out and beyond Ctrl+C. That must not be the loop's thread. Who waits too long is told so;
the thread goes when the lock is free.
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

# How long an answer may take, in seconds. A handle that nobody is using answers in microseconds.
PATIENCE_S = 1.0


@dataclass(frozen=True)
class Facts:
    """Of one handle.

    Attributes:
        is_overlapped: opened with FILE_FLAG_OVERLAPPED.
        kind: of one that is not, as `_blocking.kind_of` has it; else None.
    """

    is_overlapped: bool
    kind: Kind | None


def ask(kernel: Kernel, handle: int) -> Facts:
    """Ask now, on this thread. Raises OSError for what is no handle."""
    is_overlapped = _pipes.is_overlapped(kernel, handle)
    return Facts(is_overlapped, None if is_overlapped else kind_of(kernel, handle))


async def ask_aside(loop: "TurningLoop", handle: int) -> Facts | None:
    """Ask on another thread; None where it is no handle, or no thread is to be had: then ask here.

    Raises:
        OSError: with `winerror` 170, where somebody is waiting in a read of the same handle.
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
