"""What is behind a handle of the fake kernel, and the requests that programs leave with it."""

import errno
from collections import deque
from typing import TYPE_CHECKING, Any

from iocp_loop._win32.constants import WsaError

if TYPE_CHECKING:
    from .kernel import FakeKernel

Result = tuple[int, int]  # NTSTATUS, byte count

# In the handle that a socket is told to have under the layers; a real one is a handle of its own.
BASE_BIT = 0x1000_0000
# What a layered provider answers to calls that it does not pass on.
ERROR_INVALID_FUNCTION = 1
ERROR_NOT_SUPPORTED = 50


def os_error(cls: type[OSError], number: int, winerror: int) -> OSError:
    """An OSError as Python's socket raises it on Windows, on any system."""
    error = cls(number, f"fake WinError {winerror}")
    error.winerror = int(winerror)
    error.errno = number
    return error


def would_block() -> OSError:
    return os_error(BlockingIOError, errno.EWOULDBLOCK, WsaError.WOULDBLOCK)


def connection_reset() -> OSError:
    return os_error(ConnectionResetError, errno.ECONNRESET, WsaError.CONNRESET)


class FakeHandle:
    """A socket, one end of a pipe, a device: whatever can be associated with a port. Made by `FakeKernel`.

    Attributes:
        kernel, handle: whose it is, and what names it there.
        association: port handle and completion key, once it has them.
        skips_port: inline successes post no packet.
    """

    is_socket = False  # how its statuses read as WinErrors

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        self.kernel = kernel
        self.handle = handle
        self.closed = False
        self.skips_port = False
        self.association: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.handle:#x} {'closed' if self.closed else 'open'}>"

    def fileno(self) -> int:
        return -1 if self.closed else self.handle

    def close(self) -> None:
        """Close the handle; a subclass says who notices. Twice is once."""
        if not self.closed:
            self.kernel.handle_closes(self.handle)
            self.closed = True


class FakeSocketBase(FakeHandle):
    """What sockets of every kind have: a name, options, a time-out."""

    is_socket = True

    def __init__(self, kernel: "FakeKernel", handle: int) -> None:
        super().__init__(kernel, handle)
        self.name: tuple[str, int] | None = None  # the local address, once there is one
        self.timeout: float | None = None
        self.detached = False  # the object is closed, and its handle is not
        self.options: dict[tuple[int, int], Any] = {}

    def fileno(self) -> int:
        return -1 if self.detached else super().fileno()

    def detach(self) -> int:
        """The handle is the caller's, and this object is as if closed."""
        self.detached = True
        return self.handle

    def setblocking(self, flag: bool) -> None:
        self.timeout = None if flag else 0.0

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def gettimeout(self) -> float | None:
        return self.timeout

    def getblocking(self) -> bool:
        return self.timeout is None

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.check_open()
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        self.check_open()
        return self.options.get((level, option), bytes(size) if size else 0)

    def getsockname(self) -> tuple[str, int]:
        self.check_open()
        return self.name or ("0.0.0.0", 0)

    def bind(self, address: tuple[str, int]) -> None:
        if self.name is not None:
            raise os_error(OSError, errno.EINVAL, WsaError.INVAL)
        self.name = ("127.0.0.1", address[1] or self.kernel.new_tcp_port())

    def check_open(self) -> None:
        if self.closed or self.detached:
            raise os_error(OSError, errno.EBADF, WsaError.NOTSOCK)

    def check_not_blocking(self) -> None:
        if self.timeout is None:
            self.kernel.violation(f"{self!r} makes a call while it is blocking: the whole program would wait")


class Request:
    """An overlapped call in the kernel's hands. A subclass says how it makes progress.

    It reads and writes the caller's real memory, piece by piece and as late as the schedule likes, as the real kernel
    does.

    Attributes:
        sock: what it was asked of, which may be a pipe or a device as well.
        ranges: memory that belongs to the kernel meanwhile: (address, size), the OVERLAPPED first.
        moved: bytes transferred so far.
        cancelled: it was asked to end, and the answer is still to come.
        stuck: a driver that never answers; not even a cancel.
    """

    can_finish_inline = True
    fails_at_once = False  # it is known already that it will fail

    def __init__(self, sock: Any, overlapped: int, ranges: list[tuple[int, int]]) -> None:
        self.sock = sock
        self.address = overlapped
        self.ranges = ranges
        self.moved = 0
        self.cancelled = False
        self.stuck = False
        self.finished = False
        self.witness: Any = None  # a weak reference to the operation object it belongs to

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address:#x} on {self.sock!r}{' stuck' * self.stuck}>"

    @property
    def line(self) -> "deque[Request]":
        """The requests that are served in order with this one."""
        return self.sock.receives  # type: ignore[no-any-return]

    def progress(self) -> Result | None:
        """Do what can be done now; the result once it is over."""
        raise NotImplementedError
