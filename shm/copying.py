"""One copy of a large array, in pieces that the C library moves fastest.

`pool.py` copies arrays into shared memory with it. Knows numpy and the size of a cache, and no pool.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import numpy.typing as npt

#: glibc's number for the size of the second-level cache, which Python has no name for.
_SC_LEVEL2_CACHE_SIZE = 191
_USUAL_CACHE_BYTES = 1 << 20
#: Pieces are neither so small that beginning them counts, nor larger than what was measured.
_LEAST_BYTES, _MOST_BYTES = 256 << 10, 1 << 20
#: Arrays of fewer pieces are copied as they are.
_MIN_PIECES = 4


@functools.cache
def piece_bytes() -> int:
    """Half a core's second-level cache: up to that cache's size glibc moves bytes by the processor's own instruction.

    That one does not read the lines that it will overwrite, which larger moves do (docs/performance.md, "Memory").
    """
    try:
        found = os.sysconf(_SC_LEVEL2_CACHE_SIZE)
    except (OSError, ValueError):  # another C library
        found = 0
    return min(max((found if found > 0 else _USUAL_CACHE_BYTES) // 2, _LEAST_BYTES), _MOST_BYTES)


def copy_into(target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    """Copy `source` into `target`, a contiguous array of the same shape and dtype that shares no byte with it."""
    piece = piece_bytes()
    if source.nbytes < _MIN_PIECES * piece or not source.flags.c_contiguous:
        np.copyto(target, source)
        return
    to, from_ = _flat(target), _flat(source)
    whole = source.nbytes // piece * piece
    to_rows, from_rows = to[:whole].reshape(-1, piece), from_[:whole].reshape(-1, piece)
    # Every second row: numpy moves neighbours as one, and a call for each piece would ask for the interpreter's lock
    # again each time, for which another thread that computes lets us wait 5 ms.
    for first in (0, 1):
        np.copyto(to_rows[first::2], from_rows[first::2])
    np.copyto(to[whole:], from_[whole:])


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
