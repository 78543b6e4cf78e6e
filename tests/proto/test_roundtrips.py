"""Every message type comes back from the wire as it went, whatever is in it, by every way that its arrays may take."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensoryard.proto as proto
from tensoryard.errors import DecodeError
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.outputs import task_types
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.shm import Pool, Reader

from .message_strategies import MESSAGES, contexts, request_ids, same, text_requests, texts

WAYS = ("inline", "out of band", "by handle")


@pytest.fixture(scope="module")
def pool():
    with Pool(budget_bytes=64 << 20) as pool:
        yield pool


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


def travelled(value, kind, way, pool, reader):
    """The value after its journey; arrays of 16 bytes and more leave the body, unless they travel inline."""
    place = pool.publish if way == "by handle" else None
    encoded = encode_body(value, place=place, out_of_band=way == "out of band", threshold_bytes=16)
    try:
        return decode_body([bytes(frame) for frame in encoded.frames], kind, resolve=reader.open, copy=True)
    finally:
        encoded.release()


#: Public classes with fields that never travel on their own, and why.
STAY = {
    proto.OutputAudioContent: "a part of GenerationOutput",
    proto.OutputImageContent: "a part of GenerationOutput",
    proto.OutputTextContent: "a part of GenerationOutput",
    proto.OutputVideoContent: "a part of GenerationOutput",
    proto.AudioGenerationInputs: "a batch, made in the worker that runs it",
    proto.EmbeddingsGenerationInputs: "a batch, made in the worker that runs it",
    proto.PixelGenerationInputs: "a batch, made in the worker that runs it",
    proto.TextGenerationInputs: "a batch, made in the worker that runs it",
    proto.BatchProcessorInputs: "holds a step's logits, on the device",
    proto.ProcessorInputs: "holds a step's logits, on the device",
    proto.ParsedReasoningDelta: "may hold a function",
    proto.ReasoningSpan: "positions in one chunk, used where the chunk is",
    proto.SharedMemoryArray: "a handle travels as the array that it names",
}


def has_fields(value):
    is_message = isinstance(value, type) and (issubclass(value, msgspec.Struct) or dataclasses.is_dataclass(value))
    return is_message or (isinstance(value, type) and hasattr(value, "to_wire"))


def test_no_message_is_left_out():
    """Every public class with fields has a strategy here, or a reason why it never travels."""
    public = {getattr(proto, name) for name in proto.__all__}
    assert {value.__name__ for value in public if has_fields(value)} == {value.__name__ for value in {*MESSAGES, *STAY}}
    assert not set(MESSAGES) & set(STAY)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_a_message_comes_back_as_it_went(pool, reader, kind, data, way):
    """Equal in every field, and equal once more when it goes again: nothing is lost, nothing drifts."""
    sent = data.draw(MESSAGES[kind])
    back = travelled(sent, kind, way, pool, reader)
    assert type(back) is kind
    assert same(sent, back), f"{sent!r} came back as {back!r}"
    assert same(back, travelled(back, kind, way, pool, reader))


@pytest.mark.parametrize("task", [task for task in PipelineTask if task is not PipelineTask.UNDEFINED])
@settings(deadline=None, max_examples=25)
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_a_step_comes_back_in_the_type_of_its_task(pool, reader, task, data, way):
    """Outputs, cancellations and failures by RequestID, each output in the type that the task's table names."""
    outputs = MESSAGES[task_types(task).output].map(proto.SchedulerResult.create)
    ends = st.just(proto.SchedulerResult.cancelled()) | texts.map(proto.SchedulerResult.failed)
    step = data.draw(st.dictionaries(request_ids, outputs | ends, max_size=3))
    back = travelled(step, task.output_type, way, pool, reader)
    assert same(step, back)
    assert all(type(one.result) in (task_types(task).output, type(None)) for one in back.values())


@settings(deadline=None, max_examples=60)
@given(context=contexts(), tokens=st.lists(st.integers(0, 999), max_size=6), piece=st.text("abc", max_size=4))
def test_a_context_goes_on_as_if_it_had_not_moved(context, tokens, piece):
    """After a move the same tokens and texts bring the same output and the same ending."""
    moved = decode_body(encode_body(context).frames, proto.TextContext)
    for one in (context, moved):
        for token in tokens:
            if one.tokens.has_placeholder:
                one.realize_future_token(token)
            elif not one.is_done:
                one.update(token)
        one.update_with_text(piece)
    assert same(context, moved)
    assert same(context.to_generation_output(), moved.to_generation_output())


@settings(deadline=None, max_examples=40)
@given(requests=st.lists(text_requests() | MESSAGES[proto.EmbeddingsRequest], max_size=4))
def test_messages_of_several_kinds_side_by_side(requests):
    """A map of ids to messages keeps each under its id."""
    sent = {f"{number}": request for number, request in enumerate(requests)}
    for kind in (proto.TextGenerationRequest, proto.EmbeddingsRequest):
        part = {key: request for key, request in sent.items() if isinstance(request, kind)}
        assert same(part, decode_body(encode_body(part).frames, dict[str, kind]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_low_precision_floats_in_messages(pool, reader, way, name):
    """bfloat16 and float8 arrays arrive to the bit where floats are declared, and are refused where float32 is."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(256, dtype=np.uint8)
    bits = values.astype(np.uint16) << 8 | values if name == "bfloat16" else values
    array = bits.view(getattr(ml_dtypes, name)).reshape(2, 128)
    for sent in (
        proto.EmbeddingsGenerationOutput(array),
        proto.PixelGenerationRequest(model="m", images=[array], options={"deep": [array[0]]}),
        proto.ImageMetadata(start_idx=0, end_idx=1, pixel_values=array),
        proto.EmbeddingsRequest(model="m", input=[array, array[1, ::2]]),
    ):
        assert same(sent, travelled(sent, type(sent), way, pool, reader))
    sound = proto.AudioGenerationOutput(proto.GenerationStatus.ACTIVE, 1, array)
    with pytest.raises(DecodeError, match=f"float32 is expected, not of {name}"):
        travelled(sound, proto.AudioGenerationOutput, way, pool, reader)


def test_the_comparison_sees_differences():
    """What is compared here is told apart: kinds, dtypes, byte orders, values, fields, and what is remembered."""
    array = np.arange(3, dtype="<i8")
    tracker, other = (proto.EOSTracker(eos_stop_strings=["abc"]) for _ in range(2))
    other.find_stop("ab")
    for one, two in (
        (array, array.astype("<i4")),
        (array, array.astype(">i8")),
        (array, array + 1),
        (array, array.tolist()),
        (1, True),
        (1.5, 1),
        ("1", 1),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (proto.RequestID("a"), proto.RequestID("b")),
        (proto.Range(0, 1), proto.Range(0, 2)),
        (proto.LogProbabilities([1.0], [{1: 1.0}]), proto.LogProbabilities([1.0], [{1: 2.0}])),
        (tracker, other),
    ):
        assert not same(one, two)
        assert same(one, one)
    assert same(float("nan"), float("nan"))
