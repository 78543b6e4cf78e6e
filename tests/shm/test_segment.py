"""Segments: which block a handle lies in, and headers that are not believed."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import ForgedHandle, StaleHandle
from tensoryard.shm import SharedMemoryArray
from tensoryard.shm.mapping import PAGE_BYTES
from tensoryard.shm.os_memory import attach, create_sealed
from tensoryard.shm.segment import OwnedSegment, SegmentLayout, segment_bytes
from tensoryard.shm.size_classes import block_bytes

from ..baseline import Baseline

CLASSES = sorted(
    {block_bytes(size) for size in [1, 1025, 5000, 64 << 10, 100_000, 512 << 10, (512 << 10) + 1, 3 << 20]}
)
NAME = "0123456789abcdef.3"


def handle(offset, size, generation=1):
    return SharedMemoryArray(NAME, (size,), "|u1", offset, generation)


@pytest.fixture
def segment():
    """A segment of 64 KiB blocks whose block 5 is in use by generation 9."""
    owned = OwnedSegment(3, 64 << 10)
    owned.generations[5] = 9
    yield owned
    owned.close()


@pytest.mark.parametrize("size", CLASSES)
def test_blocks_fill_the_segment_to_its_end_without_touching_the_header(size):
    """Blocks follow one another, aligned, after the header's last generation, up to the segment's last byte."""
    owned = OwnedSegment(3, size)
    assert owned.mapping.size_bytes == segment_bytes(size)
    assert owned.data_offset >= 64 + 8 * owned.block_count
    assert owned.offset_of(0) == owned.data_offset
    assert owned.offset_of(owned.block_count) == owned.mapping.size_bytes
    assert owned.offset_of(1) - owned.offset_of(0) == size
    assert owned.data_offset % (64 if owned.block_count > 1 else PAGE_BYTES) == 0
    owned.generations[:] = 2**62 - 1
    owned.mapping.bytes_at(owned.data_offset, size * owned.block_count)[:] = 255
    again = SegmentLayout(attach(owned.fd))
    assert (again.number, again.block_size, again.block_count) == (3, size, owned.block_count)
    assert again.generations.tolist() == [2**62 - 1] * owned.block_count
    owned.close()


@given(st.integers(0, 3 << 20), st.integers(0, 1 << 20))
def test_a_handle_lies_within_one_block_or_is_forged(offset, size):
    """Every offset and size is within exactly the block that `block_of` names, or ForgedHandle."""
    owned = OwnedSegment(3, 80 << 10)
    try:
        index = owned.block_of(handle(offset, size))
    except ForgedHandle:
        starts = [owned.offset_of(index) for index in range(owned.block_count)]
        assert not any(start <= offset < start + (80 << 10) and offset + size <= start + (80 << 10) for start in starts)
    else:
        assert owned.offset_of(index) <= offset
        assert offset + size <= owned.offset_of(index + 1)
    owned.close()


def test_only_the_generation_in_the_header_is_honoured(segment):
    """The generation in force passes; older, newer and other blocks' ones are stale; none at all is forged."""
    offset = segment.offset_of(5)
    segment.check_generation(handle(offset, 10, generation=9))
    for generation in (8, 10, 2**62 - 1):
        with pytest.raises(StaleHandle):
            segment.check_generation(handle(offset, 10, generation))
    with pytest.raises(StaleHandle):
        segment.check_generation(handle(segment.offset_of(4), 10, generation=9))
    with pytest.raises(ForgedHandle):  # a free block's generation is 0, and a handle of 0 must not open it
        segment.check_generation(handle(segment.offset_of(4), 10, generation=0))


def test_retirement_is_seen_by_every_reader(segment):
    """A retired segment says so in its header, which its readers have mapped, and its descriptor is closed."""
    layout = SegmentLayout(attach(segment.fd))
    assert not layout.is_retired
    segment.retire()
    assert layout.is_retired
    assert SegmentLayout(layout.mapping).is_retired  # also for one that maps it only now
    segment.close()  # again is harmless


def test_a_segment_that_is_forgotten_closes_its_descriptor(mapped):
    """Without `close`, the memory goes with the last reference to the segment."""
    before, mapped_before = Baseline(), mapped()
    OwnedSegment(3, 64 << 10)
    before.assert_nothing_new()
    assert mapped() <= mapped_before


words = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 4 * PAGE_BYTES)), min_size=4, max_size=4)


@given(st.booleans(), words)
def test_a_header_is_believed_only_if_all_of_it_fits(true_magic, words):
    """Any header of five words is refused, or describes blocks that lie behind it and end with the memory."""
    fd, mapping = create_sealed(4 * PAGE_BYTES)
    os.close(fd)
    mapping.words(5)[:] = np.array([0x3152_4459_534E_4554 if true_magic else 1, *words], np.uint64)
    try:
        layout = SegmentLayout(mapping)
    except ForgedHandle:
        return
    assert true_magic
    assert layout.block_size
    assert 64 + 8 * layout.block_count <= layout.data_offset
    assert layout.data_offset + layout.block_size * layout.block_count == 4 * PAGE_BYTES
    assert len(layout.generations) == layout.block_count


def test_a_true_header_of_another_shape_is_believed():
    """A header that fits is enough: how an owner divides its memory is its own business."""
    fd, mapping = create_sealed(4 * PAGE_BYTES)
    os.close(fd)
    mapping.words(5)[:] = (0x3152_4459_534E_4554, 8, 100, 10, 4 * PAGE_BYTES - 1000)
    assert SegmentLayout(mapping).block_of(handle(4 * PAGE_BYTES - 900, 100)) == 1


@pytest.mark.parametrize("word", range(5))
def test_each_word_of_the_header_is_checked(segment, word):
    """Magic, block size, count and offset cannot be changed; the number is the reader's to compare."""
    segment.mapping.words(5)[word] += np.uint64(1)
    if word == 1:
        assert SegmentLayout(segment.mapping).number == 4
    else:
        with pytest.raises(ForgedHandle):
            SegmentLayout(segment.mapping)
