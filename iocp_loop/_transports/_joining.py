"""The memory in which a loop's writers join several pieces for one send.

It is kept, because new memory of more than some 64 KiB costs a page fault per page each time, which takes longer than
the copying (docs/tried.md). A send by the socket's own call has copied the bytes when it returns, so one block of
memory serves all connections.
"""

import io
from collections.abc import Iterable


class JoinBuffer:
    """The memory of one loop. It grows to the largest size joined so far, which writers keep small."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = io.BytesIO()

    def join(self, pieces: Iterable[bytes]) -> memoryview:
        """All pieces in a row. Release the view, or leave its `with` block, before the next call."""
        memory = self._memory
        try:
            memory.seek(0)
            memory.writelines(pieces)
        except BufferError:
            # A view is still in use: a socket whose send() is a Python function may keep it, as a traceback does.
            memory = self._memory = io.BytesIO(b"".join(pieces))
            memory.seek(0, io.SEEK_END)
        with memory.getbuffer() as view:
            return view[: memory.tell()]
