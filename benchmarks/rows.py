"""What is measured: one row of the results page each."""

from typing import NamedTuple

PER_CONNECTION = "bytes/connection"
MILLISECONDS = "ms"
# Everything else is a rate.
LESS_IS_BETTER = (PER_CONNECTION, MILLISECONDS)


class Row(NamedTuple):
    """`scenario` is a name in host.py; `verb`, `connections` and `what` are the load generator's order."""

    name: str
    scenario: str
    verb: str = ""  # empty: the scenario measures itself
    connections: int = 0
    what: str = "0"
    unit: str = "messages/s"
    python_load: bool = False  # TLS, which the C program does not speak


def _sizes() -> list[tuple[str, int]]:
    return [("64", 64), ("1k", 1024), ("64k", 65536)]


def _echo_rows() -> list[Row]:
    return [
        Row(f"echo_{label}_{connections}conns", "echo", "echo", connections, str(size))
        for connections in (1, 10, 100, 1000)
        for label, size in _sizes()
    ]


ROWS: list[Row] = [
    *_echo_rows(),
    Row("streams_1k_10conns", "echo_streams", "echo", 10, "1024"),
    Row("streams_1k_100conns", "echo_streams", "echo", 100, "1024"),
    Row("buffered_1k_100conns", "echo_buffered", "echo", 100, "1024"),
    Row("buffered_64k_10conns", "echo_buffered", "echo", 10, "65536"),
    Row("bulk_receive", "sink", "push", 1, "65536", "bytes/s"),
    Row("bulk_send_1m_writes", "source", "pull", 1, "0", "bytes/s"),
    Row("bulk_send_small_writes", "source_small", "pull", 1, "0", "bytes/s"),
    Row("bulk_send_writelines", "source_lines", "pull", 1, "0", "bytes/s"),
    Row("connect_echo_close", "echo", "churn", 8, "64", "connections/s"),
    Row("http_hello_uvicorn", "http_uvicorn", "http", 32, "/", "requests/s"),
    Row("http_100k_uvicorn", "http_uvicorn", "http", 32, "/big", "requests/s"),
    Row("http_hello_aiohttp", "http_aiohttp", "http", 32, "/", "requests/s"),
    Row("http_100k_aiohttp", "http_aiohttp", "http", 32, "/big", "requests/s"),
    Row("tls_1k_10conns", "echo_tls", "tls", 10, "1024", python_load=True),
    Row("udp_64_10conns", "echo_udp", "udp", 10, "64"),
    Row("sendfile", "source_file", "pull", 1, "0", "bytes/s"),
    Row("subprocess_ping_pong", "subprocess_ping_pong"),
    Row("pipe_ping_pong", "pipe_ping_pong"),
    Row("call_soon", "call_soon", unit="calls/s"),
    Row("loop_turn", "loop_turn", unit="turns/s"),
    Row("call_soon_threadsafe", "call_soon_threadsafe", unit="calls/s"),
    Row("thread_wake", "thread_wake", unit="wake-ups/s"),
    Row("timers_100k", "timers_100k", unit="timers/s"),
    Row("task_switch", "task_switch", unit="switches/s"),
    Row("start_up", "start_up", unit=MILLISECONDS),
    Row("idle_plain_1000", "echo", "hold", 1000, "0", PER_CONNECTION),
    Row("idle_plain_5000", "echo", "hold", 5000, "0", PER_CONNECTION),
    Row("idle_tls_1000", "echo_tls", "holdtls", 1000, "0", PER_CONNECTION, python_load=True),
    Row("idle_tls_5000", "echo_tls", "holdtls", 5000, "0", PER_CONNECTION, python_load=True),
]
# The rows of `--quick`.
QUICK = ("echo_1k_10conns", "echo_1k_100conns")
