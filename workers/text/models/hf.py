"""A causal language model of `transformers`, with or without eyes, computed by torch: spans in, logits out.

The engine sees it as any model (`base.py`); keys and values go to `hf_cache.py`, `hf_check.py` compares at start with
what the library computes by itself, `hf_images.py` has what a prompt's images are turned into. It samples nothing.

Torch's products give a row other bits when other rows are beside it, or when the same tokens come in other pieces. So
each sequence is computed by itself unless `together` says otherwise, its prompt in pieces that end where blocks do, and
what was generated token by token, also when it is computed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import ConfigError
from ...device import Device
from ...torch_arrays import library, to_ours, to_torch
from .hf_cache import LayerShape, TorchCache
from .hf_images import ImageRows
from .step import Span, Step

#: What `dtype` may be.
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class HfConfig:
    """Sizes of a model."""

    vocabulary: int
    positions: int
    #: What each layer keeps of a token; None for one that keeps nothing.
    layers: list[LayerShape | None]

    def token_bytes(self, item: int) -> int:
        """What all layers keep of one token, in numbers of `item` bytes."""
        return item * sum(layer.numbers for layer in self.layers if layer is not None)


class HfModel:
    """A model of the library on `torch_device`; logits come as arrays of `device`. One thread uses it."""

    takes_steps = False
    #: Generated tokens are computed one by one: a guess costs as much as a token.
    cheap_rows = 1

    def __init__(self, model: Any, *, torch_device: str, device: Device, positions: int, together: bool) -> None:
        self.device = device
        self.torch_device = torch_device
        self.model = model
        self.dtype = next(model.parameters()).dtype
        self._together = together
        #: What its `forward` takes.
        self.takes = inspect.signature(model.forward).parameters
        self._images = ImageRows(model, torch_device)
        vocabulary, layers = self._probe()
        self.config = HfConfig(vocabulary, positions, layers)

    def cache(self, *, blocks: int, block_size: int) -> TorchCache:
        """Room for keys and values."""
        layers, device = self.config.layers, self.torch_device
        return TorchCache(layers, blocks=blocks, block_size=block_size, dtype=self.dtype, device=device)

    def compute(self, spans: Sequence[Span], cache: TorchCache) -> Any:
        """Logits of the spans, in their order: see `base.py`."""
        torch = library("torch")
        with torch.inference_mode():
            found = self._computed_together(spans, cache) if self._together else self._one_by_one(spans, cache)
            rows = [part for parts in found for part in parts]
            if not rows:
                return self.device.xp.zeros((0, self.config.vocabulary), np.float32)
            return to_ours(torch.cat(rows).float(), self.device)

    def forward(self, step: Step, cache: TorchCache) -> Any:
        """Never: see `takes_steps`."""
        raise NotImplementedError

    def _one_by_one(self, spans: Sequence[Span], cache: TorchCache) -> list[list[Any]]:
        return [
            [rows for piece in _pieces(span, cache.block_size) for rows in self._forward([piece], cache)]
            for span in spans
        ]

    def _computed_together(self, spans: Sequence[Span], cache: TorchCache) -> list[list[Any]]:
        """Spans of one width in one pass, filled up in front to the longest of them."""
        found: list[list[Any]] = [[] for _ in spans]
        order = sorted(range(len(spans)), key=lambda number: len(spans[number].tokens))
        for _, numbers in groupby(order, key=lambda number: len(spans[number].tokens)):
            group = list(numbers)
            for number, rows in zip(group, self._forward([spans[i] for i in group], cache), strict=True):
                found[number].append(rows)
        return found

    def _forward(self, spans: list[Span], cache: TorchCache) -> list[Any]:
        """Logits of spans of one width, of each as many rows as it wants."""
        width = len(spans[0].tokens)
        length = max(span.start for span in spans) + width
        given = {
            "attention_mask": self._upload(_mask(spans, length)),
            "past_key_values": cache.view(_slots(spans, length, cache.block_size), width),
            "use_cache": True,
            **self._tokens(spans),
        }
        if "position_ids" in self.takes:
            given["position_ids"] = self._positions(spans)
        wanted = max(span.logits for span in spans)
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = max(wanted, 1)
        logits = self.model(**given).logits
        return [logits[row, logits.shape[1] - span.logits :] for row, span in enumerate(spans)]

    def _tokens(self, spans: list[Span]) -> dict[str, Any]:
        ids = self._upload(np.stack([span.tokens for span in spans]))
        rows = [self._images.among(span) for span in spans]
        if not any(rows):
            return {"input_ids": ids}
        # A placeholder's id may lie behind the last word.
        embeddings = self.model.get_input_embeddings()
        words = embeddings(ids.clamp(max=embeddings.num_embeddings - 1))
        for row, found in enumerate(rows):
            for places, features in found:
                words[row, self._upload(places)] = features.to(words.dtype)
        return {"inputs_embeds": words}

    def _positions(self, spans: list[Span]) -> Any:
        """Of each token, `(batch, width)`, or `(3, batch, width)` where an image is turned by rows and columns."""
        found = [self._images.positions(span) for span in spans]
        depth = max(positions.ndim for positions in found)
        if depth == 1:
            return self._upload(np.stack(found))
        return self._upload(np.stack([np.broadcast_to(item, (3, item.shape[-1])) for item in found], axis=1))

    def _upload(self, array: npt.NDArray[Any]) -> Any:
        return to_torch(array, self.torch_device)

    def _probe(self) -> tuple[int, list[LayerShape | None]]:
        """Logits of a row, and what each layer keeps: seen from two tokens, for configs say it in many ways."""
        cache = library("transformers").DynamicCache()
        ids = self._upload(np.zeros((1, 2), np.int64))
        with library("torch").inference_mode():
            try:
                logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            except Exception as error:  # whatever a model raises that keeps something else than keys and values
                raise ConfigError(f"{type(self.model).__name__} cannot be served: {error}") from error
        return int(logits.shape[-1]), [_shape(layer) for layer in cache.layers]


def load(folder: Path, *, dtype: str, torch_device: str, trust_remote_code: bool) -> Any:
    """The library's model of a folder, ready to compute; ConfigError where it has none that can be served.

    Only safetensors are read, since other weights are pickles, and nothing is downloaded.
    """
    transformers = library("transformers")
    # A worker's log is no terminal.
    library("transformers.utils.logging").disable_progress_bar()
    how = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **how)
        auto = transformers.AutoModelForCausalLM
        if hasattr(config, "vision_config"):
            auto = transformers.AutoModelForImageTextToText
        model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True, **how)
    except Exception as error:
        raise ConfigError(f"transformers cannot load a language model from {folder}: {error!s:.400}") from error
    if model.config.is_encoder_decoder:
        raise ConfigError(f"{folder} holds an encoder with a decoder; served are models with a decoder alone")
    return model.eval().to(torch_device)


def longest(model: Any) -> int | None:
    """Positions that a model was made for; None where its config does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def _shape(layer: Any) -> LayerShape | None:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return None
    return LayerShape(keys.shape[1], keys.shape[-1], values.shape[-1])


