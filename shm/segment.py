"""A segment: one sealed memfd that begins with a header and holds blocks of one size.

Its owner (`pool.py`) writes the header; readers (`reader.py`) check every handle against it. The header is 8-byte
words: magic, segment number, block size, block count, data offset, whether the segment is retired, then from word 8 the
generation of each block, 0 while the block is free.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import ForgedHandle, StaleHandle
from .handle import SharedMemoryArray
from .mapping import PAGE_BYTES, Mapping
from .os_memory import create_sealed
from .size_classes import blocks_per_segment

_MAGIC = 0x3152_4459_534E_4554  # "TENSYDR1", little-endian
_RETIRED_WORD = 5
_FIRST_GENERATION_WORD = 8

#: Makes memory of a size in bytes: a descriptor that can be handed over, -1 where there is none, and the mapping.
Create = Callable[[int], tuple[int, Mapping]]


def _header_bytes(block_count: int) -> int:
    return (_FIRST_GENERATION_WORD + block_count) * 8


def segment_bytes(block_size: int) -> int:
    """What a segment of a class takes from the machine: its header and its blocks, in whole pages."""
    count = blocks_per_segment(block_size)
    header_pages = -(-_header_bytes(count) // PAGE_BYTES)
    return header_pages * PAGE_BYTES + -(-block_size * count // PAGE_BYTES) * PAGE_BYTES


class SegmentLayout:
    """Where the blocks of a mapped segment lie, read from its header and checked against its size."""

    __slots__ = ("_head", "block_count", "block_size", "data_offset", "generations", "mapping", "number")

    def __init__(self, mapping: Mapping) -> None:
        self._head = mapping.words(_FIRST_GENERATION_WORD)
        magic, self.number, self.block_size, self.block_count, self.data_offset = (int(word) for word in self._head[:5])
        end = self.data_offset + self.block_size * self.block_count
        fits = _header_bytes(self.block_count) <= self.data_offset and end == mapping.size_bytes
        if magic != _MAGIC or not self.block_size or not fits:
            raise ForgedHandle("the memory received does not begin with a segment's header")
        self.mapping = mapping
        self.generations: npt.NDArray[np.uint64] = mapping.words(_FIRST_GENERATION_WORD + self.block_count)[
            _FIRST_GENERATION_WORD:
        ]

    def block_of(self, handle: SharedMemoryArray) -> int:
        """The index of the block that holds a handle's array; ForgedHandle when it is not within one block."""
        index, within = divmod(handle.offset - self.data_offset, self.block_size)
        if not 0 <= index < self.block_count or within + handle.nbytes > self.block_size:
            raise ForgedHandle(f"bytes {handle.offset}..{handle.offset + handle.nbytes} are no block of {handle.name}")
        return index

    @property
    def is_retired(self) -> bool:
        """Whether its owner has given it back to the system: it can go here too."""
        return bool(self._head[_RETIRED_WORD])

    def check_generation(self, handle: SharedMemoryArray) -> None:
        """StaleHandle when the block has been freed or reused since the handle was made."""
        if not handle.generation:  # what the header says of a free block
            raise ForgedHandle(f"the handle {handle.name}+{handle.offset} names no use of its block")
        if int(self.generations[self.block_of(handle)]) != handle.generation:
            raise StaleHandle(
                f"the memory behind {handle.name}+{handle.offset} has been reused since this handle was made; "
                "send the request again",
            )


class OwnedSegment(SegmentLayout):
    """A segment in the process that allocates from it."""

    __slots__ = ("fd",)

    def __init__(self, number: int, block_size: int, create: Create = create_sealed) -> None:
        self.fd, mapping = create(segment_bytes(block_size))
        count = blocks_per_segment(block_size)
        data_offset = mapping.size_bytes - block_size * count
        # Blocks end at the end of the segment, so that its size says how many there are; they begin 64-aligned.
        mapping.words(5)[:] = (_MAGIC, number, block_size, count, data_offset)
        super().__init__(mapping)

    def offset_of(self, index: int) -> int:
        """Where block `index` begins, in bytes."""
        return self.data_offset + index * self.block_size

    def retire(self) -> None:
        """Give the memory back: readers see it and unmap it too."""
        self._head[_RETIRED_WORD] = 1
        self.close()

    def close(self) -> None:
        """Give the descriptor back; the memory goes when the last view of it, here or elsewhere, is gone."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()
