"""Every field of `SamplingParams`, and what else a request says of its answer, through real processes.

`EFFECTS` names the test of each field, and a test sees to it that none is missing.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.workers.pipelines.llama import SMALL_MODEL
from tensoryard.workers.text.tokenizer import TextTokenizer

from .text_models import END_THINK, deployment, thinker

pytestmark = pytest.mark.process

PROMPT = "# shelf.open(self)\n"
END = ty.GenerationStatus.END_OF_SEQUENCE
LENGTH = ty.GenerationStatus.MAXIMUM_LENGTH
EOS = 1

EFFECTS = {
    "top_k": "test_top_k",
    "top_p": "test_top_p",
    "min_p": "test_min_p",
    "temperature": "test_temperature",
    "thinking_temperature": "test_thinking_temperature",
    "frequency_penalty": "test_penalties",
    "presence_penalty": "test_penalties",
    "repetition_penalty": "test_penalties",
    "max_new_tokens": "test_lengths",
    "min_new_tokens": "test_lengths",
    "ignore_eos": "test_ends",
    "stop": "test_stop_strings",
    "stop_token_ids": "test_ends",
    "detokenize": "test_detokenize",
    "seed": "test_seed",
    "logits_processors": "test_functions_do_not_travel",
    "named_processors": "test_processors_by_name",
}


def test_every_field_has_its_test() -> None:
    """By name, and the test is here."""
    assert list(EFFECTS) == [spec.name for spec in dataclasses.fields(ty.SamplingParams)]
    assert all(callable(globals()[name]) for name in EFFECTS.values())


@pytest.fixture(scope="module")
def yard(runtime_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ty.Yard]:
    """The small model; the same with guesses; and one whose files propose how to choose."""
    folder = tmp_path_factory.mktemp("models")
    proposing = thinker(
        folder / "proposing",
        temperature=0.6,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.3,
        max_new_tokens=12,
        do_sample=True,
        eos_token_id=[1, 265],
    )
    greedy = thinker(folder / "greedy", do_sample=False, temperature=0.3)
    thinking = {"reasoning_parser": "think"}
    deployments = [
        deployment("small", replicas=2, model_dir=thinker(folder / "plain"), **thinking),
        deployment("guessed", model_dir=thinker(folder / "plain"), speculation="ngram", **thinking),
        deployment("proposing", model_dir=proposing),
        deployment("greedy", model_dir=greedy),
    ]
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    with yard.connect() as client:
        yield client


@pytest.fixture(params=["small", "guessed"])
def ask(client: ty.Client, request: pytest.FixtureRequest) -> Callable[..., ty.TextGenerationOutput]:
    """Asks the model, with guesses and without."""

    def generate(source: Any = PROMPT, **wishes: Any) -> ty.TextGenerationOutput:
        return client.generate(source, model=request.param, **{"max_new_tokens": 30, **wishes})

    return generate


Ask = Callable[..., ty.TextGenerationOutput]


def tops(answer: ty.TextGenerationOutput) -> list[dict[int, float]]:
    """At each position the likeliest tokens, likeliest first."""
    return [entry.top_log_probabilities[-1] for entry in answer.log_probabilities or []]


def at(answer: ty.TextGenerationOutput, place: int) -> tuple[int, float]:
    """A token and its log probability."""
    entry = (answer.log_probabilities or [])[place]
    return entry.sampled_token_ids[-1], entry.token_log_probabilities[-1]


# -- which token ------------------------------------------------------------------------------------------------------


def test_seed(ask: Ask) -> None:
    """The same seed answers the same, another one something else."""
    found = [ask(seed=seed, ignore_eos=True).tokens for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_temperature(ask: Ask) -> None:
    """0 takes the likeliest at every position, and needs no seed; a high one often does not."""
    cold = [ask(temperature=0, seed=seed, logprobs=1, ignore_eos=True) for seed in (1, 2)]
    assert cold[0].tokens == cold[1].tokens == [next(iter(top)) for top in tops(cold[0])]
    surprise = [
        -np.mean([at(ask(temperature=heat, seed=3, logprobs=1, ignore_eos=True), place)[1] for place in range(30)])
        for heat in (0.3, 1.9)
    ]
    assert surprise[0] + 1 < surprise[1]


def test_top_k(ask: Ask) -> None:
    """Every token is one of the likeliest few; 1 is greedy."""
    answer = ask(temperature=1.8, top_k=3, seed=5, logprobs=3, ignore_eos=True)
    assert all(token in top for token, top in zip(answer.tokens, tops(answer), strict=True))
    assert ask(top_k=1, seed=5, ignore_eos=True).tokens == ask(temperature=0, ignore_eos=True).tokens


def test_top_p(ask: Ask) -> None:
    """What is likelier than a chosen token has less than the mass that was asked for."""
    answer = ask(top_p=0.5, seed=5, logprobs=100, ignore_eos=True)
    for token, top in zip(answer.tokens, tops(answer), strict=True):
        likelier = sum(math.exp(value) for value in top.values() if value > top[token])
        assert likelier < 0.5 + 1e-6


def test_min_p(ask: Ask) -> None:
    """Every token has at least that share of the likeliest one's probability."""
    answer = ask(min_p=0.3, temperature=1, seed=7, logprobs=1, ignore_eos=True)
    for place, top in enumerate(tops(answer)):
        assert at(answer, place)[1] >= max(top.values()) + math.log(0.3) - 1e-5


