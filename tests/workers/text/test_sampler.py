"""A step of the sampler: what each request wants, in one batch, and what becomes of a request that goes wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.errors import InvalidRequest, PipelineError
from tensoryard.proto import EOSTracker, GenerationStatus, SamplingParams, TextContext, TokenBuffer
from tensoryard.workers.device import gpu_problem, select_device
from tensoryard.workers.text.sampling import Sampler, SamplingState, prompt_log_probabilities
from tensoryard.workers.text.sampling.log_probabilities import join_log_probabilities

from .support import CPU, context, random_logits, sampler, state

SIZE = 64


def model(tokens, size=SIZE):
    """A stand-in for a decoder: logits that depend on the last tokens alone."""
    return random_logits(abs(hash(tuple(int(token) for token in tokens[-4:]))) % 2**32, 1, size, spread=2.0)


def generate(steps, requests, *, chooser=None):
    """Run requests together for some steps, as an engine does; each leaves the batch when it is done."""
    chooser = chooser or sampler(SIZE)
    for _ in range(steps):
        active = [request for request in requests if not request.context.is_done]
        if not active:
            return
        logits = np.concatenate([model(request.context.tokens.all) for request in active])
        for request, token in zip(active, chooser.sample(logits, active).tokens, strict=True):
            request.context.update(token)
            request.accept([token])


def taken_up_again(request):
    """The same request on another worker, from its prompt and the tokens so far."""
    old = request.context
    tokens = TokenBuffer(old.tokens.all.copy())
    new = TextContext(
        tokens=tokens,
        max_length=old.max_length,
        eos_tracker=EOSTracker(eos_token_ids=old.eos_tracker.eos_token_ids),
        sampling_params=old.sampling_params,
        first_generated=old.first_generated,
    )
    return SamplingState(new, vocab_size=SIZE)


PARAMS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32)},
    optional={
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "top_k": st.integers(-1, 20),
        "top_p": st.floats(0.3, 1),
        "min_p": st.floats(0, 0.3),
        "repetition_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "min_new_tokens": st.integers(0, 12),
    },
)


@settings(max_examples=40, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=6), st.integers(1, 19), st.data())
def test_a_stream_is_the_same_alone_together_and_after_a_move(wishes, moved_after, data):
    """Batched with any others, preempted, or continued elsewhere from prompt and tokens: token for token the same."""
    made = [lambda each=each: state(SIZE, eos=[3, 5], max_length=23, **each) for each in wishes]
    alone = []
    for make in made:
        request = make()
        generate(20, [request])
        alone.append(request.context.tokens.generated.tolist())

    together = [make() for make in made]
    generate(moved_after, together)
    first = [request.context.tokens.generated.tolist() for request in together]
    mine = data.draw(st.integers(0, len(made) - 1))
    together[mine].context.reset()
    elsewhere = [request if request.context.is_done else taken_up_again(request) for request in together]
    generate(20 - moved_after, elsewhere[::-1])
    for expected, request in zip(alone, elsewhere, strict=True):
        assert request.context.tokens.all[3:].tolist() == expected
    assert all(expected[: len(begun)] == begun for expected, begun in zip(alone, first, strict=True))


@settings(max_examples=60, deadline=None)
@given(PARAMS, st.lists(st.integers(0, SIZE - 1), max_size=30), st.lists(st.integers(0, SIZE - 1), max_size=5))
def test_penalties_are_those_of_a_plain_count(params, generated, drafts):
    """Repetition over prompt and answer, frequency and presence over the answer; drafts count as answer."""
    params = {**params, "temperature": 0}
    request = state(SIZE, prompt=(1, 2, 3, 1), generated=generated, **params)
    logits = random_logits(3, len(drafts) + 1, SIZE)
    expected = logits.astype(np.float64)
    sampling = request.context.sampling_params
    for row in range(len(drafts) + 1):
        answer = [*generated, *drafts[:row]]
        for token in {1, 2, 3, *answer}:
            value = expected[row, token]
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
            value -= sampling.frequency_penalty * answer.count(token)
            expected[row, token] = value - sampling.presence_penalty * (token in answer)
    sampler(SIZE).sample(logits, [request], [drafts])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_token_costs_no_pass_over_those_before():
    """Counting a token looks at one slot: nothing but that entry changes."""
    request = state(SIZE, generated=[5] * 3, frequency_penalty=1.0)
    before = dict(zip(request.counts().ids.tolist(), request.counts().counts.tolist(), strict=True))
    request.accept([7, 5])
    after = dict(zip(request.counts().ids.tolist(), request.counts().counts.tolist(), strict=True))
    assert before == {5: 3}
    assert after == {5: 4, 7: 1}


def test_no_end_before_the_minimum():
    """While the minimum is not reached the likeliest end token is not chosen, afterwards it is; drafts count."""
    request = state(SIZE, temperature=0, eos=[4, 900], min_new_tokens=2)
    logits = np.zeros((4, SIZE), np.float32)
    logits[:, 4], logits[:, 9] = 5, 4
    chooser = sampler(SIZE)
    assert chooser.sample(logits.copy(), [request], [[9, 9, 9]]).tokens == [9, 9, 4, 4]
    for expected in (9, 9, 4):
        token = chooser.sample(logits[:1].copy(), [request]).tokens[0]
        assert token == expected
        request.context.update(token)
        request.accept([token])
    assert request.context.status is GenerationStatus.END_OF_SEQUENCE


def test_thinking_has_a_temperature_of_its_own():
    """Greedy while it thinks and drawn afterwards, or the other way round; the plan follows the phase."""
    chooser = sampler(SIZE)
    logits = random_logits(2, 1, SIZE, spread=0.1)
    for thinking, answer in ((0, 1.5), (1.5, 0)):
        request = state(SIZE, temperature=answer, thinking_temperature=thinking, seed=1)
        seen = {}
        for phase in (False, True, False, True):
            request.context.in_reasoning_phase = phase
            seen.setdefault(phase, []).append(chooser.sample(logits.copy(), [request]).tokens[0])
        assert seen[thinking == 0] == [logits.argmax()] * 2
        assert seen[thinking != 0][0] != logits.argmax()


def test_log_probabilities_are_the_models_own():
    """Of the logits as they came, whatever penalties and temperature did; each row has as many as it asked for."""
    logits = random_logits(4, 3, SIZE)
    raw = logits.astype(np.float64)
    expected = raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))
    requests = [
        state(SIZE, temperature=0, log_probabilities=3, presence_penalty=2, generated=[int(logits[0].argmax())]),
        state(SIZE, temperature=0),
        state(SIZE, temperature=1.9, log_probabilities=1, seed=3, top_p=0.9),
    ]
    sampled = sampler(SIZE).sample(logits, requests)
    assert sampled.log_probabilities[1] is None
    for row, top in ((0, 3), (2, 1)):
        found = sampled.log_probabilities[row]
        assert found.sampled_token_ids == [sampled.tokens[row]]
        assert math.isclose(found.token_log_probabilities[0], expected[row, sampled.tokens[row]], abs_tol=1e-5)
        assert list(found.top_log_probabilities[0]) == np.argsort(-expected[row])[:top].tolist()
        assert all(
            math.isclose(p, expected[row, token], abs_tol=1e-5) for token, p in found.top_log_probabilities[0].items()
        )
    assert sampled.tokens[0] != raw[0].argmax()


def test_log_probabilities_do_not_depend_on_the_batch():
    """To the bit."""
    logits = random_logits(4, 5, 1000)
    requests = [state(1000, temperature=0, log_probabilities=top) for top in (1, 2, 9, 3, 4)]
    together = sampler(1000).sample(logits.copy(), requests).log_probabilities
    for row, request in enumerate(requests):
        assert sampler(1000).sample(logits[row : row + 1].copy(), [request]).log_probabilities == [together[row]]


def test_echo_is_one_commit_with_the_first_token():
    """The prompt's tokens but the first, each by the row before it, then the first new token."""
    prompt = [1, 7, 7, 9]
    logits = random_logits(8, 4, SIZE)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    request = state(SIZE, prompt=prompt, temperature=0, log_probabilities=2)
    echo = prompt_log_probabilities(CPU, logits[:3], prompt[1:], 2)
    first = sampler(SIZE).sample(logits[3:].copy(), [request]).log_probabilities[0]
    whole = join_log_probabilities([echo, first])
    assert whole.sampled_token_ids == [7, 7, 9, int(logits[3].argmax())]
    np.testing.assert_allclose(
        whole.token_log_probabilities,
        [expected[row, token] for row, token in enumerate(whole.sampled_token_ids)],
        atol=1e-5,
    )
    assert all(len(top) == 2 for top in whole.top_log_probabilities)


