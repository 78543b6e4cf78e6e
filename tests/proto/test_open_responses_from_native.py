"""Requests of ours as Open Responses requests and back: the same, or refused by the name of what cannot be said."""

from __future__ import annotations

import dataclasses
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensoryard.proto as proto
from tensoryard.errors import InvalidRequest
from tensoryard.proto import open_responses_from_native
from tensoryard.proto.open_responses_asked import LEFT_ASIDE, SAMPLING_FIELDS
from tensoryard.proto.open_responses_body import OpenResponsesRequestBody
from tensoryard.proto.open_responses_convert import to_native
from tensoryard.proto.open_responses_from_native import to_open
from tensoryard.proto.open_responses_media import bytes_of_uri, image_from_bytes, uri_of_bytes
from tensoryard.proto.outputs import task_types
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.text_messages import ImageContentPart, TextContentPart, VideoContentPart

from .conversion_table import CONVERSIONS
from .message_strategies import MESSAGES, bounded, function_names, maybe, names, request_ids, same, texts

TEXT, PIXEL, AUDIO = PipelineTask.TEXT_GENERATION, PipelineTask.PIXEL_GENERATION, PipelineTask.AUDIO_GENERATION
TASKS = [TEXT, PIXEL, AUDIO]
ID = proto.RequestID("r")
BY_KIND = {conversion.kind: conversion for conversion in CONVERSIONS}


def normal(request):
    """The one form of what may be said in several: empty is None, and a tool has all its keys."""
    if not isinstance(request, proto.TextGenerationRequest):
        return request
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description"),
                "parameters": tool["function"].get("parameters") or {},
                **({} if tool["function"].get("strict") is None else {"strict": tool["function"]["strict"]}),
            },
        }
        for tool in request.tools or ()
    ]
    options = request.chat_template_options or None
    return dataclasses.replace(request, tools=tools or None, chat_template_options=options)


def there_and_back(request, task):
    """The request after it was an Open Responses request, in JSON."""
    said = to_open(request)
    assert said.request_id == request.request_id
    body = OpenResponsesRequestBody.from_json(msgspec.json.encode(said.body))
    return to_native(proto.OpenResponsesRequest(request_id=said.request_id, body=body), task)


# -- what can be said -------------------------------------------------------------------------------------------------

#: What JSON has.
schemas = st.dictionaries(
    texts,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    ),
    max_size=3,
)
text_parts = st.builds(TextContentPart, text=texts)
images = st.builds(ImageContentPart, detail=st.sampled_from([None, "low", "high", "auto"]))
contents = {
    "user": texts | st.lists(text_parts | images | st.builds(VideoContentPart), max_size=4),
    "assistant": texts | st.lists(text_parts | st.builds(ImageContentPart, detail=maybe(texts)), max_size=4),
    "system": texts | st.lists(text_parts, max_size=3),
}
tools = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": function_names},
            optional={"description": maybe(texts), "parameters": schemas, "strict": maybe(st.booleans())},
        ),
    },
)


@st.composite
def samplings(draw):
    fields = {
        "temperature": draw(bounded(0, 2)),
        "top_p": draw(bounded(0, 1)),
        "frequency_penalty": draw(bounded(-2, 2)),
        "presence_penalty": draw(bounded(-2, 2)),
        "max_new_tokens": draw(maybe(st.integers(1, 2**40))),
        "stop": draw(maybe(st.lists(st.text(min_size=1, max_size=9), max_size=4))),
        "seed": draw(st.integers(-(2**63), 2**64 - 1)),
    }
    return proto.SamplingParams(**{name: value for name, value in fields.items() if draw(st.booleans())})


@st.composite
def formats(draw, has_tools):
    """What a body's format and choice of a tool are read as."""
    forced = has_tools and draw(st.booleans())
    kind = draw(st.sampled_from(["json_object", "json_schema", "text"]))
    if kind == "text":
        return proto.TextGenerationResponseFormat("text", tools_forced=True) if forced else None
    has_schema = kind == "json_schema" and draw(st.booleans())
    schema = {"type": "object"} if kind == "json_object" else draw(schemas) if has_schema else {}
    return proto.TextGenerationResponseFormat(
        kind,
        json_schema=schema,
        grammar_enforced=not has_tools,
        tools_forced=forced,
        requires_structured_output_flag=True,
        has_json_schema=has_schema,
    )


