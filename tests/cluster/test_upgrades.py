"""Workers of a newer package at an older coordinator: they join, or are refused with both versions named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.proto import wire

pytestmark = pytest.mark.process

ROOT = Path(ty.__file__).resolve().parent
#: Answers with the version that the worker's package says it is.
PIPELINE = """
import numpy as np
import tensoryard as ty
from tensoryard.version import __version__

class Version(ty.Pipeline):
    max_batch_size = 8

    def execute(self, inputs):
        number = float(__version__.replace("+", ".").split(".")[0])
        told = np.full((1, 1), number, np.float32)
        return {rid: ty.EmbeddingsGenerationOutput(embeddings=told) for rid in inputs.batch}

    def release(self, request_id):
        pass

def create(**options):
    return Version()
"""


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes version 9 of this package, changed as told, the one that processes started from now on run.

    Those find it in a folder that they have been told of from the beginning.
    """
    released = tmp_path / "release"
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(released), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )

    def make(**changes: tuple[str, str]) -> None:
        folder = tmp_path / "release-in-work"
        copy = folder / "tensoryard"
        names = [path for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
        for path in names:
            if path.is_dir() and path.name != "tests":
                shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_file():
                copy.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        (copy / "version.py").write_text('"""The version."""\n__version__ = "9.0.0"\n')
        for name, (old, new) in changes.items():
            file = copy / f"{name.replace('__', '/')}.py"
            text = file.read_text()
            assert old in text
            file.write_text(text.replace(old, new))
        folder.rename(released)

    return make


@pytest.fixture
def deployment(tmp_path: Path) -> ty.Deployment:
    """Two workers that tell their version."""
    (tmp_path / "told.py").write_text(PIPELINE)
    return ty.Deployment(
        model="version",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{tmp_path}/told.py:create",
        replicas=2,
    )


def versions(client: ty.Client, count: int = 20) -> set[float]:
    """What so many requests, some at once, are answered with."""
    requests = (ty.EmbeddingsRequest(model="version", input="x") for _ in range(count))
    return {float(output.embeddings[0, 0]) for output in client.map(requests, max_in_flight=8)}


def test_newer_workers_join_an_older_coordinator(release: Callable[..., None], deployment: ty.Deployment) -> None:
    """With a field and a feature that the coordinator does not know: rolled over one by one, no request fails."""
    with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        [old] = versions(client)
        release(
            proto__wire=("FEATURES = [", 'FEATURES = ["telepathy", '),
            workers__main=("features=features,", "features=[*features, 'clairvoyance'],"),
        )
        yard.deploy([msgspec.structs.replace(deployment, options={"changed": True})])
        seen = versions(client)
        yard.wait_ready()
        assert seen <= {old, 9.0}
        assert versions(client) == {9.0}
        assert {worker.name for worker in client.status().models[0].workers} == {"version-3", "version-4"}


def test_workers_of_another_wire_are_refused_with_both_versions(
    release: Callable[..., None], deployment: ty.Deployment
) -> None:
    """Named are both packages and both versions of the wire; the old workers go on serving."""
    with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        [old] = versions(client)
        release(proto__wire=(f"WIRE_VERSION = {wire.WIRE_VERSION}", f"WIRE_VERSION = {wire.WIRE_VERSION + 1}"))
        yard.deploy([msgspec.structs.replace(deployment, options={"changed": True})])
        with pytest.raises(errors.DeploymentUnhealthy) as raised:
            yard.wait_ready()
        text = str(raised.value)
        assert "(tensoryard 9.0.0) speaks wire version 2" in text
        assert f"this side (tensoryard {ty.__version__}) speaks 1" in text
        assert "speaks wire version 2" in client.status().models[0].unhealthy
        assert versions(client) == {old}
