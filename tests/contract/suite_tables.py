"""Which of CPython's asyncio tests are run, and why others are not.

Names are `Class` or `Class.method`, as in the module. An exclusion holds for our loop *and* for the standard library's
beside it, and has a reason; where the reason is that the test is about something else than a loop like ours, running
it would prove nothing, whichever way it went.
"""

import ctypes
from dataclasses import dataclass

ON_WINE = hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")  # type: ignore[attr-defined]
PACKAGE = "test.test_asyncio."
# Begins each line that a child process reports with.
MARK = "@@contract@@ "


@dataclass(frozen=True)
class Module:
    """One module of `test.test_asyncio`.

    Attributes:
        name: without the package.
        loops: which of our loops it is run on; see `substitution.LOOPS`.
        stomp: whether it is also run in stomp mode: where the loop does I/O.
    """

    name: str
    loops: tuple[str, ...] = ("ours",)
    stomp: bool = True


_BOTH = ("ours", "hybrid")

MODULES = (
    Module("test_base_events", stomp=False),
    Module("test_buffered_proto", _BOTH),
    Module("test_eager_task_factory", stomp=False),
    Module("test_events", _BOTH),
    Module("test_futures", stomp=False),
    Module("test_locks", stomp=False),
    Module("test_proactor_events"),
    Module("test_queues", stomp=False),
    Module("test_runners"),
    Module("test_sendfile", _BOTH),
    Module("test_server", _BOTH),
    Module("test_sock_lowlevel", _BOTH),
    Module("test_ssl"),
    Module("test_sslproto", _BOTH),
    Module("test_streams", _BOTH),
    Module("test_subprocess", _BOTH),
    Module("test_taskgroups", stomp=False),
    Module("test_tasks", stomp=False),
    Module("test_timeouts", stomp=False),
    Module("test_waitfor", stomp=False),
    Module("test_windows_events", _BOTH),
    Module("test_windows_utils"),
)

_SELECTOR = "it makes a SelectorEventLoop, by that name"
_INTERNALS = "it drives the standard library's own transports and loop class with a mock in the place of the proactor"

_BACK = "it puts timers into the loop's own heap behind its back; our turn takes back what was lent, and runs it in the next"
_HOOKS = "it replaces the loop's hooks by mocks, and counts on asyncio's turn calling them as it does"

# (module, loop or "*") -> what is left out -> the reason.
_EXCLUDED: dict[tuple[str, str], dict[str, str]] = {
    ("test_base_events", "*"): {
        "BaseEventLoopTests.test_not_implemented": "a BaseEventLoop lacks what ours has",
        "BaseEventLoopTests.test__run_once": _BACK,
        "BaseEventLoopTests.test__run_once_schedule_handle": _BACK,
        "BaseEventLoopTests.test_custom_run_forever_integration": _HOOKS,
        "BaseEventLoopTests.test_single_selecter_event_callback_after_stopping": _HOOKS,
    },
    ("test_buffered_proto", "*"): {"BufferedProtocolSelectorTests": _SELECTOR},
    ("test_events", "*"): {"SelectEventLoopTests": _SELECTOR},
    ("test_proactor_events", "*"): {
        "ProactorSocketTransportTests": _INTERNALS,
        "ProactorDatagramTransportTests": _INTERNALS,
        "BaseProactorEventLoopTests": _INTERNALS,
    },
    ("test_sendfile", "*"): {"SelectEventLoopTests": _SELECTOR},
    ("test_server", "*"): {"SelectorStartServerTests": _SELECTOR},
    ("test_sock_lowlevel", "*"): {"SelectEventLoopTests": _SELECTOR},
    ("test_sslproto", "*"): {"SelectorStartTLSTests": _SELECTOR},
    ("test_sslproto", "ours"): {
        "SslProtoHandshakeTests.test_connection_lost_when_busy": (
            "its socket is a mock, which the kernel does not know; test_tls.py does the same on a real one"
        ),
    },
    ("test_tasks", "*"): dict.fromkeys(
        ("PyIntrospectionTests.test_register_task_resurrection", "CIntrospectionTests.test_register_task_resurrection"),
        "kills a Python without the mend of gh-142556, some tests later; the files may be newer than the DLL under Wine",
    ),
    ("test_windows_events", "*"): {"WinPolicyTests.test_selector_win_policy": _SELECTOR},
}

# As above, under Wine only.
_EXCLUDED_ON_WINE: dict[str, dict[str, str]] = {
    "test_ssl": dict.fromkeys(
        (
            "TestSSL.test_remote_shutdown_receives_trailing_data",
            "TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket",
        ),
        "waits for ever, on both loops",
    ),
    "test_sock_lowlevel": dict.fromkeys(
        (
            "ProactorEventLoopTests.test_datagram_send_to_non_listening_address_recvfrom",
            "ProactorEventLoopTests.test_datagram_send_to_non_listening_address_recvfrom_into",
        ),
        "waits for ever, on both loops: Wine reports no port-unreachable to a socket that is not connected",
    ),
}

# Tests that the suite skips for ProactorEventLoop because of what that lacks; on our loop they are run.
_UNSKIPPED: dict[str, dict[str, str]] = {
    "test_events": dict.fromkeys(
        (
            "ProactorEventLoopTests.test_reader_callback",
            "ProactorEventLoopTests.test_writer_callback",
            "ProactorEventLoopTests.test_remove_fds_after_closing",
        ),
        "we have add_reader() and add_writer()",
    ),
    "test_sendfile": {
        "ProactorEventLoopTests.test_sendfile_force_unsupported_native": "our sendfile falls back",
    },
}


def excluded(module: str, loop: str) -> frozenset[str]:
    """What is not run of a module on a loop."""
    names = {**_EXCLUDED.get((module, "*"), {}), **_EXCLUDED.get((module, loop), {})}
    if ON_WINE:
        names.update(_EXCLUDED_ON_WINE.get(module, {}))
    return frozenset(names)


def unskipped(module: str) -> frozenset[str]:
    """What of a module the suite would skip, but is run on our loop."""
    return frozenset(_UNSKIPPED.get(module, {}))
