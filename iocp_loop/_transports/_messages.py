"""A message-mode pipe: each write is one message, and so is each `data_received`, empty ones included."""

from typing import Any

from .._handles._base import Outcome, StreamHandle
from ._connection import Connection
from ._reader import Reader
from ._reading import STOPPED
from ._repeatable import repeatable
from ._send_queue import MessageQueue, as_bytes_like
from ._writer import Writer
from ._writing import DIRECT, LOST, NONE


class MessageReader(Reader):
    """Receives whole messages from a message-mode pipe: one `data_received` each, empty ones included.

    A message longer than the buffer arrives in parts; all but the last bring the warning ERROR_MORE_DATA.
    """

    __slots__ = ("_parts",)

    def __init__(self, transport: Connection, endpoint: StreamHandle, direct: Any) -> None:
        super().__init__(transport, endpoint, direct)
        self._parts: list[bytes] = []

    def _decide_fast_path(self) -> None:
        # Every result must pass through `_take`, which knows whether the message is complete.
        self._fast_path = False

    def _take(self, status: int, byte_count: int) -> None:
        outcome = self._endpoint.receive_outcome(self._operation, status, byte_count)
        if outcome is not Outcome.DATA:
            super()._take(status, byte_count)
            return
        part = None
        try:
            self._parts.append(part := self._operation.buffer[:byte_count])
            self._fit_buffer(byte_count)
            if not status:
                self._deliver_message()
            if self.delivery is not STOPPED:
                self._arm_after_callbacks()
        except BaseException as exc:
            if part is None:
                raise  # Nothing was read: the loop delivers again, or ends the connection if memory is missing.
            if not status and self._parts and not isinstance(exc, Exception):
                # An interrupt: the message is complete, and was not delivered.
                self.transport.loop.call_soon(self._deliver_message, context=self.transport.context)
            if self._ahead or self.awaits(self._operation):
                self._arm_after_callbacks()
            raise

    @repeatable
    def _deliver_message(self) -> None:
        parts, told = self._parts, None
        try:
            message = b"".join(parts)
            self._parts = []
            (told := self.protocol).data_received(message)
        except MemoryError as exc:
            if told is not None:
                raise
            self._fail(exc)
        except (SystemExit, KeyboardInterrupt):
            if told is None:
                self._parts = parts
            raise


class MessageWriter(Writer):
    """Writes to a message-mode pipe: each write, and each writelines, is one message, empty ones included."""

    __slots__ = ()

    _queue_type = MessageQueue

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data or self.refusal is not NONE or self.phase is LOST:
            super().write(data)
            return
        # A stream would ignore a write of no bytes; here it is an empty message.
        as_bytes_like(data)
        is_first = self.phase is DIRECT
        self._made_queue().add(b"")
        if is_first:
            self._flush()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))
