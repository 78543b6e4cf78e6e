"""Streams between real processes: a reader that does not keep up costs nobody anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tensoryard as ty
from tensoryard import errors

from .conftest import PIPELINES

pytestmark = pytest.mark.process

WINDOW = 4
#: A chunk of this many samples goes by handle.
LARGE = 20_000


@pytest.fixture(scope="module")
def drip() -> Iterator[ty.Yard]:
    """One worker, which speaks in large chunks, two streams at a time."""
    deployment = ty.Deployment(
        model="drip",
        task=ty.PipelineTask.AUDIO_GENERATION,
        pipeline=f"{PIPELINES}:drip",
        options={"samples": LARGE},
        max_ongoing_requests=8,
        max_wait_ms=0.0,
    )
    settings = ty.Settings(stream_window_parts=WINDOW, heartbeat_s=0.2, liveness_s=10.0)
    with ty.local([deployment], runtime="process", settings=settings) as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(drip: ty.Yard) -> Iterator[ty.Client]:
    """A client of it."""
    with drip.connect() as client:
        yield client


def speak(client: ty.Client, text: str, **how: Any) -> ty.Reply:
    return client.submit(ty.AudioGenerationRequest(model="drip", input=text), **how)


def ask(client: ty.Client, text: str) -> int:
    """What the pipeline tells of itself."""
    return int(speak(client, text).result(60).audio_data[0])


def number(chunk: Any) -> int:
    assert (chunk.audio_data == chunk.audio_data[0]).all()
    return int(chunk.audio_data[0])


@pytest.mark.case(27)
def test_a_reader_that_does_not_keep_up_holds_up_nobody(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Of three streams on two places, one not read and one read slowly, the third runs through; memory has a bound."""
    never, slow = speak(client, "drip"), speak(client, "drip")
    chunks = iter(slow)
    assert [number(next(chunks)) for _ in range(3)] == [0, 1, 2]
    whole = speak(client, "drip:100").result(60)
    assert whole.audio_data.reshape(100, LARGE)[:, 0].tolist() == list(range(100))
    for reply, read in [(never, 0), (slow, 3)]:
        assert ask(client, f"steps:{reply.request_id}") <= read + WINDOW
    assert len(never._outputs) <= WINDOW
    assert [number(next(chunks)) for _ in range(100)] == list(range(3, 103))
    assert len(slow._outputs) <= 2 * WINDOW + 1
    for reply in (never, slow):
        reply.cancel()
        with pytest.raises(errors.RequestCancelled):
            reply.result(60)
    del whole, chunks, reply, never, slow
    eventually(lambda: (ask(client, "held"), ask(client, "memory")) == (0, 0), "the worker keeps nothing of them")


@pytest.mark.case(27)
def test_a_paused_stream_expires(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Its deadline runs on; what came before can be read, then comes the error."""
    reply = speak(client, "drip", deadline_s=1.0)
    eventually(lambda: reply.done, "it has ended")
    chunks = iter(reply)
    came = len(reply._outputs)
    assert [number(next(chunks)) for _ in range(came)] == list(range(WINDOW))[:came]
    with pytest.raises(errors.DeadlineExpired):
        next(chunks)
    eventually(lambda: ask(client, "held") == 0, "the worker keeps nothing of it")


def test_a_map_of_streams_waits_for_nobodys_turn(client: ty.Client) -> None:
    """What is collected does not pause while results before it are waited for."""
    requests = [ty.AudioGenerationRequest(model="drip", input="drip:20") for _ in range(6)]
    for output in client.map(requests, max_in_flight=6):
        assert output.audio_data.reshape(20, LARGE)[:, 0].tolist() == list(range(20))
