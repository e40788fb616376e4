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

Each kind of handle has a module of its own, with its calls; packets are in `ports`, the checks in `rules`. Here is what
all requests have in common: how they begin, get on, are cancelled, and end.

A wait without end in a state where nothing can ever happen raises `Deadlock`: a hang is found at once. Time-outs cost
no time: `now_ms` moves instead.
"""

import ctypes
import random
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from iocp_loop._core._operation import SETTLED
from iocp_loop._win32.constants import Error, Status
from iocp_loop._win32.errors import is_failure, winerror_from_status
from iocp_loop._win32.types import OVERLAPPED, WSABUF

from .afd import AfdCalls
from .datagrams import DatagramCalls
from .files import FileCalls
from .handles import BASE_BIT, ERROR_NOT_SUPPORTED, FakeHandle, Request, Result
from .network import FakeSocket, Receive, StreamCalls
from .pipes import PipeCalls
from .ports import TURNS_MAX, Port, PortCalls
from .profiles import WINDOWS, Profile
from .rules import Deadlock, Interrupted, RuleChecks, Violation
from .timers import FakeTimer, TimerCalls, WaitPacket

# What a peer does: each step is one action; it yields whether it could do anything.
Actor = Generator[bool, None, None]

_SEVERITY = 0xC000_0000  # of an NTSTATUS: both bits for an error, the upper one alone for a warning

__all__ = ["Chances", "Deadlock", "FakeKernel", "Violation"]

HandleT = TypeVar("HandleT", bound=FakeHandle)


@dataclass
class Chances:
    """How often, from 0 to 1, the kernel does the less convenient thing."""

    inline: float = 0.5  # finish during the call, where the result is there already
    submit_failure: float = 0.0  # refuse the call at once, for want of resources
    late_failure: float = 0.0  # or take it, and say so by its packet
    late_success: float = 0.5  # let a cancelled request succeed, where it can
    slow_cancel: float = 0.5  # answer a cancel later, and not during the call
    partial_send: float = 0.3
    short_send: float = 0.0  # end an overlapped send with success before all of it is out (Windows is said not to)
    would_block: float = 0.2  # a send that had room is told to come back
    no_buffers: float = 0.0  # a socket's own send is refused with WSAENOBUFS
    accept_failure: float = 0.0  # an accept fails, and its client waits for the next one
    no_handle: float = 0.0  # a new socket cannot be made, or not be associated
    stuck: float = 0.0  # a request that never ends
    memory_error: float = 0.0  # a call raises MemoryError and does nothing; but what closes a handle needs none
    interrupt: float = 0.0  # KeyboardInterrupt just before or just after an overlapped call, a cancel or a wait
    reorder: float = 0.5  # hand packets out in another order than they were queued
    idle: float = 0.3  # let a wait see nothing of what could have happened
    no_timer: float = 0.0  # a call about a timer is refused
    slow_caller: float = 0.0  # a timer is due before its caller has made the next call
    coarse_wait: float = 0.5  # end a wait without packets with a tick of the clock, before its time or after it


def socket_module() -> Any:
    """`socket`, for a module that makes sockets: they are the newest fake kernel's."""
    return SimpleNamespace(**vars(socket) | {"socket": lambda *_: FakeKernel.newest.accepting_socket()})


