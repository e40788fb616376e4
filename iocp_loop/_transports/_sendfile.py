"""Files to sockets: TransmitFile where it serves, reads and sends where it would make others wait.

Client editions of Windows run two TransmitFile calls at a time, on the whole machine, and queue the rest (MSDN,
TransmitFile): two clients that read slowly could hold up every other transfer. So at most TRANSMITS_MAX run at once
per loop, a chunk at a time; whoever finds none free sends that chunk by reading it in a worker thread.
"""

import os
import stat
from typing import Any

from .._asyncio import _private as private
from .._asyncio._futures import OperationFuture, undelivered
from .._handles._base import StreamHandle
from .._handles._sockets import SocketHandle
from ._services import Services

TRANSMITS_MAX = 2
# Large enough that the calls do not count, small enough that a turn comes round soon; TransmitFile takes up to 2 GiB.
TRANSMIT_CHUNK = 8 * 1024 * 1024
READ_CHUNK = 256 * 1024


async def send_file(
    services: Services, endpoint: SocketHandle, sock: Any, file: Any, offset: int, count: int | None
) -> int:
    """Send `count` bytes of a regular file from `offset` (None or 0: to its end); the number sent.

    The file's position is behind the last byte sent, also when the sending failed or was cancelled in the middle of
    a later chunk.

    Raises:
        SendfileNotAvailableError: not a regular file.
        OSError: the connection broke.
    """
    size = _size_of(file)
    offset = min(offset, size)
    end = min(offset + count, size) if count else size
    start = offset
    try:
        while offset < end:
            offset += await _send_chunk(services, endpoint, sock, file, offset, end - offset)
    finally:
        if offset > start:
            file.seek(offset)
    return offset - start


def _size_of(file: Any) -> int:
    try:
        facts = os.fstat(file.fileno())
    except (AttributeError, OSError) as exc:  # io.UnsupportedOperation is an OSError
        raise private.SendfileNotAvailableError("not a regular file") from exc
    if not stat.S_ISREG(facts.st_mode):
        # A pipe or a console has a size too: 0. It would be sent as an empty file.
        raise private.SendfileNotAvailableError("not a regular file")
    return facts.st_size


async def copy_file(
    services: Services, endpoint: StreamHandle, sock: Any, file: Any, offset: int, count: int | None
) -> int:
    """`send_file` for a file object that is no regular file: read in a worker thread, chunk by chunk, and sent."""
    if offset:
        file.seek(offset)
    total = 0
    try:
        while count is None or total < count:
            size = READ_CHUNK if count is None else min(count - total, READ_CHUNK)
            data = await services.loop.run_in_executor(None, file.read, size)
            if not data:
                break
            await _send_bytes(services, endpoint, sock, data)
            total += len(data)
    finally:
        # As for a regular file: behind the last byte sent, and not behind the last one read.
        if total and getattr(file, "seekable", bool)():
            file.seek(offset + total)
    return total


async def _send_chunk(
    services: Services, endpoint: SocketHandle, sock: Any, file: Any, offset: int, remaining: int
) -> int:
    if services.transmits_running < TRANSMITS_MAX and endpoint.transmits:
        services.transmits_running += 1
        try:
            return await _transmit(services, endpoint, sock, file, offset, min(remaining, TRANSMIT_CHUNK))
        finally:
            services.transmits_running -= 1
    data = await services.loop.run_in_executor(None, _read_at, file, offset, min(remaining, READ_CHUNK))
    if not data:
        raise EOFError(f"the file became shorter while it was sent: nothing at {offset}")
    await _send_bytes(services, endpoint, sock, data)
    return len(data)


async def _send_bytes(services: Services, endpoint: StreamHandle, sock: Any, data: bytes) -> None:
    operation = endpoint.send_operation(undelivered)
    endpoint.set_send_vector(operation, [data])
    await _submit(services, operation, sock)


async def _transmit(services: Services, endpoint: SocketHandle, sock: Any, file: Any, offset: int, count: int) -> int:
    operation = endpoint.transmit_operation(undelivered, sock, file, offset, count)
    sent: int = await _submit(services, operation, sock)
    if not sent:
        raise EOFError(f"the file became shorter while it was sent: nothing at {offset}")
    return sent


def _submit(services: Services, operation: Any, sock: Any) -> OperationFuture:
    loop = services.loop
    future = OperationFuture(services.proactor, operation, lambda _operation, byte_count: byte_count, loop, sock)
    services.proactor.submit(operation)
    return future


def _read_at(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(size)
    return data
