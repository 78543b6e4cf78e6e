"""Medians, percentiles and ratios of what was measured: pure functions, for `goals.py` and `report.py`.

A ratio compares two contenders within one round, when the machine was as busy for one as for the other; its spread is
that of the rounds. Figures of different runs are never compared: see `results.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of all lie, between neighbours in proportion; ValueError for none."""
    if not values:
        raise ValueError("no values have no percentile")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Quartiles."""
    return Spread(percentile(values, 0.25), percentile(values, 0.5), percentile(values, 0.75))


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Round by round, ours over theirs; rounds in which either is missing count for neither."""
    return [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]


@dataclass(frozen=True)
class Cell:
    """One contender at one work: a figure per round, and what all its samples together say."""

    #: The median of each round; None where it failed.
    rounds: tuple[float | None, ...]
    median: float
    #: The 99th percentile of all samples, of all rounds.
    p99: float
    samples: int


def cell(rounds: Sequence[Sequence[float]]) -> Cell | None:
    """What a contender's samples say, round by round; None when there are none at all."""
    every = [sample for samples in rounds for sample in samples]
    if not every:
        return None
    medians = tuple(statistics.median(samples) if samples else None for samples in rounds)
    known = [median for median in medians if median is not None]
    return Cell(medians, statistics.median(known), percentile(every, 0.99), len(every))
