"""Chat messages: the turns of a conversation, as text or as parts that mark where images and videos belong.

The request that carries them, and the bytes of their media, is in `text_request.py`.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), its like under `max.pipelines.modeling.types` (26.7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..errors import InvalidRequest
from .checked import CheckedStruct


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

# Parts travel as plain maps: they are told apart by their `type` when the message is built.
if TYPE_CHECKING:
    _Content = str | list[MessageContent]
else:
    _Content = Any


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
