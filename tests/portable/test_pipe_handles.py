"""What is behind a pipe object: an OS handle or a descriptor, opened for overlapped I/O or not, byte by byte or not."""

import contextlib
import io
import sys
import tempfile
import types

import pytest
from fakes.kernel import Chances, FakeKernel
from fakes.pipes import FakePipeEnd

from iocp_loop._core._endpoint import Kind
from iocp_loop._core._proactor import Proactor
from iocp_loop._handles import _pipes
from iocp_loop._handles._opening import open_stream
from iocp_loop._handles._pipes import OverlappedPipe
from iocp_loop._handles._threaded import ThreadedHandle
from iocp_loop._win32.constants import INVALID_HANDLE_VALUE, Error, FileMode, Status
from iocp_loop._win32.types import DWORD

DESCRIPTORS = {4: 0x104, 5: 0x208, 8: -2}  # and the handles behind them; -2: connected to nothing


@pytest.fixture(autouse=True)
def c_runtime(monkeypatch):
    """msvcrt.get_osfhandle, with these descriptors open."""

    def get_osfhandle(number):
        if number > 0x7FFF_FFFF:
            raise OverflowError
        if number not in DESCRIPTORS:
            raise OSError(9, "Bad file descriptor")
        return DESCRIPTORS[number]

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(get_osfhandle=get_osfhandle))


class File(io.RawIOBase):
    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number


class Wrapper:
    """As codecs.StreamWriter and tempfile's have it: fileno is the file's own bound method."""

    def __init__(self, file):
        self.fileno = file.fileno


class Unknown:
    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number


def test_a_file_has_a_descriptor_whatever_its_number():
    """A handle of the same number would be somebody else's."""
    assert _pipes.handle_of(File(4)) == 0x104
    assert _pipes.handle_of(File(5)) == 0x208
    assert _pipes.handle_of(Wrapper(File(4))) == 0x104
    for number in (12, 2**40):
        with pytest.raises((OSError, OverflowError)):
            _pipes.handle_of(File(number))


def test_pipe_objects_of_asyncio_and_multiprocessing_have_handles_whatever_their_number(monkeypatch):
    """Also a number that is an open descriptor."""
    for module, kind in (("asyncio.windows_utils", "PipeHandle"), ("multiprocessing.connection", "PipeConnection")):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{kind: Unknown}))
        assert _pipes.handle_of(Unknown(4)) == 4
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace())


def test_of_an_unknown_object_the_number_must_leave_no_doubt():
    """Handles are multiples of 4; what is no open descriptor is none."""
    assert _pipes.handle_of(Unknown(0x300)) == 0x300
    assert _pipes.handle_of(Unknown(2**40)) == 2**40
    assert _pipes.handle_of(Unknown(5)) == 0x208
    with pytest.raises(TypeError, match="may be a handle or a descriptor"):
        _pipes.handle_of(Unknown(4))


def test_what_is_no_pipe_says_what_it_is():
    with pytest.raises(ValueError, match="without standard streams"):
        _pipes.handle_of(None)
    with pytest.raises(OSError, match="it is connected to nothing") as raised:
        _pipes.handle_of(File(8))
    assert raised.value.winerror == Error.INVALID_HANDLE
    closed = tempfile.TemporaryFile()
    closed.close()
    with pytest.raises(ValueError, match="closed file"):
        _pipes.handle_of(closed)


class Opened:
    """A kernel with one pipe, opened as the test likes."""

    def __init__(self, *, mode=0, access=1, fails=False, console=None):
        self.kernel = FakeKernel(0, Chances())
        self.pipe = self.kernel.make(FakePipeEnd)
        answers = {16: mode, 8: access}  # FileModeInformation, FileAccessInformation

        def query(handle, _iosb, where, _size, what):
            if fails:
                return Status.INVALID_HANDLE
            DWORD.from_address(where).value = answers[what]
            return Status.SUCCESS

        def console_mode(_handle, where):
            if console is None:
                return self.kernel._fail(Error.INVALID_HANDLE)
            DWORD.from_address(where).value = console
            return 1

        self.kernel.NtQueryInformationFile, self.kernel.GetConsoleMode = query, console_mode


