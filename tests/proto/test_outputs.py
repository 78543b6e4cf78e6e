"""The table of what goes with a task, which codec, worker and client share."""

from __future__ import annotations

import msgspec
import pytest

from tensoryard.proto.audio import AudioGenerationInputs, AudioGenerationOutput, AudioGenerationRequest
from tensoryard.proto.embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput, EmbeddingsRequest
from tensoryard.proto.generation import GenerationOutput
from tensoryard.proto.outputs import batch_inputs, served_tasks, task_of, task_types
from tensoryard.proto.pipeline import PipelineInputs, PipelineTask
from tensoryard.proto.pixels import PixelGenerationInputs, PixelGenerationRequest
from tensoryard.proto.request import Request, RequestID

ONE_SHOT = [
    (
        EmbeddingsRequest(model="m", input="a"),
        PipelineTask.EMBEDDINGS_GENERATION,
        EmbeddingsGenerationOutput,
        EmbeddingsGenerationInputs,
    ),
    (
        PixelGenerationRequest(model="m", prompt="a"),
        PipelineTask.PIXEL_GENERATION,
        GenerationOutput,
        PixelGenerationInputs,
    ),
    (
        AudioGenerationRequest(model="m", input="a"),
        PipelineTask.AUDIO_GENERATION,
        AudioGenerationOutput,
        AudioGenerationInputs,
    ),
]
UNSERVED = [task for task in PipelineTask if task.value not in served_tasks()]


@pytest.mark.parametrize(("request_", "task", "output", "_inputs"), ONE_SHOT)
def test_a_request_says_its_task(request_, task, output, _inputs):
    """From the request follows the task, and from the task the types of both ways."""
    assert task_of(request_) is task
    assert task_types(task) == (type(request_), output)
    assert isinstance(request_, Request)


@pytest.mark.parametrize("task", served_tasks())
def test_every_served_task_has_types(task):
    """Whatever is served has a request with an id and an output that says when it is done."""
    types = task_types(PipelineTask(task))
    assert "request_id" in {field.name for field in msgspec.inspect.type_info(types.request).fields}
    assert issubclass(types.output, msgspec.Struct)
    assert isinstance(vars(types.output).get("is_done"), property)


@pytest.mark.parametrize("task", UNSERVED, ids=lambda task: task.value)
def test_tasks_that_are_not_served(task):
    """A task without types is an error that lists those that have them; UNDEFINED is never one."""
    with pytest.raises(ValueError, match=f"{task.value}.*embeddings_generation"):
        task_types(task)
    with pytest.raises(ValueError, match=f"{task.value}.*embeddings_generation"):
        batch_inputs(task, {})


def test_undefined_is_not_served():
    """The task that means "find out later" is never routed."""
    assert PipelineTask.UNDEFINED.value not in served_tasks()


@pytest.mark.parametrize("value", ["a text", None, {"model": "m"}, EmbeddingsRequest], ids=repr)
def test_what_is_no_request(value):
    """Anything else is an error that lists the requests there are."""
    with pytest.raises(ValueError, match=r"EmbeddingsRequest.*PixelGenerationRequest"):
        task_of(value)


@pytest.mark.parametrize(("_request", "task", "_output", "inputs"), ONE_SHOT)
def test_a_batch_in_its_type(_request, task, _output, inputs):
    """The batch of a task is in that task's inputs, unchanged."""
    batch = {RequestID("1"): object(), RequestID("2"): object()}
    made = batch_inputs(task, batch)
    assert isinstance(made, inputs)
    assert isinstance(made, PipelineInputs)
    assert made.batch == batch
