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
    """Bytes in order: a socket, a pipe, a file, a console.

    Thread-safety: its methods and its operations are for one thread at a time; a lock per handle will do.
    """

    __slots__ = ()

    # Whether the socket object has a send() that never waits and accepts as many bytes as there is room for.
    sends_at_once: ClassVar[bool]
    # Whether each direction can be ended without the other.
    half_closes: ClassVar[bool]
    # Whether a receive of no bytes completes when there is something to receive.
    tells_without_memory: ClassVar[bool]

    @abstractmethod
    def receive_buffer(self, size: int) -> Any:
        """Memory for a receive.

        Args:
            size: in bytes; the receive brings as many at most.

        Returns:
            What `receive_operation` and `set_receive_buffer` take. A slice of it is `bytes`. Once it came back full, do
            not receive into it again: it may be the message itself.
        """

    @abstractmethod
    def receive_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """Make a receive. It brings what is there, at least one byte, and waits if nothing is.

        Args:
            deliver: called with `(operation, status, byte_count)` by whoever empties `Proactor.settled`.
            buffer: an array of chars (`Arena.buffer`), or what `receive_buffer` returned. The operation keeps it.

        Returns:
            An operation in state IDLE. `receive_outcome` reads a result with an error or without bytes.

        Source: MSDN, WSARecv and ReadFile.
        """

    @abstractmethod
    def set_receive_buffer(self, operation: Any, buffer: Any) -> None:
        """Let the next submit of a receive fill another buffer.

        Args:
            operation: made by `receive_operation`, and not pending: the kernel writes to the old buffer until then.
            buffer: as for `receive_operation`.
        """

    @abstractmethod
    def receive_outcome(self, operation: OverlappedEx, status: int, byte_count: int) -> Outcome:
        """What a receive means that failed or brought no bytes.

        Args:
            operation: the receive.
            status: its NTSTATUS.
            byte_count: how many bytes it brought.

        Returns:
            END if the peer has ended the stream, DATA if it is an empty message or a part of one, FAILED otherwise;
            `error_of` makes an exception of a failure.
        """

    @abstractmethod
    def send_operation(self, deliver: Deliver) -> OverlappedEx:
        """Make a send; `set_send_vector` gives it its bytes.

        Args:
            deliver: as for `receive_operation`. The byte count says how many bytes went.

        Source: MSDN, WSASend and WriteFile.
        """

    @abstractmethod
    def set_send_vector(self, operation: Any, chunks: Sequence[bytes], skip: int = 0, limit: int = LENGTH_MAX) -> None:
        """Let the next submit of a send take these bytes.

        The kernel reads them where they are: the operation keeps them alive, nothing is copied.

        Args:
            operation: made by `send_operation`, and not pending.
            chunks: bytes objects, 1 to GATHER_MAX of them.
            skip: how many bytes to leave out at the start of the first chunk.
            limit: the most bytes to send, LENGTH_MAX or less; bytes beyond it are left out.
        """


class DatagramHandle(IoHandle, ABC):
    """Messages, each with a sender and a receiver.

    Thread-safety: as for a `StreamHandle`.
    """

    __slots__ = ()

    @abstractmethod
    def receive_from_operation(self, deliver: Deliver, buffer: Any) -> OverlappedEx:
        """Make a receive of one datagram; `sender_of` returns its sender.

        Args:
            deliver: as for `StreamHandle.receive_operation`.
            buffer: an array of chars. Of a datagram that does not fit, the beginning is there, and WinError 10040.

        Source: MSDN, WSARecvFrom.
        """

    @abstractmethod
    def sender_of(self, operation: Any) -> Any:
        """The address of the datagram's sender, as `socket.recvfrom` returns it.

        Args:
            operation: a receive that has brought a datagram. To be asked once for each, because this makes room for the
                next sender.
        """

    @abstractmethod
    def set_sender(self, operation: Any, sender: Any) -> None:
        """Let `sender_of` return this address, as if the datagram came from there.

        Args:
            operation: made by `receive_from_operation`, and not pending.
            sender: the address; None for the peer of a connected socket.
        """

    @abstractmethod
    def send_to_operation(self, deliver: Deliver, data: bytes, packed_address: bytes) -> OverlappedEx:
        """Make a send of one datagram.

        Args:
            deliver: as for `StreamHandle.receive_operation`.
            data: all of it; the operation keeps it alive.
            packed_address: from `packed_address`; `b""` for the peer of a connected socket.

        Source: MSDN, WSASendTo.
        """


class ListenerHandle(IoHandle, ABC):
    """Incoming connections.

    Thread-safety: as for a `StreamHandle`.
    """

    __slots__ = ()

    @abstractmethod
    def accept_operation(self, deliver: Deliver, listener: "socket.socket") -> OverlappedEx:
        """Make an accept. Call `prepare_accept` before each submit.

        Args:
            deliver: as for `StreamHandle.receive_operation`. No byte count, because no first bytes are waited for.
            listener: the listening socket that this is the handle of.

        Source: MSDN, AcceptEx.
        """

    @abstractmethod
    def prepare_accept(self, operation: Any) -> None:
        """Set `operation.arriving`, which receives the next connection.

        Args:
            operation: made by `accept_operation`, and not pending.

        Raises:
            OSError: no socket can be made.
        """

    @abstractmethod
    def accepted_addresses(self, operation: Any) -> tuple[bytes, bytes]:
        """The local and the remote SOCKADDR of the accepted connection, packed.

        Args:
            operation: an accept that has succeeded.

        Source: MSDN, GetAcceptExSockaddrs.
        """

    @abstractmethod
    def finish_accept(self, arriving: Closable, listener: "socket.socket") -> "socket.socket":
        """Complete the accepted socket, so that getpeername and shutdown work, and return it.

        Args:
            arriving: the value of `operation.arriving` when the operation was submitted. The caller closes it if this
                raises.
            listener: the listening socket that accepted it.

        Raises:
            OSError: the client has gone.

        Source: MSDN, AcceptEx, SO_UPDATE_ACCEPT_CONTEXT.
        """


def error_of(operation: OverlappedEx, status: int) -> OSError:
    """The exception for a failed operation, naming call, handle and WinError. Thread-safe.

    Args:
        operation: the operation.
        status: its NTSTATUS, as `settled` has it.
    """
    endpoint = operation.endpoint
    return status_error(status, operation.io_type.name, endpoint.subject, is_socket=endpoint.speaks_winsock)


def winerror_of(operation: OverlappedEx, status: int) -> int:
    """The WinError of a result; 0 if it is a success. Thread-safe.

    Args:
        operation: the operation.
        status: its NTSTATUS.
    """
    return winerror_from_status(status, is_socket=operation.endpoint.speaks_winsock)
