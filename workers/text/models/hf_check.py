"""Whether a model computes through our cache what `transformers` computes by itself, tried once at start.

What a model keeps between steps, and how it counts positions, is its own business: one that keeps more than keys and
values, or that lets an image's tokens look ahead, would give other texts without a word. `hf.py` computes both sides.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import ConfigError
from ....proto.text_context import TextContext
from ...torch_arrays import library, to_torch
from .hf import HfModel
from .hf_images import HfImage
from .step import Span

#: Tokens of a trial without images.
_TOKENS = 11
#: How far logits may be apart, of the largest; half precision rounds each step of the way differently.
_TOLERANCE = {"torch.float32": 1e-3}
_HALF_TOLERANCE = 0.1
_BLOCK = 4


def require_same(model: HfModel, context: TextContext | None = None) -> None:
    """ConfigError unless a prompt (the `context`'s, or some tokens) in pieces has the library's logits."""
    tokens = np.arange(_TOKENS) * 7 % min(model.config.vocabulary, 97) if context is None else context.tokens.all
    try:
        wanted, found = _whole(model, tokens, context), _in_pieces(model, tokens, context)
    except Exception as error:  # whatever a model raises that keeps something else
        raise ConfigError(f"{type(model.model).__name__} cannot be served through a cache in steps: {error}") from error
    apart = float(np.abs(found - wanted).max())
    largest = max(float(np.abs(wanted).max()), 1e-3)
    allowed = _TOLERANCE.get(str(model.dtype), _HALF_TOLERANCE)
    if not apart <= allowed * largest:
        what = "a prompt" if context is None else "a prompt with an image"
        raise ConfigError(
            f"{type(model.model).__name__} cannot be served: in steps, through a cache of keys and values, {what} has "
            f"logits that are {apart:.3g} apart from those of transformers (largest: {largest:.3g})",
        )


def _whole(model: HfModel, tokens: npt.NDArray[np.int64], context: TextContext | None) -> npt.NDArray[np.float32]:
    given: dict[str, Any] = {"input_ids": tokens.copy()[None]}
    images = [image for image in getattr(context, "images", ()) if isinstance(image, HfImage)]
    for image in images:
        given |= {"pixel_values": image.pixel_values, **image.extra}
        kinds = np.zeros(len(tokens), np.int32)
        kinds[image.start_idx : image.end_idx] = 1
        if "mm_token_type_ids" in model.takes:
            given["mm_token_type_ids"] = kinds[None]
    tensors = {name: to_torch(array, model.torch_device) for name, array in given.items()}
    if images:
        tensors["pixel_values"] = tensors["pixel_values"].to(model.dtype)
    with library("torch").inference_mode():
        logits = model.model(**tensors, use_cache=False).logits[0]
    found: npt.NDArray[np.float32] = logits.float().cpu().numpy()
    return found


def _in_pieces(model: HfModel, tokens: npt.NDArray[np.int64], context: TextContext | None) -> npt.NDArray[np.float32]:
    """The first half at once, then a bit, then one by one, in blocks that lie in no order."""
    blocks = -(-len(tokens) // _BLOCK)
    cache = model.cache(blocks=blocks, block_size=_BLOCK)
    table = np.arange(blocks)[::-1].copy()
    half = len(tokens) // 2
    cuts = [0, half, min(half + 3, len(tokens) - 1), *range(min(half + 4, len(tokens)), len(tokens) + 1)]
    parts = []
    for start, end in pairwise(cuts):
        span = Span(tokens[start:end], start, table, end - start, context=context)
        parts.append(model.device.to_host(model.compute([span], cache)))
    return np.concatenate(parts)
