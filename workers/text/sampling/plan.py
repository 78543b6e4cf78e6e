"""What a batch of requests needs at each step, as arrays: made when the batch changes, used until it does again.

`sampler.py` asks for it; requests that want nothing special appear in one index array and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...device import Device
from .choice import Filters
from .state import SamplingState
from .uniforms import Stream

Drafts = Sequence[Sequence[int]]


class Row(NamedTuple):
    """One row of logits: which request of the batch it belongs to, and the drafts that stand before its token."""

    request: int
    state: SamplingState
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Rows whose token is drawn in the same way. `filters` is None where every token takes part."""

    rows: list[Row]
    #: The random numbers of each row.
    streams: list[Stream]
    #: On the device: which rows of logits these are, and float32 `(rows, 1)`.
    index: Any
    temperature: Any
    filters: Filters | None


class Plan:
    """The rows of a batch, sorted by what they need; positions are those of rows of logits."""

    def __init__(
        self,
        device: Device,
        states: Sequence[SamplingState],
        vocabulary: int,
        *,
        drafts: Drafts | None = None,
        only_last: bool = False,
    ) -> None:
        self._device = device
        self._vocabulary = vocabulary
        self.states = list(states)
        self._epochs = [state.epoch for state in states]
        self.rows = _last_rows(states, drafts or ()) if only_last else _rows(states, drafts)
        #: The index of every row, on the device.
        self.every = device.xp.arange(len(self.rows))
        #: Where each request's rows begin, and the end; None when each has one.
        self.offsets = None if drafts is None or only_last else _offsets(drafts)
        self._may_be_kept = drafts is None
        drawn = [at for at, row in enumerate(self.rows) if not row.state.is_greedy]
        self.all_greedy = not drawn
        self.draws = self._draws(drawn)
        self.penalized = [at for at, row in enumerate(self.rows) if row.state.penalties is not None]
        self.held_back = [at for at, row in enumerate(self.rows) if row.state.may_not_end(len(row.drafts))]
        #: Nobody reads a guess, and processors are not told what it stands behind.
        self.is_guess = only_last
        self.processed = [index for index, state in enumerate(states) if state.processors and not only_last]
        wanting = (at for at, row in enumerate(self.rows) if row.state.wants_log_probabilities)
        self.reported = [] if only_last else list(wanting)

    def fits(self, states: Sequence[SamplingState], drafts: Drafts | None) -> bool:
        """Whether the plan holds for this step too."""
        return (
            self._may_be_kept
            and drafts is None
            and len(states) == len(self.states)
            and all(map(_is, states, self.states))
            and [state.epoch for state in states] == self._epochs
        )

    def is_reached(self, at: int, tokens: npt.NDArray[np.int64]) -> bool:
        """Whether the row's token counts: behind a draft that was not chosen nothing does."""
        drafts = self.rows[at].drafts
        return self.is_guess or tuple(tokens[at - len(drafts) : at].tolist()) == drafts

    def _draws(self, drawn: list[int]) -> list[Draw]:
        filtered = [at for at in drawn if _is_filtered(self.rows[at].state)]
        free = [at for at in drawn if not _is_filtered(self.rows[at].state)]
        return [self._draw(at, filters=at is filtered) for at in (free, filtered) if at]

    def _draw(self, at: list[int], *, filters: bool) -> Draw:
        rows = [self.rows[place] for place in at]
        params = [row.state.context.sampling_params for row in rows]
        limits = [row.state.top_k for row in rows]
        limits = [min(limit, self._vocabulary) if limit > 0 else self._vocabulary for limit in limits]
        return Draw(
            rows,
            [row.state.chance for row in rows],
            self._device.xp.asarray(np.array(at, np.int64)),
            self._column([row.state.temperature for row in rows], np.float32),
            Filters(
                self._column(limits, np.int64),
                self._column([each.top_p for each in params], np.float64),
                self._column([each.min_p for each in params], np.float64),
            )
            if filters
            else None,
        )

    def _column(self, values: Sequence[float], kind: Any) -> Any:
        return self._device.xp.asarray(np.array(values, kind)[:, None])


def _is(one: object, other: object) -> bool:
    return one is other


def _is_filtered(state: SamplingState) -> bool:
    params = state.context.sampling_params
    return state.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _rows(states: Sequence[SamplingState], drafts: Drafts | None) -> list[Row]:
    if drafts is None:
        return [Row(index, state) for index, state in enumerate(states)]
    return [
        Row(index, state, tuple(ahead[:count]))
        for index, (state, ahead) in enumerate(zip(states, drafts, strict=True))
        for count in range(len(ahead) + 1)
    ]


def _last_rows(states: Sequence[SamplingState], drafts: Drafts) -> list[Row]:
    return [Row(index, state, tuple(ahead)) for index, (state, ahead) in enumerate(zip(states, drafts, strict=True))]


def _offsets(drafts: Drafts) -> list[int]:
    return [0, *accumulate(len(ahead) + 1 for ahead in drafts)]