def test_more_log_probabilities_than_there_are_tokens_are_all_of_them():
    """A vocabulary smaller than what is asked for; beyond the bound it is an error."""
    sampled = sampler(5).sample(random_logits(1, 1, 5), [state(5, temperature=0, log_probabilities=20)])
    assert sorted(sampled.log_probabilities[0].top_log_probabilities[0]) == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidRequest, match="logprobs"):
        state(5, log_probabilities=5000)


def test_processors_run_in_their_order_and_for_their_request():
    """A request's own after penalties, then those of the batch, which see every row and where each request begins."""
    seen = []

    def first(inputs):
        seen.append(("first", inputs.logits.shape[0], inputs.context))
        inputs.logits[:, 5] = 50

    def second(inputs):
        seen.append(("second", inputs.logits.shape[0], inputs.context))
        inputs.logits[:, 5] -= 100
        inputs.logits[:, 6] = 40

    def whole(inputs):
        offsets = None if inputs.logit_offsets is None else inputs.logit_offsets.tolist()
        seen.append(("batch", inputs.logits.shape[0], offsets))

    wants = context(temperature=0, logits_processors=[second])
    requests = [state(SIZE, temperature=0), SamplingState(wants, vocab_size=SIZE, processors=[first])]
    chooser = sampler(SIZE, batch_processors=[whole])
    logits = random_logits(1, 4, SIZE)
    assert chooser.sample(logits[:2].copy(), requests).tokens == [logits[0].argmax(), 6]
    assert chooser.sample(logits.copy(), requests, [[1, 2], []]).tokens[3] == 6
    assert seen == [
        *(("first", 1, wants), ("second", 1, wants), ("batch", 2, None)),
        *(("first", 1, wants), ("second", 1, wants), ("batch", 4, [0, 3, 4])),
    ]


