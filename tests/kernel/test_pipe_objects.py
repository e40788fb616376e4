"""What connect_read_pipe and connect_write_pipe make of the objects that programs give them."""

import asyncio
import codecs
import msvcrt
import multiprocessing
import os
import socket
import tempfile

import pytest

from iocp_loop._handles import _pipes

from .peers import Recorder
from .watched import here, until


async def test_a_socket_as_read_pipe_has_an_end():
    ours, theirs = socket.socketpair()
    transport, protocol = await here().connect_read_pipe(Recorder, ours)
    theirs.sendall(b"hello")
    theirs.close()
    assert await protocol.gone() is None
    assert protocol.received == b"hello"
    assert protocol.events == ["made", "data", "eof", "lost"]
    assert transport.get_extra_info("pipe") is ours


async def test_a_socket_as_write_pipe_sends_and_notices_that_the_peer_is_gone():
    ours, theirs = socket.socketpair()
    transport, protocol = await here().connect_write_pipe(Recorder, ours)
    transport.write(b"hello")
    with theirs:
        assert await asyncio.to_thread(theirs.recv, 100) == b"hello"
    await protocol.gone()


async def test_an_end_of_a_multiprocessing_pipe_sends_bytes_once_and_as_they_are():
    """It has a send() of its own, which pickles."""
    ours, theirs = multiprocessing.Pipe()
    transport, protocol = await here().connect_write_pipe(Recorder, ours)
    _, other = await here().connect_read_pipe(Recorder, theirs)
    transport.write(b"once")
    await until(lambda: other.received)
    transport.close()
    await protocol.gone()
    await other.gone()
    assert other.received == b"once"


async def test_the_proactors_methods_take_a_file_for_the_handle_behind_its_descriptor():
    """Of a pipe that was opened for overlapped I/O; the descriptor's own number is no handle, or somebody else's."""
    address = r"\\.\pipe\test-file-" + str(os.getpid())
    (server,) = await here().start_serving_pipe(Recorder, address)
    handle = _pipes.open_client(here().proactor.kernel, address)
    with open(msvcrt.open_osfhandle(handle, 0), "r+b", buffering=0) as file:
        proactor = here()._proactor
        assert proactor.endpoint(file).handle == handle
        assert await proactor.send(file, b"hello") == 5
    server.close()


class Proxy:
    """A wrapper that says nothing about what it wraps."""

    def __init__(self, file):
        self._file = file

    def fileno(self):
        return self._file.fileno()


def wrapped_by_codecs(descriptor):
    return codecs.getwriter("utf-8")(open(descriptor, "wb", 0))


def wrapped_by_tempfile(descriptor):
    return tempfile._TemporaryFileWrapper(open(descriptor, "wb", 0), "", delete=False)


@pytest.mark.parametrize("wrapped", [wrapped_by_codecs, wrapped_by_tempfile])
async def test_a_wrapped_file_object_stands_for_its_file(wrapped):
    reading, writing = os.pipe()
    transport, protocol = await here().connect_write_pipe(asyncio.BaseProtocol, wrapped(writing))
    transport.write(b"to the pipe")
    with open(reading, "rb", 0) as file:
        assert await asyncio.to_thread(file.read, 100) == b"to the pipe"
    transport.close()


def test_a_number_that_may_be_a_handle_or_a_descriptor_is_refused():
    """Never the unrelated file that a handle of this value may stand for."""
    outcomes = set()
    ends = [os.pipe() for _ in range(8)]
    for descriptor in (descriptor for end in ends for descriptor in end):
        with open(descriptor, "wb", 0) as file:
            if descriptor % 4:
                assert _pipes.handle_of(Proxy(file)) == _pipes.handle_of(file)
                outcomes.add("the file")
            else:
                with pytest.raises(TypeError, match="may be a handle or a descriptor"):
                    _pipes.handle_of(Proxy(file))
                outcomes.add("refused")
    assert outcomes == {"the file", "refused"}
