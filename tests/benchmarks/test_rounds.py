"""The order of a round, and what becomes of contenders that are not there."""

from __future__ import annotations

import random

from tensoryard.benchmarks.rounds import Found, order

WORKS, CONTENDERS = ["a", "b", "c"], ["x", "y", "z", "w"]


def test_a_round_asks_everybody_for_everything():
    """Each pair once, and those of one work one after the other."""
    pairs = list(order(WORKS, CONTENDERS, random.Random(1)))
    assert sorted(pairs) == [(work, contender) for work in WORKS for contender in sorted(CONTENDERS)]
    works = [work for work, _ in pairs]
    assert all(works[i : i + 4] == [works[i]] * 4 for i in range(0, len(works), 4))


def test_rounds_have_orders_of_their_own():
    """Who comes first differs between rounds and between works, and is the same for the same seed."""
    chance, again = random.Random(1), random.Random(1)
    rounds = [list(order(WORKS, CONTENDERS, chance)) for _ in range(20)]
    assert rounds == [list(order(WORKS, CONTENDERS, again)) for _ in range(20)]
    assert {pairs[0][1] for pairs in rounds} == set(CONTENDERS)
    assert {pairs[0][0] for pairs in rounds} == set(WORKS)


def test_who_failed_is_not_asked_again():
    """A failure keeps its reason and ends that work for that contender, an absence all of its works."""
    found = Found(2)
    found.fail("a", "x", "OSError: broken")
    found.absent["y"] = "not installed"
    assert [(w, c) for w in WORKS for c in CONTENDERS if not found.may(w, c)] == [
        ("a", "x"),
        ("a", "y"),
        ("b", "y"),
        ("c", "y"),
    ]


def test_a_round_that_is_missing_stays_empty():
    """Samples are entered by round, so that ratios pair what belongs together."""
    found = Found(3)
    found.enter("a", "x", 2, [1.0])
    assert found.samples == {"a": {"x": [[], [], [1.0]]}}
