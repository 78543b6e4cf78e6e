"""The words of the Open Responses API: every value that one of its fields may have, where the API lists them.

The body (`open_responses_body.py`), its messages and options, and the response (`open_responses_output.py`) use them.
"""

from __future__ import annotations

from enum import StrEnum


class ToolChoiceValueEnum(StrEnum):
    """Whether the model may or must call a tool."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class MessageRole(StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    DEVELOPER = "developer"


class MessageStatus(StrEnum):
    """How far a message, or a call of a function, is."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


class ResponseStatus(StrEnum):
    """How far a response is; FAILED comes with an error."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class ImageDetail(StrEnum):
    """The resolution wanted."""

    LOW = "low"
    HIGH = "high"
    AUTO = "auto"


class ReasoningEffortEnum(StrEnum):
    """How much to think."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class ReasoningSummaryEnum(StrEnum):
    """How to sum the thinking up."""

    CONCISE = "concise"
    DETAILED = "detailed"
    AUTO = "auto"


class ServiceTierEnum(StrEnum):
    """The class of service."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


class TruncationEnum(StrEnum):
    """What happens to an input that is too long."""

    AUTO = "auto"
    DISABLED = "disabled"


class VerbosityEnum(StrEnum):
    """How long an answer should be."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class IncludeEnum(StrEnum):
    """What else the response should carry."""

    REASONING_ENCRYPTED_CONTENT = "reasoning.encrypted_content"
    MESSAGE_OUTPUT_TEXT_LOGPROBS = "message.output_text.logprobs"


class GeneratedMediaResponseFormat(StrEnum):
    """How media come back: as a URL or inside the JSON."""

    URL = "url"
    B64_JSON = "b64_json"
