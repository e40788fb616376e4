"""What one system does and another does not: each difference is a switch, with its source. Data only.

The fake kernel plays Windows unless it is told otherwise. What is not a switch is the same on both, or open on both, and
then the seed decides it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One system.

    Attributes:
        name: for messages.
        a_cancel_ends_all_receives: CancelIoEx of one receive on a TCP socket ends all that wait on it, each with
            ERROR_OPERATION_ABORTED (https://github.com/dotnet/corefx/issues/36516, found by .NET's tests on Windows).
        sends_whole: a send on a TCP socket is taken whole, of whatever size, while less than SO_SNDBUF is on its way, and
            not at all otherwise (Wine's conformance tests, dlls/ws2_32/tests/sock.c, test_send_buffering; KB 214397).
        a_cancelled_receive_resets: closing a TCP socket of which a receive was ever cancelled resets the connection,
            unless it was shut down for sending before (libuv, src/win/tcp.c, uv__tcp_close, of cancelled reads; CPython
            shuts down first for such a reason, proactor_events.py, _call_connection_lost). Nobody has shown that it is
            always so; it is played because the other answer is no harder.
        tick_ms: a wait ends with a tick of the system's clock: up to one later than asked for, or up to one earlier by a
            finer clock (15.6 ms on Windows, unless somebody has asked for finer ones; docs/wine.md has Wine's).
        has_fine_timers: timers of high resolution and wait completion packets (Windows 10 1803; MSDN,
            CreateWaitableTimerExW and NtAssociateWaitCompletionPacket).
    """

    name: str
    a_cancel_ends_all_receives: bool
    sends_whole: bool
    a_cancelled_receive_resets: bool
    tick_ms: float
    has_fine_timers: bool


WINDOWS = Profile(
    "Windows",
    a_cancel_ends_all_receives=True,
    sends_whole=True,
    a_cancelled_receive_resets=True,
    tick_ms=15.625,
    has_fine_timers=True,
)
WINE_8 = Profile(
    "Wine 8",
    a_cancel_ends_all_receives=False,
    sends_whole=False,
    a_cancelled_receive_resets=False,
    tick_ms=0,
    has_fine_timers=False,
)
PROFILES = {"windows": WINDOWS, "wine8": WINE_8}
