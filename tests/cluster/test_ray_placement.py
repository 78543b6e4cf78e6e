"""Workers on the nodes that they are meant for: two raylets, with GPUs, labels and resources as they were told."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import tensoryard as ty

from .conftest import PIPELINES
from .ray_head import LAUNCH, RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayHead]:
    """A head with 1 GPU in zone a, and a node with a disk in zone b."""
    with ray_head("--num-gpus=1", "--labels=zone=a") as head:
        head.add_node("--labels=zone=b", '--resources={"disk": 2}')
        yield head


def write(head: RayHead, **deployments: dict[str, object]) -> Path:
    """A deployment file: a model of each name."""
    common = {"task": "embeddings_generation", "pipeline": f"{PIPELINES}:moody", "num_cpus": 0.1}
    entries = [{"model": model, **common, **fields} for model, fields in deployments.items()]
    path = head.folder / "yard.yaml"
    path.write_bytes(msgspec.json.encode({"deployments": entries}))  # JSON is YAML too
    return path


def test_workers_lie_where_their_deployment_says(two_nodes: RayHead) -> None:
    """Spread over both, packed on one, by a label, by a resource, with a share of a GPU; and all of them serve."""
    file = write(
        two_nodes,
        spread={"replicas": 4, "placement": "SPREAD"},
        packed={"replicas": 3, "placement": "STRICT_PACK"},
        labelled={"replicas": 2, "node_labels": {"zone": "b"}},
        disk={"replicas": 2, "resources": {"disk": 1}},
        shares={"replicas": 2, "num_gpus": 0.5},
    )
    two_nodes.launch(str(file))
    try:
        places = two_nodes.places()
        by_model: dict[str, Counter[str]] = {}
        for worker, node in places.items():
            by_model.setdefault(worker.rpartition("-")[0], Counter())[node] += 1
        assert len(by_model["spread"]) == 2
        assert sorted(by_model["packed"].values()) == [3]
        assert by_model["labelled"] == by_model["disk"] != by_model["shares"]
        assert [sum(count.values()) for count in by_model.values()] == [4, 3, 2, 2, 2]
        with ty.connect(two_nodes.launch("address").strip()) as client:
            for model in by_model:
                assert (client.embed("four", model=model) == 4).all()
    finally:
        two_nodes.launch("down")


def test_what_cannot_be_placed_is_told_with_what_is_missing(
    two_nodes: RayHead, eventually: Callable[..., None]
) -> None:
    """`up` gives up waiting with the reason, `status` shows it, what has a place serves, and a change repairs it."""
    file = write(two_nodes, big={"num_gpus": 2}, two={"num_gpus": 1, "replicas": 2}, small={})
    arguments = [sys.executable, str(LAUNCH), str(file), "--ready-timeout", "15"]
    code, said = two_nodes.run_code(*arguments)
    try:
        assert code == 1
        big = "1 of 1 workers wait for a place: each needs 0.1 CPU, 2 GPU; the most that a node has is 1 GPU"
        assert big in said
        assert f"big: {big}" in two_nodes.launch("status")
        with ty.connect(two_nodes.launch("address").strip()) as client:
            told = lambda: {model.model: model.pending for model in client.status().models}
            two = "1 of 2 workers wait for a place: each needs 0.1 CPU, 1 GPU; every node that is large enough is taken"
            eventually(lambda: told()["two"].startswith(two), "the second GPU is missed")
            assert (client.embed("four", model="small") == 4).all()
            waiting = client.submit(ty.EmbeddingsRequest(model="big", input="four"))
            write(two_nodes, big={}, two={"num_gpus": 1}, small={})
            two_nodes.launch(str(file))
            assert (waiting.result(60).embeddings == 4).all()
            assert not any(model.pending for model in client.status().models)
    finally:
        two_nodes.launch("down")


def test_a_change_where_no_gpu_is_free_goes_one_by_one(two_nodes: RayHead) -> None:
    """The only GPU is taken by the old worker: it makes room, the new one takes its place, and no request fails."""
    file = write(two_nodes, only={"num_gpus": 1})
    two_nodes.launch(str(file))
    try:
        with ty.connect(two_nodes.launch("address").strip()) as client:
            write(two_nodes, only={"num_gpus": 1, "options": {"folder": "b"}})
            two_nodes.launch(str(file))
            assert (client.embed("four", model="only") == 4).all()
            assert [worker.name for worker in client.status().models[0].workers] == ["only-2"]
    finally:
        two_nodes.launch("down")
