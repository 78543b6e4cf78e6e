"""The BERT encoder, in float32 on NumPy or CuPy: token ids in, one mean-pooled vector per text out.

`minilm.py` makes token ids of texts and hands them over packed (`pack`); this module reads no requests. Architecture:
Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (2018), section 3.1.

The rows of all texts lie one after another in a single matrix, and only attention looks at texts one by one: so the
matrix products see the whole batch and no row is spent on padding. On a GPU, where many small kernels cost more than
some padding, lengths are rounded up and the padding is masked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..device import Device

#: Elements that GELU works on at once. Its 20 passes then stay in the second-level cache.
GELU_BLOCK = 32768

#: What a masked score becomes before the softmax: far below any score, and finite, so that no NaN can arise.
MASKED = np.float32(-1e9)


class BertConfig(NamedTuple):
    """The sizes of a BERT model, from its `config.json`."""

    layers: int
    heads: int
    width: int
    epsilon: float
    positions: int
    vocabulary: int

    @classmethod
    def read(cls, path: Path) -> BertConfig:
        """The sizes in a `config.json`; ConfigError for a model of another kind."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        supported = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for name, value in supported.items():
            if fields.get(name, value) != value:
                raise ConfigError(f"{path}: `{name}` is {fields[name]!r}, only {value!r} is supported")
        return cls(
            layers=fields["num_hidden_layers"],
            heads=fields["num_attention_heads"],
            width=fields["hidden_size"],
            epsilon=fields["layer_norm_eps"],
            positions=fields["max_position_embeddings"],
            vocabulary=fields["vocab_size"],
        )


class Group(NamedTuple):
    """Texts of one padded length, in adjacent rows of a `Packed`."""

    start: int
    texts: int
    length: int
    #: Tokens of each text, `(texts,)`; None when no text of the group is padded.
    lengths: npt.NDArray[np.int64] | None

    @property
    def rows(self) -> slice:
        """The rows of the group's tokens."""
        return slice(self.start, self.start + self.texts * self.length)


