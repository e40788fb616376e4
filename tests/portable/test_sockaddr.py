"""Socket addresses to and from the bytes of ws2def.h."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iocp_loop._handles import _sockets
from iocp_loop._win32.sockaddr import SOCKADDR_MAX, decode, encode, resolve

PORTS = st.integers(0, 0xFFFF)


@given(st.ip_addresses(v=4), PORTS)
def test_ipv4_addresses_come_back(host, port):
    raw = encode(socket.AF_INET, (str(host), port))
    assert len(raw) == 16  # sizeof(SOCKADDR_IN)
    assert decode(raw) == (str(host), port)


@given(st.ip_addresses(v=6), PORTS, st.integers(0, 0xFFFFF), st.integers(0, 0xFFFF_FFFF))
def test_ipv6_addresses_come_back(host, port, flowinfo, scope):
    text = socket.inet_ntop(socket.AF_INET6, host.packed)
    raw = encode(socket.AF_INET6, (text, port, flowinfo, scope))
    assert len(raw) == 28  # sizeof(SOCKADDR_IN6)
    decoded = decode(raw)
    # No zone in the host, as getpeername() spells it: the scope is in the tuple.
    assert decoded == (text, port, flowinfo, scope)
    assert encode(socket.AF_INET6, decoded) == raw


@given(st.binary(max_size=SOCKADDR_MAX))
@settings(max_examples=500)
def test_whatever_the_kernel_leaves_there_decoding_never_fails_on_a_whole_storage(raw):
    """A family that we do not know is no address."""
    whole = raw.ljust(SOCKADDR_MAX, b"\0")
    decoded = decode(whole)
    family = int.from_bytes(whole[:2], "little")
    assert (decoded is None) == (family not in (2, 23))


def test_the_bytes_are_those_of_ws2def():
    """Family little-endian and Windows' own number, port and flow in network order, scope as the machine has it."""
    assert encode(socket.AF_INET, ("127.0.0.1", 0x1234)) == bytes.fromhex("0200 1234 7f000001 0000000000000000")
    expected = bytes.fromhex("1700 1234 0000abcd fe800000000000000000000000000001 07000000")
    assert encode(socket.AF_INET6, ("fe80::1", 0x1234, 0xABCD, 7)) == expected


def test_a_scope_in_the_host_is_taken_where_the_tuple_has_none():
    assert encode(socket.AF_INET6, ("fe80::1%7", 80)) == encode(socket.AF_INET6, ("fe80::1", 80, 0, 7))
    assert encode(socket.AF_INET6, ("fe80::1%7", 80, 0, 9)) == encode(socket.AF_INET6, ("fe80::1", 80, 0, 9))


@pytest.mark.parametrize("raw", [b"", b"\x02", b"\0" * SOCKADDR_MAX])
def test_no_address_is_none(raw):
    """The sender of a datagram on a connected socket; the kernel wrote nothing."""
    assert decode(raw) is None


@pytest.mark.parametrize("address", ["127.0.0.1", ("127.0.0.1",), ["127.0.0.1", 80], None, 80])
def test_what_is_no_pair_is_a_type_error(address):
    with pytest.raises(TypeError, match="tuple"):
        encode(socket.AF_INET, address)


@pytest.mark.parametrize("port", [-1, 0x1_0000])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_out_of_range_is_an_overflow(family, host, port):
    with pytest.raises(OverflowError, match="0-65535"):
        encode(family, (host, port))


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "localhost"), (socket.AF_INET, "::1"), (socket.AF_INET6, "127.0.0.1")]
)
def test_a_name_or_the_other_familys_address_is_a_value_error(family, host):
    with pytest.raises(ValueError, match="numeric"):
        encode(family, (host, 80))


def test_a_family_without_ip_addresses_is_a_value_error():
    with pytest.raises(ValueError, match="family"):
        encode(-1, ("127.0.0.1", 80))


@pytest.mark.parametrize(
    ("family", "address", "numeric"),
    [
        (socket.AF_INET, ("127.0.0.1", 7), ("127.0.0.1", 7)),
        (socket.AF_INET, (b"127.0.0.1", 7), ("127.0.0.1", 7)),
        (socket.AF_INET, ("", 7), ("0.0.0.0", 7)),
        (socket.AF_INET, ("<broadcast>", 7), ("255.255.255.255", 7)),
        (socket.AF_INET, ("localhost", 7), ("127.0.0.1", 7)),
        (socket.AF_INET6, ("", 7), ("::", 7, 0, 0)),
        (socket.AF_INET6, ("fe80::1", 7, 3, 4), ("fe80::1", 7, 3, 4)),
    ],
)
def test_an_address_for_sending_means_what_it_means_to_a_socket(family, address, numeric):
    assert decode(resolve(family, address)) == numeric


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "nonsense"),
        (socket.AF_INET, ["127.0.0.1", 7]),
        (socket.AF_INET, ("127.0.0.1",)),
        (socket.AF_INET, ("127.0.0.1", 7, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", "7")),
        (socket.AF_INET, (None, 7)),
        (socket.AF_INET, ("127.0.0.1", -1)),
        (socket.AF_INET, ("127.0.0.1", 65536)),
        (socket.AF_INET6, ("::1", 7, 0x100000)),
        (socket.AF_INET6, ("::1", 7, 0, 0, 0)),
    ],
)
def test_an_address_that_a_socket_refuses_is_refused_in_the_same_way(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as sock, pytest.raises(Exception) as theirs:
        sock.sendto(b"", address)
    with pytest.raises(theirs.type):
        resolve(family, address)


@pytest.mark.parametrize(
    ("address", "is_it"),
    [
        (("127.0.0.1", 1), True),
        (("127.255.0.3", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("1.127.0.1", 1), False),
        (("::1:1", 1, 0, 0), False),
        (("fe80::1", 1, 0, 3), False),
    ],
)
def test_what_is_an_address_of_this_machine(address, is_it):
    assert _sockets.is_this_machine(address) is is_it
