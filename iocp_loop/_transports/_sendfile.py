"""Sending files to sockets: by TransmitFile, or by reads and sends if TransmitFile would make others wait.

Client editions of Windows run two TransmitFile calls at a time, on the whole machine, and queue the rest (MSDN,
TransmitFile): two clients that read slowly could hold up every other transfer. So a loop runs at most TRANSMITS_MAX at
a time, each for one chunk. If none is free, a worker thread reads that chunk, and it is sent like other data.
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
# Large enough that the number of calls does not matter, small enough that one of the TRANSMITS_MAX places is free again
# soon; TransmitFile takes up to 2 GiB.
TRANSMIT_CHUNK = 8 * 1024 * 1024
READ_CHUNK = 256 * 1024


async def send_file(
    services: Services, endpoint: SocketHandle, sock: Any, file: Any, offset: int, count: int | None
) -> int:
    """Send `count` bytes of a regular file from `offset` (None or 0: to its end). Returns the number sent.

    Leaves the file's position behind the last chunk sent, even if a later one fails or is cancelled.

    Raises:
        SendfileNotAvailableError: it is not a regular file.
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
        # A pipe or a console has a size too, 0, and would be sent as an empty file.
        raise private.SendfileNotAvailableError("not a regular file")
    return facts.st_size


async def copy_file(
    services: Services, endpoint: StreamHandle, sock: Any, file: Any, offset: int, count: int | None
) -> int:
    """Send a file object that is not a regular file: a worker thread reads it, chunk by chunk."""
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
        # As for a regular file: the position is behind the last byte sent, and not the last byte read.
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
