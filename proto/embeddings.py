"""Embeddings: the request, the batch input and the output of `PipelineTask.EMBEDDINGS_GENERATION`.

The context a pipeline receives for each request is `EmbeddingsRequestContext` in `one_shot.py`.

Source: `max.interfaces.pipeline_variants.embeddings_generation` (26.3), its like under `max.pipelines` (26.7).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import BaseContext
from .pipeline import PipelineInputs
from .request import RequestID
from .tokens import TokenBuffer
from .validation import is_token, require_id, require_model, require_options


@dataclass(frozen=True, kw_only=True)
class EmbeddingsRequest:
    """Ask for the embedding of one input, or of a list of inputs answered together.

    `input` is a text, a list of texts, a list of token ids, a list of such lists, an array, or a list of arrays (any
    shape and dtype the pipeline takes; arrays of 64 KiB and more travel by shared-memory handle). `options` are the
    pipeline's own.

    Raises InvalidRequest (a ValueError) for an input of another kind, an empty list, or an unnamed model.
    """

    request_id: RequestID = field(default_factory=RequestID)
    model: str = ""
    input: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_id(self.request_id)
        require_model(self.model)
        require_options(self.options)
        input_kind(self.input)

    def __str__(self) -> str:
        return str(self.request_id)


def input_kind(value: object) -> str:
    """Which of "text", "texts", "tokens", "token_lists", "array", "arrays" an embeddings input is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, np.ndarray):
        return "array"
    if isinstance(value, list | tuple) and value:
        for kind, check in _LIST_KINDS:
            if all(check(item) for item in value):
                return kind
    raise InvalidRequest(
        "the `input` of an EmbeddingsRequest is a text, a list of texts, a list of token ids, a list of such lists, an "
        f"array or a list of arrays, and not empty; got {_describe(value)}",
    )


def _is_token_list(item: object) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(is_token(token) for token in item)


_LIST_KINDS = (
    ("texts", lambda item: isinstance(item, str)),
    ("tokens", is_token),
    ("token_lists", _is_token_list),
    ("arrays", lambda item: isinstance(item, np.ndarray)),
)


def _describe(value: object) -> str:
    if isinstance(value, list | tuple):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a {type(value).__name__} of {', '.join(kinds)}" if kinds else f"an empty {type(value).__name__}"
    return f"a {type(value).__name__}"


@runtime_checkable
class EmbeddingsContext(BaseContext, Protocol):
    """A `BaseContext` with the tokens to embed and the model's name; single step, no sampling."""

    model_name: str

    @property
    def tokens(self) -> TokenBuffer:
        """The tokens to embed."""
        ...


EmbeddingsGenerationContextType = TypeVar("EmbeddingsGenerationContextType", bound=EmbeddingsContext)


@dataclass(frozen=True)
class EmbeddingsGenerationInputs(PipelineInputs):
    """A batch: one map of RequestID to context per data-parallel replica."""

    batches: list[dict[RequestID, Any]]

    @property
    def batch(self) -> dict[RequestID, Any]:
        """All replicas' maps merged in order; of a duplicate id the later one stays."""
        merged: dict[RequestID, Any] = {}
        for batch in self.batches:
            merged.update(batch)
        return merged


class EmbeddingsGenerationOutput(msgspec.Struct, tag=True, omit_defaults=True):
    """The embeddings of one request: floating point, rank and pooling are the model's choice, often `(n, width)`."""

    embeddings: npt.NDArray[np.floating[Any]]

    @property
    def is_done(self) -> bool:
        """Always True: embeddings take a single step."""
        return True
