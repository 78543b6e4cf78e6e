"""The Open Responses API: its request body with provider options, and the response made of generated media.

The HTTP gateway reads and writes these; pipelines get the request as one of ours. Media parts of outputs are those of
`generation.py`, and the functions here encode their arrays for JSON. Nothing here opens a connection.
"""

from __future__ import annotations

import base64
import io
import struct
import time
import wave
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import GenerationStatus
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from .request import RequestID
from .text import CheckedStruct

#: Bounds that the API documents.
MAX_STOP_SEQUENCES = 4
MAX_LOGIT_BIAS = 100
MAX_FUNCTION_NAME_CHARS = 64

#: Most images of one request that are fetched from the web.
MAX_FETCHED_IMAGES = 32

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

# Numbers with their bounds.
_Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Bias = Annotated[float, msgspec.Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
_ImageSize = Annotated[int, msgspec.Meta(ge=128, multiple_of=8)]
_FunctionName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]


class ToolChoiceValueEnum(StrEnum):
    """Whether the model may or must call a tool."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class MessageRole(StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    DEVELOPER = "developer"


class MessageStatus(StrEnum):
    """How far a message, or a response, is."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


class ImageDetail(StrEnum):
    """The resolution wanted."""

    LOW = "low"
    HIGH = "high"
    AUTO = "auto"


class ReasoningEffortEnum(StrEnum):
    """How much to think."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class ReasoningSummaryEnum(StrEnum):
    """How to sum the thinking up."""

    CONCISE = "concise"
    DETAILED = "detailed"
    AUTO = "auto"


class ServiceTierEnum(StrEnum):
    """The class of service."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


class TruncationEnum(StrEnum):
    """What happens to an input that is too long."""

    AUTO = "auto"
    DISABLED = "disabled"


class VerbosityEnum(StrEnum):
    """How long an answer should be."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class IncludeEnum(StrEnum):
    """What else the response should carry."""

    REASONING_ENCRYPTED_CONTENT = "reasoning.encrypted_content"
    MESSAGE_OUTPUT_TEXT_LOGPROBS = "message.output_text.logprobs"


class GeneratedMediaResponseFormat(StrEnum):
    """How media come back: as a URL or inside the JSON."""

    URL = "url"
    B64_JSON = "b64_json"


# What goes in


class InputTextContent(CheckedStruct, frozen=True, kw_only=True):
    """Text from a user."""

    type: Literal["input_text"] = "input_text"
    text: str


class InputImageContent(CheckedStruct, frozen=True, kw_only=True):
    """An image from a user, as a `data:` URI; web addresses are replaced before the body is checked."""

    type: Literal["input_image"] = "input_image"
    image_url: Annotated[str, msgspec.Meta(pattern="^data:")]
    detail: ImageDetail | None = None


class InputFileContent(CheckedStruct, frozen=True, kw_only=True):
    """A file from a user."""

    type: Literal["input_file"] = "input_file"
    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None


class InputVideoContent(CheckedStruct, frozen=True, kw_only=True):
    """A video from a user."""

    type: Literal["input_video"] = "input_video"
    video_url: str


class RefusalContent(CheckedStruct, frozen=True, kw_only=True):
    """Why the model will not answer."""

    type: Literal["refusal"] = "refusal"
    refusal: str


class ReasoningSummaryContent(CheckedStruct, frozen=True, kw_only=True):
    """The model's thinking, summed up."""

    type: Literal["reasoning_summary"] = "reasoning_summary"
    text: str


_INPUT_PARTS: dict[str, type[msgspec.Struct]] = {
    "input_text": InputTextContent,
    "input_image": InputImageContent,
    "input_file": InputFileContent,
    "input_video": InputVideoContent,
}
_TEXT_PARTS: dict[str, type[msgspec.Struct]] = {"input_text": InputTextContent}
_ASSISTANT_PARTS: dict[str, type[msgspec.Struct]] = {
    "output_text": OutputTextContent,
    "refusal": RefusalContent,
    "reasoning_summary": ReasoningSummaryContent,
    "output_image": OutputImageContent,
}