template_options = st.fixed_dictionaries(
    {},
    optional={
        "reasoning_effort": st.sampled_from(["none", "low", "medium", "high", "xhigh", "max"]),
        "verbosity": st.sampled_from(["low", "medium", "high"]),
    },
)


@st.composite
def text_requests(draw):
    role = draw(st.sampled_from(sorted(contents)))
    content = draw(contents[role])
    thinking = draw(maybe(texts)) if role == "assistant" and isinstance(content, list) else None
    message = proto.TextGenerationRequestMessage(role=role, content=content, reasoning_content=thinking)
    offered = draw(maybe(st.lists(tools, max_size=3)))
    return proto.TextGenerationRequest(
        request_id=draw(request_ids),
        model_name=draw(names),
        messages=[message],
        images=[draw(st.binary(max_size=20)) for _ in range(message.number_of_images)],
        videos=[draw(st.binary(max_size=20)) for _ in range(message.number_of_videos)],
        tools=offered,
        response_format=draw(formats(bool(offered))),
        logprobs=draw(st.integers(0, 20)),
        chat_template_options=draw(maybe(template_options)),
        sampling_params=draw(samplings()),
        target_endpoint=draw(maybe(texts)),
    )


sides = st.integers(1, 5)
pictures = st.one_of(
    hnp.arrays("|u1", st.tuples(sides, sides)),
    hnp.arrays("|u1", st.tuples(sides, sides, st.sampled_from([3, 4]))),
).map(lambda image: image[::-1, ::-1])
sizes = maybe(st.integers(16, 99).map(lambda n: n * 8))
image_options = st.fixed_dictionaries(
    {},
    optional={
        "secondary_prompt": texts,
        "secondary_negative_prompt": texts,
        "true_cfg_scale": st.floats(1.5, 99),
        "residual_threshold": st.floats(0.5, 9),
        "strength": st.floats(0.75, 1),
        "cfg_normalization": st.just(True),
        "cfg_truncation": st.floats(0.125, 0.5),
    },
)


@st.composite
def pixel_requests(draw):
    given_images = draw(st.lists(pictures, max_size=2))
    return proto.PixelGenerationRequest(
        request_id=draw(request_ids),
        model=draw(names),
        prompt=draw(st.text(min_size=0 if given_images else 1, max_size=12)),
        images=given_images,
        negative_prompt=draw(texts),
        height=draw(sizes),
        width=draw(sizes),
        num_inference_steps=draw(maybe(st.integers(1, 2**40))),
        guidance_scale=draw(st.floats(0, 99)),
        num_images_per_prompt=draw(st.integers(1, 2**40)),
        seed=draw(maybe(st.integers(-(2**63), 2**64 - 1))),
        options=draw(image_options),
    )


audio_requests = st.builds(
    proto.AudioGenerationRequest,
    request_id=request_ids,
    model=names,
    input=texts,
    sampling_params=samplings(),
    streaming=st.just(False),
    options=st.fixed_dictionaries(
        {},
        optional={
            "lyrics": texts,
            "audio_duration": st.floats(0.5, 99),
            "steps": st.integers(1, 2**40),
            "guidance_scale": st.floats(0.5, 99),
        },
    ),
)
SAYABLE = {TEXT: text_requests(), PIXEL: pixel_requests(), AUDIO: audio_requests}


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_what_can_be_said_comes_back_the_same(task, data):
    """Each request of a task that an Open Responses request can say, in its JSON and back."""
    pytest.importorskip("PIL")
    request = data.draw(SAYABLE[task])
    back = there_and_back(request, task)
    assert same(normal(request), back), f"{request!r} came back as {back!r}"


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_request_is_said_or_refused_by_name(task, data):
    """Whatever is in a request, it comes back the same, or the error names a field of it."""
    pytest.importorskip("PIL")
    kind = task_types(task).request
    request = data.draw(MESSAGES[kind])
    try:
        said = to_open(request)
    except InvalidRequest as error:
        said, named = None, re.match(r"`(\w+).*` cannot be said", error.text, re.DOTALL)
    if said is not None:
        assert same(normal(request), to_native(said, task))
    else:
        assert named
        assert named[1] in {spec.name for spec in dataclasses.fields(kind)}


