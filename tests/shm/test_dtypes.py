"""Names of dtypes: what travels, and what is refused."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensoryard.errors import UnsupportedArray
from tensoryard.shm.dtypes import dtype_name, parse_dtype

allowed = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)


@given(allowed)
def test_every_allowed_dtype_comes_back_from_its_name(dtype):
    """Name and parse are inverse for numbers of either byte order, booleans, texts, bytes and times."""
    assert parse_dtype(dtype_name(dtype)) == dtype
    assert dtype_name(dtype) == dtype.str


@pytest.mark.parametrize("name", ["<M8", "<m8", "<M8[25s]", "<m8[ns]", "|b1", ">c16", "<U7", "|S3", "<f2"])
def test_names_are_numpys_own(name):
    """The wire name is numpy's dtype.str."""
    assert parse_dtype(name).str == name
    assert dtype_name(np.dtype(name)) == name


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtype([("a", "<f4")]),
        np.dtype([("a", object)]),
        np.dtype("(2,)f4"),
        np.dtype("V8"),
        np.dtype("S0"),
        np.dtype("U0"),
    ],
    ids=str,
)
def test_what_numpy_cannot_make_from_raw_bytes_is_refused(dtype):
    """Objects, structures, raw void and items of no size do not travel, under any name."""
    with pytest.raises(UnsupportedArray):
        dtype_name(dtype)
    with pytest.raises(UnsupportedArray):
        parse_dtype(dtype.str)


def test_strings_of_variable_width_are_refused():
    """numpy's StringDType holds pointers and does not travel."""
    with pytest.raises(UnsupportedArray):
        dtype_name(np.dtypes.StringDType())


@given(st.one_of(st.text(max_size=40), st.text(alphabet="<>|=biufcSUmMOVT0123456789[],() sD\n\0", max_size=40)))
@example("O")
@example("|O")
@example("<f4\n")
@example("float32")
@example("=f4")
@example("f4")
@example("<f3")
@example(">b1")
@example("|f4")
@example("a5")
@example("i4,i4")
@example("(2,)f4")
@example("f4,{")
@example("<M8[0s]")
@example("<M8[99999999999999999999s]")
@example("<M8[7D/3]")
@example("<U999999999")
@example("<U٣")
@example("<f" + "4" * 100)
def test_a_forged_name_is_refused_or_is_exactly_a_dtypes_own(name):
    """Any text at all is an allowed dtype whose own name is that text, or UnsupportedArray."""
    try:
        dtype = parse_dtype(name)
    except UnsupportedArray:
        return
    assert dtype.str == name
    assert dtype.itemsize > 0
    assert not dtype.hasobject


@pytest.mark.parametrize("name", ["<M8[0s]", "<m8[0ns]", "<M8[00D]"])
def test_times_in_steps_of_zero_never_become_a_dtype(name):
    """A unit of nothing is refused by its name alone: comparing such a dtype divides by zero and kills the process."""
    with pytest.raises(UnsupportedArray):
        parse_dtype(name)


def test_low_precision_floats_travel_by_their_own_names():
    """bfloat16 and float8 of ml_dtypes travel under their names if that package is installed; swapped they do not."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        assert dtype_name(np.dtype(getattr(ml_dtypes, name))) == name
        assert parse_dtype(name) == np.dtype(getattr(ml_dtypes, name))
    with pytest.raises(UnsupportedArray):
        dtype_name(np.dtype(ml_dtypes.bfloat16).newbyteorder(">"))
