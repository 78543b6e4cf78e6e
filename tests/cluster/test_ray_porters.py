"""Porters on one machine whose raylets say that they are different hosts: nodes that join, and the fleet's death."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensoryard as ty

from .ray_head import RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

PIPELINE = f"{Path(__file__).with_name('plane_pipelines.py')}:shown"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A head node of its own, with one worker on whatever node has a `far` to spare."""
    with ray_head('--resources={"near": 1}') as head:
        entry: dict[str, Any] = {"task": "pixel_generation", "pipeline": PIPELINE, "options": {"work_s": 0}}
        models = [{"model": name, "resources": {name: 1}, "num_cpus": 0.1, **entry} for name in ("near", "far")]
        (head.folder / "near.yaml").write_text(json.dumps({"deployments": models[:1]}))
        (head.folder / "both.yaml").write_text(json.dumps({"deployments": models}))
        head.launch(str(head.folder / "near.yaml"))
        yield head


def ask(head: RayHead, expression: str) -> Any:
    """The value of an expression over the fleet's actor."""
    script = "import json, ray; ray.init(log_to_driver=False); "
    script += "fleet = ray.get_actor('fleet', namespace='tensoryard-default'); "
    script += f"print('value', json.dumps({expression}))"
    return json.loads(head.run(sys.executable, "-c", script).partition("value ")[2].splitlines()[0])


def hosts(head: RayHead) -> list[str]:
    """The hosts of the porters, a short name for this one."""
    return sorted(report["host"] for report in ask(head, "ray.get(fleet.porters.remote())"))


def test_a_node_that_joins_gets_a_porter(
    head: RayHead, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone a node needs none. With a second one each has one, and arrays get to its worker and back by them."""
    assert hosts(head) == []
    here = head.environment.get("TENSORYARD_HOST")
    head.environment["TENSORYARD_HOST"] = "other-host"
    head.add_node('--resources={"far": 1}')
    if here is None:
        del head.environment["TENSORYARD_HOST"]
    head.launch(str(head.folder / "both.yaml"))
    eventually(lambda: len(hosts(head)) == 2 and "other-host" in hosts(head), "each node has its porter")
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(head.runtime_folder))
    with ty.connect(head.launch("address").strip()) as client:
        eventually(lambda: client._connection._has_porter, "the client sees its porter")
        before = client.status().carried_bytes
        for name in ("near", "far"):
            image = client.empty((512, 1024), np.float32)
            image[:] = 4
            reply = client.submit(ty.PixelGenerationRequest(model=name, images=[image]))
            assert (reply.result(60).images[0] == 5).all()
        assert client.status().carried_bytes - before < 4000
    fetched = [report["fetched_bytes"] for report in ask(head, "ray.get(fleet.porters.remote())")]
    assert [sum(each.values()) for each in fetched] == [2 << 20, 2 << 20]


def test_the_fleets_death_leaves_the_porters(head: RayHead, eventually: Callable[..., None]) -> None:
    """A fleet that Ray makes anew finds the porters that are there, and looks after them."""
    before = {report["pid"] for report in ask(head, "ray.get(fleet.porters.remote())")}
    os.kill(ask(head, "ray.get(fleet.pid.remote())"), signal.SIGKILL)
    found: list[dict[str, Any]] = []

    def are_known() -> bool:
        code, output = head.run_code(
            sys.executable, "-c",
            "import json, ray; ray.init(log_to_driver=False); "
            "fleet = ray.get_actor('fleet', namespace='tensoryard-default'); "
            "print('value', json.dumps(ray.get(fleet.porters.remote())))",
        )  # fmt: skip
        found[:] = json.loads(output.partition("value ")[2].splitlines()[0]) if code == 0 else []
        return len(found) == 2

    eventually(are_known, "the new fleet knows the porters")
    assert {report["pid"] for report in found} == before


def test_down_ends_the_porters(head: RayHead, eventually: Callable[..., None]) -> None:
    """Nothing of ours is left on any node, and no socket."""
    head.launch("down")
    eventually(lambda: not head.processes(["PorterActor", "WorkerActor", "FleetActor"]), "all of them have ended")
    assert not list(head.runtime_folder.glob("porter-*"))
