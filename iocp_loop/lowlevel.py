"""Completion ports without asyncio: the port, the proactor, and handles with methods.

    proactor = Proactor()
    handle = open_socket(proactor, sock)  # associated with the port, once and for life
    receive = handle.receive_operation(deliver, proactor.arena.buffer(4096))
    proactor.submit(receive)
    settled = proactor.select(timeout=5)
    while settled:
        operation, status, byte_count = settled.popleft()
        operation.deliver(operation, status, byte_count)

A thread of its own may wait by `select`. Many threads may wait on one port: each by `CompletionPort.wait`, and gives
what it gets to `Proactor.settle`, by which each operation's memory is the program's again. Who owns memory when: see
`OverlappedEx`. A whole server is examples/worker_threads.py.
"""

from ._core._arena import Arena, HeapArena
from ._core._endpoint import Endpoint, Key, Kind
from ._core._keys import KeyMismatchError
from ._core._operation import (
    AcceptOperation,
    ConnectOperation,
    Deliver,
    IoType,
    LifetimeError,
    OverlappedEx,
    ReadFromOperation,
    ReadOperation,
    State,
    TransmitOperation,
    WriteOperation,
    WriteToOperation,
)
from ._core._port import CompletionPort, Packet
from ._core._proactor import Proactor, Settled
from ._handles._base import DatagramHandle, IoHandle, ListenerHandle, Outcome, StreamHandle, error_of, winerror_of
from ._handles._opening import open_socket, open_stream
from ._handles._pipes import OverlappedPipe
from ._handles._sockets import OverlappedSocket, SocketHandle
from ._win32.kernel import Kernel

__all__ = [
    "AcceptOperation",
    "Arena",
    "CompletionPort",
    "ConnectOperation",
    "DatagramHandle",
    "Deliver",
    "Endpoint",
    "HeapArena",
    "IoHandle",
    "IoType",
    "Kernel",
    "Key",
    "KeyMismatchError",
    "Kind",
    "LifetimeError",
    "ListenerHandle",
    "Outcome",
    "OverlappedEx",
    "OverlappedPipe",
    "OverlappedSocket",
    "Packet",
    "Proactor",
    "ReadFromOperation",
    "ReadOperation",
    "Settled",
    "SocketHandle",
    "State",
    "StreamHandle",
    "TransmitOperation",
    "WriteOperation",
    "WriteToOperation",
    "error_of",
    "open_socket",
    "open_stream",
    "winerror_of",
]