class FakeKernel(RuleChecks, PortCalls, StreamCalls, DatagramCalls, PipeCalls, FileCalls, AfdCalls, TimerCalls):
    """Sockets, requests and one completion port, under one seed.

    Args:
        seed: names the schedule.
        chances: what the schedule is made of.

    Attributes:
        profile: the system it plays; `default_profile` unless a test sets another before it makes a handle.
        layered: the provider stands between programs and the system's sockets: it refuses skip mode and cancels. "base"
            passes cancels on where they name the socket below, "all" does not; "flat" says that there is none below,
            and "mute" does not say.
    """

    default_profile = WINDOWS
    newest: "FakeKernel"

    forgets_cancels = False

    def __init__(self, seed: int, chances: Chances | None = None) -> None:
        FakeKernel.newest = self
        self.profile: Profile = self.default_profile
        self.layered = ""
        self.seed = seed
        self.random = random.Random(seed)
        self.chances = chances or Chances()
        self.now_ms = 0.0
        self.accepts_fail = False  # each of them, at once, whether somebody comes or not
        self.files: dict[int, bytes] = {}  # by handle: what TransmitFile sends
        self.calls: dict[str, int] = {}  # how often each was called
        self.largest_send = 0  # bytes that one call on a TCP socket was given
        self.violations: list[str] = []
        self._error = 0
        self._handles: dict[int, FakeHandle | Port] = {}
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

    def make(self, cls: Callable[["FakeKernel", int], HandleT]) -> HandleT:
        """A new object of that class behind a handle."""
        handle = self.new_handle()
        thing = self._handles[handle] = cls(self, handle)
        return thing

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

    def give_up(self) -> None:
        """After a failure: forget everything, so that taking the wreck apart fails no second time."""
        for request in self._in_flight.values():
            operation = request.witness and request.witness()
            if operation is not None:
                operation.state = SETTLED
        if self._proactor is not None:
            for operation in self._proactor.pending.values():
                operation.state = SETTLED
            self._proactor.pending.clear()
            for endpoint in self._proactor.endpoints.values():
                endpoint.operations.clear()
        self._in_flight.clear()
        self._open.clear()
        self._actors.clear()
        if self._proactor is not None:
            for endpoint in list(self._proactor.endpoints.values()):
                self._proactor._finish_close_if_last(endpoint)  # Its transport waits for the last of its operations.

    def check(self, *, stuck: int = 0) -> None:
        """At the end of a schedule: no rule was broken, and nothing is left behind but `stuck` requests."""
        assert self.violations == []
        assert len(self._in_flight) == stuck, list(self._in_flight.values())
        ports = [handle for handle, thing in self._handles.items() if isinstance(thing, Port)]
        assert ports == [], "a port was left open"

    @property
    def open_handles(self) -> list[FakeHandle]:
        """What nobody has closed, beside ports, and timers, which a proactor keeps as long as it lives."""
        return [thing for thing in self._handles.values() if isinstance(thing, FakeHandle) and thing not in self.timers]

    @property
    def timers(self) -> list[FakeHandle]:
        return [thing for thing in self._handles.values() if isinstance(thing, FakeTimer | WaitPacket)]

    # -- for what is behind handles ----------------------------------------------------------------------------

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if name not in ("CloseHandle", "closesocket") and not self._peers_turn and self.chance("memory_error"):
            raise MemoryError(f"{name} of the fake kernel")

    def interrupt(self) -> None:
        """Called where a signal handler may raise: nothing has been done yet, or all of it."""
        if not self._peers_turn and self.chance("interrupt"):
            raise Interrupted

    def chance(self, name: str) -> bool:
        probability = getattr(self.chances, name)
        return probability > 0 and self.random.random() < probability

    def new_tcp_port(self) -> int:
        self._next_tcp_port += 1
        return self._next_tcp_port

    def handle_closes(self, handle: int) -> None:
        in_flight = [request for request in self._in_flight.values() if request.sock.handle == handle]
        del self._handles[handle]
        self._free_handles.append(handle)
        if self.layered:
            # Closing is all that ends a request there.
            for request in in_flight:
                if request in self._open:
                    self._finish(request, (Status.CANCELLED, request.moved))
        elif in_flight:
            self.violation(f"handle {handle:#x} is closed with {in_flight} in flight: cancel, and wait for the packets")

    # -- the Kernel protocol -----------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now_ms / 1000

    def last_error(self) -> int:
        return self._error

    def clear_last_error(self) -> None:
        self._error = 0

    def extension(self, sock: Any, name: str) -> Any:
        return getattr(self, name)

    def skips_port_safely(self, sock: Any) -> bool:
        return bool(sock.type == socket.SOCK_STREAM)

    def hasten_refusal(self, sock: Any) -> None:
        self.count("hasten_refusal")

    def CancelIoEx(self, handle: int, overlapped: int, /) -> int:
        self.count("CancelIoEx")
        self.interrupt()
        thing = self._handles.get(handle & ~BASE_BIT)
        if thing is None:
            return self._fail(Error.INVALID_HANDLE)
        if thing.is_socket and (self.layered == "all" or (self.layered and not handle & BASE_BIT)):
            return self._fail(ERROR_NOT_SUPPORTED)
        found = [r for r in self._open if r.sock is thing and overlapped in (0, r.address)]
        if not found:
            return self._fail(Error.NOT_FOUND)
        if self.profile.a_cancel_ends_all_receives and isinstance(thing, FakeSocket) and thing.backlog is None:
            found += [r for r in thing.receives if r not in found and any(r.line is other.line for other in found)]
        # One that was cancelled before, and has not answered yet, is found again. (Wine would say NOT_FOUND of it.)
        for request in [request for request in found if not request.cancelled]:
            request.cancelled = True
            if not request.stuck and not self.chance("slow_cancel"):
                self._answer_cancel(request)
        self.interrupt()
        return 1

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the fake kernel has no {name}")

    # -- inside ------------------------------------------------------------------------------------------------

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

    def new_handle(self) -> int:
        # Values are used again at once, as Windows does: a stale handle names somebody else's socket.
        if self._free_handles and self.random.random() < 0.8:
            return self._free_handles.pop()
        self._next_handle += 4
        return self._next_handle

    def _start(self, request: Request, failure: int) -> int:
        """`_begin` for a call that answers `failure`, or one more, and leaves the rest to the last error."""
        status = self._begin(request)
        answer = failure
        if status == Status.SUCCESS:
            answer = failure + 1
        elif status == Status.PENDING:
            self._fail(Error.IO_PENDING)
        else:
            self._fail(winerror_from_status(status, is_socket=request.sock.is_socket))
        self.interrupt()
        return answer

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
        if not before and self.chance("late_failure"):
            self._finish(request, (Status.INSUFFICIENT_RESOURCES, 0))
            return True
        result = request.progress()
        if result is not None:
            self._finish(request, result)
        return result is not None or request.moved != before

    def _answer_cancel(self, request: Request) -> None:
        result: Result | None = None
        if request.line[0] is request and self.chance("late_success"):
            result = request.progress()
        if result is None and isinstance(request, Receive):
            request.sock.receive_cancelled = True
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
        if isinstance(port, Port):
            port.packets.append((key, request.address, status, byte_count, request))
        else:
            # The port has gone; the status block is all there is.
            del self._in_flight[request.address]

    def _forget(self, request: Request) -> None:
        request.finished = True
        del self._open[request]
        request.line.remove(request)

    def _write_status_block(self, address: int, status: int, byte_count: int) -> None:
        block = OVERLAPPED.from_address(address)
        block.Internal, block.InternalHigh = int(status), byte_count
