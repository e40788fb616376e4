"""Deliberate faults, and the tests that must notice each; `tools/dev.py mutants` makes them, one at a time."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One wrong edit: `old` stands exactly once in the file; `tests` are names of files in tests/portable."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_PROACTOR = "proactor_orders operation_states interrupted_submits port_threads"
_STREAM = "stream_states stream_machine stream_orders"

FAULTS = (
    Fault(
        "cancel-dropped",
        "_cancels.py",
        "if operation.state is not PENDING:\n            return\n        if operation in",
        "if operation.state is PENDING:\n            return\n        if operation in",
        _PROACTOR,
    ),
    Fault(
        "close-does-not-cancel",
        "_proactor.py",
        "            if endpoint.operations:\n                self.end_operations(endpoint)\n            else:",
        "            if endpoint.operations:\n                pass\n            else:",
        _PROACTOR,
    ),
    Fault(
        "handle-closed-before-its-operations",
        "_proactor.py",
        "self.end_operations(endpoint)\n            else:\n                self._finish_close(endpoint)",
        "self.end_operations(endpoint)\n            self._finish_close(endpoint)",
        _PROACTOR,
    ),
    Fault(
        "cancel-that-came-too-late-taken-for-refused",
        "_cancels.py",
        "_ANSWERED = frozenset({Error.NOT_FOUND, Error.INVALID_HANDLE})",
        "_ANSWERED = frozenset({Error.INVALID_HANDLE})",
        _PROACTOR,
    ),
    Fault(
        "refused-cancel-taken-for-heard",
        "_cancels.py",
        "return endpoint.is_socket and self._ask_base(endpoint, address)",
        "return True",
        "cancels",
    ),
    Fault(
        "aborted-bystander-not-begun-again",
        "_futures.py",
        "if status == Status.CANCELLED and",
        "if False and",
        "cancels",
    ),
    Fault("waiting-receive-not-told-of-leftover", "_futures.py", "            core.cancel(operation)\n", "", "cancels"),
    Fault(
        "closed-socket-received-from-again",
        "_futures.py",
        " and _is_open(operation.keepalive[0], endpoint)",
        "",
        "cancels",
    ),
    Fault(
        "inline-success-taken-back-twice",
        "_proactor.py",
        "if endpoint.skips_port:\n                    # SAFETY",
        "if True:\n                    # SAFETY",
        _PROACTOR,
    ),
    Fault(
        "inline-success-never-taken-back",
        "_proactor.py",
        "if endpoint.skips_port:\n                    # SAFETY",
        "if False:\n                    # SAFETY",
        _PROACTOR,
    ),
    Fault(
        "warning-taken-for-failure",
        "_proactor.py",
        " and (endpoint.skips_port or code not in _WARNINGS or not operation.warned):",
        ":",
        _PROACTOR + " datagram_orders pipe_orders",
    ),
    Fault(
        "inline-completions-hide-the-port",
        "_proactor.py",
        "if self._inline_turns < INLINE_TURNS_MAX:",
        "if True:",
        _PROACTOR,
    ),
    Fault("packets-lost-after-an-interrupt", "_proactor.py", "self.port.hand_back([packet", "([packet", _PROACTOR),
    Fault(
        "last-packet-does-not-close-the-handle",
        "_proactor.py",
        "and not endpoint.operations:\n                    self._finish_close(endpoint)\n        except",
        "and False:\n                    pass\n        except",
        _PROACTOR,
    ),
    Fault(
        "stuck-operation-freed-at-close",
        "_proactor.py",
        "            keep_for_ever(operation)\n        self.pending",
        "            operation.state = SETTLED\n        self.pending",
        _PROACTOR,
    ),
    Fault("rescued-packets-lost", "_port.py", "if self._rescued:\n", "if False:\n", _PROACTOR + " port_timeouts"),
    Fault(
        "interrupted-submit-begun-twice",
        "_interrupted.py",
        "if status == Status.PENDING and code == Error.IO_PENDING:\n            return True",
        "if status == Status.PENDING and code == Error.IO_PENDING:\n            return False",
        _PROACTOR,
    ),
    Fault("interrupted-cancel-forgotten", "_interrupted.py", "self._proactor.cancel(operation)", "pass", _PROACTOR),
    Fault("released-while-pending", "_arena.py", "if operation.state in KERNEL_OWNED:", "if False:", _PROACTOR),
    Fault(
        "armed-although-paused",
        "_transports/_reader.py",
        "if self.delivery is not STRAIGHT:\n            self.receive = IDLE",
        "if self.delivery is STOPPED:\n            self.receive = IDLE",
        _STREAM,
    ),
    Fault(
        "armed-after-the-end-of-file",
        "_transports/_reader.py",
        "            self.receive = ENDED\n            keep_open",
        "            self.receive = IDLE\n            keep_open",
        _STREAM,
    ),
    Fault(
        "held-packet-lost",
        "_transports/_reader.py",
        "            self.receive = HELD\n            self._held = (status, byte_count)",
        "            self.receive = IDLE",
        _STREAM,
    ),
    Fault(
        "held-packet-delivered-at-once",
        "_transports/_reader.py",
        "self._decide_plain()\n        if self.receive is HELD:\n            self._deliver_later()",
        "self._decide_plain()\n        if self.receive is HELD:\n            self._deliver()",
        _STREAM,
    ),
    Fault(
        "buffer-never-shrinks",
        "_transports/_reader.py",
        "if self._small_receives >= SHRINK_AFTER:",
        "if False:",
        _STREAM,
    ),
    Fault(
        "full-buffer-received-into-again",
        "_transports/_reader.py",
        "elif type(self._operation.buffer) is bytes:",
        "elif False:",
        _STREAM,
    ),
    Fault(
        "no-receive-after-a-delivery",
        "_transports/_reader.py",
        "        else:\n            self._cast()\n\n    def _on_received_otherwise",
        "\n    def _on_received_otherwise",
        _STREAM,
    ),
    Fault(
        "partial-send-forgotten",
        "_transports/_writer.py",
        "        if sent:\n            queue.forget(sent)",
        "        if False:\n            queue.forget(sent)",
        _STREAM,
    ),
    Fault("paused-at-the-mark", "_transports/_flow.py", "size > self.high and", "size >= self.high and", _STREAM),
    Fault("resumed-below-the-mark-only", "_transports/_flow.py", "size <= self._low", "size < self._low", _STREAM),
    Fault(
        "abort-leaves-its-waiter",
        "_transports/_writer.py",
        "if self._empty_waiter is not None and not self._empty_waiter.done():",
        "if False:",
        "sendfile_orders stream_orders",
    ),
    Fault(
        "close-drops-what-waits",
        "_transports/_writer.py",
        "return self.phase is SHUT or self.phase is LOST\n",
        "return True\n",
        _STREAM,
    ),
    Fault(
        "end-of-file-overtakes-the-queue",
        "_transports/_writer.py",
        "if self.phase is SHUT and not sending_file:",
        "if True:",
        _STREAM,
    ),
    Fault(
        "skip-of-the-first-piece-forgotten",
        "_transports/_send_queue.py",
        "done = self.skip + byte_count",
        "done = byte_count",
        "send_queue stream_orders",
    ),
    Fault(
        "connection-lost-before-the-kernel-let-go",
        "_transports/_base.py",
        "if self._endpoint.operations:",
        "if False:",
        _STREAM,
    ),
    Fault(
        "connection-lost-forgotten",
        "_transports/_base.py",
        "        if self._is_overdue:\n",
        "        if False:\n",
        _STREAM,
    ),
    Fault(
        "datagram-overtakes-those-that-wait",
        "_transports/_datagram.py",
        "if not self._queue and self._send_at_once",
        "if self._send_at_once",
        "datagram_orders",
    ),
    Fault(
        "icmp-answer-silences-reception",
        "_transports/_datagram.py",
        "if code in _RECOVERABLE and",
        "if code not in _RECOVERABLE and",
        "datagram_orders",
    ),
    Fault(
        "last-datagram-does-not-close",
        "_transports/_datagram.py",
        "if self.reception is STOPPED and not self._queue:",
        "if False:",
        "datagram_orders",
    ),
    Fault(
        "accept-not-cast-again",
        "_transports/_listener.py",
        "            self._cast(operation)\n            if self._outstanding",
        "            if self._outstanding",
        "listener_orders",
    ),
    Fault(
        "accepts-socket-left-open",
        "_transports/_listener.py",
        "            if conn is not None:\n                conn.close()",
        "            pass",
        "listener_orders",
    ),
    Fault(
        "late-success-lost",
        "_futures.py",
        "keep_bytes(self._core, operation.endpoint, data)",
        "pass",
        "future_orders",
    ),
    Fault(
        "late-connection-left-open",
        "_futures.py",
        "        result[0].close()",
        "        pass",
        "iocp_proactor",
    ),
    Fault(
        "uncovered-watcher-told",
        "_readiness.py",
        "registration.active and registration.covered and",
        "registration.active and",
        "readiness_orders",
    ),
    Fault(
        "watch-not-polled-again",
        "_readiness.py",
        "        self._note_change(watch)\n        watch.polling = False",
        "        watch.polling = False",
        "readiness_orders",
    ),
    Fault("closed-socket-not-told", "_readiness.py", "(closed or conditions &", "(conditions &", "readiness_orders"),
    Fault(
        "idle-pipe-instance-missing",
        "_transports/_pipe.py",
        "            self._fill_up_before_serving(endpoint)",
        "            pass",
        "pipe_orders",
    ),
)
