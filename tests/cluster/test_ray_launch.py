"""A detached cluster on a running Ray: launched, used, changed under load, hurt, found, and ended without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensoryard as ty
from tensoryard.errors import NotConnected

from .conftest import PIPELINES
from .load import Load
from .ray_head import LAUNCH, RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

YARD = """
[[deployment]]
model = "moody"
task = "embeddings_generation"
pipeline = "{pipelines}:moody"
replicas = {replicas}
num_cpus = 0.1
options = {{ folder = "{folder}" }}
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A Ray head node."""
    with ray_head() as head:
        yield head


def write(head: RayHead, replicas: int = 2, folder: str = "a") -> Path:
    path = head.folder / "yard.toml"
    path.write_text(YARD.format(pipelines=PIPELINES, replicas=replicas, folder=folder))
    return path


def names(client: ty.Client) -> set[str]:
    return {worker.name for model in client.status().models for worker in model.workers}


def asked_of_the_autoscaler(head: RayHead) -> list[dict[str, float]]:
    """What `request_resources` has asked for last."""
    script = "import ray; from ray.experimental import internal_kv as kv; ray.init(log_to_driver=False); "
    script += "print('asked', (kv._internal_kv_get('autoscaler_resource_request') or b'[]').decode())"
    said = head.run(sys.executable, "-c", script)
    return json.loads(said.partition("asked ")[2].splitlines()[0])


def test_a_cluster_is_launched_changed_hurt_and_ended(head: RayHead, eventually: Callable[..., None]) -> None:
    """Under one load without a pause: launch, launch again with other options and numbers, kill -9 of fleet and
    coordinator; every request is answered, right and once; and `down` leaves no actor and no process."""
    file, addresses = write(head), head.folder / "address"
    said = head.launch(str(file), "--address-file", str(addresses))
    assert "starting cluster 'default' on Ray: moody x 2" in said
    with ty.connect(f"file://{addresses}") as client, Load(client) as load:
        assert names(client) == {"moody-1", "moody-2"}

        write(head, replicas=3, folder="b")
        assert "changing cluster 'default'" in head.launch(str(file))
        assert names(client).isdisjoint({"moody-1", "moody-2"})
        assert client.status().models[0].replicas == 3
        assert "ready" in head.launch("status")
        assert head.launch("address").strip() == addresses.read_text().split()[0]
        assert addresses.stat().st_mode & 0o777 == 0o600

        assert asked_of_the_autoscaler(head) == [{"CPU": 0.1}] * 3
        before = names(client)
        head.launch(str(file))
        assert names(client) == before
        head.launch(str(file), "--restart")
        assert names(client).isdisjoint(before)

        [fleet] = head.processes(["ray::FleetActor"])
        os.kill(fleet, signal.SIGKILL)
        eventually(lambda: client.status().models and "moody-1.1" in names(client), "Ray has made the fleet anew")
        eventually(lambda: all(model.is_ready for model in client.status().models), "it has its workers")
        assert client.status().models[0].replicas == 3

        epoch = client.status().epoch
        [coordinator] = head.processes(["ray::CoordinatorActor"])
        os.kill(coordinator, signal.SIGKILL)
        eventually(lambda: client.status().epoch != epoch, "Ray has made the coordinator anew")
        eventually(lambda: all(model.is_ready for model in client.status().models), "its workers have joined")
        answered = load.answered
        eventually(lambda: load.answered > answered + 10, "requests are answered")
    assert "has ended" in head.launch("down")
    words = ["CoordinatorActor", "FleetActor", "WorkerActor"]
    eventually(lambda: not head.processes(words), "no process is left")
    assert asked_of_the_autoscaler(head) == []
    assert list(head.runtime_folder.glob("default*")) == []
    with pytest.raises(AssertionError, match="no cluster named 'default'"):
        head.launch("address")


def test_a_change_that_cannot_start_leaves_the_old_one_serving(head: RayHead) -> None:
    """The traceback is told and the exit code says so; requests go on being answered by what ran before."""
    file = write(head, replicas=1)
    head.launch(str(file), "--name", "keeps")
    try:
        address = head.launch("address", "--name", "keeps").strip()
        with ty.connect(address) as client:
            file.write_text(file.read_text().replace(":moody", ":broken").replace("options", "#"))
            code, said = head.run_code(sys.executable, str(LAUNCH), str(file), "--name", "keeps")
            assert (code, "the weights are not where they should be" in said) == (1, True), said
            assert (client.embed("four", model="moody") == 4).all()
            assert names(client) == {"moody-1"}
            write(head, replicas=1)
            head.launch(str(file), "--name", "keeps")
            assert client.status().models[0].unhealthy == ""
    finally:
        head.launch("down", "--name", "keeps")


def test_staying_ends_the_cluster_with_its_launcher(head: RayHead, eventually: Callable[..., None]) -> None:
    """With --stay the launcher waits; SIGTERM shuts the cluster down, and nothing of it is left."""
    file = write(head, replicas=1)
    with (head.folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCH), str(file), "--name", "stays", "--stay"],
            env=head.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        eventually(lambda: "staying" in Path(log.name).read_text() or process.poll() is not None, "it stays")
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0, Path(log.name).read_text()
    assert "has ended" in Path(log.name).read_text()
    code, said = head.run_code(sys.executable, str(LAUNCH), "address", "--name", "stays")
    assert (code, "no cluster named 'stays'" in said) == (1, True)


def test_an_address_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Named, with the reason."""
    with pytest.raises(NotConnected, match=r"the address file .* cannot be read"):
        ty.connect(f"file://{tmp_path}/none")
