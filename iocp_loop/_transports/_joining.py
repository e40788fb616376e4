"""Where a loop's writers join the pieces of what they send at once.

Memory that is kept, because new memory of more than some 64 KiB costs a page fault per page each time, which takes
longer than the copying (docs/tried.md). The call that sends has copied all it takes when it returns, so one piece of
memory serves all connections.
"""

import io
from collections.abc import Iterable


class JoinBuffer:
    """The memory of one loop; it grows to what was joined at once so far, which a writer keeps small."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = io.BytesIO()

    def join(self, pieces: Iterable[bytes]) -> memoryview:
        """All pieces in a row, until the next call: release it before, or leave its `with` block."""
        memory = self._memory
        try:
            memory.seek(0)
            memory.writelines(pieces)
        except BufferError:
            # A socket whose send() is a Python function may have kept what it was given; an error's traceback does.
            memory = self._memory = io.BytesIO(b"".join(pieces))
            memory.seek(0, io.SEEK_END)
        with memory.getbuffer() as view:
            return view[: memory.tell()]
