"""The text request: what it takes, what it refuses, and what travels of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_request import TextGenerationRequest, TextGenerationResponseFormat

from .text_samples import travelled


def request_of(**fields):
    return TextGenerationRequest(**{"request_id": RequestID("r"), "model_name": "m", **fields})


def test_request_defaults():
    """The documented defaults; a fresh id when none is given."""
    request = TextGenerationRequest(RequestID("r"), "m", "prompt")
    assert (request.prompt, request.messages, request.images, request.videos) == ("prompt", [], [], [])
    assert (request.timestamp_ns, request.request_path, request.logprobs, request.echo) == (0, "/", 0, False)
    assert request.decoded_images == []
    assert str(request) == "r"
    assert TextGenerationRequest(model_name="m").request_id != TextGenerationRequest(model_name="m").request_id
    with pytest.raises(TypeError):
        hash(request)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.prompt = "other"


def test_token_prompts_become_lists_of_ints():
    """Any sequence of ids is taken, numpy's too."""
    for prompt in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), [np.int32(1), 2]):
        found = request_of(prompt=prompt).prompt
        assert found == [1, 2]
        assert {type(token) for token in found} == {int}
    assert request_of(prompt=[]).prompt == []


@pytest.mark.parametrize(
    "fields",
    [
        {"request_id": "r"},
        {"model_name": ""},
        {"prompt": 5},
        {"prompt": [1.5]},
        {"prompt": [True]},
        {"prompt": [-1]},
        {"prompt": [2**63]},
        {"prompt": b"ab"},
        {"prompt": np.array([0.5])},
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"messages": [5]},
        {"messages": ["text"]},
        {"messages": {"role": "user"}},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "developer", "content": "x"}]},
        {"logprobs": -1},
        {"logprobs": 1.5},
        {"logprobs": True},
        {"logprobs": None},
        {"timestamp_ns": None},
        {"timestamp_ns": "now"},
        {"request_path": None},
        {"request_path": b"/"},
        {"echo": 1},
        {"tools": "add"},
        {"tools": ["add"]},
        {"chat_template_options": [1]},
        {"chat_template_options": {1: 2}},
        {"target_endpoint": 5},
        {"dkv_cache_hint": "hint"},
        {"cache_salt": 5},
        {"max_decoded_bytes": 0.5},
        {"max_decoded_bytes": -1},
        {"sampling_params": {"top_k": 1}},
        {"cache_salt": "x" * 513},
        {"response_format": {"typ": "json"}},
        {"response_format": 5},
        {"images": ["path.png"]},
        {"videos": b"bytes"},
        {"images": [b"1"], "prompt": "text"},
        {"videos": [b"1"], "prompt": "text"},
        {"images": [b"1"], "prompt": [1, 2]},
        {"images": [b"1"]},
        {"images": [b"1"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
        {
            "images": [b"1"],
            "decoded_images": [None, None],
            "messages": [{"role": "user", "content": [{"type": "image"}]}],
        },
    ],
)
def test_requests_that_are_wrong(fields):
    """Each is an InvalidRequest, a ValueError: no other kind of error."""
    with pytest.raises(InvalidRequest):
        request_of(**fields)


def test_an_empty_prompt_beside_messages():
    """An empty text is no prompt."""
    assert request_of(prompt="", messages=[{"role": "user", "content": "x"}]).messages[0].content == "x"


def test_lists_are_the_requests_own():
    """The caller's later changes are not seen."""
    messages, images, tools = [{"role": "user", "content": [{"type": "image"}]}], [b"1"], [{"type": "function"}]
    request = request_of(messages=messages, images=images, tools=tools)
    for given in (messages, images, tools):
        given.clear()
    assert (len(request.messages), request.images, request.tools) == (1, [b"1"], [{"type": "function"}])


@pytest.mark.parametrize(
    ("field", "value"), [("request_id", "r"), ("model_name", 5), ("logprobs", "3"), ("echo", "yes"), ("tools", 5)]
)
def test_a_wrong_field_is_named(field, value):
    """The error says which."""
    with pytest.raises(InvalidRequest, match=f"`{field}`"):
        request_of(**{field: value})


def test_numpy_numbers_will_do():
    """A count may be numpy's; it arrives as Python's."""
    assert travelled(request_of(prompt="x", logprobs=np.int64(3), timestamp_ns=np.uint64(2**63))).logprobs == 3


def test_response_format_from_a_dict():
    """A dict is taken for the struct; None and {} are different schemas."""
    request = request_of(response_format={"type": "json_schema", "json_schema": {}})
    assert request.response_format == TextGenerationResponseFormat(type="json_schema", json_schema={})
    assert TextGenerationResponseFormat("json_object").json_schema is None


def test_images_for_processing():
    """Decoded where it has been, else the bytes."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    assert request_of(messages=messages, images=[b"1", b"2"]).images_for_processing() == [b"1", b"2"]
    request = request_of(messages=messages, images=[b"1", b"2"], decoded_images=[None, "pixels"])
    assert request.images_for_processing() == [b"1", "pixels"]
    request.decoded_images.pop()
    with pytest.raises(ValueError, match="zip"):
        request.images_for_processing()


def test_requests_travel_without_decoded_images():
    """Every field comes back equal, decoded images stay behind, tools keep keys that are not ours."""
    tools = [{"type": "function", "function": {"name": "f", "x-vendor": 1}}]
    request = request_of(
        messages=[{"role": "user", "content": [{"type": "image"}]}],
        images=[b"1"],
        decoded_images=[object()],
        tools=tools,
        response_format={"type": "json_object"},
        sampling_params=SamplingParams(top_k=3, seed=4),
        chat_template_options={"a": [1]},
    )
    other = travelled(request)
    assert other == request
    assert other.decoded_images == []
    assert other.tools == tools
    assert other.number_of_images == 1
    assert "decoded_images" not in {field.name for field in dataclasses.fields(request)}
    assert dataclasses.replace(request, logprobs=3).logprobs == 3


def test_weakness_40_placeholders_without_bytes():
    """A placeholder whose image is not there is refused."""
    for kind in ("image", "video"):
        with pytest.raises(InvalidRequest, match="placeholders"):
            request_of(messages=[{"role": "user", "content": [{"type": kind}]}])


def test_weakness_39_one_kind_of_error():
    """A message that is none is an InvalidRequest like every other wrong input."""
    with pytest.raises(InvalidRequest):
        request_of(messages=[object()])


def test_an_image_may_be_pixels():
    """They travel as an array, whatever its dtype: what a model takes, its worker says."""
    images = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), b"file", np.zeros((2, 2), np.float32)]
    messages = [{"role": "user", "content": [{"type": "image"}] * 3}]
    found = travelled(request_of(messages=messages, images=images))
    assert [type(image) for image in found.images] == [np.ndarray, bytes, np.ndarray]
    assert (found.images[0] == images[0]).all()
    assert found.images[2].dtype == np.float32
    with pytest.raises(InvalidRequest, match="arrays of pixels"):
        request_of(messages=messages, images=["path.png"] * 3)
