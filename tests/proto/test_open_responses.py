"""Open Responses: what a body may hold, how an HTTP request is read, and what a response says."""

from __future__ import annotations

import asyncio
import base64
import builtins
import io
import json
import struct
import subprocess
import sys
import wave
import zlib
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from tensoryard.errors import InvalidRequest
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
from tensoryard.proto.open_responses import (
    MAX_FETCHED_IMAGES,
    AllowedToolChoice,
    AssistantMessage,
    AudioProviderOptions,
    DeveloperMessage,
    EncodedAudioContent,
    EncodedVideoContent,
    FunctionToolChoice,
    GeneratedMediaResponseFormat,
    ImageProviderOptions,
    IncludeEnum,
    InputImageContent,
    InputTextContent,
    JsonSchemaParam,
    MessageRole,
    MessageStatus,
    OpenResponsesRequest,
    OpenResponsesRequestBody,
    ProviderOptions,
    ReasoningEffortEnum,
    ReasoningSummaryContent,
    RefusalContent,
    ResponseResource,
    SystemMessage,
    ToolChoiceValueEnum,
    UserMessage,
    VideoProviderOptions,
    audio_from_numpy_samples,
    encode_audio,
    encode_content,
    image_from_numpy,
    video_from_numpy_frames,
)
from tensoryard.proto.request import RequestID

DATA_URI = "data:image/png;base64,AAAA"


def body_of(**fields):
    return OpenResponsesRequestBody(**{"model": "m", "input": "text", **fields})


# The body


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


def test_messages_of_every_role():
    """A message without a role is the user's."""
    assert body_of(input=[{"content": "x"}]).input == [UserMessage(content="x")]
    assert UserMessage(role=MessageRole.USER, content="x").role == "user"
    assert body_of(input=[{"role": "system", "content": "x"}]).input == [SystemMessage(content="x")]
    parts = [{"type": "input_text", "text": "x"}]
    developer = body_of(input=[{"role": "developer", "content": parts}]).input[0]
    assert developer == DeveloperMessage(content=[InputTextContent(text="x")])
    parts = [
        {"type": "output_text", "text": "x"},
        {"type": "refusal", "refusal": "no"},
        {"type": "reasoning_summary", "text": "s"},
        {"type": "output_image", "image_data": "AAAA"},
    ]
    assistant = body_of(input=[{"role": "assistant", "content": parts, "status": "completed"}]).input[0]
    assert assistant == AssistantMessage(
        content=[
            OutputTextContent(text="x"),
            RefusalContent(refusal="no"),
            ReasoningSummaryContent(text="s"),
            OutputImageContent(image_data="AAAA"),
        ],
        status=MessageStatus.COMPLETED,
    )


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


def test_audio_format_is_trimmed():
    """In any case, with blanks around."""
    assert AudioProviderOptions(audio_format=" WAV ").audio_format == "wav"


@pytest.mark.parametrize("data", [b"{", b"[]", b"5", b'"x"', b"", b"\xff", b"[" * 100_000, b'{"input": "x"}'])
def test_weakness_39_json_that_is_no_body(data):
    """Malformed JSON and JSON of another shape are input errors like any other."""
    with pytest.raises(InvalidRequest, match="body"):
        OpenResponsesRequestBody.from_json(data)


# The request


def test_request():
    """Prints as its id, hashes with a text as input, travels."""
    request = OpenResponsesRequest(request_id=RequestID("r"), body=body_of())
    assert str(request) == "r"
    assert len({request, OpenResponsesRequest(request_id=RequestID("r"), body=body_of())}) == 1
    assert decode_body(encode_body(request).frames, OpenResponsesRequest) == request
    with pytest.raises(TypeError):
        hash(OpenResponsesRequest(request_id=RequestID("r"), body=body_of(input=[])))
    with pytest.raises(AttributeError):
        request.body = None


@pytest.mark.parametrize("fields", [{"request_id": "r"}, {"body": {}}])
def test_request_is_checked(fields):
    """A bare string is no id, a dict no body."""
    with pytest.raises(InvalidRequest):
        OpenResponsesRequest(**{"request_id": RequestID("r"), "body": body_of(), **fields})


def test_weakness_12_client_dictionaries_stay_dictionaries():
    """A tool's schema that looks like an array or a segment is only a dict."""
    parameters = {"__shm__": True, "name": "other", "shape": [1], "dtype": "<f4", "__np__": True, "data": "x"}
    body = body_of(tools=[{"type": "function", "name": "f", "parameters": parameters}])
    assert decode_body(encode_body(body).frames, OpenResponsesRequestBody).tools[0].parameters == parameters


class HTTP:
    """As much of an HTTP request as is looked at."""

    def __init__(self, body, request_id="r", fetcher=None):
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.state = SimpleNamespace() if request_id is None else SimpleNamespace(request_id=request_id)
        state = SimpleNamespace() if fetcher is None else SimpleNamespace(media_data_uri_fetcher=fetcher)
        self.app = SimpleNamespace(state=state)

    async def body(self):
        return self._body


