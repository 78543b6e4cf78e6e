"""What goes into an Open Responses request: the messages and the parts that each kind of message may hold.

`read_union` and `convert` turn plain JSON objects into them; the body is in `open_responses_body.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from ..errors import InvalidRequest
from .checked import CheckedStruct
from .generation import OutputImageContent, OutputTextContent
from .open_responses_enums import ImageDetail, MessageStatus

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


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


class RefusalContent(CheckedStruct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """Why the model will not answer."""

    refusal: str


class ReasoningSummaryContent(CheckedStruct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_summary"):
    """The model's thinking, summed up."""

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

# Unions are read by the tables here, which name what is allowed; on the wire they are plain maps.
if TYPE_CHECKING:
    _InputContent: TypeAlias = "str | list[InputTextContent | InputImageContent | InputFileContent | InputVideoContent]"
    _SystemContent: TypeAlias = "str | list[InputTextContent]"
    _AssistantPart: TypeAlias = "OutputTextContent | RefusalContent | ReasoningSummaryContent | OutputImageContent"
    _AssistantContent: TypeAlias = "str | list[_AssistantPart]"
else:
    _InputContent = _SystemContent = _AssistantContent = Any


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


#: Each kind of message by its role.
MESSAGES: dict[str, type[msgspec.Struct]] = {
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
    read = [read_union(part, "type", parts, what="a part of `content`") for part in content]
    msgspec.structs.force_setattr(message, "content", read)


def read_union(
    value: object,
    key: str,
    kinds: Mapping[str, type[msgspec.Struct]],
    *,
    what: str,
    default: str | None = None,
) -> msgspec.Struct:
    """The struct that `value[key]` names, or `value` when it is one already; InvalidRequest for anything else."""
    if isinstance(value, msgspec.Struct) and isinstance(value, tuple(kinds.values())):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{what} is an object with a `{key}`, not a {type(value).__name__}")
    kind = value.get(key, default)
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidRequest(f"the `{key}` of {what} is one of {', '.join(kinds)}, not {str(kind)[:40]!r}")
    return convert(value, kinds[kind], what=what)


def convert(value: object, kind: type[_Struct], *, what: str) -> _Struct:
    """The struct that a plain object describes; InvalidRequest (a ValueError) that names `what` for any other."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{what}: {error}") from None
