"""The operations of a handle: one abstract class for streams, one for datagrams, one for listeners.

Each `*_operation` method makes one operation, with its kernel call and arguments prepared, ready for
`Proactor.submit`. Its user may submit it again as often as it likes: a receive is prepared once per connection, and
re-armed after each packet. The layers above see operations, never an address.

`_opening` chooses the class for a handle.
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
    """The meaning of a receive that brought an error or no bytes."""

    DATA = "data"
    END = "end of file"
    FAILED = "failed"


class IoHandle(Endpoint):
    """A handle that is read from or written to, and what it must remember between two operations.

    Attributes:
        unread: bytes that the next receive must begin with: a receive succeeded although it was cancelled, or a
            cancelled task gave them back. Code that takes them must move them in one statement without a call, so that
            an interrupt finds them either here or in their new place.
        unread_datagrams: the same for datagrams, each with its sender. None while there are none.
        sends: the futures of the sends that run one after the other; the first is under way. None if there are none.
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

    # Whether the socket object has a send() that never waits and accepts as many bytes as there is room for.
    sends_at_once: ClassVar[bool]
    # Whether each direction can be ended without the other.
    half_closes: ClassVar[bool]
    # Whether a receive of no bytes completes when there is something to receive.
    tells_without_memory: ClassVar[bool]

    @abstractmethod
    def receive_buffer(self, size: int) -> Any:
        """Memory for a receive of up to `size` bytes."""

    @abstractmethod
    def receive_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """A receive into `buffer`, an array of chars or a `receive_buffer`. Its result is a byte count."""

    @abstractmethod
    def set_receive_buffer(self, operation: Any, buffer: Any) -> None:
        """Let the next submit of a `receive_operation` fill `buffer`. It must not be pending."""

    @abstractmethod
    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """The meaning of a receive that failed or brought no bytes."""

    @abstractmethod
    def send_operation(self, deliver: Deliver) -> OverlappedEx:
        """A send of the bytes that `set_send_vector` gives it. Its result is a byte count."""

    @abstractmethod
    def set_send_vector(self, operation: Any, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX) -> None:
        """Let the next submit of a `send_operation` send `chunks`; its result is how many bytes of them it sent.

        The kernel reads them where they are: `operation.buffer` keeps them alive, nothing is copied.

        Args:
            operation: not pending.
            chunks: bytes objects, 1 to GATHER_MAX of them.
            skip: how many bytes to leave out at the start of the first chunk.
            limit: the most bytes to send, LENGTH_MAX or less; bytes beyond it are left out.
        """


class DatagramHandle(IoHandle, ABC):
    """Messages, each with a sender and a receiver."""

    __slots__ = ()

    @abstractmethod
    def receive_from_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """A receive of one datagram into `buffer`; `sender_of` returns its sender."""

    @abstractmethod
    def sender_of(self, operation: Any) -> Any:
        """The address of the datagram's sender. To be called once for each datagram."""

    @abstractmethod
    def set_sender(self, operation: Any, sender: Any) -> None:
        """Let `sender_of` return this address, as if the datagram came from there. It must not be pending."""

    @abstractmethod
    def send_to_operation(self, deliver: Deliver, data: bytes, packed_address: bytes) -> OverlappedEx:
        """A send of one datagram to a packed address (`b""` for the connected peer)."""


class ListenerHandle(IoHandle, ABC):
    """Incoming connections."""

    __slots__ = ()

    @abstractmethod
    def accept_operation(self, deliver: Deliver, listener: "socket.socket") -> OverlappedEx:
        """An accept. Call `prepare_accept` before each submit."""

    @abstractmethod
    def prepare_accept(self, operation: Any) -> None:
        """Set `operation.arriving`, which receives the next connection. Raises OSError if no socket can be made."""

    @abstractmethod
    def accepted_addresses(self, operation: Any) -> tuple[bytes, bytes]:
        """The local and the remote SOCKADDR of the accepted connection, packed."""

    @abstractmethod
    def finish_accept(self, arriving: Closable, listener: "socket.socket") -> "socket.socket":
        """Complete the accepted socket and return it. May raise.

        Args:
            arriving: the value of `operation.arriving` when the operation was submitted.
            listener: the listening socket that accepted it.
        """


def error_of(operation: OverlappedEx, status: int) -> OSError:
    """The exception for a failed operation, naming call, handle and WinError."""
    endpoint = operation.endpoint
    return status_error(status, operation.io_type.name, endpoint.subject, is_socket=endpoint.speaks_winsock)


def winerror_of(operation: OverlappedEx, status: int) -> int:
    """The WinError of a result; 0 if it is a success."""
    return winerror_from_status(status, is_socket=operation.endpoint.speaks_winsock)
