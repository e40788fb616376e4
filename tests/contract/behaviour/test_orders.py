"""In which order a protocol is called and a coroutine goes on: a table, ours beside the stdlib's loops.

Each row is played on both, in one process, and what happened must fit what the row says, turn by turn; how that is
written, `orders` says. ProactorEventLoop is the other one; for datagrams, where it is known to be wrong (it drops empty
ones, and stops receiving on an error), SelectorEventLoop.
"""

import asyncio
import sys

import pytest

import iocp_loop

from . import order_connections as tcp
from . import order_scenarios as other
from .orders import Journal, Row


def rows(kinds, scenario, order):
    return [Row(scenario, order, kind=kind) for kind in kinds]


LOOP = [
    Row(
        other.everything_is_due,
        "asked > soon, future, threadsafe, task, late timer, timer > soon again, task again > await",
    ),
    Row(other.callbacks_are_queued_before_reading_is_resumed, "made > resume_reading > soon ~ data > lost"),
    Row(other.a_timer_is_due_while_data_are_there, "soon, timer > received"),
]

CONNECTIONS = [
    *rows(tcp.CLIENTS, tcp.opens_and_receives, "factory > made > await ~ data > lost"),
    *rows([tcp.server], tcp.opens_and_receives, "factory > made ~ data > lost"),
    *rows([tcp.tls_client], tcp.opens_and_receives, "factory > made > await ~ data > lost"),
    *rows([tcp.tls_server], tcp.opens_and_receives, "factory > made ~ data > lost"),
    *rows(tcp.CLIENTS, tcp.queues_a_callback_when_made, "factory > made > soon, await ~ data > lost"),
    *rows([tcp.server], tcp.queues_a_callback_when_made, "factory > made > soon ~ data > lost"),
    *rows(tcp.CLIENTS, tcp.is_closed_when_made, "factory > made > lost, await"),
    *rows([tcp.server], tcp.is_closed_when_made, "factory > made > lost"),
    # TLS tells of its end in a turn of its own, and close() waits for the peer's goodbye.
    *rows([tcp.tls_client], tcp.is_closed_when_made, "factory > made > await > eof > lost"),
    *rows([tcp.tls_server], tcp.is_closed_when_made, "factory > made > eof > lost"),
    *rows(tcp.CLIENTS, tcp.is_aborted_when_made, "factory > made > lost, await"),
    *rows([tcp.server], tcp.is_aborted_when_made, "factory > made > lost"),
    *rows([tcp.tls_client], tcp.is_aborted_when_made, "factory > made > await > lost"),
    *rows([tcp.tls_server], tcp.is_aborted_when_made, "factory > made > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.peer_ends, "data ~ eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.peer_ends_and_is_answered, "data ~ eof, closed > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.peer_ends_while_reading_is_paused, "resume_reading ~ data ~ eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.peer_resets, "lost"),
    *rows(tcp.PLAIN, tcp.closes, "close > lost"),
    *rows(tcp.SECURE, tcp.closes, "close > eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.aborts, "abort > lost"),
    *rows(tcp.PLAIN, tcp.closes_when_data_come, "data > lost"),
    *rows(tcp.SECURE, tcp.closes_when_data_come, "data > eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.is_paused_and_resumed, "resume_reading ~ data > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.writes_much, "pause, written > resume > lost"),
    *rows(tcp.PLAIN, tcp.writes_much_and_closes, "pause, written, close > resume > lost"),
    *rows(tcp.SECURE, tcp.writes_much_and_closes, "pause, written, close > resume > eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.writes_much_and_aborts, "pause, written, abort > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.aborts_when_data_come, "data > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.closes_and_aborts, "aborted > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.changes_protocol_when_data_come, "data > second data > second lost ~ lost"),
    *rows(tcp.CLIENTS, tcp.is_paused_when_made, "factory > made > await ~ resume_reading ~ data > lost"),
    *rows([tcp.server], tcp.is_paused_when_made, "factory > made > resume_reading ~ data > lost"),
    *rows(tcp.PLAIN, tcp.closes_when_asked_to_pause, "pause, written > resume > lost"),
    *rows(tcp.SECURE, tcp.closes_when_asked_to_pause, "pause, written > resume > eof > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.aborts_when_asked_to_pause, "pause, written > lost"),
    *rows(tcp.PLAIN, tcp.closes_when_asked_to_resume, "pause, written > resume > lost"),
    *rows(tcp.SECURE, tcp.closes_when_asked_to_resume, "pause, written > resume > eof > lost"),
    *rows(tcp.CLIENTS, tcp.raises_when_made, "factory > made, report > await ~ data > lost"),
    *rows([tcp.server], tcp.raises_when_made, "factory > made, report ~ data > lost"),
    *rows(tcp.PLAIN, tcp.raises_when_data_come, "data, report > data ~ eof > lost"),
    *rows(tcp.SECURE, tcp.raises_when_data_come, "data, report > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.raises_at_the_end_of_the_stream, "data ~ eof, report > lost"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.raises_when_lost, "lost, report"),
    *rows(tcp.PLAIN + tcp.SECURE, tcp.raises_when_asked_to_pause, "pause, report, written > lost"),
    Row(tcp.upgrades, "await ~ data > close > eof > lost"),
]

SERVERS = [
    Row(
        tcp.server_is_closed_and_waited_for,
        # It waits for the connections from 3.12 on; before, for nothing.
        "close server > close > lost > waited"
        if sys.version_info >= (3, 12)
        else "close server > waited > close > lost",
    ),
    Row(tcp.server_is_closed_without_connections, "close server > waited"),
    Row(
        tcp.clients_queue_up,
        ("factory a ~ factory b", "factory a > a made > a lost", "factory b > b made > b lost", "a lost, b lost"),
    ),
]

PIPES = [
    Row(other.pipe_is_read_to_its_end, "factory > made > await ~ data > eof > lost"),
    Row(other.pipe_is_closed_by_its_writer, "close > lost"),
    Row(other.pipe_is_closed_by_its_reader, "close > lost"),
    Row(other.reading_end_goes, "lost"),
    Row(other.reading_end_goes_while_much_waits, "pause, written > lost"),
    Row(other.much_is_written_into_a_pipe, "pause, written > resume > close > lost"),
    Row(other.much_is_written_into_a_pipe_and_it_is_closed, "pause, close > resume > lost"),
    Row(
        other.named_pipe_is_served,
        (
            "client factory, client await > client made > client lost",
            "server factory > server made ~ server data > server eof > server lost",
        ),
    ),
]

PROCESSES = [
    Row(other.process_without_pipes, "made, await > exited, lost > waited"),
    Row(
        other.process_that_echoes,
        (
            "made, await",
            "made ~ data1 > lost1 ~ lost",
            "lost0 ~ lost",
            "lost2 ~ lost",
            "exited ~ lost",
            "exited > waited",
        ),
    ),
    Row(other.process_that_is_killed, ("made, await > exited ~ lost", "lost0 ~ lost", "exited > waited")),
    Row(
        other.process_whose_grandchild_stays,
        ("made, await > exited > close > lost > waited", "close > lost0 ~ lost", "close > lost1 ~ lost"),
        ours=("made, await > exited > waited > close > lost", "close > lost0 ~ lost", "close > lost1 ~ lost"),
        why="Process.wait() waits for the process, not for others that have its pipes.",
    ),
]

DATAGRAMS = [
    Row(other.datagram_is_there_before, "factory > made > await ~ data > lost"),
    Row(other.endpoint_is_closed_when_made, "factory > made > lost, await"),
    Row(other.endpoint_is_aborted_when_made, "factory > made > lost, await"),
    Row(other.endpoint_sends_to_itself_when_made, "factory > made, sent > await ~ data > lost"),
    Row(other.endpoint_is_closed, "close > lost"),
    Row(other.endpoint_is_aborted, "abort > lost"),
    Row(other.endpoint_is_closed_when_data_come, "data > lost"),
    Row(other.datagram_is_refused, "error, sent > lost"),
    Row(other.protocol_raises_when_data_come, "data, report ~ data, report > lost"),
    Row(
        other.protocol_raises_when_an_error_comes,
        "error, raised > lost",
        ours="error, report, sent > lost",
        why="What a protocol raises is no business of whoever sends.",
    ),
    Row(other.datagrams_wait, "pause, sent > resume > lost"),
    Row(
        other.datagrams_wait_and_it_is_closed,
        "pause, sent, close > resume, lost",
        ours="pause, sent, close > resume > lost",
        why="connection_lost() has a turn of its own, as with every other transport.",
    ),
    Row(other.datagrams_wait_and_it_is_aborted, "pause, sent, abort > lost"),
]


def compare(row, other_loop):
    theirs = row.on(other_loop)
    ours = row.on(iocp_loop.new_event_loop)
    order = as_tuple(row.order)
    assert theirs.fits(*order), f"the standard library's: {theirs}"
    assert ours.fits(*as_tuple(row.ours) or order), f"ours: {ours}"
    if row.ours:
        assert row.why
        assert not ours.fits(*order), "no difference any more"


def as_tuple(order):
    return (order,) if isinstance(order, str) and order else tuple(order)


@pytest.mark.parametrize("row", LOOP + CONNECTIONS + SERVERS + PIPES + PROCESSES, ids=str)
def test_callbacks_come_in_the_order_of_the_table(row):
    compare(row, asyncio.ProactorEventLoop)


@pytest.mark.parametrize("row", DATAGRAMS, ids=str)
def test_callbacks_of_datagram_endpoints_come_in_the_order_of_the_table(row):
    compare(row, asyncio.SelectorEventLoop)


@pytest.mark.parametrize(
    ("order", "fits"),
    [
        ("a, b > c", True),
        ("a ~ b ~ c", True),
        ("a > b > c", False),
        ("a, b, c", False),
        ("b, a > c", False),
        ("a, b", False),
        ("a, b > c > d", False),
        (("a > c", "b > c"), True),
        (("a > c", "b, c"), False),
        (("a > c",), False),
    ],
)
def test_an_order_is_told_from_another(order, fits):
    journal = Journal()
    for turn, name in ((1, "a"), (1, "b"), (3, "c")):
        journal.turn = turn
        journal.note(name)
    assert journal.fits(*as_tuple(order)) is fits
    assert str(journal) == "a, b > c"
