"""Reads a LoRA adapter from a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

`lora.py` keeps adapters and applies them. What an adapter asks for beyond plain LoRA is refused by its name, since
without it the model would answer wrongly and nobody would know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest
from ...proto.lora import LoRAType

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Most bytes of an adapter's weights, and its highest rank.
MAX_ADAPTER_BYTES = 2**30
MAX_RANK = 512

#: Settings that change the mathematics, and the values that mean plain LoRA.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    # Other ways to begin (PiSSA, OLoRA, …) take what they begin with out of the model's own weights.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}

#: What a pattern of `rank_pattern` or `alpha_pattern` may be: PEFT reads them as regular expressions.
_PLAIN_PATTERN = re.compile(r"[\w.]+")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B)(\.default)?\.weight")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Matrix = npt.NDArray[np.float32]
#: A linear layer's name in the base model to its outputs and inputs.
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class LowRank:
    """What is added to one linear layer: `x @ down @ up`; float32 `(inputs, rank)` and `(rank, outputs)`, scaled."""

    down: Any
    up: Any


def read_adapter(folder: Path, shapes: Shapes) -> dict[str, LowRank]:
    """The additions of an adapter by the name of their layer, on the host.

    `shapes`: the base model's linear layers that can be adapted. Raises InvalidRequest that says what is wrong with the
    adapter; OSError for files that cannot be read.
    """
    config = _read_config(folder / CONFIG)
    parts = _read_parts(folder / WEIGHTS)
    modules = sorted({module for module, _ in parts})
    if not modules:
        raise InvalidRequest(f"{folder / WEIGHTS} holds no LoRA weights")
    return {module: _addition(module, parts, config, shapes) for module in modules}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidRequest(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidRequest(f"{path} is an object, not {config!r:.40}")
    for name, plain in _PLAIN.items():
        if config.get(name, plain[0] if name != "peft_type" else None) not in plain:
            raise InvalidRequest(f"{path}: `{name}` is {config.get(name)!r:.80}; supported is {plain[0]!r}")
    return config


def _read_parts(path: Path) -> dict[tuple[str, str], Matrix]:
    """The matrices by layer and part (`lora_A`, `lora_B`)."""
    from safetensors import SafetensorError, deserialize

    if path.stat().st_size > MAX_ADAPTER_BYTES:
        raise InvalidRequest(f"{path} is larger than {MAX_ADAPTER_BYTES} bytes")
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InvalidRequest(f"{path} is no safetensors file: {error}") from None
    parts: dict[tuple[str, str], Matrix] = {}
    for key, entry in entries:
        found = _KEY.fullmatch(key)
        if found is None:
            kinds = ", ".join(kind.value for kind in (LoRAType.A, LoRAType.B))
            raise InvalidRequest(
                f"{path}: {key!r:.200} is no weight that is supported (base_model.model.….{kinds}.weight)"
            )
        parts[found["module"], found["part"]] = _matrix(key, entry)
    return parts


def _matrix(key: str, entry: Mapping[str, Any]) -> Matrix:
    kind = _DTYPES.get(entry["dtype"])
    if kind is None or len(entry["shape"]) != 2:
        raise InvalidRequest(f"{key!r:.200} is {entry['dtype']} {entry['shape']}, not a matrix of floats")
    raw = np.frombuffer(entry["data"], kind).reshape(entry["shape"])
    matrix = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw.astype(np.float32)
    if not np.isfinite(matrix).all():
        raise InvalidRequest(f"{key!r:.200} holds values that are no finite numbers")
    return matrix


def _addition(
    module: str, parts: Mapping[tuple[str, str], Matrix], config: Mapping[str, Any], shapes: Shapes
) -> LowRank:
    if module not in shapes:
        raise InvalidRequest(f"the adapter changes {module!r:.200}, which the model does not have or cannot adapt")
    down, up = parts.get((module, LoRAType.A.value)), parts.get((module, LoRAType.B.value))
    if down is None or up is None:
        raise InvalidRequest(f"the adapter has only one of two matrices for {module!r:.200}")
    outputs, inputs = shapes[module]
    rank = _number(module, config, "rank_pattern", "r")
    if not 1 <= rank <= MAX_RANK or down.shape != (rank, inputs) or up.shape != (outputs, rank):
        raise InvalidRequest(
            f"{module!r:.200} needs matrices of {(rank, inputs)} and {(outputs, rank)} with a rank of 1 to {MAX_RANK}, "
            f"not {down.shape} and {up.shape}",
        )
    scale = _number(module, config, "alpha_pattern", "lora_alpha")
    scale /= math.sqrt(rank) if config.get("use_rslora") else rank
    return LowRank(np.ascontiguousarray(down.T), np.ascontiguousarray(up.T * np.float32(scale)))


def _number(module: str, config: Mapping[str, Any], pattern: str, name: str) -> Any:
    """A setting of one layer: patterns are ends of its name, and the first that fits counts, as in PEFT."""
    value = config.get(name)
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, dict) or not all(map(_PLAIN_PATTERN.fullmatch, patterns)):
        raise InvalidRequest(f"{CONFIG}: `{pattern}` maps ends of layers' names to numbers, not {patterns!r:.80}")
    for end, special in patterns.items():
        if module == end or module.endswith(f".{end}"):
            value = special
            break
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidRequest(f"{CONFIG}: `{name}` of {module!r:.200} is a number, not {value!r:.40}")
    return value
