"""A mix of real requests, and what a local call gives for each: the yardstick of the fault tests."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tensoryard as ty

TEXTS = [
    "Requests move, tensors stay.",
    "A coordinator routes work to workers by task and model.",
    "The quick brown fox jumps over the lazy dog.",
    "Shared memory beats copying when the arrays are large.",
    "Where is the nearest railway station?",
]
OPERATIONS = [{"op": "resize", "scale": 0.5}, {"op": "colour", "saturation": 1.3}]
SENTENCES = ["The yard is open. Trains leave on time.", "One. Two. Three.", "Good morning."]


@functools.cache
def photographs() -> list[np.ndarray]:
    """Parts of real photographs, large enough to travel by handle."""
    from sklearn.datasets import load_sample_images

    return [np.ascontiguousarray(image[:240, :320]) for image in load_sample_images().images]


@dataclass
class Case:
    """One kind of request and its right answer."""

    kind: str
    index: int

    def request(self) -> Any:
        """A fresh request."""
        if self.kind == "embeddings":
            return ty.EmbeddingsRequest(model="minilm", input=TEXTS[self.index])
        if self.kind == "pixels":
            options = {"operations": OPERATIONS}
            return ty.PixelGenerationRequest(model="photo-edit", images=[photographs()[self.index]], options=options)
        return ty.AudioGenerationRequest(model="espeak", input=SENTENCES[self.index])

    def is_right(self, output: Any) -> bool:
        """Whether an output is what a local call gives: to the bit, but for the rounding of batched embeddings."""
        wanted = _local(self.kind, self.index)
        if self.kind == "embeddings":
            return output.embeddings.shape == (1, 384) and np.allclose(output.embeddings, wanted, atol=1e-5)
        if self.kind == "pixels":
            return np.array_equal(output.images[0], wanted)
        return np.array_equal(output.audio_data, wanted)


@functools.cache
def _local(kind: str, index: int) -> np.ndarray:
    if kind == "embeddings":
        return _encoder().embed([TEXTS[index]])
    if kind == "pixels":
        from tensoryard.workers.pipelines.photo_edit import edit

        return edit(photographs()[index], OPERATIONS)
    from tensoryard.workers.pipelines.espeak import speak

    return speak(SENTENCES[index])[0]


@functools.cache
def _encoder() -> Any:
    from tensoryard.workers.pipelines.minilm import create

    return create()


def mixed_cases(count: int) -> Iterator[Case]:
    """Embeddings, pixels and audio in turn, six to three to one."""
    for number in range(count):
        turn = number % 10
        if turn < 6:
            yield Case("embeddings", number % len(TEXTS))
        elif turn < 9:
            yield Case("pixels", number % 2)
        else:
            yield Case("audio", number % len(SENTENCES))
