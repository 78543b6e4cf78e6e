"""The smaller model of speculative decoding at work: its logits behind what requests have and what was guessed.

`speculation.py` asks it for every token that it guesses; it has a cache of its own, and computes of each request what
it has not computed yet. What it knows of a request is right as far as the tokens are still the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...proto.text_context import TextContext
from .blocks import BlockManager
from .models.cache import KVCache
from .models.decoder import Decoder
from .models.step import Span, lay_out

Tokens = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Known:
    """What is computed of one request: these tokens, in the blocks of `table`."""

    tokens: Tokens
    table: npt.NDArray[np.int64]


class DraftModel:
    """A decoder that guesses. `ahead`: most tokens that it is asked for beyond a request's own.

    `max_chunk`: tokens of one request computed before a guess; of a longer prompt so many in each step, and no guesses
    until it is read.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, *, ahead: int, max_chunk: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._blocks = BlockManager(blocks=cache.blocks, block_size=cache.block_size, caching=False)
        self._ahead = ahead
        self._max_chunk = max_chunk
        self._known: dict[TextContext, _Known] = {}

    def ready(self, contexts: Sequence[TextContext]) -> list[bool]:
        """For which requests there can be guesses now: there is room for them, and what came before is computed.

        Reads on in those that are behind.
        """
        able = [self._make_room(context) for context in contexts]
        behind = []
        for index, context in enumerate(contexts):
            if able[index]:
                tokens = _tokens(context)
                done = _common(self._known[context].tokens, tokens)
                if len(tokens) - done > self._max_chunk:
                    behind.append(self._span(context, tokens[: done + self._max_chunk], logits=0))
                    able[index] = False
        if behind:
            self._decoder.forward(lay_out(behind, self._cache.block_size), self._cache)
        return able

    def step(self, contexts: Sequence[TextContext], drafts: Sequence[Sequence[int]]) -> Any:
        """Logits behind each context, one of those that are ready, and its drafts, `(requests, vocabulary)`."""
        spans = [
            self._span(context, np.concatenate([_tokens(context), np.array(ahead, np.int64)]), logits=1)
            for context, ahead in zip(contexts, drafts, strict=True)
        ]
        return self._decoder.forward(lay_out(spans, self._cache.block_size), self._cache)

    def forget(self, context: TextContext) -> None:
        """The request has ended; unknown ones are passed by."""
        if self._known.pop(context, None) is not None:
            self._blocks.close(context)

    def _make_room(self, context: TextContext) -> bool:
        """Blocks for the request and what is guessed of it; False where there are none, or it is too long."""
        wanted = len(_tokens(context)) + self._ahead
        if wanted > self._decoder.config.positions:
            return False
        if context not in self._known:
            if self._blocks.open(context, _tokens(context)) is None:
                return False
            table = np.zeros(self._blocks.needed(self._decoder.config.positions), np.int64)
            self._known[context] = _Known(np.empty(0, np.int64), table)
        if not self._blocks.grow(context, wanted):
            return False
        blocks = self._blocks.table(context)
        self._known[context].table[: len(blocks)] = blocks
        return True

    def _span(self, context: TextContext, tokens: Tokens, *, logits: int) -> Span:
        known = self._known[context]
        # The last token is computed in any case: without it there are no logits.
        start = min(_common(known.tokens, tokens), len(tokens) - 1)
        known.tokens = tokens
        return Span(tokens[start:], start, known.table, logits)


def _tokens(context: TextContext) -> Tokens:
    return context.tokens.all[: len(context.tokens) - context.tokens.has_placeholder]


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences have in common from the beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
