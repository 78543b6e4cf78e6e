"""Bad input gets a clear error and costs no one else anything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.links import make_peer
from tensoryard.proto import wire

from ..scripted import has_input

pytestmark = pytest.mark.process

PIPELINES = Path(__file__).with_name("small_pipelines.py")
LIMIT = 256 << 20


def _text(text: str) -> ty.EmbeddingsRequest:
    return ty.EmbeddingsRequest(model="moody", input=text)


def _good(client: ty.Client) -> None:
    assert (client.embed("four", model="moody") == 4).all()


def test_unknown_model(client: ty.Client) -> None:
    """A model that nobody serves is refused with the names of those that are."""
    with pytest.raises(errors.UnknownModel, match=r"'nobody'.*\['moody', 'plus-one'\]"):
        client.embed("x", model="nobody")


def test_wrong_task(client: ty.Client) -> None:
    """A model of another task is refused with both tasks."""
    with pytest.raises(errors.WrongTask, match=r"pixel_generation.*embeddings_generation"):
        client.embed("x", model="plus-one")


def test_no_request(client: ty.Client) -> None:
    """An object that is no request is refused with what would be one."""
    with pytest.raises(errors.InvalidRequest, match="EmbeddingsRequest"):
        client.submit({"model": "moody"})


@pytest.mark.case(30)
@pytest.mark.parametrize(
    "array",
    [np.array([{"a": 1}], object), np.zeros(2, [("x", "f4")])],
    ids=["object dtype", "structured dtype"],
)
def test_arrays_that_cannot_travel(client: ty.Client, array: np.ndarray) -> None:
    """Object and structured arrays are refused where they are sent, and leave nothing in the pool."""
    with pytest.raises(errors.UnsupportedArray, match="dtype"):
        client.submit(ty.PixelGenerationRequest(model="plus-one", images=[np.zeros((300, 300)), array]))
    assert client._connection.pool.statistics().used_blocks == 0


def test_wrong_kind_of_input(client: ty.Client) -> None:
    """An input of no known kind is refused with what is allowed and what came."""
    with pytest.raises(errors.InvalidRequest, match=r"a text, a list of texts.*got a list of float"):
        ty.EmbeddingsRequest(model="moody", input=[1.5])


def test_oversize_message(client: ty.Client) -> None:
    """A message over the coordinator's limit is refused before it is sent, with the limit and what to do."""
    with pytest.raises(errors.MessageTooLarge, match=rf"{LIMIT} per frame.*arrays: those go by handle"):
        client.submit(ty.EmbeddingsRequest(model="moody", input="x", options={"text": "x" * (LIMIT + 1)}))
    _good(client)


def test_pipeline_that_raises_fails_its_batch(client: ty.Client) -> None:
    """What a pipeline raises reaches the caller with its type, text and place; the worker goes on."""
    with pytest.raises(errors.PipelineError, match=r"RuntimeError: the whole batch is lost \(at .*small_pipelines.py:"):
        client.submit(_text("raise")).result(60)
    _good(client)


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fail", "ValueError: this one alone"),
        ("wrong", "answered a str.*EmbeddingsGenerationOutput"),
        ("nothing", "no entry for this request"),
        ("objects", "dtype object cannot travel"),
    ],
)
def test_one_bad_item_fails_alone(client: ty.Client, text: str, told: str) -> None:
    """One request's failure inside a batch leaves the others of the batch alone."""
    good = [client.submit(_text("good")) for _ in range(7)]
    bad = client.submit(_text(text))
    good += [client.submit(_text("good")) for _ in range(8)]
    with pytest.raises(errors.TensoryardError, match=told):
        bad.result(60)
    assert all((reply.result(60).embeddings == 4).all() for reply in good)


def test_error_tells_the_story(client: ty.Client) -> None:
    """A failed request's error names the request and carries what the coordinator saw of it."""
    reply = client.submit(_text("fail"))
    with pytest.raises(errors.PipelineError) as caught:
        reply.result(60)
    assert caught.value.request_id == str(reply.request_id)
    assert [re.sub(r"\+[\d.]+s ", "", line) for line in caught.value.story[:1]] == ["accepted"]
    assert client.story(reply.request_id)[-1].endswith("failed")


class _Stranger:
    """A peer that says what it likes."""

    def __init__(self, address: str) -> None:
        self._link = make_peer(address)

    def ask(self, *frames: bytes) -> object:
        """Send frames and decode the next message that is no heartbeat."""
        self._link.send(list(frames))
        while has_input(self._link, 30_000):
            received = self._link.receive()
            assert received is not None
            message = wire.decode(wire.TO_CLIENT, received[0])
            if not isinstance(message, wire.Heartbeat):
                return message
        raise AssertionError("no answer")

    def close(self) -> None:
        self._link.close()


