"""Mappings in huge pages where the kernel has them, in small ones where it has not, and never a byte more."""

import gc
import mmap
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from tensoryard.errors import PoolExhausted
from tensoryard.shm import Pool, Reader
from tensoryard.shm import mapping as mapping_module
from tensoryard.shm.mapping import HUGE_PAGE_BYTES, PAGE_BYTES, Mapping
from tensoryard.shm.os_memory import attach, create_sealed

HUGE = HUGE_PAGE_BYTES
SIZES = [PAGE_BYTES, HUGE - PAGE_BYTES, HUGE, HUGE + PAGE_BYTES, 3 * HUGE - PAGE_BYTES, 4 * HUGE + 5 * PAGE_BYTES]
#: An advice that no kernel knows.
UNKNOWN = 0xFFFF


@pytest.fixture(params=["as this kernel does", "refused", "impatient"])
def kernel(request, monkeypatch):
    """The kernel as it is; one that collapses nothing; one that takes its time."""
    if request.param == "refused":
        monkeypatch.setattr(mapping_module, "_MADV_COLLAPSE", UNKNOWN)
    elif request.param == "impatient":
        monkeypatch.setattr(mapping_module, "_PATIENCE_S", -1.0)
    return request.param


def _in_huge_pages(mapping):
    """Bytes of a mapping that huge pages map, as the kernel says."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if region := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = mapping.address <= int(region[1], 16) < mapping.address + mapping.size_bytes
        elif inside and (found := re.match(r"ShmemPmdMapped:\s+(\d+) kB", line)):
            total += int(found[1]) << 10
    return total


def _mapped_regions():
    return len(Path("/proc/self/maps").read_text().splitlines())


def _collapses():
    """Whether this kernel makes huge pages of shared memory when asked."""
    fd, mapping = create_sealed(HUGE)
    os.close(fd)
    return _in_huge_pages(mapping) == HUGE


@pytest.mark.parametrize("size", SIZES)
def test_a_segment_is_whole_zero_and_takes_what_it_says(kernel, size):
    """Whichever pages there are: every byte is there, none is set, and not one more is taken from the machine."""
    fd, owner = create_sealed(size)
    assert os.fstat(fd).st_size == size
    assert os.fstat(fd).st_blocks * 512 == size
    assert not owner.bytes_at(0, size).any()
    reader = attach(fd)
    owner.bytes_at(0, size)[...] = np.arange(size, dtype=np.uint8)
    assert np.array_equal(reader.bytes_at(0, size), np.arange(size, dtype=np.uint8))
    os.close(fd)


@pytest.mark.parametrize("size", [size for size in SIZES if size >= HUGE])
def test_owner_and_reader_map_where_huge_pages_can_begin(kernel, size):
    """Offset and address agree modulo 2 MiB on both sides."""
    fd, owner = create_sealed(size)
    reader = attach(fd)
    os.close(fd)
    assert owner.address % HUGE == reader.address % HUGE == 0


def test_whole_huge_pages_are_used_on_both_sides():
    """As many as fit; the rest in small ones."""
    if not _collapses():
        pytest.skip("this kernel makes no huge pages of shared memory, or has none left")
    fd, owner = create_sealed(3 * HUGE + PAGE_BYTES)
    reader = attach(fd)
    os.close(fd)
    assert _in_huge_pages(owner) == 3 * HUGE
    assert reader.bytes_at(0, reader.size_bytes)[::PAGE_BYTES].sum() == 0
    assert _in_huge_pages(reader) == 3 * HUGE


def test_without_huge_pages_there_are_small_ones(monkeypatch):
    """What a kernel refuses is made of small pages, as before."""
    monkeypatch.setattr(mapping_module, "_MADV_COLLAPSE", UNKNOWN)
    fd, owner = create_sealed(4 * HUGE)
    os.close(fd)
    assert _in_huge_pages(owner) == 0


def test_pages_are_there_before_they_are_used(kernel):
    """Neither the owner's first write nor the reader's first look waits for the kernel, page by page."""
    size = 4 * HUGE + 3 * PAGE_BYTES
    fd, owner = create_sealed(size)
    reader = attach(fd)
    os.close(fd)
    written, seen = owner.bytes_at(0, size), reader.bytes_at(0, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    written[::PAGE_BYTES] = 1
    total = int(seen[::PAGE_BYTES].sum(dtype=np.int64))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert total == size // PAGE_BYTES
    assert faults < total / 8, "the kernel's pages were entered one by one"


def test_nothing_stays_mapped_around_a_segment(kernel):
    """What was reserved to find an address is given back, with the mapping or without."""
    before = _mapped_regions()
    fd, owner = create_sealed(2 * HUGE + PAGE_BYTES)
    while_mapped = _mapped_regions()
    os.close(fd)
    del owner
    gc.collect()
    assert while_mapped <= before + 3
    assert _mapped_regions() <= before + 1  # memory of Python's own may have come


def test_a_refused_mapping_leaves_nothing_mapped():
    """The kernel's refusal is an OSError, and the address is free again."""
    fd, _owner = create_sealed(2 * HUGE)
    before = _mapped_regions()
    for _ in range(5):
        with pytest.raises(PermissionError):
            Mapping(fd, 2 * HUGE, writable=True)
    assert _mapped_regions() <= before + 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(-1, 2 * HUGE, writable=False)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Mapping(fd, 1 << 60, writable=False)
    os.close(fd)


def test_no_descriptor_stays_with_a_mapping():
    """A mapping lives without its descriptor."""
    fds = set(os.listdir("/proc/self/fd"))
    fd, owner = create_sealed(HUGE)
    reader = attach(fd)
    os.close(fd)
    assert set(os.listdir("/proc/self/fd")) <= fds
    owner.bytes_at(0, 1)[0] = 7
    assert reader.bytes_at(0, 1)[0] == 7


def test_no_memory_for_the_first_page_is_pool_exhausted(monkeypatch):
    """What the kernel refuses while huge pages are taken is told as any other refusal."""

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapping_module.os, "posix_fallocate", full)
    with pytest.raises(PoolExhausted, match="No space left"):
        create_sealed(2 * HUGE)


def test_a_pools_budget_holds_in_huge_pages(kernel):
    """What a pool says it has reserved is what its segments take from the machine, and never above its budget."""
    with Pool(budget_bytes=32 << 20) as pool:
        reader = Reader()
        kept = [pool.place(np.full(size, 3, np.uint8)) for size in (9 << 20, 5 << 20, 2 << 20, 300_000)]
        taken = sum(os.fstat(segment.fd).st_blocks * 512 for segment in pool._segments.values())
        assert taken == pool.statistics().reserved_bytes <= 32 << 20
        assert all((reader.open(loan.handle) == 3).all() for loan in kept)
        with pytest.raises(PoolExhausted):
            pool.place(np.zeros(20 << 20, np.uint8))
        del kept
        reader.close()


def test_a_readers_words_cannot_be_written():
    """The header is as read-only as the arrays."""
    fd, _owner = create_sealed(HUGE)
    words = attach(fd).words(4)
    os.close(fd)
    with pytest.raises(ValueError, match="read-only"):
        words[0] = 1
    assert mmap.PAGESIZE == PAGE_BYTES
