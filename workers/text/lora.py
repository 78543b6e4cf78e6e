"""LoRA adapters of one model: loaded and unloaded while it runs, several in one batch.

`lora_files.py` reads them. The decoder calls `AdapterBatch.add` beside each of its linear layers; requests name an
adapter where others name the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidRequest
from ...proto.lora import LoRAOperation, LoRARequest, LoRAResponse, LoRAStatus
from ..device import Device
from .lora_files import CONFIG, WEIGHTS, LowRank, Shapes, read_adapter

#: Adapters of one model at a time.
MAX_ADAPTERS = 64


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter on the device: what it adds to each layer, by the layer's name."""

    name: str
    path: str
    layers: dict[str, LowRank]


class Adapters:
    """The adapters of one model; threads may share it.

    `shapes`: the model's linear layers that can be adapted. An adapter that is unloaded while requests run with it
    stays for those until they end: they hold it.
    """

    #: By name; at most MAX_ADAPTERS.
    _loaded: dict[str, Adapter]

    def __init__(self, device: Device, shapes: Shapes) -> None:
        self._device = device
        self._shapes = shapes
        self._loaded = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The adapters that are there, sorted."""
        return sorted(self._loaded)

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
        name, path = request.lora_name, str(request.lora_path)
        there = self._loaded.get(name)
        if there is not None:
            if there.path == path:
                return LoRAStatus.SUCCESS, f"the adapter {name!r} is loaded already"
            return LoRAStatus.LOAD_NAME_EXISTS, f"the adapter {name!r} is loaded from {there.path}; unload it first"
        folder = Path(path)
        missing = [part for part in (CONFIG, WEIGHTS) if not (folder / part).is_file()]
        if missing:
            return LoRAStatus.LOAD_INVALID_PATH, f"{folder} has no {' and no '.join(missing)}"
        if len(self._loaded) >= MAX_ADAPTERS:
            return LoRAStatus.LOAD_ERROR, f"{MAX_ADAPTERS} adapters are loaded, which is the most; unload one first"
        try:
            found = read_adapter(folder, self._shapes)
        except InvalidRequest as error:
            return LoRAStatus.LOAD_INVALID_ADAPTER, error.text
        self._loaded[name] = Adapter(name, path, {layer: self._placed(part) for layer, part in found.items()})
        return LoRAStatus.SUCCESS, f"the adapter {name!r} is loaded; it changes {len(found)} layers"

    def _unload(self, request: LoRARequest) -> tuple[LoRAStatus, str]:
        name = request.lora_name
        if name not in self._loaded:
            return LoRAStatus.UNLOAD_NAME_NONEXISTENT, f"no adapter is called {name!r:.80}"
        del self._loaded[name]
        return LoRAStatus.SUCCESS, f"the adapter {name!r} is unloaded"

    def _placed(self, part: LowRank) -> LowRank:
        return LowRank(self._device.to_device(part.down), self._device.to_device(part.up))


class AdapterBatch:
    """The adapters of one step's rows, made once per batch.

    `adapters`: of each row of the hidden states, None for the base model. `multiply(rows, matrix)`: the product that
    the decoder uses for its own layers, so that an adapter's rows depend on the batch no more than the decoder's.
    """

    def __init__(
        self,
        device: Device,
        adapters: Sequence[Adapter | None],
        multiply: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        rows: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter, []).append(row)
        self._groups = [(adapter, device.xp.asarray(np.array(at))) for adapter, at in rows.items()]
        self._multiply = multiply or device.xp.matmul

    def __bool__(self) -> bool:
        """Whether any row has an adapter."""
        return bool(self._groups)

    def add(self, layer: str, inputs: Any, outputs: Any) -> None:
        """Add to a linear layer's `outputs`, float32 `(rows, out)`, in place, what adapters make of its `inputs`."""
        for adapter, at in self._groups:
            part = adapter.layers.get(layer)
            if part is not None:
                outputs[at] += self._multiply(self._multiply(inputs[at], part.down), part.up)