def _pieces(span: Span, block_size: int) -> Iterator[Span]:
    """A span as it is always computed: of a prompt a block at most, ending where a block does, then tokens alone."""
    prompt = span.start + len(span.tokens) if span.context is None else span.context.first_generated
    end, start = span.start + len(span.tokens), span.start
    while start < end:
        stop = min(start - start % block_size + block_size, prompt, end) if start < prompt else start + 1
        wanted = min(max(stop - (end - span.logits), 0), stop - start)
        yield span._replace(tokens=span.tokens[start - span.start : stop - span.start], start=start, logits=wanted)
        start = stop


def _mask(spans: list[Span], length: int) -> npt.NDArray[np.int64]:
    """1 where a sequence has a token, 0 where it is filled up: `(batch, length)`, sequences at the end."""
    ends = np.array([span.start + len(span.tokens) for span in spans])
    return (np.arange(length) >= (length - ends)[:, None]).astype(np.int64)


def _slots(spans: list[Span], length: int, block_size: int) -> npt.NDArray[np.int64]:
    """Where the tokens lie, `(batch, length)`; what is filled up reads the sequence's first token."""
    slots = np.empty((len(spans), length), np.int64)
    for row, span in enumerate(spans):
        end = span.start + len(span.tokens)
        places = np.maximum(np.arange(length) - (length - end), 0)
        slots[row] = span.table[places // block_size] * block_size + places % block_size
    return slots
