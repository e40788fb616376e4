"""Every structure that the kernel reads or writes: size, and offset of each member, as the SDK headers give them.

On 64-bit systems the real sizes are compared. For 32-bit Windows the layout is computed here, by the C compiler's
rules, from the same `_fields_`: a table that only the other half of the users would find wrong is found wrong here.
"""

import ctypes
import struct

import pytest

from iocp_loop._core import _operation
from iocp_loop._win32 import types
from iocp_loop._win32.sockaddr import SOCKADDR_MAX
from iocp_loop._win32.types import OVERLAPPED, OVERLAPPED_ENTRY, OVERLAPPED_ENTRY_LAYOUT

# name: (size and offsets where a pointer has 8 bytes, the same where it has 4)
LAYOUTS = {
    "OVERLAPPED": ((32, [0, 8, 16, 20, 24]), (20, [0, 4, 8, 12, 16])),
    "OVERLAPPED_ENTRY": ((32, [0, 8, 16, 24]), (16, [0, 4, 8, 12])),
    "WSABUF": ((16, [0, 8]), (8, [0, 4])),
    "GUID": ((16, [0, 4, 6, 8]), (16, [0, 4, 6, 8])),
    "SOCKADDR_STORAGE": ((128, [0, 2]), (128, [0, 2])),
    "IO_STATUS_BLOCK": ((16, [0, 8]), (8, [0, 4])),
    "UNICODE_STRING": ((16, [0, 2, 8]), (8, [0, 2, 4])),
    "OBJECT_ATTRIBUTES": ((48, [0, 8, 16, 24, 32, 40]), (24, [0, 4, 8, 12, 16, 20])),
    "AFD_POLL_HANDLE_INFO": ((16, [0, 8, 12]), (12, [0, 4, 8])),
    "AFD_POLL_INFO": ((32, [0, 8, 12, 16]), (32, [0, 8, 12, 16])),
    "TRANSMIT_FILE_BUFFERS": ((32, [0, 8, 16, 24]), (16, [0, 4, 8, 12])),
}
# To ctypes, c_uint64 and a 64-bit c_size_t are one type; these members have 8 bytes whatever a pointer has.
EIGHT_BYTES = {"Timeout"}
STRUCTURES = {
    name: value
    for name, value in vars(types).items()
    if isinstance(value, type) and issubclass(value, ctypes.Structure) and value is not ctypes.Structure
}
OPERATIONS = [
    value
    for value in vars(_operation).values()
    if isinstance(value, type) and issubclass(value, _operation.OverlappedEx)
]

on_64_bit = pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the real layout here is the 32-bit one")


def test_every_structure_has_its_layout_written_down():
    assert set(STRUCTURES) == set(LAYOUTS)


def real_layout(cls):
    return ctypes.sizeof(cls), [getattr(cls, field[0]).offset for field in cls._fields_]


