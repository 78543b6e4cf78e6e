"""Images and words through real processes: pixels go by handle, the text is what transformers generates itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tensoryard as ty
from tensoryard import errors

from ..workers.text.hf_tiny import VISION, libraries, picture, theirs

pytestmark = pytest.mark.process

NEW = 16
#: Two of them, and where an image goes in a text.
PLACES = {"llava": "<image>", "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder of each tiny checkpoint, and the library's model."""
    libraries()
    pytest.importorskip("PIL", reason="the processors of transformers need Pillow")
    folders = {name: tmp_path_factory.mktemp(name) for name in PLACES}
    return {name: (folder, VISION[name](folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def yard(runtime_folder: Path, models: dict[str, tuple[Path, Any]]) -> Iterator[ty.Yard]:
    deployments = [
        ty.Deployment(
            model=name,
            task=ty.PipelineTask.TEXT_GENERATION,
            pipeline="tensoryard.workers.pipelines.hf:create",
            options={"model_dir": str(folder), "device": "cpu", "threads": 1, "max_images": 3},
            replicas=2 if name == "qwen2_vl" else 1,
            max_wait_ms=0.0,
        )
        for name, (folder, _) in models.items()
    ]
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    with yard.connect() as client:
        yield client


def messages(*images: Any) -> list[dict[str, Any]]:
    """A question about images, which lie in it."""
    parts = [part for image in images for part in ({"type": "image", "image": image}, {"type": "text", "text": "?"})]
    return [{"role": "user", "content": [{"type": "text", "text": "What is "}, *parts]}]


def by_itself(models: dict[str, tuple[Path, Any]], name: str, *images: npt.NDArray[np.uint8]) -> list[int]:
    """What the library generates for the same question."""
    folder, model = models[name]
    text = f"user:What is {''.join(PLACES[name] + '?' for _ in images)}assistant:"
    return theirs(model, folder, name, text, list(images), NEW)


@pytest.mark.parametrize("name", PLACES)
def test_pixels_go_by_handle(client: ty.Client, models: dict[str, tuple[Path, Any]], name: str) -> None:
    """Uncopied from empty(), copied once otherwise, hardly a byte through sockets; and the text is the library's."""
    plain = picture(1, 240, 320)
    lent = client.empty(plain.shape, np.uint8)
    lent[:] = plain
    wanted = by_itself(models, name, plain)
    for image, copies in ((lent, 0), (plain, 1)):
        reply = client.submit(
            ty.TextGenerationRequest(
                model_name=name,
                messages=[{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "image"},
                                                        {"type": "text", "text": "?"}]}],
                images=[image],
                sampling_params=ty.SamplingParams(temperature=0, max_new_tokens=NEW),
            ),
        )  # fmt: skip
        assert reply.result(60).tokens == wanted
        assert (reply.ledger.copies_in, reply.ledger.shared_bytes_in) == (copies, plain.nbytes)
    assert client.generate(messages(plain), model=name, temperature=0, max_new_tokens=NEW).tokens == wanted


@pytest.mark.parametrize("name", PLACES)
def test_images_of_all_sizes_streamed(client: ty.Client, models: dict[str, tuple[Path, Any]], name: str) -> None:
    """Small ones inside the message and large ones by handle, several in a chat, sync and async."""
    images = [picture(2, 30, 40), picture(3, 400, 300)]
    wanted = by_itself(models, name, *images)
    pieces = list(client.stream(messages(*images), model=name, temperature=0, max_new_tokens=NEW))
    assert [token for piece in pieces for token in piece.tokens] == wanted

    async def again() -> list[int]:
        async with await ty.connect_async(client.address) as other:
            return (await other.generate(messages(*images), model=name, temperature=0, max_new_tokens=NEW)).tokens

    assert asyncio.run(again()) == wanted


@pytest.mark.parametrize("name", PLACES)
def test_a_bad_image_costs_its_sender_only(client: ty.Client, models: dict[str, tuple[Path, Any]], name: str) -> None:
    """A wrong dtype, shape or number, among good requests that are under way."""
    bad = [
        (messages(np.zeros((200, 200, 3), np.float32)), "float32"),
        (messages(np.zeros((200, 200, 7), np.uint8)), "7 channels"),
        (messages(np.zeros(300_000, np.uint8)), "shape"),
        (messages(b"no image at all"), "image"),
        (messages(*[picture(9)] * 4), "4 images"),
    ]
    good = [picture(seed, 200, 200) for seed in range(len(bad))]
    how = {"temperature": 0, "max_new_tokens": NEW, "model": name}
    replies = []
    for image, (question, _) in zip(good, bad, strict=True):
        replies.append((client.submit(request(messages(image), how)), client.submit(request(question, how))))
    for image, (fine, failed), (_, named) in zip(good, replies, bad, strict=True):
        with pytest.raises(errors.InvalidRequest, match=named):
            failed.result(60)
        assert fine.result(60).tokens == by_itself(models, name, image)


def request(question: list[dict[str, Any]], how: dict[str, Any]) -> ty.TextGenerationRequest:
    from tensoryard.client.text import text_request

    fields = dict(how)
    return text_request(question, fields.pop("model"), fields)


def test_a_killed_worker_breaks_no_stream(client: ty.Client, eventually: Callable[..., None]) -> None:
    """With a worker killed in mid-stream, who asked about an image sees the text that it sees without."""
    how = {"model": "qwen2_vl", "temperature": 0.8, "seed": 5, "max_new_tokens": 120, "ignore_eos": True}
    questions = [request(messages(picture(seed, 240, 240)), how) for seed in range(4)]
    wanted = [client.submit(question).result(60).tokens for question in questions]
    streams = [iter(client.submit(request(messages(picture(seed, 240, 240)), how))) for seed in range(4)]
    began = [[next(stream) for _ in range(3)] for stream in streams]
    victim = max(workers_of(client, "qwen2_vl"), key=lambda worker: worker.in_flight)
    assert victim.in_flight
    os.kill(victim.pid, signal.SIGKILL)
    parts = [[*begin, *rest] for begin, rest in zip(began, streams, strict=True)]
    assert [[token for part in stream for token in part.tokens] for stream in parts] == wanted
    eventually(lambda: all(model.is_ready for model in client.status().models), "the killed one is replaced")


def workers_of(client: ty.Client, name: str) -> Sequence[Any]:
    return next(model.workers for model in client.status().models if model.model == name)


def test_memory_of_images_comes_back(client: ty.Client) -> None:
    """When the answers have come, no block of the client's pool is in use."""
    for seed in range(6):
        client.generate(messages(picture(seed, 300, 300)), model="llava", max_new_tokens=2)
    assert client._connection.pool.statistics().used_blocks == 0
