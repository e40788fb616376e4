"""The prototype table against the `Kernel` protocol, and against the rules it is written by."""

import ast
import ctypes
import inspect
from pathlib import Path

import pytest

from iocp_loop._win32 import prototypes
from iocp_loop._win32.constants import EXTENSION_GUIDS
from iocp_loop._win32.kernel import Kernel
from iocp_loop._win32.prototypes import BRIEF, EXTENSIONS, HOT, ORDINARY, PROTOTYPES, WAITING, argument
from iocp_loop._win32.types import NTSTATUS

ALL = (*PROTOTYPES, *EXTENSIONS)
PACKAGE = Path(prototypes.__file__).parents[1]
PROTOCOL_MEMBERS = {name for name, value in vars(Kernel).items() if inspect.isfunction(value) and name[0] != "_"}
# Of the protocol, what is no Win32 function.
OWN_MEMBERS = {"clear_last_error", "last_error", "monotonic", "extension", "hasten_refusal", "skips_port_safely"}
# Bound directly, below the Kernel protocol or beside it: what level 0 itself and the stomp arena call.
BELOW_THE_PROTOCOL = {"RtlNtStatusToDosError", "VirtualAlloc", "VirtualFree"}


def test_every_function_of_the_protocol_has_a_prototype_and_the_other_way_round():
    rows = {proto.name for proto in PROTOTYPES}
    assert rows - BELOW_THE_PROTOCOL == PROTOCOL_MEMBERS - OWN_MEMBERS


# Rows for rooms that are designed and not built yet; each leaves this set with the room that calls it.
FOR_LATER: set[str] = set()


def test_every_row_is_used():
    """`kernel.Name` or `bind("Name")` somewhere outside the table and the protocol: no dead declarations."""
    used = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "prototypes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Call):
                used |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    unused = {proto.name for proto in ALL} - used - FOR_LATER
    assert not unused, f"declared and never called: {sorted(unused)}"


def test_no_function_is_declared_twice():
    names = [proto.name for proto in ALL]
    assert len(names) == len(set(names))


def test_extensions_and_their_guids_are_the_same_set():
    assert {proto.name for proto in EXTENSIONS} == set(EXTENSION_GUIDS)


@pytest.mark.parametrize("proto", ALL, ids=lambda proto: proto.name)
def test_parameters_are_named_and_typed(proto):
    """Each by its documented name, with a type that is as wide on every system as on Windows."""
    assert proto.parameters or proto.name == "GetCurrentProcess"  # The one that has none.
    for name, ctype in proto.parameters.items():
        assert name.isidentifier()
        assert ctypes.sizeof(ctype) in (1, 2, 4, 8), name
        assert ctype is not ctypes.c_int64, f"{name}: a pointer or handle is unsigned and as wide as a pointer"
    assert proto.style in (ORDINARY, BRIEF, HOT, WAITING)
    assert proto.dll in ("kernel32", "ws2_32", "ntdll", "mswsock")


@pytest.mark.parametrize("proto", [proto for proto in ALL if proto.style == HOT], ids=lambda proto: proto.name)
def test_a_hot_call_has_an_overlapped_and_returns_its_code(proto):
    """What is hot is overlapped I/O; its prepared arguments are spared the conversion, its result is an int."""
    assert {"lpOverlapped", "ApcContext"} & set(proto.parameters)
    assert proto.restype in (ctypes.c_int32, NTSTATUS)


def test_of_the_hot_calls_only_those_that_may_block_give_up_the_gil():
    assert [proto.name for proto in ALL if proto.style == WAITING] == ["GetQueuedCompletionStatusEx", "TransmitFile"]


@pytest.mark.parametrize("value", [0, 1, 0x7FFF_FFFF, ctypes.c_size_t(-1).value])
def test_a_prepared_argument_keeps_all_its_bits(value):
    """A pointer with its highest bit set, passed to a C function without a prototype, arrives as it was."""
    identity = ctypes.PyDLL(ctypes.pythonapi._name, handle=ctypes.pythonapi._handle).PyLong_FromSize_t
    identity.restype = ctypes.py_object
    assert identity(argument(ctypes.c_size_t, value)) == value