#: What a task reads of a body, and of its `provider_options`.
READ = {
    TEXT: (OpenResponsesRequestBody.__struct_fields__, "max"),
    PIXEL: (("model", "input", "seed", *LEFT_ASIDE), "image"),
    AUDIO: (("model", "input", *SAMPLING_FIELDS, *LEFT_ASIDE), "audio"),
}
NOT_FOR_TEXT = ("include", "citations", "logit_bias", "tool_choice")


def meant_for(body, task):
    """A body without most of what its task would refuse."""
    read, block = READ[task]
    options = proto.ProviderOptions(**{block: getattr(body.provider_options, block)})
    if options.image is not None:
        options = proto.ProviderOptions(image=msgspec.structs.replace(options.image, response_format="b64_json"))
    unread = {name: None for name in body.__struct_fields__ if name not in read or name in NOT_FOR_TEXT}
    return msgspec.structs.replace(body, **unread | {"provider_options": options})


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=200)
@given(body=MESSAGES[OpenResponsesRequestBody], whole=st.booleans())
def test_what_a_body_became_can_be_said_again(task, body, whole):
    """Every request that a body of anybody's was read as has a body, which is read as the same request."""
    pytest.importorskip("PIL")
    body = body if whole else meant_for(body, task)
    try:
        request = to_native(proto.OpenResponsesRequest(request_id=ID, body=body), task)
    except InvalidRequest:
        return
    assert same(request, to_native(to_open(request), task))


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda conversion: conversion.kind.__name__)
def test_the_table_has_every_field(conversion):
    """Each field can be said or it cannot, and is in the table once."""
    is_struct = issubclass(conversion.kind, msgspec.Struct)
    fields = msgspec.structs.fields(conversion.kind) if is_struct else dataclasses.fields(conversion.kind)
    assert {*conversion.said, *conversion.unsaid} == {spec.name for spec in fields}
    assert not {*conversion.said} & {*conversion.unsaid}


MESSAGE = {"role": "user", "content": "hi"}


def text_request(message=None, sampling=None, **fields):
    sampling_params = proto.SamplingParams(**{"seed": 1, **(sampling or {})})
    messages = [{**MESSAGE, **(message or {})}]
    whole = {"request_id": ID, "model_name": "m", "messages": messages, "sampling_params": sampling_params}
    return proto.TextGenerationRequest(**whole | fields)


def pixel_request(**fields):
    return proto.PixelGenerationRequest(**{"request_id": ID, "model": "m", "prompt": "a cat", **fields})


def audio_request(sampling=None, **fields):
    sampling_params = proto.SamplingParams(**{"seed": 1, **(sampling or {})})
    whole = {"request_id": ID, "model": "m", "input": "a", "streaming": False, "sampling_params": sampling_params}
    return proto.AudioGenerationRequest(**whole | fields)


