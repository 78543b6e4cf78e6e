"""A pipeline that takes as long as a GPU would, and no processor meanwhile: what is measured beside it is ours.

Used by `scaling.py` and by `tests/scaling`; a request says in its options how long it takes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import tensoryard as ty


class Sleeper(ty.Pipeline):
    """One request at a time."""

    max_batch_size = 1

    def execute(self, inputs: Any) -> dict[ty.RequestID, ty.EmbeddingsGenerationOutput]:
        """Sleep for as long as the request says."""
        answer = np.zeros((1, 1), np.float32)
        for context in inputs.batch.values():
            time.sleep(context.options["seconds"])
        return {rid: ty.EmbeddingsGenerationOutput(embeddings=answer) for rid in inputs.batch}

    def release(self, request_id: ty.RequestID) -> None:
        """Nothing is kept."""


def create() -> Sleeper:
    """Made by the worker."""
    return Sleeper()