def test_one_bad_request_fails_alone():
    """A processor that raises, logits that are no numbers, nothing left to choose: the others get their tokens."""

    def broken(_inputs):
        raise KeyError("gone")

    def refuses(_inputs):
        raise InvalidRequest("not like this")

    def forbids(inputs):
        inputs.logits[:] = -np.inf

    logits = random_logits(1, 6, SIZE)
    logits[3, 7] = np.nan
    expected = logits[0].argmax()
    requests = [
        state(SIZE, temperature=0),
        *(state(SIZE, temperature=0.5, logits_processors=[each]) for each in (broken, forbids)),
        state(SIZE, top_k=4),
        state(SIZE, temperature=0, logits_processors=[refuses]),
        state(SIZE, top_p=0.5, logits_processors=[forbids]),
    ]
    sampled = sampler(SIZE).sample(logits, requests)
    assert sampled.tokens[0] == expected
    assert {index: type(problem) for index, problem in sampled.problems.items()} == {
        1: PipelineError,
        2: InvalidRequest,
        3: PipelineError,
        4: InvalidRequest,
        5: InvalidRequest,
    }
    assert "KeyError" in str(sampled.problems[1])
    assert "no token is left" in str(sampled.problems[2])
    assert "no numbers" in str(sampled.problems[3])
    assert all(0 <= token < SIZE for token in sampled.tokens)


def test_what_is_wrong_behind_a_wrong_draft_does_not_count():
    """No token is left behind the draft: that ends the request only where the draft is what the model chose."""

    def forbids_behind(inputs):
        inputs.logits[1:] = -np.inf

    request = state(SIZE, temperature=0, logits_processors=[forbids_behind])
    logits = random_logits(1, 2, SIZE)
    right = int(logits[0].argmax())
    wrong = sampler(SIZE).sample(logits.copy(), [request], [[(right + 1) % SIZE]])
    assert (wrong.tokens[0], wrong.problems) == (right, {})
    assert list(sampler(SIZE).sample(logits.copy(), [request], [[right]]).problems) == [0]


def test_a_plan_is_made_anew_when_the_batch_changes():
    """Requests that come, go or change places are sampled as what they are."""
    chooser = sampler(SIZE)
    greedy, drawn = state(SIZE, temperature=0), state(SIZE, seed=9)
    logits = random_logits(6, 2, SIZE, spread=0.2)
    alone = sampler(SIZE).sample(logits[:1].copy(), [drawn]).tokens[0]
    for batch in ([greedy, drawn], [drawn, greedy], [drawn], [greedy], [greedy, drawn]):
        rows = np.concatenate([logits[:1]] * len(batch))
        tokens = chooser.sample(rows, batch).tokens
        assert tokens == [alone if request is drawn else logits[0].argmax() for request in batch]


def test_logits_of_another_shape_are_our_own_mistake():
    """It is said which shape was expected."""
    with pytest.raises(ValueError, match="1 rows and 64"):
        sampler(SIZE).sample(random_logits(1, 2, SIZE), [state(SIZE)])


def test_parameters_are_checked_already():
    """What reaches the sampler went through `SamplingParams`."""
    with pytest.raises(InvalidRequest):
        SamplingParams(temperature=float("nan"))


@pytest.mark.gpu
def test_a_gpu_chooses_as_the_processor_does():
    """Greedy and filtered tokens, penalties, ends and reports; and no row depends on its neighbours there either."""
    device = gpu()
    logits = random_logits(12, 8, 2000)
    wishes = [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.4, "presence_penalty": 0.3},
        {"temperature": 0, "min_new_tokens": 3},
        {"top_k": 20, "seed": 1},
        {"top_p": 0.7, "seed": 2},
        {"min_p": 0.1, "seed": 3},
        {"seed": 4},
        {"temperature": 0.4, "seed": 5, "frequency_penalty": 1},
    ]
    requests = [state(2000, eos=[7], log_probabilities=2, generated=[9, 9], **each) for each in wishes]
    there = Sampler(device, vocabulary=2000)
    found = there.sample(device.to_device(logits.copy()), requests)
    here = sampler(2000).sample(logits.copy(), requests)
    assert found.tokens[:6] == here.tokens[:6]
    for mine, theirs in zip(found.log_probabilities, here.log_probabilities, strict=True):
        assert list(mine.top_log_probabilities[0]) == list(theirs.top_log_probabilities[0])
    for row, request in enumerate(requests):
        alone = there.sample(device.to_device(logits[row : row + 1].copy()), [request])
        assert alone.tokens == [found.tokens[row]]
        assert alone.log_probabilities == [found.log_probabilities[row]]


def gpu():
    problem = gpu_problem()
    if problem is not None:
        pytest.skip(problem)
    return select_device("gpu")
