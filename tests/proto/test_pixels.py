"""Pixels: what a request may ask for, and how it travels."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.pixels import PixelGenerationContext, PixelGenerationInputs, PixelGenerationRequest
from tensoryard.proto.request import RequestID

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def travelled(request):
    return decode_body(encode_body(request).frames, PixelGenerationRequest)


def test_defaults():
    """A prompt alone is enough; sizes and steps are then the pipeline's choice."""
    request = PixelGenerationRequest(model="m", prompt="a cat")
    assert (request.height, request.width, request.num_inference_steps, request.seed) == (None, None, None, None)
    assert (request.guidance_scale, request.num_images_per_prompt, request.images) == (3.5, 1, [])
    assert str(request) == request.request_id.value


@pytest.mark.parametrize("extra", [{"prompt": "a"}, {"images": [IMAGE]}, {"prompt": "a", "images": [IMAGE]}])
def test_a_prompt_or_an_image_is_needed(extra):
    """Either will do, and both; neither is an error."""
    PixelGenerationRequest(model="m", **extra)
    with pytest.raises(InvalidRequest, match="a prompt or at least one image"):
        PixelGenerationRequest(model="m")


@pytest.mark.parametrize("field", ["height", "width", "num_inference_steps", "num_images_per_prompt"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "512", float("nan"), [512]], ids=repr)
def test_sizes_are_whole_and_positive(field, value):
    """A size that is no whole number of at least 1 is an error that names the field."""
    with pytest.raises(InvalidRequest, match=f"`{field}` must be a whole number of at least 1"):
        PixelGenerationRequest(model="m", prompt="a", **{field: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "3", [3.5]], ids=repr)
def test_guidance_is_finite(value):
    """A guidance scale that is no finite number of at least 0 is an error that names the field."""
    with pytest.raises(InvalidRequest, match="`guidance_scale` must be a finite number of at least 0"):
        PixelGenerationRequest(model="m", prompt="a", guidance_scale=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("options", [1]),
        ("request_id", "bare"),
        ("prompt", None),
        ("prompt", 5),
        ("negative_prompt", b"x"),
        ("seed", 1.5),
        ("seed", False),
        ("images", IMAGE),
        ("images", (IMAGE,)),
        ("images", [IMAGE, "x"]),
        ("images", None),
    ],
)
def test_wrong_fields_are_named(field, value):
    """A field of a wrong type is an error that names it."""
    with pytest.raises(InvalidRequest, match=f"`{field}` must be"):
        PixelGenerationRequest(**{"model": "m", "prompt": "a", field: value})


def test_requests_are_frozen():
    """A field cannot be set afterwards."""
    with pytest.raises(FrozenInstanceError):
        PixelGenerationRequest(model="m", prompt="a").prompt = "b"


def test_numpy_numbers_will_do():
    """Numbers of numpy count as numbers, and arrive as Python's."""
    request = PixelGenerationRequest(
        model="m", prompt="a", height=np.int64(512), guidance_scale=np.float32(2.5), seed=np.uint64(2**64 - 1)
    )
    back = travelled(request)
    assert (back.height, back.guidance_scale, back.seed) == (512, 2.5, 2**64 - 1)
    assert (type(back.height), type(back.guidance_scale)) == (int, float)


@given(
    prompt=st.text(min_size=1),
    negative_prompt=st.text(),
    height=st.none() | st.integers(1, 2**63),
    guidance_scale=st.floats(0, 1e6),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
)
def test_requests_travel(**values):
    """A request comes back equal."""
    request = PixelGenerationRequest(model="m", **values)
    assert travelled(request) == request


def test_images_travel():
    """Images come back in order, each with its dtype and shape."""
    images = [IMAGE, IMAGE[:, ::-1], IMAGE[..., 0].astype(">u2"), np.zeros((0, 4, 3), np.float32)]
    back = travelled(PixelGenerationRequest(model="m", images=images)).images
    assert [each.dtype.str for each in back] == ["|u1", "|u1", ">u2", "<f4"]
    for sent, received in zip(images, back, strict=True):
        np.testing.assert_array_equal(sent, received)


@pytest.mark.parametrize("changes", [{"height": 0}, {"height": True}, {"prompt": ""}, {"images": ["x"]}, {"images": 5}])
def test_wrong_requests_do_not_arrive(changes):
    """The checks of the constructor hold on arrival too."""
    wire = {"request_id": "a", "model": "m", "prompt": "x", **changes}
    with pytest.raises(DecodeError):
        decode_body(encode_body(wire).frames, PixelGenerationRequest)


def test_the_batch():
    """A batch maps ids to contexts; what lacks latents is no pixel context of the protocol."""
    batch = {RequestID("1"): object()}
    assert PixelGenerationInputs(batch=batch).batch is batch
    assert not isinstance(object(), PixelGenerationContext)
