"""LoRA adapters of one model: loaded and unloaded while it runs, several in one batch.

`lora_files.py` reads them, `models/adaptation.py` knows where they act. Requests name an adapter where others name the
model; `engine.py` says whose rows a step has, and the decoder calls `AdapterBatch.add` beside each of its products.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ...errors import InvalidRequest
from ...proto.lora import LoRAOperation, LoRARequest, LoRAResponse, LoRAStatus
from ...proto.text_context import TextContext
from ..device import Device
from .lora_files import CONFIG, WEIGHTS, LowRank, Shapes, read_adapter

#: Adapters of one model at a time, and bytes of their weights in float32, where a deployment says nothing else.
MAX_ADAPTERS = 64
MAX_ADAPTERS_BYTES = 2**31


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter on the device: what it adds to each product of the decoder, by that product's name.

    `number` tells it apart from all that were loaded before, under whatever name.
    """

    name: str
    path: str
    layers: dict[str, LowRank]
    number: int
    size_bytes: int


class Adapters:
    """The adapters of one model; threads may share it.

    `shapes`: the model's linear layers that can be adapted. `fit`: makes of what an adapter adds to those what it adds
    to the decoder's own products. Where one more would be too many, or too large, it is refused, and nothing is ever
    evicted: who asked for an adapter can count on it. One that is unloaded while requests run with it stays for those
    until they end: they hold it.
    """

    #: By name; at most `max_adapters`, and their weights at most `max_bytes`.
    _loaded: dict[str, Adapter]

    def __init__(
        self,
        device: Device,
        shapes: Shapes,
        *,
        fit: Callable[[Mapping[str, LowRank]], Mapping[str, LowRank]] = dict,
        max_adapters: int = MAX_ADAPTERS,
        max_bytes: int = MAX_ADAPTERS_BYTES,
    ) -> None:
        self._device = device
        self._shapes = shapes
        self._fit = fit
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._loaded = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def loaded(self) -> dict[str, str]:
        """The adapters that are there, sorted, and where each came from; does not wait for what is being read."""
        return {name: adapter.path for name, adapter in sorted(self._loaded.copy().items())}

    def get(self, name: str) -> Adapter | None:
        """The adapter of this name; None when there is none."""
        return self._loaded.get(name)

    def handle(self, request: LoRARequest) -> LoRAResponse:
        """Load or unload; never raises. One operation at a time."""
        load = request.operation is LoRAOperation.LOAD
        with self._lock:
            try:
                status, message = self._load(request) if load else self._unload(request)
            except Exception as error:
                status = LoRAStatus.LOAD_ERROR if load else LoRAStatus.UNLOAD_ERROR
                message = f"{type(error).__name__}: {error}"
        return LoRAResponse(status, message)

    def _load(self, request: LoRARequest) -> tuple[LoRAStatus, str]:
        name, folder = request.lora_name, Path(str(request.lora_path))
        there = self._loaded.get(name)
        if there is not None and there.path == str(folder):
            return LoRAStatus.SUCCESS, f"the adapter {name!r} is loaded already"
        refusal = self._refusal(there, name, folder)
        if refusal is not None:
            return refusal
        try:
            adapter = self._read(name, folder)
        except InvalidRequest as error:
            return LoRAStatus.LOAD_INVALID_ADAPTER, error.text
        taken = sum(other.size_bytes for other in self._loaded.values())
        if taken + adapter.size_bytes > self._max_bytes:
            return LoRAStatus.LOAD_ERROR, (
                f"the adapter {name!r} takes {adapter.size_bytes} bytes, those loaded {taken}, and all together at "
                f"most {self._max_bytes} (`adapter_bytes`); unload one first"
            )
        self._loaded[name] = adapter
        return LoRAStatus.SUCCESS, f"the adapter {name!r} is loaded; it changes {len(adapter.layers)} products"

    def _refusal(self, there: Adapter | None, name: str, folder: Path) -> tuple[LoRAStatus, str] | None:
        """Why nothing is read at all."""
        if there is not None:
            return LoRAStatus.LOAD_NAME_EXISTS, f"the adapter {name!r} is loaded from {there.path}; unload it first"
        missing = [part for part in (CONFIG, WEIGHTS) if not (folder / part).is_file()]
        if missing:
            return LoRAStatus.LOAD_INVALID_PATH, f"{folder} has no {' and no '.join(missing)}"
        if len(self._loaded) >= self._max_adapters:
            text = f"{self._max_adapters} adapters are loaded, which is the most (`max_adapters`); unload one first"
            return LoRAStatus.LOAD_ERROR, text
        return None

    def _read(self, name: str, folder: Path) -> Adapter:
        layers = self._fit(read_adapter(folder, self._shapes))
        size = sum(part.down.nbytes + part.up.nbytes for part in layers.values())
        placed = {layer: self._placed(part) for layer, part in layers.items()}
        return Adapter(name, str(folder), placed, next(self._numbers), size)

    def _unload(self, request: LoRARequest) -> tuple[LoRAStatus, str]:
        name = request.lora_name
        if name not in self._loaded:
            return LoRAStatus.UNLOAD_NAME_NONEXISTENT, f"no adapter is called {name!r:.80}"
        del self._loaded[name]
        return LoRAStatus.SUCCESS, f"the adapter {name!r} is unloaded"

    def _placed(self, part: LowRank) -> LowRank:
        return LowRank(self._device.to_device(part.down), self._device.to_device(part.up))


class AdapterBatch:
    """The adapters of one step, made once per step.

    `rows`: which rows of the hidden states each has, int64, ascending. `multiply(rows, down, up)`: their product, of
    which each row has the same bits whatever other rows there are, so that a request with an adapter depends on its
    neighbours as little as others do.
    """

    def __init__(
        self,
        device: Device,
        rows: Sequence[tuple[Adapter, npt.NDArray[Any]]],
        multiply: Callable[[Any, Any, Any], Any] = lambda rows, down, up: rows @ down @ up,
    ) -> None:
        self._groups = [(adapter, device.to_device(at)) for adapter, at in rows]
        self._multiply = multiply

    def add(self, layer: str, inputs: Any, outputs: Any) -> Any:
        """`outputs`, float32 `(rows, out)` of a linear layer, with what adapters make of its `inputs`; in place."""
        for adapter, at in self._groups:
            part = adapter.layers.get(layer)
            if part is not None:
                mine = inputs if len(at) == len(inputs) else inputs[at]
                added = self._multiply(mine, part.down, part.up)
                if mine is inputs:
                    outputs += added
                else:
                    outputs[at] += added
        return outputs


def attach(context: TextContext, adapter: Adapter | None) -> None:
    """Have a request run with an adapter, which it keeps whatever is unloaded meanwhile; it stays in this process."""
    vars(context)["_adapter"] = adapter


def adapter_of(context: TextContext) -> Adapter | None:
    """What `attach` left."""
    adapter: Adapter | None = vars(context).get("_adapter")
    return adapter


def cache_root(context: TextContext) -> str:
    """What its part of the prefix cache stands on: its own salt, apart for each adapter that was ever loaded.

    Not the adapter's name, for another one may have had that. The number leads, so that no salt of a caller's can look
    like an adapter's.
    """
    adapter = adapter_of(context)
    return f"{adapter.number if adapter else 0} {context.cache_salt or ''}"
