"""What one step brought for one request, and that it can say nothing that contradicts itself."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body, msgpack_numpy_decoder, msgpack_numpy_encoder
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.request import RequestID
from tensoryard.proto.scheduler_result import SchedulerResult
from tensoryard.proto.text_output import TextGenerationOutput


def text_output(status):
    return TextGenerationOutput(request_id=RequestID("r"), tokens=[5], final_status=status)


@pytest.mark.parametrize("status", GenerationStatus)
def test_the_output_says_whether_it_is_the_last(status):
    """A result is done when its output is."""
    output = text_output(status)
    made = SchedulerResult.create(output, 3)
    assert (made.is_done, made.result, made.error, made.batch_id) == (status.is_done, output, None, 3)
    assert SchedulerResult.create(output).batch_id is None


def test_ends_without_an_output():
    """Cancelled without a word, or failed with a text."""
    assert SchedulerResult.cancelled() == SchedulerResult(True, None)
    assert SchedulerResult.failed("no") == SchedulerResult(is_done=True, result=None, error="no")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((False, None), "ends its request"),
        ((False, None, "no"), "ends its request"),
        ((True, text_output(GenerationStatus.ACTIVE), "no"), "not both"),
    ],
)
def test_contradictions(fields, text):
    """More comes of what is missing, or a failure beside a result: refused, here and on arrival."""
    with pytest.raises(InvalidRequest, match=text):
        SchedulerResult(*fields)
    with pytest.raises(DecodeError, match=text):
        decode_body(encode_body(list(fields)).frames, SchedulerResult[TextGenerationOutput])


def test_a_whole_step_by_the_type_of_its_task():
    """The documented decoder reads a step in the type that the task gives, and refuses another task's outputs."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    step = {
        RequestID("a"): SchedulerResult.create(EmbeddingsGenerationOutput(array)),
        RequestID("b"): SchedulerResult.cancelled(),
    }
    data = msgpack_numpy_encoder()(step)
    back = msgpack_numpy_decoder(PipelineTask.EMBEDDINGS_GENERATION.output_type)(data)
    np.testing.assert_array_equal(back[RequestID("a")].result.embeddings, array)
    assert back[RequestID("b")] == SchedulerResult.cancelled()
    for task in (PipelineTask.TEXT_GENERATION, PipelineTask.PIXEL_GENERATION):
        with pytest.raises(DecodeError):
            msgpack_numpy_decoder(task.output_type)(data)


def test_weakness_22_a_step_is_small_on_the_wire():
    """A token of one request: no field names, and a byte for each field that says nothing."""
    step = {RequestID("a" * 32): SchedulerResult.create(text_output(GenerationStatus.ACTIVE))}
    body = msgpack_numpy_encoder()(step)
    assert msgpack.unpackb(body) == {"a" * 32: [False, ["r", [5], "active", *[None] * 7, 0, 0], None, None]}
    assert len(body) < 70
