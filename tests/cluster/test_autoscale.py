"""The number of workers follows the load, on real processes: up, down to none, and up again, with no request lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import tensoryard as ty

from .conftest import small_deployments

pytestmark = pytest.mark.process

SETTINGS = ty.Settings(heartbeat_s=0.1, liveness_s=60.0)


def test_workers_come_and_go_with_the_load(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """None at first; a request that waits starts one; more that wait start three; when nothing is asked all leave."""
    gate = tmp_path / "gate"
    policy = ty.Autoscale(
        min=0, max=3, target_ongoing_requests=2.0, upscale_delay_s=0.2, downscale_delay_s=1.0, tolerance=0.0
    )
    deployment = msgspec.structs.replace(small_deployments()[1], replicas=policy)
    with ty.local([deployment], runtime="process", settings=SETTINGS) as yard, yard.connect() as client:
        yard.wait_ready()
        serving = lambda: [worker.name for worker in client.status().models[0].workers]
        assert serving() == []
        assert (client.embed("four", model="moody") == 4).all()
        assert serving() == ["moody-1"]
        held = [client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}")) for _ in range(20)]
        eventually(lambda: len(serving()) == 3, "three serve")
        eventually(lambda: client.status().models[0].is_ready, "and they are as many as wanted")
        gate.touch()
        assert all(reply.result(60).embeddings.shape == (1, 4) for reply in held)
        eventually(lambda: serving() == [], "none is left when nothing is asked")
        assert client.status().models[0].replicas == 0
        assert (client.embed("four", model="moody") == 4).all()
        assert client.status().outcomes == {"finished": 22}
