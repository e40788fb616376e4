"""One overlapped operation: the OVERLAPPED the kernel writes, what it is for, and who owns it at the moment.

The lifetime rule
=================
From the moment an operation is submitted until its packet is dequeued, its memory belongs to the kernel: the
OVERLAPPED, the data buffer, the socket address, the address length. The kernel writes there whenever it likes, and
nothing tells it that Python has freed the block and given it to a dict. Such a write corrupts a stranger, silently,
minutes later. So:

* memory is given at submit, and comes back at dequeue, or at once if the submit failed, or at once if the call
  succeeded inline on a handle that posts no packet for that;
* cancelling gives nothing back. It asks; the packet answers;
* exactly one thing holds the kernel's reference: the proactor's pending table. Nothing else decides;
* what the kernel may write lives in the operation, never in a local variable or a temporary.

Every line that hands memory over, or takes it back, carries `# SAFETY:` and says who owns it from there on.

States
======
    IDLE       ours      made, or ready to be used again
    PENDING    kernel    submitted
    CANCELLING kernel    cancel was asked for; its packet may still bring success
    SETTLED    ours      the packet was dequeued; the result waits to be delivered
    RELEASED   nobody    over; in stomp mode the pages are inaccessible

An operation that dies while the kernel owns it has escaped the pending table, which is a bug of ours; or the table dies
with it, because nobody has closed its proactor. `__del__` closes that one, and is the net under the other: it revives
the object for the life of the process, so that nothing is corrupted, and reports a LifetimeError.

The struct
==========
OVERLAPPED is the first member of a larger structure, so the address in a packet *is* the address of the operation.
Behind it stands the type, readable in a memory dump, and behind that whatever else the kernel may write, by kind.
"""

import ctypes
import sys
from collections.abc import Callable
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from .._win32.sockaddr import SOCKADDR_MAX
from .._win32.types import DWORD, INT, OVERLAPPED, WSABUF
from ._kept import keep_for_ever

if TYPE_CHECKING:
    import socket

    from ._endpoint import Endpoint

# One gathered send. A Windows provider takes any number; past a few dozen, the copying of the array outweighs the gain.
GATHER_MAX = 64
# Bytes that a stream gives to one call. Windows takes a send whole, of whatever size, while less than SO_SNDBUF is on
# its way (Wine's conformance tests; KB 214397): larger ones would fill its memory, and flow control never begin.
SEND_MAX = 1024 * 1024
# AcceptEx wants room for two addresses, each with 16 bytes more than the largest address (MSDN, AcceptEx).
ACCEPT_ADDRESS_SIZE = SOCKADDR_MAX + 16


# What `Internal` says until the call that submits an operation writes there: no NTSTATUS. (In its lower half; the
# kernel leaves the upper one as it was.)
UNSUBMITTED = 0xFFFF_FFFF


class IoType(IntEnum):
    """What an operation does; stored in the structure behind its OVERLAPPED."""

    READ = 1
    WRITE = 2
    ACCEPT = 3
    CONNECT = 4
    READ_FROM = 5
    WRITE_TO = 6
    TRANSMIT_FILE = 7
    PIPE_CONNECT = 8
    POLL = 9
    WAIT = 10


class State(Enum):
    """Who owns an operation's memory; see the module's header."""

    IDLE = "idle"
    PENDING = "pending"
    CANCELLING = "cancelling"
    SETTLED = "settled"
    RELEASED = "released"


IDLE, PENDING, CANCELLING = State.IDLE, State.PENDING, State.CANCELLING
SETTLED, RELEASED = State.SETTLED, State.RELEASED
KERNEL_OWNED = frozenset({PENDING, CANCELLING})


class LifetimeError(Exception):
    """An operation or a buffer was freed, or used again, while the kernel owned it. Always a bug in the caller."""


def tell_of(error: LifetimeError) -> None:
    """Tell of it where no caller is to be told: as Python does of exceptions that nobody can catch."""
    told: Any = SimpleNamespace(exc_type=LifetimeError, exc_value=error, exc_traceback=None, err_msg=None, object=None)
    sys.unraisablehook(told)


