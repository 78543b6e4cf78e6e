"""A decoder of the Llama family in float32 on NumPy or CuPy: a step's tokens in, logits out.

Laid out by `step.py`; keys and values go to `cache.py`. It reads no requests and samples nothing. Architecture: Touvron
et al., "LLaMA" (2023), section 2.2, with grouped queries (Ainslie et al., 2023); Qwen's biases and norms of heads.

The rows of all requests lie in one matrix. On a CPU it is multiplied in tiles of some rows (`tile_rows`), always the
same number, so that a row's result has the same bits whatever else is in the step; see `attention.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import ConfigError
from ...device import Device
from ..lora import AdapterBatch
from ..lora_files import LowRank, Shapes
from .adaptation import adaptable, fit, site
from .attention import Attention
from .cache import KVCache
from .checkpoint import Checkpoint
from .config import DecoderConfig
from .step import Span, Step, bias, lay_out

#: Rows that may be multiplied at once: the most first, since each reads the weights anew.
TILES = (8, 4, 2)


#: Rows that a GPU computes in about the time that it reads the weights in; a common figure, not measured here.
CHEAP_ON_GPU = 128


@dataclass(frozen=True)
class Affine:
    """`rows @ weight + bias`; `weight` is `(in, out)`, a view of what the file has, `bias` `(out,)` or None."""

    weight: Any
    bias: Any = None


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. The gains of its two norms are inside `mix` and `widen`, the scale in the queries."""

    #: Queries, keys and values side by side.
    mix: Affine
    #: Gains of the norms of queries and keys, `(heads + kv_heads, head_width)`; None without.
    head_gain: Any
    attended: Affine
    #: Gate and value side by side.
    widen: Affine
    narrow: Affine
    window: int | None
    #: The gains that are inside `mix` and `widen`, on the host, for what is added to those.
    mix_gain: Any
    widen_gain: Any


