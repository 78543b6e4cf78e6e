"""Logit processors: what they are handed, and that they change logits in place."""

from __future__ import annotations

import numpy as np
import pytest

from tensoryard.proto.codec import encode_body
from tensoryard.proto.logits import BatchLogitsProcessor, BatchProcessorInputs, LogitsProcessor, ProcessorInputs
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.tokens import TokenBuffer


def context():
    return TextContext(tokens=TokenBuffer(np.arange(3)), max_length=9)


def ban_first(inputs: ProcessorInputs) -> None:
    inputs.logits[:, 0] = -np.inf


def cool(inputs: BatchProcessorInputs) -> None:
    inputs.logits *= 0.5


def test_processors_in_order():
    """Those of each sequence on its rows, then those of the batch on all."""
    processor: LogitsProcessor = ban_first
    batch_processor: BatchLogitsProcessor = cool
    logits = np.ones((3, 4), np.float32)
    offsets = np.array([0, 1, 3])
    params = SamplingParams(logits_processors=[processor])
    for each in params.logits_processors:
        each(ProcessorInputs(logits=logits[offsets[1] : offsets[2]], context=context()))
    batch_processor(BatchProcessorInputs(logits=logits, logit_offsets=offsets, context_batch=[context(), context()]))
    assert logits[0].tolist() == [0.5] * 4
    assert np.isneginf(logits[1:, 0]).all()
    assert logits[2, 1] == 0.5


def test_processors_do_not_travel():
    """They run in the worker; sending them is a TypeError that says so, not an endless recursion."""
    with pytest.raises(TypeError, match="function"):
        encode_body(SamplingParams(logits_processors=[ban_first]))