#: For each field that cannot be said, a request that says it.
UNSAYABLE = {
    proto.TextGenerationRequest: {
        "prompt": lambda: text_request(prompt="x", messages=[]),
        "max_decoded_bytes": lambda: text_request(max_decoded_bytes=0),
        "timestamp_ns": lambda: text_request(timestamp_ns=1),
        "request_path": lambda: text_request(request_path="/v1"),
        "echo": lambda: text_request(echo=True),
        "dkv_cache_hint": lambda: text_request(dkv_cache_hint={}),
        "cache_salt": lambda: text_request(cache_salt=""),
    },
    proto.TextGenerationRequestMessage: {
        "tool_calls": lambda: text_request({"tool_calls": []}),
        "tool_call_id": lambda: text_request({"tool_call_id": "c"}),
    },
    proto.SamplingParams: {
        "min_p": lambda: text_request(sampling={"min_p": 0.5}),
        "thinking_temperature": lambda: audio_request({"thinking_temperature": 0.0}),
        "repetition_penalty": lambda: text_request(sampling={"repetition_penalty": 1.5}),
        "min_new_tokens": lambda: audio_request({"min_new_tokens": 1}),
        "ignore_eos": lambda: text_request(sampling={"ignore_eos": True}),
        "stop_token_ids": lambda: text_request(sampling={"stop_token_ids": []}),
        "detokenize": lambda: text_request(sampling={"detokenize": False}),
        "logits_processors": lambda: text_request(sampling={"logits_processors": [print]}),
        "named_processors": lambda: text_request(sampling={"named_processors": [{"name": "logit_bias"}]}),
    },
    proto.PixelGenerationRequest: {},
    proto.AudioGenerationRequest: {
        "audio_prompt_tokens": lambda: audio_request(audio_prompt_tokens=[1]),
        "audio_prompt_transcription": lambda: audio_request(audio_prompt_transcription="a"),
        "_assistant_message_override": lambda: audio_request(_assistant_message_override=""),
        "prompt": lambda: audio_request(prompt=""),
        "streaming": lambda: audio_request(streaming=True),
        "buffer_speech_tokens": lambda: audio_request(buffer_speech_tokens=np.arange(3)),
    },
}


@pytest.mark.parametrize(
    ("kind", "field"), [(conversion.kind, name) for conversion in CONVERSIONS for name in conversion.unsaid]
)
def test_what_cannot_be_said_is_refused(kind, field):
    """A field that no body has is an error that names it, unless it has the one value that asks for nothing."""
    with pytest.raises(InvalidRequest, match=rf"`[\w.\[\]]*\b{field}` cannot be said") as caught:
        to_open(UNSAYABLE[kind][field]())
    assert repr(BY_KIND[kind].unsaid[field]) in caught.value.text


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (text_request(messages=[]), "messages"),
        (text_request(messages=[MESSAGE, MESSAGE]), "messages"),
        *((text_request({"role": role}), "messages[0].role") for role in ("tool", "function", "root")),
        (text_request({"reasoning_content": "hm"}), "messages[0].reasoning_content"),
        (text_request({"role": "assistant", "reasoning_content": ""}), "messages[0].reasoning_content"),
        (text_request({"role": "system", "reasoning_content": "", "content": []}), "messages[0].reasoning_content"),
        (
            text_request({"content": [{"type": "image", "detail": "huge"}]}, images=[b""]),
            "messages[0].content[0].detail",
        ),
        (
            text_request({"content": [{"type": "text"}, {"type": "image", "max_long_side_pixel": 9}]}, images=[b""]),
            "messages[0].content[1].max_long_side_pixel",
        ),
        (text_request({"content": [{"type": "video", "fps": 9}]}, videos=[b""]), "messages[0].content[0].fps"),
        (
            text_request({"content": [{"type": "video", "detail": "low"}]}, videos=[b""]),
            "messages[0].content[0].detail",
        ),
        (text_request({"role": "assistant", "content": [{"type": "video"}]}, videos=[b""]), "messages[0].content[0]"),
        (text_request({"role": "system", "content": [{"type": "image"}]}, images=[b""]), "messages[0].content[0]"),
        (text_request(tools=[{"type": "retrieval", "function": {"name": "f"}}]), "tools[0]"),
        (text_request(tools=[{"type": "function"}]), "tools[0]"),
        (text_request(tools=[{"type": "function", "function": {"name": "f"}, "x": 1}]), "tools[0]"),
        (text_request(tools=[{"type": "function", "function": {"name": "f", "x": 1}}]), "tools[0].function"),
        (text_request(tools=[{"type": "function", "function": {"name": ""}}]), "tools[0].function"),
        (text_request(tools=[{"type": "function", "function": {}}]), "tools[0].function"),
        (text_request(response_format={"type": "grammar", "grammar": "g"}), "response_format.type"),
        (text_request(response_format={"type": "text"}), "response_format.type"),
        (text_request(response_format={"type": "text", "tools_forced": True}), "response_format.tools_forced"),
        (text_request(response_format={"type": "json_object"}), "response_format.json_schema"),
        (
            text_request(response_format={"type": "json_schema", "json_schema": {}}),
            "response_format.grammar_enforced",
        ),
        (text_request(logprobs=21), "logprobs"),
        (text_request(chat_template_options={"thinking": True}), "chat_template_options['thinking']"),
        (text_request(chat_template_options={"verbosity": "some"}), "chat_template_options['verbosity']"),
        (text_request(chat_template_options={"reasoning_effort": 3}), "chat_template_options['reasoning_effort']"),
        (text_request(sampling={"top_k": 5}), "sampling_params.top_k"),
        (text_request(sampling={"top_k": 1}), "sampling_params.top_k"),
        (audio_request({"max_new_tokens": 0}), "sampling_params.max_new_tokens"),
        (text_request(sampling={"stop": list("abcde")}), "sampling_params.stop"),
        (pixel_request(height=100), "height"),
        (pixel_request(width=130), "width"),
        (pixel_request(images=[np.zeros((2, 2), np.float32)]), "images[0]"),
        (pixel_request(images=[np.zeros((2, 2), np.uint8), np.zeros((2, 2, 1), np.uint8)]), "images[1]"),
        (pixel_request(images=[np.zeros((0, 2), np.uint8)]), "images[0]"),
        (pixel_request(images=[np.zeros(4, np.uint8)]), "images[0]"),
        (pixel_request(options={"brightness": 2}), "options['brightness']"),
        (pixel_request(options={"strength": 2}), "options['strength']"),
        (pixel_request(options={"strength": 0.6}), "options['strength']"),
        (audio_request(options={"voice": "en"}), "options['voice']"),
        (audio_request(options={"steps": 0}), "options['steps']"),
    ],
)
def test_values_that_cannot_be_said(request_, path):
    """A value that a body's field cannot have, or that means nothing there, is named down to its place."""
    with pytest.raises(InvalidRequest, match=f"^`{re.escape(path)}` cannot be said"):
        to_open(request_)


