"""Images in a text context: where each lies among the tokens, and which the encoder still has to see.

Adds to `text_context.py` and knows no encoder; `text_messages.py` has the placeholders of a request's messages.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), `max.pipelines.context` (26.7).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .text_context import TextContext
from .text_protocol import TextGenerationContext
from .validation import require_count, require_whole


@dataclass(kw_only=True, eq=False, repr=False)
class ImageMetadata:
    """One image among the tokens `[start_idx, end_idx)`.

    `pixel_values`: what the encoder reads, float32, or uint16 holding bfloat16 bits; any shape. `image_hash`: key of
    the prefix cache. `num_embedding_rows`: rows that the encoder makes when fewer than the span's tokens.

    Raises InvalidRequest (a ValueError) for a negative or empty span, rows outside it, or pixels that are no array.
    """

    start_idx: int
    end_idx: int
    pixel_values: npt.NDArray[Any]
    image_hash: int | None = None
    num_embedding_rows: int | None = None

    def __post_init__(self) -> None:
        require_count("start_idx", self.start_idx)
        require_count("end_idx", self.end_idx)
        require_whole("num_embedding_rows", self.num_embedding_rows, 1)
        if self.start_idx >= self.end_idx:
            raise InvalidRequest(f"an image needs start_idx < end_idx, not [{self.start_idx}, {self.end_idx})")
        rows = self.num_embedding_rows
        if rows is not None and rows > self.end_idx - self.start_idx:
            raise InvalidRequest(
                f"an image of {self.end_idx - self.start_idx} tokens cannot have {rows} embedding rows"
            )
        if not isinstance(self.pixel_values, np.ndarray):
            raise InvalidRequest(f"`pixel_values` is a numpy array, not a {type(self.pixel_values).__name__}")

    @property
    def embedding_rows(self) -> int:
        """Rows that the encoder makes for this image: one per token unless `num_embedding_rows` says fewer."""
        return self.end_idx - self.start_idx if self.num_embedding_rows is None else self.num_embedding_rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageMetadata):
            return NotImplemented
        return self._key() == other._key() and np.array_equal(self.pixel_values, other.pixel_values)

    # Fields can be assigned.
    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> tuple[Any, ...]:
        pixels = self.pixel_values
        return self.start_idx, self.end_idx, self.image_hash, self.num_embedding_rows, pixels.dtype, pixels.shape

    def __repr__(self) -> str:
        return (
            f"ImageMetadata(start_idx={self.start_idx}, end_idx={self.end_idx}, "
            f"pixel_values={self.pixel_values.shape}, image_hash={self.image_hash}, "
            f"num_embedding_rows={self.num_embedding_rows})"
        )


@dataclass(frozen=True)
class TokenHashOverride:
    """What the prefix cache hashes in place of the token at `token_idx`: equal placeholders differ by content."""

    token_idx: int
    token_hash: int
    source: str = "media"


@runtime_checkable
class VLMTextGenerationContext(TextGenerationContext, Protocol):
    """A text context with images; `TextAndVisionContext` is ours."""

    @property
    def images(self) -> list[ImageMetadata]:
        """All images, in order, not overlapping."""
        ...

    @property
    def image_idx(self) -> int:
        """The first image not fully processed; `len(images)` when there is none."""
        ...

    @property
    def next_images(self) -> list[ImageMetadata]:
        """The images not fully processed."""
        ...

    @property
    def needs_vision_encoding(self) -> bool:
        """Whether there is such an image."""
        ...

    @property
    def image_token_indices(self) -> npt.NDArray[np.int32]:
        """Where the placeholder tokens lie."""
        ...

    def compute_image_aligned_idx(self, idx: int) -> int:
        """The start of the image that `idx` lies in, else `idx`."""
        ...


VLMContextType = TypeVar("VLMContextType", bound=VLMTextGenerationContext)


@dataclass(kw_only=True, eq=False)
class TextAndVisionContext(TextContext):
    """A `TextContext` with images; satisfies `VLMTextGenerationContext`.

    `images` are in order and may touch but not overlap; the first and last token of each is one of `vision_token_ids`.
    Only a chunk can end inside an image: otherwise the active window ends behind the last token, hence behind them all.

    Raises InvalidRequest (a ValueError), also when decoded, for images that are not so.
    """

    images: list[ImageMetadata] = field(default_factory=list)
    vision_token_ids: list[int] = field(default_factory=list)
    #: What the prefix cache hashes in place of some tokens, at most one for each.
    token_hash_overrides: list[TokenHashOverride] = field(default_factory=list)
    kind: str = "text_and_vision"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_order(self.images)
        self._check_spans()
        self._check_overrides()

    def _check_spans(self) -> None:
        allowed = set(self.vision_token_ids)
        for image in self.images:
            if image.end_idx > len(self.tokens):
                raise InvalidRequest(f"{image!r} reaches past the {len(self.tokens)} tokens")
            for index in (image.start_idx, image.end_idx - 1):
                if int(self.tokens[index]) not in allowed:
                    raise InvalidRequest(f"token {index}, at the edge of {image!r}, is no vision token")

    def _check_overrides(self) -> None:
        indices = [override.token_idx for override in self.token_hash_overrides]
        if len(set(indices)) != len(indices) or any(not 0 <= index < len(self.tokens) for index in indices):
            raise InvalidRequest(
                f"`token_hash_overrides` name {len(self.tokens)} tokens, each at most once; got {indices}"
            )

    @property
    def image_idx(self) -> int:
        """The first image not fully processed; `len(images)` when there is none."""
        return bisect_right(self.images, self.tokens.processed_length, key=lambda image: image.end_idx)

    @property
    def next_images(self) -> list[ImageMetadata]:
        """The images not fully processed; one that is partly processed is whole again here."""
        return self.images[self.image_idx :]

    @property
    def next_images_in_window(self) -> list[ImageMetadata]:
        """Those of `next_images` that overlap `[processed_length, current_position)`, whole even if cut."""
        position = self.tokens.current_position
        return [image for image in self.next_images if image.start_idx < position]

    @property
    def needs_vision_encoding(self) -> bool:
        """Whether any image is not fully processed."""
        return bool(self.images) and self.images[-1].end_idx > self.tokens.processed_length

    @property
    def hashed_tokens(self) -> npt.NDArray[np.int64]:
        """All tokens, those of `token_hash_overrides` replaced by what stands for their content."""
        places, hashes = self._hashes
        tokens = self.tokens.all.copy()
        tokens[places] = hashes
        tokens.flags.writeable = False
        return tokens

    @cached_property
    def _hashes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        pairs = [(override.token_idx, override.token_hash) for override in self.token_hash_overrides]
        places, hashes = np.array(pairs, np.int64).reshape(-1, 2).T
        return places, hashes

    @property
    def image_token_indices(self) -> npt.NDArray[np.int32]:
        """Where the placeholder tokens of all images lie, int32 `(n,)`; empty without images."""
        spans = [np.arange(image.start_idx, image.end_idx, dtype=np.int32) for image in self.images]
        return np.concatenate(spans) if spans else np.empty(0, np.int32)

    def compute_image_aligned_idx(self, idx: int) -> int:
        """The start of the image that `idx` lies in (its start counts, its end does not), else `idx`."""
        found = bisect_right(self.images, idx, key=lambda image: image.start_idx) - 1
        if found >= 0 and idx < self.images[found].end_idx:
            return self.images[found].start_idx
        return idx


def _check_order(images: Sequence[ImageMetadata]) -> None:
    for before, after in pairwise(images):
        if after.start_idx < before.end_idx:
            raise InvalidRequest(f"images lie in order and do not overlap, unlike {before!r} and {after!r}")


if TYPE_CHECKING:

    def _conforms(context: TextAndVisionContext) -> VLMTextGenerationContext:
        return context
