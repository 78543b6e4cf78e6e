"""Weights of a Hugging Face folder as float32 arrays: one safetensors file, or shards with their index.

`decoder.py` asks for tensors by name. The format is read here and not by the `safetensors` library, whose NumPy side
does not know bfloat16: a length, a JSON header, and the bytes. A file is mapped, so that a tensor is read when it is
asked for and no file lies in memory twice. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import ConfigError
from .config import read_json

#: Longest header that the format allows, in bytes.
MAX_HEADER_BYTES = 100_000_000

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Array = npt.NDArray[np.float32]


class Checkpoint:
    """The tensors of a folder by name. Raises ConfigError for files that are missing, broken or of another format."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Where each tensor lies: its file, kind, shape, and bytes from and to.
        self._places: dict[str, tuple[Path, str, tuple[int, ...], int, int]] = {}
        self._files: dict[Path, npt.NDArray[np.uint8]] = {}
        for path in _files(folder):
            self._read_header(path)
        #: Names that have been asked for.
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor as a float32 array of this shape: a copy, since in the file nothing need be aligned."""
        if name not in self._places:
            raise ConfigError(f"{self._folder}: the weights hold no tensor {name!r}")
        path, kind, found, start, end = self._places[name]
        if found != shape:
            raise ConfigError(f"{path}: {name} has shape {found}, by config.json it has {shape}")
        self._taken.add(name)
        raw = self._files[path][start:end].view(_DTYPES[kind]).reshape(shape)
        if kind == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)

    def refuse_rest(self, harmless: Iterable[str] = ()) -> None:
        """ConfigError for a tensor that nothing asked for: the model is another one than its config.json says."""
        rest = sorted(set(self._places) - self._taken - set(harmless))
        if rest:
            raise ConfigError(
                f"{self._folder}: {len(rest)} tensors belong to nothing in config.json, first {rest[0]!r}"
            )

    def _read_header(self, path: Path) -> None:
        try:
            raw = np.memmap(path, np.uint8, "r")
            header, base = _header(raw)
            for name, entry in header.items():
                self._places[name] = (path, *_place(name, entry, base, raw.size))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"{path} is no safetensors file: {error}") from error
        self._files[path] = raw


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise ConfigError(f"the model folder {folder} has neither {single.name!r} nor {index.name!r}")
        return [single]
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        # A name from a file that came from somewhere leads to no other folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise ConfigError(f"{index} names {name!r}, which is no file of the folder")
    return [folder / name for name in names]


def _header(raw: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The entries by tensor, and where the tensors begin."""
    length = int(raw[:8].view("<u8")[0])
    if not 0 < length <= min(MAX_HEADER_BYTES, raw.size - 8):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(raw[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    return header, 8 + length


def _place(name: str, entry: Any, base: int, size: int) -> tuple[str, tuple[int, ...], int, int]:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if kind not in _DTYPES:
        raise ValueError(f"{name} is {kind}; supported are {', '.join(_DTYPES)} (no quantised weights)")
    start, end = (base + int(offset) for offset in entry["data_offsets"])
    wanted = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
    if not base <= start <= end <= size or end - start != wanted or min(shape, default=1) < 0:
        raise ValueError(f"{name} lies at bytes {start} to {end} of {size}")
    return kind, shape, start, end
