"""Reading the options of a deployment, for every pipeline's `create`.

The options of single requests are read by the worker runtime, from the pipeline's `options_type`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ...errors import ConfigError

_OptionsType = TypeVar("_OptionsType", bound=msgspec.Struct)

#: Largest batch that a deployment may ask for: above it a batch only adds waiting and memory.
MAX_BATCH_SIZE = 4096


def read_options(kind: type[_OptionsType], options: dict[str, Any], *, pipeline: str) -> _OptionsType:
    """`options` as a `kind`; ConfigError naming the key that is wrong and the keys that are known."""
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(f"options of the pipeline {pipeline!r}: {error}; known options: {known}") from error


def require_batch_size(value: int) -> None:
    """A batch size is 1 to 4096; ValueError otherwise."""
    require_within("max_batch_size", value, 1, MAX_BATCH_SIZE)


def require_within(name: str, value: float, least: float, most: float) -> None:
    """`value` lies between `least` and `most`; ValueError naming the field otherwise. NaN never does."""
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be between {least} and {most}, not {value!r}")
