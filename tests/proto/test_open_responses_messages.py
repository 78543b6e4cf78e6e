"""Messages of an Open Responses request: who may say what."""

from __future__ import annotations

from tensoryard.proto.generation import (
    OutputImageContent,
    OutputTextContent,
)
from tensoryard.proto.open_responses_body import (
    OpenResponsesRequestBody,
)
from tensoryard.proto.open_responses_enums import (
    MessageRole,
    MessageStatus,
)
from tensoryard.proto.open_responses_messages import (
    AssistantMessage,
    DeveloperMessage,
    InputTextContent,
    ReasoningSummaryContent,
    RefusalContent,
    SystemMessage,
    UserMessage,
)

DATA_URI = "data:image/png;base64,AAAA"


def body_of(**fields):
    return OpenResponsesRequestBody(**{"model": "m", "input": "text", **fields})


def test_messages_of_every_role():
    """A message without a role is the user's."""
    assert body_of(input=[{"content": "x"}]).input == [UserMessage(content="x")]
    assert UserMessage(role=MessageRole.USER, content="x").role == "user"
    assert body_of(input=[{"role": "system", "content": "x"}]).input == [SystemMessage(content="x")]
    parts = [{"type": "input_text", "text": "x"}]
    developer = body_of(input=[{"role": "developer", "content": parts}]).input[0]
    assert developer == DeveloperMessage(content=[InputTextContent(text="x")])
    parts = [
        {"type": "output_text", "text": "x"},
        {"type": "refusal", "refusal": "no"},
        {"type": "reasoning_summary", "text": "s"},
        {"type": "output_image", "image_data": "AAAA"},
    ]
    assistant = body_of(input=[{"role": "assistant", "content": parts, "status": "completed"}]).input[0]
    assert assistant == AssistantMessage(
        content=[
            OutputTextContent(text="x"),
            RefusalContent(refusal="no"),
            ReasoningSummaryContent(text="s"),
            OutputImageContent(image_data="AAAA"),
        ],
        status=MessageStatus.COMPLETED,
    )