# Unions are read by the tables here, which name what is allowed and let a message without a role be the user's; on the
# wire they are plain maps.
if TYPE_CHECKING:
    _InputContent: TypeAlias = "str | list[InputTextContent | InputImageContent | InputFileContent | InputVideoContent]"
    _SystemContent: TypeAlias = "str | list[InputTextContent]"
    _AssistantPart: TypeAlias = "OutputTextContent | RefusalContent | ReasoningSummaryContent | OutputImageContent"
    _AssistantContent: TypeAlias = "str | list[_AssistantPart]"
    _Input: TypeAlias = "str | list[UserMessage | AssistantMessage | SystemMessage | DeveloperMessage]"
    _ToolChoice: TypeAlias = "ToolChoiceValueEnum | FunctionToolChoice | AllowedToolChoice"
    _ResponseFormat: TypeAlias = "TextParam | JsonObjectParam | JsonSchemaParam"
else:
    _InputContent = _SystemContent = _AssistantContent = _Input = _ToolChoice = _ResponseFormat = Any


class UserMessage(CheckedStruct, frozen=True, kw_only=True):
    """A user's turn."""

    role: Literal["user"] = "user"
    content: _InputContent
    id: str | None = None
    status: MessageStatus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _read_content(self, _INPUT_PARTS)


class AssistantMessage(CheckedStruct, frozen=True, kw_only=True):
    """An earlier answer."""

    role: Literal["assistant"] = "assistant"
    content: _AssistantContent
    id: str | None = None
    status: MessageStatus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _read_content(self, _ASSISTANT_PARTS)


class SystemMessage(CheckedStruct, frozen=True, kw_only=True):
    """Instructions."""

    role: Literal["system"] = "system"
    content: _SystemContent
    id: str | None = None
    status: MessageStatus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _read_content(self, _TEXT_PARTS)


class DeveloperMessage(CheckedStruct, frozen=True, kw_only=True):
    """Instructions from the application's author."""

    role: Literal["developer"] = "developer"
    content: _SystemContent
    id: str | None = None
    status: MessageStatus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _read_content(self, _TEXT_PARTS)


_MESSAGES: dict[str, type[msgspec.Struct]] = {
    "user": UserMessage,
    "assistant": AssistantMessage,
    "system": SystemMessage,
    "developer": DeveloperMessage,
}


def _read_content(message: msgspec.Struct, parts: Mapping[str, type[msgspec.Struct]]) -> None:
    content = getattr(message, "content")  # noqa: B009 - each kind of message declares its own
    if isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"`content` is a text or a list of parts, not a {type(content).__name__}")
    read = [_read_union(part, "type", parts, what="a part of `content`") for part in content]
    msgspec.structs.force_setattr(message, "content", read)


def _read_union(
    value: object,
    key: str,
    kinds: Mapping[str, type[msgspec.Struct]],
    *,
    what: str,
    default: str | None = None,
) -> msgspec.Struct:
    """The struct that `value[key]` names, or `value` when it is one already."""
    if isinstance(value, msgspec.Struct) and isinstance(value, tuple(kinds.values())):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{what} is an object with a `{key}`, not a {type(value).__name__}")
    kind = value.get(key, default)
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidRequest(f"the `{key}` of {what} is one of {', '.join(kinds)}, not {str(kind)[:40]!r}")
    return _convert(value, kinds[kind], what=what)


def _convert(value: object, kind: type[_Struct], *, what: str) -> _Struct:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{what}: {error}") from None


# Tools and formats


class FunctionToolParam(CheckedStruct, frozen=True, kw_only=True):
    """A function on offer; `parameters` is a JSON schema."""

    type: Literal["function"] = "function"
    name: _FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionToolChoice(CheckedStruct, frozen=True, kw_only=True):
    """This function must be called."""

    type: Literal["function"] = "function"
    name: _FunctionName