def test_thinking_temperature(ask: Ask) -> None:
    """Inside thinking it goes before the other, behind it that one does."""
    ends = [{"name": "logit_bias", "options": {"bias": {END_THINK: 9.0}}}]
    prompt = f"{PROMPT}<think>"
    wish = {"temperature": 1.3, "thinking_temperature": 0, "named_processors": ends, "max_new_tokens": 60}
    found = [ask(prompt, seed=seed, ignore_eos=True, **wish).tokens for seed in range(3)]
    thoughts = [tokens[: tokens.index(END_THINK)] for tokens in found]
    assert thoughts[0] == thoughts[1] == thoughts[2] != []
    assert found[0] != found[1]
    hot = ask(prompt, seed=1, ignore_eos=True, **wish | {"temperature": 0, "thinking_temperature": 1.5})
    assert hot.tokens[: len(thoughts[0])] != thoughts[0]


def test_penalties(ask: Ask) -> None:
    """Each makes repeated tokens rarer; a negative one makes them more common."""

    def repeats(**wish: Any) -> int:
        tokens = ask(temperature=0, max_new_tokens=100, ignore_eos=True, **wish).tokens
        return len(tokens) - len(set(tokens))

    plain = repeats()
    for wish in ({"frequency_penalty": 1.5}, {"presence_penalty": 2.0}, {"repetition_penalty": 1.5}):
        assert repeats(**wish) < plain
    assert repeats(frequency_penalty=-2.0) > plain


def test_processors_by_name(ask: Ask) -> None:
    """What a processor allows comes, what it bans does not; options are checked."""
    only = {"name": "allowed_tokens", "options": {"token_ids": [300, 301]}}
    assert set(ask(seed=1, named_processors=[only], ignore_eos=True).tokens) == {300, 301}
    likely = ask(temperature=0, ignore_eos=True).tokens
    banned = {"name": "banned_tokens", "options": {"token_ids": likely}}
    assert not set(ask(temperature=0, named_processors=[banned], ignore_eos=True).tokens) & set(likely)
    with pytest.raises(errors.InvalidRequest, match="token_ids"):
        ask(named_processors=[{"name": "banned_tokens", "options": {"token_ids": [5000]}}])


def test_functions_do_not_travel(ask: Ask) -> None:
    """Code stays where it is, and who gives some is told."""
    with pytest.raises(TypeError, match="logits_processors"):
        ask(logits_processors=[print])


# -- how it ends ------------------------------------------------------------------------------------------------------


def test_lengths(ask: Ask) -> None:
    """No more than the most, and not fewer than the least, whatever the model would."""
    tokens = ask(temperature=0, ignore_eos=True).tokens
    most = ask(temperature=0, max_new_tokens=7, ignore_eos=True)
    assert (most.tokens, most.final_status) == (tokens[:7], LENGTH)
    ending = {"temperature": 0, "stop_token_ids": [tokens[2]]}
    assert len(ask(**ending).tokens) == tokens.index(tokens[2]) + 1
    least = ask(**ending, min_new_tokens=9)
    assert len(least.tokens) > 9
    assert tokens[2] not in least.tokens[:9]


