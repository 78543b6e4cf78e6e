"""The body of an Open Responses request: what it may hold, and what it refuses."""

from __future__ import annotations

import json

import msgspec
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.open_responses_body import (
    AllowedToolChoice,
    FunctionToolChoice,
    JsonSchemaParam,
    OpenResponsesRequestBody,
)
from tensoryard.proto.open_responses_enums import (
    GeneratedMediaResponseFormat,
    IncludeEnum,
    ReasoningEffortEnum,
    ToolChoiceValueEnum,
)
from tensoryard.proto.open_responses_messages import (
    InputImageContent,
    InputTextContent,
    UserMessage,
)
from tensoryard.proto.open_responses_options import (
    ImageProviderOptions,
    ProviderOptions,
    VideoProviderOptions,
)

DATA_URI = "data:image/png;base64,AAAA"


def body_of(**fields):
    return OpenResponsesRequestBody(**{"model": "m", "input": "text", **fields})


def test_body_defaults():
    """What is not given is None; the provider options hold default image options."""
    body = body_of()
    given = {name for name in body.__struct_fields__ if getattr(body, name) is not None}
    assert given == {"model", "input", "provider_options"}
    assert body.provider_options == ProviderOptions(image=ImageProviderOptions())
    assert body_of(provider_options={}).provider_options.image is None


def test_body_from_dicts():
    """Nested objects become their structs, texts their enums."""
    body = body_of(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        tool_choice="required",
        response_format={"type": "json_schema", "name": "n", "schema": {}},
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "max", "summary": "concise"},
        provider_options={"image": {"width": 256}, "video": {}, "max": {"target_endpoint": "e"}},
    )
    assert body.input == [UserMessage(content=[InputTextContent(text="a")])]
    assert body.tools[0].name == "f"
    assert body.tool_choice is ToolChoiceValueEnum.REQUIRED
    assert body.response_format == JsonSchemaParam(name="n", schema={})
    assert body.include == [IncludeEnum.REASONING_ENCRYPTED_CONTENT]
    assert body.reasoning.effort is ReasoningEffortEnum.MAX
    assert body.provider_options.image.width == 256
    assert body.provider_options.video == VideoProviderOptions()
    assert body.provider_options.video.response_format is GeneratedMediaResponseFormat.URL


def test_structs_are_taken_as_they_are():
    """Ready parts, messages and choices stay the same objects."""
    message = UserMessage(content=[InputImageContent(image_url=DATA_URI)])
    choice = AllowedToolChoice(tools=[FunctionToolChoice(name="f")])
    body = body_of(input=(message,), tool_choice=choice, response_format=JsonSchemaParam())
    assert body.input[0] is message
    assert body.tool_choice is choice
    assert body_of(tool_choice={"type": "function", "name": "f"}).tool_choice == FunctionToolChoice(name="f")
    assert body_of(input=[]).input == []


GOOD = [
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 1},
    {"frequency_penalty": -2},
    {"presence_penalty": 2.0},
    {"seed": -5},
    {"stop": "a"},
    {"stop": ["a", "b", "c", "d"]},
    {"max_output_tokens": 1},
    {"n": 1},
    {"logit_bias": {"5": -100}},
    {"logprobs": True, "top_logprobs": 20},
    {"stream": False},
    {"truncation": "auto", "service_tier": "flex", "verbosity": "high"},
    {"metadata": {"a": "b"}, "user": "u", "store": True, "citations": [1], "reasoning_reference": {"x": 1}},
    {"response_format": {"type": "text"}},
    {"provider_options": {"image": {"width": 136, "height": 128, "steps": 1, "strength": 1}}},
    {"provider_options": {"audio": {"audio_format": " WAV ", "audio_duration": 0.5}}},
    {"provider_options": {"video": {"guidance_scale": 0, "flow_shift": 3.0}}},
]

BAD = [
    {"model": 5},
    {"input": 5},
    {"input": {"role": "user"}},
    {"input": ["text"]},
    {"input": [{"content": "a"}, {"content": "b"}]},
    {"input": [{"role": "tool", "content": "a"}]},
    {"input": [{"role": ["user"], "content": "a"}]},
    {"input": [{"role": "user"}]},
    {"input": [{"content": 5}]},
    {"input": [{"content": ["text"]}]},
    {"input": [{"content": [{"type": "output_text", "text": "a"}]}]},
    {"input": [{"content": [{"type": "input_text"}]}]},
    {"input": [{"content": [{"type": "input_image", "image_url": "https://host/secret"}]}]},
    {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": DATA_URI}]}]},
    {"temperature": 2.1},
    {"temperature": float("nan")},
    {"temperature": "1"},
    {"top_p": -0.1},
    {"frequency_penalty": 3},
    {"stop": ["a"] * 5},
    {"max_output_tokens": 0},
    {"n": 0},
    {"logit_bias": {"5": 101}},
    {"top_logprobs": 21},
    {"stream": True},
    {"tools": [{"type": "function", "name": ""}]},
    {"tools": [{"type": "function", "name": "x" * 65}]},
    {"tools": [{"type": "web"}]},
    {"tool_choice": "maybe"},
    {"tool_choice": {"type": "none"}},
    {"tool_choice": 5},
    {"response_format": {"type": "xml"}},
    {"response_format": "text"},
    {"service_tier": "gold"},
    {"include": ["all"]},
    {"metadata": {"a": 5}},
    {"provider_options": {"unknown": {}}},
    {"provider_options": {"image": {"widht": 128}}},
    {"provider_options": {"image": {"width": 120}}},
    {"provider_options": {"image": {"width": 129}}},
    {"provider_options": {"image": {"strength": 0}}},
    {"provider_options": {"image": {"guidance_scale": -1}}},
    {"provider_options": {"image": {"guidance_scale": float("inf")}}},
    {"provider_options": {"image": {"true_cfg_scale": float("inf")}}},
    {"provider_options": {"image": {"num_images": 0}}},
    {"provider_options": {"image": {"response_format": "file"}}},
    {"provider_options": {"video": {"num_frames": 0}}},
    {"provider_options": {"audio": {"audio_format": "mp3"}}},
    {"provider_options": {"max": {"target_endpoint": 5}}},
]


@pytest.mark.parametrize("fields", GOOD)
def test_body_accepts(fields):
    """Values at their bounds, built, from JSON and over the wire alike."""
    body = body_of(**fields)
    data = json.dumps({"model": "m", "input": "text", "not_known": 1, **fields})
    assert OpenResponsesRequestBody.from_json(data) == body
    assert decode_body(encode_body(body).frames, OpenResponsesRequestBody) == body
    assert msgspec.json.decode(msgspec.json.encode(body), type=OpenResponsesRequestBody) == body


@pytest.mark.parametrize("fields", BAD)
def test_body_refuses(fields):
    """One kind of error, built or from JSON, and it quotes no web address."""
    with pytest.raises(InvalidRequest) as caught:
        body_of(**fields)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRequest):
        OpenResponsesRequestBody.from_json(json.dumps({"model": "m", "input": "text", **fields}))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("data", [b"{", b"[]", b"5", b'"x"', b"", b"\xff", b"[" * 100_000, b'{"input": "x"}'])
def test_weakness_39_json_that_is_no_body(data):
    """Malformed JSON and JSON of another shape are input errors like any other."""
    with pytest.raises(InvalidRequest, match="body"):
        OpenResponsesRequestBody.from_json(data)
