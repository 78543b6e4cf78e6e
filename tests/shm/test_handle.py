"""Handles: what no pool can have made is refused, and equal handles are one."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensoryard.errors import ForgedHandle
from tensoryard.shm import Pool, SharedMemoryArray
from tensoryard.shm.dtypes import parse_dtype

NAME = "0123456789abcdef.7"

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1 << 46, 1 << 62, 1 << 63, 1 << 64, -1, -(1 << 63)]),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=3),
)
names = st.one_of(
    st.just(NAME),
    st.from_regex(r"[0-9a-f]{16}\.[0-9]{1,20}"),
    st.text(max_size=30),
    st.just("../../etc/passwd.1"),
    junk,
)
shapes = st.one_of(
    st.lists(st.one_of(st.integers(0, 5), st.integers(), junk), max_size=4).map(tuple),
    st.lists(st.sampled_from([0, 1, 2, 1 << 31, 1 << 61, (1 << 62) - 1]), max_size=70).map(tuple),
    junk,
)
dtypes = st.one_of(
    st.sampled_from(["<f4", "|u1", ">i8", "<U9", "|S5", "<M8[ns]", "|O", "<c16"]), st.text(max_size=9), junk
)
counts = st.one_of(st.integers(0, 1 << 20), st.integers(), junk)


def fields(**changed):
    return {"name": NAME, "shape": (2, 3), "dtype": "<f4", "offset": 64, "generation": 5, "host": "h", **changed}


@pytest.mark.case(8)
@given(names, shapes, dtypes, counts, counts, st.one_of(st.just("h"), st.text(max_size=300), junk))
@example(NAME, (0, 1 << 62), "<f4", 0, 1, "h")
@example(NAME, (0, 1 << 61, 1 << 61), "|u1", 0, 1, "h")
@example(NAME, (1 << 31, 1 << 31, 1 << 31), "<f4", 0, 1, "h")
@example(NAME, (1,) * 65, "<f4", 0, 1, "h")
@example(NAME, (True,), "<f4", 0, 1, "h")
@example(NAME, (np.int64(3),), "<f4", 0, 1, "h")
@example(NAME, 5, "<f4", 0, 1, "h")
@example(NAME, (1,), "<f4", -4, 1, "h")
@example(NAME, (1,), "<f4", 2, 1, "h")
@example(NAME, (1,), "<f4", (1 << 46) - 4, 1, "h")
@example(NAME, (2,), "<f4", (1 << 46) - 4, 1, "h")
@example(NAME, (1,), "<f4", 0, 1 << 62, "h")
@example(NAME + "\n", (1,), "<f4", 0, 1, "h")
@example("0123456789abcdef.٣", (1,), "<f4", 0, 1, "h")
def test_any_fields_are_a_sound_handle_or_forged(name, shape, dtype, offset, generation, host):
    """Whatever its fields, a handle is refused as forged, or is in bounds, aligned, and a shape that numpy can make."""
    try:
        handle = SharedMemoryArray(name, shape, dtype, offset, generation, host)
    except ForgedHandle:
        return
    assert 0 <= handle.offset
    assert handle.offset + handle.nbytes <= 1 << 46
    assert handle.offset % parse_dtype(handle.dtype).alignment == 0
    assert 0 <= handle.generation << 2 | 3 < 1 << 64
    assert handle.name == f"{handle.pool_name}.{handle.segment_number}"
    assert len(handle.host) <= 255
    strides = (0,) * len(handle.shape)
    made = np.lib.stride_tricks.as_strided(np.empty(1, handle.numpy_dtype), handle.shape, strides)
    assert made.nbytes == handle.nbytes
    if not handle.nbytes:
        assert np.empty(0, np.uint8).view(handle.numpy_dtype).reshape(handle.shape).shape == handle.shape


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "0123456789abcdef"},
        {"name": "0123456789ABCDEF.1"},
        {"name": "0123456789abcdef.01"},
        {"name": "0123456789abcdef.0"},
        {"name": "0123456789abcdef.1.1"},
        {"name": "../0123456789abcd.1"},
        {"name": b"0123456789abcdef.1"},
        {"shape": (-1,)},
        {"shape": (1.0,)},
        {"shape": "12"},
        {"shape": None},
        {"shape": (1 << 44, 8)},
        {"dtype": "|O"},
        {"dtype": "float32"},
        {"dtype": None},
        {"dtype": ["<f4"]},
        {"dtype": "|S0"},
        {"offset": -64},
        {"offset": 1 << 47},
        {"offset": 2},
        {"offset": 64.0},
        {"generation": -1},
        {"generation": 1 << 62},
        {"generation": None},
        {"host": "h" * 256},
        {"host": None},
    ],
    ids=str,
)
def test_each_field_is_checked(changed):
    """One wrong field is enough for ForgedHandle."""
    SharedMemoryArray(**fields())
    with pytest.raises(ForgedHandle):
        SharedMemoryArray(**fields(**changed))


def test_handles_are_compared_and_hashed_by_value():
    """Equal fields make equal handles and hashes; each field tells handles apart; other things are never equal."""
    handle = SharedMemoryArray(**fields())
    assert handle == SharedMemoryArray(**fields())
    assert len({handle, SharedMemoryArray(**fields())}) == 1
    for changed in (
        {"name": "0123456789abcdef.8"},
        {"shape": (3, 2)},
        {"dtype": ">f4"},
        {"offset": 128},
        {"generation": 6},
        {"host": "other"},
    ):
        assert handle != SharedMemoryArray(**fields(**changed))
    assert handle != handle.to_wire()


@pytest.mark.parametrize("through", [pickle.dumps, None], ids=["pickle", "deepcopy"])
def test_handles_can_be_pickled_and_copied(through):
    """A handle survives pickle and deepcopy, checked again on the way in."""
    handle = SharedMemoryArray(**fields())
    again = pickle.loads(through(handle)) if through else copy.deepcopy(handle)
    assert again == handle
    assert type(again.shape) is tuple


def test_a_pickle_cannot_smuggle_a_forged_handle():
    """Unpickling runs the checks, so a doctored pickle is a ForgedHandle too."""
    doctored = pickle.dumps(SharedMemoryArray(**fields()), 0).replace(b"I64\n", b"I-64\n")
    with pytest.raises(ForgedHandle):
        pickle.loads(doctored)


def test_a_handle_says_what_it_is():
    """Size, pool, segment and dtype follow from the fields, lists become tuples, and the repr can be read back."""
    handle = SharedMemoryArray(NAME, [2, 3], "<f4", 64, 5, "h")
    assert (handle.nbytes, handle.pool_name, handle.segment_number) == (24, NAME[:16], 7)
    assert handle.numpy_dtype == np.float32
    assert handle.shape == (2, 3)
    assert eval(repr(handle)) == handle
    assert SharedMemoryArray(*handle.to_wire()) == handle


def test_the_three_fields_of_the_specification_suffice():
    """Name, shape and dtype alone make a handle; without a generation it names no use of any block."""
    handle = SharedMemoryArray(NAME, (2,), "<f4")
    assert (handle.offset, handle.generation, handle.host) == (0, 0, "")


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 5), (1,) * 64])
@pytest.mark.parametrize("dtype", ["u1", "<f8", ">i2", "<c16", "M8[ns]"])
def test_what_a_pool_makes_unchecked_would_pass_every_check(shape, dtype):
    """A handle of placed memory, and of an array within lent memory, is one that its reader accepts."""
    with Pool(budget_bytes=16 << 20) as pool:
        loans = [pool.place(np.zeros(shape, dtype))]
        if np.prod(shape):
            loans.append(pool.lend(pool.empty((3, *shape[:63]), dtype)[1:]))
        for loan in loans:
            made = loan.handle
            assert SharedMemoryArray(*made.to_wire()) == made
            assert hash(pickle.loads(pickle.dumps(made))) == hash(made)
            assert made.nbytes == made.numpy_dtype.itemsize * np.prod(made.shape)