def test_ends(ask: Ask) -> None:
    """The model's end token, those of the request, and neither where ends are ignored."""
    bias = [{"name": "logit_bias", "options": {"bias": {EOS: 100.0}}}]
    ended = ask(temperature=0, named_processors=bias)
    assert (ended.tokens, ended.text, ended.final_status) == ([EOS], "", END)
    tokens = ask(temperature=0, ignore_eos=True).tokens
    stopped = ask(temperature=0, stop_token_ids=[tokens[4], 2000])
    assert stopped.tokens == tokens[: tokens.index(tokens[4]) + 1]
    assert stopped.final_status is END
    ignoring = ask(temperature=0, stop_token_ids=[tokens[4]], ignore_eos=True)
    assert (ignoring.tokens, ignoring.final_status) == (tokens, LENGTH)


def test_stop_strings(ask: Ask) -> None:
    """Wherever the tokens' borders are; nothing of the string is shown, and none of its beginning."""
    whole = ask(temperature=0, max_new_tokens=60, ignore_eos=True).text or ""
    for start in range(3, 40, 4):
        stop = whole[start : start + 5]
        cut = ask(temperature=0, max_new_tokens=60, stop=["never in it", stop], ignore_eos=True)
        assert cut.text == whole[: whole.index(stop)]
        assert cut.final_status is END
    later = ask(temperature=0, max_new_tokens=60, stop=[whole[:4]], min_new_tokens=20, ignore_eos=True)
    assert len(later.tokens) > 20


def test_sequences_of_tokens_end(ask: Ask) -> None:
    """A stop string's own tokens are looked for as such, also where nobody wants text."""
    tokenizer = TextTokenizer(SMALL_MODEL)
    tokens = ask(temperature=0, ignore_eos=True).tokens
    stop = tokenizer.decode(tokens[3:6])
    cut = ask(temperature=0, stop=[stop], detokenize=False, ignore_eos=True)
    assert len(cut.tokens) <= 6
    assert cut.text is None


def test_detokenize(ask: Ask) -> None:
    """Without, there are the tokens alone, and the same."""
    told, plain = ask(temperature=0, ignore_eos=True), ask(temperature=0, ignore_eos=True, detokenize=False)
    assert told.text == TextTokenizer(SMALL_MODEL).decode(told.tokens)
    assert (plain.tokens, plain.text) == (told.tokens, None)


# -- log probabilities ------------------------------------------------------------------------------------------------


