"""Memory for large messages is used again, once nobody looks at it, and not before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensoryard.links.buffers import Buffers
from tensoryard.proto.codec import decode_body, encode_body


def address(view):
    """Where a view's memory lies."""
    return np.asarray(view).__array_interface__["data"][0]


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


@pytest.mark.parametrize("padding", range(8))
def test_an_array_over_it_keeps_it(padding):
    """An array that a message brought, and a part of it, are looks at the memory too, wherever it lies there."""
    buffers = Buffers()
    sent = np.arange(20_000, dtype=np.float32)
    body = encode_body(["x" * padding, sent], threshold_bytes=1 << 30).frames[0]
    taken = buffers.take(len(body))
    taken[:] = body
    array = decode_body([taken.toreadonly()], Any)[1][10:]
    for view in (np.frombuffer(taken, np.uint8), np.asarray(taken), np.ndarray(8, np.uint8, taken)):
        where = address(view[1:])
        del view
        assert address(buffers.take(len(body))) != where
    del taken
    again = [buffers.take(len(body)) for _ in range(4)]
    for memory in again:
        memory[:] = bytes(len(memory))
    assert np.array_equal(array, sent[10:])


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