@pytest.mark.parametrize("mode", [FileMode.SYNCHRONOUS_IO_ALERT, FileMode.SYNCHRONOUS_IO_NONALERT])
def test_a_pipe_that_was_not_opened_for_overlapped_io_is_refused_before_it_is_associated(mode):
    opened = Opened(mode=mode)
    assert not _pipes.is_overlapped(opened.kernel, opened.pipe.handle)
    with contextlib.closing(Proactor(kernel=opened.kernel)) as proactor:
        with pytest.raises(OSError, match="not opened with FILE_FLAG_OVERLAPPED") as raised:
            _pipes.open_overlapped(proactor, opened.pipe.handle)
        assert raised.value.winerror == Error.INVALID_PARAMETER
        assert (proactor.endpoints, opened.pipe.association) == ({}, None)


def test_a_handle_that_does_not_say_is_judged_by_the_association_unless_it_is_a_console():
    """QUIRK(wine): a console does not answer how it was opened."""
    assert _pipes.is_overlapped(Opened(fails=True).kernel, 0x104)
    assert not _pipes.is_overlapped(Opened(fails=True, console=3).kernel, 0x104)


def test_read_access_is_what_the_handle_was_opened_with():
    assert _pipes.is_readable(Opened(access=0x8_0001).kernel, 0x104)
    assert not _pipes.is_readable(Opened(access=0x8_0002).kernel, 0x104)
    assert not _pipes.is_readable(Opened(fails=True).kernel, 0x104)


def test_only_a_pipe_that_is_read_byte_by_byte_skips_the_port():
    """In message mode a read may end with a warning, for which Wine posts no packet then."""
    kernel = FakeKernel(0)
    pipe, other = kernel.pipe_pair(message_mode=False)
    with contextlib.closing(Proactor(kernel=kernel)) as proactor:
        _pipes.set_message_mode(kernel, pipe.handle, "name")
        assert _pipes.reads_messages(kernel, pipe.handle)
        assert not _pipes.open_overlapped(proactor, pipe.handle, pipe).skips_port
        assert _pipes.open_overlapped(proactor, other.handle, other).skips_port


def test_which_class_serves_a_handle():
    """What a port takes is the kernel's affair; anything else has a thread, which is started when it is first used."""
    kernel = FakeKernel(0)
    pipe, other = kernel.pipe_pair(message_mode=False)
    with contextlib.closing(Proactor(kernel=kernel)) as proactor:
        assert type(open_stream(proactor, pipe.handle, pipe)) is OverlappedPipe
        threaded = open_stream(proactor, other.handle, other, is_overlapped=False, kind=Kind.PIPE)
        assert type(threaded) is ThreadedHandle
        assert threaded.kind is Kind.PIPE
        assert other.association is None


def test_a_handle_of_which_nothing_is_known_reads_no_messages():
    opened = Opened()
    opened.kernel.GetNamedPipeHandleStateW = lambda *_: 0
    assert not _pipes.reads_messages(opened.kernel, opened.pipe.handle)


def test_errors_name_the_call_and_the_pipe():
    kernel = FakeKernel(0, Chances(no_handle=1))
    with pytest.raises(OSError, match="CreateNamedPipe.*pipe the name") as raised:
        _pipes.create_instance(kernel, "the name", first=True)
    assert raised.value.winerror == Error.NOT_ENOUGH_MEMORY
    kernel.SetNamedPipeHandleState = lambda *_: kernel._fail(Error.INVALID_HANDLE)
    with pytest.raises(OSError, match="SetNamedPipeHandleState.*pipe the name"):
        _pipes.set_message_mode(kernel, 0x104, "the name")
    with pytest.raises(FileNotFoundError, match="there is no pipe of this name"):
        _pipes.open_client(kernel, "the name")


def test_a_client_that_finds_every_instance_busy_is_told_so_and_may_wait():
    kernel = FakeKernel(0)
    handle = _pipes.create_instance(kernel, "the name", first=True)
    _pipes.open_client(kernel, "the name")
    with pytest.raises(OSError, match="pipe the name") as raised:
        _pipes.open_client(kernel, "the name")
    assert raised.value.winerror == Error.PIPE_BUSY
    assert not _pipes.wait_for_instance(kernel, "the name", 100)
    assert _pipes.create_instance(kernel, "the name", first=False) not in (handle, INVALID_HANDLE_VALUE)
    assert _pipes.wait_for_instance(kernel, "the name", 100)
