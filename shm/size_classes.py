"""The block sizes a pool deals in: four per doubling, so that a block wastes at most a quarter of what was asked.

Pure arithmetic; `pool.py` carves segments by it.
"""

from __future__ import annotations

#: Smallest block. Smaller arrays usually travel inline.
MIN_BLOCK_BYTES = 1024
#: Blocks up to this size share a slab, larger ones have a segment of their own.
MAX_SLAB_BLOCK_BYTES = 512 << 10
#: Data bytes of a slab.
SLAB_BYTES = 2 << 20


def block_bytes(size_bytes: int) -> int:
    """The class of a request of `size_bytes`: 1, 1.25, 1.5 or 1.75 times a power of two.

    Each is a multiple of 256, so blocks begin on a cache line; the large ones are whole pages.
    """
    if size_bytes <= MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    power = 1 << ((size_bytes - 1).bit_length() - 1)  # the largest power of two below size_bytes
    step = power // 4
    return power + step * -(-(size_bytes - power) // step)


def blocks_per_segment(block_size: int) -> int:
    """How many blocks of a class one segment holds."""
    return SLAB_BYTES // block_size if block_size <= MAX_SLAB_BLOCK_BYTES else 1
