"""A completion port in memory, behind the `Kernel` protocol, that does on purpose what a real one does by chance.

One generator, seeded, decides everything that Windows leaves open: whether a call finishes at once or later, in what
order packets arrive, whether a cancelled operation succeeded all the same, how much a send takes. One seed is one
schedule: it can be run again.

It works on real memory. Arguments are the prepared ctypes objects, addresses are read and written where they point,
and the bytes move as late as the schedule allows. So what would corrupt a process on Windows goes wrong here too; and
because a corruption may stay silent, the kernel also checks the rules itself. A broken rule raises `Violation`, and
is kept in `violations` for `check`, because a caller may swallow what is raised.

* One OVERLAPPED is in one request at a time.
* Until its packet is dequeued, an operation is in the proactor's pending table, its object is the same one, and what
  it holds in `buffer` covers every byte that the kernel was told to read or write.
* A handle is closed with nothing in flight: cancelled, and every packet dequeued.
* Hot calls get prepared arguments, never a bare int.

A wait without end in a state where nothing can ever happen raises `Deadlock`: a hang is found at once. Time-outs cost
no time: `now_ms` moves instead.
"""

import ctypes
import errno
import random
import socket
import weakref
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from iocp_loop._operation import ORPHANS, SETTLED, OverlappedEx
from iocp_loop._win32 import prototypes
from iocp_loop._win32.constants import INFINITE, INVALID_HANDLE_VALUE, Error, NotificationMode, Status, WsaError
from iocp_loop._win32.errors import is_failure, winerror_from_status
from iocp_loop._win32.types import DWORD, OVERLAPPED, OVERLAPPED_ENTRY, WSABUF

from .afd import AfdCalls
from .datagrams import DatagramCalls
from .files import FileCalls
from .handles import FakeHandle, Request, Result, os_error
from .network import Accept, Connect, FakeSocket, Receive, Send
from .pipes import PipeCalls

# What a peer does: each step is one action; it yields whether it could do anything.
Actor = Generator[bool, None, None]

TURNS_MAX = 100_000  # Of one wait. No schedule of ours comes near it; more means that two sides spin.
_POINTER_SIZE = ctypes.sizeof(ctypes.c_size_t)
_SEVERITY = 0xC000_0000  # of an NTSTATUS: both bits for an error, the upper one alone for a warning

HandleT = TypeVar("HandleT", bound=FakeHandle)


class Violation(AssertionError):
    """The program broke a rule that Windows would not have told it about."""


class Deadlock(AssertionError):
    """The program waits for ever, and nothing can happen any more."""


@dataclass
class Chances:
    """How often, from 0 to 1, the kernel does the less convenient thing."""

    inline: float = 0.5  # finish during the call, where the result is there already
    submit_failure: float = 0.0  # refuse the call at once, for want of resources
    late_success: float = 0.5  # let a cancelled request succeed, where it can
    slow_cancel: float = 0.5  # answer a cancel later, and not during the call
    partial_send: float = 0.3
    short_send: float = 0.0  # end an overlapped send with success before all of it is out (Windows is said not to)
    would_block: float = 0.2  # a send that had room is told to come back
    accept_failure: float = 0.0  # an accept fails, and its client waits for the next one
    no_handle: float = 0.0  # a new socket cannot be made, or not be associated
    stuck: float = 0.0  # a request that never ends
    memory_error: float = 0.0  # a call raises MemoryError and does nothing; see _NEEDS_NO_MEMORY
    reorder: float = 0.5  # hand packets out in another order than they were queued
    idle: float = 0.3  # let a wait see nothing of what could have happened


@dataclass
class _Port:
    packets: list[tuple[int, int, int, int, Request | None]]  # key, address, status, byte count, request
    closed: bool = False


# What Proactor.submit calls, with arguments that are prepared, and what takes it back: no memory is needed there.
_NEEDS_NO_MEMORY = frozenset(
    {
        "CancelIoEx",
        "WSARecv",
        "WSASend",
        "WSARecvFrom",
        "WSASendTo",
        "AcceptEx",
        "ConnectEx",
        "TransmitFile",
        "ReadFile",
        "WriteFile",
        "ConnectNamedPipe",
        "NtDeviceIoControlFile",
    }
)
# A prepared argument, back to its value: a private function object, so that the prototype is ours alone.
_python = ctypes.PyDLL(ctypes.pythonapi._name, handle=ctypes.pythonapi._handle)
_value_of = _python.PyLong_FromSize_t
_value_of.restype = ctypes.py_object
_Prepared = type(ctypes.c_size_t.from_param(0))
_MASKS = {
    proto.name: tuple((1 << 8 * ctypes.sizeof(ctype)) - 1 for ctype in proto.parameters.values())
    for proto in (*prototypes.PROTOTYPES, *prototypes.EXTENSIONS)
    if proto.style in (prototypes.HOT, prototypes.WAITING)
}