def read(*args, **kwargs):
    return asyncio.run(OpenResponsesRequest.from_fastapi_request(HTTP(*args, **kwargs)))


def with_images(*urls, role="user"):
    parts = [{"type": "input_image", "image_url": url} for url in urls]
    return {"model": "m", "input": [{"role": role, "content": parts}]}


def test_http_request():
    """The id comes from the middleware, as text or RequestID."""
    assert read({"model": "m", "input": "x"}).request_id == RequestID("r")
    assert read({"model": "m", "input": "x"}, request_id=RequestID("q")).request_id == RequestID("q")
    assert read({"model": "m", "input": "x"}).body == body_of(input="x")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        {"model": "m", "input": [5]},
        {"model": "m", "input": 5},
        {"model": "m", "input": [{"content": [5]}]},
    ],
)
def test_weakness_39_http_bodies_that_are_wrong(body):
    """Each is an InvalidRequest."""
    with pytest.raises(InvalidRequest):
        read(body)


def test_http_request_without_id():
    """An input error that says what is missing."""
    with pytest.raises(InvalidRequest, match="request_id"):
        read({"model": "m", "input": "x"}, request_id=None)


def test_web_images_are_fetched_by_the_application():
    """Web addresses are replaced by what the fetcher makes of them; the rest stays."""
    asked = []

    async def fetch(url):
        asked.append(url)
        return f"data:image/png;base64,{len(asked)}"

    request = read(with_images("https://host/a.png", DATA_URI, "HTTP://host/b.png"), fetcher=fetch)
    assert asked == ["https://host/a.png", "HTTP://host/b.png"]
    urls = [part.image_url for part in request.body.input[0].content]
    assert urls == ["data:image/png;base64,1", DATA_URI, "data:image/png;base64,2"]


def test_weakness_41_nothing_is_downloaded_here():
    """Without a fetcher a web address is refused, and not quoted."""
    with pytest.raises(InvalidRequest, match="not fetched") as caught:
        read(with_images("https://host/secret"))
    assert "secret" not in str(caught.value)


def test_weakness_41_fetches_are_bounded():
    """More images than the bound are refused before the first is fetched."""

    async def fetch(url):
        raise AssertionError

    with pytest.raises(InvalidRequest, match=str(MAX_FETCHED_IMAGES)):
        read(with_images(*["https://host/a.png"] * (MAX_FETCHED_IMAGES + 1)), fetcher=fetch)


def test_a_fetcher_must_answer_with_data():
    """What it returns is checked like a caller's address."""

    async def fetch(url):
        return "file:///etc/passwd"

    with pytest.raises(InvalidRequest):
        read(with_images("https://host/a.png"), fetcher=fetch)


def test_only_user_messages_are_fetched_for():
    """An image in another message is an error of its own."""
    with pytest.raises(InvalidRequest, match="input_text"):
        read(with_images("https://host/a.png", role="system"))


# Media


def png_pixels(part):
    """The pixels of a PNG of ours, decoded by hand."""
    data = base64.b64decode(part.image_data)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, chunks = 8, {}
    while position < len(data):
        (size,) = struct.unpack(">I", data[position : position + 4])
        name, payload = data[position + 4 : position + 8], data[position + 8 : position + 8 + size]
        assert struct.unpack(">I", data[position + 8 + size : position + 12 + size])[0] == zlib.crc32(name + payload)
        chunks[name] = payload
        position += 12 + size
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3, 6: 4}[color]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4), (1, 1, 1), (1, 1)])
def test_weakness_40_png_of_every_shape(shape):
    """Grey, colour and alpha, down to a single pixel."""
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    part = image_from_numpy(pixels, detail="low")
    assert (part.format, part.detail, part.image) == ("png", "low", None)
    assert (png_pixels(part).reshape(shape) == pixels).all()


