"""Pipes opened for programs without asyncio: whose the handle is, whatever fails on the way."""

import pytest
from fakes.kernel import Chances, FakeKernel

from iocp_loop._core._proactor import Proactor
from iocp_loop._handles._base import Outcome
from iocp_loop._handles._opening import OwnedHandle, connect_pipe, create_pipe, open_stream

NAME = r"\\.\pipe\opened"


def ignored(*_):
    """`deliver` of a test that looks at `settled` itself."""


@pytest.fixture
def proactor():
    proactor = Proactor(kernel=FakeKernel(0, Chances(idle=0, reorder=0, no_handle=0)))
    yield proactor
    assert proactor.close() == []
    assert proactor.kernel.open_handles == []
    assert proactor.kernel.violations == []


def result(proactor, operation):
    proactor.submit(operation)
    while True:
        settled = proactor.select(1)
        while settled:
            one, status, byte_count = settled.popleft()
            if one is operation:
                return status, byte_count


@pytest.mark.parametrize("message_mode", [False, True])
def test_closing_the_endpoint_closes_its_handle(proactor, message_mode):
    server = create_pipe(proactor, NAME, message_mode=message_mode)
    client = connect_pipe(proactor, NAME, message_mode=message_mode)
    send = client.send_operation(ignored)
    client.set_send_vector(send, [b"hello"])
    assert result(proactor, send) == (0, 5)
    receive = server.receive_operation(ignored, proactor.arena.buffer(16))
    assert result(proactor, receive) == (0, 5)
    proactor.close_endpoint(client)
    status, byte_count = result(proactor, receive)
    assert server.receive_outcome(receive, status, byte_count) is Outcome.END


@pytest.mark.parametrize("open_it", [create_pipe, connect_pipe], ids=lambda function: function.__name__)
def test_a_handle_that_cannot_be_associated_is_closed_again(proactor, open_it):
    kernel = proactor.kernel
    if open_it is connect_pipe:
        create_pipe(proactor, NAME)
    before = len(kernel.open_handles)
    kernel.chances.no_handle = 1
    with pytest.raises(OSError, match="WinError|handle|pipe"):
        open_it(proactor, NAME)
    kernel.chances.no_handle = 0
    assert len(kernel.open_handles) == before


def test_a_client_that_cannot_read_messages_is_closed_again(proactor, monkeypatch):
    kernel = proactor.kernel
    create_pipe(proactor, NAME)
    before = len(kernel.open_handles)
    monkeypatch.setattr(kernel, "SetNamedPipeHandleState", lambda *_: kernel._fail(87), raising=False)
    with pytest.raises(OSError, match="pipe"):
        connect_pipe(proactor, NAME, message_mode=True)
    assert len(kernel.open_handles) == before


def test_nobody_serves_the_name(proactor):
    with pytest.raises(FileNotFoundError):
        connect_pipe(proactor, NAME)


def test_an_owned_handle_is_closed_once(proactor):
    kernel = proactor.kernel
    server = create_pipe(proactor, NAME)
    owner = server.owner
    assert isinstance(owner, OwnedHandle)
    proactor.close_endpoint(server)
    closed = kernel.calls["CloseHandle"]
    owner.close()
    assert kernel.calls["CloseHandle"] == closed


def test_an_overlapped_handle_is_opened_as_a_stream(proactor):
    server = create_pipe(proactor, NAME)
    assert server.sends_at_once is False
    with pytest.raises(OSError, match="CreateIoCompletionPort"):
        open_stream(proactor, server.handle)
