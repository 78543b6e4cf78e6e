"""Which dtypes may travel, and the text that names each on the wire.

Handles, codecs and limits all read this one list; object and structured arrays never travel, since their bytes are
pointers, or need a description that old readers cannot have.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import UnsupportedArray

#: `dtype.str` of bool, signed, unsigned, float, complex, bytes, text, timedelta, datetime: byte order, kind, bytes (or
#: characters) per item, and the unit of times. Items of no size are left out: no view of raw bytes can have them.
_NAME = re.compile(r"[<>|][biufcSUmM][1-9]\d*(\[([1-9]\d*)?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII)
_MAX_NAME_CHARS = 32
#: numpy's own limit.
MAX_DIMENSIONS = 64


@lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The wire name of a dtype, with byte order, like "<f4"; UnsupportedArray for one that may not travel."""
    if dtype.name in _extended() and dtype == _extended()[dtype.name]:  # unequal when its bytes are swapped
        return dtype.name
    if not _NAME.fullmatch(dtype.str):
        raise UnsupportedArray(
            f"arrays of dtype {dtype} cannot travel: send numbers, booleans, text, bytes or dates "
            "(convert with .astype, or send fields of a structured array one by one)",
        )
    return dtype.str


@lru_cache(maxsize=256)
def parse_dtype(name: str) -> np.dtype[Any]:
    """The dtype a wire name stands for; UnsupportedArray for a name that is unknown or not allowed."""
    if name in _extended():
        return _extended()[name]
    dtype = None
    if len(name) <= _MAX_NAME_CHARS and _NAME.fullmatch(name):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            dtype = np.dtype(name)
    if dtype is None or dtype.str != name:
        raise UnsupportedArray(f"{name[:40]!r} is no dtype that may travel; '<f4' is one")
    return dtype


@lru_cache(maxsize=1)
def _extended() -> dict[str, np.dtype[Any]]:
    """The low-precision floats of ml_dtypes by name, where that package is installed."""
    try:
        import ml_dtypes
    except ImportError:
        return {}
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    return {name: np.dtype(getattr(ml_dtypes, name)) for name in names}