def test_requests_of_other_tasks():
    """Embeddings have no Open Responses; the error says which requests do."""
    with pytest.raises(InvalidRequest, match=r"EmbeddingsRequest.*TextGenerationRequest, PixelGenerationRequest"):
        to_open(proto.EmbeddingsRequest(model="m", input="a"))


def test_images_share_one_bound(monkeypatch):
    """No more pixels are said than the way back reads."""
    monkeypatch.setattr(open_responses_from_native, "MAX_IMAGE_PIXELS", 15)
    image = np.zeros((2, 4, 3), np.uint8)
    assert to_open(pixel_request(images=[image]))
    with pytest.raises(InvalidRequest, match="`images` cannot be said"):
        to_open(pixel_request(images=[image, image]))


def test_decoded_images_stay_behind():
    """They are of the process that decoded them, and never travel."""
    message = {"content": [{"type": "image"}]}
    request = text_request(message, images=[b"file"], decoded_images=["pixels"])
    assert there_and_back(request, TEXT).decoded_images == []


def test_pixels_become_files():
    """An image that is an array is said as PNG, by the user and by the assistant; one that no file holds is refused."""
    pytest.importorskip("PIL", reason="files of images are read by Pillow")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for role in ("user", "assistant"):
        message = {"role": role, "content": [{"type": "image"}]}
        (file,) = there_and_back(text_request(message, images=[pixels]), TEXT).images
        assert (image_from_bytes(file) == pixels).all()
    with pytest.raises(InvalidRequest, match="uint8"):
        there_and_back(text_request({"content": [{"type": "image"}]}, images=[pixels.astype(np.float32)]), TEXT)


