"""What may be made of a body is bounded before it is made, and the count is of what is really there."""

from __future__ import annotations

import os
import struct
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.errors import DecodeError
from tensoryard.proto import body_bounds
from tensoryard.proto.body_bounds import MAX_CONTAINERS, require_few_containers
from tensoryard.proto.codec import decode_body, encode_body


def listed(unit, count):
    """A list of so many times the same, in msgpack."""
    return b"\xdd" + struct.pack(">I", count) + unit * count


#: One value each, and how many lists and maps it is.
BOMBS = {
    "empty lists": (b"\x90", 1),
    "empty maps": (b"\x80", 1),
    "maps of one": (b"\x81\x05\xc0", 1),
    "lists of lists": (b"\x91\x90", 2),
    "long headers": (b"\xdc\x00\x00", 1),
    "longer headers": (b"\xdf\x00\x00\x00\x00", 1),
    "beside texts": (b"\x92\xa2ab\x90", 2),
    "beside numbers": (b"\x94\xcd\x10\x00\x90\xcb12345678\x80", 3),
}


@pytest.fixture
def few(monkeypatch):
    """Bounds of a few thousand, so that what breaks them is small."""
    for name, bound in (("MAX_CONTAINERS", 4096), ("MAX_TEXTS", 8192), ("_CHUNK_BYTES", 1000)):
        monkeypatch.setattr(body_bounds, name, bound)
    return 4096


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_of_too_many_lists(few, name):
    """However they are written and whatever stands between them, they are counted, and none is made."""
    unit, containers = BOMBS[name]
    assert body_bounds._counted(memoryview(listed(unit, 7))) == (1 + 7 * containers, 7 * (name == "beside texts"))
    with pytest.raises(DecodeError, match="at most 4096 lists and maps"):
        decode_body([listed(unit, few // containers + 1)], Any)


def test_w_25_a_body_of_too_many_lists_costs_nothing():
    """A hundred million bytes that claim as many lists: refused with hardly any memory beside their own."""
    body = listed(b"\x90", 100 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=f"at most {MAX_CONTAINERS} lists and maps"):
            decode_body([body], Any)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_as_many_as_are_allowed():
    """Exactly the bound is decoded, and one more is not."""
    allowed = listed(b"\x90", MAX_CONTAINERS - 1)  # and the list itself
    assert len(decode_body([allowed], list)) == MAX_CONTAINERS - 1
    with pytest.raises(DecodeError):
        decode_body([listed(b"\x90", MAX_CONTAINERS)], list)


def test_too_many_texts_in_a_doubtful_body(few):
    """To look at each costs time, which is bounded too."""
    noise = b"\xc5\xff\xff" + b"\x90" * 0xFFFF
    assert decode_body([b"\x92" + listed(b"\xa1A", 8191) + noise], Any)
    with pytest.raises(DecodeError, match="8192 texts"):
        decode_body([b"\x92" + listed(b"\xa1A", 8192) + noise], Any)


def test_large_payloads_are_no_lists():
    """Bytes, texts and arrays may hold anything: what looks like lists inside them does not count."""
    noise = os.urandom(8 << 20)
    value = {"image": noise, "text": "\u0090" * (2 << 20), "array": np.frombuffer(noise, np.uint8), "more": [1] * 9}
    back = decode_body(encode_body(value).frames, Any)
    assert back["image"] == noise
    assert back["text"] == value["text"]
    np.testing.assert_array_equal(back["array"], value["array"])


def test_many_numbers_are_no_lists():
    """A long list of token ids is one list, whatever bytes the ids have."""
    ids = [0x9090, 0x90909090, 5, -0x70, 200, 1.5, True, None] * 300_000
    assert decode_body(encode_body({"ids": ids}).frames, Any) == {"ids": ids}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(width=32)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=20),
    max_leaves=60,
)


def containers_in(value):
    if isinstance(value, dict):
        return 1 + sum(map(containers_in, value.values()))
    is_list = isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType)
    return 1 + sum(map(containers_in, value)) if is_list else 0


@settings(deadline=None, max_examples=300)
@given(value=plain, single=st.booleans())
def test_the_count_is_right(value, single):
    """Of any value, as the msgpack package writes it: every list and map, and nothing else."""
    body = memoryview(msgpack.packb(value, use_single_float=single))
    containers, _ = body_bounds._counted(body)
    assert containers == containers_in(value) <= body_bounds._possible(body)


@settings(deadline=None, max_examples=300)
@given(body=st.binary(max_size=200))
def test_any_bytes_can_be_counted(body):
    """What is broken is no error here, and the count comes to an end."""
    body_bounds._counted(memoryview(body))
    require_few_containers(body)


@settings(deadline=None, max_examples=100)
@given(value=plain, cut=st.integers(0, 400))
def test_a_body_cut_short_can_be_counted(value, cut):
    """The decoder refuses it, not the count."""
    body_bounds._counted(memoryview(msgspec.msgpack.encode(value_of(value)))[:cut])


def value_of(value):
    """Without extensions, which msgspec writes another way."""
    if isinstance(value, msgpack.ExtType):
        return None
    if isinstance(value, dict):
        return {key: value_of(part) for key, part in value.items()}
    return [value_of(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("code", [1, 2, 3])
def test_w_25_a_shape_of_too_many_sides_costs_nothing(code):
    """The sides of an array are at most 64, counted before they are read."""
    sides = b"\xdd" + struct.pack(">I", 1 << 20) + b"\x01" * (1 << 20)
    fields = {1: b"\x93\xa3<f4" + sides + b"\xc4\x00", 2: b"\x96\xa1a" + sides, 3: b"\x93\x01" + sides}[code]
    body = msgpack.packb(msgpack.ExtType(code, fields))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="length <= 64"):
            decode_body([body, b"1"], np.ndarray, resolve=lambda _: np.zeros(1))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # as a list they would be 8 MiB
    finally:
        tracemalloc.stop()
