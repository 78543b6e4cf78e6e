"""Tokens guessed ahead, through real processes: the same answers as without, in fewer steps."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors

from .text_models import SMALL_MODEL, deployment, stranger

pytestmark = pytest.mark.process

#: Who guesses, and how many workers.
GUESSERS = ("ngram", "itself", "stranger")
PROMPTS = [f"# shelf.{name}(self)\n" for name in ("open", "close", "read_all", "find", "__iter__", "update")]
#: Has room for a handful of requests: some are put out in mid-answer.
SCARCE = {"cache_bytes": 1_000_000}


@pytest.fixture(scope="module")
def yard(runtime_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ty.Yard]:
    """The small model, alone and with each who may guess for it."""
    bad = stranger(tmp_path_factory.mktemp("models") / "stranger")
    deployments = [
        deployment("plain", **SCARCE),
        deployment("ngram", replicas=2, speculation="ngram", draft_tokens=6, guessing_tokens=500, **SCARCE),
        deployment("itself", speculation="draft_model", draft_model_dir=str(SMALL_MODEL)),
        deployment("stranger", speculation="draft_model", draft_model_dir=bad, draft_tokens=3, guessing_tokens=500),
    ]
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    with yard.connect() as client:
        yield client


def how(number: int) -> dict[str, Any]:
    """Greedy and seeded ones, with penalties, a stop string, a minimum, or a processor."""
    chance = {"temperature": 0} if number % 2 else {"temperature": 0.8, "top_p": 0.9}
    wishes: tuple[dict[str, Any], ...] = (
        {"ignore_eos": True},
        {"repetition_penalty": 1.2, "presence_penalty": 0.4},
        {"stop": ["the"], "min_new_tokens": 5},
        {"named_processors": [{"name": "no_repeat_ngram", "options": {"size": 3}}], "ignore_eos": True},
    )
    return {**chance, "seed": number, "max_new_tokens": 70, **wishes[number % len(wishes)]}


def request(model: str, number: int) -> ty.TextGenerationRequest:
    return ty.TextGenerationRequest(
        model_name=model,
        prompt=PROMPTS[number % len(PROMPTS)],
        logprobs=number % 3,
        echo=number % 5 == 0,
        sampling_params=ty.SamplingParams(**how(number)),
    )


def told(output: ty.TextGenerationOutput) -> tuple[Any, ...]:
    return output.tokens, output.text, output.final_status, output.log_probabilities


@pytest.mark.parametrize("model", GUESSERS)
def test_answers_are_those_without_guesses(client: ty.Client, model: str) -> None:
    """Tokens, texts, ends and log probabilities, greedy and seeded, of two dozen at once with preemption."""
    count = 24 if model == "ngram" else 12
    wanted = [told(client.submit(request("plain", number)).result(60)) for number in range(count)]
    replies = [client.submit(request(model, number)) for number in range(count)]
    found = [reply.result(60) for reply in replies]
    assert [told(output) for output in found] == wanted
    drafted = sum(output.draft_tokens_generated for output in found)
    accepted = sum(output.draft_tokens_accepted for output in found)
    assert 0 < drafted
    assert 0 <= accepted <= drafted
    if model != "stranger":
        assert accepted


def test_a_model_that_guesses_for_itself_is_right(client: ty.Client) -> None:
    """At any temperature, since it guesses with the random numbers of the choice: a fifth of the steps is enough."""
    answer = client.generate(PROMPTS[0], model="itself", seed=3, max_new_tokens=60, ignore_eos=True)
    assert answer.draft_tokens_accepted == answer.draft_tokens_generated >= 40


def test_a_part_is_a_token(client: ty.Client) -> None:
    """However many a step brings: parts are counted where a stream goes on at another worker."""
    pieces = list(client.stream(PROMPTS[0], model="itself", temperature=0, max_new_tokens=40, ignore_eos=True))
    assert [len(piece.tokens) for piece in pieces] == [1] * 40
    assert [piece.is_done for piece in pieces] == [False] * 39 + [True]


def test_a_killed_worker_breaks_no_stream(client: ty.Client, eventually: Callable[..., None]) -> None:
    """With one killed in mid-stream each caller sees the tokens and the text that there are without."""
    wanted = [client.submit(request("plain", number)).result(60) for number in range(8)]
    replies = [client.submit(request("ngram", number)) for number in range(8)]
    streams = [iter(reply) for reply in replies]
    began = [[next(stream) for _ in range(3)] for stream in streams]
    status = next(model for model in client.status().models if model.model == "ngram")
    victim = max(status.workers, key=lambda worker: worker.in_flight)
    os.kill(victim.pid, signal.SIGKILL)
    found = [ty.TextGenerationOutput.merge([*begin, *rest]) for begin, rest in zip(began, streams, strict=True)]
    assert [(each.tokens, each.text) for each in found] == [(each.tokens, each.text) for each in wanted]
    eventually(lambda: all(model.is_ready for model in client.status().models), "the killed one is replaced")


@pytest.mark.parametrize("model", ["plain", "ngram", "itself"])
def test_structure_holds_behind_guesses(client: ty.Client, model: str) -> None:
    """An answer is an instance of its schema, and the same one."""
    pytest.importorskip("llguidance", reason="structured output needs llguidance: pip install 'tensoryard[text]'")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "names": {"type": "array", "items": {"enum": ["a", "b"]}}},
        "required": ["ok", "names"],
        "additionalProperties": False,
    }
    wish = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_new_tokens": 300,
        "temperature": 0.7,
    }
    found = [client.generate("# os.stat(path)\n", model=model, seed=seed, **wish).text for seed in range(4)]
    assert all(set(json.loads(text or "")) == {"ok", "names"} for text in found)
    assert found == [client.generate("# os.stat(path)\n", model="plain", seed=seed, **wish).text for seed in range(4)]


def test_a_cancelled_one_lets_go(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Also of what was guessed for it."""
    stream = client.stream(PROMPTS[0], model="itself", max_new_tokens=400, ignore_eos=True, seed=1)
    next(stream)
    stream.close()
    eventually(lambda: not sum(w.in_flight for m in client.status().models for w in m.workers), "no worker has it")