def test_log_probabilities(ask: Ask) -> None:
    """Of the chosen token and the likeliest, at each position: a distribution in order, that sampling does not bend."""
    answer = ask(temperature=0.5, top_k=4, seed=1, logprobs=2048 // 2, ignore_eos=True)
    for place, top in enumerate(tops(answer)):
        assert len(top) == 1024
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert 0.5 < sum(map(math.exp, top.values())) <= 1 + 1e-6
        token, value = at(answer, place)
        assert top[token] == value
    assert ask(seed=1, ignore_eos=True).log_probabilities is None


def test_reported_tokens_are_spelled(ask: Ask) -> None:
    """With the bytes of what they say, which make the text; of many only the chosen, of marks and thoughts none."""
    for count in (3, 50):
        answer = ask(temperature=0, logprobs=count, ignore_eos=True)
        told = answer.log_probabilities or []
        assert b"".join(entry.pieces.get(entry.sampled_token_ids[0], b"") for entry in told).decode() == answer.text
        assert {len(entry.pieces) for entry in told} - {0} == {3 if count == 3 else 1}
        assert not any(entry.pieces for entry in told if entry.sampled_token_ids == [EOS])
    assert not any(entry.pieces for entry in ask(logprobs=1, detokenize=False, ignore_eos=True).log_probabilities or [])


def test_echo(ask: Ask) -> None:
    """The prompt's tokens come with the first part, each as likely as when it is generated."""
    answer = ask(temperature=0, max_new_tokens=8, logprobs=2, ignore_eos=True)
    prompt = [300, *range(310, 330)]
    echoed = ask(
        [*prompt, *ask(prompt, temperature=0, max_new_tokens=3, ignore_eos=True).tokens], echo=True, logprobs=1
    )
    first = (echoed.log_probabilities or [])[0]
    assert first.sampled_token_ids[: len(prompt) - 1] == prompt[1:]
    assert len(first.token_log_probabilities) == len(prompt) + 3
    again = ask(prompt, temperature=0, max_new_tokens=3, logprobs=1, ignore_eos=True)
    told = [at(again, place)[1] for place in range(3)]
    assert first.token_log_probabilities[len(prompt) - 1 : -1] == told
    assert [entry.sampled_token_ids for entry in answer.log_probabilities or []] == [[t] for t in answer.tokens]


# -- what the model's files propose -----------------------------------------------------------------------------------


def test_what_is_left_open_comes_from_the_models_files(client: ty.Client) -> None:
    """Each value as if it had been given; what is given wins, also where it is the default."""

    def tokens(**wish: Any) -> list[int]:
        return client.generate(PROMPT, model="proposing", seed=3, **wish).tokens

    proposed = {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.3, "max_new_tokens": 12}
    own = {"temperature": 1, "top_k": -1, "top_p": 1, "repetition_penalty": 1.0, "max_new_tokens": 20}
    whole = client.generate(PROMPT, model="small", seed=3, stop_token_ids=[265], **proposed).tokens
    assert tokens() == tokens(**proposed) == whole
    assert len(tokens(ignore_eos=True)) == 12
    plain = client.generate(PROMPT, model="small", seed=3, ignore_eos=True, **own).tokens
    assert tokens(ignore_eos=True, **own) == plain != tokens(ignore_eos=True, max_new_tokens=20)
    bias = [{"name": "logit_bias", "options": {"bias": {265: 100.0}}}]
    assert tokens(named_processors=bias) == [265]


def test_files_that_are_greedy(client: ty.Client) -> None:
    """`do_sample` false is greedy, until a caller asks for a temperature."""
    wish = {"max_new_tokens": 20, "ignore_eos": True}
    cold = client.generate(PROMPT, model="small", temperature=0, **wish).tokens
    assert [client.generate(PROMPT, model="greedy", seed=seed, **wish).tokens for seed in (1, 2)] == [cold, cold]
    warm = client.generate(PROMPT, model="greedy", seed=1, temperature=1.5, **wish).tokens
    assert warm == client.generate(PROMPT, model="small", seed=1, temperature=1.5, **wish).tokens != cold


def test_a_prepared_request_leaves_open_too(client: ty.Client) -> None:
    """`SamplingParams` of a request's own tell what was given as keywords do."""

    def submit(**given: Any) -> list[int]:
        params = ty.SamplingParams(seed=3, **given)
        request = ty.TextGenerationRequest(model_name="proposing", prompt=PROMPT, sampling_params=params)
        return client.submit(request).result(60).tokens

    assert submit(ignore_eos=True) == client.generate(PROMPT, model="proposing", seed=3, ignore_eos=True).tokens
    assert len(submit(ignore_eos=True, max_new_tokens=15)) == 15


def test_a_killed_worker_changes_nothing_of_it(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Penalties, minimum, processors, stops and reports go on elsewhere where they were."""

    def request(number: int) -> ty.TextGenerationRequest:
        return ty.TextGenerationRequest(
            model_name="small",
            prompt=PROMPT,
            logprobs=2,
            echo=number % 2 == 0,
            sampling_params=ty.SamplingParams(
                seed=number,
                temperature=0.9,
                frequency_penalty=0.5,
                repetition_penalty=1.1,
                min_new_tokens=60,
                max_new_tokens=90,
                stop=["e"],
                named_processors=[{"name": "no_repeat_ngram", "options": {"size": 4}}],
            ),
        )

    wanted = [client.submit(request(number)).result(60) for number in range(6)]
    streams = [iter(client.submit(request(number))) for number in range(6)]
    began = [[next(stream) for _ in range(2)] for stream in streams]
    status = next(model for model in client.status().models if model.model == "small")
    os.kill(max(status.workers, key=lambda worker: worker.in_flight).pid, signal.SIGKILL)
    found = [ty.TextGenerationOutput.merge([*begin, *rest]) for begin, rest in zip(began, streams, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        assert (one.tokens, one.text, one.final_status) == (other.tokens, other.text, other.final_status)
        assert one.log_probabilities == other.log_probabilities
    eventually(lambda: all(model.is_ready for model in client.status().models), "the killed one is replaced")
