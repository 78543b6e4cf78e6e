"""Speculative decoding: the same text and the same distribution, with fewer steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.proto import GenerationStatus
from tensoryard.proto.logits import NamedProcessor
from tensoryard.proto.reasoning_parsers import DelimitedReasoningParser, ReasoningStream
from tensoryard.workers.text import speculation
from tensoryard.workers.text.answer import AnswerStream
from tensoryard.workers.text.processors import Setting, request_processors
from tensoryard.workers.text.sampling import SamplingState
from tensoryard.workers.text.speculation import (
    Acceptance,
    DraftModelProposer,
    NGramProposer,
    Speculation,
    accept_by_rejection,
    confirmed,
)
from tensoryard.workers.text.turn import commit
from tensoryard.workers.text.vocabulary import Vocabulary

from .support import CPU, context, plain_distribution, random_logits, sampler

stats = pytest.importorskip("scipy.stats")

SIZE = 12


def model(tokens, *, noise=0.0, spread=2.0):
    """A stand-in for a decoder: logits by the last two tokens; `noise` makes a worse model of the same kind."""
    seed = int(tokens[-1]) * 97 + int(tokens[-2])
    logits = random_logits(seed, 1, SIZE, spread=spread)
    return logits + noise * random_logits(seed + 10**6, 1, SIZE) if noise else logits


def rows(request, drafts):
    tokens = request.context.tokens.all.tolist()
    return [model([*tokens, *drafts[:count]]) for count in range(len(drafts) + 1)]


def run_without(requests, steps):
    chooser = sampler(SIZE)
    for _ in range(steps):
        active = [request for request in requests if not request.context.is_done]
        if active:
            tokens = chooser.sample(np.concatenate([rows(each, [])[0] for each in active]), active).tokens
            for request, token in zip(active, tokens, strict=True):
                commit(request, [token])
    return [request.context.tokens.generated.tolist() for request in requests]


def run_with(requests, steps, proposer, *, most=4):
    chooser, guesses, counted = sampler(SIZE), Speculation(proposer, most=most), Acceptance()
    taken = 0
    while any(not request.context.is_done for request in requests) and taken < steps:
        taken += 1
        active = [request for request in requests if not request.context.is_done]
        drafts = guesses.draft(active)
        logits = np.concatenate([row for each, ahead in zip(active, drafts, strict=True) for row in rows(each, ahead)])
        sampled = chooser.sample(logits, active, drafts)
        assert not sampled.problems
        for request, tokens in zip(active, guesses.settle(active, sampled.tokens, counted), strict=True):
            commit(request, tokens)
            assert request.context.spec_decoding_state.draft_tokens_to_verify == []
    for request in requests:
        guesses.release(request.context)
    return [request.context.tokens.generated.tolist() for request in requests], counted, taken


def make(**params):
    named = [NamedProcessor("no_repeat_ngram", {"size": 5})] if params.get("seed", 0) % 2 else None
    made = context(prompt=(1, 2), max_length=42, eos=[7], named_processors=named, **params)
    return SamplingState(made, vocab_size=SIZE, processors=request_processors(made, Setting(CPU, SIZE)))


def drafting(noise):
    def step(contexts, drafts):
        tokens = ([*each.tokens.all.tolist(), *ahead] for each, ahead in zip(contexts, drafts, strict=True))
        return np.concatenate([model(each, noise=noise) for each in tokens])

    return DraftModelProposer(sampler(SIZE), step)


PARAMS = st.fixed_dictionaries(
    {"seed": st.integers(0, 10**6)},
    optional={
        "temperature": st.sampled_from([0, 0.5, 1.3]),
        "top_k": st.integers(1, 9),
        "top_p": st.floats(0.4, 1),
        "repetition_penalty": st.floats(0.7, 1.6),
        "frequency_penalty": st.floats(-0.5, 0.5),
        "min_new_tokens": st.integers(0, 20),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=4), st.integers(1, 8), st.sampled_from(["n-gram", 0.0, 0.5, 5.0]))
def test_the_text_is_the_text_without_drafts(wishes, most, kind):
    """Token for token, greedy and seeded, with penalties, minimum, processors and ends, whoever guesses and how far."""
    proposer = NGramProposer() if kind == "n-gram" else drafting(kind)
    expected = run_without([make(**each) for each in wishes], 60)
    found, _, _ = run_with([make(**each) for each in wishes], 60, proposer, most=most)
    assert found == expected


def test_a_draft_model_that_is_the_model_is_always_right():
    """It guesses with the same random numbers: every draft is accepted, at any temperature."""
    requests = [make(seed=2 * seed, temperature=1.2, ignore_eos=True) for seed in range(6)]
    _, counted, taken = run_with(requests, 100, drafting(0.0))
    assert counted.accepted == counted.generated > 0
    assert taken <= 9
    assert counted.longest == 4
    assert set(counted.rate_per_position) == {1.0}


def test_n_grams_save_steps_where_text_repeats():
    """A greedy model soon goes round in circles, which the index sees."""
    plain = make(temperature=0, ignore_eos=True)
    expected = run_without([plain], 60)
    found, counted, taken = run_with([make(temperature=0, ignore_eos=True)], 60, NGramProposer())
    assert found == expected
    assert taken < 30
    assert 0 < counted.mean_length <= 4


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), st.lists(st.integers(0, 2), max_size=10), st.integers(1, 5)
)
def test_the_index_finds_what_a_search_finds(prompt, generated, most):
    """The last earlier occurrence of the longest end that there is, and what followed it."""
    request = context(prompt=prompt)
    proposer = NGramProposer(longest=3)
    for token in [None, *generated]:
        if token is not None:
            request.update(token)
        tokens = request.tokens.all.tolist()
        expected = []
        for size in (3, 2, 1):
            starts = [at for at in range(size, len(tokens)) if tokens[at - size : at] == tokens[len(tokens) - size :]]
            if starts and len(tokens) > size:
                expected = tokens[starts[-1] : starts[-1] + most]
                break
        assert proposer.propose([SamplingState(request, vocab_size=3)], [most]) == [expected]


def test_a_long_prompt_is_indexed_in_part(monkeypatch):
    """Its last tokens; what came before is not found and costs nothing."""
    monkeypatch.setattr(speculation, "MAX_INDEXED", 10)
    request = context(prompt=[1, 2, 3, *[9] * 20, 5, 6, 7, 8, 1, 2])
    proposer = NGramProposer(longest=2, shortest=2)
    assert proposer.propose([SamplingState(request, vocab_size=10)], [3]) == [[]]
    request.update(5)
    request.update(6)
    assert proposer.propose([SamplingState(request, vocab_size=10)], [2]) == [[7, 8]]
    proposer.release(request)
    assert not proposer._indexes


def test_drafts_never_reach_past_the_end():
    """The last step has none, and the request ends by its length as it would without."""
    request = make(temperature=0, ignore_eos=True)
    found, _, _ = run_with([request], 100, drafting(0.0), most=8)
    assert len(found[0]) == 40
    assert request.context.status is GenerationStatus.MAXIMUM_LENGTH


def test_how_far_to_guess_is_learnt():
    """All refused: half as far; all accepted: one further, up to the bound."""

    class Fixed:
        guess = 0

        def propose(self, states, most):
            return [[self.guess] * count for count in most]

        def release(self, context):
            pass

    request, proposer, counted = make(temperature=0), Fixed(), Acceptance()
    guesses = Speculation(proposer, most=4)
    lengths = []
    for chosen in (1, 1, 1, 0, 0, 0, 0, 0):
        drafts = guesses.draft([request])[0]
        lengths.append(len(drafts))
        guesses.settle([request], [chosen] * (len(drafts) + 1), counted)
    assert lengths == [4, 2, 1, 1, 2, 3, 4, 4]
    guesses.release(request.context)
    assert not guesses._lengths


def test_confirmed_is_up_to_the_first_difference():
    """And one more in any case."""
    assert confirmed([1, 2, 3], [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert confirmed([1, 2, 3], [1, 9, 3, 4]) == [1, 9]
    assert confirmed([1], [0, 5]) == [0]
    assert confirmed([], [7]) == [7]


def test_thinking_ends_a_round_where_it_has_its_own_temperature():
    """What was chosen behind the change of phase, by the other temperature, is dropped and chosen again."""
    parser = DelimitedReasoningParser(starts=[[4]], ends=[[5]])
    vocabulary = Vocabulary(tuple(bytes([97 + token]) for token in range(SIZE)), frozenset())
    for thinking_temperature, kept in ((1.0, [3, 5]), (None, [3, 5, 6, 8])):
        request = make(temperature=0, thinking_temperature=thinking_temperature)
        request.context.in_reasoning_phase = True
        answer = AnswerStream(vocabulary, reasoning=ReasoningStream(parser, is_reasoning=True))
        deltas = commit(request, [3, 5, 6, 8], answer=answer)
        assert request.context.tokens.generated.tolist() == kept
        assert request.position == 2 + len(kept)
        assert "".join(delta.reasoning for delta in deltas) == "d"


def test_rejection_keeps_the_distribution():
    """Chi-square over 40 000 rounds of one draft and what stands behind: exactly the model's, whatever the guess is."""
    rng = np.random.default_rng(3)
    p = plain_distribution(random_logits(1, 1, 8, spread=1.0)[0])[0]
    behind = plain_distribution(random_logits(2, 1, 8, spread=1.0)[0])[0]
    q = plain_distribution(random_logits(9, 1, 8, spread=1.0)[0])[0]
    target, found, second, accepted = np.stack([p, behind]), np.zeros(8), np.zeros(8), 0
    for draft in rng.choice(8, 40_000, p=q).tolist():
        gained = accept_by_rejection(target, q[None], [draft], rng.random(1).tolist(), float(rng.random()))
        found[gained[0]] += 1
        if len(gained) > 1:
            second[gained[1]] += 1
            accepted += 1
    assert stats.chisquare(found, p * 40_000).pvalue > 1e-3
    assert stats.chisquare(second, behind * accepted).pvalue > 1e-3
    assert abs(accepted / 40_000 - np.minimum(p, q).sum()) < 0.01


