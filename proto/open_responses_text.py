"""The body of an Open Responses request as a `TextGenerationRequest`: message, media, sampling, tools and format.

What a body asks for and a text model cannot do is refused, never dropped (`open_responses_asked.py`).
`open_responses_convert.py` has the other tasks, `open_responses_from_text.py` the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidRequest
from .generation import OutputImageContent, OutputTextContent
from .open_responses import OpenResponsesRequest
from .open_responses_asked import (
    SAMPLING_FIELDS,
    refuse_blocks,
    refuse_others,
    require_modality,
    require_plain_thinking,
)
from .open_responses_body import (
    AllowedToolChoice,
    FunctionToolChoice,
    FunctionToolParam,
    JsonObjectParam,
    JsonSchemaParam,
    OpenResponsesRequestBody,
    TextParam,
)
from .open_responses_enums import ToolChoiceValueEnum
from .open_responses_media import bytes_of_base64, bytes_of_uri
from .open_responses_messages import (
    InputImageContent,
    InputTextContent,
    InputVideoContent,
    ReasoningSummaryContent,
    RefusalContent,
)
from .sampling import SamplingParams
from .text_request import (
    TextGenerationRequest,
    TextGenerationRequestFunction,
    TextGenerationRequestTool,
    TextGenerationResponseFormat,
)

_READS = SAMPLING_FIELDS | {
    "logit_bias",
    "logprobs",
    "reasoning",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
}


def to_text_request(request: OpenResponsesRequest) -> TextGenerationRequest:
    """A chat of one message, its media as bytes, with sampling, tools and format; a text is the user's message.

    A developer's message is a system message. `reasoning.effort` and `verbosity` reach the chat template.
    """
    body = request.body
    refuse_others(body, _READS)
    refuse_blocks(body, "max")
    require_modality(body, "text")
    require_plain_thinking(body)
    if body.n not in (None, 1) or body.logit_bias or body.parallel_tool_calls is False:
        raise InvalidRequest("`n` above 1, `logit_bias` and `parallel_tool_calls` false are not offered for text")
    message, images, videos = _message(body)
    tools, forced = _tools(body)
    options = body.provider_options.max
    return TextGenerationRequest(
        request_id=request.request_id,
        model_name=body.model,
        messages=[message],  # type: ignore[list-item]  # dicts become messages
        images=[*images],
        videos=videos,
        tools=tools,
        response_format=response_format(body.response_format, has_tools=tools is not None, forced=forced),
        logprobs=_log_probabilities(body),
        chat_template_options=_template_options(body),
        sampling_params=sampling_params(body),
        target_endpoint=None if options is None else options.target_endpoint,
    )


def only_message(body: OpenResponsesRequestBody) -> Any:
    """The message of a body whose input is a list; InvalidRequest when there is none."""
    if not body.input:
        raise InvalidRequest("`input` is empty: there is nothing to answer")
    return body.input[0]


def _message(body: OpenResponsesRequestBody) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    """The body's message as a dict for the chat, and the bytes of its images and videos."""
    if isinstance(body.input, str):
        return {"role": "user", "content": body.input}, [], []
    message = only_message(body)
    found: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, str):
        return {**found, "content": message.content}, [], []
    images: list[bytes] = []
    videos: list[bytes] = []
    content: list[dict[str, Any]] = []
    for part in message.content:
        match part:
            case InputTextContent() | OutputTextContent():
                content.append({"type": "text", "text": part.text})
            case RefusalContent():
                content.append({"type": "text", "text": part.refusal})
            case ReasoningSummaryContent():
                found["reasoning_content"] = found.get("reasoning_content", "") + part.text
            case InputImageContent():
                images.append(bytes_of_uri(part.image_url))
                content.append({"type": "image", "detail": None if part.detail is None else part.detail.value})
            case OutputImageContent(image_data=str(data)):
                images.append(bytes_of_base64(data))
                content.append({"type": "image", "detail": part.detail})
            case InputVideoContent():
                videos.append(bytes_of_uri(part.video_url))
                content.append({"type": "video"})
            case _:
                raise InvalidRequest(f"a {type(part).__name__} of `content` cannot be read here: it holds no data")
    return {**found, "content": content}, images, videos


def sampling_params(body: OpenResponsesRequestBody) -> SamplingParams:
    """How a body wants its tokens chosen; what it leaves open has the default."""
    asked = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "seed": body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
        "max_new_tokens": body.max_output_tokens,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return SamplingParams(**given)


def _log_probabilities(body: OpenResponsesRequestBody) -> int:
    # Asked for without a number, the chosen token's own is meant.
    return max(body.top_logprobs or 0, 1) if body.logprobs or body.top_logprobs else 0


def _template_options(body: OpenResponsesRequestBody) -> dict[str, Any] | None:
    options: dict[str, Any] = {}
    if body.reasoning is not None and body.reasoning.effort is not None:
        options["reasoning_effort"] = body.reasoning.effort.value
    if body.verbosity is not None:
        options["verbosity"] = body.verbosity.value
    return options or None


def _tools(body: OpenResponsesRequestBody) -> tuple[list[TextGenerationRequestTool] | None, bool]:
    """The tools that may be called, and whether one must be."""
    tools, choice = body.tools or [], body.tool_choice
    forced = choice is ToolChoiceValueEnum.REQUIRED
    if choice is ToolChoiceValueEnum.NONE:
        tools = []
    elif isinstance(choice, FunctionToolChoice):
        tools, forced = _named(tools, [choice]), True
    elif isinstance(choice, AllowedToolChoice):
        tools = [] if choice.mode is ToolChoiceValueEnum.NONE else _named(tools, choice.tools)
        forced = choice.mode is ToolChoiceValueEnum.REQUIRED
    if forced and not tools:
        raise InvalidRequest("`tool_choice` forces a call, and there is no tool to call")
    return [_tool(tool) for tool in tools] or None, forced


def _named(tools: Sequence[FunctionToolParam], wanted: Sequence[FunctionToolChoice]) -> list[FunctionToolParam]:
    names = {choice.name for choice in wanted}
    missing = names - {tool.name for tool in tools}
    if missing:
        raise InvalidRequest(f"`tool_choice` names {', '.join(sorted(missing))[:200]}, which is not among `tools`")
    return [tool for tool in tools if tool.name in names]


def _tool(tool: FunctionToolParam) -> TextGenerationRequestTool:
    function: TextGenerationRequestFunction = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {},
    }
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def response_format(
    wanted: TextParam | JsonObjectParam | JsonSchemaParam | None,
    *,
    has_tools: bool,
    forced: bool,
) -> TextGenerationResponseFormat | None:
    """What holds the answer to a format, or to calling a tool (`forced`); None when nothing does."""
    if wanted is None or isinstance(wanted, TextParam):
        return TextGenerationResponseFormat(type="text", tools_forced=True) if forced else None
    schema: dict[str, Any] | None = {"type": "object"}
    if isinstance(wanted, JsonSchemaParam):
        if wanted.description:
            raise InvalidRequest("`description` of `response_format` is not offered: describe the answer in `input`")
        schema = wanted.schema
    return TextGenerationResponseFormat(
        type=wanted.type,
        # A schema that is not there allows any value.
        json_schema=schema or {},
        # With tools the answer may be a call instead, which begins with no JSON.
        grammar_enforced=not has_tools,
        tools_forced=forced,
        requires_structured_output_flag=True,
        has_json_schema=isinstance(wanted, JsonSchemaParam) and schema is not None,
    )
