"""The processors that come along: what each forbids, also behind drafts and after a move."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.proto.logits import NamedProcessor
from tensoryard.workers.text.processors import Setting, deployment_processors, request_processors
from tensoryard.workers.text.sampling import SamplingState

from .support import CPU, context, random_logits, sampler

SIZE = 12


def run(name, options, *, prompt=(1, 2, 3), generated=(), drafts=()):
    """The logits of a request after one processor, as a step leaves them."""
    named = [NamedProcessor(name, options)]
    request = context(prompt=prompt, generated=generated, temperature=0, named_processors=named)
    request.spec_decoding_state.draft_tokens_to_verify = list(drafts)
    asked = request_processors(request, Setting(CPU, SIZE))
    logits = random_logits(1, len(drafts) + 1, SIZE)
    sampler(SIZE).sample(logits, [SamplingState(request, vocab_size=SIZE, processors=asked)], [list(drafts)])
    return logits


def banned(logits):
    return [np.flatnonzero(np.isneginf(row)).tolist() for row in logits]


def test_bias_is_added():
    """To the tokens named, and to no other."""
    before, after = random_logits(1, 1, SIZE), run("logit_bias", {"bias": {"3": 2.5, "0": -1}})
    expected = before.copy()
    expected[0, 3] += np.float32(2.5)
    expected[0, 0] -= 1
    assert np.array_equal(after, expected)


def test_bans_and_what_is_allowed():
    """The tokens named, or all others."""
    assert banned(run("banned_tokens", {"token_ids": [2, 7]}, drafts=[1])) == [[2, 7], [2, 7]]
    assert banned(run("allowed_tokens", {"token_ids": [2, 7]})) == [[0, 1, 3, 4, 5, 6, 8, 9, 10, 11]]


def test_a_deployment_bans_for_everybody():
    """Each row of each request."""
    asked = [NamedProcessor("banned_tokens_of_all", {"token_ids": [4]})]
    chooser = sampler(SIZE, batch_processors=deployment_processors(asked, Setting(CPU, SIZE)))
    logits = random_logits(1, 3, SIZE)
    states = [SamplingState(context(temperature=0), vocab_size=SIZE) for _ in range(2)]
    chooser.sample(logits, states, [[1], []])
    assert banned(logits) == [[4], [4], [4]]


TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    TOKENS,
    TOKENS,
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_a_banned_sequence_never_comes_about(prompt, generated, drafts, sequences):
    """Its last token is forbidden exactly where the others stand before it, in prompt, answer or drafts."""
    found = banned(run("banned_sequences", {"sequences": sequences}, prompt=prompt, generated=generated, drafts=drafts))
    for row in range(len(drafts) + 1):
        before = [*prompt, *generated, *drafts[:row]]
        expected = {token for token in range(SIZE) if any([*before, token][-len(each) :] == each for each in sequences)}
        assert set(found[row]) == expected


@settings(max_examples=150, deadline=None)
@given(TOKENS, TOKENS, st.lists(st.integers(0, 3), max_size=4), st.integers(1, 4))
def test_no_n_gram_comes_twice(prompt, generated, drafts, size):
    """Forbidden is what would complete an n-gram of prompt, answer or drafts, and nothing else."""
    found = banned(run("no_repeat_ngram", {"size": size}, prompt=prompt, generated=generated, drafts=drafts))
    for row in range(len(drafts) + 1):
        before = [*prompt, *generated, *drafts[:row]]
        seen = {tuple(before[at : at + size]) for at in range(len(before) - size + 1)}
        expected = {
            token for token in range(SIZE) if len(before) >= size - 1 and tuple([*before, token][-size:]) in seen
        }
        assert set(found[row]) == expected


def test_n_grams_are_read_once():
    """Token by token the same as from the whole, as a worker that takes the request over sees it."""
    tokens = np.random.default_rng(0).integers(0, 4, 60).tolist()
    named = [NamedProcessor("no_repeat_ngram", {"size": 3})]
    request = context(prompt=tokens[:3], temperature=0, named_processors=named)
    process = request_processors(request, Setting(CPU, SIZE))
    state = SamplingState(request, vocab_size=SIZE, processors=process)
    for at, token in enumerate(tokens[3:], 3):
        logits = random_logits(1, 1, SIZE)
        sampler(SIZE).sample(logits, [state])
        assert np.array_equal(logits, run("no_repeat_ngram", {"size": 3}, prompt=tokens[:3], generated=tokens[3:at]))
        request.update(token)