class Decoder:
    """A decoder on one device; keeps nothing between steps but its weights."""

    takes_steps = True

    def __init__(self, config: DecoderConfig, checkpoint: Checkpoint, device: Device) -> None:
        self.config = config
        self.device = device
        self._xp = device.xp
        self._words = device.to_device(checkpoint.take("model.embed_tokens.weight", (config.vocabulary, config.width)))
        self._layers = [_layer(checkpoint, number, config, device) for number in range(config.layers)]
        self._head = _head(checkpoint, self._words, config, device)
        checkpoint.refuse_rest(_derived(config))
        cosines, sines = config.rope.table(config.head_width, config.positions)
        # As (positions, 1, head_width / 2): the same for all heads.
        self._cosines, self._sines = (device.to_device(table)[:, None] for table in (cosines, sines))
        self._tile = 0 if device.is_gpu else tile_rows()
        self._attention = Attention(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            xp=device.xp,
            exact=bool(self._tile),
        )

    @property
    def adaptable(self) -> Shapes:
        """The linear layers that adapters may change."""
        return adaptable(self.config)

    def fit(self, additions: Mapping[str, LowRank]) -> dict[str, LowRank]:
        """What an adapter adds, by the products of this decoder instead of the layers of its checkpoint."""
        found = fit(additions, self.config, self._layers)
        for part in found.values() if self._tile else ():  # here, so that no step has to find it out
            tile_for(*part.down.shape, part.up.shape[1])
        return found

    @property
    def cheap_rows(self) -> int:
        """Rows of a step that cost hardly more than one: a tile on a CPU; on a GPU what its memory's speed hides."""
        return self._tile or CHEAP_ON_GPU

    @classmethod
    def load(cls, folder: Path, device: Device, *, ignored_keys: tuple[str, ...] = ()) -> Decoder:
        """The decoder of a Hugging Face folder; ConfigError where it has something that is not supported."""
        return cls(DecoderConfig.read(folder, ignored=ignored_keys), Checkpoint(folder), device)

    def compute(self, spans: Sequence[Span], cache: KVCache) -> Any:
        """`forward` of spans, as `base.py` has it."""
        return self.forward(lay_out(spans, cache.block_size), cache)

    def forward(self, step: Step, cache: KVCache) -> Any:
        """Logits of the rows that the step wants, float32 `(rows, vocabulary)` on the device.

        The keys and values of all rows are in the cache afterwards.
        """
        # A gate far below 0 makes exp overflow to infinity, and 1 / infinity is the 0 that is meant.
        with np.errstate(over="ignore"):
            hidden = self._run(step, cache)
            if not len(step.wanted):
                return self._xp.zeros((0, self.config.vocabulary), np.float32)
            rows = self._xp.take(hidden, self.device.to_device(step.wanted), axis=0)
            return self._times(self._normalised(rows), self._head)

    def _run(self, step: Step, cache: KVCache) -> Any:
        upload = self.device.to_device
        hidden = self._xp.take(self._words, upload(step.ids), axis=0)
        positions, slots = upload(step.positions), upload(step.slots)
        turn = (self._xp.take(self._cosines, positions, axis=0), self._xp.take(self._sines, positions, axis=0))
        tables = [upload(group.tables) for group in step.groups]
        biases = {window: self._biases(step, window, cache) for window in set(self.config.windows)}
        adapted = AdapterBatch(self.device, step.adapters, self._times_low)
        for number, layer in enumerate(self._layers):
            queries = self._mix(hidden, layer, turn, slots, cache, number, adapted)
            attended = self._xp.empty_like(queries)
            for group, table, added in zip(step.groups, tables, biases[layer.window], strict=True):
                rows = group.rows
                self._attention.attend(queries[rows], attended[rows], cache, number, group, table, added)
            joined = attended.reshape(len(hidden), -1)
            hidden += adapted.add(site(number, "attended"), joined, self._times(joined, layer.attended))
            hidden += self._feed_forward(self._normalised(hidden), layer, number, adapted)
        return hidden

    def _biases(self, step: Step, window: int | None, cache: KVCache) -> list[Any]:
        size = cache.block_size
        return [bias(group, group.tables.shape[1] * size, window, self._xp) for group in step.groups]

    def _mix(
        self,
        hidden: Any,
        layer: Layer,
        turn: tuple[Any, Any],
        slots: Any,
        cache: KVCache,
        number: int,
        adapted: AdapterBatch,
    ) -> Any:
        """Queries, `(rows, heads, head_width)`; the keys and values go into the cache."""
        config = self.config
        heads, both = config.heads, config.heads + config.kv_heads
        rows = self._normalised(hidden)
        mixed = adapted.add(site(number, "mix"), rows, self._times(rows, layer.mix))
        mixed = mixed.reshape(len(hidden), both + config.kv_heads, config.head_width)
        turned = mixed[:, :both]
        if layer.head_gain is not None:
            plain = self._normalised(turned.reshape(-1, config.head_width)).reshape(turned.shape)
            self._xp.multiply(plain, layer.head_gain, out=turned)
        self._rotate(turned, *turn)
        cache.write(number, slots, mixed[:, heads:].reshape(len(hidden), 2, config.kv_heads, config.head_width))
        return mixed[:, :heads]

    def _rotate(self, rows: Any, cosines: Any, sines: Any) -> None:
        """Turn each pair (i, i + half) of every head, in place."""
        half = rows.shape[-1] // 2
        first, second = rows[..., :half], rows[..., half:]
        turned = first * sines
        turned += second * cosines
        first *= cosines
        second *= sines
        first -= second
        rows[..., half:] = turned

    def _feed_forward(self, rows: Any, layer: Layer, number: int, adapted: AdapterBatch) -> Any:
        """SwiGLU: silu(gate) * value, widened and narrowed."""
        inner = self.config.inner
        both = adapted.add(site(number, "widen"), rows, self._times(rows, layer.widen))
        gate, value = both[:, :inner], both[:, inner:]
        value = value * gate
        self._xp.negative(gate, out=gate)
        self._xp.exp(gate, out=gate)
        gate += np.float32(1)
        value /= gate
        return adapted.add(site(number, "narrow"), value, self._times(value, layer.narrow))

    def _normalised(self, rows: Any) -> Any:
        """Rows divided by their root mean square; the gain is in the matrix that comes next."""
        squares = self._xp.einsum("ij,ij->i", rows, rows)
        squares *= np.float32(1 / rows.shape[1])
        squares += np.float32(self.config.epsilon)
        return rows / self._xp.sqrt(squares)[:, None]

    def _times(self, rows: Any, affine: Affine) -> Any:
        """The product, tile by tile where the bits must not depend on how many rows there are."""
        product = tiled(rows, affine.weight, self._tile) if self._tile else rows @ affine.weight
        if affine.bias is not None:
            product += affine.bias
        return product

    def _times_low(self, rows: Any, down: Any, up: Any) -> Any:
        """The same for both matrices of an adapter, whose few columns or rows BLAS may treat in another way."""
        return tiled(rows, down, tile_for(*down.shape, up.shape[1]), up) if self._tile else rows @ down @ up


