"""Token ids of delimiters, from any tokenizer that encodes text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


async def encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of `text` alone, without special tokens around it.

    `tokenizer.encode(text, add_special_tokens=False)` may be awaitable, and may give ids or an object with `ids`.
    """
    result = tokenizer.encode(text, add_special_tokens=False)
    if inspect.isawaitable(result):
        result = await result
    return tuple(int(token) for token in getattr(result, "ids", result))


async def single_token(tokenizer: Any, text: str) -> int | None:
    """The id of `text` where it is one token of the vocabulary, else None."""
    ids = await encoded(tokenizer, text)
    return ids[0] if len(ids) == 1 else None


def ends_with(ids: Sequence[int], end: int, sequence: Sequence[int]) -> bool:
    """Whether `sequence` stands in `ids` right before position `end`."""
    return end >= len(sequence) and tuple(ids[end - len(sequence) : end]) == tuple(sequence)
