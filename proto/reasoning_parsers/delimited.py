"""Reasoning between two delimiters, such as `<think>` and `</think>`, as often as the model likes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

from ..reasoning import ParsedReasoningDelta, ReasoningParser
from ..tool_parsers.markers import Markers
from .labels import Label, spans_of
from .tokens import encoded, ends_with, single_token

#: What begins a section of tool calls, in the formats of `tool_parsers`.
TOOL_OPENERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|python_start|>", "<｜tool▁calls▁begin｜>")  # noqa: RUF001


class DelimitedReasoningParser(ReasoningParser):
    """Finds reasoning between delimiters, each one or several tokens.

    `starts`, `ends`: token sequences of the opener and the closer; several where a tokenizer writes one in several
    ways. `tool_openers`: tokens that end reasoning and stay content. `starts_in_reasoning`: whether answers to a prompt
    that holds no delimiter begin with reasoning; None: what the class says.

    A stray closer stays content; an opener inside reasoning is a delimiter that changes nothing. Raises ValueError
    without an opener or closer, or with an empty one.
    """

    #: Answers begin inside reasoning although neither they nor the prompt have an opener.
    STARTS_IN_REASONING: ClassVar[bool] = False

    #: What can end reasoning, or repeat its beginning.
    _inside: Markers[int]
    #: What can begin it.
    _outside: Markers[int]
    #: The last tokens, as far as they could begin a delimiter.
    _withheld: list[int]

    def __init__(
        self,
        *,
        starts: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
        tool_openers: Collection[int] = (),
        starts_in_reasoning: bool | None = None,
    ) -> None:
        if not starts or not ends:
            raise ValueError("reasoning has an opener and a closer")
        self._starts = [tuple(sequence) for sequence in starts]
        self._ends = [tuple(sequence) for sequence in ends]
        self._tool_openers = [(token,) for token in tool_openers]
        self._starts_in_reasoning = self.STARTS_IN_REASONING if starts_in_reasoning is None else starts_in_reasoning
        self._inside = Markers([*self._starts, *self._ends, *self._tool_openers])
        self._outside = Markers(self._starts)
        self.reset()

    @classmethod
    async def from_tokenizer(cls, tokenizer: Any) -> Self:
        """The parser for a tokenizer's vocabulary; delimiters that it merges with a line end are known too."""
        assert cls.REASONING_START is not None, "a class for a format names its delimiters"
        assert cls.REASONING_END is not None
        openers = [await single_token(tokenizer, text) for text in TOOL_OPENERS]
        return cls(
            starts=await _ways(tokenizer, cls.REASONING_START),
            ends=await _ways(tokenizer, cls.REASONING_END),
            tool_openers=sorted({token for token in openers if token is not None}),
        )

    @classmethod
    async def reasoning_end_token_id(cls, tokenizer: Any) -> int | None:
        """The closer's token; None when it is several."""
        assert cls.REASONING_END is not None, "a class for a format names its delimiters"
        return await single_token(tokenizer, cls.REASONING_END)

    def reset(self) -> None:
        """Forget the stream so far."""
        self._withheld = []

    def stream(self, delta_token_ids: Sequence[int], is_currently_reasoning: bool = True) -> ParsedReasoningDelta:
        """Find the reasoning in one chunk; a delimiter may have begun in the chunks before."""
        earlier = len(self._withheld)
        # What is withheld may be read under another flag than it came under, so it is walked again: it is short.
        tokens = [*self._withheld, *delta_token_ids]
        labels = [Label.DELIMITER] * len(tokens)
        reasoning, node, settled = is_currently_reasoning, 0, 0
        for position, token in enumerate(tokens, 1):
            markers = self._inside if reasoning else self._outside
            node = markers.step(node, token)
            found = markers.found[node]
            open_from = position - (len(found) if found else markers.depth[node])
            labels[settled:open_from] = [Label.REASONING if reasoning else Label.CONTENT] * (open_from - settled)
            settled = open_from
            if found:
                node, settled = 0, position
                if found in self._tool_openers:
                    labels[position - 1] = Label.CONTENT
                reasoning = found in self._starts
        self._withheld = tokens[settled:]
        first, *more = spans_of(labels[earlier:])
        return ParsedReasoningDelta(
            first,
            reasoning,
            more_spans=tuple(more),
            restored=tuple(token for token, label in zip(tokens[:earlier], labels, strict=False) if _is_text(label)),
            withheld=len(self._withheld),
        )

    def flush(self) -> tuple[int, ...]:
        """The beginning of a delimiter that never came to its end."""
        withheld, self._withheld = self._withheld, []
        return tuple(withheld)

    def will_reason_after_prompt(self, prompt_token_ids: Sequence[int]) -> bool:
        """Whether the last delimiter of the prompt is an opener; without any, what was asked for at construction."""
        last_tokens = {sequence[-1] for sequence in (*self._starts, *self._ends)}
        for end in range(len(prompt_token_ids), 0, -1):
            # Prompts are long, and most hold no delimiter.
            if prompt_token_ids[end - 1] not in last_tokens:
                continue
            for sequences in (self._starts, self._ends):
                if any(ends_with(prompt_token_ids, end, sequence) for sequence in sequences):
                    return sequences is self._starts
        return self._starts_in_reasoning


def _is_text(label: Label) -> bool:
    return label is not Label.DELIMITER


async def _ways(tokenizer: Any, delimiter: str) -> list[tuple[int, ...]]:
    """The token sequences that `delimiter` can come as: merged with a space before or line ends behind, too."""
    plain = await encoded(tokenizer, delimiter)
    ways = [plain]
    if len(plain) > 1:
        for before in ("", " "):
            for behind in ("", "\n", "\n\n"):
                ids = await encoded(tokenizer, before + delimiter + behind)
                if not any(_holds(ids, way) for way in ways):
                    ways.append(ids)
    return ways


def _holds(ids: tuple[int, ...], way: tuple[int, ...]) -> bool:
    return any(ends_with(ids, end, way) for end in range(len(way), len(ids) + 1))


class ThinkReasoningParser(DelimitedReasoningParser):
    """`<think>…</think>`: Qwen 3, DeepSeek where the prompt opens the reasoning, and most others."""

    REASONING_START = "<think>"
    REASONING_END = "</think>"


class ThinkFirstReasoningParser(ThinkReasoningParser):
    """The same for models that begin to think without an opener, in the prompt or the answer."""

    STARTS_IN_REASONING = True


class MistralReasoningParser(DelimitedReasoningParser):
    """`[THINK]…[/THINK]`."""

    REASONING_START = "[THINK]"
    REASONING_END = "[/THINK]"
