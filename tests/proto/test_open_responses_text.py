"""Open Responses bodies as text requests: nothing that was asked for is lost, and what cannot be done is refused."""

from __future__ import annotations

import base64

import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.open_responses import OpenResponsesRequest
from tensoryard.proto.open_responses_body import OpenResponsesRequestBody
from tensoryard.proto.open_responses_text import to_text_request
from tensoryard.proto.request import RequestID
from tensoryard.proto.text_messages import ImageContentPart, TextContentPart, VideoContentPart
from tensoryard.proto.text_request import TextGenerationRequest, TextGenerationResponseFormat

ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
SUBTRACT = {"type": "function", "name": "subtract", "description": "takes away"}


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def text_request(**fields):
    body = OpenResponsesRequestBody(**{"model": "m", "input": "hello", "seed": 1, **fields})
    return to_text_request(OpenResponsesRequest(request_id=RequestID("r"), body=body))


def names(request):
    return [tool["function"]["name"] for tool in request.tools or []]


def test_a_text_is_the_users_message():
    """Id, model and text arrive; what was left open has the default."""
    found = text_request()
    assert (found.request_id, found.model_name, found.prompt) == (RequestID("r"), "m", None)
    assert [(message.role, message.content) for message in found.messages] == [("user", "hello")]
    assert (found.tools, found.response_format, found.logprobs, found.chat_template_options) == (None, None, 0, None)
    assert found.sampling_params.max_new_tokens is None


@pytest.mark.parametrize(
    ("role", "becomes"),
    [("user", "user"), ("assistant", "assistant"), ("system", "system"), ("developer", "system")],
)
def test_roles(role, becomes):
    """A developer speaks as the system, which is the role that chat templates know."""
    found = text_request(input=[{"role": role, "content": "hello"}])
    assert [(message.role, message.content) for message in found.messages] == [(becomes, "hello")]


def test_parts_and_their_media():
    """Placeholders stand where the media stood, with their hints; the bytes ride on the request in the same order."""
    parts = [
        {"type": "input_text", "text": "compare"},
        {"type": "input_image", "image_url": uri(b"one"), "detail": "low"},
        {"type": "input_video", "video_url": uri(b"film", "video/mp4")},
        {"type": "input_image", "image_url": uri(b"two")},
    ]
    found = text_request(input=[{"content": parts}])
    assert found.messages[0].content == [
        TextContentPart(text="compare"),
        ImageContentPart(detail="low"),
        VideoContentPart(),
        ImageContentPart(),
    ]
    assert (found.images, found.videos) == ([b"one", b"two"], [b"film"])


def test_an_earlier_answer():
    """Text, refusal and image of the assistant are content, its thinking is reasoning."""
    parts = [
        {"type": "reasoning_summary", "text": "let me "},
        {"type": "reasoning_summary", "text": "see"},
        {"type": "output_text", "text": "here"},
        {"type": "refusal", "refusal": "not there"},
        {"type": "output_image", "image_data": base64.b64encode(b"pixels").decode()},
    ]
    found = text_request(input=[{"role": "assistant", "content": parts}])
    assert found.messages[0].reasoning_content == "let me see"
    assert found.messages[0].content == [
        TextContentPart(text="here"),
        TextContentPart(text="not there"),
        ImageContentPart(),
    ]
    assert found.images == [b"pixels"]


def test_sampling():
    """Every field that chooses tokens is handed on; one stop string is a list of one."""
    asked = {
        "temperature": 0.5,
        "top_p": 0.25,
        "frequency_penalty": 1.0,
        "presence_penalty": -1.0,
        "seed": 7,
        "max_output_tokens": 9,
    }
    params = text_request(**asked, stop="end").sampling_params
    found = {name: getattr(params, {"max_output_tokens": "max_new_tokens"}.get(name, name)) for name in asked}
    assert found == asked
    assert params.stop == ["end"]
    assert text_request(stop=["a", "b"]).sampling_params.stop == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 0),
        ({"logprobs": False}, 0),
        ({"logprobs": True}, 1),
        ({"logprobs": True, "top_logprobs": 0}, 1),
        ({"top_logprobs": 5}, 5),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities(fields, count):
    """Asked for without a number, the chosen token's own is reported."""
    assert text_request(**fields).logprobs == count


