"""The pipelines that our worker runs for `ours.py`: one does all works but streams, the other streams tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

import tensoryard as ty
from tensoryard.benchmarks.works import Array, fill, page_sum, token_of, touched
from tensoryard.proto import GenerationStatus, TextContext, TokenBuffer


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
    """A token of each stream per step, as a language model makes them: the prompt is the stream's number."""

    max_batch_size = 512

    def __init__(self) -> None:
        #: Of each stream that has begun: its number, tokens so far, and tokens in all.
        self._streams: dict[ty.RequestID, tuple[int, int, int]] = {}

    def new_context(self, request: ty.TextGenerationRequest) -> TextContext:
        """As many tokens as asked for."""
        prompt = TokenBuffer(np.array(request.prompt, np.int64))
        last = len(request.prompt) + request.sampling_params.max_new_tokens
        return TextContext(request_id=request.request_id, model_name=request.model_name, tokens=prompt, max_length=last)

    def execute(self, inputs: Any) -> dict[ty.RequestID, Any]:
        """One step."""
        return {context.request_id: self._next(context) for context in inputs.flat_batch}

    def _next(self, context: TextContext) -> Any:
        begun = self._streams.get(context.request_id)
        stream, position, tokens = begun or (int(context.tokens.prompt[0]), 0, context.max_length - 1)
        self._streams[context.request_id] = (stream, position + 1, tokens)
        last = position + 1 == tokens
        return ty.TextGenerationOutput(
            request_id=context.request_id,
            tokens=[token_of(stream, position)],
            final_status=GenerationStatus.MAXIMUM_LENGTH if last else GenerationStatus.ACTIVE,
        )

    def release(self, request_id: ty.RequestID) -> None:
        """The stream has ended."""
        self._streams.pop(request_id, None)


def token_request(stream: int, tokens: int) -> ty.TextGenerationRequest:
    """What `Tokens` answers with so many tokens of a stream."""
    params = ty.SamplingParams(max_new_tokens=tokens)
    return ty.TextGenerationRequest(model_name="tokens", prompt=[stream], sampling_params=params)


def works() -> Works:
    """A factory."""
    return Works()


def tokens() -> Tokens:
    """A factory."""
    return Tokens()
