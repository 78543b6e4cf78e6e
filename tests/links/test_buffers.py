"""Memory for large messages is used again, once nobody looks at it, and not before."""

from __future__ import annotations

import pytest

from tensoryard.links.buffers import Buffers


def address(view):
    """Where a view's memory lies."""
    return memoryview(view).obj.__array_interface__["data"][0]


def test_what_has_gone_is_used_again():
    """Memory comes back when the last view of it has gone, and serves another size of its class."""
    buffers = Buffers()
    taken = buffers.take(200_000)
    where, part = address(taken), taken[5:10].toreadonly()
    del taken
    other = buffers.take(250_000)
    assert address(other) != where
    del part
    assert address(buffers.take(250_000)) == where


@pytest.mark.parametrize("size", [1, 131_072, 131_073, 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, 100 << 20])
def test_it_has_the_size_that_was_asked_for(size):
    """Any size is served, exactly."""
    view = Buffers().take(size)
    assert view.nbytes == size
    view[-1] = 7
    assert view[-1] == 7


def test_what_is_kept_is_bounded():
    """Of each size at most 8 MiB, or one, are kept; what is larger than 32 MiB is not kept at all."""
    buffers = Buffers()
    for size in (1 << 20, 1 << 24, 1 << 26):
        taken = [buffers.take(size) for _ in range(40)]
        del taken
    assert {size: len(free) for size, free in buffers._free.items() if free} == {1 << 20: 8, 1 << 24: 1}


def test_what_there_is_no_memory_for():
    """More than can be had is an error, not a smaller view."""
    with pytest.raises((MemoryError, ValueError)):
        Buffers().take(1 << 62)
