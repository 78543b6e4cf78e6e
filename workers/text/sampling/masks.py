"""Applies what grammars allow next to a batch of logits, all rows at once.

`grammar.py` has the grammars; here they are whatever a context's `matcher` is, if it can tell which tokens it allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import TensoryardError
from ...device import Device
from .plan import Row


class Hold(Enum):
    """What a grammar says about the next token."""

    #: Anything may come; the mask means nothing.
    FREE = "free"
    #: Anything but an end token may come; the mask means nothing.
    UNFINISHED = "unfinished"
    #: Only what the mask allows.
    HELD = "held"
    #: The grammar is complete: only an end token may come, and the mask allows just those.
    OVER = "over"


class TokenMask(ABC):
    """A `GrammarMatcher` that can tell what it allows."""

    @abstractmethod
    def fill_mask(self, mask: npt.NDArray[np.int32], drafts: Sequence[int] = ()) -> Hold:
        """Write which tokens may follow the drafts: bit `i % 32` of word `i // 32` is token `i`.

        `mask`: int32 `((vocabulary + 31) // 32,)`, all zeros. Drafts that the grammar refuses allow everything: what
        stands behind them is thrown away.
        """

    @abstractmethod
    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        """Consume tokens as far as the grammar allows; how many were consumed."""


@dataclass(frozen=True)
class Masked:
    """What grammars said: rows whose grammar is complete, rows that may not end yet, requests that have no token."""

    over: set[int] = field(default_factory=set)
    unfinished: set[int] = field(default_factory=set)
    problems: dict[int, TensoryardError] = field(default_factory=dict)


def apply_masks(device: Device, logits: Any, rows: Sequence[Row]) -> Masked:
    """Set the logits of forbidden tokens to -inf in place."""
    found = Masked()
    matchers = [(at, row.state.context.matcher) for at, row in enumerate(rows)]
    held = [(at, matcher) for at, matcher in matchers if matcher is not None and isinstance(matcher, TokenMask)]
    if not held:
        return found
    masks = np.zeros((len(held), (logits.shape[1] + 31) // 32), np.int32)
    bound: list[int] = []
    for place, (at, matcher) in enumerate(held):
        try:
            says = matcher.fill_mask(masks[place], rows[at].drafts)
        except TensoryardError as error:
            found.problems[rows[at].request] = error
            continue
        if says in (Hold.HELD, Hold.OVER):
            bound.append(place)
        if says is Hold.OVER:
            found.over.add(at)
        elif says is Hold.UNFINISHED:
            found.unfinished.add(at)
    if bound:
        _forbid(device, logits, [held[place][0] for place in bound], masks[bound])
    return found


def _forbid(device: Device, logits: Any, at: list[int], masks: npt.NDArray[np.int32]) -> None:
    xp = device.xp
    # Words are little-endian on every machine that we run on, so their bytes are in the order of the tokens.
    bits = xp.unpackbits(xp.asarray(masks.view(np.uint8).ravel()), bitorder="little").reshape(len(at), -1)
    index = xp.asarray(np.array(at))
    logits[index] = xp.where(bits[:, : logits.shape[1]].astype(bool), logits[index], np.float32(-np.inf))
