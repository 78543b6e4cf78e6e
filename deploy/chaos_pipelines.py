"""The small pipelines of `tensoryard chaos`: cheap work whose right answer anybody can make again.

One for each task, numpy alone. `mirrored`, `vectors` and `sound` give in the calling process, to the bit, what a worker
gives; `chaos_jobs.py` compares. The deployments are here too.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..proto.audio import AudioGenerationInputs, AudioGenerationMetadata, AudioGenerationOutput
from ..proto.context import GenerationStatus
from ..proto.deployment import Deployment
from ..proto.embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput
from ..proto.generation import GenerationOutput
from ..proto.one_shot import AudioContext, EmbeddingsRequestContext, PixelContext
from ..proto.pipeline import Pipeline, PipelineTask
from ..proto.request import RequestID

PIXELS, VECTORS, SOUND = "chaos-pixels", "chaos-vectors", "chaos-sound"
#: The text that kills the worker which reads it.
POISON = "this request kills its worker"
#: The text that its worker never has done with, and how long one may make no progress (s).
HANG = "this request hangs"
HANG_LIMIT_S = 3.0
#: Numbers of a vector for a text, and for one that begins with `LONG`: by message, and by handle.
WIDTH, LONG_WIDTH = 64, 32 << 10
LONG = "long "
SAMPLE_RATE = 24_000
#: Chunks of one stream, and samples of the shortest and the longest: inline and by handle.
MAX_CHUNKS = 5
CHUNK_SAMPLES = (1_000, 30_000)


def deployments(*, replicas: int, pool_budget_bytes: int, work_ms: float = 4.0) -> list[Deployment]:
    """What an embedded cluster serves: three models that work for `work_ms` on each batch."""
    parts = {
        PIXELS: (PipelineTask.PIXEL_GENERATION, "pixels"),
        VECTORS: (PipelineTask.EMBEDDINGS_GENERATION, "embeddings"),
        SOUND: (PipelineTask.AUDIO_GENERATION, "audio"),
    }
    return [
        Deployment(
            model=model,
            task=task,
            pipeline=f"{__name__}:{factory}",
            options={"work_ms": work_ms},
            replicas=replicas,
            num_cpus=0.25,
            pool_budget_bytes=pool_budget_bytes,
            hang_limit_s=HANG_LIMIT_S,
        )
        for model, (task, factory) in parts.items()
    ]


# -- the right answers ------------------------------------------------------------------------------------------------


def mirrored(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image upside down, each sample with its bits turned: uint8, any shape."""
    return np.asarray(np.bitwise_not(image[::-1]))


def vectors(inputs: Sequence[str | npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """One row for each text or array, `(inputs, width)`; all rows are as wide as the widest needs."""
    rows = [_vector(item) for item in inputs]
    width = max(row.size for row in rows)
    return np.stack([np.resize(row, width) for row in rows])


def _vector(item: str | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers from -1 to 1 that depend on every byte of the input."""
    data = item.encode() if isinstance(item, str) else np.ascontiguousarray(item).data
    digest = hashlib.blake2b(data, digest_size=WIDTH).digest()
    width = LONG_WIDTH if isinstance(item, str) and item.startswith(LONG) else WIDTH
    short = np.frombuffer(digest, np.int8).astype(np.float32) / np.float32(128)
    return np.resize(short, width)


def sound(text: str) -> list[npt.NDArray[np.float32]]:
    """The chunks of a stream: how many, how long and what depends on the text alone."""
    rng = np.random.default_rng(list(hashlib.blake2b(text.encode(), digest_size=8).digest()))
    lengths = rng.integers(*CHUNK_SAMPLES, size=rng.integers(1, MAX_CHUNKS, endpoint=True))
    return [rng.random(length, np.float32) - np.float32(0.5) for length in lengths]


# -- the pipelines ----------------------------------------------------------------------------------------------------


class _Small:
    """What the three have in common: batches of up to eight, a little time for each, nothing kept between requests."""

    max_batch_size = 8

    def __init__(self, work_ms: float = 0.0) -> None:
        self._work_s = work_ms / 1000

    def release(self, request_id: RequestID) -> None:
        """Nothing is kept."""

    def _work(self) -> None:
        time.sleep(self._work_s)


class Pixels(_Small, Pipeline[Any, GenerationOutput]):
    """Mirrors images into memory lent by the worker: no copy on the way back."""

    def execute(self, inputs: Any) -> dict[RequestID, Any]:
        """One step."""
        self._work()
        return {request_id: self._one(request_id, context) for request_id, context in inputs.batch.items()}

    def _one(self, request_id: RequestID, context: PixelContext) -> GenerationOutput:
        out = context.allocate(context.arrays[0].shape, context.arrays[0].dtype)
        out[...] = mirrored(context.arrays[0])
        return GenerationOutput.of_images(request_id, [out])


class Embeddings(_Small, Pipeline[EmbeddingsGenerationInputs, EmbeddingsGenerationOutput]):
    """Vectors of texts or arrays, copied into shared memory on the way back; and two that nobody answers."""

    def execute(self, inputs: Any) -> dict[RequestID, Any]:
        """One step."""
        self._work()
        return {request_id: self._one(context) for request_id, context in inputs.batch.items()}

    def _one(self, context: EmbeddingsRequestContext) -> EmbeddingsGenerationOutput:
        if POISON in context.texts:
            os.kill(os.getpid(), signal.SIGKILL)
        while HANG in context.texts:
            time.sleep(1)
        return EmbeddingsGenerationOutput(embeddings=vectors(context.texts or context.arrays))


class Audio(_Small, Pipeline[AudioGenerationInputs[AudioContext], AudioGenerationOutput]):
    """Streams chunks; which is due is all that it needs to know."""

    def execute(self, inputs: Any) -> dict[RequestID, Any]:
        """One step: the next chunk of each request."""
        self._work()
        return {request_id: self._one(context) for request_id, context in inputs.batch.items()}

    def _one(self, context: AudioContext) -> AudioGenerationOutput:
        chunks, number = sound(str(context.text)), context.chunks_sent
        out = context.allocate(chunks[number].shape, np.float32)
        out[...] = chunks[number]
        final = number + 1 == len(chunks)
        return AudioGenerationOutput(
            final_status=GenerationStatus.END_OF_SEQUENCE if final else GenerationStatus.ACTIVE,
            steps_executed=number + 1,
            audio_data=out,
            metadata=AudioGenerationMetadata(sample_rate=SAMPLE_RATE, chunk_id=number, final_chunk=final),
        )


pixels, embeddings, audio = Pixels, Embeddings, Audio
