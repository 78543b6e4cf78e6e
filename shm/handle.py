"""`SharedMemoryArray`, the small handle that travels in place of a large array.

A pool (`pool.py`) makes handles, a reader (`reader.py`) turns them into arrays; the codec of `proto` writes them as an
extension type, so that no dictionary a caller sends can name a segment.

Source: `max.interfaces.utils.shared_memory` (26.3), `max.pipelines.modeling.types.utils` (26.7).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ..errors import ForgedHandle, UnsupportedArray
from .dtypes import MAX_DIMENSIONS, parse_dtype

#: "POOL.SEGMENT": a pool's random name and the number of one of its segments.
_NAME = re.compile(r"[0-9a-f]{16}\.[1-9][0-9]{0,17}", re.ASCII)
_MAX_BYTES = 1 << 46
#: Above any offset, generation or side of an array.
_MAX_COUNT = 1 << 62
_MAX_HOST_CHARS = 255


class SharedMemoryArray:
    """Names an array in a pool's shared memory: descriptor only, no mapping, no lifetime of its own.

    `name` is "POOL.SEGMENT"; `shape` and `dtype` (numpy's `dtype.str`, like "<f4") are the array's; `offset` (bytes)
    and `generation` say which block of the segment, and which use of it; `host` is where the memory lies. Compared and
    hashed by value. Every field is checked here, so that a handle from elsewhere is in bounds of what a handle can say.

    Raises ForgedHandle for fields that no pool can have made, UnsupportedArray for a dtype that may not travel.
    """

    __slots__ = ("dtype", "generation", "host", "name", "offset", "shape")

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        offset: int = 0,
        generation: int = 0,
        host: str = "",
    ) -> None:
        self.name = name
        self.shape = tuple(shape) if isinstance(shape, list) else shape
        self.dtype = dtype
        self.offset = offset
        self.generation = generation
        self.host = host
        self._check()

    @classmethod
    def of_own(
        cls, name: str, shape: tuple[int, ...], dtype: str, offset: int, generation: int, host: str
    ) -> SharedMemoryArray:
        """The handle of an array that exists, from the pool that it lies in: nothing is checked again."""
        self = cls.__new__(cls)
        self.name, self.shape, self.dtype = name, shape, dtype
        self.offset, self.generation, self.host = offset, generation, host
        return self

    def _check(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ForgedHandle("a handle's name is POOL.SEGMENT as a pool made it")
        if not isinstance(self.shape, tuple) or len(self.shape) > MAX_DIMENSIONS or not all(map(_is_count, self.shape)):
            raise ForgedHandle("a handle's shape is at most 64 whole numbers, none negative")
        if not _is_count(self.offset) or not _is_count(self.generation):
            raise ForgedHandle("a handle's offset and generation are whole numbers, not negative")
        if not isinstance(self.host, str) or len(self.host) > _MAX_HOST_CHARS or not isinstance(self.dtype, str):
            raise ForgedHandle("a handle's host and dtype are short texts")
        if self.offset + self.nbytes > _MAX_BYTES or not _fits_numpy(self.shape, self.numpy_dtype.itemsize):
            raise ForgedHandle("a handle's array is larger than any segment")
        if self.offset % self.numpy_dtype.alignment:
            raise ForgedHandle(f"offset {self.offset} is not aligned for dtype {self.dtype}")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype itself."""
        try:
            return parse_dtype(self.dtype)
        except UnsupportedArray as error:
            raise ForgedHandle(str(error)) from error

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def pool_name(self) -> str:
        """The pool that owns the memory."""
        return self.name[:16]

    @property
    def segment_number(self) -> int:
        """Which of the pool's segments."""
        return int(self.name[17:])

    def to_wire(self) -> tuple[str, tuple[int, ...], str, int, int, str]:
        """The fields in the order of the constructor."""
        return (self.name, self.shape, self.dtype, self.offset, self.generation, self.host)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedMemoryArray) and self.to_wire() == other.to_wire()

    def __hash__(self) -> int:
        return hash(self.to_wire())

    def __repr__(self) -> str:
        return f"SharedMemoryArray({', '.join(f'{key}={getattr(self, key)!r}' for key in _FIELDS)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (SharedMemoryArray, self.to_wire())


_FIELDS = ("name", "shape", "dtype", "offset", "generation", "host")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _fits_numpy(shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether numpy makes such an array; it multiplies the sides of empty ones too, leaving out the zeros."""
    return math.prod(n or 1 for n in shape) * itemsize < 1 << 63
