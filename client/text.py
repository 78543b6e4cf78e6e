"""Text requests from what people write: a prompt or messages, and sampling beside other fields.

`client.py` and `aio.py` build the requests of `generate` and `stream` with it; nothing here sends anything.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import InvalidRequest
from ..proto.sampling import SamplingParams
from ..proto.text_messages import TextGenerationRequestMessage
from ..proto.text_request import TextGenerationRequest

_SAMPLING = frozenset(spec.name for spec in fields(SamplingParams))
_REQUEST = frozenset(spec.name for spec in fields(TextGenerationRequest)) - {"model_name", "prompt", "messages"}


def text_request(source: Any, model: str, given: dict[str, Any]) -> TextGenerationRequest:
    """The request for a prompt (a text or token ids) or a list of messages.

    A part of a message may hold its image: `{"type": "image", "image": array or bytes}`. `given`: fields of
    SamplingParams and of TextGenerationRequest together. InvalidRequest for one that is neither, both sampling fields
    and `sampling_params`, or images in both places.
    """
    sampling = {name: value for name, value in given.items() if name in _SAMPLING}
    rest = {name: value for name, value in given.items() if name not in _SAMPLING}
    unknown = sorted(rest.keys() - _REQUEST)
    if unknown:
        raise InvalidRequest(f"`{unknown[0]}` is unknown; known are {', '.join(sorted(_SAMPLING | _REQUEST))}")
    if sampling and "sampling_params" in rest:
        raise InvalidRequest(f"`sampling_params` holds `{min(sampling)}` and its like already: give one or the other")
    rest.setdefault("sampling_params", SamplingParams(**sampling))
    if not _are_messages(source):
        return TextGenerationRequest(model_name=model, prompt=source, **rest)
    messages, images = _images_aside(source)
    if images and rest.get("images"):
        raise InvalidRequest("images are given in the messages or as `images`, not both")
    return TextGenerationRequest(model_name=model, messages=messages, **(rest | {"images": images} if images else rest))


def _are_messages(source: Any) -> bool:
    kinds = (dict, TextGenerationRequestMessage)
    return isinstance(source, list | tuple) and bool(source) and isinstance(source[0], kinds)


def _images_aside(messages: Any) -> tuple[list[Any], list[Any]]:
    """The messages without the images that lie in their parts, and those, in order."""
    images: list[Any] = []

    def part_of(part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") != "image" or "image" not in part:
            return part
        images.append(part["image"])
        return {key: value for key, value in part.items() if key != "image"}

    def message_of(message: Any) -> Any:
        if not isinstance(message, dict) or not isinstance(message.get("content"), list | tuple):
            return message
        return {**message, "content": [part_of(part) for part in message["content"]]}

    return [message_of(message) for message in messages], images
