"""The same cluster in Ray actors: placement, replacement, an existing Ray, and a clean end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors

from .conftest import PIPELINES, real_deployments, small_deployments
from .test_faults import kill_one_worker_of_each_model, run_mixed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_yard() -> Iterator[ty.Yard]:
    """The three real pipelines and a small one, in a local Ray cluster."""
    with ty.local([*real_deployments(), *small_deployments(replicas=1)], runtime="ray") as yard:
        yard.wait_ready()
        yield yard


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
    )
    with (
        ty.local([broken], runtime="ray") as yard,
        pytest.raises(errors.DeploymentUnhealthy, match="weights are not where they should be"),
    ):
        yard.wait_ready()
