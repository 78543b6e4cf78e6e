"""Rotary position embeddings: by which angle each pair of numbers of a query or key turns from position to position.

Read from a `config.json` for `config.py`; `decoder.py` turns by them. Su et al., "RoFormer" (2021); scaling: linear
(Chen et al., 2023), that of Llama 3.1, and YaRN (Peng et al., 2023). Angles are taken in float32, as the models were
trained with: at position 100 000 a float64 angle would differ in the third decimal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ....errors import ConfigError

Angles = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """A kind of rotation: the base `theta`, the `kind` of scaling, and its numbers by their names in the file."""

    theta: float = 10_000.0
    kind: str = "default"
    numbers: Mapping[str, float] = field(default_factory=dict)

    def frequencies(self, head_width: int, positions: int) -> tuple[Angles, float]:
        """Radians per position, float32 `(head_width / 2,)`, and what sine and cosine are multiplied by.

        `positions` is the longest sequence.
        """
        powers = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
        plain = (1 / np.float32(self.theta) ** powers).astype(np.float32)
        match self.kind:
            case "linear":
                return plain / np.float32(self.numbers["factor"]), 1.0
            case "llama3":
                return _llama3(plain, self.numbers), 1.0
            case "yarn":
                return _yarn(plain, self.theta, head_width, positions, self.numbers)
            case _:
                # Dynamic scaling begins behind the trained length, and sequences end there: the angles of a sequence
                # that grew past it would change those of keys that the cache already holds.
                return plain, 1.0

    def table(self, head_width: int, positions: int) -> tuple[Angles, Angles]:
        """Cosines and sines for every position, float32 `(positions, head_width / 2)` each."""
        steps, scale = self.frequencies(head_width, positions)
        angles = np.arange(positions, dtype=np.float32)[:, None] * steps
        return (np.cos(angles) * np.float32(scale)), (np.sin(angles) * np.float32(scale))


def _llama3(plain: Angles, numbers: Mapping[str, float]) -> Angles:
    """Short waves stay, long ones are stretched by `factor`, those between are blended."""
    factor, low, high = (numbers[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = numbers["original_max_position_embeddings"]
    waves = 2 * math.pi / plain
    smooth = (trained / waves - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    stretched = np.where(waves > trained / low, plain / factor, plain)
    between = (waves >= trained / high) & (waves <= trained / low)
    return np.where(between, blended, stretched).astype(np.float32)


def _yarn(
    plain: Angles,
    theta: float,
    head_width: int,
    positions: int,
    numbers: Mapping[str, float],
) -> tuple[Angles, float]:
    """Stretched by `factor`, except for waves that turn often within the trained length."""
    trained = numbers.get("original_max_position_embeddings", positions)
    factor = numbers["factor"]

    def pair_that_turns(times: float) -> float:
        return head_width * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(numbers.get("beta_fast") or 32)
    last = pair_that_turns(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_width - 1)
    ramp = (np.arange(head_width // 2, dtype=np.float32) - first) / (last - first or 0.001)
    kept = 1 - np.clip(ramp, 0, 1)
    return (plain / factor * (1 - kept) + plain * kept).astype(np.float32), _yarn_scale(factor, numbers)


def _yarn_scale(factor: float, numbers: Mapping[str, float]) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    given = numbers.get("attention_factor")
    if given is not None:
        return given
    weight, everywhere = numbers.get("mscale"), numbers.get("mscale_all_dim")
    return scale(weight) / scale(everywhere) if weight and everywhere else scale(1)


#: The numbers of each kind: those it needs, and those it may have.
_NUMBERS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        },
    ),
}


def read_rope(fields: Mapping[str, Any], where: str) -> Rope:
    """The rotation that a `config.json` asks for, in its old keys (`rope_theta`, `rope_scaling`) or its new one.

    ConfigError for a kind or a key that is not supported.
    """
    both = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(both, dict):
        _refuse(where, "rope_parameters", both, "an object")
    given = {key: value for key, value in both.items() if value is not None}
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind not in _NUMBERS:
        _refuse(where, "rope_type", kind, f"one of {', '.join(_NUMBERS)}")
    theta = given.pop("rope_theta", fields.get("rope_theta", 10_000.0))
    if given.pop("partial_rotary_factor", 1) != 1:
        _refuse(where, "partial_rotary_factor", both["partial_rotary_factor"], "1")
    needed, allowed = _NUMBERS[kind]
    if not needed <= set(given) <= needed | allowed:
        known = f"{sorted(needed)} and, where wanted, {sorted(allowed)}"
        _refuse(where, f"keys of the rotation {kind!r}", sorted(given), known)
    for name, value in [("rope_theta", theta), *given.items()]:
        is_number = type(value) in (int, float) and value > 0
        if not (type(value) is bool if name == "truncate" else is_number):
            _refuse(where, name, value, "a number above 0")
    return Rope(float(theta), kind, given)


def _refuse(where: str, name: str, value: Any, allowed: str) -> NoReturn:
    raise ConfigError(f"{where}: `{name}` is {value!r:.120}, supported is {allowed}")
