"""Turns one label per token into the spans of a chunk. Knows no format."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import groupby

from ..reasoning import ReasoningSpan


class Label(Enum):
    """What a token of a chunk is."""

    CONTENT = "content"
    REASONING = "reasoning"
    #: Belongs to a delimiter, or still could.
    DELIMITER = "delimiter"


def spans_of(labels: Sequence[Label]) -> tuple[ReasoningSpan, ...]:
    """The spans of a chunk, in order; at least one, of no width where nothing is reasoning or delimiter."""
    spans: list[ReasoningSpan] = []
    start = at = 0
    inner: tuple[int, int] | None = None
    opened = False
    for label, run in groupby(labels):
        end = at + sum(1 for _ in run)
        if label is Label.CONTENT or (label is Label.REASONING and inner is not None):
            if opened:
                spans.append(ReasoningSpan((start, at), inner or (at, at)))
            opened, inner = False, None
        if label is not Label.CONTENT:
            start = start if opened else at
            opened = True
            inner = (at, end) if label is Label.REASONING else inner
        at = end
    if opened:
        spans.append(ReasoningSpan((start, at), inner or (at, at)))
    return tuple(spans) or (ReasoningSpan((0, 0), (0, 0)),)
