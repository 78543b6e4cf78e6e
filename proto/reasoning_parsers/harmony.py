"""Reasoning in harmony messages (gpt-oss): the analysis channel; the calls stay for `tool_parsers.harmony`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from ..reasoning import ParsedReasoningDelta, ReasoningParser
from .labels import Label, spans_of
from .tokens import encoded, ends_with, single_token

#: Longest header of a message, in tokens; what goes on longer is content.
MAX_HEADER_TOKENS = 256


@dataclass(frozen=True)
class HarmonyTokens:
    """The ids that structure messages: one each for the marks, one or several for the words of a header."""

    start: int
    channel: int
    message: int
    ends: frozenset[int]
    assistant: tuple[int, ...]
    analysis: tuple[int, ...]
    commentary: tuple[int, ...]
    final: tuple[int, ...]

    @property
    def marks(self) -> frozenset[int]:
        """Every mark that a header, a body or a message ends or begins with."""
        return self.ends | {self.start, self.channel, self.message}


class _Place(Enum):
    """Where in a stream the last token stood; reasoning is told by a flag of its own."""

    BETWEEN = "between messages"
    #: Text between messages, such as a header that the prompt began.
    LOOSE = "loose text"
    HEADER = "a header"
    #: A message whose header was taken away; its end will be, too.
    BARE = "a bare message"
    #: A message that is passed on with its header and end.
    WHOLE = "a whole message"


class _Reader:
    """The state of one stream, and the labels of its current chunk."""

    __slots__ = ("_after_loose", "_here", "_place", "_tokens", "header", "labels", "reasoning", "restored")

    #: The header being read, all of it withheld; empty anywhere else.
    header: list[int]
    #: How many tokens of `header` came in this chunk.
    _here: int
    #: The header follows loose text, which may be its beginning.
    _after_loose: bool

    def __init__(self, tokens: HarmonyTokens) -> None:
        self._tokens, self._place, self.header, self._here, self._after_loose = tokens, _Place.BETWEEN, [], 0, False
        self.begin(reasoning=False)

    def begin(self, *, reasoning: bool) -> None:
        """A new chunk."""
        self.reasoning = reasoning
        self.labels: list[Label] = []
        self.restored: list[int] = []
        self._here = 0

    def read(self, token: int) -> None:
        """Label one more token."""
        tokens = self._tokens
        if self._place is _Place.HEADER and self._in_header(token):
            return
        if token in (tokens.start, tokens.channel):
            self._after_loose = self._place is _Place.LOOSE
            self.reasoning, self._place = False, _Place.HEADER
            self._withhold(token)
        elif self.reasoning:
            self.reasoning = token not in tokens.ends
            self.labels.append(Label.REASONING if self.reasoning else Label.DELIMITER)
        elif token in tokens.ends:
            self.labels.append(Label.CONTENT if self._place is _Place.WHOLE else Label.DELIMITER)
            self._place = _Place.BETWEEN
        else:
            self.labels.append(Label.CONTENT)
            if self._place is _Place.BETWEEN:
                self._place = _Place.LOOSE

    def _withhold(self, token: int) -> None:
        self.header.append(token)
        self._here += 1
        self.labels.append(Label.DELIMITER)

    def _in_header(self, token: int) -> bool:
        """Read a token behind the beginning of a header; False when it ends the header and is no part of it."""
        tokens = self._tokens
        if token == tokens.message:
            self._place = self._settle()
            self.labels.append(Label.CONTENT if self._place is _Place.WHOLE else Label.DELIMITER)
            return True
        if token in tokens.ends or token == tokens.start or len(self.header) == MAX_HEADER_TOKENS:
            self._restore()
            self._place = _Place.WHOLE
            return False
        self._withhold(token)
        return True

    def _settle(self) -> _Place:
        """The header is whole: decide what message it begins, and whether it is passed on."""
        tokens = self._tokens
        at = self.header.index(tokens.channel) if tokens.channel in self.header else len(self.header)
        role, channel = tuple(self.header[:at]), tuple(self.header[at + 1 :])
        own = not self._after_loose and role in ((), (tokens.start,), (tokens.start, *tokens.assistant))
        if own and channel == tokens.analysis:
            self.reasoning = True
        elif not own or not (channel == tokens.commentary or channel[: len(tokens.final)] == tokens.final):
            self._restore()
            return _Place.WHOLE
        self.header, self._here = [], 0
        return _Place.BETWEEN if self.reasoning else _Place.BARE

    def _restore(self) -> None:
        """What is withheld is content."""
        earlier = len(self.header) - self._here
        self.restored.extend(self.header[:earlier])
        self.labels[len(self.labels) - self._here :] = [Label.CONTENT] * self._here
        self.header, self._here = [], 0


class HarmonyReasoningParser(ReasoningParser):
    """Tells the analysis channel from the rest.

    Reasoning: the body of a message whose header is `<|channel|>analysis` and no more. Its header and end are its
    delimiters, and so are those of the final message and of commentary to nobody, so that their bodies alone are
    content. A message with a recipient is content whole, header and end included, for the tool parser; so is whatever
    has no known shape. A header is withheld until it is whole (`ParsedReasoningDelta.withheld`): callers must add what
    is `restored`, or use `ReasoningStream`.
    """

    REASONING_START = "<|channel|>analysis<|message|>"
    REASONING_END = "<|end|>"

    _reader: _Reader

    def __init__(self, tokens: HarmonyTokens) -> None:
        self._tokens = tokens
        self.reset()

    @classmethod
    async def from_tokenizer(cls, tokenizer: Any) -> Self:
        """The parser for a tokenizer's vocabulary. ValueError when a mark is no single token of it."""

        async def mark(text: str) -> int:
            token = await single_token(tokenizer, text)
            if token is None:
                raise ValueError(
                    f"{text!r} is no token of this tokenizer, so its model does not write harmony messages"
                )
            return token

        return cls(
            HarmonyTokens(
                start=await mark("<|start|>"),
                channel=await mark("<|channel|>"),
                message=await mark("<|message|>"),
                ends=frozenset([await mark("<|end|>"), await mark("<|return|>"), await mark("<|call|>")]),
                assistant=await encoded(tokenizer, "assistant"),
                analysis=await encoded(tokenizer, "analysis"),
                commentary=await encoded(tokenizer, "commentary"),
                final=await encoded(tokenizer, "final"),
            ),
        )

    @classmethod
    async def reasoning_end_token_id(cls, tokenizer: Any) -> int | None:
        """The token that ends a message."""
        return await single_token(tokenizer, cls.REASONING_END)

    def reset(self) -> None:
        """Forget the stream so far."""
        self._reader = _Reader(self._tokens)

    def flush(self) -> tuple[int, ...]:
        """A header that never came to its end."""
        withheld = tuple(self._reader.header)
        self.reset()
        return withheld

    def will_reason_after_prompt(self, prompt_token_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside a message on the analysis channel."""
        tokens = self._tokens
        for end in range(len(prompt_token_ids), 0, -1):
            if prompt_token_ids[end - 1] in tokens.marks:
                opener = (tokens.channel, *tokens.analysis, tokens.message)
                return ends_with(prompt_token_ids, end, opener)
        return False

    def stream(self, delta_token_ids: Sequence[int], is_currently_reasoning: bool = True) -> ParsedReasoningDelta:
        """Find the reasoning in one chunk; a header may have begun in the chunks before."""
        reader = self._reader
        reader.begin(reasoning=is_currently_reasoning)
        for token in delta_token_ids:
            reader.read(token)
        first, *more = spans_of(reader.labels)
        return ParsedReasoningDelta(
            first,
            reader.reasoning,
            more_spans=tuple(more),
            restored=tuple(reader.restored),
            withheld=len(reader.header),
        )
