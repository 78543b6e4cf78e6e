"""Reasoning: telling a model's thinking apart from its answer, chunk by chunk, on token ids.

Parsers of concrete models implement `ReasoningParser`; who calls them keeps the flag between chunks.

Source: `max.interfaces.reasoning` (26.3), `max.pipelines.modeling.types.reasoning` (26.7).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ReasoningSpan:
    """Where one chunk holds reasoning: two half-open ranges of token positions, the second inside the first.

    `reasoning_with_delimiters` includes the delimiter tokens, `reasoning` is the thinking alone. A span of no width,
    `(0, 0)` twice, says that there is none. Raises ValueError for ranges that are negative, crossed or not nested.
    """

    reasoning_with_delimiters: tuple[int, int]
    reasoning: tuple[int, int]

    def __post_init__(self) -> None:
        outer, inner = tuple(self.reasoning_with_delimiters), tuple(self.reasoning)
        # Raised, not asserted: a parser's mistake must show under `python -O` too.
        whole = all(isinstance(position, int) for position in (*outer, *inner))
        if not whole or len(outer) != 2 or len(inner) != 2 or not 0 <= outer[0] <= inner[0] <= inner[1] <= outer[1]:
            raise ValueError(f"a ReasoningSpan has reasoning inside its delimiters, not {inner} in {outer}")
        object.__setattr__(self, "reasoning_with_delimiters", outer)
        object.__setattr__(self, "reasoning", inner)

    def extract_content(self, seq: Sequence[T]) -> list[T]:
        """What lies outside the delimiters; for tokens as for any list parallel to them."""
        start, end = self.reasoning_with_delimiters
        return [*seq[:start], *seq[end:]]

    def extract_reasoning(self, seq: Sequence[T]) -> list[T]:
        """What lies between the delimiters."""
        return list(seq[slice(*self.reasoning)])


@dataclass(frozen=True)
class ParsedReasoningDelta:
    """What a parser found in one chunk.

    `is_still_reasoning`: whether the next chunk begins inside reasoning. `reasoning_text_formatter`: applied to the
    decoded reasoning; may return None to drop it. `more_spans`: further spans of the same chunk, behind `span` and in
    order, for models that think more than once. Raises ValueError when spans overlap.

    A delimiter of several tokens may be cut between chunks. `withheld`: how many of the last tokens up to the end of
    this chunk could begin one; as long as that is open they count as delimiter, so they are in a span and in no text.
    `restored`: the ids of tokens withheld from earlier chunks that turned out to begin none; they stand before this
    chunk, and are reasoning if the chunk began inside reasoning, else content. Both stay empty where delimiters are
    single tokens.
    """

    span: ReasoningSpan
    is_still_reasoning: bool
    reasoning_text_formatter: Callable[[str], str | None] | None = None
    more_spans: tuple[ReasoningSpan, ...] = ()
    restored: tuple[int, ...] = ()
    withheld: int = 0

    def __post_init__(self) -> None:
        for before, after in zip(self.spans, self.more_spans, strict=False):
            if after.reasoning_with_delimiters[0] < before.reasoning_with_delimiters[1]:
                raise ValueError(f"the spans of a chunk lie in order and do not overlap, unlike {before} and {after}")

    @property
    def spans(self) -> tuple[ReasoningSpan, ...]:
        """All spans, in order."""
        return (self.span, *self.more_spans)

    def extract_content(self, seq: Sequence[T]) -> list[T]:
        """What lies outside every span."""
        kept: list[T] = []
        start = 0
        for span in self.spans:
            outer = span.reasoning_with_delimiters
            kept.extend(seq[start : outer[0]])
            start = outer[1]
        return [*kept, *seq[start:]]

    def extract_reasoning(self, seq: Sequence[T]) -> list[T]:
        """What lies inside the spans, joined."""
        return [item for span in self.spans for item in span.extract_reasoning(seq)]


class ReasoningParser(ABC):
    """Finds reasoning in a stream of token ids; one object per stream (`for_request`).

    A class that names its delimiters sets both `REASONING_START` and `REASONING_END`; TypeError for one alone.
    """

    REASONING_START: ClassVar[str | None] = None
    REASONING_END: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (cls.REASONING_START is None) != (cls.REASONING_END is None):
            raise TypeError(f"{cls.__name__} names one of REASONING_START and REASONING_END; name both or neither")

    @classmethod
    @abstractmethod
    async def from_tokenizer(cls, tokenizer: Any) -> ReasoningParser:
        """The parser for a tokenizer's vocabulary."""

    @classmethod
    @abstractmethod
    async def reasoning_end_token_id(cls, tokenizer: Any) -> int | None:
        """The token that ends reasoning; None when it is no single token."""

    @abstractmethod
    def stream(self, delta_token_ids: Sequence[int], is_currently_reasoning: bool = True) -> ParsedReasoningDelta:
        """Find the reasoning in one chunk; every chunk of an answer is passed.

        With `is_currently_reasoning` a chunk without a closer is reasoning to its end; otherwise reasoning begins at an
        explicit opener only, and a stray closer is ignored. The closer lies in the span; the opener of a tool section
        ends reasoning too but stays content.
        """

    def will_reason_after_prompt(self, prompt_token_ids: Sequence[int]) -> bool:
        """Whether the answer to this prompt begins inside reasoning; asked once."""
        return self.stream(prompt_token_ids).is_still_reasoning

    def flush(self) -> tuple[int, ...]:
        """At the end of the stream: the ids still withheld; reasoning if the stream ended inside it, else content."""
        return ()

    def reset(self) -> None:  # noqa: B027 - one without state has nothing to forget
        """Forget the stream so far. A parser with state assigns it anew here, so that copies share none."""

    def for_request(self) -> Self:
        """A parser for one more stream: a copy of this one, reset, so that concurrent answers never mix."""
        parser = copy.copy(self)
        parser.reset()
        return parser
