"""Contexts and pieces of them that the tests of text share."""

from __future__ import annotations

import numpy as np

from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.eos import EOSTracker
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.tokens import LogProbabilities, TokenBuffer

ACTIVE = GenerationStatus.ACTIVE
END = GenerationStatus.END_OF_SEQUENCE
FULL = GenerationStatus.MAXIMUM_LENGTH
CANCELLED = GenerationStatus.CANCELLED


def buffer_of(n):
    return TokenBuffer(np.arange(100, 100 + n, dtype=np.int64))


def context_of(prompt=4, *, max_length=100, ids=(2,), sequences=(), strings=(), min_new=0, **fields):
    return TextContext(
        tokens=buffer_of(prompt),
        max_length=max_length,
        eos_tracker=EOSTracker(eos_token_ids=ids, eos_sequences=sequences, eos_stop_strings=strings),
        sampling_params=SamplingParams(min_new_tokens=min_new, seed=1),
        **fields,
    )


def travelled(value, kind=None):
    return decode_body(encode_body(value).frames, kind or type(value))


def probabilities(value=-0.5):
    return LogProbabilities([value], [{1: value}], [1])


class Matcher:
    """A grammar that allows everything but 13."""

    def __init__(self):
        self.consumed = []

    def try_consume_tokens(self, tokens):
        if 13 in tokens:
            return 0
        self.consumed.extend(tokens)
        return len(tokens)
