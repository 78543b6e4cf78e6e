"""Steps as an engine takes them: drafts, sampler, grammar, text and log probabilities together."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tensoryard.proto import EOSTracker, GenerationStatus, TextGenerationResponseFormat
from tensoryard.proto.reasoning_parsers import DelimitedReasoningParser, ReasoningStream, ThinkReasoningParser
from tensoryard.workers.text.answer import AnswerStream
from tensoryard.workers.text.grammar_hold import hold
from tensoryard.workers.text.speculation import Acceptance, NGramProposer, Speculation
from tensoryard.workers.text.structured import StructuredOutput
from tensoryard.workers.text.turn import commit
from tensoryard.workers.text.vocabulary import Vocabulary

from . import tokenizers_made as made
from .support import context, random_logits, sampler
from .test_grammar import compiler
from .test_grammar_hold import size, token, tokens

FORM = TextGenerationResponseFormat(
    "json_schema",
    json_schema={
        "type": "object",
        "properties": {"numbers": {"type": "array", "items": {"type": "integer", "maximum": 999}, "maxItems": 9}},
        "required": ["numbers"],
        "additionalProperties": False,
    },
)


def model(before):
    """Logits by the last token, which favour going on in circles and, now and then, ends of thinking and answer."""
    logits = random_logits(int(before[-1]), 1, size(), spread=1.5)
    logits[0, [token("<|end|>"), token("</think>")]] += 3
    return logits


def requests():
    """Some free, some held to JSON behind their thinking; greedy and drawn; with reports and stop strings."""
    structured = StructuredOutput(compiler(), tokens, reasoning=ThinkReasoningParser)
    vocabulary = Vocabulary.from_tokenizer(made.byte_level())
    parser = DelimitedReasoningParser(starts=[[token("<think>")]], ends=[[token("</think>")]])
    chooser, found = sampler(size()), []
    for number in range(8):
        request = context(
            eos=[token("<|end|>")],
            temperature=0.9 * (number % 4 != 0),
            seed=number,
            max_length=160,
            log_probabilities=2 * (number % 3 == 0),
        )
        if number >= 4:
            request.eos_tracker = EOSTracker(eos_token_ids=[token("<|end|>")], eos_stop_strings=["e"])
        else:
            hold(request, structured.hold(FORM, thinking=True))
        reasoning = ReasoningStream(parser, is_reasoning=True)
        found.append(
            (chooser.admit(request), AnswerStream(vocabulary, tracker=request.eos_tracker, reasoning=reasoning))
        )
    return chooser, found


def run(speculation):
    """Each request's text, thoughts, tokens, log probabilities and ending; and how many steps it took."""
    chooser, pairs = requests()
    counted, steps = Acceptance(), 0
    texts = {id(state): ["", ""] for state, _ in pairs}
    outputs = {id(state): [] for state, _ in pairs}
    while active := [(state, answer) for state, answer in pairs if not state.context.is_done]:
        states = [state for state, _ in active]
        drafts = speculation.draft(states) if speculation else [[]] * len(states)
        before = [state.context.tokens.all.tolist() for state in states]
        logits = np.concatenate(
            [
                model([*own, *ahead[:at]])
                for own, ahead in zip(before, drafts, strict=True)
                for at in range(len(ahead) + 1)
            ]
        )
        sampled = chooser.sample(logits, states, drafts if speculation else None)
        assert not sampled.problems
        gained = (
            speculation.settle(states, sampled.tokens, counted) if speculation else [[each] for each in sampled.tokens]
        )
        start, steps = 0, steps + 1
        for (state, answer), new, ahead in zip(active, gained, drafts, strict=True):
            told = (sampled.log_probabilities or [None] * len(sampled.tokens))[start : start + len(new)]
            start += len(ahead) + 1
            for delta in commit(state, new, told, answer=answer):
                texts[id(state)][0] += delta.content
                texts[id(state)][1] += delta.reasoning
            outputs[id(state)].append(state.context.to_generation_output())
    return [
        (
            *texts[id(state)],
            [type(each).merge(outputs[id(state)]) for each in outputs[id(state)][:1]],
            state.context.status,
        )
        for state, _ in pairs
    ], steps


def test_a_batch_of_everything_with_and_without_drafts():
    """The same texts, thoughts, tokens and reports; answers that are held are instances of their schema."""
    plain, steps = run(None)
    drafted, fewer = run(Speculation(NGramProposer(), most=5))
    for (text, thought, [output], status), (*other, [same], ended) in zip(plain, drafted, strict=True):
        assert [text, thought] == other
        assert (output.tokens, output.log_probabilities) == (same.tokens, same.log_probabilities)
        assert status is ended
    assert fewer <= steps
    for number, (text, _, [output], status) in enumerate(plain):
        if number < 4 and status is GenerationStatus.END_OF_SEQUENCE:
            assert list(json.loads(text)) == ["numbers"]
        if number >= 4:
            assert "e" not in text
        assert (output.log_probabilities is not None) == (number % 3 == 0)
    assert any(status is GenerationStatus.END_OF_SEQUENCE for *_, status in plain[:4])
    assert any(thought for _, thought, *_ in plain)


def test_reports_stay_with_their_tokens():
    """Behind drafts, each token has the log probability of its own row."""
    pytest.importorskip("llguidance")
    for *_, [output], _ in run(Speculation(NGramProposer(), most=3))[0]:
        for token_id, told in zip(output.tokens, output.log_probabilities or (), strict=bool(output.log_probabilities)):
            assert told.sampled_token_ids == [token_id]
            assert all(value <= 0 and math.isfinite(value) for value in told.token_log_probabilities)
            assert len(told.top_log_probabilities[0]) == 2
