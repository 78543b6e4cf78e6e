"""Drawing tokens: the right ones, as often as they should be, and never because of a neighbour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensoryard.workers.text.sampling import choice
from tensoryard.workers.text.sampling.weights import most_likely, scale_bits, weights

from .support import plain_distribution, random_logits, sampler, state

stats = pytest.importorskip("scipy.stats")

WISHES = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": st.integers(-1, 80),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
        "seed": st.integers(0, 2**64 - 1),
    },
)


@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(1, 700), st.booleans())
def test_the_likeliest_come_first_and_ties_by_id(seed, size, count, coarse):
    """As a stable sort has it, with many equal logits too."""
    logits = random_logits(seed, 3, size)
    if coarse:
        logits = np.round(logits)
    logits[0, ::2] = -np.inf
    logits[1, ::3] *= np.float32(-0.0)
    found = most_likely(np, logits, min(count, size))
    expected = np.argsort(-logits, axis=1, kind="stable")[:, : min(count, size)]
    assert np.array_equal(found, expected)


def test_a_row_of_no_numbers_disturbs_no_other():
    """Neither where its neighbour has equals at the border, which makes up for what it lacks."""
    logits = np.array([[5, 4, np.nan, 1, 0], [7, 3, 3, 3, 9], [np.nan] * 5], np.float32)
    for rows in ([0, 1, 2], [1, 0], [2, 1], [1]):
        assert most_likely(np, logits[rows], 3)[rows.index(1)].tolist() == [4, 0, 1]


def test_weights_sum_without_overflow_in_the_largest_vocabularies():
    """All tokens equally likely: the sum is exact and fits."""
    for size in (1, 2, 1000, 2**18, 2**20 + 1):
        logits = np.zeros((1, size), np.float32)
        one = np.ones((1, 1), np.float32)
        weight = weights(np, logits, logits[:, :1], one, bits=scale_bits(size))
        assert weight.sum() == size * 2 ** scale_bits(size) < 2**62


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 600), WISHES, st.sampled_from([0.3, 3.0, 12.0]))
@example(0, 600, {"top_p": 0.999}, 0.3)
@example(0, 600, {"top_k": 1}, 0.3)
@example(0, 5, {"temperature": 1e-38}, 3.0)
def test_a_draw_is_the_one_of_a_plain_sampler(seed, size, wished, spread):
    """The token is where float64 arithmetic has the random number fall, unless that is at a border."""
    logits = random_logits(seed, 1, size, spread=spread)
    request = state(size, **wished)
    params = request.context.sampling_params
    token = sampler(size).sample(logits.copy(), [request]).tokens[0]
    if params.temperature < 1e-5 or params.top_k == 1:
        assert token == logits[0].argmax()
        return
    rules = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    p, order = plain_distribution(logits[0], **rules)
    if not (params.top_k > 0 or params.top_p < 1 or params.min_p > 0):
        order = np.arange(size)
    border = np.cumsum(p[order])
    place = order.tolist().index(token) if token in order else None
    uniform = request.chance.at(request.position)
    near = any(
        token in plain_distribution(logits[0], **{**rules, name: max(0.0, min(1.0, rules[name] * (1 + nudge)))})[1]
        for name in ("top_p", "min_p")
        for nudge in (-1e-4, 1e-4)
    )
    if place is None:
        assert near
    else:
        low, high = border[place] - p[token], border[place]
        assert low - 2e-4 <= uniform <= high + 2e-4


@pytest.mark.parametrize(
    "wished",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_tokens_come_as_often_as_they_should(wished):
    """Chi-square over 20 000 draws of a fixed seed; what is filtered out never comes."""
    size, draws = 60, 20_000
    logits = random_logits(5, 1, size, spread=1.5)
    p, _ = plain_distribution(logits[0], **wished)
    request = state(size, seed=11, **wished)
    found = np.zeros(size)
    chooser = sampler(size)
    batch = np.repeat(logits, 200, axis=0)
    for _ in range(draws // 200):
        requests = [request] * 200
        numbers = [[1] * 199]  # one request, 200 positions ahead: each has its own number
        tokens = chooser.sample(batch.copy(), requests[:1], numbers).tokens
        found += np.bincount(tokens, minlength=size)
        request.accept(tokens)
    assert found[p == 0].sum() == 0
    likely = p * draws >= 5
    expected = np.append(p[likely], p[~likely].sum()) * draws
    counted = np.append(found[likely], found[~likely].sum())
    kept = expected > 0
    assert stats.chisquare(counted[kept], expected[kept]).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([7, 64, 1023, 4096]), st.lists(WISHES, min_size=2, max_size=12))
def test_a_row_does_not_depend_on_its_neighbours(seed, size, wishes):
    """Whatever else is in the batch and in whatever order, each request gets the token that it gets alone."""
    logits = random_logits(seed, len(wishes), size)
    requests = [state(size, **{"seed": 5, **wished}) for wished in wishes]
    together = sampler(size).sample(logits.copy(), requests).tokens
    alone = [
        sampler(size).sample(row[None].copy(), [request]).tokens[0]
        for row, request in zip(logits, requests, strict=True)
    ]
    assert together == alone
    order = np.random.default_rng(seed).permutation(len(wishes))
    shuffled = sampler(size).sample(logits[order], [requests[at] for at in order]).tokens
    assert shuffled == [together[at] for at in order]


@pytest.mark.parametrize("size", [1, 2, 5, 255, 256, 257, 2000, 32_000])
def test_weights_do_not_depend_on_where_a_row_lies(size):
    """Bit for bit: in a batch, alone, and at any alignment."""
    logits = random_logits(size, 9, size)
    highest, ones = logits.max(axis=1, keepdims=True), np.full((9, 1), 0.7, np.float32)
    together = weights(np, logits, highest, ones, bits=scale_bits(size))
    for row in range(9):
        part = slice(row, row + 1)
        alone = weights(np, logits[part].copy(), highest[part], ones[part], bits=scale_bits(size))
        assert np.array_equal(alone[0], together[row])
        few = weights(np, logits[part, size // 3 :].copy(), highest[part], ones[part], bits=scale_bits(size))
        assert np.array_equal(few[0], together[row, size // 3 :])


def test_many_candidates_are_looked_at_only_when_they_count(monkeypatch):
    """A flat distribution needs more than the first candidates, and gets them; the result is the same either way."""
    size = 3000
    logits = random_logits(1, 8, size, spread=0.01)
    requests = [state(size, top_p=0.9, seed=seed) for seed in range(8)]
    found = sampler(size).sample(logits.copy(), requests).tokens
    monkeypatch.setattr(choice, "FIRST_CANDIDATES", size)
    assert sampler(size).sample(logits.copy(), requests).tokens == found
    assert max(np.argsort(np.argsort(-logits[row]))[token] for row, token in enumerate(found)) > 256
