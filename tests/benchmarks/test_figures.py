"""Medians, percentiles and ratios, against numbers worked out by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.benchmarks import figures

NUMBERS = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)


def test_a_percentile_lies_between_its_neighbours():
    """Of 0, 10, 20, 30, 40 the quarter is 10, and nine tenths are six tenths of the way from 30 to 40."""
    values = [30, 0, 40, 10, 20]
    assert figures.percentile(values, 0.25) == 10
    assert figures.percentile(values, 0.9) == pytest.approx(36)
    assert figures.percentile([7], 0.99) == 7


@given(NUMBERS)
def test_the_half_is_the_median(values):
    """The 50th percentile is what the standard library calls median, and the ends are least and most."""
    assert figures.percentile(values, 0.5) == pytest.approx(statistics.median(values))
    assert (figures.percentile(values, 0), figures.percentile(values, 1)) == (min(values), max(values))


def test_nothing_has_no_percentile():
    """Without values there is an error, not a number."""
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 0.5)


def test_ratios_are_taken_round_by_round():
    """A round twice as slow for both changes no ratio; a round that one of them missed does not count."""
    assert figures.ratios([2.0, 4.0, None, 6.0], [1.0, 2.0, 1.0, None]) == [2.0, 2.0]


def test_a_ratio_of_medians_would_say_something_else():
    """Noise that both meet in a round cancels out, which it would not between medians of all rounds."""
    ours, theirs = [1.0, 10.0, 1.2], [2.0, 20.0, 2.4]
    assert figures.spread(figures.ratios(ours, theirs)) == figures.Spread(0.5, 0.5, 0.5)


def test_a_cell_keeps_each_round_and_pools_its_tail():
    """The median is that of the rounds' medians, and the 99th percentile that of all samples."""
    cell = figures.cell([[1.0, 2.0, 3.0], [], [4.0, 4.0, 400.0]])
    assert cell is not None
    assert cell.rounds == (2.0, None, 4.0)
    assert (cell.median, cell.samples) == (3.0, 6)
    assert 300 < cell.p99 <= 400
    assert figures.cell([[], []]) is None


def test_a_spread_is_written_with_its_quartiles():
    """Median first, quartiles in brackets."""
    assert str(figures.spread([1, 2, 3, 4, 5])) == "3.00 (2.00-4.00)"
