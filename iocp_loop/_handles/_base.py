"""What can be done with a handle: the contracts that its kind of class fulfils.

Each `*_operation` method makes one operation, with its kernel call and arguments prepared, ready for
`Proactor.submit`. An operation may be submitted again as often as its maker likes ("cast the rod again"): a receive
is prepared once per connection and not once per packet. The layers above see operations, never an address.

Which class serves a handle, `_opening` knows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from .._core._endpoint import Closable, Endpoint, Kind
from .._core._operation import Deliver, OverlappedEx
from .._core._proactor import Proactor
from .._win32.constants import LENGTH_MAX
from .._win32.errors import status_error, winerror_from_status

if TYPE_CHECKING:
    import socket


class Outcome(Enum):
    """What a receive that brought an error or no bytes means."""

    DATA = "data"
    END = "end of file"
    FAILED = "failed"


class IoHandle(Endpoint):
    """A handle that is read from or written to, and what is kept of that between two operations.

    Attributes:
        unread: bytes of a receive that succeeded although it was cancelled, or that a task which was cancelled has
            given back; the next receive begins with them. Whoever takes them writes in one statement, without a call,
            what they are now and what is left: an interrupt must find them in one of both.
        unread_datagrams: as `unread`, of datagrams: each with its sender. None while there are none.
        sends: the futures of what is to be sent, one after the other; the first is under way. None if there is none.
    """

    __slots__ = ("sends", "unread", "unread_datagrams")

    proactor: Proactor

    def __init__(self, handle: int, owner: Any, kind: Kind) -> None:
        super().__init__(handle, owner, kind)
        self.unread = b""
        self.unread_datagrams: list[tuple[bytes, Any]] | None = None
        self.sends: list[Any] | None = None


class StreamHandle(IoHandle, ABC):
    """Bytes in order: a socket, a pipe, a file, a console."""

    __slots__ = ()

    # Its object's own send() takes what there is room for, and never waits.
    sends_at_once: ClassVar[bool]
    # Each of its two directions may be ended by itself.
    half_closes: ClassVar[bool]
    # A receive of no bytes is over when there is something to receive.
    tells_without_memory: ClassVar[bool]

    @abstractmethod
    def receive_buffer(self, size: int) -> Any:
        """Memory for a receive of up to `size` bytes."""

    @abstractmethod
    def receive_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """A receive into `buffer`: an array of chars, or `receive_buffer`'s. Its result is a byte count."""

    @abstractmethod
    def set_receive_buffer(self, operation: Any, buffer: Any) -> None:
        """Let the next submit of a `receive_operation` fill `buffer`. It must not be pending."""

    @abstractmethod
    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """How to read a receive that failed or brought no bytes."""

    @abstractmethod
    def send_operation(self, deliver: Deliver) -> OverlappedEx:
        """A send; `set_send_vector` says of what. Its result is a byte count."""

    @abstractmethod
    def set_send_vector(self, operation: Any, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX) -> None:
        """Let the next submit of a `send_operation` send `chunks`; its result is how many bytes of them it has sent.

        They are sent from where they are: `operation.buffer` keeps them, nothing is copied.

        Args:
            operation: not pending.
            chunks: bytes objects, 1 to GATHER_MAX of them.
            skip: bytes of the first one that are left out.
            limit: bytes to send at most, LENGTH_MAX or less: what is beyond is left out.
        """


class DatagramHandle(IoHandle, ABC):
    """Messages, each from somebody and to somebody."""

    __slots__ = ()

    @abstractmethod
    def receive_from_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """A receive of one datagram into `buffer`; `sender_of` tells from whom."""

    @abstractmethod
    def sender_of(self, operation: Any) -> Any:
        """The address of the datagram's sender. Asked once for each datagram."""

    @abstractmethod
    def set_sender(self, operation: Any, sender: Any) -> None:
        """Let `sender_of` tell this address, as if the datagram had come from there. It must not be pending."""

    @abstractmethod
    def send_to_operation(self, deliver: Deliver, data: bytes, packed_address: bytes) -> OverlappedEx:
        """A send of one datagram to a packed address (`b""` for the connected peer)."""


class ListenerHandle(IoHandle, ABC):
    """Connections that come."""

    __slots__ = ()

    @abstractmethod
    def accept_operation(self, deliver: Deliver, listener: "socket.socket") -> OverlappedEx:
        """An accept; `prepare_accept` before each submit."""

    @abstractmethod
    def prepare_accept(self, operation: Any) -> None:
        """Make the place of the next connection: `operation.arriving`. Raises OSError where none can be had."""

    @abstractmethod
    def accepted_addresses(self, operation: Any) -> tuple[bytes, bytes]:
        """The local and the remote SOCKADDR of the connection that came, packed."""

    @abstractmethod
    def finish_accept(self, arriving: Closable, listener: "socket.socket") -> "socket.socket":
        """The connected socket, complete. May raise.

        Args:
            arriving: what `operation.arriving` was when the operation was submitted.
            listener: whose connection it is.
        """


def error_of(operation: OverlappedEx, status: int) -> OSError:
    """The exception for a failed operation, naming call, handle and WinError."""
    endpoint = operation.endpoint
    return status_error(status, operation.io_type.name, endpoint.subject, is_socket=endpoint.speaks_winsock)


def winerror_of(operation: OverlappedEx, status: int) -> int:
    """The WinError of a result; 0 if it is a success."""
    return winerror_from_status(status, is_socket=operation.endpoint.speaks_winsock)
