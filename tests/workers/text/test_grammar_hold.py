"""Answers held to a grammar: masks in a batch, free regions, drafts, and moves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto import EOSTracker, TextContext, TokenBuffer
from tensoryard.workers.text.grammar import Grammar
from tensoryard.workers.text.grammar_hold import GrammarHold, Regions, hold
from tensoryard.workers.text.sampling import SamplingState
from tensoryard.workers.text.sampling.masks import Hold

from . import tokenizers_made as made
from .support import context, random_logits, sampler
from .test_grammar import compiler

TOKENIZER = made.byte_level
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def compiled():
    return compiler()


def size():
    return TOKENIZER().get_vocab_size() + 30


def token(name):
    return TOKENIZER().token_to_id(name)


def tokens(text):
    return made.ids(TOKENIZER(), text)


def mask_of(grammar, drafts=()):
    mask = np.zeros((size() + 31) // 32, np.int32)
    says = grammar.fill_mask(mask, drafts)
    return says, set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def held(compiled, text=SCHEMA, kind="json", **more):
    return GrammarHold(compiled.matcher(Grammar(kind, text)), **more)


def generate(requests, steps, *, seed=0):
    """Random logits that would never make JSON by themselves."""
    chooser = sampler(size())
    for step in range(steps):
        active = [request for request in requests if not request.context.is_done]
        if not active:
            return
        logits = random_logits((seed, step), len(active), size())
        sampled = chooser.sample(logits, active)
        assert not sampled.problems
        for request, chosen in zip(active, sampled.tokens, strict=True):
            request.context.update(chosen)
            request.accept([chosen])


def request(grammar=None, **wanted):
    made_context = context(eos=[token("<|end|>")], **wanted)
    if grammar is not None:
        hold(made_context, grammar)
    return SamplingState(made_context, vocab_size=size())


def text_of(one):
    return TOKENIZER().decode(one.context.tokens.all[one.context.first_generated :].tolist())


def test_noise_becomes_json(compiled):
    """In one batch some are held and some are not; each held one ends by itself as an instance of its schema."""
    free = [request(temperature=1, seed=seed, max_length=30) for seed in range(3)]
    bound = [request(held(compiled), temperature=1.5, seed=seed, top_k=50 if seed % 2 else -1) for seed in range(6)]
    mixed = [each for pair in zip(bound, free * 2, strict=True) for each in pair][:9]
    generate([*mixed, *(each for each in bound if each not in mixed)], 300)
    for each in bound:
        assert each.context.is_done
        assert json.loads(text_of(each))["n"] <= 99
    alone = request(held(compiled), temperature=1.5, seed=0)
    assert mask_of(alone.context.matcher)[0] is Hold.HELD


def test_thinking_is_free_and_the_answer_is_held(compiled):
    """A model that opens its thinking itself may; behind the closer only the grammar's tokens come."""
    regions = Regions(thinking_starts=[[token("<think>")]], thinking_ends=[[token("</think>")]])
    grammar = held(compiled, regions=regions)
    first = tokens("{")[0]
    says, may = mask_of(grammar)
    assert says is Hold.HELD
    assert {token("<think>"), first} <= may
    assert tokens("Well")[0] not in may
    assert grammar.try_consume_tokens([token("<think>"), *tokens("Well, {]")]) == 1 + len(tokens("Well, {]"))
    assert mask_of(grammar)[0] is Hold.UNFINISHED
    assert grammar.try_consume_tokens([token("</think>")]) == 1
    assert mask_of(grammar)[0] is Hold.HELD
    assert grammar.try_consume_tokens(tokens('{"n": 7}')) == len(tokens('{"n": 7}'))
    assert mask_of(grammar) == (Hold.OVER, {token("<|end|>")})
    inside = held(compiled, regions=regions, thinking=True)
    assert mask_of(inside)[0] is Hold.UNFINISHED


def test_thinking_is_not_the_end(compiled):
    """Where an answer is to follow, an end token does not come before it, however likely it is."""
    regions = Regions(thinking_ends=[[token("</think>")]])
    one = request(held(compiled, regions=regions, thinking=True), temperature=0)
    logits = np.zeros((1, size()), np.float32)
    logits[0, token("<|end|>")], logits[0, 5] = 9, 1
    assert sampler(size()).sample(logits.copy(), [one]).tokens == [5]
    endless = request(held(compiled, regions=regions, thinking=True), temperature=0, ignore_eos=True)
    endless.end_ids = []
    assert sampler(size()).sample(logits, [endless]).tokens == [token("<|end|>")]