class AllowedToolChoice(CheckedStruct, frozen=True, kw_only=True):
    """Of all tools only these may, or must, be called."""

    type: Literal["allowed_tools"] = "allowed_tools"
    tools: list[FunctionToolChoice]
    mode: ToolChoiceValueEnum = ToolChoiceValueEnum.AUTO


class TextParam(CheckedStruct, frozen=True, kw_only=True):
    """Plain text."""

    type: Literal["text"] = "text"


class JsonObjectParam(CheckedStruct, frozen=True, kw_only=True):
    """Any JSON object."""

    type: Literal["json_object"] = "json_object"


class JsonSchemaParam(CheckedStruct, frozen=True, kw_only=True):
    """JSON that follows a schema."""

    type: Literal["json_schema"] = "json_schema"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


_TOOL_CHOICES: dict[str, type[msgspec.Struct]] = {"function": FunctionToolChoice, "allowed_tools": AllowedToolChoice}
_FORMATS: dict[str, type[msgspec.Struct]] = {
    "text": TextParam,
    "json_object": JsonObjectParam,
    "json_schema": JsonSchemaParam,
}


class ReasoningParam(CheckedStruct, frozen=True, kw_only=True):
    """How much to think, and how to tell of it."""

    effort: ReasoningEffortEnum | None = None
    summary: ReasoningSummaryEnum | None = None


# Provider options: a key that is not known is an error at every level


class MaxProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Routing. `target_endpoint`: the worker's endpoint that must serve this."""

    target_endpoint: str | None = None


class ImageProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make images.

    `width` and `height` in pixels, at least 128 and multiples of 8. `steps`: denoising steps, None for the model's
    default. `guidance_scale`: 0 or more. `strength`: how far an input image may change, above 0 up to 1.
    """

    negative_prompt: str | None = None
    secondary_prompt: str | None = None
    secondary_negative_prompt: str | None = None
    guidance_scale: _NotNegative = 3.5
    true_cfg_scale: _Positive = 1.0
    width: _ImageSize | None = None
    height: _ImageSize | None = None
    steps: _AtLeastOne | None = None
    num_images: _AtLeastOne = 1
    residual_threshold: _Positive | None = None
    strength: _Share = 0.6
    cfg_normalization: bool = False
    cfg_truncation: _Positive = 1.0
    output_format: str = "jpeg"
    response_format: GeneratedMediaResponseFormat = GeneratedMediaResponseFormat.B64_JSON


class VideoProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make a video; what is None is the model's choice. Sizes in pixels."""

    negative_prompt: str | None = None
    secondary_prompt: str | None = None
    secondary_negative_prompt: str | None = None
    width: _AtLeastOne | None = None
    height: _AtLeastOne | None = None
    steps: _AtLeastOne | None = None
    frames_per_second: _AtLeastOne | None = None
    num_frames: _AtLeastOne | None = None
    guidance_scale: _NotNegative | None = None
    guidance_scale_2: _Positive | None = None
    true_cfg_scale: _Positive | None = None
    flow_shift: _Positive | None = None
    response_format: GeneratedMediaResponseFormat = GeneratedMediaResponseFormat.URL


class AudioProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make sound. `audio_duration` in seconds; `audio_format` is "wav", in any case and with blanks around."""

    lyrics: str | None = None
    audio_duration: _Positive | None = None
    steps: _AtLeastOne | None = None
    guidance_scale: _Positive | None = None
    audio_format: str = "wav"

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.audio_format.strip().lower()
        if wanted != "wav":
            raise InvalidRequest(f"`audio_format` is wav, not {wanted!r}")
        msgspec.structs.force_setattr(self, "audio_format", wanted)


class ProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options beyond the API, by kind; each may be left out."""

    max: MaxProviderOptions | None = None
    image: ImageProviderOptions | None = None
    video: VideoProviderOptions | None = None
    audio: AudioProviderOptions | None = None


def _default_provider_options() -> ProviderOptions:
    return ProviderOptions(image=ImageProviderOptions())


# The request


