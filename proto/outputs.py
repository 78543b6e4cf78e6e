"""The one table of what goes with a task: its request type in, its output type out, and its batch inputs.

Worker and client read it here, and decoders through `PipelineTask.output_type`, so that a task is added in one place.
A task whose batches nothing here can make has types all the same: its messages can be read, and no worker takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .audio import AudioGenerationInputs, AudioGenerationOutput, AudioGenerationRequest
from .embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput, EmbeddingsRequest
from .generation import GenerationOutput
from .pipeline import PipelineInputs, PipelineTask
from .pixels import PixelGenerationInputs, PixelGenerationRequest
from .request import RequestID
from .text_batch import TextGenerationInputs
from .text_output import TextGenerationOutput
from .text_request import TextGenerationRequest


class TaskTypes(NamedTuple):
    """The types that go with one task."""

    request: type[Any]
    output: type[Any]


#: Of tasks that take the same request, the first is the one that a request asks for by itself.
_TYPES: dict[PipelineTask, TaskTypes] = {
    PipelineTask.TEXT_GENERATION: TaskTypes(TextGenerationRequest, TextGenerationOutput),
    PipelineTask.EMBEDDINGS_GENERATION: TaskTypes(EmbeddingsRequest, EmbeddingsGenerationOutput),
    PipelineTask.PIXEL_GENERATION: TaskTypes(PixelGenerationRequest, GenerationOutput),
    PipelineTask.AUDIO_GENERATION: TaskTypes(AudioGenerationRequest, AudioGenerationOutput),
    PipelineTask.SPEECH_TOKEN_GENERATION: TaskTypes(AudioGenerationRequest, TextGenerationOutput),
}

#: The tasks that workers run, and how the batch of each is made.
_BATCHES: dict[PipelineTask, Callable[[list[Any]], PipelineInputs]] = {
    PipelineTask.TEXT_GENERATION: lambda contexts: TextGenerationInputs(batches=[contexts]),
    PipelineTask.EMBEDDINGS_GENERATION: lambda contexts: EmbeddingsGenerationInputs(batches=[_by_id(contexts)]),
    PipelineTask.PIXEL_GENERATION: lambda contexts: PixelGenerationInputs(batch=_by_id(contexts)),
    PipelineTask.AUDIO_GENERATION: lambda contexts: AudioGenerationInputs(batch=_by_id(contexts)),
}


def task_types(task: PipelineTask) -> TaskTypes:
    """The request and output types of a task, served or not; ValueError for a task that has none."""
    try:
        return _TYPES[task]
    except KeyError:
        raise ValueError(f"task {task.value!r} has no types; those that do: {_named(_TYPES)}") from None


def served_tasks() -> list[str]:
    """The values of the tasks that workers run."""
    return _named(_BATCHES)


def task_of(request: object) -> PipelineTask:
    """The task that a request asks for; ValueError for an object that is no request, or whose task is not served."""
    for task, types in _TYPES.items():
        if isinstance(request, types.request):
            _require_served(task)
            return task
    allowed = ", ".join(_TYPES[task].request.__name__ for task in _BATCHES)
    raise ValueError(f"a {type(request).__name__} is no request; send one of {allowed}")


def model_of(request: Any) -> str:
    """The model that a request asks for."""
    model: str = request.model_name if isinstance(request, TextGenerationRequest) else request.model
    return model


def batch_inputs(task: PipelineTask, contexts: list[Any]) -> PipelineInputs:
    """The batch of these contexts in the inputs type of its task; ValueError for a task that is not served."""
    _require_served(task)
    return _BATCHES[task](contexts)


def _by_id(contexts: list[Any]) -> dict[RequestID, Any]:
    return {context.request_id: context for context in contexts}


def _require_served(task: PipelineTask) -> None:
    if task not in _BATCHES:
        raise ValueError(f"task {task.value!r} is not served; served are {served_tasks()}")


def _named(tasks: dict[PipelineTask, Any]) -> list[str]:
    return sorted(task.value for task in tasks)


def merge_outputs(outputs: Sequence[Any]) -> Any:
    """One output for a whole stream: tokens in order, audio chunks end to end, of anything else the last.

    ValueError for none.
    """
    if not outputs:
        raise ValueError("a stream without outputs cannot be merged")
    last = outputs[-1]
    if isinstance(last, TextGenerationOutput):
        return TextGenerationOutput.merge(list(outputs))
    if len(outputs) == 1 or not isinstance(last, AudioGenerationOutput):
        return last
    # A chunk without samples, often the last, need not say how many channels there are.
    chunks = [output.audio_data for output in outputs if output.audio_data.size] or [last.audio_data]
    samples = np.concatenate(chunks, axis=-1)
    rate = last.metadata.sample_rate
    duration = samples.shape[-1] / rate if rate else None
    metadata = msgspec.structs.replace(last.metadata, chunk_id=None, duration=duration)
    return msgspec.structs.replace(last, audio_data=samples, metadata=metadata)
