"""One token per row of logits: the likeliest, or one drawn by its probability.

Each row's token depends on that row, its parameters and its random number alone, to the bit. `plan.py` says which rows
go which way; masks and penalties are in the logits already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .weights import most_likely, scale_bits, tiles, weights

#: Candidates sorted first where only a share of the mass is asked for; rows that need more get this many times more.
FIRST_CANDIDATES = 256
_MORE = 8


@dataclass(frozen=True)
class Filters:
    """Which of the likeliest tokens take part, one entry per row, each `(rows, 1)`.

    In this order: the `limit` likeliest (int64, at most the vocabulary); of their mass the smallest share that reaches
    `mass` (float64); of those the ones with at least `floor` (float64) times the probability of the likeliest.
    """

    limit: Any
    mass: Any
    floor: Any

    def rows(self, index: Any) -> Filters:
        """The filters of some rows."""
        return Filters(self.limit[index], self.mass[index], self.floor[index])


def greedy(logits: Any) -> Any:
    """The likeliest token of each row, int64 `(rows,)`; of equals the lowest id."""
    return logits.argmax(axis=1)


def draw(xp: Any, logits: Any, temperature: Any, filters: Filters | None, uniform: Any) -> Any:
    """A token of each row by its probability among those that `filters` let through, int64 `(rows,)`.

    `logits`: float32 `(rows, vocabulary)`; `temperature`: float32 `(rows, 1)`; `filters`: None lets all through;
    `uniform`: float64 `(rows, 1)` in [0, 1). At least the likeliest token of each row takes part.
    """
    chosen = xp.empty(len(logits), np.int64)
    for part in tiles(xp, logits):
        if filters is None:
            chosen[part] = _draw_any(xp, logits[part], temperature[part], uniform[part])
        else:
            chosen[part] = _draw_filtered(xp, logits[part], temperature[part], filters.rows(part), uniform[part])
    return chosen


def _draw_any(xp: Any, logits: Any, temperature: Any, uniform: Any) -> Any:
    highest = _highest(xp, logits)
    mass = xp.cumsum(weights(xp, logits, highest, temperature, bits=scale_bits(logits.shape[1])), axis=1)
    return (mass > _point(xp, mass[:, -1:], uniform)).argmax(axis=1)


def _draw_filtered(xp: Any, logits: Any, temperature: Any, filters: Filters, uniform: Any) -> Any:
    size = logits.shape[1]
    highest = _highest(xp, logits)
    total = _whole_mass(xp, logits, highest, temperature, filters)
    count = _first_count(filters.limit, size)
    chosen, complete = _draw_from(xp, logits, highest, temperature, filters, uniform, total, count)
    while count < size and not bool(complete.all()):
        count = min(size, _MORE * count)
        rest = xp.flatnonzero(~complete)
        chosen[rest], complete[rest] = _draw_from(
            xp, logits[rest], highest[rest], temperature[rest], filters.rows(rest), uniform[rest], total[rest], count
        )
    return chosen


def _draw_from(
    xp: Any, logits: Any, highest: Any, temperature: Any, filters: Filters, uniform: Any, total: Any, count: int
) -> tuple[Any, Any]:
    """Draw from the `count` likeliest of each row; and whether those were enough to know what takes part."""
    size = logits.shape[1]
    ids = most_likely(xp, logits, count)
    weight = weights(xp, xp.take_along_axis(logits, ids, axis=1), highest, temperature, bits=scale_bits(size))
    mass = xp.cumsum(weight, axis=1)
    limit = xp.minimum(filters.limit, count)
    total = xp.where(filters.limit < size, xp.take_along_axis(mass, limit - 1, axis=1), total)
    # Each condition holds for a first part of the row and no further, so they can be counted.
    part = (xp.arange(count) < limit) & (mass - weight < filters.mass * total)
    part &= weight >= filters.floor * weight[:, :1]
    kept = xp.maximum(part.sum(axis=1, keepdims=True), 1)
    point = _point(xp, xp.take_along_axis(mass, kept - 1, axis=1), uniform)
    place = (mass > point).argmax(axis=1)[:, None]
    complete = (kept < count) | (filters.limit <= count)
    return xp.take_along_axis(ids, place, axis=1)[:, 0], complete[:, 0]


def _whole_mass(xp: Any, logits: Any, highest: Any, temperature: Any, filters: Filters) -> Any:
    """The mass of each whole row, int64 `(rows, 1)`; 0 where only the likeliest few count anyway."""
    total = xp.zeros(highest.shape, np.int64)
    size = logits.shape[1]
    needed = xp.flatnonzero((filters.limit >= size) & (filters.mass < 1))
    if needed.size:
        weight = weights(xp, logits[needed], highest[needed], temperature[needed], bits=scale_bits(size))
        total[needed] = weight.sum(axis=1, keepdims=True)
    # A mass of 1 takes every token: a bound that no sum reaches.
    return xp.where(filters.mass < 1, total, np.int64(2**62))


def _first_count(limit: Any, size: int) -> int:
    limited = limit[limit < size]
    largest = int(limited.max()) if limited.size else 0
    return min(size, largest if limited.size == limit.size else max(largest, FIRST_CANDIDATES))


def _highest(xp: Any, logits: Any) -> Any:
    """The largest logit of each row, `(rows, 1)`; 0 where there is none, so that such a row stays harmless."""
    highest = logits.max(axis=1, keepdims=True)
    return xp.where(xp.isfinite(highest), highest, np.float32(0))


def _point(xp: Any, mass: Any, uniform: Any) -> Any:
    """Where in a mass (int64) the random number falls; below the mass, also when the product rounds up."""
    return xp.minimum((uniform * mass).astype(np.int64), mass - 1)
