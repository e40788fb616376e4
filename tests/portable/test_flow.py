"""The water marks by themselves: what may be set, and who is told when."""

import pytest

from iocp_loop._transports._flow import HIGH_WATER_DEFAULT, FlowControl

KIB = 1024


class Told(list):
    """A transport that notes what its protocol would be told."""

    def tell_protocol(self, what):
        self.append(what)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def flow(told):
    return FlowControl(told)


def test_until_they_are_set_the_marks_are_those_of_asyncio(flow):
    assert (flow.limits(), flow.was_set, flow.paused) == ((16 * KIB, 64 * KIB), False, False)
    assert flow.high == HIGH_WATER_DEFAULT == 64 * KIB


# What asyncio's FlowControlMixin makes of the same arguments: (high, low) -> (low, high).
@pytest.mark.parametrize(
    ("high", "low", "limits"),
    [
        (None, None, (16 * KIB, 64 * KIB)),
        (100, None, (25, 100)),
        (103, None, (25, 103)),
        (None, 100, (100, 400)),
        (100, 50, (50, 100)),
        (100, 100, (100, 100)),
        (0, None, (0, 0)),
        (0, 0, (0, 0)),
        (None, 0, (0, 0)),
        (1, 0, (0, 1)),
    ],
)
def test_a_mark_that_is_left_out_follows_the_other(flow, high, low, limits):
    flow.set_limits(7, 3)
    flow.set_limits(high, low)
    assert flow.limits() == limits
    assert flow.high == limits[1]
    assert flow.was_set is not (high is None and low is None)


@pytest.mark.parametrize(("high", "low"), [(1, 2), (0, 1), (5, -1), (-1, None), (None, -1), (-2, -1), (0, -1)])
def test_marks_in_the_wrong_order_are_refused_and_change_nothing(flow, high, low):
    flow.set_limits(100, 50)
    with pytest.raises(ValueError, match="must be >="):
        flow.set_limits(high, low)
    assert (flow.limits(), flow.was_set) == ((50, 100), True)


def test_the_protocol_is_told_once_above_the_high_mark_and_once_at_the_low_one(flow, told):
    flow.set_limits(100, 50)
    for size, paused, expected in [(100, False, []), (101, True, ["pause_writing"]), (500, True, ["pause_writing"])]:
        flow.grown(size)
        assert (flow.paused, told) == (paused, expected)
    flow.shrunk(51)
    assert not flow.may_resume(51)
    assert (flow.paused, told) == (True, ["pause_writing"])
    assert flow.may_resume(50)
    flow.shrunk(50)
    assert (flow.paused, told) == (False, ["pause_writing", "resume_writing"])
    flow.shrunk(0)
    assert not flow.may_resume(0)
    assert told == ["pause_writing", "resume_writing"]


def test_a_protocol_that_writes_when_it_is_told_finds_the_state_that_it_was_told_of(flow, told):
    seen = []
    told.tell_protocol = lambda what: seen.append((what, flow.paused))
    flow.set_limits(0, 0)
    flow.grown(1)
    flow.shrunk(0)
    assert seen == [("pause_writing", True), ("resume_writing", False)]


def test_of_a_transport_that_is_released_nobody_is_told(flow, told):
    flow.set_limits(0, 0)
    flow.grown(1)
    flow.release()
    flow.shrunk(0)
    assert (flow.paused, told) == (False, ["pause_writing"])
