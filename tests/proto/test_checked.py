"""Checked structs: what is built here is held to its annotations, as what arrives is."""

from __future__ import annotations

import pickle
from typing import Annotated

import msgspec
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.checked import CheckedStruct


class Inner(CheckedStruct, frozen=True, kw_only=True):
    text: str


class Outer(CheckedStruct, frozen=True, kw_only=True):
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    share: float | None = None
    inner: Inner | None = None
    inners: list[Inner] = []


def test_dicts_become_the_structs_that_are_declared():
    """Also inside lists, and a struct that is ready stays the object it was."""
    ready = Inner(text="b")
    built = Outer(inner={"text": "a"}, inners=[{"text": "a"}, ready])
    assert built == Outer(inner=Inner(text="a"), inners=[Inner(text="a"), ready])
    assert Outer(inner=ready).inner is ready


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"count": 0}, "count"),
        ({"count": "1"}, "count"),
        ({"share": "0.5"}, "share"),
        ({"share": float("nan")}, "share"),
        ({"share": float("inf")}, "share"),
        ({"inner": {"text": 5}}, "inner"),
        ({"inner": "a"}, "inner"),
        ({"inners": [{}]}, "inners"),
    ],
)
def test_the_wrong_field_is_named(fields, name):
    """Built with a value that its annotation does not allow, a struct is refused, and the error names the field."""
    with pytest.raises(InvalidRequest, match=f"`{name}` of Outer"):
        Outer(**fields)


def test_the_same_rules_hold_on_arrival():
    """A decoder refuses what the constructor refuses, numbers that are none included."""
    wire = msgspec.msgpack.encode({"share": float("nan")})
    with pytest.raises(msgspec.ValidationError, match="finite"):
        msgspec.msgpack.decode(wire, type=Outer)


def test_pickles_and_copies_are_equal():
    """What was checked once comes back as it was."""
    built = Outer(count=3, inner={"text": "a"})
    assert pickle.loads(pickle.dumps(built)) == built
