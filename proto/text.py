"""Text: the request, the state of a generation, the batch input and the streamed output of `TEXT_GENERATION`.

Tokens are in `tokens.py`, stop rules in `eos.py`, sampling in `sampling.py`; `vision.py` adds images to the context.
The workers' schedulers drive a `TextContext` one committed token at a time; nothing here knows a model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from inspect import get_annotations
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NotRequired,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    overload,
    runtime_checkable,
)
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import BaseContext, GenerationStatus
from .eos import EOSTracker
from .pipeline import PipelineInputs
from .request import DUMMY_REQUEST_ID, RequestID
from .sampling import SamplingParams
from .tokens import MAX_TOKEN_ID, LogProbabilities, TokenBuffer
from .validation import require_at_least, require_model

if TYPE_CHECKING:
    from abc import ABCMeta as _ProtocolMeta
else:
    _ProtocolMeta = type(BaseContext)

logger = logging.getLogger(__name__)

#: Longest `cache_salt`, in characters: it is mixed into the hash of every block of a prompt.
MAX_CACHE_SALT_CHARS = 512

_MAX_INT32 = 2**31 - 1


class BatchType(Enum):
    """What a text batch does: context encoding (prefill) or token generation (decode)."""

    CE = "CE"
    TG = "TG"


# Messages


@cache
def _field_types(cls: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    return tuple((spec.name, spec.type) for spec in msgspec.structs.fields(cls))


class CheckedStruct(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose fields are checked against their annotations when it is built, not only when decoded.

    Dicts become the structs that the annotations name. Raises InvalidRequest (a ValueError) naming the field.
    """

    def __post_init__(self) -> None:
        for name, kind in _field_types(type(self)):
            value = getattr(self, name)
            try:
                checked = msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                raise InvalidRequest(f"`{name}` of {type(self).__name__}: {error}") from None
            if isinstance(checked, float) and not math.isfinite(checked):
                raise InvalidRequest(f"`{name}` of {type(self).__name__} is a finite number, not {checked}")
            if checked is not value:
                msgspec.structs.force_setattr(self, name, checked)


class TextContentPart(CheckedStruct, frozen=True, kw_only=True):
    """A piece of text in a message."""

    type: Literal["text"] = "text"
    text: str


class ImageContentPart(CheckedStruct, frozen=True, kw_only=True):
    """The place of an image in a message; its bytes ride on the request, in order.

    `detail` is the caller's hint at the resolution wanted; `max_long_side_pixel` bounds the longer side (pixels).
    """

    type: Literal["image"] = "image"
    detail: str | None = None
    max_long_side_pixel: int | None = None


class VideoContentPart(CheckedStruct, frozen=True, kw_only=True):
    """The place of a video in a message; its bytes ride on the request, in order.

    `fps` (frames per second) and `max_frames` bound what is looked at; the rest is as in `ImageContentPart`.
    """

    type: Literal["video"] = "video"
    fps: float | None = None
    max_frames: int | None = None
    detail: str | None = None
    max_long_side_pixel: int | None = None


#: One part of a message's content.
MessageContent = TextContentPart | ImageContentPart | VideoContentPart

_Role = Literal["system", "user", "assistant", "tool", "function", "root"]

# Parts and tools travel as plain maps: parts are told apart by their `type` when the message is built, and a tool keeps
# keys that its TypedDict does not name.
if TYPE_CHECKING:
    _Content = str | list[MessageContent]
    _Tools = list["TextGenerationRequestTool"]
else:
    _Content = Any
    _Tools = list[dict[str, Any]]