@pytest.mark.parametrize(
    ("choice", "left", "forced"),
    [
        (None, ["add", "subtract"], False),
        ("auto", ["add", "subtract"], False),
        ("none", [], False),
        ("required", ["add", "subtract"], True),
        ({"type": "function", "name": "subtract"}, ["subtract"], True),
        ({"type": "allowed_tools", "tools": [{"name": "add"}]}, ["add"], False),
        ({"type": "allowed_tools", "tools": [{"name": "add"}], "mode": "required"}, ["add"], True),
        ({"type": "allowed_tools", "tools": [{"name": "add"}], "mode": "none"}, [], False),
    ],
)
def test_tools(choice, left, forced):
    """The choice leaves the tools that may be called, and says whether one must be."""
    found = text_request(tools=[ADD, SUBTRACT], tool_choice=choice)
    assert names(found) == left
    assert bool(found.response_format and found.response_format.tools_forced) is forced


def test_a_tool_keeps_all_that_it_says():
    """Name, description, schema and strictness; a tool that says nothing of the last leaves it to the server."""
    found = text_request(tools=[ADD, SUBTRACT])
    assert found.tools == [
        {
            "type": "function",
            "function": {"name": "add", "description": None, "parameters": {"type": "object"}, "strict": True},
        },
        {"type": "function", "function": {"name": "subtract", "description": "takes away", "parameters": {}}},
    ]


SCHEMA = {"type": "object", "required": ["a"]}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object", "json_schema": {"type": "object"}}),
        ({"type": "json_schema", "schema": SCHEMA}, {"json_schema": SCHEMA, "has_json_schema": True}),
        ({"type": "json_schema"}, {"json_schema": {}}),
    ],
)
def test_formats(wanted, expected):
    """An object or a schema holds the answer from its first token; a schema left out allows any one value."""
    if expected is not None:
        expected = {"type": "json_schema", "grammar_enforced": True, "requires_structured_output_flag": True} | expected
        expected = TextGenerationResponseFormat(**expected)
    assert text_request(response_format=wanted).response_format == expected


def test_a_schema_beside_tools_is_not_enforced_from_the_first_token():
    """The answer may be a call instead, which begins with no JSON."""
    found = text_request(tools=[ADD], response_format={"type": "json_schema", "schema": SCHEMA}).response_format
    assert (found.grammar_enforced, found.json_schema) == (False, SCHEMA)


def test_hints_for_the_template_and_the_route():
    """Effort and verbosity reach the chat template, the endpoint reaches the router."""
    found = text_request(
        reasoning={"effort": "high"},
        verbosity="low",
        provider_options={"max": {"target_endpoint": "tcp://host:1"}},
    )
    assert found.chat_template_options == {"reasoning_effort": "high", "verbosity": "low"}
    assert found.target_endpoint == "tcp://host:1"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logit_bias": {"5": 1.0}},
        {"parallel_tool_calls": False},
        {"modalities": ["audio"]},
        {"input": []},
        {"input": [{"content": [{"type": "input_file", "file_data": "AAAA"}]}]},
        {"input": [{"content": [{"type": "input_image", "image_url": "data:image/png;base64,A"}]}]},
        {"input": [{"content": [{"type": "input_image", "image_url": "data:image/png,plain"}]}]},
        {"input": [{"content": [{"type": "input_video", "video_url": "https://host/film.mp4"}]}]},
        {"input": [{"role": "assistant", "content": [{"type": "output_image"}]}]},
        {"tool_choice": "required"},
        {"tools": [ADD], "tool_choice": {"type": "function", "name": "divide"}},
        {"tools": [ADD], "tool_choice": {"type": "allowed_tools", "tools": [{"name": "divide"}]}},
    ],
)
def test_what_cannot_be_done_is_refused(fields):
    """What was asked for and would change the answer is an input error, never dropped in silence."""
    with pytest.raises(InvalidRequest):
        text_request(**fields)


def test_what_changes_no_answer_is_left_aside():
    """A caller's own notes refuse nothing."""
    assert text_request(metadata={"a": "b"}, user="u", store=True, service_tier="flex", modalities=["text"]).messages


def test_the_request_travels():
    """The native request is whole: it comes back from the wire as it was."""
    parts = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": uri(b"one")}]
    found = text_request(input=[{"content": parts}], tools=[ADD], response_format={"type": "json_object"})
    assert decode_body(encode_body(found).frames, TextGenerationRequest) == found
