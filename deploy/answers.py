"""Answers as arrays: what is in one, and whether two are the same.

The demo and the commands of `chaos` compare by it; knows the output types of the tasks and nothing of clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..proto.audio import AudioGenerationOutput
from ..proto.embeddings import EmbeddingsGenerationOutput


def array_of(output: Any) -> npt.NDArray[Any]:
    """The array in an answer: the embeddings, the samples, or the one image."""
    match output:
        case EmbeddingsGenerationOutput():
            found: npt.NDArray[Any] = output.embeddings
        case AudioGenerationOutput():
            found = output.audio_data
        case _:
            (found,) = output.images
    return found


def is_like(found: npt.NDArray[Any], expected: npt.NDArray[Any], *, tolerance: float = 0.0) -> bool:
    """Whether two arrays have one shape, one dtype, and values that differ by no more than `tolerance`."""
    return not difference(found, expected, tolerance=tolerance)


def difference(found: npt.NDArray[Any], expected: npt.NDArray[Any], *, tolerance: float = 0.0) -> str:
    """How an array differs from the expected one, in words; "" where it does not (see `is_like`)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype}{found.shape} where {expected.dtype}{expected.shape} was due"
    apart = _apart(found, expected, tolerance)
    if not apart.any():
        return ""
    first = np.unravel_index(int(apart.argmax()), apart.shape)
    where = ", ".join(str(int(index)) for index in first)
    count = f"{int(apart.sum())} of {apart.size} values differ"
    return f"{count}, the first at [{where}]: {found[first]}, not {expected[first]}"


def _apart(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> npt.NDArray[np.bool_]:
    """Where two arrays of one shape differ by more than `tolerance`."""
    if not tolerance:
        return np.asarray(found != expected)
    if found.dtype.kind in "iu":
        return np.asarray(np.abs(found.astype(int) - expected.astype(int)) > tolerance)
    return np.asarray(~np.isclose(found, expected, atol=tolerance))
