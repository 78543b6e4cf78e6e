"""The work and its checks: a wrong, old or missing answer cannot pass."""

from __future__ import annotations

import numpy as np
import pytest

from tensoryard.benchmarks import works
from tensoryard.benchmarks.contenders import FLOORS, HOUSES, OURS, PEERS, TITLES
from tensoryard.benchmarks.contenders.base import Contender
from tensoryard.benchmarks.host import Measure, WrongAnswerError
from tensoryard.benchmarks.works import WORKS


def test_a_letter_knows_its_sum():
    """After any number of changes the sum is that of the array, and no two letters in a row have the same."""
    letter = works.Letter(np.zeros(64 << 10, np.uint8), seed=3)
    for _ in range(200):
        before = letter.sum
        letter.change()
        assert letter.sum == works.page_sum(letter.array) != before


def test_every_page_counts():
    """A change in any page of an array changes its page sum."""
    array = np.zeros(1 << 20, np.uint8)
    for page in range(0, array.size, works.PAGE_BYTES):
        array[page] = 1
        assert works.page_sum(array) == page // works.PAGE_BYTES + 1


def test_what_was_made_for_another_request_is_told_apart():
    """An array made for one seed is not taken for that of the next."""
    source, target = works.touched(1 << 20), works.touched(1 << 20)
    works.fill(target, 5, source)
    assert works.is_filled(target, 1 << 20, 5)
    assert not works.is_filled(target, 1 << 20, 6)
    assert not works.is_filled(target[: 1 << 19], 1 << 20, 5)


def test_small_messages_survive_being_floats():
    """As float32 they are finite, so they come back bit by bit; and they differ from each other."""
    messages = works.small_messages(1000, seed=1)
    assert all(np.isfinite(np.frombuffer(message, np.float32)).all() for message in messages)
    assert len(set(messages)) == 1000


class Wrong(Contender):
    """Answers something, and never the right thing."""

    name = "wrong"

    def echo(self, message):
        return message[::-1]

    def flight(self, messages, in_flight):
        return list(reversed(messages))

    def read(self, array):
        return 7

    def make(self, nbytes, seed):
        return works.touched(nbytes)

    def shape(self, array):
        return 1

    def stream(self, streams, tokens):
        return [[0] * tokens for _ in range(streams)]


@pytest.mark.parametrize("work", WORKS.values(), ids=list(WORKS))
def test_wrong_answers_are_found(work):
    """Whatever the work, a wrong answer is an error and not a figure."""
    with pytest.raises(WrongAnswerError):
        Measure(Wrong()).run(work, samples=2, budget_s=1, seed=1)


class Right(Contender):
    """Does some of the works itself, at once."""

    name = "right"

    def echo(self, message):
        return message

    def flight(self, messages, in_flight):
        return list(messages)


def test_samples_are_as_many_as_asked():
    """The first, cold one is not among them."""
    asked = []

    class Counting(Right):
        def echo(self, message):
            asked.append(message)
            return message

    samples = Measure(Counting()).run(WORKS["small"], samples=5, budget_s=60, seed=1)
    assert (len(samples), len(asked)) == (5, 6)
    assert len(set(asked)) == 6
    assert all(sample > 0 for sample in samples)


def test_time_that_is_up_still_gives_two_samples():
    """A contender that uses up its time at once is measured all the same, and twice."""
    assert len(Measure(Right()).run(WORKS["small"], samples=50, budget_s=0, seed=1)) == 2


def test_what_a_contender_does_not_do_has_a_reason():
    """Works without a method, and works named in `cannot`, are refused with words; the others are not."""
    refused = {work.name: Right().refuses(work) for work in WORKS.values()}
    assert {name for name, reason in refused.items() if not reason} == {"small", "flight"}


def test_every_contender_has_a_title_and_one_house():
    """The tables know everybody, and nobody lives twice."""
    everybody = [name for names in HOUSES.values() for name in names]
    assert sorted(everybody) == sorted(TITLES) == sorted({*OURS, *FLOORS, *PEERS})
