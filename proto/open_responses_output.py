"""The Open Responses answer: one response with one message, whose status says how the generation ended.

Made of a `GenerationOutput` (`generation.py`); media parts are encoded before (`open_responses_media.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from ..errors import InvalidRequest
from .context import GenerationStatus
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputVideoContent,
    Usage,
)
from .open_responses_enums import MessageStatus
from .open_responses_media import ResponseContent


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
