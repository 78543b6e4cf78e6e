"""Images among tokens: spans, what is still to be encoded, and the checks at construction and arrival."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.text_protocol import TextGenerationContext
from tensoryard.proto.tokens import TokenBuffer
from tensoryard.proto.vision import (
    ImageMetadata,
    TextAndVisionContext,
    TokenHashOverride,
    VLMTextGenerationContext,
)

VISION = 9


def image(start, end, **fields):
    return ImageMetadata(start_idx=start, end_idx=end, pixel_values=np.ones((2, 3), np.float32), **fields)


def context_of(length=12, spans=((2, 5), (7, 9)), **fields):
    tokens = np.arange(100, 100 + length, dtype=np.int64)
    for start, end in spans:
        tokens[[index for index in (start, end - 1) if index < length]] = VISION
    images = [image(start, end) for start, end in spans]
    defaults = {"max_length": 100, "images": images, "vision_token_ids": [VISION]}
    return TextAndVisionContext(tokens=TokenBuffer(tokens), **{**defaults, **fields})


# ImageMetadata


def test_image_metadata():
    """Rows default to the span's width; the repr shows the shape alone."""
    assert image(2, 5).embedding_rows == 3
    assert image(2, 5, num_embedding_rows=2).embedding_rows == 2
    assert "(2, 3)" in repr(image(2, 5))
    assert "1." not in repr(image(2, 5))


@pytest.mark.parametrize(
    "fields",
    [
        {"start_idx": -1},
        {"end_idx": 2},
        {"end_idx": 1},
        {"start_idx": 2.5},
        {"end_idx": True},
        {"end_idx": None},
        {"num_embedding_rows": 0},
        {"num_embedding_rows": 1.5},
        {"num_embedding_rows": 4},
        {"pixel_values": [[1.0]]},
    ],
)
def test_image_metadata_is_checked(fields):
    """A bad span, rows outside it, or pixels that are no array."""
    with pytest.raises(InvalidRequest):
        dataclasses.replace(image(2, 5), **fields)


def test_image_metadata_compares():
    """By fields and pixels, without an error."""
    assert image(2, 5) == image(2, 5)
    assert image(2, 5) != image(2, 6)
    assert image(2, 5) != image(2, 5, image_hash=1)
    assert image(2, 5) != dataclasses.replace(image(2, 5), pixel_values=np.zeros((2, 3), np.float32))
    assert image(2, 5) != dataclasses.replace(image(2, 5), pixel_values=np.ones((3, 2), np.float32))
    assert image(2, 5) != 5
    with pytest.raises(TypeError):
        hash(image(2, 5))


# Contexts


def test_context_satisfies_the_protocols():
    """A text context is no vision context, the other way round it is."""
    context = context_of()
    assert isinstance(context, VLMTextGenerationContext)
    assert isinstance(context, TextGenerationContext)
    plain = TextContext(tokens=TokenBuffer(np.arange(3)), max_length=9)
    assert not isinstance(plain, VLMTextGenerationContext)


def test_images_to_encode():
    """An image counts until it is wholly processed."""
    context = context_of()
    one, two = context.images
    assert (context.image_idx, context.next_images, context.needs_vision_encoding) == (0, [one, two], True)
    context.tokens.skip_processing(4)
    assert context.image_idx == 0
    context.tokens.skip_processing(1)
    assert (context.image_idx, context.next_images) == (1, [two])
    context.update(5)
    assert (context.image_idx, context.next_images, context.needs_vision_encoding) == (2, [], False)


def test_images_in_the_window():
    """Those that overlap the active window, whole even if cut."""
    context = context_of()
    one, two = context.images
    assert context.next_images_in_window == [one, two]
    context.tokens.chunk(7)
    assert context.next_images_in_window == [one]
    context.tokens.chunk(3)
    assert context.next_images_in_window == [one]
    context.tokens.chunk(2)
    assert context.next_images_in_window == []


def test_chunks_may_cut_an_image():
    """Only while chunked; the image is still to be encoded then."""
    context = context_of()
    context.tokens.chunk(3)
    context.update(0)
    assert context.tokens.processed_length == 3
    assert context.image_idx == 0
    assert len(context.next_images_in_window) == 2


def test_token_indices():
    """All spans, concatenated; empty without images."""
    indices = context_of().image_token_indices
    assert indices.tolist() == [2, 3, 4, 7, 8]
    assert indices.dtype == np.int32
    empty = context_of(spans=()).image_token_indices
    assert (empty.shape, empty.dtype) == ((0,), np.int32)


def test_aligned_index():
    """Inside an image its start, elsewhere the index itself."""
    context = context_of()
    assert [context.compute_image_aligned_idx(index) for index in range(11)] == [0, 1, 2, 2, 2, 5, 6, 7, 7, 9, 10]


def test_no_images():
    """A context without images has nothing to encode."""
    context = context_of(spans=())
    assert not context.needs_vision_encoding
    assert context.image_idx == 0
    assert context.compute_image_aligned_idx(3) == 3


def test_touching_images():
    """Spans may touch."""
    assert context_of(spans=((2, 5), (5, 7))).compute_image_aligned_idx(5) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"spans": ((7, 9), (2, 5))},
        {"spans": ((2, 5), (4, 7))},
        {"spans": ((2, 13),)},
        {"vision_token_ids": []},
        {"images": [image(2, 4)]},
        {"images": [image(3, 5)]},
        {"token_hash_overrides": [TokenHashOverride(2, 77), TokenHashOverride(2, 78)]},
        {"token_hash_overrides": [TokenHashOverride(12, 77)]},
        {"token_hash_overrides": [TokenHashOverride(-1, 77)]},
        {"kind": "text"},
    ],
)
def test_contexts_that_are_wrong(fields):
    """Out of order, overlapping, past the end, no vision tokens at the edges, bad overrides."""
    with pytest.raises(InvalidRequest):
        context_of(**fields)


def test_context_travels():
    """Images and overrides come back equal."""
    context = context_of(token_hash_overrides=[TokenHashOverride(2, 77)])
    other = decode_body(encode_body(context).frames, TextAndVisionContext)
    assert other.images == context.images
    assert other.token_hash_overrides == [TokenHashOverride(2, 77, "media")]
    assert other.vision_token_ids == [VISION]


def test_weakness_30_no_silent_narrowing():
    """Decoded as a plain text context it is refused: the images would be lost."""
    frames = encode_body(context_of()).frames
    with pytest.raises(ValueError, match="text_and_vision"):
        decode_body(frames, TextContext)


def test_hashes_stand_for_contents():
    """The prefix cache sees the overrides' hashes in place of their tokens, and all others as they are."""
    context = context_of(token_hash_overrides=[TokenHashOverride(2, 77), TokenHashOverride(5, 1 << 62)])
    plain, seen = context.tokens.all.tolist(), context.hashed_tokens
    assert seen.tolist() == [*plain[:2], 77, *plain[3:5], 1 << 62, *plain[6:]]
    assert not seen.flags.writeable
    context.update(3)
    assert context.hashed_tokens.tolist() == [*seen.tolist(), 3]
    assert context_of().hashed_tokens.tolist() == plain
