"""The three kinds of request of the fault matrix, with their right answers: small, by handle, and streamed."""

from __future__ import annotations

from typing import Any

import numpy as np

import tensoryard as ty

KINDS = ("small", "handle", "stream")
#: Samples of a chunk: enough to travel by handle.
SAMPLES = 40_000
CHUNKS = 6
#: One MiB.
LARGE = (512, 512)


def request(client: ty.Client, kind: str, name: str) -> Any:
    """A request whose answer depends on its name."""
    if kind == "stream":
        return ty.AudioGenerationRequest(request_id=ty.RequestID(name), model="drip", input=f"drip:{CHUNKS}")
    array = client.empty(LARGE, np.float32) if kind == "handle" else np.empty(8, np.float32)
    array[:] = _number(name)
    return ty.EmbeddingsRequest(request_id=ty.RequestID(name), model="echo", input=array)


def is_right(output: Any, kind: str, name: str) -> bool:
    """Whether this is the answer, to the bit."""
    if kind == "stream":
        wanted = np.repeat(np.arange(CHUNKS, dtype=np.float32), SAMPLES)
        return np.array_equal(output.audio_data.ravel(), wanted)
    shape = LARGE if kind == "handle" else (8,)
    return np.array_equal(output.embeddings, np.full(shape, _number(name) + 1, np.float32))


def _number(name: str) -> int:
    return sum(name.encode())
