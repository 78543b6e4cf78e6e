"""An answer while it comes: content, reasoning and calls, the same wherever it is cut."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.proto import EOSTracker, GenerationStatus, TextContext, TokenBuffer
from tensoryard.proto.reasoning_parsers import ReasoningStream, ThinkReasoningParser
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.tool_parsers import tool_parser
from tensoryard.proto.tool_parsing import collect_deltas
from tensoryard.workers.text.answer import AnswerStream, catch_up, follow
from tensoryard.workers.text.vocabulary import Vocabulary

from . import tokenizers_made as made
from .support import context

TEXT = (
    "<think>The user wants 2 + 2 — 你好 👍🏽.</think>I add: "
    '<tool_call>{"name": "add", "arguments": {"a": 2, "b": "€"}}</tool_call>'
    '<tool_call>{"name": "now", "arguments": {}}</tool_call> done<think>again</think> and over'
)


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.from_tokenizer(made.byte_level())


@pytest.fixture(scope="module")
def thinker():
    return asyncio.run(ThinkReasoningParser.from_tokenizer(made.with_ids(made.byte_level())))


def answer_of(vocabulary, thinker, **tracker):
    ids = iter(range(100))
    return AnswerStream(
        vocabulary,
        tracker=EOSTracker(**tracker),
        reasoning=ReasoningStream(thinker, is_reasoning=False),
        tools=tool_parser("hermes", make_id=lambda: f"call_{next(ids)}"),
    )


def summed(deltas):
    calls = collect_deltas([call for delta in deltas for call in delta.tool_calls]).tool_calls
    return "".join(delta.content for delta in deltas), "".join(delta.reasoning for delta in deltas), calls


def test_an_answer_is_told_apart(vocabulary, thinker):
    """What the model thinks, says and calls; markers are in none of them."""
    answer = answer_of(vocabulary, thinker)
    deltas = [*(answer.feed([token]) for token in made.ids(made.byte_level(), TEXT)), answer.flush()]
    content, reasoning, calls = summed(deltas)
    assert reasoning == "The user wants 2 + 2 — 你好 👍🏽.again"
    assert content == "I add:  done and over"
    assert [(call.name, call.arguments) for call in calls] == [("add", '{"a": 2, "b": "€"}'), ("now", "{}")]
    assert not any("\ufffd" in delta.content + delta.reasoning for delta in deltas)
    streamed = [call.arguments for delta in deltas for call in delta.tool_calls if call.arguments]
    assert len(streamed) > 3, "arguments come while they are written"


def test_every_cut_gives_the_same_sum(vocabulary, thinker):
    """The same tokens in two pieces, cut at every place."""
    tokens = made.ids(made.byte_level(), TEXT)
    answer = answer_of(vocabulary, thinker)
    whole = summed([answer.feed(tokens), answer.flush()])
    for place in range(len(tokens) + 1):
        answer = answer_of(vocabulary, thinker)
        assert summed([answer.feed(tokens[:place]), answer.feed(tokens[place:]), answer.flush()]) == whole


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_cuts_of_any_tokens_give_the_same_sum(vocabulary, thinker, data):
    """Random tokens with markers among them, cut anyhow, with stop strings."""
    markers = [made.byte_level().token_to_id(name) for name in made.SPECIAL]
    tokens = data.draw(st.lists(st.one_of(st.sampled_from(markers), st.integers(0, 899)), max_size=40))
    stops = data.draw(st.lists(st.sampled_from(["a", " the", "{"]), max_size=1))
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)), len(tokens)})
    sums = []
    for places in ([0, len(tokens)], cuts, range(len(tokens) + 1)):
        answer = answer_of(vocabulary, thinker, eos_stop_strings=stops)
        deltas = [answer.feed(tokens[start:end]) for start, end in zip(places, [*places][1:], strict=False)]
        content, reasoning, calls = summed([*deltas, answer.flush()])
        sums.append((content, calls, None if answer.stop else reasoning))
    assert sums[0] == sums[1] == sums[2]


def test_a_stop_string_ends_the_answer_in_the_midst_of_tokens(vocabulary, thinker):
    """Nothing behind it is shown, its own characters neither; what was thought before stays."""
    answer = answer_of(vocabulary, thinker, eos_stop_strings=["done<|", "dd: <"])
    tokens = made.ids(made.byte_level(), "<think>I add: <</think>I add: <b>")
    deltas = []
    for token in tokens:
        deltas.append(answer.feed([token]))
        if answer.stop:
            break
    assert summed([*deltas, answer.flush()])[:2] == ("I a", "I add: <")
    assert answer.stop == "dd: <"


def run(request, answer, tokens):
    deltas = []
    for token in tokens:
        if request.is_done:
            break
        request.update(token)
        deltas.append(follow(request, answer, token))
    return summed(deltas)[0]


def test_a_request_ends_where_its_text_does(vocabulary):
    """By a stop string over token borders, by an end token (which is no text), or by its length; nothing is lost."""
    tokens = made.ids(made.byte_level(), "one two three four")
    end = made.byte_level().token_to_id("<|end|>")
    text_of = made.byte_level().decode
    ended, cut = GenerationStatus.END_OF_SEQUENCE, GenerationStatus.MAXIMUM_LENGTH
    by_tokens = {"eos_sequences": [tokens[1:3]], "eos_stop_strings": [text_of(tokens[1:3])]}
    text_of = made.byte_level().decode
    ended, cut = GenerationStatus.END_OF_SEQUENCE, GenerationStatus.MAXIMUM_LENGTH
    by_tokens = {"eos_sequences": [tokens[1:3]], "eos_stop_strings": [text_of(tokens[1:3])]}
    cases = [
        ({"eos_stop_strings": ["o thr"]}, tokens, 100, "one tw", ended),
        ({"eos_token_ids": [end]}, [*tokens, end, *tokens], 100, "one two three four", ended),
        ({"eos_token_ids": [tokens[-1]]}, tokens, 100, text_of(tokens[:-1]), ended),
        (by_tokens, tokens, 100, text_of(tokens[:1]), ended),
        ({"eos_stop_strings": ["two x"]}, tokens, 3 + 3, text_of(tokens[:3]), cut),
    ]
    for rules, given_tokens, max_length, text, status in cases:
        request = context(max_length=max_length)
        request.eos_tracker = EOSTracker(**rules)
        assert run(request, AnswerStream(vocabulary, tracker=request.eos_tracker), given_tokens) == text, rules
        assert request.status is status


def test_a_stop_string_waits_for_the_minimum(vocabulary):
    """Before it, it is text like any other."""
    tokens = made.ids(made.byte_level(), "one two one two")
    for minimum, text in ((0, "one "), (len(made.ids(made.byte_level(), "one two")), "one two one ")):
        request = context(min_new_tokens=minimum)
        request.eos_tracker = EOSTracker(eos_stop_strings=["two"])
        assert run(request, AnswerStream(vocabulary, tracker=request.eos_tracker), tokens) == text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 6))
def test_another_worker_goes_on_in_the_middle(vocabulary, thinker, moved_after, minimum):
    """From the tokens alone it knows whether the model thinks, and what of a character or a stop string is there."""
    tokens = made.ids(made.byte_level(), "<think>so 👍🏽 far</think>it is 你好 now or STOP and more")
    moved_after = min(moved_after, len(tokens))

    def fresh(all_tokens):
        return TextContext(
            tokens=TokenBuffer(np.array(all_tokens, np.int64)),
            max_length=1000,
            eos_tracker=EOSTracker(eos_stop_strings=["STOP"]),
            sampling_params=SamplingParams(min_new_tokens=minimum),
            first_generated=1,
        )

    def answer_for(request):
        return AnswerStream(
            vocabulary, tracker=request.eos_tracker, reasoning=ReasoningStream(thinker, is_reasoning=False)
        )

    def play(request, answer, some):
        deltas = []
        for token in some:
            if not request.is_done:
                request.update(token)
                deltas.append(follow(request, answer, token))
        return deltas

    first = fresh([9])
    here = answer_for(first)
    before = play(first, here, tokens[:moved_after])
    expected = play(first, here, tokens[moved_after:])
    if moved_after < len(tokens) and not (before and not expected):
        second = fresh([9, *tokens[:moved_after]])
        there = answer_for(second)
        catch_up(second, there)
        assert play(second, there, tokens[moved_after:]) == expected
        assert second.in_reasoning_phase == first.in_reasoning_phase
        assert second.status is first.status
