"""The Open Responses answer: a response with what was made, whose status says how it ended.

`open_responses_convert.py` makes it of the outputs of our tasks; media are encoded before (`open_responses_media.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from ..errors import InvalidRequest, to_wire
from .context import GenerationStatus
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputVideoContent,
    Usage,
)
from .open_responses_enums import MessageStatus, ResponseStatus
from .open_responses_media import ResponseContent
from .request import RequestID
from .tool_parsing import ParsedToolCall


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


class ResponseMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The answer inside a response."""

    id: str
    status: MessageStatus
    content: list[ResponseContent]
    role: Literal["assistant"] = "assistant"


class ResponseFunctionCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the caller is asked to run; `arguments` is JSON text. The result goes by `call_id`."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: MessageStatus = MessageStatus.COMPLETED


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response is incomplete: "max_output_tokens" or "cancelled"."""

    reason: str


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed: `code` is for programs (`errors.py` lists them), `message` for people."""

    code: str
    message: str


#: How a generation ended, in the API's words.
_STATUSES: dict[GenerationStatus, tuple[ResponseStatus, str | None]] = {
    GenerationStatus.ACTIVE: (ResponseStatus.IN_PROGRESS, None),
    GenerationStatus.END_OF_SEQUENCE: (ResponseStatus.COMPLETED, None),
    GenerationStatus.MAXIMUM_LENGTH: (ResponseStatus.INCOMPLETE, "max_output_tokens"),
    GenerationStatus.CANCELLED: (ResponseStatus.INCOMPLETE, "cancelled"),
}


class ResponseResource(msgspec.Struct, frozen=True, kw_only=True):
    """A response, ready for `msgspec.json.encode`. `created_at`: seconds since 1970."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    output: list[ResponseMessage | ResponseFunctionCall]
    incomplete_details: IncompleteDetails | None = None
    error: ResponseError | None = None
    usage: ResponseUsage | None = None
    object: Literal["response"] = "response"

    @classmethod
    def from_generation_output(
        cls,
        out: GenerationOutput,
        model: str,
        *,
        content: Sequence[ResponseContent] | None = None,
        calls: Sequence[ParsedToolCall] = (),
        created_at: int | None = None,
    ) -> ResponseResource:
        """The response for an output, as one assistant message; its status says how the generation ended.

        `content` replaces the output's parts, encoded (`encode_content`). Each of `calls` follows as an item of its
        own; without any part there are only those. Raises InvalidRequest (a ValueError) when raw pixels, frames or
        samples remain.
        """
        status, reason = _STATUSES[out.final_status]
        part_status = MessageStatus(status.value)
        parts = [_finished(part) for part in (out.output if content is None else content)]
        items: list[ResponseMessage | ResponseFunctionCall] = [
            ResponseFunctionCall(
                id=f"fc_{out.request_id}_{index}",
                call_id=call.id,
                name=call.name,
                arguments=call.arguments,
                status=part_status,
            )
            for index, call in enumerate(calls)
        ]
        if parts or not items:
            items.insert(0, ResponseMessage(id=f"msg_{out.request_id}_0", status=part_status, content=parts))
        return cls(
            id=f"resp_{out.request_id}",
            created_at=_now(created_at),
            model=model,
            status=status,
            output=items,
            incomplete_details=None if reason is None else IncompleteDetails(reason=reason),
            usage=None if out.usage is None else ResponseUsage.of(out.usage),
        )

    @classmethod
    def from_error(
        cls,
        request_id: RequestID,
        model: str,
        error: BaseException,
        *,
        created_at: int | None = None,
    ) -> ResponseResource:
        """The response for a request that failed: no output, and the error's code and text."""
        code, text = to_wire(error)
        return cls(
            id=f"resp_{request_id}",
            created_at=_now(created_at),
            model=model,
            status=ResponseStatus.FAILED,
            output=[],
            error=ResponseError(code=code, message=text),
        )


def _now(created_at: int | None) -> int:
    return int(time.time()) if created_at is None else created_at


def _finished(part: OutputContent | ResponseContent) -> ResponseContent:
    raw_pixels = isinstance(part, OutputImageContent) and part.image is not None
    if raw_pixels or isinstance(part, OutputVideoContent | OutputAudioContent):
        raise InvalidRequest(f"a raw {type(part).__name__} cannot go into a response: encode_content() it first")
    return part