def test_rejection_at_its_edges():
    """Equal distributions accept everything; what the model never says is never accepted nor drawn."""
    one, other = np.eye(4)[1], np.eye(4)[2]
    assert accept_by_rejection(np.stack([one, other]), one[None], [1], [0.999], 0.0) == [1, 2]
    assert accept_by_rejection(np.stack([one, other]), other[None], [2], [0.0], 0.999) == [1]
    half = np.array([0.0, 0.5, 0.5, 0.0])
    assert accept_by_rejection(half[None], np.empty((0, 4)), [], [], 1 - 2**-53) == [2]
    assert accept_by_rejection(half[None], np.empty((0, 4)), [], [], 0.0) == [1]


def test_the_drawn_text_has_the_models_distribution():
    """Chi-square over seeds of the token behind a draft, with drafts from a bad model: as without drafts."""
    found = np.zeros(SIZE)
    seeds = 3000
    logits = np.concatenate([model([1, 2]), model([2, 4])])
    for start in range(0, seeds, 100):
        requests = [
            SamplingState(context(prompt=(1, 2), seed=seed), vocab_size=SIZE) for seed in range(start, start + 100)
        ]
        tokens = sampler(SIZE).sample(np.tile(logits, (100, 1)), requests, [[4]] * 100).tokens
        for place in range(100):
            gained = confirmed([4], tokens[2 * place : 2 * place + 2])
            found[gained[0]] += 1
    p = plain_distribution(logits[0])[0]
    assert (p * seeds).min() > 5
    assert stats.chisquare(found, p * seeds).pvalue > 1e-3


def test_bounds_are_said():
    """Lengths and sizes that make no sense are refused."""
    with pytest.raises(ValueError, match="1 to 16 drafts"):
        Speculation(NGramProposer(), most=17)
    with pytest.raises(ValueError, match="n-grams of 3 to 2"):
        NGramProposer(longest=2, shortest=3)
