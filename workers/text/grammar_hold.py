"""Holds an answer to a grammar where it is to be held, and leaves it free where it is not: thinking, text around calls.

`GrammarHold` is what a context has as its `matcher`; `grammar.py` compiles what is in it. Regions are told by tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest
from ...proto.text_context import TextContext
from ...proto.tool_parsers.markers import Markers
from .sampling.masks import Hold, TokenMask

if TYPE_CHECKING:
    from llguidance import LLMatcher

logger = logging.getLogger(__name__)

Sequences = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Regions:
    """Where a grammar does not hold; each mark is a token sequence, several where it can be written in several ways.

    `thinking_starts`, `thinking_ends`: around text that is free. `call_starts`: none holds the answer from its first
    token on; otherwise the answer is free, each of these begins a part that the grammar holds, mark included, and
    behind that part it is free again.
    """

    thinking_starts: Sequences = ()
    thinking_ends: Sequences = ()
    call_starts: Sequences = ()


class _Place(Enum):
    """Where an answer is."""

    THINKING = "thinking"
    #: Free text, in which a call or thinking may begin.
    FREE = "free"
    #: The grammar holds, and nothing of it has come yet: thinking may begin instead.
    READY = "ready"
    HELD = "held"


class GrammarHold(TokenMask):
    """One answer, held to a grammar.

    `matcher`: the automaton in its first state. `thinking`: whether the answer begins inside thinking, as some prompts
    make it.
    """

    #: The automaton, and the same in its first state for the next call.
    _matcher: LLMatcher
    _first: LLMatcher
    _place: _Place
    #: The marks looked for in free text, and how far the text has got in them.
    _marks: dict[_Place, Markers[int]]
    _node: int
    #: In READY: the beginning of a mark of thinking, which then has to be completed.
    _begun: tuple[int, ...]

    def __init__(self, matcher: LLMatcher, regions: Regions | None = None, *, thinking: bool = False) -> None:
        self._first = matcher
        self._matcher = matcher.deep_copy()
        self._regions = regions or Regions()
        self._node, self._begun = 0, ()
        self._place = _Place.THINKING if thinking else self._begin()
        starts, calls = self._regions.thinking_starts, self._regions.call_starts
        self._marks = {
            _Place.THINKING: Markers([*self._regions.thinking_ends, *calls]),
            _Place.FREE: Markers([*starts, *calls]),
        }

    def _begin(self) -> _Place:
        return _Place.FREE if self._regions.call_starts else _Place.READY

    # What the contract asks for

    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        """Consume tokens as far as the grammar allows; how many were consumed."""
        for count, token in enumerate(tokens):
            if not self._consume(token):
                return count
        return len(tokens)

    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        if self._place in (_Place.HELD, _Place.READY):
            return bool(self._matcher.is_accepting())
        return self._place is _Place.FREE

    def is_stopped(self) -> bool:
        """Whether nothing but an end may come."""
        return self._place is _Place.HELD and bool(self._matcher.is_stopped())

    def deep_copy(self) -> Self:
        """The same in the same state, to be advanced on its own."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._matcher = self._matcher.deep_copy()
        return copy

    def fill_mask(self, mask: npt.NDArray[np.int32], drafts: Sequence[int] = ()) -> Hold:
        """See `TokenMask`. Raises InvalidRequest when the grammar has become too much for its automaton."""
        if drafts:
            ahead = self.deep_copy()
            return ahead.fill_mask(mask) if ahead.try_consume_tokens(drafts) == len(drafts) else Hold.FREE
        if self._place in (_Place.THINKING, _Place.FREE):
            # Before an answer that has to be there, thinking cannot be the end.
            return Hold.FREE if self._regions.call_starts else Hold.UNFINISHED
        if not self._begun:
            self._read_mask(mask)
        if self._place is _Place.READY:
            words = mask.view(np.uint32)
            for token in self._thinking_next():
                words[token // 32] |= np.uint32(1 << token % 32)
        return Hold.OVER if self.is_stopped() else Hold.HELD

    def _read_mask(self, mask: npt.NDArray[np.int32]) -> None:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        # As many words as the tokenizer has tokens; models may have columns beyond, or fewer.
        count = min(len(mask), len(packed))
        mask[:count] = packed[:count]
        if self._matcher.is_error():
            raise InvalidRequest(f"the grammar cannot go on: {self._matcher.get_error():.500}")

    # Regions

    def _consume(self, token: int) -> bool:
        if self._place is _Place.HELD:
            return self._consume_held([token])
        if self._place is _Place.READY:
            return self._consume_first(token)
        marks = self._marks[self._place]
        self._node = marks.step(self._node, token)
        found = marks.found[self._node]
        return found is None or self._enter(found)

    def _consume_first(self, token: int) -> bool:
        """The first token of the answer, or of thinking before it."""
        if token in self._thinking_next():
            begun = (*self._begun, token)
            whole = any(tuple(start) == begun for start in self._regions.thinking_starts)
            self._begun = () if whole else begun
            return not whole or self._enter(begun)
        return not self._begun and self._consume_held([token])

    def _thinking_next(self) -> set[int]:
        """The tokens that would begin thinking, or go on with its mark."""
        at = len(self._begun)
        starts = [tuple(start) for start in self._regions.thinking_starts]
        return {start[at] for start in starts if len(start) > at and start[:at] == self._begun}

    def _enter(self, mark: Sequence[int]) -> bool:
        """A mark is whole: go where it leads."""
        self._node = 0
        if tuple(mark) in map(tuple, self._regions.call_starts):
            return self._consume_held(mark)
        self._place = _Place.THINKING if self._place is not _Place.THINKING else self._begin()
        return True

    def _consume_held(self, tokens: Sequence[int]) -> bool:
        if self._matcher.try_consume_tokens(list(tokens)) < len(tokens):
            return False
        self._place = _Place.HELD
        if self._regions.call_starts and self._matcher.is_stopped():
            self._place, self._matcher = _Place.FREE, self._first.deep_copy()
        return True


def hold(context: TextContext, grammar: GrammarHold) -> None:
    """Hold a request to a grammar from where it stands: what was generated before is read first.

    A request that has left the grammar already goes on without it, as `TextContext.advance_fsm` has it.
    """
    end = len(context.tokens) - context.tokens.has_placeholder
    ends = context.eos_tracker.eos_token_ids
    tokens = [token for token in context.tokens.all[context.first_generated : end].tolist() if token not in ends]
    if grammar.try_consume_tokens(tokens) == len(tokens):
        context.set_matcher(grammar)
    else:
        logger.warning("request %s: its tokens so far leave the grammar, which is not enforced", context.request_id)
