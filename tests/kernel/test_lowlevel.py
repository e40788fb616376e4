"""`iocp_loop.lowlevel`: what its documentation says, run as it stands there."""

import inspect
import os
import re
import socket
import sys
import textwrap

import pytest

from iocp_loop import lowlevel


def test_the_program_of_the_documentation_runs():
    """With more than one result, and a sink that submits again."""
    block = lowlevel.__doc__.split("\n\n")[1]
    program = textwrap.dedent(block)
    assert "select(" in program
    received = []

    def deliver(operation, status, byte_count):
        received.append(operation.buffer[:byte_count])
        if byte_count:
            names["proactor"].submit(operation)

    sock, peer = socket.socketpair()
    sock.setblocking(False)
    names = {**vars(lowlevel), "sock": sock, "deliver": deliver}
    peer.send(b"hello")
    try:
        exec(program, names)
        assert received[0] == b"hello"
    finally:
        names["proactor"].close()
        sock.close()
        peer.close()


@pytest.mark.parametrize("name", lowlevel.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    thing = getattr(lowlevel, name)
    assert not inspect.isclass(thing) or thing.__doc__


DOCUMENTED = {
    lowlevel.CompletionPort: "associate wait post close",
    lowlevel.Proactor: "register submit cancel cancel_all select settle wake holds release close_endpoint close check_keys",
    lowlevel.StreamHandle: "receive_buffer receive_operation set_receive_buffer receive_outcome send_operation"
    " set_send_vector",
    lowlevel.DatagramHandle: "receive_from_operation sender_of set_sender send_to_operation",
    lowlevel.ListenerHandle: "accept_operation prepare_accept accepted_addresses finish_accept",
    lowlevel.SocketHandle: "connect_operation finish_connect transmit_operation",
    lowlevel.OverlappedPipe: "connect_operation",
}
FUNCTIONS = [getattr(lowlevel, name) for name in lowlevel.__all__ if inspect.isfunction(getattr(lowlevel, name))]
METHODS = [getattr(whose, name) for whose, names in DOCUMENTED.items() for name in names.split()]


@pytest.mark.parametrize("function", FUNCTIONS + METHODS, ids=lambda function: function.__qualname__)
def test_what_a_function_takes_is_documented(function):
    """By its name, in the function's own text: its units, and what it must be."""
    taken = [name for name in inspect.signature(function).parameters if name != "self"]
    assert [name for name in taken if not re.search(rf"\b{name}\b", function.__doc__)] == []


@pytest.mark.parametrize(
    "thing",
    [*FUNCTIONS, *DOCUMENTED.keys() - {lowlevel.SocketHandle, lowlevel.OverlappedPipe}, lowlevel.OverlappedEx],
    ids=lambda thing: thing.__name__,
)
def test_it_is_said_which_threads_may_use_it(thing):
    assert re.search("[Tt]hread", thing.__doc__)


def test_every_type_of_a_public_signature_is_exported():
    ours = {
        name
        for module_name, module in sys.modules.items()
        if module_name.startswith("iocp_loop.")
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and thing.__module__.startswith("iocp_loop.")
    }
    named = {
        name
        for function in [*FUNCTIONS, *METHODS, *DOCUMENTED]
        for annotation in inspect.get_annotations(function).values()
        for name in re.findall(
            r"\w+", annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
        )
    }
    assert named & ours - set(lowlevel.__all__) == set()


def test_in_debug_mode_a_packet_with_another_handles_key_takes_nothing_back():
    """Posted by hand to the real port; what the kernel answers later is settled as ever."""
    proactor, strays = lowlevel.Proactor(), []
    proactor.on_stray.append(strays.append)
    proactor.check_keys()
    socks = socket.socketpair()
    for sock in socks:
        sock.setblocking(False)
    here, there = (lowlevel.open_socket(proactor, sock, sock) for sock in socks)
    try:
        receive = here.receive_operation(lambda *_: None, proactor.arena.buffer(16))
        proactor.submit(receive)
        proactor.port.post(there.key, receive.address, 3)
        assert not proactor.select(1)
        assert receive.pending
        (stray,) = strays
        assert isinstance(stray, lowlevel.KeyMismatchError)
        socks[1].send(b"late")
        settled = proactor.select(5)
        assert settled.popleft() == (receive, 0, 4)
        assert receive.buffer[:4] == b"late"
    finally:
        proactor.close()


# ---- each kind of operation, from its maker to its result


@pytest.fixture
def proactor():
    proactor = lowlevel.Proactor()
    yield proactor
    assert proactor.close() == []


def outcome_of(proactor, operation):
    """Submit it and wait for it: status and byte count."""
    proactor.submit(operation)
    return settled_as(proactor, operation)


def settled_as(proactor, operation):
    while True:
        settled = proactor.select(5)
        assert settled, f"{operation} did not end"
        for _ in range(len(settled)):
            one, status, byte_count = settled.popleft()
            if one is operation:
                return status, byte_count


def ignored(*_):
    """`deliver` of programs that look at `settled` themselves."""


def new_socket(proactor, kind=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    return sock


def test_connect_accept_send_and_receive(proactor):
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    listener = lowlevel.open_socket(proactor, listening, listening)
    accept = listener.accept_operation(ignored, listening)
    listener.prepare_accept(accept)
    proactor.submit(accept)

    sock = new_socket(proactor)
    lowlevel.bind_to_any(sock)
    client = lowlevel.open_socket(proactor, sock, sock)
    connect = client.connect_operation(ignored, sock, listening.getsockname())
    status, _ = outcome_of(proactor, connect)
    assert lowlevel.winerror_of(connect, status) == 0
    client.finish_connect(sock)
    if accept.pending:
        settled_as(proactor, accept)
    conn = listener.finish_accept(accept.arriving, listening)
    assert conn.getpeername() == sock.getsockname()
    server = lowlevel.open_socket(proactor, conn, conn)

    send = client.send_operation(ignored)
    client.set_send_vector(send, [b"hello, ", b"world"])
    assert outcome_of(proactor, send) == (0, 12)
    receive = server.receive_operation(ignored, proactor.arena.buffer(64))
    assert outcome_of(proactor, receive) == (0, 12)
    assert receive.buffer[:12] == b"hello, world"
    sock.shutdown(socket.SHUT_WR)
    status, byte_count = outcome_of(proactor, receive)
    assert server.receive_outcome(receive, status, byte_count) is lowlevel.Outcome.END


def test_a_connect_that_is_refused_is_an_outcome_and_no_exception(proactor):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    sock = new_socket(proactor)
    lowlevel.bind_to_any(sock)
    client = lowlevel.open_socket(proactor, sock, sock)
    connect = client.connect_operation(ignored, sock, address)
    status, _ = outcome_of(proactor, connect)
    assert isinstance(lowlevel.error_of(connect, status), ConnectionRefusedError)


def test_a_datagram_and_its_sender(proactor):
    here, there = (new_socket(proactor, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (here, there):
        sock.bind(("127.0.0.1", 0))
    receiver, sender = (lowlevel.open_socket(proactor, sock, sock) for sock in (here, there))
    receive = receiver.receive_from_operation(ignored, proactor.arena.buffer(64))
    proactor.submit(receive)
    address = lowlevel.packed_address(socket.AF_INET, here.getsockname())
    assert outcome_of(proactor, sender.send_to_operation(ignored, b"ping", address)) == (0, 4)
    if receive.pending:
        assert settled_as(proactor, receive) == (0, 4)
    assert receive.buffer[:4] == b"ping"
    assert receiver.sender_of(receive) == there.getsockname()


PIPE = r"\\.\pipe\iocp_loop-test-lowlevel-%d"


@pytest.mark.parametrize("message_mode", [False, True])
def test_a_named_pipe_from_both_ends(proactor, message_mode):
    name = PIPE % os.getpid()
    server = lowlevel.create_pipe(proactor, name, message_mode=message_mode)
    connect = server.connect_operation(ignored)
    proactor.submit(connect)
    client = lowlevel.connect_pipe(proactor, name, message_mode=message_mode)
    status, _ = settled_as(proactor, connect)
    assert lowlevel.winerror_of(connect, status) in (0, 535)
    send = client.send_operation(ignored)
    for text in (b"one", b"two"):
        client.set_send_vector(send, [text])
        assert outcome_of(proactor, send) == (0, 3)
    receive = server.receive_operation(ignored, proactor.arena.buffer(64))
    assert outcome_of(proactor, receive) == (0, 3 if message_mode else 6)
    proactor.close_endpoint(client)
    while True:
        status, byte_count = outcome_of(proactor, receive)
        if not byte_count:
            break
    assert server.receive_outcome(receive, status, byte_count) is lowlevel.Outcome.END


def test_a_client_that_came_before_the_connect_is_a_success_by_another_name(proactor):
    name = PIPE % os.getpid()
    server = lowlevel.create_pipe(proactor, name)
    lowlevel.connect_pipe(proactor, name)
    connect = server.connect_operation(ignored)
    status, _ = outcome_of(proactor, connect)
    assert lowlevel.winerror_of(connect, status) == 535


def test_a_pipe_that_nobody_serves_and_one_that_is_busy(proactor):
    name = PIPE % os.getpid()
    with pytest.raises(FileNotFoundError):
        lowlevel.connect_pipe(proactor, name)
    server = lowlevel.create_pipe(proactor, name)
    client = lowlevel.connect_pipe(proactor, name)
    with pytest.raises(OSError, match="pipe") as busy:
        lowlevel.connect_pipe(proactor, name)
    assert busy.value.winerror == 231
    assert {server, client} <= set(proactor.endpoints.values())


def test_a_client_that_wants_messages_of_a_pipe_of_bytes_leaves_no_handle(proactor):
    """Its instance has seen a client, who is gone: the handle was closed again."""
    name = PIPE % os.getpid()
    server = lowlevel.create_pipe(proactor, name)
    with pytest.raises(OSError, match="pipe"):
        lowlevel.connect_pipe(proactor, name, message_mode=True)
    receive = server.receive_operation(ignored, proactor.arena.buffer(64))
    status, byte_count = outcome_of(proactor, receive)
    assert server.receive_outcome(receive, status, byte_count) is lowlevel.Outcome.END


def test_a_wait_for_an_event_ends_with_it_or_with_its_time(proactor):
    event = proactor.kernel.CreateEventW(0, True, False, None)
    try:
        wait = lowlevel.wait_operation(proactor, event, ignored, 0.01)
        _, outcome = outcome_of(proactor, wait)
        assert lowlevel.is_signalled(wait, outcome) is False
        wait = lowlevel.wait_operation(proactor, event, ignored)
        proactor.submit(wait)
        assert wait.pending
        proactor.kernel.SetEvent(event)
        _, outcome = settled_as(proactor, wait)
        assert lowlevel.is_signalled(wait, outcome) is True
    finally:
        proactor.kernel.CloseHandle(event)


def test_all_who_want_to_are_told_of_a_stray(proactor):
    first, second = [], []
    proactor.on_stray += [first.append, second.append]
    proactor.port.post(lowlevel.Key.FIRST_ENDPOINT, 0x1000, 0)
    proactor.select(1)
    assert len(first) == len(second) == 1
