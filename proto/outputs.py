"""The one table of what goes with a task: its request type in, its output type out, and its batch inputs.

Codec, worker and client all read it here, so that a task is added in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .audio import AudioGenerationInputs, AudioGenerationOutput, AudioGenerationRequest
from .embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput, EmbeddingsRequest
from .generation import GenerationOutput
from .pipeline import PipelineInputs, PipelineTask
from .pixels import PixelGenerationInputs, PixelGenerationRequest
from .request import RequestID


class TaskTypes(NamedTuple):
    """The types that go with one task."""

    request: type[Any]
    output: type[Any]


_TYPES: dict[PipelineTask, TaskTypes] = {
    PipelineTask.EMBEDDINGS_GENERATION: TaskTypes(EmbeddingsRequest, EmbeddingsGenerationOutput),
    PipelineTask.PIXEL_GENERATION: TaskTypes(PixelGenerationRequest, GenerationOutput),
    PipelineTask.AUDIO_GENERATION: TaskTypes(AudioGenerationRequest, AudioGenerationOutput),
}


def task_types(task: PipelineTask) -> TaskTypes:
    """The request and output types of a task; ValueError for a task that is not served."""
    try:
        return _TYPES[task]
    except KeyError:
        raise ValueError(f"task {task.value!r} is not served; served are {served_tasks()}") from None


def served_tasks() -> list[str]:
    """The values of the tasks that have a request type."""
    return sorted(task.value for task in _TYPES)


def task_of(request: object) -> PipelineTask:
    """The task that a request asks for; ValueError for an object that is no request."""
    for task, types in _TYPES.items():
        if isinstance(request, types.request):
            return task
    allowed = ", ".join(types.request.__name__ for types in _TYPES.values())
    raise ValueError(f"a {type(request).__name__} is no request; send one of {allowed}")


def batch_inputs(task: PipelineTask, batch: dict[RequestID, Any]) -> PipelineInputs:
    """The batch in the inputs type of its task."""
    match task:
        case PipelineTask.EMBEDDINGS_GENERATION:
            return EmbeddingsGenerationInputs(batches=[batch])
        case PipelineTask.PIXEL_GENERATION:
            return PixelGenerationInputs(batch=batch)
        case PipelineTask.AUDIO_GENERATION:
            return AudioGenerationInputs(batch=batch)
        case _:
            raise ValueError(f"task {task.value!r} has no one-shot batches; those that do: {served_tasks()}")


def merge_outputs(outputs: Sequence[Any]) -> Any:
    """One output for a whole stream: audio chunks joined end to end, of anything else the last. ValueError for none."""
    if not outputs:
        raise ValueError("a stream without outputs cannot be merged")
    last = outputs[-1]
    if len(outputs) == 1 or not isinstance(last, AudioGenerationOutput):
        return last
    samples = np.concatenate([output.audio_data for output in outputs], axis=-1)
    rate = last.metadata.sample_rate
    duration = samples.shape[-1] / rate if rate else None
    metadata = msgspec.structs.replace(last.metadata, chunk_id=None, duration=duration)
    return msgspec.structs.replace(last, audio_data=samples, metadata=metadata)