def test_marks_of_several_tokens(compiled):
    """A vocabulary without a token for the opener: its parts, in order, and then thinking."""
    start, end = tokens("<thought>"), tokens("</thought>")
    assert len(start) > 1
    grammar = held(compiled, regions=Regions(thinking_starts=[start], thinking_ends=[end]))
    for at, part in enumerate(start):
        says, may = mask_of(grammar)
        assert says is Hold.HELD
        assert part in may
        assert (tokens("{")[0] in may) == (at == 0)
        assert grammar.try_consume_tokens([part]) == 1
    assert mask_of(grammar)[0] is Hold.UNFINISHED
    assert grammar.try_consume_tokens([*tokens("so </th"), *end]) == len(tokens("so </th")) + len(end)
    assert mask_of(grammar)[0] is Hold.HELD
    assert held(compiled, regions=Regions([start], [end])).try_consume_tokens([start[0], *tokens("{")]) == 1


def test_calls_are_held_and_the_text_around_them_is_free(compiled):
    """Any number of calls; the opener is read by the grammar too, and an opener ends thinking."""
    opener = token("<tool_call>")
    lark = f"start: <[{opener}]> call <[{token('</tool_call>')}]>\ncall: %json {SCHEMA}"
    regions = Regions([[token("<think>")]], [[token("</think>")]], call_starts=[[opener]])
    grammar = held(compiled, lark, "lark", regions=regions)
    assert mask_of(grammar)[0] is Hold.FREE
    assert grammar.is_accepting()
    call = [opener, *tokens('{"n": 5}'), token("</tool_call>")]
    for before in (tokens("Let me see: {"), [token("<think>"), *tokens("hm")], tokens("and")):
        assert grammar.try_consume_tokens(before) == len(before)
        assert mask_of(grammar)[0] is Hold.FREE
        assert grammar.try_consume_tokens(call[:1]) == 1
        says, may = mask_of(grammar)
        assert says is Hold.HELD
        assert tokens("x")[0] not in may
        assert grammar.try_consume_tokens(call[1:]) == len(call) - 1
    assert mask_of(grammar)[0] is Hold.FREE
    assert grammar.try_consume_tokens([opener, *tokens("nonsense")]) == 1


def test_drafts_are_masked_as_if_accepted(compiled):
    """Each row by the drafts before it; behind a draft that the grammar refuses nothing is forbidden."""
    grammar = held(compiled)
    draft = tokens('{"n": 7}')
    for count in range(len(draft) + 1):
        ahead = grammar.deep_copy()
        assert ahead.try_consume_tokens(draft[:count]) == count
        assert mask_of(grammar, draft[:count]) == mask_of(ahead)
    assert mask_of(grammar, tokens("nonsense"))[0] is Hold.FREE
    assert mask_of(grammar) == mask_of(held(compiled)), "asking changed nothing"


def test_another_worker_goes_on_in_the_grammar(compiled):
    """From the tokens so far, end tokens aside, it stands where the first one stood."""
    regions = Regions([[token("<think>")]], [[token("</think>")]])
    answer = [token("<think>"), *tokens("well"), token("</think>"), *tokens('{"n": 12}')]
    for count in range(len(answer) + 1):
        here = request(held(compiled, regions=regions))
        for each in answer[:count]:
            here.context.update(each)
        moved = TextContext(
            tokens=TokenBuffer(here.context.tokens.all.copy()),
            max_length=100,
            first_generated=3,
            eos_tracker=EOSTracker(eos_token_ids=[token("<|end|>")]),
        )
        hold(moved, held(compiled, regions=regions))
        assert mask_of(moved.matcher) == mask_of(here.context.matcher)


def test_one_who_left_the_grammar_goes_on_without(compiled):
    """As it did where it came from."""
    moved = context(generated=tokens("nonsense"))
    hold(moved, held(compiled))
    assert moved.matcher is None


def test_a_complete_grammar_outweighs_the_minimum(compiled):
    """Then only an end can come; before, the minimum holds back what the grammar would allow."""
    ended = request(held(compiled, "ab?", "regex"), min_new_tokens=50, temperature=0)
    generate([ended], 10)
    assert text_of(ended) == "ab"
    assert ended.context.tokens.all[-1] == token("<|end|>")


def test_a_grammar_that_becomes_too_much_fails_alone(compiled):
    """The request gets the error; its neighbour its token."""

    class Broken(GrammarHold):
        def fill_mask(self, mask, drafts=()):
            raise InvalidRequest("the grammar cannot go on: too many items")

    broken, fine = request(Broken(compiled.matcher(Grammar("regex", "a")))), request(temperature=0)
    logits = random_logits(1, 2, size())
    expected = int(logits[1].argmax())
    sampled = sampler(size()).sample(logits, [broken, fine])
    assert sampled.tokens[1] == expected
    assert list(sampled.problems) == [0]
    assert "cannot go on" in str(sampled.problems[0])
