"""`GenerationOutput` and the media in it."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from tensoryard.proto.request import RequestID

ID = RequestID("r")
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
FRAMES = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
SOUND = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)


def travelled(output):
    return decode_body(encode_body(output).frames, GenerationOutput)


def output_of(*parts, status=GenerationStatus.END_OF_SEQUENCE, **extra):
    return GenerationOutput(request_id=ID, final_status=status, output=list(parts), **extra)


def test_every_kind_of_part_travels():
    """Text, image, video and sound come back in order, each with its array and its details."""
    back = travelled(
        output_of(
            OutputTextContent(text="a caption"),
            OutputImageContent(image=IMAGE, format="png", detail="high"),
            OutputImageContent(image_data="aGk=", format="jpeg"),
            OutputVideoContent(frames=FRAMES, frames_per_second=12.5),
            OutputAudioContent(samples=SOUND, sample_rate=24000),
            usage=Usage(input_tokens=3, output_tokens=4),
        )
    )
    text, raw, encoded, video, sound = back.output
    assert (back.request_id, back.is_done, back.usage) == (ID, True, Usage(input_tokens=3, output_tokens=4))
    assert (text.text, raw.format, raw.detail, raw.image_data) == ("a caption", "png", "high", None)
    assert (encoded.image, encoded.image_data) == (None, "aGk=")
    assert (video.frames_per_second, sound.sample_rate) == (12.5, 24000)
    np.testing.assert_array_equal(raw.image, IMAGE)
    np.testing.assert_array_equal(video.frames, FRAMES)
    np.testing.assert_array_equal(sound.samples, SOUND)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "r"),
        ("request_id", None),
        ("final_status", "finished"),
        ("final_status", None),
        ("output", IMAGE),
        ("output", [IMAGE]),
        ("output", (OutputTextContent(text="t"),)),
        ("usage", {"input_tokens": 1}),
    ],
)
def test_an_output_is_checked_where_it_is_made(field, value):
    """A field that cannot travel is an error in the pipeline that makes it, which names the field."""
    with pytest.raises(InvalidRequest, match=f"`{field}`"):
        GenerationOutput(**{"request_id": ID, "final_status": GenerationStatus.ACTIVE, "output": [], field: value})


def test_a_status_may_be_given_as_its_value():
    """As everywhere where the enum is meant."""
    output = GenerationOutput(request_id=ID, final_status="maximum_length", output=[])
    assert output.final_status is GenerationStatus.MAXIMUM_LENGTH


@pytest.mark.parametrize("image", [[[1]], "pixels", 5])
def test_pixels_are_an_array(image):
    """Anything else is an error that names the field."""
    with pytest.raises(InvalidRequest, match="`image`"):
        OutputImageContent(image=image)


@pytest.mark.parametrize("status", list(GenerationStatus))
def test_done_follows_the_status(status):
    """An output ends its request unless it is active."""
    assert travelled(output_of(status=status)).is_done is status.is_done


def test_of_images():
    """A finished answer of images holds them in order, and `images` finds them among other parts."""
    grey = IMAGE[..., 0]
    output = GenerationOutput.of_images(ID, [IMAGE, grey])
    assert output.is_done
    assert [each.shape for each in travelled(output).images] == [(2, 4, 3), (2, 4)]
    mixed = output_of(OutputTextContent(text="x"), OutputImageContent(image=grey), OutputImageContent(image_data="a"))
    assert [each is grey for each in mixed.images] == [True]


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4)])
def test_images_have_two_or_three_dimensions(shape):
    """Another shape is no image, here or on arrival."""
    with pytest.raises(InvalidRequest, match=f"2 or 3 dimensions, not {len(shape)}"):
        OutputImageContent(image=np.zeros(shape, np.uint8))
    wire = {"type": "output_image", "image": np.zeros(shape, np.uint8)}
    with pytest.raises(DecodeError, match="2 or 3 dimensions"):
        decode_body(encode_body(wire).frames, OutputImageContent)


@pytest.mark.parametrize(
    "part",
    [
        OutputVideoContent(frames=FRAMES.astype(np.float32)),
        OutputAudioContent(samples=SOUND.astype(np.float64), sample_rate=1),
        OutputAudioContent(samples=SOUND, sample_rate="fast"),
        OutputImageContent(image=IMAGE, format=5),
    ],
    ids=lambda part: type(part).__name__,
)
def test_parts_of_other_types_do_not_arrive(part):
    """Frames are uint8 and samples float32; the error says where."""
    with pytest.raises(DecodeError, match=r"\$\.output\[0\]"):
        travelled(output_of(part))


def test_unknown_parts_do_not_arrive():
    """A part of a kind that this side does not know is an error, not a guess."""
    wire = {"type": "GenerationOutput", "request_id": "r", "final_status": "active", "output": [{"type": "smell"}]}
    with pytest.raises(DecodeError, match="smell"):
        decode_body(encode_body(wire).frames, GenerationOutput)


def test_parts_made_of_arrays():
    """The documented constructors take pixels, frames and samples; pixels are encoded, the others stay as they are."""
    image = OutputImageContent.from_numpy(IMAGE, detail="low")
    assert (image.image, image.format, image.detail) == (None, "png", "low")
    assert base64.b64decode(image.image_data).startswith(b"\x89PNG")
    video = OutputVideoContent.from_numpy_frames(FRAMES, frames_per_second=24.0, format="mp4")
    assert video.frames is FRAMES
    assert (video.frames_per_second, video.format) == (24.0, "mp4")
    sound = OutputAudioContent.from_numpy_samples(SOUND, sample_rate=8000, format="wav")
    assert sound.samples is SOUND
    assert (sound.sample_rate, sound.format) == (8000, "wav")


@pytest.mark.parametrize("array", [FRAMES[0], FRAMES.astype(np.float32), FRAMES.tolist(), None], ids=repr)
def test_frames_are_checked_when_made(array):
    """Frames of another shape or type, or no array, are refused with what is expected."""
    with pytest.raises(InvalidRequest, match="uint8 array of shape"):
        OutputVideoContent.from_numpy_frames(array)


@pytest.mark.parametrize("array", [SOUND[0], SOUND.astype(np.float64), SOUND.tolist(), None], ids=repr)
def test_samples_are_checked_when_made(array):
    """Samples of another shape or type, or no array, are refused with what is expected."""
    with pytest.raises(InvalidRequest, match="float32 array of shape"):
        OutputAudioContent.from_numpy_samples(array, sample_rate=8000)
