"""Real clusters for tests: one shared by the gentle ones, one of their own for those that kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tensoryard as ty

PIPELINES = Path(__file__).with_name("small_pipelines.py")


def small_deployments(replicas: int = 2) -> list[ty.Deployment]:
    """`plus-one` (pixels) and `moody` (embeddings)."""
    return [
        ty.Deployment(
            model="plus-one",
            task=ty.PipelineTask.PIXEL_GENERATION,
            pipeline=f"{PIPELINES}:plus_one",
            replicas=replicas,
        ),
        ty.Deployment(
            model="moody",
            task=ty.PipelineTask.EMBEDDINGS_GENERATION,
            pipeline=f"{PIPELINES}:moody",
            replicas=replicas,
        ),
    ]


def real_deployments(replicas: int = 2) -> list[ty.Deployment]:
    """The three real pipelines."""
    return [
        ty.Deployment(
            model="minilm",
            task=ty.PipelineTask.EMBEDDINGS_GENERATION,
            pipeline="minilm",
            replicas=replicas,
        ),
        ty.Deployment(
            model="photo-edit",
            task=ty.PipelineTask.PIXEL_GENERATION,
            pipeline="photo-edit",
            replicas=replicas,
        ),
        ty.Deployment(model="espeak", task=ty.PipelineTask.AUDIO_GENERATION, pipeline="espeak", replicas=replicas),
    ]


@pytest.fixture(scope="package")
def shared_yard(runtime_folder: Path) -> Iterator[ty.Yard]:
    """A cluster of plain processes that tests may load but not hurt."""
    with ty.local(small_deployments(), runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(shared_yard: ty.Yard) -> Iterator[ty.Client]:
    """A client of the shared cluster."""
    with shared_yard.connect() as client:
        yield client
