"""Text through real processes: streams of the small model, side by side, aborted, and across a worker's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tensoryard as ty
from tensoryard import errors

pytestmark = pytest.mark.process

PROMPTS = [f"# shelf.{name}(self)\n" for name in ("open", "close", "read_all", "find", "__iter__", "update")]


@pytest.fixture(scope="module")
def yard(runtime_folder: Path) -> Iterator[ty.Yard]:
    """Two workers of the model that comes with the package, with a cache that is too small for many at once."""
    deployment = ty.Deployment(
        model="small",
        task=ty.PipelineTask.TEXT_GENERATION,
        pipeline="tensoryard.workers.pipelines.llama:create",
        options={"device": "cpu", "max_batch_size": 6, "cache_bytes": 1_000_000},
        replicas=2,
        max_wait_ms=0.0,
    )
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    with yard.connect() as client:
        yield client


def how(number: int) -> dict[str, Any]:
    """Greedy ones and seeded ones."""
    chance = {"temperature": 0} if number % 2 else {"temperature": 0.8, "top_p": 0.9}
    return {**chance, "seed": number, "max_new_tokens": 90, "ignore_eos": True}


def request(number: int) -> ty.TextGenerationRequest:
    return ty.TextGenerationRequest(
        model_name="small",
        prompt=PROMPTS[number % len(PROMPTS)],
        sampling_params=ty.SamplingParams(**how(number)),
    )


def test_a_stream_comes_token_by_token(client: ty.Client) -> None:
    """Pieces join to what `generate` answers at once, as text and as tokens, sync and async."""
    pieces = list(client.stream(PROMPTS[0], model="small", **how(0)))
    whole = client.generate(PROMPTS[0], model="small", **how(0))
    assert len(pieces) == len(whole.tokens) == 90
    assert "".join(piece.text or "" for piece in pieces) == whole.text
    assert whole.final_status is ty.GenerationStatus.MAXIMUM_LENGTH
    words = (whole.text or "").split()
    assert sum(word.isalpha() and word.isascii() for word in words) > len(words) / 2, whole.text

    async def again() -> tuple[list[int], str | None]:
        async with await ty.connect_async(client.address) as other:
            found = [
                token async for piece in other.stream(PROMPTS[0], model="small", **how(0)) for token in piece.tokens
            ]
            return found, (await other.generate(PROMPTS[0], model="small", **how(0))).text

    assert asyncio.run(again()) == (whole.tokens, whole.text)


def test_many_streams_are_as_if_alone(client: ty.Client) -> None:
    """Two dozen at once, over two workers that have to put some out again, answer what each answers alone."""
    replies = [client.submit(request(number)) for number in range(24)]
    together = [reply.result(60).tokens for reply in replies]
    assert together == [client.submit(request(number)).result(60).tokens for number in range(24)]


def test_a_killed_worker_breaks_no_stream(client: ty.Client, eventually: Callable[..., None]) -> None:
    """With a worker killed in mid-stream, each caller sees the text that it sees without."""
    wanted = [client.submit(request(number)).result(60).text for number in range(8)]
    replies = [client.submit(request(number)) for number in range(8)]
    streams = [iter(reply) for reply in replies]
    began = [[next(stream) for _ in range(3)] for stream in streams]
    workers = client.status().models[0].workers
    victim = max(workers, key=lambda worker: worker.in_flight)
    assert victim.in_flight
    os.kill(victim.pid, signal.SIGKILL)
    texts = ["".join(piece.text or "" for piece in [*begin, *rest]) for begin, rest in zip(began, streams, strict=True)]
    assert texts == wanted
    eventually(lambda: client.status().models[0].is_ready, "the killed one is replaced")


def test_who_leaves_a_stream_cancels_it(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Nothing is generated for nobody."""
    stream = client.stream(PROMPTS[0], model="small", max_new_tokens=400, ignore_eos=True, seed=1)
    next(stream)
    stream.close()
    eventually(lambda: not sum(w.in_flight for w in client.status().models[0].workers), "no worker has it")


def test_messages_end_at_a_stop_string(client: ty.Client) -> None:
    """A chat goes through the model's template, and what stops the answer is not shown."""
    pytest.importorskip("jinja2", reason="the template needs jinja2: pip install 'tensoryard[text]'")
    messages = [{"role": "user", "content": "# zipfile.ZipFile.open(self, name)"}]
    whole = client.generate(messages, model="small", temperature=0, max_new_tokens=60)
    assert whole.text
    word = whole.text.split()[3]
    cut = client.generate(messages, model="small", temperature=0, max_new_tokens=60, stop=[word])
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.final_status is ty.GenerationStatus.END_OF_SEQUENCE


def test_an_answer_is_held_to_a_grammar(client: ty.Client) -> None:
    """Of a model that never saw JSON comes JSON, streamed like any other text."""
    pytest.importorskip("llguidance", reason="structured output needs llguidance: pip install 'tensoryard[text]'")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    pieces = client.stream(
        "# os.stat(path)\n",
        model="small",
        temperature=0.8,
        seed=1,
        max_new_tokens=100,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert json.loads("".join(piece.text or "" for piece in pieces)) in ({"ok": True}, {"ok": False})


def test_log_probabilities_travel(client: ty.Client) -> None:
    """Of the prompt, where it is asked for, and of each token."""
    answer = client.generate(
        "# os.stat(path)\n", model="small", max_new_tokens=5, logprobs=3, echo=True, ignore_eos=True
    )
    assert answer.log_probabilities is not None
    assert len(answer.log_probabilities) == 5
    assert all(len(entry.top_log_probabilities[-1]) == 3 for entry in answer.log_probabilities)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"source": "x" * 3000}, "3001 tokens; the model takes"),
        ({"source": [5, 5000]}, "5000; ids are 0 to 2047"),
        ({"source": []}, "no tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"logprobs": 5000}, "logprobs"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"named_processors": [{"name": "no-such", "options": {}}]}, "no-such"),
        ({"images": [b"x"], "source": [{"role": "user", "content": [{"type": "image"}]}]}, "text only"),
        ({"temperatur": 1}, "temperatur"),
    ],
)
def test_what_cannot_be_done_is_said(client: ty.Client, wrong: dict[str, Any], named: str) -> None:
    """By name, and to that caller alone."""
    source = wrong.pop("source", "# os\n")
    with pytest.raises(errors.InvalidRequest, match=named):
        client.generate(source, model="small", **wrong)
