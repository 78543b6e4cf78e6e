"""The policy of retries: what is tried again, when, and when not; and who sleeps until when."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard import errors
from tensoryard.client.retry import Retry, Sleepers, is_refusal

CLASSES = sorted(errors.BY_CODE.values(), key=lambda cls: cls.code)


def delay(error, policy=None, *, losses=1, refusals=0, elapsed_s=0.0, left_s=math.inf, chance=1.0):
    how = {"losses": losses, "refusals": refusals, "elapsed_s": elapsed_s, "left_s": left_s, "chance": chance}
    return (policy or Retry()).delay_s(error, **how)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_only_what_is_retryable_is_tried_again(cls):
    """A cancelled or expired request, a wrong one, a poisonous one: never."""
    assert (delay(cls("x")) is not None) == cls.retryable
    assert delay(errors.RequestCancelled("x")) is delay(errors.DeadlineExpired("x")) is None


def test_the_time_that_was_named_is_kept():
    """After Overloaded nobody comes back sooner, and not all at the same time."""
    error = errors.Overloaded("full", retry_after_s=2.0)
    assert [delay(error, losses=0, refusals=1, chance=chance) for chance in (0.0, 0.5, 1.0)] == [2.0, 2.05, 2.1]


def test_waits_double_up_to_the_longest():
    """And each is a random part of that."""
    error = errors.WorkerLost("x")
    policy = Retry(runs=100, first_s=1.0, longest_s=5.0)
    assert [delay(error, policy, losses=losses) for losses in (1, 2, 3, 4, 99)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert delay(error, policy, losses=3, chance=0.25) == 1.0
    assert delay(error, policy, losses=0, refusals=10_000) == 5.0


def test_runs_are_bounded_and_refusals_are_none():
    """What was sent away did not run."""
    assert delay(errors.WorkerLost("x"), losses=2) is not None
    assert delay(errors.WorkerLost("x"), losses=3) is None
    assert delay(errors.ShuttingDown("x"), losses=2, refusals=1000) is not None


def test_the_whole_is_bounded():
    """By the policy's time and by the deadline: what would come too late is not begun."""
    error = errors.Overloaded("full", retry_after_s=5.0)
    assert delay(error, Retry(total_s=60.0, first_s=0.0), elapsed_s=55.0) == 5.0
    assert delay(error, Retry(total_s=60.0, first_s=0.0), elapsed_s=55.1) is None
    assert delay(error, Retry(first_s=0.0), left_s=5.1) == 5.0
    assert delay(error, Retry(first_s=0.0), left_s=5.0) is None


@pytest.mark.parametrize(
    "field", [{"runs": 0}, {"first_s": -1.0}, {"longest_s": math.nan}, {"total_s": math.inf}, {"runs": True}]
)
def test_a_policy_that_makes_no_sense_is_refused(field):
    """By the field's name."""
    with pytest.raises(errors.InvalidRequest, match=next(iter(field))):
        Retry(**field)


def test_refusals_are_told_from_losses():
    """Whatever the coordinator did not accept."""
    assert [cls.__name__ for cls in CLASSES if is_refusal(cls("x"))] == [
        "DuplicateRequest",
        "Overloaded",
        "Rejected",
        "ShuttingDown",
    ]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20)), max_size=40), st.integers(0, 20))
def test_sleepers_wake_in_order(added, at):
    """All that are due and no others, the earliest first; the next is told."""
    sleepers = Sleepers()
    for key, until in added:
        sleepers.add(key, float(until))
    assert sleepers.due(at) == [key for key, until in sorted(added, key=lambda each: each[1]) if until <= at]
    later = [until for _, until in added if until > at]
    assert sleepers.next_due() == min(later, default=math.inf)


def test_those_that_ended_are_swept():
    """However many fall asleep and end, no more linger than live, but for a few."""
    sleepers = Sleepers()
    for number in range(10_000):
        sleepers.add(str(number), 1e9)
        sleepers.sweep(1, lambda key, number=number: key == str(number))
        assert len(sleepers._heap) <= 100
    assert sleepers.due(1e10)[-1] == "9999"
