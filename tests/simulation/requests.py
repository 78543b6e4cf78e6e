"""What callers ask and what they must be told: each request carries a number of its own, and so does its answer.

A request's number fills its input, whatever its size and way; the pipeline (`pipeline.py`) reads the number from the
input when it is done and fills the answer with it. So an answer that was made from another request's bytes, or that lay
in a block when that was used anew, shows.
"""

from __future__ import annotations

import msgspec
import numpy as np

import tensoryard as ty

from .plan import SPEAK

#: Numbers of requests are whole and fit a float32, with room for the number of a part.
_PARTS = 16


class Options(msgspec.Struct):
    """What the pipeline is to do."""

    kind: str = "plain"
    parts: int = 1
    answer_size: int = 64
    answer_in_place: bool = False
    run_s: float = 0.1


def request_of(ask, request_id, number, model, task, pool):
    """The request of an ask; its input lies in `pool` where that is to be written in place."""
    options = {
        "kind": ask.kind,
        "parts": ask.parts,
        "answer_size": ask.answer_size,
        "answer_in_place": ask.answer_in_place,
        "run_s": ask.run_s,
    }
    if ask.kind == "bad_option":
        options["colour"] = "blue"
    common = {"request_id": ty.RequestID(request_id), "model": model, "options": options}
    if task is SPEAK:
        if not ask.size:
            return ty.AudioGenerationRequest(input=str(number), **common)
        return ty.AudioGenerationRequest(input="-", buffer_speech_tokens=_filled(ask, number, pool, np.int64), **common)
    return ty.EmbeddingsRequest(input=_filled(ask, number, pool, np.float64) if ask.size else str(number), **common)


def _filled(ask, number, pool, dtype):
    count = max(ask.size // 8, 1)
    array = pool().empty(count, dtype) if ask.in_place else np.empty(count, dtype)
    array[...] = number
    return array


def number_in(context):
    """The number that a pipeline finds in a request's input; -1 where the input is no request's."""
    if hasattr(context, "texts"):
        return int(context.texts[0]) if context.texts else _one(context.arrays[0])
    return int(context.text) if context.text != "-" else _one(context.buffer_speech_tokens)


def _one(array):
    found = int(array[0])
    return found if (array == found).all() else -1


def sample_of(number, part):
    """What a part of the answer to a request of that number is filled with."""
    return number * _PARTS + part


def samples_in(output):
    """The array of an answer."""
    return output.audio_data if isinstance(output, ty.AudioGenerationOutput) else output.embeddings


def is_right(array, number, part):
    """Whether an array is what that part of that request's answer must be."""
    return bool(array.size) and bool((array == sample_of(number, part)).all())
