"""The same cluster in Ray actors: placement, replacement, an existing Ray, and a clean end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.faults import Orders

from . import matrix
from .conftest import PIPELINES, real_deployments, small_deployments
from .matrix import armed
from .test_faults import kill_one_worker_of_each_model, run_mixed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orders]:
    """What Ray is started with, so that its actors die where they are told."""
    with armed(tmp_path_factory.mktemp("orders")) as orders:
        yield orders


@pytest.fixture(scope="module")
def ray_yard(orders: Orders) -> Iterator[ty.Yard]:
    """The three real pipelines and a small one, in a local Ray cluster."""
    with ty.local([*real_deployments(), *small_deployments(replicas=1)], runtime="ray") as yard:
        yard.wait_ready()
        yield yard


@pytest.mark.case(2)
def test_real_requests_survive_killed_actors(ray_yard: ty.Yard, eventually: Callable[..., None]) -> None:
    """300 mixed requests, a worker actor of each model killed in the middle: 300 right answers, each request once."""
    with ray_yard.connect() as client:
        before = client.status().outcomes.get("finished", 0)
        wrong, answered = run_mixed(client, 300, lambda: kill_one_worker_of_each_model(client))
        assert not wrong
        assert answered == 300
        assert client.status().outcomes == {"finished": before + 300}
        eventually(lambda: all(model.is_ready for model in client.status().models), "the killed actors are replaced")


def test_64_mib_travel_by_handle_between_actors(ray_yard: ty.Yard) -> None:
    """Requests never pass through Ray: 64 MiB there and back with under 2 KiB through sockets and no copy."""
    with ray_yard.connect() as client:
        image = client.empty((4096, 4096), np.float32)
        image[:] = 5
        reply = client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image]))
        assert (reply.result(100).images[0] == 6).all()
        assert reply.ledger.socket_bytes < 2048
        assert (reply.ledger.copies_in, reply.ledger.copies_out) == (0, 0)


def test_a_killed_coordinator_actor_is_made_anew(ray_yard: ty.Yard, eventually: Callable[..., None]) -> None:
    """Ray restarts a killed coordinator at the same address; clients and workers join it by themselves."""
    import ray

    with ray_yard.connect() as client:
        epoch = client.status().epoch
        os.kill(ray.get(ray_yard._runtime.cluster.coordinator.pid.remote()), signal.SIGKILL)
        replies = [client.submit(ty.EmbeddingsRequest(model="moody", input="four")) for _ in range(20)]
        assert all((reply.result(100).embeddings == 4).all() for reply in replies)
        assert client.status().epoch != epoch
        eventually(lambda: all(model.is_ready for model in client.status().models), "every worker has joined")


@pytest.fixture(scope="module")
def matrix_cluster(
    ray_yard: ty.Yard, orders: Orders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[matrix.Cluster]:
    """The cluster of the fault matrix, as actors."""
    small = [msgspec.structs.replace(deployment, num_cpus=0.1) for deployment in matrix.deployments()]
    with (
        ty.local(small, runtime="ray", settings=matrix.SETTINGS) as yard,
        contextlib.closing(matrix.Cluster(yard, orders, tmp_path_factory.mktemp("clients"))) as cluster,
    ):
        cluster.warm_up()
        yield cluster


@pytest.mark.case(2, 3, 5, 15, 17)
@pytest.mark.parametrize(
    "cell",
    [
        matrix.Cell("worker", "worker.before_outputs", "kill", "handle"),
        matrix.Cell("worker", "worker.inside", "stop", "stream", 3),
        matrix.Cell("coordinator", "coordinator.on_outputs", "kill", "handle"),
        matrix.Cell("coordinator", "coordinator.after_request", "stop", "small"),
        matrix.Cell("worker", "shm.allocated", "kill", "stream", 3),
        matrix.Cell("coordinator", "coordinator.before_final", "kill", "stream"),
        matrix.Cell("client", "client.on_final", "kill", "handle"),
    ],
    ids=str,
)
def test_every_request_survives(matrix_cluster: matrix.Cluster, cell: matrix.Cell) -> None:
    """Cells of the fault matrix (`test_matrix.py`), whose processes are Ray's."""
    matrix_cluster.run(cell)


@pytest.mark.case(15)
def test_a_coordinator_killed_under_load_is_made_anew(ray_yard: ty.Yard, eventually: Callable[..., None]) -> None:
    """kill -9 of the coordinator's actor, twice, with 48 requests under way: each of 300 has one right answer."""
    import ray

    again: list[str] = []
    with matrix.tapped(ray_yard.address, again) as client:
        for _ in range(2):
            coordinator = ray.get(ray_yard._runtime.cluster.coordinator.pid.remote())
            wrong, answered = run_mixed(client, 150, lambda pid=coordinator: os.kill(pid, signal.SIGKILL))
            assert (wrong, answered) == ([], 150)
            eventually(
                lambda: ray.get(ray_yard._runtime.cluster.coordinator.pid.remote()) != coordinator, "there is a new one"
            )
        assert not again, "a request was answered twice"
        eventually(lambda: all(model.is_ready for model in client.status().models), "every worker has joined")


@pytest.mark.case(14)
def test_a_second_cluster_uses_the_ray_that_is_there(ray_yard: ty.Yard) -> None:
    """`local` in a process connected to Ray starts its actors there, beside others, and leaves Ray running."""
    import ray

    few = [msgspec.structs.replace(deployment, num_cpus=0.1) for deployment in small_deployments(replicas=1)]
    with ty.local(few, runtime="ray") as second, second.connect() as client:
        assert (client.embed("four", model="moody") == 4).all()
    assert ray.is_initialized()
    with ray_yard.connect() as client:
        assert (client.embed("four", model="moody") == 4).all()


def test_a_factory_that_fails_in_an_actor_is_reported(ray_yard: ty.Yard) -> None:
    """A deployment that cannot start is unhealthy under Ray too, with its traceback."""
    broken = ty.Deployment(
        model="broken",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{PIPELINES}:broken",
        num_cpus=0.1,
    )
    with (
        ty.local([broken], runtime="ray") as yard,
        pytest.raises(errors.DeploymentUnhealthy, match="weights are not where they should be"),
    ):
        yard.wait_ready()
