"""Workers on another host than their client, and no porter anywhere: arrays go in messages, slower and never broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensoryard as ty
from tensoryard.workers.launchers import ProcessLauncher

pytestmark = pytest.mark.process


@pytest.fixture
def yard(runtime_folder: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[ty.Yard]:
    """A cluster whose coordinator is on this host, and whose workers say that they are on another."""
    usual = ProcessLauncher.launch

    def elsewhere(launcher: ProcessLauncher, *args: Any) -> None:
        launcher._environment["TENSORYARD_HOST"] = "another-host"
        usual(launcher, *args)

    monkeypatch.setattr(ProcessLauncher, "launch", elsewhere)
    deployment = ty.Deployment(
        model="shown",
        task=ty.PipelineTask.PIXEL_GENERATION,
        pipeline=f"{Path(__file__).with_name('plane_pipelines.py')}:shown",
        options={"work_s": 0},
    )
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.mark.case(34)
def test_arrays_go_in_messages_where_nobody_reaches_them(yard: ty.Yard) -> None:
    """The first request is sent by handle and again with its array; others of its model go along from the start. All
    answers are right, and come in messages; the client's memory is its own again."""
    with yard.connect() as client:
        image = client.empty((1024, 1024), np.float32)
        image[:] = 6
        assert {worker.host for model in client.status().models for worker in model.workers} == {"another-host"}
        for _ in range(3):
            reply = client.submit(ty.PixelGenerationRequest(model="shown", images=[image]))
            assert (reply.result(60).images[0] == 7).all()
            assert (reply.ledger.shared_bytes_in, reply.ledger.shared_bytes_out) == (0, 0)
        assert client.status().carried_bytes > 6 * image.nbytes
        # The first one's first try has failed, and no other.
        assert client.status().outcomes == {"failed": 1, "finished": 3}
        assert client._connection.pool.statistics().used_blocks == 1
