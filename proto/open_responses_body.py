"""The body of an Open Responses request: the input, how to sample, tools, formats, and provider options.

Messages are in `open_responses_messages.py`, options in `open_responses_options.py`; the request that carries the body
is in `open_responses.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from ..errors import InvalidRequest
from .checked import CheckedStruct
from .open_responses_enums import (
    IncludeEnum,
    ReasoningEffortEnum,
    ReasoningSummaryEnum,
    ServiceTierEnum,
    ToolChoiceValueEnum,
    TruncationEnum,
    VerbosityEnum,
)
from .open_responses_messages import (
    MESSAGES,
    AssistantMessage,
    DeveloperMessage,
    SystemMessage,
    UserMessage,
    convert,
    read_union,
)
from .open_responses_options import ImageProviderOptions, ProviderOptions

#: Bounds that the API documents.
MAX_STOP_SEQUENCES = 4
MAX_LOGIT_BIAS = 100
MAX_FUNCTION_NAME_CHARS = 64

# Numbers and names with their bounds.
_Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Bias = Annotated[float, msgspec.Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
_FunctionName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]


# On the wire plain maps, read by the tables below; a message without a role is the user's.
if TYPE_CHECKING:
    _Input: TypeAlias = "str | list[UserMessage | AssistantMessage | SystemMessage | DeveloperMessage]"
    _ToolChoice: TypeAlias = "ToolChoiceValueEnum | FunctionToolChoice | AllowedToolChoice"
    _ResponseFormat: TypeAlias = "TextParam | JsonObjectParam | JsonSchemaParam"
else:
    _Input = _ToolChoice = _ResponseFormat = Any


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


def _default_provider_options() -> ProviderOptions:
    return ProviderOptions(image=ImageProviderOptions())


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
            read = read_union(self.response_format, "type", _FORMATS, what="`response_format`")
            msgspec.structs.force_setattr(self, "response_format", read)

    @classmethod
    def from_json(cls, data: bytes | str) -> OpenResponsesRequestBody:
        """The body in JSON; InvalidRequest (a ValueError) for anything that is none."""
        return convert(read_json(data), cls, what="the body of the request")


def _read_input(value: object) -> str | list[Any]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"`input` is a text or a list of messages, not a {type(value).__name__}")
    if len(value) > 1:
        raise InvalidRequest(f"`input` holds at most one message, not {len(value)}")
    return [read_union(item, "role", MESSAGES, what="a message of `input`", default="user") for item in value]


def _read_tool_choice(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, str):
        allowed = [choice.value for choice in ToolChoiceValueEnum]
        if value not in allowed:
            raise InvalidRequest(f"`tool_choice` is one of {', '.join(allowed)}, or an object; not {value[:40]!r}")
        return ToolChoiceValueEnum(value)
    return read_union(value, "type", _TOOL_CHOICES, what="`tool_choice`")


def read_json(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON text; InvalidRequest (a ValueError) for anything else."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body of the request is a JSON object: {error}") from None
