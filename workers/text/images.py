"""Images of a text request before any model sees them: what is accepted, how contents are told apart, where they lie.

A processor (`hf_processor.py`) turns pixels into what its encoder reads; `proto/vision.py` has the context for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest
from ...proto.open_responses_media import image_from_bytes
from ...proto.vision import TokenHashOverride

#: A hash of pixels has so many words of 63 bits; tokens of an image take them in turn, so that each block has several.
_WORDS = 8
#: Set in each word, and in no token's id.
_MARK = 1 << 62


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for an encoder: `tokens` stand for it in the prompt, `words` for its content in hashes."""

    tokens: list[int]
    pixel_values: npt.NDArray[Any]
    extra: dict[str, npt.NDArray[Any]]
    words: npt.NDArray[np.int64]


def pixels_of(image: bytes | npt.NDArray[Any], *, number: int, most: int) -> npt.NDArray[np.uint8]:
    """The pixels of an array or an encoded file, uint8 `(height, width, 3)`: an RGB array as it is, uncopied.

    Grey images are repeated, an alpha channel is left out. InvalidRequest, with the image's `number`, for another dtype
    or shape, for more than `most` pixels, and for a file that cannot be read.
    """
    array = image_from_bytes(image, max_pixels=most) if isinstance(image, bytes) else image
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise InvalidRequest(
            f"images[{number}] is {array.dtype} of shape {array.shape}; an image is uint8 of shape (height, width) or "
            "(height, width, channels)",
        )
    if array.shape[0] * array.shape[1] > most:
        raise InvalidRequest(
            f"images[{number}] has {array.shape[0]} x {array.shape[1]} pixels: at most {most} are read"
        )
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels not in (1, 3, 4):
        raise InvalidRequest(f"images[{number}] has {channels} channels; an image has 1, 3 or 4")
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return array[:, :, :3]


def content_words(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """What stands for an image's content in the hashes of a prefix cache: int64 `(8,)`, none of them a token's id."""
    digest = hashlib.blake2b(f"{pixels.shape}".encode(), digest_size=8 * _WORDS)
    digest.update(np.ascontiguousarray(pixels).data)
    return np.frombuffer(digest.digest(), np.int64) & (_MARK - 1) | _MARK


def placed(
    ids: Sequence[int], placeholder: int, images: Sequence[PreparedImage]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The prompt with each placeholder replaced by its image's tokens, and where each image lies then: `[start, end)`.

    InvalidRequest when there are more or fewer placeholders than images: a text may spell one.
    """
    found = list(ids).count(placeholder)
    if found != len(images):
        raise InvalidRequest(f"the prompt has {found} places for images, the request {len(images)} images")
    tokens: list[int] = []
    spans: list[tuple[int, int]] = []
    for token in ids:
        if token == placeholder:
            start = len(tokens)
            tokens.extend(images[len(spans)].tokens)
            spans.append((start, len(tokens)))
        else:
            tokens.append(token)
    return tokens, spans


def hash_overrides(spans: Sequence[tuple[int, int]], images: Sequence[PreparedImage]) -> list[TokenHashOverride]:
    """What the prefix cache is to hash in place of the images' tokens."""
    return [
        TokenHashOverride(token_idx=index, token_hash=int(image.words[(index - start) % _WORDS]), source="image")
        for (start, end), image in zip(spans, images, strict=True)
        for index in range(start, end)
    ]
