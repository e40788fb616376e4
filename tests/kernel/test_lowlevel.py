"""`iocp_loop.lowlevel`: what its documentation says, run as it stands there."""

import inspect
import socket
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


def test_in_debug_mode_a_packet_with_another_handles_key_takes_nothing_back():
    """Posted by hand to the real port; what the kernel answers later is settled as ever."""
    proactor, strays = lowlevel.Proactor(), []
    proactor.on_stray = strays.append
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