# deliver(operation, status, byte_count): takes the result once the packet was dequeued. status is an NTSTATUS.
Deliver = Callable[["OverlappedEx", int, int], None]


class OverlappedEx(ctypes.Structure):
    """An OVERLAPPED with its operation around it. `OverlappedEx(IoType.READ)` makes one in state IDLE.

    Attributes:
        type, io_type: what it does; in the structure for memory dumps, and as an `IoType` for Python.
        address: of the structure, hence of its OVERLAPPED; the key of the pending table and of the packet.
        state: see `State`.
        endpoint: the handle it runs on, set by its method that prepares it.
        deliver: called with `(operation, status, byte_count)` after its packet was dequeued.
        context: the contextvars.Context to deliver in; None for the loop's own.
        start, args: the kernel call that submits it, and that call's arguments, prepared once.
        stop: how to ask for its end where CancelIoEx is not the way; None where it is.
        buffer: the data buffer, or whatever keeps the data alive.
        refusals: how often in a row the kernel had no memory for it, after the first time; see `_shortages`.

    Not thread-safe: one thread at a time may prepare, submit or cancel it.
    """

    _anonymous_ = ("overlapped",)
    _fields_ = [("overlapped", OVERLAPPED), ("type", DWORD)]
    __slots__ = (
        "__weakref__",
        "address",
        "args",
        "buffer",
        "context",
        "deliver",
        "endpoint",
        "io_type",
        "refusals",
        "start",
        "state",
        "stop",
    )

    # Whether `start` reports success as 0 (Winsock, NTSTATUS) or as non-zero (BOOL functions).
    zero_is_success: ClassVar[bool] = True
    # Whether the answer of `start` is itself the code of a failure (an NTSTATUS), and not the thread's last error.
    answers_status: ClassVar[bool] = False
    # Whether `start` is a call of the kernel's. If not, it is a function of ours, which may be called again after an
    # exception: it then finishes what it had begun.
    in_kernel: ClassVar[bool] = True
    # Whether it receives; see `warned`.
    receives: ClassVar[bool] = False

    type: int
    io_type: IoType
    address: int
    state: State
    endpoint: "Endpoint"
    deliver: Deliver
    context: Any
    start: Callable[..., int]
    args: tuple[Any, ...]
    buffer: Any
    refusals: int
    stop: Callable[[], None] | None

    def __init__(self, io_type: IoType) -> None:
        super().__init__()
        self.prepare(io_type)

    def prepare(self, io_type: IoType) -> None:
        """Set up memory that is already there: what `__init__` does, for an arena that places the structure itself."""
        self.type = io_type
        self.io_type = io_type
        self.address = ctypes.addressof(self)
        self.state = IDLE
        self.context = self.buffer = self.stop = None
        self.refusals = 0

    def let_go(self) -> None:
        """Keep nothing alive any more: it is released. A subclass that keeps more lets that go, too."""
        self.buffer = self.stop = None

    def __repr__(self) -> str:
        endpoint = getattr(self, "endpoint", None)
        return f"<{type(self).__name__} {self.io_type.name} {self.state.value} at {self.address:#x} on {endpoint}>"

    @property
    def pending(self) -> bool:
        """True while the kernel owns the memory."""
        return self.state in KERNEL_OWNED

    @property
    def warned(self) -> bool:
        """Whether a call that has failed for a message's length has queued its packet all the same.

        It has where the status is a warning (0x8...): of a receive it is, the part that fitted was received. A send of
        too long a datagram is an error on Windows and has no packet (STATUS_INVALID_BUFFER_SIZE), and a warning under
        Wine and has one; the kernel has then written it.
        """
        return self.receives or self.Internal >> 30 & 3 == 2

    def __del__(self) -> None:
        if getattr(self, "state", RELEASED) not in KERNEL_OWNED:
            return
        proactor = getattr(getattr(self, "endpoint", None), "proactor", None)
        if proactor is not None and proactor.pending.get(self.address) is self:
            # The table that keeps it alive is dropped with it: a proactor that nobody has closed, a loop's for example.
            # Whichever of its operations the collector comes to first closes it.
            # SAFETY: the kernel gives back all of them, or they are kept.
            proactor.close()
            return
        keep_for_ever(self)
        raise LifetimeError(f"{self!r} lost its last reference while the kernel owned it; its memory is kept")


