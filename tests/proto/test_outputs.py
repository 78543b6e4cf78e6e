"""The table of what goes with a task, which decoders, worker and client share."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from tensoryard.proto import outputs
from tensoryard.proto.audio import (
    AudioGenerationInputs,
    AudioGenerationMetadata,
    AudioGenerationOutput,
    AudioGenerationRequest,
)
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput, EmbeddingsRequest
from tensoryard.proto.generation import GenerationOutput
from tensoryard.proto.outputs import TaskTypes, batch_inputs, merge_outputs, served_tasks, task_of, task_types
from tensoryard.proto.pipeline import PipelineInputs, PipelineTask
from tensoryard.proto.pixels import PixelGenerationInputs, PixelGenerationRequest
from tensoryard.proto.request import Request, RequestID
from tensoryard.proto.scheduler_result import SchedulerResult
from tensoryard.proto.text_batch import TextGenerationInputs
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.text_output import TextGenerationOutput
from tensoryard.proto.text_request import TextGenerationRequest
from tensoryard.proto.tokens import TokenBuffer

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


def test_a_task_without_types():
    """UNDEFINED has none: an error lists the tasks that do."""
    for ask in (task_types, lambda task: task.output_type):
        with pytest.raises(ValueError, match=r"undefined.*embeddings_generation"):
            ask(PipelineTask.UNDEFINED)


@pytest.mark.parametrize(
    ("task", "output"),
    [
        (PipelineTask.TEXT_GENERATION, TextGenerationOutput),
        (PipelineTask.SPEECH_TOKEN_GENERATION, TextGenerationOutput),
        (PipelineTask.EMBEDDINGS_GENERATION, EmbeddingsGenerationOutput),
        (PipelineTask.AUDIO_GENERATION, AudioGenerationOutput),
        (PipelineTask.PIXEL_GENERATION, GenerationOutput),
    ],
)
def test_a_task_knows_what_its_steps_decode_to(task, output):
    """The decoder's type follows from the table: results by RequestID, each with the task's output."""
    assert task.output_type == dict[RequestID, SchedulerResult[output]]
    assert task_types(task).output is output


def test_there_is_one_table(monkeypatch):
    """A change in the table is seen by everything that asks what a task answers."""
    changed = {**outputs._TYPES, PipelineTask.PIXEL_GENERATION: TaskTypes(PixelGenerationRequest, TextGenerationOutput)}
    monkeypatch.setattr(outputs, "_TYPES", changed)
    assert task_types(PipelineTask.PIXEL_GENERATION).output is TextGenerationOutput
    assert PipelineTask.PIXEL_GENERATION.output_type == dict[RequestID, SchedulerResult[TextGenerationOutput]]


def test_a_request_of_two_tasks_asks_for_the_first():
    """Speech tokens are asked for by naming the task: the request by itself asks for sound."""
    assert task_types(PipelineTask.SPEECH_TOKEN_GENERATION).request is AudioGenerationRequest
    assert task_of(AudioGenerationRequest(model="m", input="a")) is PipelineTask.AUDIO_GENERATION


@pytest.mark.parametrize("task", UNSERVED, ids=lambda task: task.value)
def test_tasks_that_are_not_served(task):
    """No worker takes a task that is not served: it has no batches, and the error lists the tasks that do."""
    with pytest.raises(ValueError, match=f"{task.value}.*embeddings_generation"):
        batch_inputs(task, [])


def test_text_is_served():
    """Its requests are known by their type, and its batch is a list of contexts for the one replica there is."""
    assert task_types(PipelineTask.TEXT_GENERATION) == (TextGenerationRequest, TextGenerationOutput)
    assert served_tasks() == ["audio_generation", "embeddings_generation", "pixel_generation", "text_generation"]
    assert task_of(TextGenerationRequest(model_name="m", prompt="a")) is PipelineTask.TEXT_GENERATION
    context = TextContext(tokens=TokenBuffer(np.array([1, 2])), max_length=5)
    inputs = batch_inputs(PipelineTask.TEXT_GENERATION, [context])
    assert isinstance(inputs, TextGenerationInputs)
    assert inputs.batches == [[context]]


@pytest.mark.parametrize("value", ["a text", None, {"model": "m"}, EmbeddingsRequest], ids=repr)
def test_what_is_no_request(value):
    """Anything else is an error that lists the requests there are."""
    with pytest.raises(ValueError, match=r"EmbeddingsRequest.*PixelGenerationRequest"):
        task_of(value)


@pytest.mark.parametrize(("_request", "task", "_output", "inputs"), ONE_SHOT)
def test_a_batch_in_its_type(_request, task, _output, inputs):
    """The batch of a task is in that task's inputs, unchanged."""
    batch = {RequestID(name): SimpleNamespace(request_id=RequestID(name)) for name in "12"}
    made = batch_inputs(task, list(batch.values()))
    assert isinstance(made, inputs)
    assert isinstance(made, PipelineInputs)
    assert made.batch == batch


def chunk(samples, number, *, last=False):
    """One chunk of a stream at 4 Hz."""
    metadata = AudioGenerationMetadata(sample_rate=4, chunk_id=number, duration=len(samples) / 4, final_chunk=last)
    status = GenerationStatus.END_OF_SEQUENCE if last else GenerationStatus.ACTIVE
    return AudioGenerationOutput(status, number + 1, np.array(samples, np.float32), metadata=metadata)


def test_a_stream_of_audio_merges_into_one():
    """Chunks are joined in order; status, steps and metadata are the last one's, with the whole duration."""
    whole = merge_outputs([chunk([1, 2], 0), chunk([3], 1), chunk([4, 5, 6], 2, last=True)])
    assert whole.audio_data.tolist() == [1, 2, 3, 4, 5, 6]
    assert whole.audio_data.dtype == np.float32
    assert (whole.is_done, whole.steps_executed) == (True, 3)
    assert whole.metadata == AudioGenerationMetadata(sample_rate=4, duration=1.5, final_chunk=True)


def test_channels_stay_apart_and_empty_chunks_count_for_nothing():
    """Chunks of several channels are joined along time, also when one of them, often the last, has no samples."""
    stereo = [
        chunk([[1, 2], [5, 6]], 0),
        chunk([], 1),
        chunk([[3], [7]], 2),
        AudioGenerationOutput("end_of_sequence", 4),
    ]
    assert merge_outputs(stereo).audio_data.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert merge_outputs(stereo).metadata.duration is None
    assert merge_outputs([chunk([], 0), chunk([], 1)]).audio_data.shape == (0,)


def test_a_stream_of_text_merges_into_one():
    """All tokens in order, with the last status."""
    chunks = [
        TextGenerationOutput(request_id=RequestID("r"), tokens=tokens, final_status=status)
        for tokens, status in (([1, 2], GenerationStatus.ACTIVE), ([3], GenerationStatus.MAXIMUM_LENGTH))
    ]
    whole = merge_outputs(chunks)
    assert (whole.tokens, whole.final_status) == ([1, 2, 3], GenerationStatus.MAXIMUM_LENGTH)
    assert merge_outputs(chunks[:1]) == chunks[0]


def test_other_streams_merge_to_their_last():
    """Of a stream of anything else the last output is the answer, and a single output is itself."""
    first, last = GenerationOutput.of_images(RequestID("r"), []), GenerationOutput.of_images(RequestID("r"), [])
    assert merge_outputs([first, last]) is last
    only = chunk([1], 0, last=True)
    assert merge_outputs([only]) is only
    with pytest.raises(ValueError, match="without outputs"):
        merge_outputs([])
