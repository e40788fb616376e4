"""`add_reader` and `add_writer`: callbacks that run while a socket is ready.

As on asyncio's selector loops, a socket has one reader and one writer. Each is an `asyncio.Handle`, which runs in its
own context again and again as long as the socket is ready, and is cancelled when it is replaced or removed. If a socket
is closed while it is watched, its callbacks run once more, so that nobody waits for ever, and are forgotten.

A callback runs when the poll's answer is delivered, like a protocol's, and not from the ready queue. The socket is
polled again before the next wait, and by then the callback must have read the data, or it would run twice for them.

Any number of tasks may wait for a socket besides, each once, by a future. They and the callbacks do not know of each
other.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from .._asyncio import _private as private
from .._core._proactor import Proactor
from .._handles import _readiness
from .._handles._readiness import Interest, Registration
from .._win32.constants import WsaError


class _Watcher:
    """One callback on one socket."""

    __slots__ = ("fd", "fileobj", "handle", "interest", "owner", "registration")

    registration: Registration

    def __init__(self, owner: "Watchers", fd: int, fileobj: Any, interest: Interest, handle: asyncio.Handle) -> None:
        self.owner = owner
        self.fd = fd
        self.fileobj = fileobj
        self.interest = interest
        self.handle = handle

    def on_ready(self, closed: bool, _reset: bool) -> None:
        if closed:
            self.owner.forget(self)
        elif self._was_closed():
            # It was closed while no request was out that could report it: the answer is about another socket, which has
            # the same handle value.
            self.owner.forget(self)
            _readiness.of(self.owner.proactor).unwatch(self.registration)
        private.run_handle(self.handle)

    def _was_closed(self) -> bool:
        try:
            return _fileno(self.fileobj) != self.fd
        except ValueError:
            return True


class _Waiting:
    """One future that waits for a socket to be ready."""

    __slots__ = ("future", "owner", "registration")

    registration: Registration

    def __init__(self, owner: "Watchers", future: "asyncio.Future[None]") -> None:
        self.owner = owner
        self.future = future

    def on_ready(self, _closed: bool, _reset: bool) -> None:
        """It is ready, or closed: what the program does next on the socket tells which."""
        self.end()
        if not self.future.done():
            self.future.set_result(None)

    def on_done(self, _future: "asyncio.Future[None]") -> None:
        """It was cancelled, or is ready and this was done before."""
        self.end()

    def end(self) -> None:
        """Wait no more. Idempotent."""
        self.owner.waiting.discard(self)
        _readiness.of(self.owner.proactor).unwatch(self.registration)


class Watchers:
    """The readers and writers of one loop. Used from the loop's thread only."""

    def __init__(self, loop: Any, proactor: Proactor) -> None:
        self._loop: Any = loop
        self.proactor = proactor
        self._table: dict[tuple[int, Interest], _Watcher] = {}
        self.waiting: set[_Waiting] = set()

    def add(self, interest: Interest, fileobj: Any, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Watch a socket; replaces the callback that watches it already.

        Raises:
            ValueError: it is not a socket, or a closed one.
            RuntimeError: a transport owns it.
        """
        fd = _fileno(fileobj)
        watcher = _Watcher(self, fd, fileobj, interest, asyncio.Handle(callback, args, self._loop, None))
        watcher.registration = self._watch(fd, interest, watcher.on_ready)
        self._remove(self._table.get((fd, interest)))
        self._table[fd, interest] = watcher

    def wait(self, interest: Interest, fileobj: Any) -> "asyncio.Future[None]":
        """A future that is done as soon as a socket is ready, or was closed. Raises as `add` does."""
        fd = _fileno(fileobj)
        waiting = _Waiting(self, self._loop.create_future())
        waiting.registration = self._watch(fd, interest, waiting.on_ready)
        self.waiting.add(waiting)
        waiting.future.add_done_callback(waiting.on_done)
        return waiting.future

    def _watch(self, fd: int, interest: Interest, sink: Callable[[bool, bool], None]) -> Registration:
        _readiness.refuse_owned(self.proactor, fd)
        try:
            return _readiness.of(self.proactor).watch(fd, interest, sink)
        except OSError as exc:
            if getattr(exc, "winerror", None) != WsaError.NOTSOCK:
                raise  # A failure of the system, and not the caller's mistake.
            raise ValueError(f"Invalid file descriptor: {fd}: {exc}") from exc

    def remove(self, interest: Interest, fileobj: Any) -> bool:
        """Stop watching a socket; False if it was not watched. Raises ValueError and RuntimeError, as `add` does."""
        try:
            fd = _fileno(fileobj)
        except ValueError:
            # The socket was closed before it was removed: find it by the object itself.
            found = [each for each in self._table.values() if each.fileobj is fileobj and each.interest is interest]
            if not found or isinstance(fileobj, int):
                raise
            return self._remove(found[0])
        _readiness.refuse_owned(self.proactor, fd)
        return self._remove(self._table.get((fd, interest)))

    def close(self) -> None:
        """Remove all; the loop is closing."""
        for watcher in list(self._table.values()):
            self._remove(watcher)
        for waiting in list(self.waiting):
            waiting.end()
        self._loop = None  # Breaks the cycle.

    def forget(self, watcher: _Watcher) -> None:
        """Drop a watcher whose registration is over."""
        if self._table.get((watcher.fd, watcher.interest)) is watcher:
            del self._table[watcher.fd, watcher.interest]

    def _remove(self, watcher: _Watcher | None) -> bool:
        if watcher is None:
            return False
        self.forget(watcher)
        watcher.handle.cancel()
        _readiness.of(self.proactor).unwatch(watcher.registration)
        return True


def _fileno(fileobj: Any) -> int:
    if isinstance(fileobj, int):
        fd = fileobj
    else:
        try:
            fd = int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fileobj!r}") from None
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")
    return fd
