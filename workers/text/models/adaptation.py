"""Where adapters act in a decoder: the linear layers that PEFT names, and how their additions lie in our merged ones.

`lora_files.py` reads additions by PEFT's names, `decoder.py` applies them by the names given here: one pair of matrices
for each of its own products. Queries, keys and values are one product here, gate and value another, and the gains of
norms and the scale of the queries are inside the matrices: so they are inside the additions too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lora_files import LowRank, Shapes
from .config import DecoderConfig

if TYPE_CHECKING:
    from .decoder import Layer

#: The parts of our products, in their order in the rows of a product.
_PARTS = {
    "mix": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attended": ("self_attn.o_proj",),
    "widen": ("mlp.gate_proj", "mlp.up_proj"),
    "narrow": ("mlp.down_proj",),
}


def site(layer: int, product: str) -> str:
    """The name of one product of one layer."""
    return f"{layer}.{product}"


def adaptable(config: DecoderConfig) -> Shapes:
    """The linear layers that can be adapted, by their names in a checkpoint, with outputs and inputs."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    shapes = {
        "self_attn.q_proj": (queries, config.width),
        "self_attn.k_proj": (keys, config.width),
        "self_attn.v_proj": (keys, config.width),
        "self_attn.o_proj": (config.width, queries),
        "mlp.gate_proj": (config.inner, config.width),
        "mlp.up_proj": (config.inner, config.width),
        "mlp.down_proj": (config.width, config.inner),
    }
    return {f"model.layers.{layer}.{name}": shape for layer in range(config.layers) for name, shape in shapes.items()}


def fit(additions: Mapping[str, LowRank], config: DecoderConfig, layers: Sequence[Layer]) -> dict[str, LowRank]:
    """Additions by PEFT's names as such by `site`, for a decoder of these layers."""
    shapes = adaptable(config)
    found: dict[str, LowRank] = {}
    for number, layer in enumerate(layers):
        gains = {"mix": layer.mix_gain, "widen": layer.widen_gain}
        for product, names in _PARTS.items():
            whole = [f"model.layers.{number}.{name}" for name in names]
            if any(name in additions for name in whole):
                parts = [(additions.get(name), shapes[name][0]) for name in whole]
                joined = _joined(parts)
                gain = gains.get(product)
                down = joined.down if gain is None else joined.down * gain[:, None]
                up = _scaled(joined.up, config) if product == "mix" else joined.up
                found[site(number, product)] = LowRank(_turned(down), _turned(up))
    return found


def _joined(parts: Sequence[tuple[LowRank | None, int]]) -> LowRank:
    """Additions to outputs that lie side by side as one: the ranks side by side too, and zeros between them."""
    there = [(part, width) for part, width in parts if part is not None]
    down = np.concatenate([part.down for part, _ in there], axis=1)
    up = np.zeros((down.shape[1], sum(width for _, width in parts)), np.float32)
    rank = start = 0
    for part, width in parts:
        if part is not None:
            up[rank : rank + len(part.up), start : start + width] = part.up
            rank += len(part.up)
        start += width
    return LowRank(down, up)


def _scaled(up: Any, config: DecoderConfig) -> Any:
    """With the scale of the queries, unless a norm of heads has it in its gain."""
    if not config.qk_norm:
        up[:, : config.heads * config.head_width] *= np.float32(1 / math.sqrt(config.head_width))
    return up


def _turned(matrix: Any) -> Any:
    """The same numbers as a view of what lies turned, as the decoder's own matrices do."""
    return np.ascontiguousarray(matrix.T).T
