"""Copies in pieces: the same bytes as numpy's own copy, whatever the array looks like."""

import numpy as np
import pytest

from tensoryard.shm import copying
from tensoryard.shm.copying import copy_into, piece_bytes


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 64 bytes, so that small arrays have many."""
    monkeypatch.setattr(copying, "piece_bytes", lambda: 64)


def _copied(source):
    target = np.empty(source.shape, source.dtype)
    target.view(np.uint8)[...] = 0xA5
    copy_into(target, source)
    return target


@pytest.mark.parametrize("size", [0, 1, 63, 64, 255, 256, 257, 319, 320, 321, 64 * 7, 64 * 8, 64 * 9 + 1, 5000])
def test_every_byte_is_copied_whatever_the_size(small_pieces, size):
    """Even and odd numbers of pieces, with and without a rest."""
    source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert np.array_equal(_copied(source), source)


@pytest.mark.parametrize("dtype", ["<f8", ">i4", "<c16", "<U3", "M8[s]", "?"])
def test_arrays_of_other_items_and_shapes(small_pieces, dtype):
    """What is copied is bytes, whatever they stand for."""
    source = np.arange(5 * 7 * 11).reshape(5, 7, 11).astype(dtype)
    assert np.array_equal(_copied(source), source)


def test_arrays_that_are_not_in_order(small_pieces):
    """Transposed, strided, reversed and broadcast arrays arrive in C order."""
    plain = np.arange(40 * 50, dtype=np.int32).reshape(40, 50)
    for source in (plain.T, plain[:, ::2], plain[::-1], np.broadcast_to(plain[0], (40, 50)), np.asfortranarray(plain)):
        assert np.array_equal(_copied(source), source)


def test_an_array_that_may_not_be_written_is_read(small_pieces):
    """The source may be a read-only view."""
    source = np.arange(1000)
    source.flags.writeable = False
    assert np.array_equal(_copied(source), source)


def test_bits_of_numbers_that_are_none_stay(small_pieces):
    """NaNs keep their payload."""
    source = np.frombuffer(np.random.default_rng(1).bytes(8000), np.float64)
    assert _copied(source).tobytes() == source.tobytes()


def test_pieces_of_this_machine_copy_a_large_array():
    """With the real size: several pieces and a rest."""
    source = np.random.default_rng(2).integers(0, 256, 7 * piece_bytes() + 4099, np.uint8)
    assert np.array_equal(_copied(source), source)


@pytest.mark.parametrize(("cache", "piece"), [(0, 512), (-1, 512), (256, 256), (512, 256), (2048, 1024), (8192, 1024)])
def test_pieces_follow_the_cache(monkeypatch, cache, piece):
    """Half of the second-level cache, in KiB, within bounds; a usual one where it is not told."""
    monkeypatch.setattr(copying.os, "sysconf", lambda _name: cache << 10)
    assert piece_bytes.__wrapped__() == piece << 10


def test_where_the_cache_is_not_told(monkeypatch):
    """Another C library knows no such number."""

    def unknown(_name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(copying.os, "sysconf", unknown)
    assert piece_bytes.__wrapped__() == 512 << 10