class ReadOperation(OverlappedEx):
    """WSARecv or ReadFile into one buffer.

    QUIRK(wine): the flags word is kept, and may be written, until completion.
    """

    receives: ClassVar[bool] = True
    _fields_ = [("wsabuf", WSABUF), ("flags", DWORD)]
    __slots__ = ()


class WriteOperation(OverlappedEx):
    """WSASend of a gathered vector, or WriteFile of one buffer. `buffer` holds the bytes objects in flight."""

    _fields_ = [("wsabufs", WSABUF * GATHER_MAX)]
    __slots__ = ()


class ReadFromOperation(OverlappedEx):
    """WSARecvFrom: the kernel writes the sender's address and its length at completion."""

    receives: ClassVar[bool] = True
    _fields_ = [("wsabuf", WSABUF), ("flags", DWORD), ("address_length", INT), ("sender", ctypes.c_char * SOCKADDR_MAX)]
    __slots__ = ()


class WriteToOperation(OverlappedEx):
    """WSASendTo of one datagram."""

    _fields_ = [("wsabuf", WSABUF), ("receiver", ctypes.c_char * SOCKADDR_MAX)]
    __slots__ = ()


class AcceptOperation(OverlappedEx):
    """AcceptEx: both addresses of the new connection arrive in `addresses`.

    Attributes:
        arriving: the accepting socket, as long as the kernel may use it; None while there is none.
        provider: family, type and protocol of the listener, as plain numbers: a socket makes enums of them each time.
        read_addresses: its provider's GetAcceptExSockaddrs.
    """

    zero_is_success: ClassVar[bool] = False
    _fields_ = [("addresses", ctypes.c_char * (2 * ACCEPT_ADDRESS_SIZE))]
    __slots__ = ("arriving", "provider", "read_addresses")

    arriving: "socket.socket | None"
    provider: tuple[int, int, int]
    read_addresses: Callable[..., int]

    def prepare(self, io_type: IoType) -> None:
        super().prepare(io_type)
        self.arriving = None

    def let_go(self) -> None:
        super().let_go()
        self.arriving = None


class ConnectOperation(OverlappedEx):
    """ConnectEx to `target`."""

    zero_is_success: ClassVar[bool] = False
    _fields_ = [("target", ctypes.c_char * SOCKADDR_MAX)]
    __slots__ = ()


class FileReadOperation(ReadOperation):
    """ReadFile on a pipe."""

    zero_is_success: ClassVar[bool] = False
    __slots__ = ()


class FileWriteOperation(OverlappedEx):
    """WriteFile on a pipe."""

    zero_is_success: ClassVar[bool] = False
    __slots__ = ()


class PlainOperation(OverlappedEx):
    """A BOOL call that needs no memory but its OVERLAPPED: ConnectNamedPipe."""

    zero_is_success: ClassVar[bool] = False
    __slots__ = ()


class TransmitOperation(PlainOperation):
    """TransmitFile.

    Attributes:
        file: what is sent, which must stay open.
    """

    __slots__ = ("file",)

    file: Any

    def let_go(self) -> None:
        super().let_go()
        self.file = None


class ThreadOperation(OverlappedEx):
    """What a thread of ours does: a wait for a handle, a call that blocks. Its thread posts its packet."""

    answers_status: ClassVar[bool] = True
    in_kernel: ClassVar[bool] = False
    __slots__ = ()


def ignore(_operation: OverlappedEx, _status: int, _byte_count: int) -> None:
    """The sink of an operation whose result nobody waits for."""
