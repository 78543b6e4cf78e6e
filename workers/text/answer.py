"""An answer as its reader sees it: content, reasoning and tool calls, from tokens while they come.

Joins the parsers of `proto` with `detokenizer.py` and `stops.py`; `follow` ties one to a request's context. Knows no
model, and no wire.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ...proto.context import GenerationStatus
from ...proto.eos import EOSTracker
from ...proto.reasoning_parsers import ReasoningStream
from ...proto.text_context import TextContext
from ...proto.tokens import LogProbabilities
from ...proto.tool_parsing import ParsedToolCallDelta, ToolParser
from .detokenizer import Detokenizer
from .stops import StopFilter
from .vocabulary import Vocabulary

#: Most tokens reported on at a position that are written out too: as many as APIs that show text take.
MAX_SPELLED = 20


class AnswerDelta(NamedTuple):
    """What some tokens added to an answer. Of `tool_calls`, entries with `content` are in `content` instead."""

    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ParsedToolCallDelta] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)


class AnswerStream:
    """One answer on its way.

    `tracker`: the request's stop rules; stop strings are looked for in what is no reasoning, and end tokens are no
    text. `reasoning`: tells thinking apart; None where the model does not think. `tools`: finds calls in the content,
    and begins anew here. `shown`: special tokens and end tokens that are text all the same; None: with `tools` all
    special tokens that end nothing, since formats mark calls with them, else none.

    However the tokens are cut into pieces, the deltas add up to the same.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        tracker: EOSTracker | None = None,
        reasoning: ReasoningStream | None = None,
        tools: ToolParser | None = None,
        shown: Collection[int] | None = None,
    ) -> None:
        tracker = tracker or EOSTracker()
        if shown is None:
            shown = vocabulary.special - tracker.eos_token_ids if tools is not None else ()
        hidden = vocabulary.special | tracker.eos_token_ids
        self._reasoning = reasoning
        self._thinking = Detokenizer(vocabulary, hidden=hidden)
        self._speaking = Detokenizer(vocabulary, hidden=hidden.difference(shown))
        self._stops = StopFilter(tracker)
        #: Whether the text can end the answer, and whether tokens are told apart: most answers do neither.
        self.may_stop, self.may_reason = bool(tracker.eos_stop_strings), reasoning is not None
        self._tools = tools
        if tools is not None:
            tools.reset()

    @property
    def is_reasoning(self) -> bool:
        """Whether the next token would be reasoning."""
        return self._reasoning is not None and self._reasoning.is_reasoning

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer; None as long as none has."""
        return self._stops.found

    def feed(self, tokens: Sequence[int], *, may_stop: bool = True) -> AnswerDelta:
        """What the next tokens add. `may_stop` False: a stop string that they complete is ordinary text."""
        if self._reasoning is None:
            text = self._speaking.feed(tokens)
            if self._tools is None and not self.may_stop:
                return AnswerDelta(text)
            return self._delta("", text, may_stop=may_stop)
        parts = self._reasoning.feed(tokens)
        return self._delta(self._thinking.feed(parts.reasoning), self._speaking.feed(parts.content), may_stop=may_stop)

    def flush(self, *, may_stop: bool = True) -> AnswerDelta:
        """What is still held back when the answer ends."""
        thought = spoken = ""
        if self._reasoning is not None:
            parts = self._reasoning.flush()
            thought, spoken = self._thinking.feed(parts.reasoning), self._speaking.feed(parts.content)
        thought += self._thinking.flush()
        delta = self._delta(thought, spoken + self._speaking.flush(), may_stop=may_stop)
        content, calls = self._parse(self._stops.flush())
        late, more = _sorted(self._tools.flush() if self._tools is not None else [])
        return AnswerDelta(delta.content + content + late, delta.reasoning, [*delta.tool_calls, *calls, *more])

    def spell(self, told: LogProbabilities) -> None:
        """Write down what the tokens say that are reported on, where the one that was chosen is text.

        Of more than `MAX_SPELLED` at a position only the chosen one.
        """
        pieces = self._speaking.vocabulary.pieces
        if told.sampled_token_ids and not self._speaking.hides(told.sampled_token_ids[-1]):
            spelled = (tops for tops in told.top_log_probabilities if len(tops) <= MAX_SPELLED)
            ids = {*told.sampled_token_ids, *(token for tops in spelled for token in tops)}
            told.pieces = {token: pieces[token] for token in ids if token < len(pieces)}

    def _delta(self, reasoning: str, text: str, *, may_stop: bool) -> AnswerDelta:
        content, calls = self._parse(self._stops.feed(text, may_stop=may_stop))
        return AnswerDelta(content, reasoning, calls)

    def _parse(self, text: str) -> tuple[str, Sequence[ParsedToolCallDelta]]:
        if self._tools is None or not text:
            return text, ()
        deltas = self._tools.parse_delta(text)
        return (text, ()) if deltas is None else _sorted(deltas)


def _sorted(deltas: Sequence[ParsedToolCallDelta]) -> tuple[str, list[ParsedToolCallDelta]]:
    content = "".join(delta.content or "" for delta in deltas)
    calls = [delta for delta in deltas if delta.id or delta.name or delta.arguments is not None]
    return content, calls


def follow(context: TextContext, answer: AnswerStream, token: int) -> AnswerDelta:
    """Read a token that `context` was just given: end the request at a stop string, and note whether it thinks.

    Tokens that were accepted together come one after the other, so that nothing counts behind a stop. When the request
    has ended the delta holds all that is left.
    """
    may_stop = not answer.may_stop or _generated(context) > context.min_tokens
    delta = answer.feed((token,), may_stop=may_stop)
    if answer.may_reason:
        context.in_reasoning_phase = answer.is_reasoning
    if answer.stop is not None:
        context.status = GenerationStatus.END_OF_SEQUENCE
    if not context.is_done:
        return delta
    rest = answer.flush(may_stop=may_stop)
    return AnswerDelta(
        delta.content + rest.content, delta.reasoning + rest.reasoning, [*delta.tool_calls, *rest.tool_calls]
    )


def _generated(context: TextContext) -> int:
    return len(context.tokens) - context.tokens.has_placeholder - context.first_generated


def catch_up(context: TextContext, answer: AnswerStream) -> None:
    """Read what was generated before this worker had the request; its text was shown already."""
    start = context.first_generated
    tokens = context.tokens.all[start : start + _generated(context)].tolist()
    answer.feed(tokens[: context.min_tokens], may_stop=False)
    answer.feed(tokens[context.min_tokens :])
    context.in_reasoning_phase = answer.is_reasoning
