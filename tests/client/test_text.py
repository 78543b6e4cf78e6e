"""What people write becomes a text request: prompts, token ids, messages, and sampling beside other fields."""

import numpy as np
import pytest

from tensoryard.client.text import text_request
from tensoryard.errors import InvalidRequest
from tensoryard.proto import SamplingParams, TextGenerationRequestMessage


def test_a_prompt_and_its_sampling():
    """Sampling goes into SamplingParams, the rest into the request."""
    request = text_request("Once", "m", {"temperature": 0.5, "seed": 3, "logprobs": 2, "cache_salt": "s"})
    assert (request.prompt, request.model_name, request.logprobs, request.cache_salt) == ("Once", "m", 2, "s")
    assert (request.sampling_params.temperature, request.sampling_params.seed) == (0.5, 3)


def test_token_ids():
    """A list of ints is a prompt."""
    assert text_request([1, 2], "m", {}).prompt == [1, 2]


@pytest.mark.parametrize(
    "message",
    [{"role": "user", "content": "Hello"}, TextGenerationRequestMessage(role="user", content="Hello")],
    ids=["dict", "object"],
)
def test_messages(message):
    """A list of messages is a chat, whether of dicts or of objects."""
    request = text_request([message], "m", {})
    assert request.prompt is None
    assert request.messages[0].content == "Hello"


def test_whole_parameters():
    """They may come as they are, but not together with single ones."""
    params = SamplingParams(top_k=3)
    assert text_request("a", "m", {"sampling_params": params}).sampling_params == params
    with pytest.raises(InvalidRequest, match=r"top_p.*one or the other"):
        text_request("a", "m", {"sampling_params": params, "top_p": 0.3})


@pytest.mark.parametrize("name", ["temprature", "model_name", "prompt"])
def test_an_unknown_field_is_named(name):
    """And the known ones are listed."""
    with pytest.raises(InvalidRequest, match=f"`{name}` is unknown; known are .*temperature"):
        text_request("a", "m", {name: 1})


def test_images_may_lie_in_messages():
    """Arrays and files are taken out of their parts, in order; the caller's messages stay as they are."""
    array, file = np.zeros((2, 2, 3), np.uint8), b"file"
    content = [{"type": "text", "text": "a"}, {"type": "image", "image": array, "detail": "low"}]
    messages = [{"role": "user", "content": content}, {"role": "user", "content": [{"type": "image", "image": file}]}]
    request = text_request(messages, "m", {})
    assert request.images[0] is array
    assert request.images[1] == file
    assert [message.number_of_images for message in request.messages] == [1, 1]
    assert request.messages[0].content[1].detail == "low"
    assert content[1]["image"] is array
    apart = text_request([{"role": "user", "content": [{"type": "image"}]}], "m", {"images": [array]})
    assert apart.images[0] is array


def test_images_are_given_once():
    """In the messages or beside them."""
    messages = [{"role": "user", "content": [{"type": "image", "image": b"1"}]}]
    with pytest.raises(InvalidRequest, match="not both"):
        text_request(messages, "m", {"images": [b"1"]})