class TextGenerationRequestMessage(CheckedStruct, frozen=True, kw_only=True):
    """One turn of a chat.

    `content` is a text or a list of parts; dicts like `{"type": "image", "detail": "low"}` become parts, None becomes
    "". `tool_calls`, `tool_call_id` and `reasoning_content` reach the chat template as they are.

    Raises InvalidRequest (a ValueError) for an unknown role, an item that is no part, or an `image_url`/`video_url`
    (media travel as bytes on the request).
    """

    role: _Role
    content: _Content = ""
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "content", _content(self.content))

    @property
    def number_of_images(self) -> int:
        """Image placeholders; 0 for string content."""
        return sum(isinstance(part, ImageContentPart) for part in self.content)

    @property
    def number_of_videos(self) -> int:
        """Video placeholders; 0 for string content."""
        return sum(isinstance(part, VideoContentPart) for part in self.content)

    def flatten_content(self) -> dict[str, Any]:
        """The message with its text parts joined by newlines, as a dict for a template that takes bare strings.

        Raises InvalidRequest (a ValueError) when a part is no text.
        """
        flat: dict[str, Any] = {"role": self.role, "content": self.content}
        if not isinstance(self.content, str):
            texts = [part.text for part in self.content if isinstance(part, TextContentPart)]
            if len(texts) != len(self.content):
                raise InvalidRequest("only a message whose parts are all text can be flattened")
            flat["content"] = "\n".join(texts)
        for name in ("tool_calls", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                flat[name] = value
        return flat


def _content(content: object) -> str | list[MessageContent]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return [_part(item) for item in content]
    raise InvalidRequest(f"the content of a message is a text or a list of parts, not a {type(content).__name__}")


def _part(item: object) -> MessageContent:
    if isinstance(item, TextContentPart | ImageContentPart | VideoContentPart):
        return item
    if not isinstance(item, dict):
        raise InvalidRequest(f"a part of a message is a dict with a `type`, not a {type(item).__name__}")
    try:
        match item.get("type"):
            case "text":
                return TextContentPart(text=item.get("text") or item.get("content") or "")
            case "image":
                return msgspec.convert(item, ImageContentPart)
            case "video":
                return msgspec.convert(item, VideoContentPart)
            case "image_url" | "video_url" as kind:
                raise InvalidRequest(f"a `{kind}` part is not taken here: send the bytes on the request")
            case kind:
                raise InvalidRequest(f"a part of a message has the type text, image or video, not {kind!r}")
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a part of a message: {error}") from None


# The request


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
    placeholders of the messages, one each. `decoded_images` (1:1 with `images`, None where decoding was skipped) stay
    in this process: they are no dataclass field and never travel. `max_decoded_bytes`: allowance for the decoded
    frames of one video. `timestamp_ns`: arrival, 0 unknown. `logprobs`: how many of the most likely tokens to report
    on, 0 for none; `echo`: on the prompt too. `cache_salt` keeps prefix-cache entries apart.

    Raises InvalidRequest (a ValueError) for both a prompt and messages, media with a text prompt, counts of media and
    placeholders that differ, or a field of the wrong kind. The caller's lists are copied.
    """

    request_id: RequestID = field(default_factory=RequestID)
    model_name: str = ""
    prompt: str | Sequence[int] | None = None
    messages: list[TextGenerationRequestMessage] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
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
        require_model(self.model_name)
        require_at_least("logprobs", self.logprobs, 0)
        require_at_least("max_decoded_bytes", self.max_decoded_bytes, 0)
        if not isinstance(self.sampling_params, SamplingParams):
            raise InvalidRequest(f"`sampling_params` is a SamplingParams, not a {type(self.sampling_params).__name__}")
        if self.cache_salt is not None and len(self.cache_salt) > MAX_CACHE_SALT_CHARS:
            raise InvalidRequest(f"`cache_salt` has at most {MAX_CACHE_SALT_CHARS} characters")
        self._put("prompt", _prompt(self.prompt))
        self._put("messages", _messages(self.messages))
        self._put("response_format", _response_format(self.response_format))
        self._put("images", _media("images", self.images))
        self._put("videos", _media("videos", self.videos))
        # A decoder builds the request without this attribute.
        self._put("decoded_images", list(self.__dict__.get("decoded_images", ())))
        self._check_together()

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

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


def _media(name: str, items: object) -> list[bytes]:
    if not isinstance(items, list | tuple) or not all(isinstance(item, bytes) for item in items):
        raise InvalidRequest(f"`{name}` is a list of bytes, each an encoded file")
    return list(items)


# The context


@dataclass
class SpecDecodingState:
    """Drafts of speculative decoding: those to verify in the next batch, and those in flight.

    `maybe_accepted_draft_tokens` only serves to reserve cache for the case that all are accepted.
    """

    draft_tokens_to_verify: list[int] = field(default_factory=list)
    maybe_accepted_draft_tokens: list[int] = field(default_factory=list)


class GrammarMatcher(Protocol):
    """The automaton of a grammar, as structured output's backends have it."""

    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        """Consume tokens as far as the grammar allows; how many were consumed."""
        ...


#: Protocol -> class -> the members that the class itself does not have and an instance must.
_missing_members: WeakKeyDictionary[type, WeakKeyDictionary[type, frozenset[str]]] = WeakKeyDictionary()


class _ContextMeta(_ProtocolMeta):
    """Makes `isinstance` look members up by name, once per class, and run none of them.

    The standard check of a protocol runs every property of the object: 61 us for a text context, and side effects.
    """

    def __instancecheck__(cls, instance: object) -> bool:  # noqa: N805 - the base is a metaclass
        if not getattr(cls, "_is_protocol", False):
            return super().__instancecheck__(instance)
        known = _missing_members.setdefault(cls, WeakKeyDictionary())
        kind = type(instance)
        missing = known.get(kind)
        if missing is None:
            missing = known[kind] = _members(cls) - set(dir(kind))
        return not missing or missing <= getattr(instance, "__dict__", {}).keys()


def _members(protocol: type) -> frozenset[str]:
    names = (name for base in protocol.__mro__ for name in (*vars(base), *get_annotations(base)))
    return frozenset(name for name in names if not name.startswith("_"))


@runtime_checkable
class TextGenerationContext(BaseContext, Protocol, metaclass=_ContextMeta):
    """The state of one text request, as schedulers and pipelines may rely on it; `TextContext` is ours."""

    eos_tracker: EOSTracker
    sampling_params: SamplingParams
    cached_prefix_length: int | None
    in_reasoning_phase: bool

    @property
    def tokens(self) -> TokenBuffer:
        """All token state."""
        ...

    @property
    def max_length(self) -> int | None:
        """Most tokens in all, prompt and generated."""
        ...

    @property
    def min_tokens(self) -> int:
        """Fewest tokens to generate."""
        ...

    @property
    def log_probabilities(self) -> int:
        """How many of the most likely tokens to report on; 0 is off."""
        ...

    @property
    def log_probabilities_echo(self) -> bool:
        """Whether to report on prompt tokens too."""
        ...

    @property
    def matcher(self) -> Any | None:
        """The grammar's automaton, None without one."""
        ...

    def set_matcher(self, matcher: Any) -> None:
        """Hold the answer to a grammar from here on."""
        ...

    @property
    def json_schema(self) -> str | None:
        """The schema that the answer is held to."""
        ...

    @property
    def is_initial_prompt(self) -> bool:
        """True until a token has been appended since creation or `reset`."""
        ...

    @property
    def spec_decoding_state(self) -> SpecDecodingState:
        """Drafts of speculative decoding."""
        ...

    def reset(self) -> None:
        """Fold everything into a new prompt, as preemption does."""
        ...

    def compute_num_available_steps(self, max_seq_len: int) -> int:
        """How many tokens still fit into `max_seq_len`; may be 0 or less."""
        ...

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int32]]:
        """For each step, which logits to suppress."""
        ...

    def advance_token_buffer(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token, without the grammar."""
        ...

    def advance_fsm(self, token: int) -> bool:
        """Advance the grammar alone; False when there is none."""
        ...

    def update(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token and advance the grammar."""
        ...

    def update_with_future_token(self) -> None:
        """Append a placeholder for a token that is still being computed."""
        ...

    def realize_future_token(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Replace the placeholder."""
        ...

    def to_generation_output(self) -> TextGenerationOutput:
        """Drain the tokens not yet streamed."""
        ...


TextGenerationContextType = TypeVar("TextGenerationContextType", bound=TextGenerationContext)


class _Status:
    """The status of a context: it ends once, and the first ending stays."""

    @overload
    def __get__(self, context: None, owner: type) -> GenerationStatus: ...

    @overload
    def __get__(self, context: TextContext, owner: type) -> GenerationStatus: ...

    def __get__(self, context: TextContext | None, owner: type) -> GenerationStatus:
        status: GenerationStatus = GenerationStatus.ACTIVE if context is None else vars(context)["_status"]
        return status

    def __set__(self, context: TextContext, status: GenerationStatus) -> None:
        status = GenerationStatus(status)
        current = vars(context).get("_status", GenerationStatus.ACTIVE)
        if current is GenerationStatus.ACTIVE:
            vars(context)["_status"] = status
        elif status is GenerationStatus.ACTIVE:
            raise ValueError(f"request {context.request_id} has ended ({current.value}) and cannot become active again")


@dataclass(kw_only=True, eq=False)
class TextContext:
    """The state of one text request inside a worker; satisfies `TextGenerationContext`.

    `max_length` caps all tokens, prompt included. `status` ends once: the first ending stays whatever is set or
    appended later. Until `sampling_params.min_new_tokens` tokens are there, no end token, sequence or stop string ends
    the request, and preemption does not start that count again.

    Raises InvalidRequest (a ValueError), also when decoded, for a prompt and minimum that do not fit `max_length`, or a
    `target_endpoint` that is no `tcp://host:port` or `ipc://path`.
    """

    tokens: TokenBuffer
    max_length: int
    request_id: RequestID = field(default_factory=RequestID)
    model_name: str = ""
    eos_tracker: EOSTracker = field(default_factory=EOSTracker)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    status: GenerationStatus = _Status()  # type: ignore[assignment]
    log_probabilities: int = 0
    log_probabilities_echo: bool = False
    json_schema: str | None = None
    target_endpoint: str | None = None
    cached_prefix_length: int | None = None
    in_reasoning_phase: bool = False
    is_initial_prompt: bool = True
    spec_decoding_state: SpecDecodingState = field(default_factory=SpecDecodingState)
    #: Ids from here on are refused; None when not known.
    vocab_size: int | None = None
    cache_salt: str | None = None
    #: Index of the first token ever generated: the prompt's length at creation, which `reset` does not move.
    first_generated: int = -1
    #: Tokens `[start, end)` that a `reset` made prompt before they were streamed.
    undelivered: tuple[int, int] | None = None
    #: Index of a commit's first token to its log probabilities, until they are streamed.
    log_probabilities_data: dict[int, LogProbabilities] = field(default_factory=dict)
    #: Tells contexts apart on the wire, so that none is decoded as its base and loses fields.
    kind: str = "text"

    if TYPE_CHECKING:
        #: Where `status` is kept.
        _status: GenerationStatus = field(init=False)

    def __post_init__(self) -> None:
        if self.first_generated < 0:
            self.first_generated = self.tokens.prompt_length
        self._matcher: GrammarMatcher | None = None
        self._check()

    def _check(self) -> None:
        kind = type(self).__dataclass_fields__["kind"].default
        if self.kind != kind:
            raise InvalidRequest(f"a {type(self).__name__} is of kind {kind!r}, not {self.kind!r}")
        if not 1 <= self.first_generated <= self.tokens.prompt_length:
            raise InvalidRequest(f"`first_generated` {self.first_generated} lies outside the prompt")
        if self.undelivered is not None:
            start, end = self.undelivered
            if not self.first_generated <= start <= end <= self.tokens.prompt_length:
                raise InvalidRequest(f"`undelivered` {self.undelivered} lies outside the folded tokens")
        if self.first_generated + self.min_tokens > self.max_length:
            raise InvalidRequest(
                f"a prompt of {self.first_generated} tokens and at least {self.min_tokens} new ones do not fit "
                f"max_length {self.max_length}",
            )
        _check_endpoint(self.target_endpoint)

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self._status is not GenerationStatus.ACTIVE

    @property
    def cancelled(self) -> bool:
        """Whether the caller cancelled, or the deadline passed."""
        return self._status is GenerationStatus.CANCELLED

    @property
    def min_tokens(self) -> int:
        """Fewest tokens to generate: `sampling_params.min_new_tokens`."""
        return self.sampling_params.min_new_tokens

    @property
    def matcher(self) -> GrammarMatcher | None:
        """The grammar's automaton; None without one, and once the grammar is no longer enforced."""
        return self._matcher

    def set_matcher(self, matcher: GrammarMatcher | None) -> None:
        """Hold the answer to a grammar from here on; the automaton stays in this process."""
        self._matcher = matcher

    def compute_num_available_steps(self, max_seq_len: int) -> int:
        """How many tokens still fit into `max_seq_len` before the active window's end; may be 0 or less."""
        return max_seq_len - (len(self.tokens) - self.tokens.active_length)

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int32]]:
        """For each of the next steps the logits to suppress, int32 `(n, 2)`: rows `(0, end token id)`.

        Empty, `(0, 2)`, outside the first `min_tokens` tokens.
        """
        # The ids come from callers: one beyond the vocabulary must not become an index.
        limit = self.vocab_size or _MAX_INT32
        ids = sorted(token for token in self.eos_tracker.eos_token_ids if token < limit)
        position = self.tokens.current_position
        window = range(self.first_generated, self.first_generated + self.min_tokens)
        return [
            np.array([(0, token) for token in ids] if step in window else [], np.int32).reshape(-1, 2)
            for step in range(position, position + num_steps)
        ]

    # One token at a time

    def update(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token and advance the grammar by it; see `advance_token_buffer`."""
        if self._commit(new_token, log_probabilities) and self._matcher is not None:
            self.advance_fsm(new_token)

    def advance_token_buffer(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token without the grammar, and end the request where a rule or `max_length` says so.

        While the prompt is worked on in chunks the token means nothing: the next chunk is made active instead.
        Raises InvalidRequest (a ValueError) for an id outside the vocabulary, before anything has changed.
        """
        self._commit(new_token, log_probabilities)

    def _commit(self, token: int, log_probabilities: LogProbabilities | None) -> bool:
        """False when the token was only the end of a chunk."""
        tokens = self.tokens
        if tokens.actively_chunked:
            tokens.advance_chunk()
            return False
        self._check_id(token)
        position = len(tokens)
        tokens.advance_with_token(token)
        self.is_initial_prompt = False
        if log_probabilities is not None:
            self.log_probabilities_data[position] = log_probabilities
        if self._status is GenerationStatus.ACTIVE:
            if self._ends_with(token, position):
                self._status = GenerationStatus.END_OF_SEQUENCE
            elif position + 1 >= self.max_length:
                self._status = GenerationStatus.MAXIMUM_LENGTH
        return True

    def _check_id(self, token: int) -> None:
        if self.vocab_size is not None and token >= self.vocab_size:
            raise InvalidRequest(f"token id {token} is outside the vocabulary of {self.vocab_size}")

    def _ends_with(self, token: int, position: int) -> bool:
        """Whether the token just stored at `position` ends the request."""
        tracker = self.eos_tracker
        # In this order: almost every token is settled by the first question.
        if not tracker.may_end(token) or position < self.first_generated + self.sampling_params.min_new_tokens:
            return False
        return tracker.is_eos_from_tokens(self.tokens.all[self.first_generated :])

    def advance_fsm(self, token: int) -> bool:
        """Advance the grammar alone; whether it consumed the token. False when there is no grammar.

        An end token is not the grammar's business. A token that the grammar refuses is logged, and the grammar is not
        enforced any more: the request goes on.
        """
        if self._matcher is None or token in self.eos_tracker.eos_token_ids:
            return False
        if self._matcher.try_consume_tokens([token]) == 1:
            return True
        logger.warning("request %s: the grammar refuses token %d and is not enforced any more", self.request_id, token)
        self._matcher = None
        return False

    def update_with_text(self, piece: str) -> str | None:
        """Take the text of the tokens appended last, and end the request when a stop string is complete.

        The stop string reached, or None. For workers that decode as they go, so that nothing is computed past a stop.
        """
        tracker = self.eos_tracker
        generated = len(self.tokens) - self.tokens.has_placeholder - self.first_generated
        found = tracker.find_stop(piece)
        while found is not None:
            if generated > self.min_tokens:
                self.status = GenerationStatus.END_OF_SEQUENCE
                return found.stop
            # Too early to stop: what follows in the piece may still be the beginning of a stop that counts.
            piece = piece[max(found.start + len(found.stop), 0) :]
            found = tracker.find_stop(piece)
        return None

    # Overlapped steps: the next one is prepared while this one's token is still on the device

    def update_with_future_token(self) -> None:
        """Append a placeholder for a token still being computed; at most one, always last.

        ValueError when there is one already. While chunked, the next chunk is made active instead. The placeholder may
        reach `max_length`; it is held back from output.
        """
        if self.tokens.actively_chunked:
            self.tokens.advance_chunk()
            return
        self.tokens.advance_with_placeholder()
        self.is_initial_prompt = False
        if self._status is GenerationStatus.ACTIVE and len(self.tokens) >= self.max_length:
            self._status = GenerationStatus.MAXIMUM_LENGTH

    def realize_future_token(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Replace the placeholder by its token; an end token at `max_length` counts as the end of the sequence.

        The grammar is not advanced: it may have been when the token was sampled (`advance_fsm`). ValueError when there
        is no placeholder, or for an id outside the vocabulary, before anything has changed.
        """
        tokens = self.tokens
        if not tokens.has_placeholder:
            raise ValueError(f"request {self.request_id} has no future token to realize")
        self._check_id(new_token)
        tokens.overwrite_last_token(new_token)
        position = len(tokens) - 1
        if log_probabilities is not None:
            self.log_probabilities_data[position] = log_probabilities
        # A cap that the placeholder itself reached is no ending yet.
        capped = self._status is GenerationStatus.MAXIMUM_LENGTH and position < self.max_length
        if (capped or self._status is GenerationStatus.ACTIVE) and self._ends_with(new_token, position):
            self._status = GenerationStatus.END_OF_SEQUENCE

    # Preemption and output

    def reset(self) -> None:
        """Fold all tokens into a new prompt, as preemption does; a placeholder is dropped.

        Nothing is lost: tokens not yet streamed stay due, stop sequences still see what was generated before, and the
        minimum of new tokens is not asked for again. Drafts are dropped; status, grammar and log probabilities stay.
        """
        tokens = self.tokens
        end = len(tokens) - tokens.has_placeholder
        if tokens.has_outstanding_generated_tokens:
            start = end - len(tokens.consume_recently_generated_tokens())
            self.undelivered = (self.undelivered[0] if self.undelivered else start, end)
        tokens.reset_as_new_prompt()
        self.spec_decoding_state = SpecDecodingState()
        self.is_initial_prompt = True

    def to_generation_output(self) -> TextGenerationOutput:
        """Drain the tokens not yet streamed, with their log probabilities; the list may be empty.

        A placeholder is held back, and so is the ending by length that it may have caused.
        """
        tokens = self.tokens
        status = self._status
        if tokens.has_placeholder and status is GenerationStatus.MAXIMUM_LENGTH:
            status = GenerationStatus.ACTIVE
        start = end = len(tokens) - tokens.has_placeholder
        if tokens.has_outstanding_generated_tokens:
            start = end - len(tokens.consume_recently_generated_tokens())
        positions = [*range(*self.undelivered or (0, 0)), *range(start, end)]
        self.undelivered = None
        return TextGenerationOutput(
            request_id=self.request_id,
            tokens=[int(tokens[position]) for position in positions],
            final_status=status,
            log_probabilities=self._drain_log_probabilities(positions),
            num_cached_tokens=self.cached_prefix_length,
        )

    def _drain_log_probabilities(self, positions: Sequence[int]) -> list[LogProbabilities] | None:
        data = self.log_probabilities_data
        return [data.pop(position) for position in positions if position in data] or None if data else None


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    scheme, _, rest = endpoint.partition("://")
    if scheme not in ("tcp", "ipc") or not rest or (scheme == "tcp" and ":" not in rest):
        raise InvalidRequest(f"`target_endpoint` is tcp://host:port or ipc://path, not {endpoint!r}")


if TYPE_CHECKING:

    def _conforms(context: TextContext) -> TextGenerationContext:
        return context


# The batch and the output

_ContextType = TypeVar("_ContextType", bound=TextGenerationContext)


@dataclass(eq=True)
class TextGenerationInputs(PipelineInputs, Generic[_ContextType]):
    """A batch: one list of contexts per data-parallel replica. Everything but `batches` is counted at construction.

    `input_tokens`: active tokens of all contexts; `context_tokens`: processed ones. The per-replica lists count the
    same, without padding contexts (those with `DUMMY_REQUEST_ID`). `batch_type` is CE if any context has generated
    nothing yet (a preempted one counts), else TG. `num_steps`: tokens to generate for each.
    """

    batches: list[list[_ContextType]]
    num_steps: int = 1
    input_tokens: int = -1
    batch_type: BatchType = BatchType.TG
    per_replica_input_tokens: list[int] = field(default_factory=list)
    per_replica_context_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        contexts = self.flat_batch
        self.input_tokens = sum(context.tokens.active_length for context in contexts)
        self.context_tokens = sum(context.tokens.processed_length for context in contexts)
        prefill = any(context.tokens.generated_length == 0 for context in contexts)
        self.batch_type = BatchType.CE if prefill else BatchType.TG
        real = [[context for context in batch if not _is_padding(context)] for batch in self.batches]
        self.per_replica_input_tokens = [sum(context.tokens.active_length for context in batch) for batch in real]
        self.per_replica_context_tokens = [sum(context.tokens.processed_length for context in batch) for batch in real]

    @property
    def flat_batch(self) -> list[_ContextType]:
        """All replicas' contexts in order, a fresh list."""
        return [context for batch in self.batches for context in batch]

    @property
    def batch_size(self) -> int:
        """Contexts, padding not counted."""
        return sum(not _is_padding(context) for context in self.flat_batch)

    def __bool__(self) -> bool:
        return any(self.batches)

    @property
    def enable_echo(self) -> bool:
        """Whether any context wants log probabilities of its prompt."""
        return any(self.batch_echo)

    @property
    def enable_log_probs(self) -> bool:
        """Whether any context wants log probabilities."""
        return any(self.batch_top_log_probs)

    @cached_property
    def batch_top_log_probs(self) -> list[int]:
        """For each context how many of the most likely tokens to report on."""
        return [context.log_probabilities for context in self.flat_batch]

    @cached_property
    def batch_echo(self) -> list[bool]:
        """For each context whether to report on its prompt."""
        return [context.log_probabilities_echo for context in self.flat_batch]


def _is_padding(context: TextGenerationContext) -> bool:
    return context.request_id == DUMMY_REQUEST_ID


class TextGenerationOutput(msgspec.Struct, kw_only=True, array_like=True):
    """The tokens that one step, or several, brought for one request; `final_status` is the status after them.

    `tokens` may be empty. `log_probabilities`: one entry per commit that has them. `num_cached_tokens`: prompt tokens
    found in the prefix cache. `ttft_join_hops_ms`: diagnostics of the first chunk, in ms. `label_log_probabilities`:
    the result of label scoring. Travels as an array, without field names.
    """

    request_id: RequestID
    tokens: list[int]
    final_status: GenerationStatus
    log_probabilities: list[LogProbabilities] | None = None
    num_cached_tokens: int | None = None
    ttft_join_hops_ms: dict[str, float] | None = None
    label_log_probabilities: list[float] | None = None

    @property
    def is_done(self) -> bool:
        """Whether this ends its request."""
        return self.final_status.is_done

    @classmethod
    def merge(cls, outputs: list[TextGenerationOutput]) -> Self:
        """One output for several chunks of one request, in order; always a new object.

        Tokens and log probabilities are joined, the status is the last one's, label scores are the first there are,
        the rest is the first one's. A chunk without tokens needs no log probabilities. ValueError for no chunk, chunks
        of different requests, or tokens of which only some have log probabilities.
        """
        if not outputs:
            raise ValueError("merge() needs at least one output")
        first, last = outputs[0], outputs[-1]
        if any(output.request_id != first.request_id for output in outputs):
            raise ValueError(
                f"merge() joins chunks of one request, not of {sorted({str(o.request_id) for o in outputs})}"
            )
        scores = (output.label_log_probabilities for output in outputs)
        return cls(
            request_id=first.request_id,
            tokens=[token for output in outputs for token in output.tokens],
            final_status=last.final_status,
            log_probabilities=_join_log_probabilities(outputs),
            num_cached_tokens=first.num_cached_tokens,
            ttft_join_hops_ms=first.ttft_join_hops_ms,
            label_log_probabilities=next((score for score in scores if score is not None), None),
        )


def _join_log_probabilities(outputs: Sequence[TextGenerationOutput]) -> list[LogProbabilities] | None:
    with_tokens = [output for output in outputs if output.tokens or output.log_probabilities is not None]
    lists = [output.log_probabilities for output in with_tokens]
    given = [entries for entries in lists if entries is not None]
    if not given:
        return None
    if len(given) != len(lists):
        raise ValueError("only some of the chunks to merge have log probabilities")
    return [entry for entries in given for entry in entries]