def chances(client: ty.Client, prompt: list[int], allowed: list[int]) -> np.ndarray:
    """The model's own probabilities behind a prompt, among some tokens alone."""
    told = []
    for token in allowed:
        answer = client.generate([*prompt, token], model="plain", logprobs=1, echo=True, max_new_tokens=1)
        assert answer.log_probabilities is not None
        told.append(answer.log_probabilities[0].token_log_probabilities[len(prompt) - 1])
    found = np.exp(told)
    return found / found.sum()


def test_the_text_has_the_models_distribution(client: ty.Client) -> None:
    """Chi-square over seeds of the token behind a bad model's guess, out of four: as likely as the model has it."""
    stats = pytest.importorskip("scipy.stats")
    prompt = list(range(300, 312))
    first = client.generate(prompt, model="plain", logprobs=4, max_new_tokens=1).log_probabilities
    assert first is not None
    allowed = sorted(first[0].top_log_probabilities[0])
    wanted = np.zeros(4)
    for token, weight in zip(allowed, chances(client, prompt, allowed), strict=True):
        wanted += weight * chances(client, [*prompt, token], allowed)
    params = {"max_new_tokens": 3, "ignore_eos": True}
    only = {"name": "allowed_tokens", "options": {"token_ids": allowed}}
    requests = [
        ty.TextGenerationRequest(
            model_name="stranger",
            prompt=prompt,
            sampling_params=ty.SamplingParams(seed=seed, named_processors=[only], **params),
        )
        for seed in range(800)
    ]
    answers = list(client.map(requests))
    assert sum(answer.draft_tokens_generated for answer in answers) > 400
    found = np.bincount([allowed.index(answer.tokens[1]) for answer in answers], minlength=4)
    assert stats.chisquare(found, wanted * len(requests)).pvalue > 1e-3


def test_a_draft_model_has_the_vocabulary_of_its_model(tmp_path: Path) -> None:
    """Another one is refused when the deployment starts, by name."""
    from tensoryard.workers.pipelines.llama import create

    folder = Path(stranger(tmp_path))
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"][1]["content"] = "<another>"
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(errors.ConfigError, match="vocabulary of its model"):
        create(device="cpu", speculation="draft_model", draft_model_dir=str(folder))
    with pytest.raises(errors.ConfigError, match="draft_model_dir"):
        create(device="cpu", speculation="draft_model")
