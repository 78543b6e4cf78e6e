"""The pipelines that our worker runs for `ours.py`: one does all works but streams, the other streams tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

import tensoryard as ty
from tensoryard.benchmarks.works import Array, fill, page_sum, token_of, touched
from tensoryard.proto import GenerationStatus


class Works(ty.Pipeline):  # type: ignore[type-arg]
    """Echo, read, shape and make, as the request's options say."""

    max_batch_size = 32

    def __init__(self) -> None:
        self._sources: dict[int, Array] = {}

    def execute(self, inputs: Any) -> dict[ty.RequestID, Any]:
        """Each by itself."""
        return {rid: ty.EmbeddingsGenerationOutput(self._one(ctx)) for rid, ctx in inputs.batch.items()}

    def _one(self, ctx: Any) -> Any:
        match ctx.options.get("op"):
            case None:
                return ctx.arrays[0]
            case "read":
                return np.array([page_sum(ctx.arrays[0])], np.float64)
            case "shape":
                return np.array(ctx.arrays[0].shape, np.float64)
            case _:
                return self._made(ctx, ctx.options["nbytes"], ctx.options["seed"])

    def _made(self, ctx: Any, nbytes: int, seed: int) -> Any:
        if nbytes not in self._sources:
            self._sources[nbytes] = touched(nbytes)
        # Embeddings are floats; what is written is bytes.
        target = ctx.allocate((nbytes // 4,), np.float32)
        fill(target.view(np.uint8), seed, self._sources[nbytes])
        return target

    def release(self, request_id: ty.RequestID) -> None:
        """Nothing is kept."""


class Tokens(ty.Pipeline):  # type: ignore[type-arg]
    """A token of each stream per step, as a language model makes them. The token is the output's `steps_executed`.

    The task is audio's, which streams: its samples stay empty.
    """

    max_batch_size = 512

    def __init__(self) -> None:
        self._positions: dict[ty.RequestID, int] = {}

    def execute(self, inputs: Any) -> dict[ty.RequestID, Any]:
        """One step."""
        return {rid: self._next(rid, ctx.options) for rid, ctx in inputs.batch.items()}

    def _next(self, request_id: ty.RequestID, options: dict[str, int]) -> Any:
        position = self._positions.get(request_id, 0)
        self._positions[request_id] = position + 1
        last = position + 1 == options["tokens"]
        return ty.AudioGenerationOutput(
            final_status=GenerationStatus.END_OF_SEQUENCE if last else GenerationStatus.ACTIVE,
            steps_executed=token_of(options["stream"], position),
        )

    def release(self, request_id: ty.RequestID) -> None:
        """The stream has ended."""
        self._positions.pop(request_id, None)


def works() -> Works:
    """A factory."""
    return Works()


def tokens() -> Tokens:
    """A factory."""
    return Tokens()
