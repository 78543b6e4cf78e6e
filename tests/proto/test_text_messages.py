"""Chat messages: parts, roles and content are checked when a message is built."""

from __future__ import annotations

import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.text_messages import (
    ImageContentPart,
    TextContentPart,
    TextGenerationRequestMessage,
    VideoContentPart,
)

from .text_samples import travelled


def message(content, role="user", **fields):
    return TextGenerationRequestMessage(role=role, content=content, **fields)


def test_parts_carry_their_type():
    """Each part has its literal type, and takes no other."""
    assert TextContentPart(type="text", text="a").type == "text"
    assert (ImageContentPart().type, VideoContentPart().type) == ("image", "video")
    for wrong in (
        lambda: TextContentPart(type="image", text="a"),
        lambda: TextContentPart(text=5),
        lambda: ImageContentPart(max_long_side_pixel="big"),
        lambda: VideoContentPart(fps=float("inf")),
        lambda: VideoContentPart(fps=float("nan")),
    ):
        with pytest.raises(InvalidRequest):
            wrong()
    with pytest.raises(AttributeError):
        TextContentPart(text="a").text = "b"


def test_content_is_normalised():
    """Dicts become parts, ready parts stay, None is an empty text."""
    part = TextContentPart(text="c")
    built = message([{"type": "text", "text": "a"}, {"type": "text", "content": "b"}, part, {"type": "text"}])
    assert [item.text for item in built.content] == ["a", "b", "c", ""]
    assert built.content[2] is part
    assert message([{"type": "text", "text": "", "content": "x"}]).content[0].text == "x"
    assert message(None).content == ""
    assert TextGenerationRequestMessage(role="assistant").content == ""
    assert message([]).content == []


@pytest.mark.parametrize(
    "content",
    [
        5,
        {"type": "text"},
        [5],
        ["text"],
        [{"text": "no type"}],
        [{"type": "image_url", "image_url": {"url": "http://x"}}],
        [{"type": "video_url"}],
        [{"type": "audio"}],
        [{"type": ["text"]}],
        [{"type": "text", "text": 5}],
        [{"type": "image", "max_long_side_pixel": "big"}],
    ],
)
def test_content_that_is_none(content):
    """Anything but texts, parts and their dicts is an input error."""
    with pytest.raises(InvalidRequest):
        message(content)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "function", "root"])
def test_roles(role):
    """The six roles there are."""
    assert message("x", role=role).role == role


@pytest.mark.parametrize("fields", [{"role": "developer"}, {"role": 5}, {"tool_call_id": 5}, {"tool_calls": [5]}])
def test_message_fields_are_checked(fields):
    """An unknown role or a field of the wrong kind is an input error that names it."""
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        message("x", **{"role": "user", **fields})


def test_flatten_content():
    """Texts are joined by newlines, an empty first one too; what is set goes along."""
    assert message([{"type": "text", "text": ""}, {"type": "text", "text": "b"}]).flatten_content() == {
        "role": "user",
        "content": "\nb",
    }
    flat = message("x", tool_call_id="7", tool_calls=[], reasoning_content="hm").flatten_content()
    assert flat == {"role": "user", "content": "x", "tool_calls": [], "tool_call_id": "7", "reasoning_content": "hm"}
    with pytest.raises(InvalidRequest):
        message([{"type": "image"}]).flatten_content()


def test_counts_of_placeholders():
    """Images and videos, 0 for a text."""
    built = message([{"type": "image"}, {"type": "video"}, {"type": "image"}])
    assert (built.number_of_images, built.number_of_videos) == (2, 1)
    assert message("image").number_of_images == 0


def test_weakness_40_hints_in_dicts_are_kept():
    """The sizing hints of image and video dicts reach the part, also after the wire."""
    built = message(
        [
            {"type": "image", "detail": "high", "max_long_side_pixel": 512},
            {"type": "video", "fps": 2, "max_frames": 8, "detail": "low", "max_long_side_pixel": 64, "extra": 1},
        ],
    )
    for one in (built, travelled(built)):
        assert one.content[0] == ImageContentPart(detail="high", max_long_side_pixel=512)
        assert one.content[1] == VideoContentPart(fps=2.0, max_frames=8, detail="low", max_long_side_pixel=64)
