"""Completion ports without asyncio: the port, the proactor, and handles with methods.

    proactor = Proactor()
    handle = open_socket(proactor, sock)  # associated with the port, once and for life
    receive = handle.receive_operation(deliver, proactor.arena.buffer(4096))
    proactor.submit(receive)
    settled = proactor.select(timeout=5)
    while settled:
        operation, status, byte_count = settled.popleft()
        operation.deliver(operation, status, byte_count)

Four things, and what each of them is for:

* `CompletionPort` is the kernel's queue. Any thread may wait on it and post to it.
* `Proactor` owns what is outstanding: `submit`, `cancel`, `select` or `settle`, `close_endpoint`, `close`. Memory that
  the kernel may write to stays in its table until the packet has come.
* A handle is opened by `open_socket`, `open_stream`, `create_pipe` or `connect_pipe`. Its methods make operations.
* An operation, an `OverlappedEx`, is submitted, settled, and may be submitted again. Who owns its memory when is said
  there. `wait_operation` makes one that waits for a process, an event or a timer.

One thread may do everything by `select`, as above. Many threads may wait on one port: each calls `CompletionPort.wait`,
and gives what it gets to `Proactor.settle`, by which each operation's memory is the program's again. Whoever touches
the operations of one endpoint then holds a lock of that endpoint. A server of this kind is examples/worker_threads.py.

What the kernel answers is never raised by `submit`: every outcome, also a call that failed at once, is settled with a
`status`. `error_of` makes an exception of it, `winerror_of` its number.
"""

from ._core._arena import Arena, HeapArena
from ._core._endpoint import Closable, Endpoint, Key, Kind
from ._core._keys import KeyMismatchError
from ._core._operation import (
    AcceptOperation,
    ConnectOperation,
    Deliver,
    IoType,
    LifetimeError,
    OverlappedEx,
    PlainOperation,
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
from ._handles._opening import connect_pipe, create_pipe, open_socket, open_stream
from ._handles._pipes import OverlappedPipe
from ._handles._sockets import OverlappedSocket, SocketHandle, bind_to_any
from ._handles._waits import WaitOperation, is_signalled, wait_operation
from ._win32.kernel import Kernel
from ._win32.sockaddr import resolve as packed_address

__all__ = [
    "AcceptOperation",
    "Arena",
    "Closable",
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
    "PlainOperation",
    "Proactor",
    "ReadFromOperation",
    "ReadOperation",
    "Settled",
    "SocketHandle",
    "State",
    "StreamHandle",
    "TransmitOperation",
    "WaitOperation",
    "WriteOperation",
    "WriteToOperation",
    "bind_to_any",
    "connect_pipe",
    "create_pipe",
    "error_of",
    "is_signalled",
    "open_socket",
    "open_stream",
    "packed_address",
    "wait_operation",
    "winerror_of",
]
