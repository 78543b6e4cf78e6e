"""Penalties for tokens that were there before: what a request counts, and what becomes of a batch's logits.

`state.py` holds a `TokenCounts` per request that wants penalties; a token costs one look-up, whatever came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST_SLOTS = 64


class TokenCounts:
    """How often each token was generated, and which stand in the prompt; at most one entry per token of the request.

    `prompt`: tokens that count as seen but not as generated.
    """

    __slots__ = ("_counts", "_ids", "_length", "_slots")

    #: Distinct tokens, `_length` of its slots in use.
    _ids: npt.NDArray[np.int64]
    #: How often each was generated; parallel.
    _counts: npt.NDArray[np.float32]
    _length: int
    #: Token to its index in both.
    _slots: dict[int, int]

    def __init__(self, prompt: npt.NDArray[np.int64] | None = None) -> None:
        distinct = np.unique(prompt) if prompt is not None else np.empty(0, np.int64)
        self._length = len(distinct)
        self._ids = np.concatenate([distinct, np.zeros(_FIRST_SLOTS, np.int64)])
        self._counts = np.zeros(len(self._ids), np.float32)
        self._slots = {token: slot for slot, token in enumerate(distinct.tolist())}

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The distinct tokens seen, `(n,)`; a view."""
        return self._ids[: self._length]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """How often each of `ids` was generated, `(n,)`; a view."""
        return self._counts[: self._length]

    def add(self, tokens: Iterable[int]) -> None:
        """Count generated tokens."""
        for token in tokens:
            slot = self._slots.get(token)
            if slot is None:
                slot = self._new_slot(token)
            self._counts[slot] += 1

    def with_tokens(self, tokens: Sequence[int]) -> TokenCounts:
        """A copy that has counted `tokens` too, as drafts ask for."""
        copy = TokenCounts()
        copy._ids, copy._counts = self._ids.copy(), self._counts.copy()
        copy._length, copy._slots = self._length, dict(self._slots)
        copy.add(tokens)
        return copy

    def _new_slot(self, token: int) -> int:
        slot = self._length
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._slots[token] = slot
        self._length = slot + 1
        return slot


@dataclass(frozen=True)
class Penalties:
    """What one row is to lose; see `SamplingParams`."""

    repetition: float
    frequency: float
    presence: float


def apply_penalties(xp: Any, logits: Any, rows: Sequence[tuple[int, TokenCounts, Penalties]]) -> None:
    """Change the logits (float32 `(rows, vocabulary)`) of the given rows in place.

    First the repetition penalty, for tokens of prompt and answer: a positive logit is divided by it, a negative one
    multiplied. Then, for tokens of the answer, `frequency` times their count and once `presence` are taken away.
    """
    lengths = [len(counts.ids) for _, counts, _ in rows]
    if not sum(lengths):
        return

    def spread(values: Sequence[float], kind: Any) -> Any:
        return xp.asarray(np.repeat(np.array(values, kind), lengths))

    at = spread([row for row, _, _ in rows], np.int64), xp.asarray(np.concatenate([c.ids for _, c, _ in rows]))
    count = xp.asarray(np.concatenate([c.counts for _, c, _ in rows]))
    repetition = spread([penalties.repetition for *_, penalties in rows], np.float32)
    seen = logits[at]
    seen = xp.where(seen > 0, seen / repetition, seen * repetition)
    seen -= count * spread([penalties.frequency for *_, penalties in rows], np.float32)
    seen -= (count > 0) * spread([penalties.presence for *_, penalties in rows], np.float32)
    logits[at] = seen
