"""Which types are known to hold no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tensoryard.errors import DecodeError
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput
from tensoryard.proto.generation import GenerationOutput
from tensoryard.proto.plain_types import is_plain
from tensoryard.proto.request import RequestID
from tensoryard.proto.text_output import TextGenerationOutput


class Tree(msgspec.Struct):
    """Refers to itself."""

    name: str
    children: list[Tree]


class Own:
    """Travels as whatever it says, which may be an array."""

    @classmethod
    def from_wire(cls, value: Any) -> Own:
        """From anything."""
        return cls()


class Leafy(msgspec.Struct):
    """Refers to itself, and to an array."""

    children: list[Leafy]
    leaf: npt.NDArray[np.float32] | None = None


@dataclass
class Pair:
    """One side may be anything."""

    left: int
    right: Any


@pytest.mark.parametrize("type_", [int, str, RequestID, TextGenerationOutput, Tree, dict[str, tuple[int, str]]])
def test_types_without_arrays_are_plain(type_):
    """Numbers, texts, ids and what is made of them."""
    assert is_plain(type_)


@pytest.mark.parametrize(
    "type_",
    [
        Any,
        np.ndarray,
        npt.NDArray[np.float32],
        list[npt.NDArray[Any]],
        Leafy,
        Pair,
        msgspec.Raw,
        GenerationOutput,
        EmbeddingsGenerationOutput,
        dict[str, Any],
        "no type",
        object,
        Own,
    ],
)
def test_types_that_may_hold_arrays_are_not(type_):
    """Arrays, what may be anything, and what nothing is known of."""
    assert not is_plain(type_)


def test_a_type_without_a_hash_decodes():
    """What annotations say of a type need not be hashable."""
    type_ = Annotated[int, msgspec.Meta(extra={"unit": []})]
    assert decode_body(encode_body(5).frames, type_) == 5


def test_an_array_where_none_can_be_is_refused():
    """A body of a plain type that names an array after all is no such value."""
    frames = encode_body([RequestID("a").value, np.zeros(3), "active"]).frames
    with pytest.raises(DecodeError):
        decode_body(frames, TextGenerationOutput)
