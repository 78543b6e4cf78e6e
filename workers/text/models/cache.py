"""The keys and values of all requests, in blocks: one array per layer on the device.

Who owns which block is decided by `..blocks`; `attention.py` reads by block tables and `decoder.py` writes new rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...device import Device
from .config import DecoderConfig


class KVCache:
    """Room for `blocks` blocks of `block_size` tokens.

    Each layer is float32 `(2, kv_heads, blocks, block_size, head_width)`, keys then values: the heads outside, so that
    what is gathered of a request's blocks is, head by head, a matrix that BLAS takes as it is. Memory that was never
    written costs nothing on a CPU, where the system hands out pages as they are touched.
    """

    def __init__(self, config: DecoderConfig, *, blocks: int, block_size: int, device: Device) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._xp = device.xp
        shape = (2, config.kv_heads, blocks, block_size, config.head_width)
        self.layers = [device.xp.zeros(shape, np.float32) for _ in range(config.layers)]

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int) -> int:
        """Bytes that one block takes in all layers together."""
        return 4 * 2 * config.layers * config.kv_heads * block_size * config.head_width

    def write(self, layer: int, slots: Any, rows: Any) -> None:
        """Put keys and values, `(rows, 2, kv_heads, head_width)`, where `slots` (`(rows,)`) say."""
        stored = self.layers[layer]
        flat = stored.reshape(*stored.shape[:2], -1, stored.shape[-1])
        flat[:, :, slots] = rows.transpose(1, 2, 0, 3)

    def read(self, layer: int, tables: Any) -> Any:
        """Keys and values by block `tables`, `(spans, blocks)`: a copy, `(2, kv_heads, spans, tokens, head_width)`."""
        stored = self.layers[layer]
        found = self._xp.take(stored, tables, axis=2)
        return found.reshape(*stored.shape[:2], len(tables), -1, stored.shape[-1])

    def scrub(self, tables: Any) -> None:
        """Zero some blocks: a number that is not finite would spread to their next owner, through masked places."""
        for stored in self.layers:
            stored[:, :, tables] = 0

    def copy(self, source: int, target: int) -> None:
        """One block's content into another."""
        for stored in self.layers:
            stored[:, :, target] = stored[:, :, source]
