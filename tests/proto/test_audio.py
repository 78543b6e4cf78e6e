"""Audio: what a request may ask for, how it and its chunks travel, and what the metadata say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.audio import (
    MAX_AUDIO_INPUT_CHARS,
    AudioGenerationInputs,
    AudioGenerationMetadata,
    AudioGenerationOutput,
    AudioGenerationRequest,
)
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams

SAMPLES = np.linspace(-1, 1, 48, dtype=np.float32)
TAIL = np.arange(5, dtype=np.int32)


def travelled(value):
    return decode_body(encode_body(value).frames, type(value))


def test_defaults():
    """A text is enough; the answer then streams."""
    request = AudioGenerationRequest(model="m", input="hello")
    assert (request.streaming, request.prompt, request.buffer_speech_tokens) == (True, None, None)
    assert (request.audio_prompt_tokens, request.audio_prompt_transcription) == ([], "")
    assert str(request) == request.request_id.value


@pytest.mark.parametrize("extra", [{"input": ""}, {"prompt": ""}, {"prompt": [1, 2]}, {"prompt": (1, np.int64(2))}])
def test_an_input_or_a_prompt_is_needed(extra):
    """Either will do, and may be empty; neither is an error of the caller, not of the program."""
    AudioGenerationRequest(model="m", **extra)
    with pytest.raises(InvalidRequest, match=r"`input` .* or `prompt`"):
        AudioGenerationRequest(model="m")


@pytest.mark.parametrize("field", ["input", "prompt"])
def test_texts_are_at_most_4096_characters(field):
    """The documented limit holds, in characters, and the error says how long the text is."""
    AudioGenerationRequest(model="m", **{field: "ä" * MAX_AUDIO_INPUT_CHARS})
    with pytest.raises(InvalidRequest, match=f"`{field}` has 4097 characters, at most 4096"):
        AudioGenerationRequest(model="m", **{field: "ä" * (MAX_AUDIO_INPUT_CHARS + 1)})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("options", None),
        ("request_id", "bare"),
        ("input", 5),
        ("input", ["a"]),
        ("prompt", 5),
        ("prompt", b"x"),
        ("prompt", ["a"]),
        ("prompt", [1, True]),
        ("prompt", [2**63]),
        ("audio_prompt_tokens", [1.5]),
        ("audio_prompt_tokens", 5),
        ("audio_prompt_transcription", None),
        ("sampling_params", {}),
        ("buffer_speech_tokens", [1, 2]),
        ("buffer_speech_tokens", np.zeros(2, np.float32)),
        ("buffer_speech_tokens", np.zeros(2, bool)),
        ("buffer_speech_tokens", np.zeros(2, "m8[s]")),
    ],
)
def test_wrong_fields_are_named(field, value):
    """A field of a wrong type is an error that names it."""
    with pytest.raises(InvalidRequest, match=f"`{field}` must be"):
        AudioGenerationRequest(**{"model": "m", "input": "a", field: value})


def test_requests_are_frozen():
    """A field cannot be set afterwards."""
    with pytest.raises(FrozenInstanceError):
        AudioGenerationRequest(model="m", input="a").input = "b"


@given(
    input=st.text(max_size=MAX_AUDIO_INPUT_CHARS),
    prompt=st.none() | st.text() | st.lists(st.integers(0, 2**63 - 1)),
    audio_prompt_tokens=st.lists(st.integers(0, 1000)),
    streaming=st.booleans(),
    sampling_params=st.builds(SamplingParams, temperature=st.floats(0, 2), seed=st.integers(0, 2**32)),
)
def test_requests_travel(**values):
    """A request comes back equal, its sampling parameters included."""
    request = AudioGenerationRequest(model="m", **values)
    assert travelled(request) == request


def test_the_tail_of_another_request_travels():
    """Buffered speech tokens come back as they were."""
    back = travelled(AudioGenerationRequest(model="m", input="a", buffer_speech_tokens=TAIL))
    assert back.buffer_speech_tokens.dtype == np.int32
    np.testing.assert_array_equal(back.buffer_speech_tokens, TAIL)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": None},
        {"input": "x" * 4097},
        {"prompt": [1.5]},
        {"sampling_params": {"temperature": 3.0}},
        {"buffer_speech_tokens": SAMPLES},
        {"streaming": "yes"},
    ],
)
def test_wrong_requests_do_not_arrive(changes):
    """The checks of the constructor hold on arrival too, of what is inside as well."""
    with pytest.raises(DecodeError):
        decode_body(encode_body({"model": "m", "input": "a", **changes}).frames, AudioGenerationRequest)


def test_metadata_keep_zeros():
    """`to_dict` leaves out what is not known, and keeps 0, False and the empty text; the id becomes its string."""
    metadata = AudioGenerationMetadata(
        sample_rate=24000, chunk_id=0, final_chunk=False, echo="", duration=0.0, request_id=RequestID("r")
    )
    assert metadata.to_dict() == {
        "sample_rate": 24000,
        "duration": 0.0,
        "chunk_id": 0,
        "final_chunk": False,
        "request_id": "r",
        "echo": "",
    }
    assert AudioGenerationMetadata().to_dict() == {}


@given(
    st.builds(
        AudioGenerationMetadata,
        sample_rate=st.none() | st.integers(0, 2**32),
        duration=st.none() | st.floats(allow_nan=False),
        chunk_id=st.none() | st.integers(0, 2**32),
        final_chunk=st.none() | st.booleans(),
        model_name=st.none() | st.text(),
        request_id=st.none() | st.builds(RequestID),
    )
)
def test_metadata_travel(metadata):
    """Metadata come back equal, and without what is not known are a tag alone."""
    assert travelled(metadata) == metadata
    assert len(encode_body(AudioGenerationMetadata()).frames[0]) < 40


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES.reshape(2, 24), np.empty(0, np.float32)])
def test_outputs_travel(samples):
    """A chunk comes back with its samples, status and metadata."""
    output = AudioGenerationOutput(
        GenerationStatus.ACTIVE, 3, samples, TAIL, AudioGenerationMetadata(sample_rate=22050, chunk_id=0)
    )
    back = travelled(output)
    assert (back.final_status, back.steps_executed, back.is_done) == (GenerationStatus.ACTIVE, 3, False)
    assert back.metadata == output.metadata
    np.testing.assert_array_equal(back.audio_data, samples)
    np.testing.assert_array_equal(back.buffer_speech_tokens, TAIL)


def test_an_output_without_samples():
    """Samples, tail and metadata may be left out; each output then has its own empty array."""
    output = travelled(AudioGenerationOutput(GenerationStatus.CANCELLED, 0))
    assert output.is_done
    assert (output.audio_data.shape, output.audio_data.dtype) == ((0,), np.float32)
    assert output.buffer_speech_tokens is None
    assert output.metadata == AudioGenerationMetadata()


@pytest.mark.parametrize("samples", [SAMPLES.astype(np.float64), SAMPLES.astype(np.int16)])
def test_samples_are_float32(samples):
    """Samples of another type do not arrive; the error names the field."""
    with pytest.raises(DecodeError, match=r"float32 is expected.*audio_data"):
        travelled(AudioGenerationOutput(GenerationStatus.ACTIVE, 1, samples))


def test_the_batch():
    """A batch maps ids to contexts."""
    batch = {RequestID("1"): object()}
    assert AudioGenerationInputs(batch=batch).batch is batch
