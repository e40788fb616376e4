"""One overlapped operation: the OVERLAPPED the kernel writes, what it is for, and who owns it at the moment.

The lifetime rule
=================
From the moment an operation is submitted until its packet is dequeued, its memory belongs to the kernel: the
OVERLAPPED, the data buffer, the socket address, the address length. The kernel writes there whenever it likes, and
nothing tells it that Python has freed the block and given it to a dict. Such a write corrupts an unrelated object,
silently, minutes later. So:

* memory is handed over at submit, and comes back at dequeue, or at once if the submit failed, or at once if the call
  succeeded inline on a handle that posts no packet for that;
* cancelling gives nothing back. It is a request, and the packet is the answer;
* exactly one thing holds the reference on the kernel's behalf: the proactor's pending table;
* memory that the kernel may write lives in the operation, never in a local variable or a temporary.

Every line that hands memory over, or takes it back, carries `# SAFETY:` and says who owns it from there on.

States
======
    IDLE       ours      made, or ready to be used again
    PENDING    kernel    submitted
    CANCELLING kernel    the kernel was asked to cancel it; its packet may still bring success
    SETTLED    ours      the packet was dequeued; the result waits to be delivered
    RELEASED   nobody    over; in stomp mode the pages are inaccessible

An operation may lose its last reference while the kernel owns it, for one of two reasons. Either it escaped the pending
table, which is a bug of ours; then `__del__` keeps the object for the life of the process, so that nothing is
corrupted, and raises a LifetimeError. Or the table dies with it, because nobody closed the proactor; then `__del__`
closes the proactor.

The struct
==========
OVERLAPPED is the first member of a larger structure, so the address in a packet *is* the address of the operation.
The type follows, readable in a memory dump, and then whatever else the kernel may write for this kind of operation.
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

# Buffers in one send. Windows accepts any number, but beyond a few dozen, copying the array costs more than it saves.
GATHER_MAX = 64
# The most bytes that a stream passes to one call. While less than SO_SNDBUF is on its way, Windows accepts a send of
# any size whole (Wine's conformance tests; KB 214397). Larger sends would fill its memory without any flow control.
SEND_MAX = 1024 * 1024
# AcceptEx wants room for two addresses, each with 16 bytes more than the largest address (MSDN, AcceptEx).
ACCEPT_ADDRESS_SIZE = SOCKADDR_MAX + 16


# The value of `Internal` until the call that submits an operation writes there. No NTSTATUS has this value. (It is
# compared with the lower half; the kernel leaves the upper half as it was.)
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
    """Report an error that no caller can catch, by way of `sys.unraisablehook`."""
    told: Any = SimpleNamespace(exc_type=LifetimeError, exc_value=error, exc_traceback=None, err_msg=None, object=None)
    sys.unraisablehook(told)


# deliver(operation, status, byte_count): called with the result after the packet is dequeued. status is an NTSTATUS.
Deliver = Callable[["OverlappedEx", int, int], None]


class OverlappedEx(ctypes.Structure):
    """An OVERLAPPED with its operation around it. `OverlappedEx(IoType.READ)` makes one in state IDLE.

    Attributes:
        type, io_type: what it does; in the structure for memory dumps, and as an `IoType` for Python.
        address: of the structure, hence of its OVERLAPPED. The pending table and the packet identify it by this.
        state: see `State`.
        endpoint: the handle it runs on, set by the endpoint's method that makes the operation.
        deliver: called with `(operation, status, byte_count)` after its packet was dequeued.
        context: the contextvars.Context to deliver in; None for the loop's own.
        start, args: the kernel call that submits it, and that call's arguments, prepared once.
        stop: called to cancel it if CancelIoEx cannot; None if CancelIoEx can.
        buffer: the data buffer, or whatever keeps the data alive.
        refusals: how often in a row the kernel had no memory for it, not counting the first time; see `_shortages`.

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
    # Whether `start` returns the code of a failure itself (an NTSTATUS). If not, the thread's last error has it.
    answers_status: ClassVar[bool] = False
    # Whether `start` is a kernel call. If not, it is a function of ours, which may be called again after an exception
    # and then finishes what it began.
    in_kernel: ClassVar[bool] = True
    # Whether it is a receive; see `warned`.
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
        """Do the work of `__init__` on existing memory, for an arena that places the structure itself."""
        self.type = io_type
        self.io_type = io_type
        self.address = ctypes.addressof(self)
        self.state = IDLE
        self.context = self.buffer = self.stop = None
        self.refusals = 0

    def let_go(self) -> None:
        """Drop the references that kept memory and handles alive for the kernel. Called when it is released."""
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
        """Whether a call that failed because of a message's length queued its packet all the same.

        It did if the status is a warning (0x8...). For a receive it always is: the part that fitted was received. A
        send of too long a datagram is an error on Windows and has no packet (STATUS_INVALID_BUFFER_SIZE); under Wine it
        is a warning, written to `Internal`, and has one.
        """
        return self.receives or self.Internal >> 30 & 3 == 2

    def __del__(self) -> None:
        if getattr(self, "state", RELEASED) not in KERNEL_OWNED:
            return
        proactor = getattr(getattr(self, "endpoint", None), "proactor", None)
        if proactor is not None and proactor.pending.get(self.address) is self:
            # The table that kept it alive dies too: nobody closed the proactor, which may be a loop's. The first of its
            # operations that the collector finalizes closes it.
            # SAFETY: the kernel gives back all of the operations, or `close` keeps them.
            proactor.close()
            return
        keep_for_ever(self)
        raise LifetimeError(f"{self!r} lost its last reference while the kernel owned it; its memory is kept")


class ReadOperation(OverlappedEx):
    """WSARecv or ReadFile into one buffer.

    QUIRK(wine): Wine keeps the pointer to the flags word, and may write there, until completion.
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
        provider: the listener's family, type and protocol as plain numbers, because `socket.socket` makes enums of
            them at each access.
        read_addresses: the provider's GetAcceptExSockaddrs.
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
        file: the file to send, which must stay open.
    """

    __slots__ = ("file",)

    file: Any

    def let_go(self) -> None:
        super().let_go()
        self.file = None


class ThreadOperation(OverlappedEx):
    """Work of a thread of ours, such as waiting for a handle or a blocking call. The thread posts the packet."""

    answers_status: ClassVar[bool] = True
    in_kernel: ClassVar[bool] = False
    __slots__ = ()


def ignore(_operation: OverlappedEx, _status: int, _byte_count: int) -> None:
    """The `deliver` of an operation whose result nobody waits for."""