def test_png_of_a_strided_view():
    """Not only contiguous arrays."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)[::2, ::-1]
    assert (png_pixels(image_from_numpy(pixels)) == pixels).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2), np.uint8),
        [[1]],
    ],
)
def test_images_that_are_wrong(array):
    """Another dtype, rank or number of channels."""
    with pytest.raises(InvalidRequest):
        image_from_numpy(array)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4)])
def test_weakness_40_jpeg_by_either_name(shape):
    """ "jpg" is "jpeg", and an alpha channel does not stop it."""
    pytest.importorskip("PIL")
    part = image_from_numpy(np.full(shape, 200, np.uint8), format="JPG")
    assert part.format == "jpeg"
    assert base64.b64decode(part.image_data)[:2] == b"\xff\xd8"


def test_formats_that_cannot_be_written():
    """A format that nobody knows is an input error."""
    with pytest.raises(InvalidRequest, match="nonsense"):
        image_from_numpy(np.zeros((2, 2), np.uint8), format="nonsense")


def test_formats_without_pillow(monkeypatch):
    """The error says what is missing and what works."""
    real = builtins.__import__

    def without_pillow(name, *args):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(InvalidRequest, match="Pillow"):
        image_from_numpy(np.zeros((2, 2), np.uint8), format="jpeg")


def test_raw_parts():
    """Frames and samples stay raw until they are encoded."""
    frames, samples = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 10), np.float32)
    video = video_from_numpy_frames(frames, frames_per_second=24.0)
    assert (video.frames is frames, video.frames_per_second) == (True, 24.0)
    audio = audio_from_numpy_samples(samples, sample_rate=8000)
    assert (audio.samples is samples, audio.sample_rate) == (True, 8000)
    with pytest.raises(InvalidRequest):
        video_from_numpy_frames(frames[0])
    with pytest.raises(InvalidRequest):
        audio_from_numpy_samples(samples.astype(np.float64), sample_rate=8000)


def test_audio_becomes_wav():
    """16 bits, clipped, with the channels and the rate given."""
    samples = np.array([[0.0, 1.0, -1.0], [5.0, np.nan, 0.5]], np.float32)
    encoded = encode_audio(OutputAudioContent(samples=samples, sample_rate=8000))
    assert encoded.sample_rate == 8000
    with wave.open(io.BytesIO(base64.b64decode(encoded.audio_data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        found = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2)
    assert found.T.tolist() == [[0, 32767, -32767], [32767, 0, 16384]]
    with pytest.raises(InvalidRequest, match="mp3"):
        encode_audio(OutputAudioContent(samples=samples, sample_rate=8000, format="mp3"))


def test_encode_content():
    """Raw pixels and samples are encoded, the rest stays, frames are the caller's to encode."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert encode_content(OutputImageContent(image=pixels)) == image_from_numpy(pixels)
    text = OutputTextContent(text="x")
    assert encode_content(text) is text
    audio = OutputAudioContent(samples=np.zeros((1, 2), np.float32), sample_rate=8000)
    assert isinstance(encode_content(audio), EncodedAudioContent)
    with pytest.raises(InvalidRequest, match="EncodedVideoContent"):
        encode_content(OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)))


def test_weakness_43_imports_stay_light():
    """The contracts load no model library, no image library and no pydantic."""
    modules = "eos lora logits open_responses reasoning sampling text tokens tool_parsing vision"
    lines = [f"import tensoryard.proto.{name}" for name in modules.split()]
    lines.append("import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert not {"pydantic", "PIL", "av", "torch", "ray", "zmq", "cupy"} & set(done.stdout.split())


# The response


def output_of(*parts, status=GenerationStatus.END_OF_SEQUENCE, usage=None):
    return GenerationOutput(request_id=RequestID("r"), final_status=status, output=list(parts), usage=usage)


def test_response():
    """Ids, one assistant message, usage, and JSON that clients know."""
    out = output_of(OutputTextContent(text="x"), usage=Usage(input_tokens=3, output_tokens=4))
    response = ResponseResource.from_generation_output(out, "m", created_at=5)
    assert json.loads(msgspec.json.encode(response)) == {
        "id": "resp_r",
        "object": "response",
        "created_at": 5,
        "model": "m",
        "status": "completed",
        "incomplete_details": None,
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        "output": [
            {
                "type": "message",
                "id": "msg_r_0",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "x"}],
            },
        ],
    }
    assert ResponseResource.from_generation_output(out, "m").created_at > 1_700_000_000


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (GenerationStatus.ACTIVE, "in_progress", None),
        (GenerationStatus.END_OF_SEQUENCE, "completed", None),
        (GenerationStatus.MAXIMUM_LENGTH, "incomplete", "max_output_tokens"),
        (GenerationStatus.CANCELLED, "incomplete", "cancelled"),
    ],
)
def test_weakness_42_status_says_how_it_ended(status, said, reason):
    """Only what ended by itself is completed."""
    response = ResponseResource.from_generation_output(output_of(status=status), "m")
    assert response.status.value == response.output[0].status.value == said
    assert (response.incomplete_details and response.incomplete_details.reason) == reason


@pytest.mark.parametrize(
    "part",
    [
        OutputImageContent(image=np.zeros((2, 2), np.uint8)),
        OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)),
        OutputAudioContent(samples=np.zeros((1, 2), np.float32), sample_rate=8000),
    ],
)
def test_raw_arrays_do_not_go_into_a_response(part):
    """They are encoded first."""
    with pytest.raises(InvalidRequest, match="encode_content"):
        ResponseResource.from_generation_output(output_of(part), "m")


def test_encoded_content_goes_into_a_response():
    """Given beside the output, in place of its parts."""
    out = output_of(OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)))
    content = [
        EncodedVideoContent(video_url="https://host/clip.mp4"),
        EncodedAudioContent(audio_data="", sample_rate=1),
    ]
    response = ResponseResource.from_generation_output(out, "m", content=content)
    kinds = [part["type"] for part in json.loads(msgspec.json.encode(response))["output"][0]["content"]]
    assert kinds == ["output_video", "output_audio"]
