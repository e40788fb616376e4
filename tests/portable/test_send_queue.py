"""The bytes that wait to be sent: in order, none twice, none lost, whatever each send takes."""

import random

import pytest

from iocp_loop._core._operation import GATHER_MAX, SEND_MAX
from iocp_loop._transports._send_queue import MessageQueue, SendQueue


def sent_by(queue, taken):
    """What a kernel that takes `taken` bytes of the queue's vector has sent."""
    data = b"".join(queue.vector())[queue.skip :][:taken]
    queue.forget(len(data))
    return data


@pytest.mark.parametrize("seed", range(50))
def test_sends_of_any_size_take_every_byte_once(seed):
    dice = random.Random(seed)
    queue, written, sent = SendQueue(), b"", b""
    for number in range(200):
        if dice.random() < 0.6:
            piece = b"%d;" % number * dice.choice((1, 3, 50))
            queue.add(piece)
            written += piece
        elif queue.pieces:
            sent += sent_by(queue, dice.choice((0, 1, 5, 100, 10_000)))
        assert queue.size == len(written) - len(sent)
        assert bool(queue.pieces) == bool(queue.size)
    while queue.pieces:
        sent += sent_by(queue, 64)
    assert (sent, queue.skip) == (written, 0)


def test_a_vector_has_no_more_pieces_than_one_send_takes():
    queue = SendQueue()
    queue.add_all([b"x"] * (GATHER_MAX + 5), GATHER_MAX + 5)
    assert len(queue.vector()) == GATHER_MAX


@pytest.mark.parametrize(
    ("sizes", "skip", "taken"),
    [
        ([SEND_MAX], 0, 1),
        ([SEND_MAX + 1], 0, 1),
        ([SEND_MAX, 1], 0, 1),
        ([SEND_MAX, 1], 1, 2),
        ([SEND_MAX - 1, 1, 1], 0, 2),
        ([1, SEND_MAX, 1], 0, 2),
        ([10 * SEND_MAX, 1], 9 * SEND_MAX, 1),
    ],
)
def test_a_vector_ends_with_the_piece_that_one_send_takes_a_part_of(sizes, skip, taken):
    queue = SendQueue()
    for size in sizes:
        queue.add(bytes(size))
    if skip:
        queue.forget(skip)
    assert len(queue.vector()) == taken


def test_a_message_is_one_send_whatever_its_size():
    queue = MessageQueue()
    queue.add(bytes(3 * SEND_MAX))
    queue.add(b"next")
    assert queue.vector()[0] is queue.pieces[0]
    assert queue.send_max > 3 * SEND_MAX


def test_empty_pieces_do_not_outlive_what_was_sent():
    queue = SendQueue()
    queue.add_all([b"a", b"", b"b", b""], 2)
    queue.forget(2)
    assert not queue.pieces


def test_the_rest_of_a_joined_send_is_one_piece():
    queue = SendQueue()
    queue.add_all([b"abc", b"def"], 6)
    queue.keep_only(b"ef")
    assert (list(queue.pieces), queue.size, queue.skip) == ([b"ef"], 2, 0)


def test_a_message_is_forgotten_alone_and_an_empty_one_waits_too():
    queue = MessageQueue()
    for message in (b"one", b"", b"two"):
        queue.add(message)
    queue.forget(3)
    assert (list(queue.pieces), queue.size) == ([b"", b"two"], 3)
    queue.forget(0)
    assert (list(queue.pieces), queue.size) == ([b"two"], 3)