class OpenResponsesRequestBody(CheckedStruct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a request; top-level keys that are not known are ignored when it is decoded.

    `input` is a text, or a list of at most one message (without a role it is the user's). Streaming is not offered.
    What is not given is None.

    Raises InvalidRequest (a ValueError) naming the field and what is allowed, also when decoded.
    """

    model: str
    input: _Input

    temperature: _Temperature | None = None
    top_p: _Probability | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    max_output_tokens: _AtLeastOne | None = None
    n: _AtLeastOne | None = None
    logit_bias: dict[str, _Bias] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None

    tools: list[FunctionToolParam] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    response_format: _ResponseFormat | None = None
    modalities: list[str] | None = None
    verbosity: VerbosityEnum | None = None
    include: list[IncludeEnum] | None = None

    reasoning: ReasoningParam | None = None
    reasoning_reference: Any = None

    citations: Any = None
    metadata: dict[str, str] | None = None
    service_tier: ServiceTierEnum | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    truncation: TruncationEnum | None = None
    user: str | None = None

    provider_options: ProviderOptions = msgspec.field(default_factory=_default_provider_options)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream:
            raise InvalidRequest("`stream` is not offered here: leave it out")
        msgspec.structs.force_setattr(self, "input", _read_input(self.input))
        msgspec.structs.force_setattr(self, "tool_choice", _read_tool_choice(self.tool_choice))
        if self.response_format is not None:
            read = _read_union(self.response_format, "type", _FORMATS, what="`response_format`")
            msgspec.structs.force_setattr(self, "response_format", read)

    @classmethod
    def from_json(cls, data: bytes | str) -> OpenResponsesRequestBody:
        """The body in JSON; InvalidRequest (a ValueError) for anything that is none."""
        return _convert(_read_json(data), cls, what="the body of the request")


def _read_input(value: object) -> str | list[Any]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"`input` is a text or a list of messages, not a {type(value).__name__}")
    if len(value) > 1:
        raise InvalidRequest(f"`input` holds at most one message, not {len(value)}")
    return [_read_union(item, "role", _MESSAGES, what="a message of `input`", default="user") for item in value]


def _read_tool_choice(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, str):
        allowed = [choice.value for choice in ToolChoiceValueEnum]
        if value not in allowed:
            raise InvalidRequest(f"`tool_choice` is one of {', '.join(allowed)}, or an object; not {value[:40]!r}")
        return ToolChoiceValueEnum(value)
    return _read_union(value, "type", _TOOL_CHOICES, what="`tool_choice`")


def _read_json(data: bytes | str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body of the request is a JSON object: {error}") from None


class OpenResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A body and the id it is known by. Hashable where the body is: with a text as input."""

    request_id: RequestID
    body: OpenResponsesRequestBody

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, RequestID) or not isinstance(self.body, OpenResponsesRequestBody):
            raise InvalidRequest("an OpenResponsesRequest has a RequestID and an OpenResponsesRequestBody")

    @classmethod
    async def from_fastapi_request(cls, request: Any) -> OpenResponsesRequest:
        """The request behind an HTTP request, whose id the middleware left in `request.state.request_id`.

        Web addresses of images in user messages are replaced by what `request.app.state.media_data_uri_fetcher` makes
        of them (`async (url) -> data URI`): which hosts may be asked, and for how much, is that function's to decide.

        Raises InvalidRequest (a ValueError) without an id, for a body that is none, and for a web address where there
        is no such function.
        """
        request_id = getattr(request.state, "request_id", None)
        if not request_id:
            raise InvalidRequest("the HTTP request has no request id: a middleware must set request.state.request_id")
        body = _read_json(await request.body())
        app = getattr(request, "app", None)
        await _fetch_images(body, getattr(getattr(app, "state", None), "media_data_uri_fetcher", None))
        return cls(
            request_id=request_id if isinstance(request_id, RequestID) else RequestID(request_id),
            body=_convert(body, OpenResponsesRequestBody, what="the body of the request"),
        )

    def __str__(self) -> str:
        return str(self.request_id)


async def _fetch_images(body: dict[str, Any], fetch: Callable[[str], Awaitable[str]] | None) -> None:
    parts = _web_images(body)
    if not parts:
        return
    # The texts below name no address: it may hold a secret, and errors are logged.
    if fetch is None:
        raise InvalidRequest("an `image_url` is a data: URI here; images are not fetched from the web")
    if len(parts) > MAX_FETCHED_IMAGES:
        raise InvalidRequest(f"at most {MAX_FETCHED_IMAGES} images are fetched from the web, not {len(parts)}")
    for part in parts:
        part["image_url"] = await fetch(part["image_url"])


def _web_images(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The image parts of user messages with a web address; what is no such thing is left for the checks to name."""
    messages = body.get("input")
    contents = (
        message.get("content")
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and message.get("role", "user") == "user"
    )
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return [part for part in parts if isinstance(part, dict) and _is_web_image(part)]


def _is_web_image(part: dict[str, Any]) -> bool:
    url = part.get("image_url")
    is_web = isinstance(url, str) and url[:8].lower().startswith(("http://", "https://"))
    return part.get("type") == "input_image" and is_web


# What comes out


class EncodedVideoContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_video"):
    """A finished clip: base64 in `video_data`, or an address in `video_url`."""

    video_data: str | None = None
    video_url: str | None = None
    format: str | None = None
    frames_per_second: float | None = None


class EncodedAudioContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_audio"):
    """Finished sound: base64 in `audio_data`; `sample_rate` in Hz."""

    audio_data: str
    sample_rate: int
    format: str = "wav"


#: What a response can carry: all of it goes into JSON as it is.
ResponseContent = (
    OutputTextContent
    | OutputImageContent
    | EncodedVideoContent
    | EncodedAudioContent
    | RefusalContent
    | ReasoningSummaryContent
)

_PNG_COLOR_TYPES = {1: 0, 3: 2, 4: 6}


def image_from_numpy(
    array: npt.NDArray[np.uint8],
    format: str = "png",  # noqa: A002 - the documented name
    detail: str | None = None,
) -> OutputImageContent:
    """An image part with the pixels encoded, as base64.

    `array`: uint8 `(height, width)` or `(height, width, channels)` with 1, 3 or 4 channels. PNG is always there; other
    formats ("jpeg", also called "jpg", "webp") need Pillow, and JPEG leaves an alpha channel out.

    Raises InvalidRequest (a ValueError) for another array or format.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise InvalidRequest("an image is a uint8 array of shape (height, width) or (height, width, channels)")
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.shape[2] not in _PNG_COLOR_TYPES:
        raise InvalidRequest(f"an image has 1, 3 or 4 channels, not {pixels.shape[2]}")
    name = {"jpg": "jpeg"}.get(format.strip().lower(), format.strip().lower())
    data = _png(pixels) if name == "png" else _with_pillow(pixels, name)
    return OutputImageContent(image_data=base64.b64encode(data).decode(), format=name, detail=detail)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    height, width, channels = pixels.shape
    # Each row begins with its filter: 0, none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level=3)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _with_pillow(pixels: npt.NDArray[np.uint8], name: str) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise InvalidRequest(f"the image format {name!r} needs Pillow; png does not") from None
    if name == "jpeg" and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidRequest(f"the image format {name!r} cannot be written: {error}") from None
    return buffer.getvalue()


def video_from_numpy_frames(
    frames: npt.NDArray[np.uint8],
    *,
    frames_per_second: float | None = None,
    format: str | None = None,  # noqa: A002 - the documented name
) -> OutputVideoContent:
    """A video part with raw frames, uint8 `(time, height, width, channels)`; InvalidRequest for another array."""
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4:
        raise InvalidRequest("frames are a uint8 array of shape (time, height, width, channels)")
    return OutputVideoContent(frames=frames, frames_per_second=frames_per_second, format=format)


def audio_from_numpy_samples(
    samples: npt.NDArray[np.float32],
    *,
    sample_rate: int,
    format: str | None = None,  # noqa: A002 - the documented name
) -> OutputAudioContent:
    """An audio part with raw samples, float32 `(channels, samples)` in [-1, 1]; InvalidRequest for another array."""
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 2:
        raise InvalidRequest("samples are a float32 array of shape (channels, samples)")
    return OutputAudioContent(samples=samples, sample_rate=sample_rate, format=format)


def encode_audio(audio: OutputAudioContent) -> EncodedAudioContent:
    """The sound as a WAV file of 16-bit samples; what lies outside [-1, 1] is clipped, what is no number is silence."""
    if audio.format not in (None, "wav"):
        raise InvalidRequest(f"sound is encoded as wav, not {audio.format!r}")
    samples = np.clip(np.nan_to_num(np.atleast_2d(audio.samples)), -1.0, 1.0)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        file.writeframes(np.rint(samples.T * 32767).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return EncodedAudioContent(audio_data=data, sample_rate=audio.sample_rate)


def encode_content(part: OutputContent | ResponseContent) -> ResponseContent:
    """A part ready for a response: raw pixels become PNG, raw samples WAV, the rest stays.

    Raises InvalidRequest (a ValueError) for raw video frames, for which no encoder is here: give the clip as an
    `EncodedVideoContent`.
    """
    if isinstance(part, OutputVideoContent):
        raise InvalidRequest("video frames are encoded by the caller: give the clip as an EncodedVideoContent")
    if isinstance(part, OutputAudioContent):
        return encode_audio(part)
    if isinstance(part, OutputImageContent) and part.image is not None:
        return image_from_numpy(part.image, part.format or "png", part.detail)
    return part


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a request consumed and made, in tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """The API's form of a usage."""
        total = usage.input_tokens + usage.output_tokens
        return cls(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=total)


class ResponseMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer inside a response."""

    id: str
    status: MessageStatus
    content: list[ResponseContent]
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response is incomplete: "max_output_tokens" or "cancelled"."""

    reason: str


#: How a generation ended, in the API's words.
_STATUSES: dict[GenerationStatus, tuple[MessageStatus, str | None]] = {
    GenerationStatus.ACTIVE: (MessageStatus.IN_PROGRESS, None),
    GenerationStatus.END_OF_SEQUENCE: (MessageStatus.COMPLETED, None),
    GenerationStatus.MAXIMUM_LENGTH: (MessageStatus.INCOMPLETE, "max_output_tokens"),
    GenerationStatus.CANCELLED: (MessageStatus.INCOMPLETE, "cancelled"),
}


class ResponseResource(msgspec.Struct, frozen=True, kw_only=True):
    """A response, ready for `msgspec.json.encode`. `created_at`: seconds since 1970."""

    id: str
    created_at: int
    model: str
    status: MessageStatus
    output: list[ResponseMessage]
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    object: Literal["response"] = "response"

    @classmethod
    def from_generation_output(
        cls,
        out: GenerationOutput,
        model: str,
        *,
        content: Sequence[ResponseContent] | None = None,
        created_at: int | None = None,
    ) -> ResponseResource:
        """The response for an output, as one assistant message; its status says how the generation ended.

        `content` replaces the output's parts, encoded (`encode_content`). Raises InvalidRequest (a ValueError) when raw
        pixels, frames or samples remain.
        """
        status, reason = _STATUSES[out.final_status]
        parts = [_finished(part) for part in (out.output if content is None else content)]
        message = ResponseMessage(id=f"msg_{out.request_id}_0", status=status, content=parts)
        return cls(
            id=f"resp_{out.request_id}",
            created_at=int(time.time()) if created_at is None else created_at,
            model=model,
            status=status,
            output=[message],
            incomplete_details=None if reason is None else IncompleteDetails(reason=reason),
            usage=None if out.usage is None else ResponseUsage.of(out.usage),
        )


def _finished(part: OutputContent | ResponseContent) -> ResponseContent:
    raw_pixels = isinstance(part, OutputImageContent) and part.image is not None
    if raw_pixels or isinstance(part, OutputVideoContent | OutputAudioContent):
        raise InvalidRequest(f"a raw {type(part).__name__} cannot go into a response: encode_content() it first")
    return part
