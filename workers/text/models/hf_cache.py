"""Keys and values of all requests as torch tensors in blocks, and what a model of `transformers` sees in a step.

The model (`hf.py`) writes and reads through the library's own cache interface; who owns which block is decided by
`..blocks`. Reading gathers a request's rows into one tensor, which is a copy (see decision 0021).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...torch_arrays import library, to_torch


@dataclass(frozen=True)
class LayerShape:
    """What a layer keeps of a token: `heads` keys of `key_width` numbers and as many values of `value_width`."""

    heads: int
    key_width: int
    value_width: int

    @property
    def numbers(self) -> int:
        """Of one token."""
        return self.heads * (self.key_width + self.value_width)


class TorchCache:
    """Room for `blocks` blocks of `block_size` tokens, of each layer that keeps any: None of those that do not.

    Keys and values are `(tokens, heads, width)` each.
    """

    def __init__(
        self, shapes: list[LayerShape | None], *, blocks: int, block_size: int, dtype: Any, device: str
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._device = device
        self._layers = [None if shape is None else self._room(shape, dtype) for shape in shapes]

    def _room(self, shape: LayerShape, dtype: Any) -> tuple[Any, Any]:
        zeros = library("torch").zeros
        rows = self.blocks * self.block_size
        keys = zeros((rows, shape.heads, shape.key_width), dtype=dtype, device=self._device)
        return keys, zeros((rows, shape.heads, shape.value_width), dtype=dtype, device=self._device)

    def view(self, slots: npt.NDArray[np.int64], new: int) -> Any:
        """The cache of one forward pass, as the library wants it.

        `slots`: where the tokens of each sequence lie, int64 `(batch, length)`, of which the last `new` are to come.
        """
        places = to_torch(slots, self._device)
        layers = [_layer_type()(layer, places, new) for layer in self._layers]
        return library("transformers.cache_utils").Cache(layers=layers)

    def scrub(self, tables: Any) -> None:
        """Zero some blocks: a number that is not finite would spread to their next owner, through masked places."""
        for layer in self._layers:
            for stored in layer or ():
                stored.view(self.blocks, self.block_size, *stored.shape[1:])[tables.tolist()] = 0


class _Layer:
    """One layer in one forward pass; `_layer_type` makes it a `CacheLayerMixin`, whose methods it has."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False
    is_initialized = True

    def __init__(self, stored: tuple[Any, Any] | None, slots: Any, new: int) -> None:
        self._stored = stored
        self._slots = slots
        self._new = new

    def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Put the new keys and values, `(batch, heads, new, width)`, and return all: the same with `length`."""
        assert self._stored is not None, "a layer without keys and values puts none"
        fresh = self._slots[:, -self._new :]
        for stored, rows in zip(self._stored, (keys, values), strict=True):
            stored[fresh] = rows.transpose(1, 2).to(stored.dtype)
        found_keys, found_values = (stored[self._slots].transpose(1, 2) for stored in self._stored)
        return found_keys, found_values

    def get_seq_length(self) -> int:
        """Tokens that are there already, padding included."""
        return int(self._slots.shape[1]) - self._new

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """How many keys there will be, and the position of the first."""
        return int(self._slots.shape[1]), 0

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1

    def lazy_initialization(self, *_: Any) -> None:
        """Nothing: its room is there."""


@functools.cache
def _layer_type() -> Any:
    return type("BlockLayer", (_Layer, library("transformers.cache_utils").CacheLayerMixin), {})
