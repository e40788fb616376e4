"""An interrupt on any line that gives an operation another buffer: what is kept is what the kernel would write to."""

import sys

import pytest

from iocp_loop._core._operation import FileReadOperation, IoType, ReadOperation
from iocp_loop._handles import _pipes
from iocp_loop._handles._pipes import OverlappedPipe
from iocp_loop._handles._sockets import OverlappedSocket
from iocp_loop._win32.memory import address_of


def of_a_socket(operation):
    return operation.wsabuf.buf, operation.wsabuf.len


def of_a_pipe(operation):
    return operation.args[1], operation.args[2]


@pytest.mark.parametrize(
    ("kind", "cls", "told"),
    [(OverlappedSocket, ReadOperation, of_a_socket), (OverlappedPipe, FileReadOperation, of_a_pipe)],
)
def test_an_interrupt_leaves_the_old_buffer_or_the_new_one_and_nothing_between(kind, cls, told, monkeypatch):
    monkeypatch.setattr(_pipes, "argument", lambda _cls, value: value)  # A prepared argument does not show its value.
    code, outcomes = kind.set_receive_buffer.__code__, []
    old, new = bytes(10), bytes(20)
    for line in range(1, 30):
        operation, left = cls(IoType.READ), line
        operation.endpoint = handle = kind(1)
        handle.set_receive_buffer(operation, old)

        def trace(frame, event, _argument):
            nonlocal left
            if frame.f_code is not code:
                return None
            if event == "line":
                left -= 1
                if not left:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            handle.set_receive_buffer(operation, new)
        except KeyboardInterrupt:
            outcomes.append("interrupted")
        finally:
            sys.settrace(before)
        kept = operation.buffer
        assert kept is old or kept is new
        assert told(operation) == (address_of(kept), len(kept))
        if left > 0:
            break
    assert outcomes, "no line was interrupted"
    assert kept is new
