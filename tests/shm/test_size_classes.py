"""The size classes: waste, alignment, order."""

from hypothesis import given
from hypothesis import strategies as st

from tensoryard.shm.mapping import PAGE_BYTES
from tensoryard.shm.segment import segment_bytes
from tensoryard.shm.size_classes import (
    MAX_SLAB_BLOCK_BYTES,
    MIN_BLOCK_BYTES,
    SLAB_BYTES,
    block_bytes,
    blocks_per_segment,
)

sizes = st.one_of(st.integers(1, 1 << 22), st.integers(1, 1 << 46))


@given(sizes)
def test_a_block_holds_what_was_asked_and_wastes_at_most_a_quarter(size):
    """A block is at least as large as the request, and at most a quarter larger unless it is the smallest."""
    assert block_bytes(size) >= size
    assert block_bytes(size) == MIN_BLOCK_BYTES or block_bytes(size) * 4 <= size * 5


@given(sizes)
def test_blocks_are_aligned(size):
    """A block's size is a multiple of a cache line in slabs and of the page beyond them."""
    size = block_bytes(size)
    assert size % (64 if size <= MAX_SLAB_BLOCK_BYTES else PAGE_BYTES) == 0


@given(sizes, sizes)
def test_classes_are_ordered_and_closed(one, other):
    """A larger request never gets a smaller block, and a block's own size is its class."""
    assert (block_bytes(one) <= block_bytes(other)) or one > other
    assert block_bytes(block_bytes(one)) == block_bytes(one)


def test_there_are_four_classes_per_doubling():
    """From 64 KiB to 128 KiB the classes are 64, 80, 96, 112 and 128 KiB."""
    classes = {block_bytes(size) for size in range(64 << 10, (128 << 10) + 1)}
    assert sorted(classes) == [64 << 10, 80 << 10, 96 << 10, 112 << 10, 128 << 10]


@given(sizes)
def test_a_slab_is_filled_and_a_large_block_has_a_segment_of_its_own(size):
    """Blocks of a slab fill it but for less than one block; a large block is alone."""
    size = block_bytes(size)
    count = blocks_per_segment(size)
    if size <= MAX_SLAB_BLOCK_BYTES:
        assert SLAB_BYTES - size < size * count <= SLAB_BYTES
    else:
        assert count == 1


@given(sizes)
def test_a_segment_has_room_for_its_header_and_blocks(size):
    """A segment is whole pages: the blocks, and what is left holds eight words and a generation for each block."""
    size = block_bytes(size)
    count = blocks_per_segment(size)
    assert segment_bytes(size) % PAGE_BYTES == 0
    assert segment_bytes(size) - size * count >= (8 + count) * 8
