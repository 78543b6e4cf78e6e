"""The Open Responses answer: its shape, and a status that says how it ended."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from tensoryard.proto.open_responses_media import (
    EncodedAudioContent,
    EncodedVideoContent,
)
from tensoryard.proto.open_responses_output import ResponseResource
from tensoryard.proto.request import RequestID


def output_of(*parts, status=GenerationStatus.END_OF_SEQUENCE, usage=None):
    return GenerationOutput(request_id=RequestID("r"), final_status=status, output=list(parts), usage=usage)


def test_response():
    """Ids, one assistant message, usage, and JSON that clients know."""
    out = output_of(OutputTextContent(text="x"), usage=Usage(input_tokens=3, output_tokens=4))
    response = ResponseResource.from_generation_output(out, "m", created_at=5)
    assert json.loads(msgspec.json.encode(response)) == {
        "id": "resp_r",
        "object": "response",
        "created_at": 5,
        "model": "m",
        "status": "completed",
        "incomplete_details": None,
        "error": None,
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        "output": [
            {
                "type": "message",
                "id": "msg_r_0",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "x"}],
            },
        ],
    }
    assert ResponseResource.from_generation_output(out, "m").created_at > 1_700_000_000


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (GenerationStatus.ACTIVE, "in_progress", None),
        (GenerationStatus.END_OF_SEQUENCE, "completed", None),
        (GenerationStatus.MAXIMUM_LENGTH, "incomplete", "max_output_tokens"),
        (GenerationStatus.CANCELLED, "incomplete", "cancelled"),
    ],
)
def test_weakness_42_status_says_how_it_ended(status, said, reason):
    """Only what ended by itself is completed."""
    response = ResponseResource.from_generation_output(output_of(status=status), "m")
    assert response.status.value == response.output[0].status.value == said
    assert (response.incomplete_details and response.incomplete_details.reason) == reason


@pytest.mark.parametrize(
    "part",
    [
        OutputImageContent(image=np.zeros((2, 2), np.uint8)),
        OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)),
        OutputAudioContent(samples=np.zeros((1, 2), np.float32), sample_rate=8000),
    ],
)
def test_raw_arrays_do_not_go_into_a_response(part):
    """They are encoded first."""
    with pytest.raises(InvalidRequest, match="encode_content"):
        ResponseResource.from_generation_output(output_of(part), "m")


def test_encoded_content_goes_into_a_response():
    """Given beside the output, in place of its parts."""
    out = output_of(OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)))
    content = [
        EncodedVideoContent(video_url="https://host/clip.mp4"),
        EncodedAudioContent(audio_data="", sample_rate=1),
    ]
    response = ResponseResource.from_generation_output(out, "m", content=content)
    kinds = [part["type"] for part in json.loads(msgspec.json.encode(response))["output"][0]["content"]]
    assert kinds == ["output_video", "output_audio"]