class FakeKernel(DatagramCalls, PipeCalls, FileCalls, AfdCalls):
    """Sockets, requests and one completion port, under one seed.

    Args:
        seed: names the schedule.
        chances: what the schedule is made of.
    """

    def __init__(self, seed: int, chances: Chances | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.chances = chances or Chances()
        self.now_ms = 0
        self.accepts_fail = False  # each of them, at once, whether somebody comes or not
        self.files: dict[int, bytes] = {}  # by handle: what TransmitFile sends
        self.calls: dict[str, int] = {}  # how often each was called
        self.violations: list[str] = []
        self._error = 0
        self._handles: dict[int, FakeHandle | _Port] = {}
        self._free_handles: list[int] = []
        self._next_handle = 0x100
        self._next_tcp_port = 49152
        self._in_flight: dict[int, Request] = {}  # by address: until its packet is dequeued
        self._open: dict[Request, None] = {}  # those of them that have not finished, in order
        self._actors: list[Actor] = []
        self._proactor: Any = None
        self._peers_turn = False  # no call is the program's now

    # -- for the tests -----------------------------------------------------------------------------------------

    def watch(self, proactor: Any) -> None:
        """Check the lifetime of every request against this proactor's pending table."""
        self._proactor = proactor

    def socket(self) -> FakeSocket:
        """A new socket, neither bound nor connected."""
        return self.make(FakeSocket)

    def make(self, cls: Callable[["FakeKernel", int], HandleT]) -> HandleT:
        """A new object of that class behind a handle."""
        handle = self.new_handle()
        thing = self._handles[handle] = cls(self, handle)
        return thing

    def socketpair(self) -> tuple[FakeSocket, FakeSocket]:
        """Two connected non-blocking sockets."""
        left, right = self.socket(), self.socket()
        left.peer, right.peer = right, left
        for sock in (left, right):
            sock.name = ("127.0.0.1", self.new_tcp_port())
            sock.setblocking(False)
        return left, right

    def listen(self) -> FakeSocket:
        """A non-blocking listener; clients come by ConnectEx or by `connect_to`."""
        sock = self.socket()
        sock.name = ("127.0.0.1", self.new_tcp_port())
        sock.listen()
        sock.setblocking(False)
        return sock

    def accepting_socket(self) -> FakeSocket:
        """What `socket.socket()` gives to a listener; there may be none."""
        self.count("socket")
        if self.chance("no_handle"):
            raise os_error(OSError, errno.EMFILE, WsaError.MFILE)
        sock = self.socket()
        sock.setblocking(False)
        return sock

    def connect_to(self, listener: FakeSocket) -> FakeSocket:
        """A client in the listener's backlog."""
        client = self.socket()
        client.setblocking(False)
        client.name = ("127.0.0.1", self.new_tcp_port())
        client.arrive_at(listener)
        return client

    def give_away(self, sock: FakeHandle) -> None:
        """Let it belong to a port of somebody else."""
        sock.association = (0, 0)

    def act(self, actor: Actor) -> None:
        """Let a peer take its steps whenever the program waits."""
        self._actors.append(actor)

    def unstick(self) -> None:
        """The stuck requests can make progress again."""
        for request in self._open:
            request.stuck = False

    def settle_all(self) -> None:
        """Let happen what can happen, without a wait."""
        for _ in range(TURNS_MAX):
            if not self._turn():
                return
        raise Deadlock("the peers and the requests spin without end")

    def inject(self, key: int, address: int, status: int = Status.SUCCESS, byte_count: int = 0) -> None:
        """Queue a packet that nobody asked for."""
        port = next(port for port in self._handles.values() if isinstance(port, _Port))
        port.packets.append((key, address, status, byte_count, None))

    def give_up(self) -> None:
        """After a failure: forget everything, so that taking the wreck apart fails no second time."""
        for request in self._in_flight.values():
            operation = request.witness and request.witness()
            if operation is not None:
                operation.state = SETTLED
        if self._proactor is not None:
            self._proactor.pending.clear()
            for endpoint in self._proactor.endpoints.values():
                endpoint.operations.clear()
        self._in_flight.clear()
        self._open.clear()
        self._actors.clear()

    def check(self, *, stuck: int = 0) -> None:
        """At the end of a schedule: no rule was broken, and nothing is left behind but `stuck` requests."""
        assert self.violations == []
        assert len(self._in_flight) == stuck, list(self._in_flight.values())
        ports = [handle for handle, thing in self._handles.items() if isinstance(thing, _Port)]
        assert ports == [], "a port was left open"

    @property
    def open_handles(self) -> list[FakeHandle]:
        """What nobody has closed, beside ports."""
        return [thing for thing in self._handles.values() if isinstance(thing, FakeHandle)]

    # -- for what is behind handles ----------------------------------------------------------------------------

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if name not in _NEEDS_NO_MEMORY and not self._peers_turn and self.chance("memory_error"):
            raise MemoryError(f"{name} of the fake kernel")

    def chance(self, name: str) -> bool:
        probability = getattr(self.chances, name)
        return probability > 0 and self.random.random() < probability

    def violation(self, text: str) -> None:
        self.violations.append(text)
        raise Violation(f"{text} (seed {self.seed})")

    def new_tcp_port(self) -> int:
        self._next_tcp_port += 1
        return self._next_tcp_port

    def listener_at(self, address: Any) -> FakeSocket | None:
        for thing in self._handles.values():
            if isinstance(thing, FakeSocket) and thing.backlog is not None and thing.name == address:
                return thing
        return None

    def handle_closes(self, handle: int) -> None:
        in_flight = [request for request in self._in_flight.values() if request.sock.handle == handle]
        del self._handles[handle]
        self._free_handles.append(handle)
        if in_flight:
            self.violation(f"handle {handle:#x} is closed with {in_flight} in flight: cancel, and wait for the packets")

    # -- the Kernel protocol -----------------------------------------------------------------------------------

    def last_error(self) -> int:
        return self._error

    def extension(self, sock: FakeSocket, name: str) -> Any:
        return getattr(self, name)

    def skips_port_safely(self, sock: Any) -> bool:
        return bool(sock.type == socket.SOCK_STREAM)

    def CreateIoCompletionPort(self, handle: int, port: int, key: int, threads: int, /) -> int:
        self.count("CreateIoCompletionPort")
        if handle == INVALID_HANDLE_VALUE:
            new = self.new_handle()
            self._handles[new] = _Port([])
            return new
        thing = self._handles.get(handle)
        if not isinstance(thing, FakeHandle):
            return self._fail(Error.INVALID_HANDLE)
        if thing.association is not None:
            return self._fail(Error.INVALID_PARAMETER)
        if self.chance("no_handle"):
            return self._fail(Error.NOT_ENOUGH_MEMORY)
        thing.association = (port, key)
        return port

    def SetFileCompletionNotificationModes(self, handle: int, flags: int, /) -> int:
        self.count("SetFileCompletionNotificationModes")
        self.thing(handle, FakeHandle).skips_port = bool(flags & NotificationMode.SKIP_COMPLETION_PORT_ON_SUCCESS)
        return 1

    def PostQueuedCompletionStatus(self, port: int, byte_count: int, key: int, overlapped: int, /) -> int:
        self.count("PostQueuedCompletionStatus")
        self._port(port).packets.append((key, overlapped, Status.SUCCESS, byte_count, None))
        return 1

    def CloseHandle(self, handle: int, /) -> int:
        self.count("CloseHandle")
        thing = self._handles.get(handle)
        if isinstance(thing, FakeHandle):
            thing.close()
            return 1
        port = self._port(handle)
        port.closed = True
        del self._handles[handle]
        orphans = {orphan.address for orphan in ORPHANS}
        lost = [request for address, request in self._in_flight.items() if address not in orphans]
        if lost:
            self.violation(f"the port is closed and the packets of {lost} go nowhere")
        return 1

    def GetQueuedCompletionStatusEx(self, *args: Any) -> int:
        handle, entries, entry_count, removed, timeout_ms, _alertable = self._arguments(
            "GetQueuedCompletionStatusEx", args
        )
        port = self._port(handle)
        if not self.chance("idle"):
            for _ in range(self.random.randrange(4)):
                self._turn()
        if timeout_ms:
            self._wait_for_packet(port, timeout_ms)
        count = min(len(port.packets), entry_count)
        if count > 1 and self.chance("idle"):
            count = self.random.randrange(1, count)
        if not count:
            return self._fail(Error.WAIT_TIMEOUT)
        if self.chance("reorder"):
            self.random.shuffle(port.packets)
        batch, port.packets[:] = port.packets[:count], port.packets[count:]
        for index, packet in enumerate(batch):
            self._dequeue(packet, entries + index * ctypes.sizeof(OVERLAPPED_ENTRY))
        ctypes.c_uint32.from_address(removed).value = count
        return 1

    def CancelIoEx(self, handle: int, overlapped: int, /) -> int:
        self.count("CancelIoEx")
        thing = self._handles.get(handle)
        if thing is None:
            return self._fail(Error.INVALID_HANDLE)
        found = [r for r in self._open if r.sock is thing and not r.cancelled and overlapped in (0, r.address)]
        if not found:
            return self._fail(Error.NOT_FOUND)
        for request in found:
            request.cancelled = True
            if not request.stuck and not self.chance("slow_cancel"):
                self._answer_cancel(request)
        return 1

    def WSARecv(self, *args: Any) -> int:
        handle, array, array_length, count_at, _flags, overlapped, routine = self._arguments("WSARecv", args)
        self._check_pointers("WSARecv", count_at, routine)
        sock = self.thing(handle, FakeSocket)
        return self._start(Receive(sock, overlapped, self._ranges(overlapped, array, array_length)), -1)

    def WSASend(self, *args: Any) -> int:
        handle, array, array_length, count_at, _flags, overlapped, routine = self._arguments("WSASend", args)
        self._check_pointers("WSASend", count_at, routine)
        sock = self.thing(handle, FakeSocket)
        if sock.write_closed:
            return self._fail(WsaError.SHUTDOWN, -1)
        return self._start(Send(sock, overlapped, self._ranges(overlapped, array, array_length)), -1)

    def AcceptEx(self, *args: Any) -> int:
        handle, accepting, block, first_bytes, local, remote, count_at, overlapped = self._arguments("AcceptEx", args)
        self._check_pointers("AcceptEx", count_at, first_bytes)
        accepted = self.thing(accepting, FakeSocket)
        if accepted.peer is not None:
            return self._fail(WsaError.INVAL, 0)
        ranges = [(overlapped, ctypes.sizeof(OVERLAPPED)), (block, local + remote)]
        return self._start(Accept(self.thing(handle, FakeSocket), overlapped, ranges, accepted), 0)

    def GetAcceptExSockaddrs(self, block: int, first: int, local: int, remote: int, *where: int) -> None:
        for index, (at, length_at) in enumerate(zip(where[::2], where[1::2], strict=True)):
            ctypes.c_size_t.from_address(at).value = block + first + index * local
            ctypes.c_int32.from_address(length_at).value = 16

    def ConnectEx(self, *args: Any) -> int:
        handle, target, length, _data, _size, count_at, overlapped = self._arguments("ConnectEx", args)
        self._check_pointers("ConnectEx", count_at, 0)
        sock = self.thing(handle, FakeSocket)
        if sock.name is None:
            return self._fail(WsaError.INVAL, 0)
        ranges = [(overlapped, ctypes.sizeof(OVERLAPPED)), (target, length)]
        return self._start(Connect(sock, overlapped, ranges), 0)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the fake kernel has no {name}")

    # -- inside ------------------------------------------------------------------------------------------------

    def _arguments(self, name: str, args: tuple[Any, ...]) -> list[int]:
        self.count(name)
        masks = _MASKS[name]
        if len(args) != len(masks):
            self.violation(f"{name} takes {len(masks)} arguments, not {len(args)}")
        # An object of a ctypes type is passed by its value, and is as wide as its type.
        if not all(type(arg) in (_Prepared, DWORD) for arg in args):
            self.violation(f"{name} was called with an argument that was not prepared: {args}")
        return [_value_of(arg) & mask for arg, mask in zip(args, masks, strict=True)]

    def _check_pointers(self, name: str, count_at: int, unwanted: int) -> None:
        if count_at or unwanted:
            self.violation(f"{name}: the byte count of an overlapped call comes with its packet; pass NULL")

    def _ranges(self, overlapped: int, array: int, length: int) -> list[tuple[int, int]]:
        buffers = (WSABUF * length).from_address(array)
        return [(overlapped, ctypes.sizeof(OVERLAPPED)), *((piece.buf, piece.len) for piece in buffers)]

    def _fail(self, code: int, answer: int = 0) -> int:
        self._error = int(code)
        return answer

    def thing(self, handle: int, cls: type[HandleT]) -> HandleT:
        """What is behind a handle, which must be of that class."""
        thing = self._handles.get(handle)
        if not isinstance(thing, cls):
            self.violation(f"handle {handle:#x} is no open {cls.__name__}")
        return thing  # type: ignore[return-value]

    def _port(self, handle: int) -> _Port:
        thing = self._handles.get(handle)
        if not isinstance(thing, _Port):
            self.violation(f"handle {handle:#x} is no open port")
        return thing  # type: ignore[return-value]

    def new_handle(self) -> int:
        # Values are used again at once, as Windows does: a stale handle names somebody else's socket.
        if self._free_handles and self.random.random() < 0.8:
            return self._free_handles.pop()
        self._next_handle += 4
        return self._next_handle

    def _start(self, request: Request, failure: int) -> int:
        """`_begin` for a call that answers `failure`, or one more, and leaves the rest to the last error."""
        status = self._begin(request)
        if status == Status.SUCCESS:
            return failure + 1
        if status == Status.PENDING:
            return self._fail(Error.IO_PENDING, failure)
        return self._fail(winerror_from_status(status, is_socket=request.sock.is_socket), failure)

    def _begin(self, request: Request) -> int:
        """Take a request on; what the call answers as an NTSTATUS."""
        address = request.address
        if address in self._in_flight:
            self.violation(f"the OVERLAPPED at {address:#x} is submitted again while it is in flight")
        self._write_status_block(address, Status.PENDING, 0)
        if self.chance("submit_failure"):
            # The status block keeps saying "pending" after a failure at once; so does the real kernel.
            return Status.INSUFFICIENT_RESOURCES
        if request.sock.association is None:
            self.violation(f"{request!r} starts on a handle without a port: its packet would go nowhere")
        self._in_flight[address] = request
        self._open[request] = None
        self._remember(request)
        request.stuck = self.chance("stuck")
        first = not request.line
        request.line.append(request)
        if request.fails_at_once or (
            first and not request.stuck and request.can_finish_inline and self.chance("inline")
        ):
            return self._try_inline(request)
        return Status.PENDING

    def _try_inline(self, request: Request) -> int:
        result = request.progress()
        if result is None:
            return Status.PENDING
        status = result[0]
        if status & _SEVERITY == _SEVERITY:
            # An error: nothing was queued, and no packet comes. A warning's comes, as that of a success.
            self._forget(request)
            del self._in_flight[request.address]
            return status
        if is_failure(status) and request.sock.skips_port:
            self.violation(f"{request!r} ends with a warning in skip mode: Wine posts no packet then, and Windows may")
        self._finish(request, result, inline=True)
        return status

    def _turn(self) -> bool:
        """Let one thing happen; False if nothing can."""
        # A peer's send may be told to come back although there was room: it is asked until chance cannot be the reason.
        return any(self._try_turn() for _ in range(50 if self._actors else 1))

    def _try_turn(self) -> bool:
        candidates: list[Any] = [*self._open, *self._actors]
        self.random.shuffle(candidates)
        for candidate in candidates:
            if isinstance(candidate, Request):
                if self._advance(candidate):
                    return True
            else:
                self._peers_turn = True
                acted = next(candidate, None)
                self._peers_turn = False
                if acted is None:
                    self._actors.remove(candidate)
                    return True
                if acted:
                    return True
        return False

    def _advance(self, request: Request) -> bool:
        if request.stuck or request.finished:
            return False
        if request.cancelled:
            self._answer_cancel(request)
            return True
        if request.line[0] is not request:
            return False
        before = request.moved
        result = request.progress()
        if result is not None:
            self._finish(request, result)
        return result is not None or request.moved != before

    def _answer_cancel(self, request: Request) -> None:
        result: Result | None = None
        if request.line[0] is request and self.chance("late_success"):
            result = request.progress()
        self._finish(request, result or (Status.CANCELLED, request.moved))

    def _finish(self, request: Request, result: Result, *, inline: bool = False) -> None:
        status, byte_count = result
        self._check_lifetime(request)
        self._forget(request)
        assert request.sock.association is not None
        port_handle, key = request.sock.association
        if inline and request.sock.skips_port:
            del self._in_flight[request.address]
            self._write_status_block(request.address, status, byte_count)
            return
        self._write_status_block(request.address, status, byte_count)
        port = self._handles.get(port_handle)
        if isinstance(port, _Port):
            port.packets.append((key, request.address, status, byte_count, request))
        else:
            # The port has gone; the status block is all there is.
            del self._in_flight[request.address]

    def _forget(self, request: Request) -> None:
        request.finished = True
        del self._open[request]
        request.line.remove(request)

    def _wait_for_packet(self, port: _Port, timeout_ms: int) -> None:
        for _ in range(TURNS_MAX):
            if port.packets:
                return
            if not self._turn():
                if timeout_ms != INFINITE:
                    self.now_ms += timeout_ms
                    return
                raise Deadlock(f"nothing can happen any more, and the program waits (seed {self.seed}): {self._open}")
        raise Deadlock(f"the peers spin and no packet comes (seed {self.seed}): {self._open}")

    def _dequeue(self, packet: tuple[int, int, int, int, Request | None], entry_at: int) -> None:
        key, address, status, byte_count, request = packet
        entry = OVERLAPPED_ENTRY.from_address(entry_at)
        entry.lpCompletionKey, entry.lpOverlapped = key, address
        # The upper half of Internal means nothing; make sure that nobody reads it.
        entry.Internal = status | (self.random.getrandbits(32) << 32 if _POINTER_SIZE == 8 else 0)
        entry.dwNumberOfBytesTransferred = byte_count
        if request is not None:
            self._check_lifetime(request)
            del self._in_flight[address]

    def _write_status_block(self, address: int, status: int, byte_count: int) -> None:
        block = OVERLAPPED.from_address(address)
        block.Internal, block.InternalHigh = int(status), byte_count

    def _remember(self, request: Request) -> None:
        if self._proactor is None:
            return
        operation = self._proactor.pending.get(request.address)
        if operation is None:
            self.violation(f"{request!r} starts and is not in the pending table: another thread may dequeue it first")
        request.witness = weakref.ref(operation)
        self._check_lifetime(request)

    def _check_lifetime(self, request: Request) -> None:
        if request.witness is None:
            return
        operation = request.witness()
        if operation is None:
            self.violation(f"the operation of {request!r} was freed while the kernel owned it")
        if self._proactor.pending.get(request.address) is not operation and operation not in ORPHANS:
            self.violation(f"{operation!r} is in the kernel's hands and not in the pending table")
        owned = list(_spans_of(operation))
        for address, size in request.ranges:
            if size and not any(start <= address and address + size <= end for start, end in owned):
                self.violation(f"nothing that {operation!r} holds keeps the {size} bytes at {address:#x} alive")


def _spans_of(operation: OverlappedEx) -> Iterable[tuple[int, int]]:
    """The memory that an operation keeps alive: its own, and what is in `buffer` and `keepalive`."""
    yield ctypes.addressof(operation), ctypes.addressof(operation) + ctypes.sizeof(operation)
    for held in (operation.buffer, operation.keepalive):
        for thing in held if isinstance(held, (list, tuple)) or hasattr(held, "popleft") else (held,):
            yield from _span_of(thing)


def _span_of(thing: Any) -> Iterable[tuple[int, int]]:
    if isinstance(thing, bytes):
        start = _address_of_bytes(thing)
        yield start, start + len(thing)
    elif isinstance(thing, ctypes.Array):
        yield ctypes.addressof(thing), ctypes.addressof(thing) + ctypes.sizeof(thing)
    elif isinstance(thing, (bytearray, memoryview)) and len(thing):
        start = ctypes.addressof(ctypes.c_char.from_buffer(thing))
        yield start, start + memoryview(thing).nbytes


_address_of_bytes = _python.PyBytes_AsString
_address_of_bytes.argtypes = (ctypes.py_object,)
_address_of_bytes.restype = ctypes.c_size_t