class Packed(NamedTuple):
    """The tokens of several texts, one row per token: `ids` and `positions` are `(rows,)` int64."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    groups: list[Group]


def padded_length(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple of `multiple`, in tokens."""
    return -(-length // multiple) * multiple


def pack(texts: Sequence[Sequence[int]], *, multiple: int = 1) -> Packed:
    """Lay out token lists for the encoder; they come sorted by length, none empty.

    `multiple` is what lengths are rounded up to; padding has id 0.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    padded = np.array([padded_length(int(length), multiple) for length in lengths], np.int64)
    starts = np.cumsum(padded) - padded
    positions = np.arange(padded.sum()) - np.repeat(starts, padded)
    ids = np.zeros(padded.sum(), np.int64)
    ids[positions < np.repeat(lengths, padded)] = np.concatenate([np.asarray(text, np.int64) for text in texts])
    return Packed(ids, positions, _groups(lengths, padded, starts))


def _groups(
    lengths: npt.NDArray[np.int64],
    padded: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> list[Group]:
    # Sorted by length, so that texts of one padded length are neighbours.
    values, firsts, counts = np.unique(padded, return_index=True, return_counts=True)
    groups = []
    for length, first, count in zip(values, firsts, counts, strict=True):
        own = lengths[first : first + count]
        groups.append(Group(int(starts[first]), int(count), int(length), None if (own == length).all() else own))
    return groups


@dataclass(frozen=True)
class Affine:
    """`rows @ weight + bias`; `weight` is `(in, out)`, `bias` `(out,)`."""

    weight: Any
    bias: Any


@dataclass(frozen=True)
class Layer:
    """The weights of one encoder layer; each norm is the gain and bias of a LayerNorm."""

    #: Queries, keys and values side by side: `(width, 3 * width)`. Queries come out divided by sqrt(head width).
    mix: Affine
    attended: Affine
    attended_norm: Affine
    widen: Affine
    narrow: Affine
    narrow_norm: Affine


class BertEncoder:
    """A BERT encoder on one device; safe to call from several threads, since it keeps nothing between calls.

    `weights` are float32 arrays by their names in the published checkpoints.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]], config: BertConfig, device: Device) -> None:
        self.config = config
        self.device = device
        self._xp = device.xp
        upload = device.to_device
        self._words = upload(weights["embeddings.word_embeddings.weight"])
        # Every token here is of type 0, so its row is added to the positions once and for all.
        types = weights["embeddings.token_type_embeddings.weight"]
        self._positions = upload(weights["embeddings.position_embeddings.weight"] + types[0])
        self._norm = _norm(weights, "embeddings.LayerNorm", device)
        self._layers = [_layer(weights, f"encoder.layer.{i}", config, device) for i in range(config.layers)]
        self._gelu = gelu_on(device)

    def encode(self, packed: Packed) -> Any:
        """Mean-pooled vectors, float32 `(texts, width)` on the device, in the order of the packed texts."""
        xp = self._xp
        hidden = xp.take(self._words, self.device.to_device(packed.ids), axis=0)
        hidden += xp.take(self._positions, self.device.to_device(packed.positions), axis=0)
        self._normalise(hidden, self._norm)
        masks = [self._mask(group) for group in packed.groups]
        for layer in self._layers:
            self._attend(hidden, layer, packed.groups, masks)
            inner = hidden @ layer.widen.weight
            inner += layer.widen.bias
            self._gelu(inner)
            self._add(hidden, inner, layer.narrow)
            self._normalise(hidden, layer.narrow_norm)
        return self._pool(hidden, packed.groups, masks)

    def _attend(self, hidden: Any, layer: Layer, groups: list[Group], masks: list[Any]) -> None:
        mixed = hidden @ layer.mix.weight
        mixed += layer.mix.bias
        attended = self._xp.empty_like(hidden)
        for group, mask in zip(groups, masks, strict=True):
            self._attend_group(mixed[group.rows], attended[group.rows], group, mask)
        self._add(hidden, attended, layer.attended)
        self._normalise(hidden, layer.attended_norm)

    def _attend_group(self, mixed: Any, attended: Any, group: Group, mask: Any) -> None:
        """Attention of each text of a group to itself: views only, no head is ever copied."""
        xp, heads, head_width = self._xp, self.config.heads, self.config.width // self.config.heads
        parts = mixed.reshape(group.texts, group.length, 3, heads, head_width)
        queries, keys, values = (parts[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        scores = xp.matmul(queries, keys.transpose(0, 1, 3, 2))
        if mask is not None:
            scores += xp.where(mask, xp.float32(0), MASKED)[:, None, None, :]
        scores -= scores.max(axis=-1, keepdims=True)
        xp.exp(scores, out=scores)
        result = attended.reshape(group.texts, group.length, heads, head_width).transpose(0, 2, 1, 3)
        result[...] = xp.matmul(scores, values)
        # Dividing here instead of before the product touches head_width numbers per row, not the text's length.
        result /= scores.sum(axis=-1, keepdims=True)

    def _add(self, hidden: Any, inner: Any, affine: Affine) -> None:
        hidden += inner @ affine.weight
        hidden += affine.bias

    def _normalise(self, rows: Any, norm: Affine) -> None:
        """LayerNorm in place, over the width."""
        rows -= rows.mean(axis=1, keepdims=True)
        variance = self._xp.einsum("ij,ij->i", rows, rows) / self.config.width
        rows *= (1 / self._xp.sqrt(variance + self.config.epsilon))[:, None].astype(rows.dtype)
        rows *= norm.weight
        rows += norm.bias

    def _mask(self, group: Group) -> Any:
        """Which tokens are real, `(texts, length)`; None where all are."""
        if group.lengths is None:
            return None
        return self.device.to_device(np.arange(group.length) < group.lengths[:, None])

    def _pool(self, hidden: Any, groups: list[Group], masks: list[Any]) -> Any:
        pooled = []
        for group, mask in zip(groups, masks, strict=True):
            tokens = hidden[group.rows].reshape(group.texts, group.length, self.config.width)
            if mask is None:
                pooled.append(tokens.mean(axis=1))
            else:
                real = mask.astype(hidden.dtype)
                pooled.append(self._xp.einsum("ntw,nt->nw", tokens, real) / real.sum(axis=1, keepdims=True))
        return self._xp.concatenate(pooled)


def gelu_on(device: Device) -> Any:
    """The function that applies GELU, x/2 * (1 + erf(x / sqrt 2)), to a float32 matrix in place.

    SciPy's erf takes 6.8 ns per element here, 40 % of the whole encoder; the CPU gets a fit that takes 1.5 ns.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
    """
    if not device.is_gpu:
        return _FittedGelu()
    erf = device.special.erf

    def gelu(rows: Any) -> None:
        rows *= (erf(rows * device.xp.float32(math.sqrt(0.5))) + 1) / 2

    return gelu


class _FittedGelu:
    """GELU by erf(x / sqrt 2) = tanh(x * p(x * x)), p a polynomial fitted here: within 2e-7 of the exact erf.

    That identity has a smooth p, near constant, and NumPy computes float32 tanh with vector instructions.
    """

    #: Where float32 erf(x / sqrt 2) has reached 1; p is not evaluated beyond.
    _END = 5.2
    _DEGREE = 6

    def __init__(self) -> None:
        nodes = (np.cos((np.arange(400) + 0.5) * np.pi / 400) + 1) / 2 * self._END
        inverse = [0.5 * math.log((1 + math.erf(x)) / math.erfc(x)) for x in nodes * math.sqrt(0.5)]
        # An error of p moves erf by x * (1 - erf^2) times as much: what counts is the error of erf.
        leverage = [x * (1 - math.erf(x * math.sqrt(0.5)) ** 2) + 1e-7 for x in nodes]
        fit = np.polynomial.polynomial.polyfit(nodes**2, inverse / nodes, self._DEGREE, w=leverage)
        self._coefficients = fit.astype(np.float32)[::-1]

    def __call__(self, rows: npt.NDArray[np.float32]) -> None:
        flat = rows.reshape(-1)
        scratch = np.empty((2, min(GELU_BLOCK, flat.size)), np.float32)
        for start in range(0, flat.size, GELU_BLOCK):
            block = flat[start : start + GELU_BLOCK]
            self._apply(block, scratch[0, : block.size], scratch[1, : block.size])

    def _apply(self, x: Any, square: Any, value: Any) -> None:
        np.multiply(x, x, out=square)
        np.minimum(square, np.float32(self._END**2), out=square)
        np.multiply(square, self._coefficients[0], out=value)
        value += self._coefficients[1]
        for coefficient in self._coefficients[2:]:
            value *= square
            value += coefficient
        value *= x
        np.tanh(value, out=value)
        value += np.float32(1)
        value *= np.float32(0.5)
        x *= value


def _affine(weights: Mapping[str, npt.NDArray[Any]], name: str, device: Device) -> Affine:
    # Checkpoints hold (out, in). BLAS reads a transposed view as fast, so none is copied.
    upload = device.to_device
    return Affine(upload(weights[f"{name}.weight"]).T, upload(weights[f"{name}.bias"]))


def _norm(weights: Mapping[str, npt.NDArray[Any]], name: str, device: Device) -> Affine:
    return Affine(device.to_device(weights[f"{name}.weight"]), device.to_device(weights[f"{name}.bias"]))


def _layer(weights: Mapping[str, npt.NDArray[Any]], name: str, config: BertConfig, device: Device) -> Layer:
    return Layer(
        mix=_mix(weights, f"{name}.attention.self", config, device),
        attended=_affine(weights, f"{name}.attention.output.dense", device),
        attended_norm=_norm(weights, f"{name}.attention.output.LayerNorm", device),
        widen=_affine(weights, f"{name}.intermediate.dense", device),
        narrow=_affine(weights, f"{name}.output.dense", device),
        narrow_norm=_norm(weights, f"{name}.output.LayerNorm", device),
    )


def _mix(weights: Mapping[str, npt.NDArray[Any]], name: str, config: BertConfig, device: Device) -> Affine:
    """Queries, keys and values as one product, with attention's scale inside the queries."""
    scale = np.float32(1 / math.sqrt(config.width // config.heads))
    parts = {part: (weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]) for part in ("key", "value")}
    query = (weights[f"{name}.query.weight"] * scale, weights[f"{name}.query.bias"] * scale)
    matrices, biases = zip(query, parts["key"], parts["value"], strict=True)
    return Affine(device.to_device(np.concatenate(matrices)).T, device.to_device(np.concatenate(biases)))
