"""`Deployment`: its defaults, and that each bad value is an error that names the key and the model."""

from __future__ import annotations

import msgspec
import pytest

from tensoryard.errors import ConfigError
from tensoryard.proto.deployment import MAX_MODEL_CHARS, Deployment
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.wire import Ready

GOOD = {"model": "tiny", "task": PipelineTask.EMBEDDINGS_GENERATION, "pipeline": "mod:create"}
WHOLE = {
    "replicas": 0,
    "max_batch_size": 1,
    "max_ongoing_requests": 1,
    "max_queued": 1,
    "max_queued_bytes": 1,
    "pool_budget_bytes": 1 << 20,
}
FINITE = {"num_gpus": 0, "num_cpus": 0, "max_wait_ms": 0, "hang_limit_s": 0.1}
OPTIONAL = {"max_batch_size", "max_ongoing_requests", "pool_budget_bytes"}
NAN, INF = float("nan"), float("inf")


def made(**changes):
    return Deployment(**{**GOOD, **changes})


def test_defaults():
    """One worker with one CPU and no GPU, named after its model; dicts are not shared."""
    one = made()
    assert (one.name, one.replicas, one.num_gpus, one.num_cpus) == ("tiny", 1, 0, 1)
    assert (one.max_batch_size, one.max_ongoing_requests, one.pool_budget_bytes) == (None, None, None)
    assert one.options == {} == one.resources
    assert one.options is not made().options


def test_frozen():
    """No field can be set afterwards."""
    with pytest.raises(AttributeError):
        made().replicas = 2


@pytest.mark.parametrize(("key", "least"), [*WHOLE.items(), *FINITE.items()])
def test_the_least_value_is_allowed(key, least):
    """Each number may be as small as its limit."""
    assert getattr(made(**{key: least}), key) == least


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key, least in WHOLE.items() for value in (least - 1, 1.5, True, "1", NAN, INF, 2**63)),
        *((key, value) for key, least in FINITE.items() for value in (least - 0.01, 2e9, INF, NAN, True, "1", None)),
        *((key, None) for key in WHOLE if key not in OPTIONAL),
    ],
    ids=repr,
)
def test_bad_numbers(key, value):
    """A number that is out of bounds, not whole where it counts, NaN or a bool names its key and the model."""
    least = {**WHOLE, **FINITE}[key]
    kind = "whole number of at least" if key in WHOLE else "number from"
    with pytest.raises(ConfigError, match=f"`{key}` of model 'tiny' must be a {kind} {least}"):
        made(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", PipelineTask.UNDEFINED),
        ("task", "embeddings"),
        ("task", None),
        ("pipeline", ""),
        ("pipeline", None),
        ("pipeline", print),
        ("options", None),
        ("options", [1]),
        ("options", {1: 2}),
        ("resources", None),
        ("resources", {"disk": -1}),
        ("resources", {"disk": NAN}),
        ("resources", {"disk": INF}),
        ("resources", {"disk": "much"}),
        ("resources", {"disk": True}),
    ],
    ids=repr,
)
def test_other_bad_values(key, value):
    """A value of a wrong type, wherever it comes from, is a ConfigError that names its key and the model."""
    with pytest.raises(ConfigError, match=f"`{key}` of model 'tiny' must be"):
        made(**{key: value})


@pytest.mark.parametrize("model", ["", "m" * (MAX_MODEL_CHARS + 1), None, 5, b"tiny"], ids=repr)
def test_bad_models(model):
    """A model's name is a text of 1 to 128 characters; the error shows a short piece of what came."""
    with pytest.raises(ConfigError, match="`model` must be a name of 1 to 128 characters") as caught:
        made(model=model)
    assert len(str(caught.value)) < 200


def test_the_task_is_one_that_is_served():
    """A task without pipelines is refused with the list of those that have them."""
    with pytest.raises(ConfigError, match=r"embeddings_generation.*pixel_generation"):
        made(task=PipelineTask.SPEECH_TOKEN_GENERATION)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"replicas": "2"}, r"\$\.replicas"),
        ({"replicas": True}, r"\$\.replicas"),
        ({"replicas": 1.5}, r"\$\.replicas"),
        ({"num_gpus": "all"}, r"\$\.num_gpus"),
        ({"task": "cooking"}, "cooking"),
        ({"options": []}, r"\$\.options"),
        ({"resources": {"disk": "much"}}, r"\$\.resources"),
        ({"replicaz": 2}, "replicaz"),
        ({"model": None}, r"\$\.model"),
    ],
)
def test_wrong_types_from_a_file(changes, where):
    """What a file says wrongly is an error of msgspec that names the key."""
    mapping = {"model": "tiny", "task": "embeddings_generation", "pipeline": "mod:create", **changes}
    with pytest.raises(msgspec.ValidationError, match=where):
        msgspec.convert(mapping, Deployment)


def test_bad_values_from_a_file():
    """A value that has the type and is out of bounds is an error from a file too, with our own text."""
    mapping = {"model": "tiny", "task": "embeddings_generation", "pipeline": "mod:create", "max_wait_ms": -1}
    with pytest.raises(msgspec.ValidationError, match="`max_wait_ms` of model 'tiny'") as caught:
        msgspec.convert(mapping, Deployment)
    assert isinstance(caught.value.__cause__, ConfigError)


def test_a_missing_key_is_named():
    """Each key without a default must be there."""
    for key in GOOD:
        mapping = {name: value for name, value in GOOD.items() if name != key}
        with pytest.raises(msgspec.ValidationError, match=key):
            msgspec.convert(mapping, Deployment)


def test_round_trips_as_a_mapping():
    """A deployment comes back equal from the plain mapping it is written as."""
    one = made(options={"width": 8}, replicas=3, num_gpus=0.5, resources={"disk": 2.0}, max_batch_size=4)
    assert msgspec.convert(msgspec.to_builtins(one), Deployment) == one
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Deployment) == one


def test_what_a_worker_announces_of_it_is_allowed_on_the_wire():
    """The longest name and the largest numbers of a deployment fit the envelope that announces them."""
    one = made(model="m" * MAX_MODEL_CHARS, max_queued=2**63 - 1, max_queued_bytes=2**63 - 1, hang_limit_s=1e9)
    ready = Ready(
        model=one.model,
        task=one.task.value,
        deployment=one.name,
        credits=1,
        hang_limit_s=one.hang_limit_s,
        max_queued=one.max_queued,
        max_queued_bytes=one.max_queued_bytes,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ready), type=Ready) == ready
