"""create_datagram_endpoint() with every combination of its arguments, on ours and on SelectorEventLoop: one outcome.

So is what a datagram comes to that is sent to any kind of address, good or bad, by any kind of endpoint, before its end
or after. What differs on purpose is in DIFFERENCES, with the reason; nothing else may.
"""

import asyncio
import concurrent.futures
import itertools
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from kernel.peers import LOCALHOST

import iocp_loop

from . import datagram_outcomes as given
from .datagram_outcomes import Case, Peers, outcome, value

Facts = dict[str, Any]
PATIENCE_S = 40

# What became of the standard library's loop where it gave no answer.
hung: list[str] = []


class NoAnswer(Exception):
    """A loop did not come to an end."""


@dataclass(frozen=True)
class Difference:
    """Facts that may differ, where they do so as described.

    Attributes:
        keys: of the facts.
        applies: given a case, the stdlib's facts and ours: whether this is it.
        example: a case that it applies to, now and until somebody removes it.
        why: the reason.
    """

    keys: set[str]
    applies: Callable[[Case, Facts, Facts], bool]
    example: Case
    why: str


def is_bound_at_once(_case, theirs, ours):
    return theirs["sockname"] is None and ours["sockname"][1] and theirs.get("received", "nowhere") == "nowhere"


def raises_instead_of_ending(case, theirs, ours):
    return (
        case.when == "open"
        and theirs["lost by"] in (("TypeError", None), ("OverflowError", None))
        and ours["sendto raised"] == theirs["lost by"]
        and ours["lost by"] is None
        and "received" in ours
    )


def tells_instead_of_ending(case, theirs, ours):
    return (
        (case.when, case.send_to) == ("open", "None")
        and theirs["lost by"] == ("TypeError", None)
        # QUIRK(wine): WSAEINVAL, where Windows says WSAENOTCONN.
        and ours["sendto told"] in ([("OSError", 10057)], [("OSError", 10022)])
        and ours["lost by"] is None
        and "received" in ours
    )


def obeys_the_address(case, theirs, _ours):
    return case.when == "open" and case.send_to != "None" and bool(theirs["peername"]) and case.gives_socket


def is_silent_when_closed(case, _theirs, ours):
    return case.when != "open" and (ours["sendto raised"], ours["sendto told"], ours["heard"]) == (None, [], {})


DIFFERENCES = [
    Difference(
        {"sockname", "received"},
        is_bound_at_once,
        Case("", lambda _: {"family": socket.AF_INET}, "IPv4"),
        "It can receive at once, and tells where: the kernel refuses to receive on a socket without a local address.",
    ),
    Difference(
        {"sendto raised", "lost by", "reports", "received"},
        raises_instead_of_ending,
        Case("", lambda _: {"local_addr": (LOCALHOST, 0)}, "text"),
        "An address that is none is the caller's mistake, told to the caller, and no reason to end the endpoint.",
    ),
    Difference(
        {"sendto told", "lost by", "reports", "received"},
        tells_instead_of_ending,
        Case("", lambda _: {"local_addr": (LOCALHOST, 0)}, "None"),
        "As above; whether the socket has a peer is the kernel's to say.",
    ),
    Difference(
        {"sendto raised", "sendto told", "heard"},
        obeys_the_address,
        Case("", lambda peers: {"sock": given.connected4(peers)}, "other", gives_socket=True),
        "A socket that the program has connected sends to the address it is given, as asyncio's documentation and"
        " Winsock's have it, and ProactorEventLoop; SelectorEventLoop takes no notice of the address.",
    ),
    Difference(
        {"sendto raised", "sendto told", "heard", "reports"},
        is_silent_when_closed,
        Case("", lambda _: {"local_addr": (LOCALHOST, 0)}, "IPv4", "closing"),
        "After close() nothing is sent, and nothing said of it: as with streams.",
    ),
]


def outcomes(factory, cases, peers):
    """The outcome of each case, on one loop.

    It runs in a thread, which is left to itself if it gives no answer in time.
    """
    done = concurrent.futures.Future()

    def run():
        try:
            done.set_result(outcomes_here(factory, cases, peers))
        except BaseException as exc:
            done.set_exception(exc)

    thread = threading.Thread(target=run, daemon=True, name=factory.__name__)
    thread.start()
    try:
        return done.result(PATIENCE_S)
    except TimeoutError:
        if done.done():
            raise
        frame = sys._current_frames()[thread.ident]
        raise NoAnswer(f"none within {PATIENCE_S} s:\n" + "".join(traceback.format_stack(frame))) from None


