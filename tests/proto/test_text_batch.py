"""Text batches: what is counted when one is made."""

from __future__ import annotations

import pytest

from tensoryard.proto.request import DUMMY_REQUEST_ID
from tensoryard.proto.text_batch import BatchType, CompletedBatchStats, TextGenerationInputs

from .text_samples import context_of


def test_weakness_29_padding_needs_no_private_attribute():
    """A padding context is one with the dummy id."""
    padding = context_of(3, request_id=DUMMY_REQUEST_ID)
    inputs = TextGenerationInputs(batches=[[context_of(4), padding], [context_of(5)]])
    assert inputs.batch_size == 2
    assert inputs.per_replica_input_tokens == [4, 5]
    assert inputs.input_tokens == 12


def test_inputs():
    """Counts over all contexts, the batch type, and what the sampler asks."""
    one, two = context_of(4, log_probabilities=2), context_of(6, log_probabilities_echo=True)
    for context in (one, two):
        context.update(5)
    two.update(6)
    inputs = TextGenerationInputs([[one], [two]], 1)
    assert (inputs.input_tokens, inputs.context_tokens, inputs.batch_type) == (2, 11, BatchType.TG)
    assert (inputs.per_replica_input_tokens, inputs.per_replica_context_tokens) == ([1, 1], [4, 7])
    assert inputs.flat_batch == [one, two]
    assert inputs.flat_batch is not inputs.flat_batch
    assert inputs
    assert (inputs.enable_echo, inputs.enable_log_probs) == (True, True)
    assert (inputs.batch_top_log_probs, inputs.batch_echo) == ([2, 0], [False, True])
    assert inputs == TextGenerationInputs([[one], [two]])
    with pytest.raises(TypeError):
        hash(inputs)


def test_a_preempted_context_makes_a_prefill_batch():
    """One context without generated tokens is enough."""
    one, two = context_of(), context_of()
    one.update(5)
    two.update(5)
    two.reset()
    assert TextGenerationInputs([[one, two]], input_tokens=99, batch_type=BatchType.TG).batch_type is BatchType.CE


def test_empty_batch():
    """Falsy, a decode batch, no tokens."""
    inputs = TextGenerationInputs([[], []])
    assert not inputs
    assert (inputs.batch_type, inputs.input_tokens, inputs.num_steps) == (BatchType.TG, 0, 1)
    assert not isinstance(BatchType.CE, str)


def stats_of(kind, time_s=2.0, **more):
    return CompletedBatchStats(kind, 3, 100, 50, time_s, **more)


def test_the_fields_of_statistics():
    """Five are required, in order; the others say that there was nothing of their kind."""
    stats = stats_of(BatchType.TG)
    assert vars(stats) == {
        "batch_type": BatchType.TG,
        "batch_size": 3,
        "num_input_tokens": 100,
        "num_context_tokens": 50,
        "execution_time_s": 2.0,
        "num_output_tokens": None,
        "draft_tokens_generated": 0,
        "draft_tokens_accepted": 0,
        "avg_acceptance_length": 0.0,
        "max_acceptance_length": 0,
        "acceptance_rate_per_position": [],
        "early_sync_duration_s": None,
    }
    assert stats.acceptance_rate_per_position is not stats_of(BatchType.TG).acceptance_rate_per_position


@pytest.mark.parametrize(
    ("kind", "tokens", "generated"),
    [
        (BatchType.TG, None, 1.5),
        (BatchType.TG, 8, 4.0),
        (BatchType.TG, 0, 0.0),
        (BatchType.CE, 8, 1.5),
        (BatchType.CE, None, 1.5),
    ],
)
def test_throughput(kind, tokens, generated):
    """Tokens per second; a prefill brings one token per request, and so does a step that was not counted."""
    stats = stats_of(kind, num_output_tokens=tokens)
    assert (stats.prompt_throughput, stats.generation_throughput) == (50.0, generated)


@pytest.mark.parametrize("time_s", [0.0, -1.0])
def test_no_time_is_no_throughput(time_s):
    """A clock that did not move, or went back, divides nothing."""
    stats = stats_of(BatchType.TG, time_s, num_output_tokens=5)
    assert (stats.prompt_throughput, stats.generation_throughput) == (0.0, 0.0)
