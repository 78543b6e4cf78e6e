"""What a prompt's images are to a model of `transformers`: rows in place of words, and positions by rows and columns.

`hf.py` asks for each span. The rows of an image are computed by themselves when the first of its tokens comes, and kept
until the last has passed: so a chunk may end inside an image, and one that the prefix cache has is never looked at.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ....errors import PipelineError
from ....proto.text_context import TextContext
from ....proto.vision import ImageMetadata, TextAndVisionContext
from ...torch_arrays import library, to_torch
from .step import Span

Ints = npt.NDArray[np.int64]


@dataclass(kw_only=True, eq=False, repr=False)
class HfImage(ImageMetadata):
    """An image as the library's processor has prepared it: what else goes to the encoder beside the pixels."""

    extra: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass
class _Seen:
    """What is known of the images of one request."""

    #: By number, for images that are being read in.
    rows: dict[int, Any] = field(default_factory=dict)
    #: Of the prompt's tokens `(3, n)`, and what later ones are shifted by; None where positions just count.
    positions: tuple[Ints, int] | None = None


class ImageRows:
    """The encoder's side of one model; keeps what it knows of a request as long as its context lives."""

    def __init__(self, model: Any, torch_device: str) -> None:
        self._model = model
        self._device = torch_device
        self._seen: WeakKeyDictionary[TextContext, _Seen] = WeakKeyDictionary()
        self._turned = hasattr(getattr(model, "model", None), "get_rope_index")

    def among(self, span: Span) -> list[tuple[Ints, Any]]:
        """Which tokens of a span are rows of images, by their place in it, and those rows: one pair for each image."""
        context = span.context
        if not isinstance(context, TextAndVisionContext):
            return []
        end = span.start + len(span.tokens)
        seen = self._request(context)
        found = []
        for number, image in enumerate(context.images):
            if image.start_idx < end and span.start < image.end_idx:
                found.append(self._part(seen, number, image, context, span))
            if image.end_idx <= end:
                seen.rows.pop(number, None)
        return found

    def _part(
        self, seen: _Seen, number: int, image: ImageMetadata, context: TextAndVisionContext, span: Span
    ) -> tuple[Ints, Any]:
        """The rows of one image that fall into a span."""
        tokens = context.tokens.all[image.start_idx : image.end_idx]
        places = np.flatnonzero(tokens == self._model.config.image_token_id) + image.start_idx
        if number not in seen.rows:
            seen.rows[number] = self._encode(image, len(places))
        inside = (places >= span.start) & (places < span.start + len(span.tokens))
        first = int(np.argmax(inside))
        return places[inside] - span.start, seen.rows[number][first : first + int(inside.sum())]

    def _encode(self, image: ImageMetadata, wanted: int) -> Any:
        """An image's rows, `(tokens, width)`."""
        pixels = to_torch(image.pixel_values, self._device).to(next(self._model.parameters()).dtype)
        extra = {name: to_torch(array, self._device) for name, array in getattr(image, "extra", {}).items()}
        features = self._model.get_image_features(pixel_values=pixels, **extra)
        rows = getattr(features, "pooler_output", features)
        if isinstance(rows, list | tuple):
            rows = library("torch").cat([part.reshape(-1, part.shape[-1]) for part in rows])
        rows = rows.reshape(-1, rows.shape[-1])
        if len(rows) != wanted:
            raise PipelineError(f"the encoder made {len(rows)} rows of an image that has {wanted} tokens")
        return rows

    def positions(self, span: Span) -> Ints:
        """Positions of a span's tokens: `(width,)`, or `(3, width)` behind or among images that are turned."""
        count = np.arange(span.start, span.start + len(span.tokens))
        if not self._turned or not isinstance(span.context, TextAndVisionContext) or not span.context.images:
            return count
        seen = self._request(span.context)
        if seen.positions is None:
            seen.positions = self._turn(span.context)
        prompt, shift = seen.positions
        later = np.broadcast_to(count + shift, (3, len(count)))
        known = prompt[:, span.start : span.start + len(count)]
        return np.concatenate([known, later[:, known.shape[1] :]], axis=1)

    def _turn(self, context: TextAndVisionContext) -> tuple[Ints, int]:
        tokens = context.tokens.all[: context.first_generated]
        kinds = np.zeros(len(tokens), np.int32)
        kinds[context.image_token_indices] = 1
        grids = [getattr(image, "extra", {})["image_grid_thw"] for image in context.images]
        given: dict[str, npt.NDArray[Any]] = {
            "input_ids": tokens.copy()[None],
            "mm_token_type_ids": kinds[None],
            "image_grid_thw": np.concatenate(grids),
        }
        index = self._model.model.get_rope_index
        taken = inspect.signature(index).parameters
        positions, shift = index(**{name: to_torch(item, "cpu") for name, item in given.items() if name in taken})
        found: Ints = positions[:, 0].numpy()
        return found, int(shift.reshape(-1)[0])

    def _request(self, context: TextContext) -> _Seen:
        return self._seen.setdefault(context, _Seen())
