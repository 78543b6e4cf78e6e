"""Reasoning spans, deltas and the parser's contract, shown on a small parser."""

from __future__ import annotations

import asyncio

import pytest

from tensoryard.proto.reasoning import ParsedReasoningDelta, ReasoningParser, ReasoningSpan

OPEN, CLOSE = 1, 2


class Thinking(ReasoningParser):
    """Everything between OPEN and CLOSE, any number of times in a chunk."""

    REASONING_START = "<think>"
    REASONING_END = "</think>"

    def __init__(self):
        self.seen = [0]

    @classmethod
    async def from_tokenizer(cls, tokenizer):
        return cls()

    @classmethod
    async def reasoning_end_token_id(cls, tokenizer):
        return CLOSE

    def reset(self):
        self.seen = []

    def stream(self, delta_token_ids, is_currently_reasoning=True):
        self.seen.extend(delta_token_ids)
        spans, thinking, outer, inner = [], is_currently_reasoning, 0, 0
        for index, token in enumerate(delta_token_ids):
            if token == OPEN and not thinking:
                thinking, outer, inner = True, index, index + 1
            elif token == CLOSE and thinking:
                thinking = False
                spans.append(ReasoningSpan((outer, index + 1), (inner, index)))
        if thinking:
            spans.append(ReasoningSpan((outer, len(delta_token_ids)), (inner, len(delta_token_ids))))
        first, *more = spans or [ReasoningSpan((0, 0), (0, 0))]
        return ParsedReasoningDelta(first, thinking, more_spans=tuple(more))


def test_span_extracts():
    """Content is what lies outside the delimiters, reasoning what lies inside."""
    span = ReasoningSpan(reasoning_with_delimiters=(1, 5), reasoning=(2, 4))
    assert span.extract_content("abcdefg") == ["a", "f", "g"]
    assert span.extract_reasoning([0, 1, 2, 3, 4, 5]) == [2, 3]


def test_empty_span():
    """No reasoning: everything is content."""
    span = ReasoningSpan((0, 0), (0, 0))
    assert span.extract_content([1, 2]) == [1, 2]
    assert span.extract_reasoning([1, 2]) == []


@pytest.mark.parametrize(
    "ranges",
    [
        ((3, 1), (1, 1)),
        ((0, 4), (3, 2)),
        ((1, 4), (0, 2)),
        ((0, 4), (2, 5)),
        ((-2, 3), (0, 1)),
        ((0, 4), (1, 2, 3)),
        ((0.0, 4), (1, 2)),
    ],
)
def test_weakness_36_spans_are_checked_without_assert(ranges):
    """Crossed, negative or unnested ranges raise, under -O too."""
    with pytest.raises(ValueError, match="ReasoningSpan"):
        ReasoningSpan(*ranges)


def test_weakness_46_span_has_equality_repr_and_accessors():
    """Spans compare, print and show their ranges."""
    span = ReasoningSpan([1, 5], [2, 4])
    assert span == ReasoningSpan((1, 5), (2, 4))
    assert len({span, ReasoningSpan((1, 5), (2, 4))}) == 1
    assert (span.reasoning_with_delimiters, span.reasoning) == ((1, 5), (2, 4))
    assert "(1, 5)" in repr(span)


def test_weakness_46_several_spans_in_a_chunk():
    """Tokens after a second opener are filed as reasoning."""
    delta = Thinking().stream([7, OPEN, 8, CLOSE, 9, OPEN, 10], is_currently_reasoning=False)
    assert len(delta.spans) == 2
    assert delta.extract_content([7, OPEN, 8, CLOSE, 9, OPEN, 10]) == [7, 9]
    assert delta.extract_reasoning([7, OPEN, 8, CLOSE, 9, OPEN, 10]) == [8, 10]
    assert delta.is_still_reasoning
    assert delta.reasoning_text_formatter is None


def test_spans_of_a_chunk_do_not_overlap():
    """Out of order or overlapping spans raise."""
    with pytest.raises(ValueError, match="overlap"):
        ParsedReasoningDelta(ReasoningSpan((0, 4), (1, 3)), True, more_spans=(ReasoningSpan((3, 5), (3, 5)),))


def test_weakness_46_one_parser_per_stream():
    """Copies for concurrent streams share no state, and begin afresh."""
    first = asyncio.run(Thinking.from_tokenizer(None))
    second, third = first.for_request(), first.for_request()
    second.stream([5])
    assert (first.seen, second.seen, third.seen) == ([0], [5], [])
    assert isinstance(second, Thinking)


def test_will_reason_after_prompt():
    """By default the flag after the whole prompt."""
    parser = Thinking()
    assert parser.will_reason_after_prompt([])
    assert not parser.will_reason_after_prompt([7, CLOSE])
    assert asyncio.run(Thinking.reasoning_end_token_id(None)) == CLOSE


def test_default_reset_does_nothing():
    """A parser without state need not define it."""

    class Plain(Thinking):
        reset = ReasoningParser.reset

    parser = Plain()
    parser.reset()
    assert parser.seen == [0]


def test_parser_is_abstract_and_names_both_delimiters():
    """The three methods are needed; one delimiter alone is refused."""
    with pytest.raises(TypeError, match="abstract"):
        ReasoningParser()
    with pytest.raises(TypeError, match="both or neither"):

        class Half(ReasoningParser):
            REASONING_START = "<think>"
