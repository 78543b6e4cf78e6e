"""`RequestID`: what may be one, that it never changes, and how it travels."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.request import DUMMY_REQUEST_ID, MAX_REQUEST_ID_CHARS, Request, RequestID

ids = st.text(min_size=1, max_size=MAX_REQUEST_ID_CHARS).filter(str.isprintable)


def test_a_fresh_id_is_random_hex():
    """Left out, the value is 32 lowercase hex digits, another one each time."""
    values = {RequestID().value for _ in range(100)}
    assert len(values) == 100
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in values)
    assert re.fullmatch(r"[0-9a-f]{32}", RequestID(None).value)


@given(ids)
def test_any_short_printable_text_is_an_id(text):
    """1 to 128 printable characters are taken as they are."""
    made = RequestID(text)
    assert (made.value, str(made)) == (text, text)
    assert repr(made) == f"RequestID(value={text!r})"


@pytest.mark.parametrize(
    "value",
    ["", "x" * 129, "a\nb", "a\0b", "\ud800", "a\u200bb", 5, b"bytes", 1.5, [], True, RequestID("a")],
    ids=repr,
)
def test_what_is_no_id(value):
    """Empty, long, unprintable and untextual values are refused with what is allowed; the error stays short."""
    with pytest.raises(InvalidRequest, match="1 to 128 printable characters") as caught:
        RequestID(value)
    assert len(str(caught.value)) < 200


def test_never_changes():
    """No field can be set, added or deleted."""
    made = RequestID("a")
    with pytest.raises(FrozenInstanceError):
        made.value = "b"
    with pytest.raises(FrozenInstanceError):
        made.other = 1
    with pytest.raises(FrozenInstanceError):
        del made.value
    assert made.value == "a"


def test_compares_by_value():
    """Equal to an id of the same text, found in maps by it, never equal to the text itself."""
    assert RequestID("a") == RequestID("a") != RequestID("b")
    assert {RequestID("a"): 1}[RequestID("a")] == 1
    assert RequestID("a") != "a"
    assert {RequestID("a"): 1}.get("a") is None


def test_matches_by_position():
    """`case RequestID(value)` takes the text."""
    match RequestID("a"):
        case RequestID(value):
            assert value == "a"


def test_copies_and_pickles():
    """Copies and pickles keep the value."""
    made = RequestID("a")
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == copy.deepcopy(made) == made


@given(ids.filter(lambda text: text != DUMMY_REQUEST_ID.value))
def test_w_30_travels_as_its_text(text):
    """On the wire an id is its string, alone and as a map key, and comes back as it was."""
    made = RequestID(text)
    frames = encode_body([made, {made: made}]).frames
    assert msgspec.msgpack.decode(frames[0]) == [text, {text: text}]
    assert decode_body(frames, tuple[RequestID, dict[RequestID, RequestID]]) == (made, {made: made})


@pytest.mark.parametrize("value", [None, 5, "", "x" * 129, {"value": "a"}, {}, ["a"], b"a"], ids=repr)
def test_w_30_no_id_arrives(value):
    """What is no id on the wire is an error; none is made up in its place."""
    with pytest.raises(InvalidRequest):
        RequestID.from_wire(value)
    with pytest.raises(DecodeError):
        decode_body(encode_body(value).frames, RequestID)


def test_w_31_the_dummy_is_the_workers_own():
    """The id of warm-up work has its documented value, and no client can send it."""
    assert DUMMY_REQUEST_ID == RequestID("cuda_graph_dummy")
    with pytest.raises(DecodeError, match="kept for work that a worker gives itself"):
        decode_body(encode_body(DUMMY_REQUEST_ID).frames, RequestID)


def test_the_protocol_of_requests():
    """Anything with a `request_id` is a Request; something without is none."""

    class Mine:
        request_id = RequestID("a")

    assert isinstance(Mine(), Request)
    assert not isinstance(object(), Request)
