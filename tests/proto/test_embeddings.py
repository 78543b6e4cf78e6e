"""Embeddings: what a request may ask for, how it and its answer travel, and the batch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import DecodeError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.embeddings import (
    EmbeddingsGenerationInputs,
    EmbeddingsGenerationOutput,
    EmbeddingsRequest,
    input_kind,
)
from tensoryard.proto.request import RequestID

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def travelled(value, kind=None):
    return decode_body(encode_body(value).frames, kind or type(value))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("", "text"),
        ("a text", "text"),
        (["a", "b"], "texts"),
        (("a",), "texts"),
        ([1, 2], "tokens"),
        ([np.int64(1), 2], "tokens"),
        ([-1, 2**63 - 1], "tokens"),
        ([[1], [2, 3]], "token_lists"),
        ([(1, 2)], "token_lists"),
        (ARRAY, "array"),
        (np.float32(1) * np.ones(()), "array"),
        ([ARRAY, ARRAY], "arrays"),
    ],
    ids=repr,
)
def test_kinds_of_input(value, kind):
    """Each input that is allowed is known by its kind, and makes a request."""
    value = np.asarray(value) if isinstance(value, np.generic) else value
    assert input_kind(value) == kind
    assert EmbeddingsRequest(model="m", input=value).input is value


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (None, "a NoneType"),
        ([], "an empty list"),
        ((), "an empty tuple"),
        (5, "a int"),
        (b"bytes", "a bytes"),
        ({"a": 1}, "a dict"),
        (["a", 1], "a list of int, str"),
        ([True, False], "a list of bool"),
        ([1.5], "a list of float"),
        ([[]], "a list of list"),
        ([["a"]], "a list of list"),
        ([[1], 2], "a list of int, list"),
        ([ARRAY, "a"], "a list of ndarray, str"),
        ([2**63], "a list of int"),
        ([-(2**63) - 1], "a list of int"),
        (iter(["a"]), "a list_iterator"),
    ],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_other_inputs_are_refused(value, described):
    """Any other input is an error that names the field, what is allowed and what came."""
    with pytest.raises(InvalidRequest, match="`input` of an EmbeddingsRequest is a text") as caught:
        EmbeddingsRequest(model="m", input=value)
    assert str(caught.value).endswith(f"got {described}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", None),
        ("model", 5),
        ("model", "m" * 257),
        ("options", None),
        ("options", []),
        ("options", {1: 2}),
        ("request_id", "a-bare-string"),
        ("request_id", None),
    ],
)
def test_wrong_fields_are_named(field, value):
    """A field of a wrong type or length is an error that names it."""
    with pytest.raises(InvalidRequest, match=f"`{field}` must be"):
        EmbeddingsRequest(**{"model": "m", "input": "a", field: value})


def test_a_model_must_be_named():
    """Leaving the model out is the same error as naming none."""
    with pytest.raises(InvalidRequest, match="`model`"):
        EmbeddingsRequest(input="a")


def test_requests_are_frozen_and_named():
    """A field cannot be set afterwards; the request prints as its id and gets a fresh one each time."""
    request = EmbeddingsRequest(model="m", input="a")
    with pytest.raises(FrozenInstanceError):
        request.input = "b"
    assert str(request) == request.request_id.value
    assert request.request_id != EmbeddingsRequest(model="m", input="a").request_id


@given(
    st.text()
    | st.lists(st.text(), min_size=1)
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1)
    | st.lists(st.lists(st.integers(0, 1000), min_size=1), min_size=1),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()),
)
def test_requests_travel(value, options):
    """A request of texts or tokens comes back equal."""
    request = EmbeddingsRequest(model="m", input=value, options=options)
    assert travelled(request) == request


def test_arrays_travel():
    """Arrays in a request come back with dtype, shape and content, in order; tuples become lists."""
    back = travelled(EmbeddingsRequest(model="m", input=(ARRAY, ARRAY[0].astype(">f8"))))
    assert [(each.dtype.str, each.tolist()) for each in back.input] == [
        ("<f4", ARRAY.tolist()),
        (">f8", ARRAY[0].tolist()),
    ]
    single = travelled(EmbeddingsRequest(model="m", input=ARRAY))
    np.testing.assert_array_equal(single.input, ARRAY)


@pytest.mark.parametrize("changes", [{"input": None}, {"input": []}, {"model": ""}, {"model": 5}, {"options": {1: 2}}])
def test_wrong_requests_do_not_arrive(changes):
    """The checks of the constructor hold on arrival too."""
    wire = {"request_id": "a", "model": "m", "input": "x", "options": {}, **changes}
    with pytest.raises(DecodeError):
        decode_body(encode_body(wire).frames, EmbeddingsRequest)


def test_the_batch_merges_replicas():
    """The batch holds every replica's requests in order; of a duplicate the later context stays."""
    one, two, three = RequestID("1"), RequestID("2"), RequestID("3")
    inputs = EmbeddingsGenerationInputs(batches=[{one: "a", two: "b"}, {}, {three: "c", one: "d"}])
    assert list(inputs.batch.items()) == [(one, "d"), (two, "b"), (three, "c")]
    assert EmbeddingsGenerationInputs(batches=[]).batch == {}


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_outputs_travel(dtype):
    """Embeddings of any floating type come back as they were, tagged, and are always done."""
    output = EmbeddingsGenerationOutput(ARRAY.astype(dtype))
    back = travelled(output)
    assert back.is_done
    assert back.embeddings.dtype.str == dtype
    np.testing.assert_array_equal(back.embeddings, ARRAY)
    assert b"EmbeddingsGenerationOutput" in encode_body(output).frames[0]


@pytest.mark.parametrize("array", [ARRAY.astype(np.int32), ARRAY.astype(np.complex64), ARRAY > 0])
def test_outputs_are_floating(array):
    """An answer that is not of floating point does not arrive; the error names the field."""
    with pytest.raises(DecodeError, match=r"floating is expected.*embeddings"):
        travelled(EmbeddingsGenerationOutput(array))
