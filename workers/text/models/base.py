"""What the engine asks of a model and of its cache: our own decoders and those of other libraries are behind it.

Implemented by `decoder.py` with `cache.py`, and by `hf.py` with `hf_cache.py`; the engine knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from ...device import Device
from .step import Span, Step


class ModelConfig(Protocol):
    """What is known of a model before it computes."""

    @property
    def vocabulary(self) -> int:
        """How many logits a row has."""

    @property
    def positions(self) -> int:
        """Longest sequence, in tokens."""


class ModelCache(Protocol):
    """Keys and values in blocks; who owns which is decided by `..blocks`."""

    blocks: int
    block_size: int

    def scrub(self, tables: Any) -> None:
        """Zero some blocks, by their numbers."""


_Cache = TypeVar("_Cache", bound=ModelCache, contravariant=True)


class Model(Protocol[_Cache]):
    """A model on one device; keeps nothing of a request that it could not make again."""

    device: Device
    #: Whether it takes a layout of its own making, `forward`, beside spans.
    takes_steps: bool

    @property
    def config(self) -> ModelConfig:
        """Its sizes."""

    @property
    def cheap_rows(self) -> int:
        """Rows of a step that cost hardly more than one: so far it is worth to guess ahead."""

    def compute(self, spans: Sequence[Span], cache: _Cache) -> Any:
        """Logits that the spans want, in their order: float32 `(rows, vocabulary)`, an array of the device's `xp`.

        The keys and values of all tokens are in the cache afterwards.
        """

    def forward(self, step: Step, cache: _Cache) -> Any:
        """The same of spans laid out, for models that take them so."""
