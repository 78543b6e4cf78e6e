"""The request of `PipelineTask.TEXT_GENERATION`: a prompt or messages, media, tools, and how to answer.

Messages are in `text_messages.py`, sampling in `sampling.py`; the worker makes a context of it (`text_context.py`).

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), its like under `max.pipelines.modeling.types` (26.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .request import RequestID
from .sampling import SamplingParams
from .text_messages import TextGenerationRequestMessage
from .tokens import MAX_TOKEN_ID
from .validation import (
    require_count,
    require_flag,
    require_id,
    require_model,
    require_options,
    require_text,
    require_whole,
)

#: Longest `cache_salt`, in characters: it is mixed into the hash of every block of a prompt.
MAX_CACHE_SALT_CHARS = 512


class TextGenerationRequestFunction(TypedDict):
    """A function that the model may call; `parameters` is a JSON schema.

    `strict` True: the arguments are held to the schema; False: only the call's envelope is; absent or None: as the
    server is set. Not checked at run time.
    """

    name: str
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any]]
    strict: NotRequired[bool | None]


class TextGenerationRequestTool(TypedDict):
    """A tool on offer; `type` is normally "function". Not checked at run time."""

    type: str
    function: TextGenerationRequestFunction


# Tools travel as plain maps: one keeps keys that its TypedDict does not name. Images are bytes or arrays, which no
# decoder tells apart by a type.
if TYPE_CHECKING:
    _Tools = list[TextGenerationRequestTool]
    _Images = list[bytes | npt.NDArray[Any]]
else:
    _Tools = list[dict[str, Any]]
    _Images = list[Any]


@dataclass
class TextGenerationResponseFormat:
    """What the answer is held to.

    `type`: for example `json_object`, `json_schema` or `grammar`. `json_schema`: None is no constraint, {} any one JSON
    value. `grammar`: for the backend; goes before `json_schema` when `type` is "grammar". `grammar_enforced`: from the
    first token on, else armed later by a tool call's opener. `tools_forced`: a tool must be called.
    `requires_structured_output_flag`: a user's schema is involved. `has_json_schema`: a response schema was given.
    """

    type: str
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    grammar_enforced: bool = False
    tools_forced: bool = False
    requires_structured_output_flag: bool = False
    has_json_schema: bool = False


@dataclass(frozen=True)
class TextGenerationRequest:
    """Ask for generated text, from a `prompt` (a text or token ids) or from chat `messages` (dicts are converted).

    `model_name` is a base model or a LoRA. `images` and `videos` are encoded bytes, matched in order to the
    placeholders of the messages, one each; an image may be an array of pixels instead, uint8 `(height, width)` or
    `(height, width, channels)`, which travels by shared-memory handle from 64 KiB on. `decoded_images` (1:1 with
    `images`, None where decoding was skipped) stay in this process: they are no dataclass field and never travel.
    `max_decoded_bytes`: allowance for the decoded frames of one video. `timestamp_ns`: arrival, 0 unknown. `logprobs`:
    how many of the most likely tokens to report on, 0 for none; `echo`: on the prompt too. `cache_salt` keeps
    prefix-cache entries apart.

    Raises InvalidRequest (a ValueError) for both a prompt and messages, media with a text prompt, counts of media and
    placeholders that differ, or a field of the wrong kind. The caller's lists are copied.
    """

    request_id: RequestID = field(default_factory=RequestID)
    model_name: str = ""
    prompt: str | Sequence[int] | None = None
    messages: list[TextGenerationRequestMessage] = field(default_factory=list)
    images: _Images = field(default_factory=list)
    videos: list[bytes] = field(default_factory=list)
    decoded_images: list[Any] = field(default_factory=list, repr=False, compare=False)
    max_decoded_bytes: int | None = None
    tools: _Tools | None = None
    response_format: TextGenerationResponseFormat | None = None
    timestamp_ns: int = 0
    request_path: str = "/"
    logprobs: int = 0
    echo: bool = False
    chat_template_options: dict[str, Any] | None = None
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    target_endpoint: str | None = None
    dkv_cache_hint: dict[str, Any] | None = None
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        self._check_fields()
        self._put("prompt", _prompt(self.prompt))
        self._put("messages", _messages(self.messages))
        self._put("tools", _tools(self.tools))
        self._put("response_format", _response_format(self.response_format))
        self._put("images", _media("images", self.images, bytes | np.ndarray))
        self._put("videos", _media("videos", self.videos))
        # A decoder builds the request without this attribute.
        self._put("decoded_images", list(self.__dict__.get("decoded_images", ())))
        self._check_together()

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_fields(self) -> None:
        require_id(self.request_id)
        require_model(self.model_name, "model_name")
        if not isinstance(self.sampling_params, SamplingParams):
            raise InvalidRequest(f"`sampling_params` is a SamplingParams, not a {type(self.sampling_params).__name__}")
        for name in ("logprobs", "timestamp_ns"):
            require_count(name, getattr(self, name))
        require_whole("max_decoded_bytes", self.max_decoded_bytes, 0)
        require_text("request_path", self.request_path)
        require_flag("echo", self.echo)
        for name, check in _OPTIONAL.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))
        if len(self.cache_salt or "") > MAX_CACHE_SALT_CHARS:
            raise InvalidRequest(f"`cache_salt` has at most {MAX_CACHE_SALT_CHARS} characters")

    def _check_together(self) -> None:
        if self.prompt and self.messages:
            raise InvalidRequest("a TextGenerationRequest takes `prompt` or `messages`, not both")
        for name, placed, given in (
            ("images", self.number_of_images, len(self.images)),
            ("videos", self.number_of_videos, len(self.videos)),
        ):
            if given and self.prompt and isinstance(self.prompt, str):
                raise InvalidRequest(f"`{name}` need `messages` with a placeholder for each; a text prompt has none")
            if placed != given:
                raise InvalidRequest(f"the messages have {placed} placeholders for `{name}`, the request has {given}")
        if self.decoded_images and len(self.decoded_images) != len(self.images):
            raise InvalidRequest("`decoded_images` has one entry for each of `images`, or none at all")

    @cached_property
    def number_of_images(self) -> int:
        """Image placeholders in all messages."""
        return sum(message.number_of_images for message in self.messages)

    @cached_property
    def number_of_videos(self) -> int:
        """Video placeholders in all messages."""
        return sum(message.number_of_videos for message in self.messages)

    def images_for_processing(self) -> list[Any]:
        """Each image: decoded where it has been, else its bytes. ValueError when the two lists differ in length."""
        if not self.decoded_images:
            return list(self.images)
        pairs = zip(self.images, self.decoded_images, strict=True)
        return [encoded if decoded is None else decoded for encoded, decoded in pairs]

    def __str__(self) -> str:
        return str(self.request_id)


# Codecs, asdict() and replace() go by this table: without the entry they pass the decoded images by.
del TextGenerationRequest.__dataclass_fields__["decoded_images"]


#: Fields that may be None, and what else they are.
_OPTIONAL: dict[str, Callable[[str, object], None]] = {
    "chat_template_options": lambda name, value: require_options(value, name),
    "dkv_cache_hint": lambda name, value: require_options(value, name),
    "target_endpoint": require_text,
    "cache_salt": require_text,
}


def _prompt(prompt: object) -> str | Sequence[int] | None:
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        # C-level passes only: prompts of 100 000 tokens are ordinary.
        kinds = set(map(type, prompt))
        if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            ids = list(map(int, prompt))
            if not ids or 0 <= min(ids) <= max(ids) <= MAX_TOKEN_ID:
                return ids
    raise InvalidRequest(f"`prompt` is a text or a sequence of token ids, not this {type(prompt).__name__}")


def _messages(messages: object) -> list[TextGenerationRequestMessage]:
    if not isinstance(messages, list | tuple):
        raise InvalidRequest(f"`messages` is a list, not a {type(messages).__name__}")
    return [_message(message) for message in messages]


def _message(message: object) -> TextGenerationRequestMessage:
    if isinstance(message, TextGenerationRequestMessage):
        return message
    if not isinstance(message, dict):
        raise InvalidRequest(f"a message is a TextGenerationRequestMessage or a dict, not a {type(message).__name__}")
    try:
        return msgspec.convert(message, TextGenerationRequestMessage)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a message: {error}") from None


def _response_format(value: object) -> TextGenerationResponseFormat | None:
    if value is None or isinstance(value, TextGenerationResponseFormat):
        return value
    try:
        return msgspec.convert(value, TextGenerationResponseFormat)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`response_format`: {error}") from None


def _tools(tools: object) -> list[Any] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest("`tools` is a list of dicts, each a TextGenerationRequestTool")
    return list(tools)


def _media(name: str, items: object, kinds: Any = bytes) -> list[Any]:
    if not isinstance(items, list | tuple) or not all(isinstance(item, kinds) for item in items):
        or_arrays = "" if kinds is bytes else ", or arrays of pixels"
        raise InvalidRequest(f"`{name}` is a list of bytes, each an encoded file{or_arrays}")
    return list(items)