def test_numpy_numbers_become_numbers():
    """A body is plain JSON whatever the request was built with."""
    request = pixel_request(height=np.int64(256), guidance_scale=np.float32(2.5), options={"strength": np.float64(0.5)})
    assert same(
        there_and_back(request, PIXEL), pixel_request(height=256, guidance_scale=2.5, options={"strength": 0.5})
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x18ftypmp42", "video/mp4"),
        (b"\x1aE\xdf\xa3...", "video/webm"),
        (b"", "application/octet-stream"),
        (b"anything", "application/octet-stream"),
    ],
)
def test_media_are_named_by_what_they_are(data, kind):
    """The URI says the kind of file, where the file does; its bytes are whole."""
    assert uri_of_bytes(data).startswith(f"data:{kind};base64,")
    assert bytes_of_uri(uri_of_bytes(data)) == data


# -- the way in: nothing of a body is dropped -------------------------------------------------------------------------

TOOL = {"name": "add"}
#: For each field of a body that need not be there, a value that asks for something.
ASKING = {
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "seed": 5,
    "stop": "auto",
    "max_output_tokens": 5,
    "n": 2,
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "modalities": ["smell"],
    "verbosity": "low",
    "include": ["message.output_text.logprobs"],
    "reasoning": {"effort": "low"},
    "reasoning_reference": {"id": "x"},
    "citations": {"enabled": True},
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "store": True,
    "stream": False,
    "stream_options": {"a": 1},
    "truncation": "auto",
    "user": "u",
    "provider_options": {"video": {"num_frames": 5}},
}


def body_of(**fields):
    return OpenResponsesRequestBody(**{"model": "m", "input": "a cat", "seed": 1, **fields})


def native_of(task, **fields):
    return to_native(proto.OpenResponsesRequest(request_id=ID, body=body_of(**fields)), task)


def test_every_field_of_a_body_is_tried():
    """A field that is added is found here before it is dropped anywhere."""
    assert {*ASKING, "model", "input"} == set(OpenResponsesRequestBody.__struct_fields__)
    assert set(ASKING) >= LEFT_ASIDE


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("field", ASKING)
def test_a_body_is_read_or_refused(task, field):
    """What a field asks for changes the request, or is refused; only what changes no answer is left aside."""
    fields = {field: ASKING[field]}
    if field == "parallel_tool_calls":
        fields["tools"] = [TOOL]  # without any it asks for nothing
    try:
        found = native_of(task, **fields)
    except InvalidRequest:
        assert field not in LEFT_ASIDE
    else:
        assert same(found, native_of(task)) is (field in LEFT_ASIDE)


@pytest.mark.parametrize(
    ("task", "fields", "text"),
    [
        (TEXT, {"provider_options": {"image": {"steps": 4}}}, "provider_options"),
        (TEXT, {"provider_options": {"audio": {}, "video": {"steps": 4}}}, "video"),
        (AUDIO, {"provider_options": {"image": {"steps": 4}}}, "image"),
        (TEXT, {"modalities": ["text", "audio"]}, "audio"),
        (PIXEL, {"modalities": ["image", "audio"]}, "image"),
        (TEXT, {"reasoning": {"summary": "concise"}}, r"reasoning\.summary"),
        (TEXT, {"response_format": {"type": "json_schema", "description": "an answer"}}, "description"),
        (PIXEL, {"tool_choice": "required", "stop": "none"}, "stop, tool_choice"),
        (
            PIXEL,
            {"input": [{"content": [{"type": "input_image", "image_url": "data:,", "detail": "low"}]}]},
            "detail",
        ),
    ],
)
def test_parts_of_a_field_that_are_refused(task, fields, text):
    """Also what lies deeper is named."""
    with pytest.raises(InvalidRequest, match=text):
        native_of(task, **fields)


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (TEXT, {"provider_options": {"image": {}, "audio": {}}}),
        (PIXEL, {"modalities": ["text", "image"]}),
        (PIXEL, {"tool_choice": "auto", "truncation": "disabled", "include": [], "parallel_tool_calls": True}),
        (AUDIO, {"tool_choice": "none", "modalities": ["audio"], "response_format": None}),
        (TEXT, {"reasoning": {"summary": "auto"}, "response_format": {"type": "json_schema", "name": "x"}}),
    ],
)
def test_what_asks_for_nothing(task, fields):
    """Defaults, and words for what happens anyhow, are no wishes."""
    assert native_of(task, **fields)
