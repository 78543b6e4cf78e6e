"""Random numbers as a function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.workers.text.sampling.uniforms import ACCEPT, Stream, numbers_at, philox4x32, uniforms

stats = pytest.importorskip("scipy.stats")

#: Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(np.array([int(word, 16)], np.uint64) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_generator_gives_the_published_answers(counter, key, result):
    """Philox4x32-10, word for word."""
    assert philox4x32(words(counter), words(key)) == words(result)


def test_numbers_are_uniform_and_independent_of_their_neighbours():
    """Bins are as full as chance has them, along positions and along seeds, and pairs are not correlated."""
    along = uniforms(np.uint64(7)[None], np.arange(40_000, dtype=np.uint64))
    across = uniforms(np.arange(40_000, dtype=np.uint64), np.uint64(7)[None])
    for numbers in (along, across):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert stats.chisquare(np.histogram(numbers, 100, (0, 1))[0]).pvalue > 1e-3
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


@given(
    st.lists(st.integers(0, 10**12), min_size=6, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 80)), min_size=1, max_size=12),
)
def test_a_number_is_the_same_whoever_asks_with_whom(starts, asked):
    """Looked up together, in windows and again, each number is the one of its seed and position."""
    streams = [Stream(seed - 3) for seed in range(6)]
    wanted = [(streams[which], starts[which] + step) for which, step in asked]
    for _ in range(2):
        numbers = numbers_at([stream for stream, _ in wanted], [position for _, position in wanted])
        assert numbers == [Stream(stream.seed).at(position) for stream, position in wanted]


def test_purposes_differ():
    """Accepting a draft takes another number than drawing a token."""
    assert Stream(1).at(5) != Stream(1).at(5, ACCEPT)


def test_seeds_of_either_sign_are_seeds():
    """Whatever `SamplingParams` takes as a seed works, and high words count."""
    assert len({Stream(seed).at(0) for seed in (-(2**63), -1, 0, 1, 2**32, 2**63 + 1, 2**64 - 2)}) == 7
    assert Stream(0).at(1) != Stream(0).at(1 + 2**32)
