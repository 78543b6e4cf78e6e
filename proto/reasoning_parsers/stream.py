"""Drives a reasoning parser over a stream, chunk by chunk, and puts back what it withheld for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..reasoning import ReasoningParser


class SplitTokens(NamedTuple):
    """The tokens of a chunk, told apart; delimiters are in neither."""

    reasoning: list[int]
    content: list[int]


class ReasoningStream:
    """One answer: gives each chunk to a parser of its own and carries the flag between chunks.

    `is_reasoning`: whether the answer begins inside reasoning (`ReasoningParser.will_reason_after_prompt`). Whatever
    way a list of tokens is cut into chunks, the tokens that come out add up to the same.
    """

    def __init__(self, parser: ReasoningParser, *, is_reasoning: bool) -> None:
        self._parser = parser.for_request()
        self._is_reasoning = is_reasoning

    @property
    def is_reasoning(self) -> bool:
        """Whether the next token would be reasoning."""
        return self._is_reasoning

    def feed(self, token_ids: Sequence[int]) -> SplitTokens:
        """Tell the next chunk's tokens apart; some may be withheld until a later chunk or `flush`."""
        delta = self._parser.stream(token_ids, self._is_reasoning)
        found = self._restored(delta.restored)
        found.reasoning.extend(delta.extract_reasoning(token_ids))
        found.content.extend(delta.extract_content(token_ids))
        self._is_reasoning = delta.is_still_reasoning
        return found

    def flush(self) -> SplitTokens:
        """What is still withheld when the answer ends."""
        return self._restored(self._parser.flush())

    def _restored(self, token_ids: Sequence[int]) -> SplitTokens:
        return SplitTokens(list(token_ids), []) if self._is_reasoning else SplitTokens([], list(token_ids))