def tiled(rows: Any, weight: Any, tile: int, then: Any = None) -> Any:
    """`rows @ weight`, float32 `(rows, out)`, in tiles of `tile` rows, the last one filled up with zeros.

    With `then`, the product is multiplied by that too. Computed turned, weights first: OpenBLAS then makes one pass
    over them for all rows of a tile, and with the turning back that is still up to a sixth faster.
    """
    count = len(rows)
    whole = -(-count // tile) * tile
    if whole != count:
        filled = np.zeros((whole, rows.shape[1]), np.float32)
        filled[:count] = rows
        rows = filled
    product = np.matmul(weight.T, rows.reshape(-1, tile, rows.shape[1]).swapaxes(1, 2))
    if then is not None:
        product = np.matmul(then.T, product)
    if whole == tile:
        return np.ascontiguousarray(product[0, :, :count].T)
    return product.swapaxes(1, 2).reshape(whole, -1)[:count]


@functools.cache
def tile_rows() -> int:
    """The most rows of `TILES` that this machine's BLAS treats alike, whichever they are; 1 if none.

    Kernels of 16 rows were seen to add in other orders than those for the rows left over.
    """
    shapes = ((64, 96), (128, 768), (384, 128), (1024, 512))
    return next((tile for tile in TILES if all(_treats_alike(tile, *shape) for shape in shapes)), 1)


@functools.lru_cache(1024)
def tile_for(width: int, rank: int, out: int) -> int:
    """The same for two matrices of one shape, `(width, rank)` and `(rank, out)`."""
    return next((tile for tile in TILES if _treats_alike(tile, width, rank, out)), 1)


def _treats_alike(tile: int, width: int, *outs: int) -> bool:
    random = np.random.default_rng(0)
    weight, *then = (random.standard_normal(shape, np.float32).T for shape in zip(outs, (width, *outs), strict=False))
    row = random.standard_normal(width, np.float32)
    places = [random.standard_normal((tile, width), np.float32) for _ in range(tile)]
    for place, rows in enumerate(places):
        rows[place] = row
    return len({tiled(rows, weight, tile, *then)[place].tobytes() for place, rows in enumerate(places)}) == 1


def _layer(checkpoint: Checkpoint, number: int, config: DecoderConfig, device: Device) -> Layer:
    def take(name: str, *shape: int) -> Any:
        return checkpoint.take(f"model.layers.{number}.{name}", shape)

    width, inner = config.width, config.inner
    before = take("input_layernorm.weight", width)
    after = take("post_attention_layernorm.weight", width)
    gate, value = (take(f"mlp.{name}.weight", inner, width) for name in ("gate_proj", "up_proj"))
    gate_bias, value_bias = (
        _optional(take, config.mlp_bias, f"mlp.{name}.bias", inner) for name in ("gate_proj", "up_proj")
    )
    queries = config.heads * config.head_width
    return Layer(
        mix=_mixing(take, config, device, before),
        head_gain=_head_gain(take, config, device),
        attended=_affine(
            device,
            take("self_attn.o_proj.weight", width, queries),
            _optional(take, config.out_bias, "self_attn.o_proj.bias", width),
        ),
        widen=_affine(device, np.concatenate([gate, value]) * after, _joined([gate_bias, value_bias])),
        narrow=_affine(
            device,
            take("mlp.down_proj.weight", width, inner),
            _optional(take, config.mlp_bias, "mlp.down_proj.bias", width),
        ),
        window=config.windows[number],
        mix_gain=before,
        widen_gain=after,
    )


def _mixing(take: Callable[..., Any], config: DecoderConfig, device: Device, before: Any) -> Affine:
    # With a norm of heads the scale is in its gain instead, for the norm would undo it here.
    scale = np.float32(1 if config.qk_norm else 1 / math.sqrt(config.head_width))
    matrices, biases = [], []
    for name, heads, factor in (("q", config.heads, scale), ("k", config.kv_heads, 1), ("v", config.kv_heads, 1)):
        rows = heads * config.head_width
        matrices.append(take(f"self_attn.{name}_proj.weight", rows, config.width) * np.float32(factor))
        added = _optional(take, config.qkv_bias, f"self_attn.{name}_proj.bias", rows)
        biases.append(None if added is None else added * np.float32(factor))
    return _affine(device, np.concatenate(matrices) * before, _joined(biases))


def _head_gain(take: Callable[..., Any], config: DecoderConfig, device: Device) -> Any:
    if not config.qk_norm:
        return None
    scale = np.float32(1 / math.sqrt(config.head_width))
    queries = take("self_attn.q_norm.weight", config.head_width) * scale
    keys = take("self_attn.k_norm.weight", config.head_width)
    return device.to_device(np.stack([queries] * config.heads + [keys] * config.kv_heads))


def _optional(take: Callable[..., Any], wanted: bool, name: str, size: int) -> Any:
    return take(name, size) if wanted else None


def _joined(biases: list[Any]) -> Any:
    return None if biases[0] is None else np.concatenate(biases)


def _affine(device: Device, matrix: Any, added: Any = None) -> Affine:
    # Files hold (out, in). BLAS reads a transposed view as fast, for some rows faster.
    weight = device.to_device(np.ascontiguousarray(matrix, np.float32)).T
    return Affine(weight, None if added is None else device.to_device(added))


def _head(checkpoint: Checkpoint, words: Any, config: DecoderConfig, device: Device) -> Affine:
    """The output's matrix, with the gain of the last norm inside."""
    gain = checkpoint.take("model.norm.weight", (config.width,))
    shape = (config.vocabulary, config.width)
    if config.tied and "lm_head.weight" in checkpoint:
        same = np.array_equal(checkpoint.take("lm_head.weight", shape), device.to_host(words))
        if not same:
            raise ConfigError("tie_word_embeddings is true, and lm_head.weight is another matrix than the embeddings")
    matrix = device.to_host(words) if config.tied else checkpoint.take("lm_head.weight", shape)
    return _affine(device, matrix * gain)


def _derived(config: DecoderConfig) -> set[str]:
    """Tensors that old files hold although they follow from the config."""
    return {f"model.layers.{number}.self_attn.rotary_emb.inv_freq" for number in range(config.layers)}