@on_64_bit
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_with_8_byte_pointers(name):
    assert real_layout(STRUCTURES[name]) == LAYOUTS[name][0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_with_4_byte_pointers(name):
    size, _, offsets = layout_for_pointer_size(STRUCTURES[name], 4)
    assert (size, offsets) == LAYOUTS[name][1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_computed_layout_is_the_real_one_for_this_pointer_size(name):
    """The rules used for 32 bits, checked against ctypes itself where that can be done."""
    size, _, offsets = layout_for_pointer_size(STRUCTURES[name], ctypes.sizeof(ctypes.c_void_p))
    assert (size, offsets) == real_layout(STRUCTURES[name])


def layout_for_pointer_size(ctype, pointer_size):
    """(size, alignment, offsets of the members) by the C compiler's rules: each at a multiple of its alignment."""
    if issubclass(ctype, ctypes.Array):
        size, alignment, _ = layout_for_pointer_size(ctype._type_, pointer_size)
        return size * ctype._length_, alignment, []
    if not issubclass(ctype, ctypes.Structure):
        size = pointer_size if ctype is ctypes.c_size_t else ctypes.sizeof(ctype)
        return size, size, []
    end, alignment_max, offsets = 0, 1, []
    for name, member in ctype._fields_:
        size, alignment, _ = layout_for_pointer_size(member, 8 if name in EIGHT_BYTES else pointer_size)
        offsets.append(-(-end // alignment) * alignment)
        end, alignment_max = offsets[-1] + size, max(alignment_max, alignment)
    return -(-end // alignment_max) * alignment_max, alignment_max, offsets


def test_scalars_have_their_windows_width_on_every_system():
    """c_ulong and wintypes.DWORD have 8 bytes on Linux; nothing here may be built on them."""
    for name in ("BOOL", "INT", "DWORD", "ULONG", "NTSTATUS"):
        assert ctypes.sizeof(getattr(types, name)) == 4, name
    for name in ("HANDLE", "SOCKET", "ULONG_PTR", "SIZE_T", "POINTER_TO"):
        ctype = getattr(types, name)
        assert ctypes.sizeof(ctype) == ctypes.sizeof(ctypes.c_void_p), name
        assert ctype(-1).value > 0, f"{name} is signed: a handle's value would be negative"
        assert ctype(0).value == 0, f"{name} reads NULL as None"


@pytest.mark.parametrize("cls", OPERATIONS)
def test_the_overlapped_is_the_first_member_of_every_operation(cls):
    """So the address in a packet is the address of the operation."""
    operation = cls(_operation.IoType.READ)
    assert cls.overlapped.offset == 0
    assert isinstance(operation.overlapped, OVERLAPPED)
    assert operation.address == ctypes.addressof(operation) == ctypes.addressof(operation.overlapped)
    assert cls.type.offset == ctypes.sizeof(OVERLAPPED)


@pytest.mark.parametrize("cls", OPERATIONS)
def test_what_the_kernel_reads_in_an_operation_is_aligned(cls):
    """A pointer or a handle at an odd place would fault on ARM64, and be slow elsewhere."""
    for ancestor in cls.__mro__:
        for name, ctype in vars(ancestor).get("_fields_", ()):
            assert getattr(cls, name).offset % ctypes.alignment(ctype) == 0, name


@pytest.mark.parametrize("io_type", _operation.IoType)
def test_the_type_is_readable_in_a_memory_dump(io_type):
    operation = _operation.OverlappedEx(io_type)
    dump = ctypes.string_at(operation.address, ctypes.sizeof(operation))
    assert struct.unpack_from("<I", dump, ctypes.sizeof(OVERLAPPED)) == (io_type,)
    assert operation.io_type is io_type


def test_the_layout_string_decodes_a_batch_of_entries():
    """Every field at its limit, and a second entry behind it, as the kernel would leave them."""
    assert OVERLAPPED_ENTRY_LAYOUT.size == ctypes.sizeof(OVERLAPPED_ENTRY)
    pointer_max = ctypes.c_size_t(-1).value
    entries = (OVERLAPPED_ENTRY * 2)()
    # The upper half of Internal is garbage on 64-bit systems, and must not show.
    entries[0] = OVERLAPPED_ENTRY(pointer_max, pointer_max - 1, pointer_max, 0xFFFF_FFFF)
    entries[1] = OVERLAPPED_ENTRY(17, 0x1234, 0xC000_0120, 5)
    decoded = list(OVERLAPPED_ENTRY_LAYOUT.iter_unpack(bytes(entries)))
    assert decoded == [(pointer_max, pointer_max - 1, 0xFFFF_FFFF, 0xFFFF_FFFF), (17, 0x1234, 0xC000_0120, 5)]


def test_there_is_room_for_what_the_kernel_writes():
    assert _operation.ACCEPT_ADDRESS_SIZE >= SOCKADDR_MAX + 16  # MSDN, AcceptEx
    assert _operation.AcceptOperation.addresses.size == 2 * _operation.ACCEPT_ADDRESS_SIZE
    assert _operation.ReadFromOperation.sender.size == SOCKADDR_MAX == ctypes.sizeof(types.SOCKADDR_STORAGE)
    assert _operation.WriteOperation.wsabufs.size == _operation.GATHER_MAX * ctypes.sizeof(types.WSABUF)
