"""A node that Ray drains, as it does before a machine is taken away: its workers are replaced before it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

import tensoryard as ty

from .conftest import PIPELINES
from .ray_head import RAY, RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[RayHead]:
    """A head, and two nodes with room for one worker each."""
    with ray_head() as head:
        head.add_node('--resources={"room": 1}')
        head.add_node('--resources={"room": 1}')
        yield head


def test_workers_leave_a_node_before_it_goes(three_nodes: RayHead, eventually: Callable[..., None]) -> None:
    """Under load no request fails, and the worker that serves afterwards is on the other node."""
    entry = {
        "model": "moved",
        "task": "embeddings_generation",
        "pipeline": f"{PIPELINES}:moody",
        "resources": {"room": 1},
    }
    file = three_nodes.folder / "yard.yaml"
    file.write_bytes(msgspec.json.encode({"deployments": [entry]}))
    three_nodes.launch(str(file))
    [(worker, node)] = three_nodes.places().items()
    done, answers = threading.Event(), list[float]()
    with ty.connect(three_nodes.launch("address").strip()) as client:

        def ask() -> None:
            while not done.is_set():
                answers.append(float(client.embed("four", model="moved")[0, 0]))

        load = threading.Thread(target=ask)
        load.start()
        drain = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "test",
            "--deadline-remaining-seconds",
            "90",
        ]
        three_nodes.run(str(RAY), "drain-node", f"--address={three_nodes.address}", "--node-id", node, *drain)
        eventually(
            lambda: node not in three_nodes.places().values() and three_nodes.places(), "another has its place", 90
        )
        before = len(answers)
        eventually(lambda: len(answers) > before + 20, "the other serves")
        done.set()
        load.join()
        assert set(answers) == {4.0}
        assert client.status().outcomes["finished"] == len(answers)
    assert worker not in three_nodes.places()
    three_nodes.launch("down")
