"""Memory to receive large messages into, used again: fresh memory costs a page fault for every 4 KiB.

`channel.py` takes it, `framing.py` fills it; it comes back by itself when the last view of a message has gone.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

#: The sizes that are kept, in powers of two: 128 KiB to 32 MiB. Larger ones are rare, and go back to the system.
_SMALLEST_BITS, _LARGEST_BITS = 17, 25
#: What is kept of each size, at most, if it is more than one: 104 MiB of all sizes, where all were in use.
_KEPT_BYTES = 8 << 20


class Buffers:
    """Recycled memory of one end of a link. What is taken is not cleared, and costs nothing until it is written to."""

    def __init__(self) -> None:
        #: By size; the oldest of one size goes when there are too many.
        self._free: dict[int, deque[npt.NDArray[np.uint8]]] = {
            1 << bits: deque(maxlen=max(_KEPT_BYTES >> bits, 1)) for bits in range(_SMALLEST_BITS, _LARGEST_BITS + 1)
        }

    def take(self, size_bytes: int) -> memoryview:
        """So many bytes of memory; MemoryError or ValueError when there are none."""
        rounded = max(1 << (size_bytes - 1).bit_length(), 1 << _SMALLEST_BITS)
        free = self._free.get(rounded)
        if free is None:
            return np.empty(size_bytes, np.uint8).data
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(rounded, np.uint8)
        # By way of a memoryview: numpy takes for the base of an array over another one the other's own base, and would
        # so keep the memory but not what tells that it is in use.
        lent = np.asarray(memory.data[:size_bytes])
        weakref.finalize(lent, free.append, memory).atexit = False
        return lent.data
