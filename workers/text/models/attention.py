"""Attention of a step's rows over the cache, group by group.

Called by `decoder.py` for each layer. What a token gets must not depend on the requests that happen to be computed
beside it, to the last bit: else a stream would change with the load. So on a CPU each token has products of its own,
of one shape (`exact`), and long sequences are summed in parts that begin at fixed places: a sum that BLAS splits at
places of its choice is another sum. What padding adds at the end are zeros, which change no bit.
"""

from __future__ import annotations

from typing import Any

from .cache import KVCache
from .step import Group

#: Tokens summed in one product. OpenBLAS splits longer sums, by their length.
PART = 256

#: Numbers that NumPy sums in an order which trailing zeros do not change; longer sums it splits, by their length.
SUMMED = 128

#: Scores held at once, in elements (16 MiB): of a long prompt some rows at a time are computed.
SCORES = 4 << 20


class Attention:
    """Grouped-query attention on one array module; `exact` as the module says."""

    def __init__(self, *, heads: int, kv_heads: int, head_width: int, xp: Any, exact: bool) -> None:
        self._heads = heads
        self._kv_heads = kv_heads
        self._head_width = head_width
        self._xp = xp
        self._exact = exact

    def attend(
        self, queries: Any, attended: Any, cache: KVCache, layer: int, group: Group, tables: Any, bias: Any
    ) -> None:
        """Write what a group's `queries`, `(spans * width, heads, head_width)` and scaled, find into `attended`."""
        keys, values = cache.read(layer, tables)
        spans, width = group.spans, group.width
        shape = (spans, width, self._kv_heads, self._heads // self._kv_heads, self._head_width)
        asked, found = queries.reshape(shape), attended.reshape(shape)
        most = max(SCORES // (self._heads * spans * keys.shape[2]), 1)
        for start in range(0, width, most):
            rows = slice(start, min(start + most, width))
            part = self._look_up(asked[:, rows].transpose(2, 0, 1, 3, 4), keys, values, bias[:, rows])
            found[:, rows] = part.transpose(1, 2, 0, 3, 4)

    def _look_up(self, queries: Any, keys: Any, values: Any, bias: Any) -> Any:
        """Softmax of scores times values, `(kv_heads, spans, width, group, head_width)`."""
        scores = self._scores(queries, keys)
        scores += bias
        scores -= scores.max(axis=-1, keepdims=True)
        self._xp.exp(scores, out=scores)
        found = self._weigh(scores, values)
        found /= self._sums(scores)
        return found

    def _scores(self, queries: Any, keys: Any) -> Any:
        turned = keys.swapaxes(-1, -2)
        if not self._exact:
            heads, spans, width, group, size = queries.shape
            scores = queries.reshape(heads, spans, width * group, size) @ turned
            return scores.reshape(heads, spans, width, group, -1)
        length = keys.shape[2]
        if length <= PART:
            return queries @ turned[:, :, None]
        scores = self._xp.empty((*queries.shape[:-1], length), queries.dtype)
        for start in range(0, length, PART):
            part = slice(start, start + PART)
            scores[..., part] = queries @ turned[:, :, None, :, part]
        return scores

    def _weigh(self, scores: Any, values: Any) -> Any:
        if not self._exact:
            heads, spans, width, group, length = scores.shape
            found = scores.reshape(heads, spans, width * group, length) @ values
            return found.reshape(heads, spans, width, group, -1)
        found = scores[..., :PART] @ values[:, :, None, :PART]
        for start in range(PART, scores.shape[-1], PART):
            part = slice(start, start + PART)
            found += scores[..., part] @ values[:, :, None, part]
        return found

    def _sums(self, scores: Any) -> Any:
        if not self._exact:
            return scores.sum(axis=-1, keepdims=True)
        total = scores[..., :SUMMED].sum(axis=-1, keepdims=True)
        for start in range(SUMMED, scores.shape[-1], SUMMED):
            total += scores[..., start : start + SUMMED].sum(axis=-1, keepdims=True)
        return total