def outcomes_here(factory, cases, peers):
    async def main():
        return [await outcome(case, peers) for case in cases]

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def both(cases, peers):
    """(case, the stdlib's facts, ours) of each.

    SelectorEventLoop has been seen to wait for ever here, in a network nobody could look into. The test is skipped then,
    and says where it waits: there is nothing to compare with. It fails if ours waits for ever.
    """
    if hung:
        pytest.skip(f"SelectorEventLoop hung before, so that there is nothing to compare with: {hung[0]}")
    try:
        theirs = outcomes(asyncio.SelectorEventLoop, cases, peers)
    except NoAnswer as exc:
        hung.append(str(exc))
        pytest.skip(f"SelectorEventLoop gave no answer, so that there is nothing to compare with: {exc}")
    return zip(cases, theirs, outcomes(iocp_loop.new_event_loop, cases, peers), strict=True)


def differing(theirs, ours):
    return {key for key in theirs | ours if theirs.get(key, "nothing") != ours.get(key, "nothing")}


def unexplained(case, theirs, ours):
    """Facts that differ for no known reason: (key, the stdlib's, ours)."""
    keys = differing(theirs, ours)
    if keys and theirs["raised"] is None and ours["raised"] is None:
        keys -= set().union(*(each.keys for each in DIFFERENCES if each.applies(case, theirs, ours)))
    return [(case.name, key, theirs.get(key), ours.get(key)) for key in keys]


def compare(cases):
    with Peers() as peers:
        surprises = [surprise for each in both(cases, peers) for surprise in unexplained(*each)]
    assert not surprises


@pytest.mark.parametrize("local", given.LOCAL)
def test_every_combination_of_addresses_and_family(local):
    def case(remote, family):
        def options(peers):
            return {
                "local_addr": value(given.LOCAL, local, peers),
                "remote_addr": value(given.REMOTE, remote, peers),
                "family": given.FAMILY[family],
            }

        to_anybody = "IPv6" if "IPv6" in (local.removeprefix("any "), family) else "IPv4"
        return Case(f"{local=} {remote=} {family=}", options, to_anybody if remote in ("none", "empty") else "None")

    compare([case(*names) for names in itertools.product(given.REMOTE, given.FAMILY)])


@pytest.mark.parametrize("proto", given.PROTO)
def test_every_combination_of_options(proto):
    def case(local, remote, family, flags, reuse_port, broadcast):
        def options(peers):
            return {
                "local_addr": value(given.LOCAL, local, peers),
                "remote_addr": value(given.REMOTE, remote, peers),
                "family": given.FAMILY[family],
                "proto": given.PROTO[proto],
                "flags": given.FLAGS[flags],
                "reuse_port": given.YES_OR_NO[reuse_port],
                "allow_broadcast": given.YES_OR_NO[broadcast],
            }

        name = f"{local=} {remote=} {family=} {proto=} {flags=} {reuse_port=} {broadcast=}"
        return Case(name, options, "IPv4" if remote == "none" else "None")

    either, families = ("none", "IPv4"), ("unspecified", "IPv4")
    names = itertools.product(either, either, families, given.FLAGS, given.YES_OR_NO, given.YES_OR_NO)
    compare([case(*each) for each in names])


BESIDE_A_SOCKET = [
    {},
    {"local_addr": None, "remote_addr": None, "family": 0, "proto": 0, "flags": 0},
    {"local_addr": (LOCALHOST, 0)},
    {"local_addr": ()},
    {"remote_addr": (LOCALHOST, 9)},
    {"family": socket.AF_INET},
    {"proto": socket.IPPROTO_UDP},
    {"flags": socket.AI_PASSIVE},
    {"reuse_port": True},
    {"reuse_port": False},
    {"allow_broadcast": True},
    {"allow_broadcast": False},
]


@pytest.mark.parametrize("sock", given.SOCK)
def test_every_kind_of_given_socket_alone_and_with_each_other_argument(sock):
    def case(others, send_to):
        def options(peers):
            return {"sock": value(given.SOCK, sock, peers)} | others

        return Case(f"{sock=} {others=} {send_to=}", options, send_to, gives_socket=True)

    compare([case(*each) for each in itertools.product(BESIDE_A_SOCKET, ("None", "IPv4", "IPv6"))])


@pytest.mark.parametrize("when", ["open", "closing", "lost"])
@pytest.mark.parametrize("kind", given.KINDS)
def test_every_kind_of_address_given_to_sendto(kind, when):
    name = f"{kind}, {when}, to "
    gives_socket = kind.startswith("sock=")
    compare([Case(name + send_to, given.KINDS[kind], send_to, when, gives_socket) for send_to in given.SEND_TO])


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.applies.__name__)
def test_what_differs_on_purpose_still_does(difference):
    with Peers() as peers:
        ((case, theirs, ours),) = both([difference.example], peers)
    assert difference.applies(case, theirs, ours)
    assert differing(theirs, ours) & difference.keys
    assert difference.why
