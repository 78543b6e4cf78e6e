"""The pipeline of `round_trip.py`: answers the number of bytes it was given, which costs nothing at any size."""

from __future__ import annotations

import numpy as np

import tensoryard as ty


class Shape(ty.Pipeline):  # type: ignore[type-arg]
    """Embeds an array as its size."""

    max_batch_size = 32

    def execute(self, inputs):  # type: ignore[no-untyped-def]
        """One number per request."""
        return {
            rid: ty.EmbeddingsGenerationOutput(embeddings=np.full((1, 1), ctx.arrays[0].nbytes, np.float64))
            for rid, ctx in inputs.batch.items()
        }

    def release(self, request_id):  # type: ignore[no-untyped-def]
        """Nothing is kept."""


def create() -> Shape:
    """The factory."""
    return Shape()
