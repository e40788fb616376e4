"""Child processes: asyncio's own subprocess transport, which learns of the exit through the port.

It reports the exit when the process has exited, and not when the last copy of its pipes is closed: a grandchild that
keeps them open delays the end of the streams, and nothing else.
"""

from typing import Any

from .._asyncio import _private as private


class SubprocessTransport(private.BaseSubprocessTransport):
    """One child process; made by the loop, never by users."""

    def _start(self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any) -> None:
        self._proc = private.popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, **kwargs
        )
        loop: Any = self._loop
        exited = loop.wait_for_handle(int(self._proc._handle))  # type: ignore[attr-defined]  # noqa: SLF001
        exited.add_done_callback(self._on_exit)

    def _on_exit(self, exited: Any) -> None:
        if exited.cancelled() or exited.exception() is not None:
            # The loop is closing. The process goes on, and nobody reports its exit.
            return
        self._process_exited(self._proc.poll())  # type: ignore[union-attr, arg-type]

    def _process_exited(self, returncode: int) -> None:
        super()._process_exited(returncode)
        waiters, self._exit_waiters = self._exit_waiters, []
        for waiter in waiters or ():
            private.set_result_unless_cancelled(waiter, returncode)
