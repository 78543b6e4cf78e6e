"""A `TextGenerationRequest` as the body of an Open Responses request: the way back from `open_responses_text.py`.

What no body can say is refused by name (`open_responses_said.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy.typing as npt

from .open_responses_body import (
    FunctionToolParam,
    JsonObjectParam,
    JsonSchemaParam,
    OpenResponsesRequestBody,
)
from .open_responses_enums import ToolChoiceValueEnum
from .open_responses_media import bytes_of_base64, image_from_numpy, uri_of_bytes
from .open_responses_messages import InputImageContent
from .open_responses_options import MaxProviderOptions, ProviderOptions
from .open_responses_said import Fields, body_of, require_unset, said, sampling_fields, unsayable
from .open_responses_text import response_format
from .text_messages import ImageContentPart, TextContentPart, TextGenerationRequestMessage, VideoContentPart
from .text_request import TextGenerationRequest, TextGenerationResponseFormat

#: What no body has, and the value that asks for nothing.
_UNSET: Mapping[str, Any] = {
    "prompt": None,
    "max_decoded_bytes": None,
    "timestamp_ns": 0,
    "request_path": "/",
    "echo": False,
    "dkv_cache_hint": None,
    "cache_salt": None,
}
#: Hints that parts of a message have in ours and not there.
_NO_HINTS: Mapping[str, Any] = {"max_long_side_pixel": None}
_NO_VIDEO_HINTS: Mapping[str, Any] = {"fps": None, "max_frames": None, "detail": None, **_NO_HINTS}

_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})


def text_body(request: TextGenerationRequest) -> OpenResponsesRequestBody:
    """The body that `to_text_request` reads as this request; InvalidRequest names what no body can say."""
    require_unset(request, _UNSET)
    return body_of(
        {
            "model": ("model_name", request.model_name),
            "input": ("messages[0].content", _input(request)),
            **_tools(request),
            **_format(request),
            **_log_probabilities(request.logprobs),
            **_template_options(request.chat_template_options or {}),
            **sampling_fields(request.sampling_params),
            **_route(request.target_endpoint),
        },
    )


# -- messages ---------------------------------------------------------------------------------------------------------


def _input(request: TextGenerationRequest) -> Any:
    if len(request.messages) != 1:
        unsayable("messages", f"it takes one message, not {len(request.messages)}")
    (message,) = request.messages
    require_unset(message, {"tool_calls": None, "tool_call_id": None}, path="messages[0].")
    if message.role not in _PARTS_OF_ROLE:
        unsayable("messages[0].role", f"it has no {message.role}")
    if message.role == "user" and isinstance(message.content, str) and message.reasoning_content is None:
        return message.content
    content = _thinking(message)
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    images, videos = map(_file, request.images), iter(request.videos)
    for index, part in enumerate(message.content):
        said_part = _PARTS_OF_ROLE[message.role](f"messages[0].content[{index}]", part, images, videos)
        if said_part is None:
            unsayable(f"messages[0].content[{index}]", f"a message of the {message.role} holds no {part.type}")
        content.append(said_part)
    return [{"role": message.role, "content": content}]


def _thinking(message: TextGenerationRequestMessage) -> list[dict[str, Any]]:
    if message.reasoning_content is None:
        return []
    if message.role != "assistant" or isinstance(message.content, str):
        unsayable("messages[0].reasoning_content", "only a message of the assistant whose content is a list has it")
    return [{"type": "reasoning_summary", "text": message.reasoning_content}]


def _file(image: bytes | npt.NDArray[Any]) -> bytes:
    """An image encoded: pixels become PNG."""
    return image if isinstance(image, bytes) else bytes_of_base64(image_from_numpy(image).image_data or "")


def _user_part(path: str, part: Any, images: Iterator[bytes], videos: Iterator[bytes]) -> Any:
    match part:
        case TextContentPart():
            return {"type": "input_text", "text": part.text}
        case ImageContentPart():
            require_unset(part, _NO_HINTS, path=f"{path}.")
            uri = uri_of_bytes(next(images))
            return said(f"{path}.detail", InputImageContent, {"image_url": uri, "detail": part.detail})
        case VideoContentPart():
            require_unset(part, _NO_VIDEO_HINTS, path=f"{path}.")
            return {"type": "input_video", "video_url": uri_of_bytes(next(videos))}


def _assistant_part(path: str, part: Any, images: Iterator[bytes], _videos: Iterator[bytes]) -> Any:
    match part:
        case TextContentPart():
            return {"type": "output_text", "text": part.text}
        case ImageContentPart():
            require_unset(part, _NO_HINTS, path=f"{path}.")
            data = base64.b64encode(next(images)).decode()
            return {"type": "output_image", "image_data": data, "detail": part.detail}
    return None


def _system_part(_path: str, part: Any, _images: Iterator[bytes], _videos: Iterator[bytes]) -> Any:
    return {"type": "input_text", "text": part.text} if isinstance(part, TextContentPart) else None


_PARTS_OF_ROLE = {"user": _user_part, "assistant": _assistant_part, "system": _system_part}


# -- tools and format -------------------------------------------------------------------------------------------------


def _tools(request: TextGenerationRequest) -> Fields:
    tools = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(request.tools or ())]
    return {"tools": ("tools", tools)} if tools else {}


def _tool(path: str, tool: Any) -> FunctionToolParam:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or tool.keys() - {"type", "function"}:
        unsayable(path, "a tool is of the type `function`, and has nothing beside its function")
    if strange := function.keys() - _FUNCTION_KEYS:
        unsayable(f"{path}.function", f"it has no {', '.join(sorted(map(str, strange)))[:80]}")
    return said(f"{path}.function", FunctionToolParam, function)


def _format(request: TextGenerationRequest) -> Fields:
    """Which format, and whether a tool must be called."""
    wanted = request.response_format
    if wanted is None:
        return {}
    if wanted.tools_forced and not request.tools:
        unsayable("response_format.tools_forced", "there is no tool to call")
    if wanted.type not in _FORMATS or (wanted.type == "text" and not wanted.tools_forced):
        unsayable("response_format.type", "it has json_object and json_schema alone, and text to force a call")
    param = _FORMATS[wanted.type](wanted)
    _require_same(wanted, response_format(param, has_tools=bool(request.tools), forced=wanted.tools_forced))
    found: Fields = {} if param is None else {"response_format": ("response_format", param)}
    if wanted.tools_forced:
        found["tool_choice"] = ("response_format.tools_forced", ToolChoiceValueEnum.REQUIRED)
    return found


_FORMATS: Mapping[str, Callable[[TextGenerationResponseFormat], JsonObjectParam | JsonSchemaParam | None]] = {
    "text": lambda _: None,
    "json_object": lambda _: JsonObjectParam(),
    "json_schema": lambda wanted: JsonSchemaParam(schema=wanted.json_schema if wanted.has_json_schema else None),
}


def _require_same(wanted: TextGenerationResponseFormat, read: TextGenerationResponseFormat | None) -> None:
    """A format has more to say than a body: what the body's will be read as must be the same."""
    for spec in fields(wanted):
        if getattr(wanted, spec.name) != getattr(read, spec.name):
            unsayable(f"response_format.{spec.name}", f"there it would be {getattr(read, spec.name)!r:.80}")


# -- the rest ---------------------------------------------------------------------------------------------------------


def _log_probabilities(count: int) -> Fields:
    return {"logprobs": ("logprobs", True), "top_logprobs": ("logprobs", count)} if count else {}


def _template_options(options: Mapping[str, Any]) -> Fields:
    found: Fields = {}
    for name, value in options.items():
        path = f"chat_template_options[{name!r:.40}]"
        if name not in ("reasoning_effort", "verbosity") or not isinstance(value, str):
            unsayable(path, "it has `reasoning_effort` and `verbosity` alone, each a word")
        key, said_value = ("verbosity", value) if name == "verbosity" else ("reasoning", {"effort": value})
        found[key] = (path, said_value)
    return found


def _route(endpoint: str | None) -> Fields:
    if endpoint is None:
        return {}
    options = ProviderOptions(max=MaxProviderOptions(target_endpoint=endpoint))
    return {"provider_options": ("target_endpoint", options)}