@pytest.fixture
def stranger(shared_yard: ty.Yard) -> _Stranger:
    peer = _Stranger(shared_yard.address)
    yield peer
    peer.close()


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"GET / HTTP/1.1"], [os.urandom(1000)], [b"\x93\xa6SUBMIT\x01\x02"], [b"\xdd\xff\xff\xff\xff"]],
    ids=["empty", "http", "random", "half a submit", "an array of 4 billion"],
)
def test_garbage_on_the_socket(client: ty.Client, stranger: _Stranger, frames: list[bytes]) -> None:
    """Bytes that are no message are answered with REFUSED, and everybody else is served as before."""
    answer = stranger.ask(*frames)
    assert isinstance(answer, wire.Refused)
    assert "not a message of wire version 1" in answer.text
    _good(client)


def test_too_large_a_frame_ends_only_its_sender(client: ty.Client, stranger: _Stranger) -> None:
    """A frame over the limit is never taken into the coordinator's memory, and everybody else is served as before."""
    stranger._link.send([bytes(LIMIT + 1)])
    _good(client)


@pytest.mark.case(28)
def test_wrong_protocol_version(client: ty.Client, stranger: _Stranger) -> None:
    """A peer of another version is refused with both versions named."""
    hello = wire.Hello(version=99, role="client", name="newer")
    answer = stranger.ask(wire.encode(hello))
    assert isinstance(answer, wire.Refused)
    assert answer.code == "version_mismatch"
    assert "99" in answer.text
    assert str(wire.WIRE_VERSION) in answer.text
    _good(client)


@pytest.mark.case(8)
def test_a_forged_handle_fails_its_request_alone(client: ty.Client) -> None:
    """A handle that names no memory of ours fails the request that carries it, whatever it points at."""
    reply = client.submit(ty.PixelGenerationRequest(model="plus-one", images=[np.zeros((512, 512))]))
    reply.result(60)
    entry = client.submit(_text("good"))
    entry.result(60)
    stranger = _Stranger(client.address)
    try:
        assert isinstance(stranger.ask(wire.encode(wire.Hello(version=1, role="client", name="forger"))), wire.Welcome)
        body = _body_with_handle("0123456789abcdef.1")
        submit = wire.Submit(request_id="forged", task="pixel_generation", model="plus-one")
        answer = stranger.ask(wire.encode(submit), body)
        assert isinstance(answer, wire.Error)
        assert answer.code in ("segment_gone", "forged_handle")
    finally:
        stranger.close()
    _good(client)


def _body_with_handle(name: str) -> bytes:
    import msgpack

    from tensoryard.shm import host_name

    handle = msgpack.ExtType(2, msgpack.packb([name, [4], "<f4", 4096, 1, host_name()]))
    return msgpack.packb({"request_id": "forged", "model": "plus-one", "images": [handle]})


def test_a_factory_that_fails_is_reported_not_restarted_for_ever(eventually: Callable[..., None]) -> None:
    """After three failed starts the deployment is unhealthy: requests fail with the traceback, others are served."""
    deployments = [
        ty.Deployment(
            model="broken",
            task=ty.PipelineTask.EMBEDDINGS_GENERATION,
            pipeline=f"{PIPELINES}:broken",
            replicas=1,
        ),
        ty.Deployment(
            model="moody",
            task=ty.PipelineTask.EMBEDDINGS_GENERATION,
            pipeline=f"{PIPELINES}:moody",
        ),
    ]
    with ty.local(deployments, runtime="process") as yard, yard.connect() as client:
        waiting = client.submit(ty.EmbeddingsRequest(model="broken", input="x"))
        with pytest.raises(errors.DeploymentUnhealthy, match=r"(?s)Traceback.*weights are not where they should be"):
            waiting.result(60)
        with pytest.raises(errors.DeploymentUnhealthy, match="3 workers in a row failed to start"):
            yard.wait_ready()
        with pytest.raises(errors.DeploymentUnhealthy):
            client.embed("x", model="broken")
        _good(client)
        model = next(model for model in client.status().models if model.model == "broken")
        assert "Traceback" in model.unhealthy
        assert model.workers == []


def test_two_deployments_of_one_model() -> None:
    """One model has one deployment."""
    deployment = ty.Deployment(model="m", task=ty.PipelineTask.EMBEDDINGS_GENERATION, pipeline="minilm")
    with pytest.raises(errors.ConfigError, match="more than one deployment serves model m"):
        ty.local([deployment, deployment])
