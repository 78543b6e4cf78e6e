"""However a request is given up, and wherever it is at that moment, it ends, and every block of memory comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tensoryard as ty

from .conftest import PIPELINES

pytestmark = pytest.mark.process

TASKS = {
    "embed": ty.PipelineTask.EMBEDDINGS_GENERATION,
    "paint": ty.PipelineTask.PIXEL_GENERATION,
    "speak": ty.PipelineTask.AUDIO_GENERATION,
}
#: The worker runs two of them, holds two more, and the rest waits in the coordinator.
COUNT, HELD = 7, 4
LARGE = np.ones((100, 1000), np.uint8)


@pytest.fixture(scope="module")
def yard() -> Iterator[ty.Yard]:
    """A worker for each task, whose requests never end by themselves."""
    deployments = [
        ty.Deployment(model=model, task=task, pipeline=f"{PIPELINES}:gate", max_ongoing_requests=HELD)
        for model, task in TASKS.items()
    ]
    quick = {"task": ty.PipelineTask.PIXEL_GENERATION, "pipeline": f"{PIPELINES}:plus_one", "replicas": 2}
    deployments.append(ty.Deployment(model="quick", **quick))
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)
    with ty.local(deployments, runtime="process", settings=settings) as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    """The client that gives up, or looks on."""
    with yard.connect() as client:
        yield client


def request_of(model: str, word: str = "") -> Any:
    """A request with a large array, where its task takes one."""
    options = {"word": word}
    match model:
        case "embed":
            return ty.EmbeddingsRequest(model=model, input=LARGE, options=options)
        case "paint" | "quick":
            return ty.PixelGenerationRequest(model=model, images=[LARGE], options=options)
        case _:
            return ty.AudioGenerationRequest(model=model, input="say", options=options)


def state(client: ty.Client, model: str) -> tuple[int, ...]:
    """What the worker of a model still has: requests begun, blocks of memory in use."""
    output = client.submit(request_of(model, "state")).result(60)
    for name in ("embeddings", "audio_data", "images"):
        if hasattr(output, name):
            return tuple(int(number) for number in np.ravel(getattr(output, name)))
    raise AssertionError(output)


def is_everywhere(client: ty.Client, model: str) -> bool:
    """Some run or wait in the worker, the others wait in the coordinator."""
    found = next(entry for entry in client.status().models if entry.model == model)
    return (sum(worker.in_flight for worker in found.workers), found.queued) == (HELD, COUNT - HELD)


def assert_nothing_is_left(looker: ty.Client, model: str, eventually: Callable[..., None]) -> None:
    """Coordinator and worker hold nothing of it any more."""
    eventually(lambda: looker.status().live_requests == 0, "no request is live")
    assert looker.status().kept_bytes == 0
    eventually(lambda: all(w.in_flight == 0 for m in looker.status().models for w in m.workers), "slots are free")
    eventually(lambda: state(looker, model) == (0, 0), f"the worker has let go of all: {state(looker, model)}")


def used(client: ty.Client) -> int:
    return client._connection.pool.statistics().used_blocks


@pytest.mark.parametrize("model", TASKS)
def test_cancelled_by_the_caller(client: ty.Client, model: str, eventually: Callable[..., None]) -> None:
    """`cancel`, from the last to the first: queued, waiting for its batch, running."""
    replies = [client.submit(request_of(model)) for _ in range(COUNT)]
    eventually(lambda: is_everywhere(client, model), "they are everywhere")
    for reply in reversed(replies):
        reply.cancel()
        reply.cancel()
    for reply in replies:
        with pytest.raises(ty.errors.RequestCancelled) as raised:
            reply.result(60)
        assert raised.value.story
    assert {reply.outcome for reply in replies} == {"cancelled"}
    assert_nothing_is_left(client, model, eventually)
    assert used(client) == 0


@pytest.mark.parametrize("model", TASKS)
def test_cancelled_in_an_event_loop(
    yard: ty.Yard, client: ty.Client, model: str, eventually: Callable[..., None]
) -> None:
    """The same, awaited; a cancelled await alone cancels nothing."""

    async def main() -> None:
        async with await ty.connect_async(yard.address) as mine:
            replies = [await mine.submit(request_of(model)) for _ in range(COUNT)]
            await asyncio.to_thread(eventually, lambda: is_everywhere(client, model), "they are everywhere")
            waiting = asyncio.ensure_future(replies[0].result())
            await asyncio.sleep(0)
            waiting.cancel()
            assert await asyncio.to_thread(is_everywhere, client, model)
            for reply in replies:
                reply.cancel()
            for reply in replies:
                with pytest.raises(ty.errors.RequestCancelled):
                    await reply.result(60)
            assert used(mine._client) == 0

    asyncio.run(main())
    assert_nothing_is_left(client, model, eventually)


@pytest.mark.parametrize("model", TASKS)
def test_expired(client: ty.Client, model: str, eventually: Callable[..., None]) -> None:
    """By its deadline."""
    replies = [client.submit(request_of(model), deadline_s=0.5) for _ in range(COUNT)]
    for reply in replies:
        with pytest.raises(ty.errors.DeadlineExpired):
            reply.result(60)
    assert {reply.outcome for reply in replies} == {"expired"}
    assert_nothing_is_left(client, model, eventually)
    assert used(client) == 0


@pytest.mark.parametrize("model", TASKS)
def test_its_client_leaves(yard: ty.Yard, client: ty.Client, model: str, eventually: Callable[..., None]) -> None:
    """With a goodbye."""
    with yard.connect() as leaver:
        replies = [leaver.submit(request_of(model)) for _ in range(COUNT)]
        eventually(lambda: is_everywhere(client, model), "they are everywhere")
    assert {reply.outcome for reply in replies} == {"cancelled"}
    assert_nothing_is_left(client, model, eventually)


@pytest.mark.case(20)
def test_cancel_races_completion(client: ty.Client, eventually: Callable[..., None]) -> None:
    """Each request ends once, answered or cancelled, and the memory of answers that came too late is used again."""
    replies = []
    for number in range(400):
        replies.append(client.submit(request_of("quick")))
        replies[-(number % 7) - 1].cancel()
    seen = Counter()
    for reply in replies:
        try:
            assert (reply.result(60).images[0] == 2).all()
        except ty.errors.RequestCancelled:
            pass
        seen[reply.outcome] += 1
    assert set(seen) <= {"finished", "cancelled"}
    assert sum(seen.values()) == 400
    del reply, replies
    assert_nothing_is_left(client, "quick", eventually)
    eventually(lambda: [state(client, "quick") for _ in range(8)] == [(0, 0)] * 8, "both workers have let go")
    assert used(client) == 0


LEAVER = """
import sys, time
import numpy as np
import tensoryard as ty

address, model, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
large = np.ones(100_000, np.uint8)
make = {
    "embed": lambda: ty.EmbeddingsRequest(model=model, input=large),
    "paint": lambda: ty.PixelGenerationRequest(model=model, images=[large]),
    "speak": lambda: ty.AudioGenerationRequest(model=model, input="say"),
}[model]
client = ty.connect(address)
replies = [client.submit(make()) for _ in range(count)]
time.sleep(1000)
"""


@pytest.mark.case(5)
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_its_client_is_gone(
    yard: ty.Yard, client: ty.Client, signal_number: int, eventually: Callable[..., None]
) -> None:
    """Without a word: killed, or stopped for longer than `liveness_s`."""
    processes = []
    try:
        for model in TASKS:
            command = [sys.executable, "-P", "-c", LEAVER, yard.address, model, str(COUNT)]
            processes.append(subprocess.Popen(command))
        for model in TASKS:
            eventually(lambda model=model: is_everywhere(client, model), "they are everywhere")
        for process in processes:
            os.kill(process.pid, signal_number)
        for model in TASKS:
            assert_nothing_is_left(client, model, eventually)
    finally:
        for process in processes:
            process.kill()
            process.wait(60)
