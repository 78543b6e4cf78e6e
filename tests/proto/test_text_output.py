"""The streamed text output: small on the wire, and merged without loss."""

from __future__ import annotations

import pickle

import pytest

from tensoryard.proto.codec import encode_body
from tensoryard.proto.request import RequestID
from tensoryard.proto.text_output import TextGenerationOutput

from .text_samples import ACTIVE, END, probabilities, travelled


def output_of(tokens, status=ACTIVE, request_id="r", **fields):
    return TextGenerationOutput(request_id=RequestID(request_id), tokens=tokens, final_status=status, **fields)


def test_output_travels():
    """As an array without field names, equal when it comes back."""
    output = output_of([5], END, log_probabilities=[probabilities()], ttft_join_hops_ms={"a": 1.5})
    assert travelled(output) == output
    assert output.is_done
    assert not output_of([1]).is_done
    assert pickle.loads(pickle.dumps(output)) == output


def test_weakness_22_a_token_is_small_on_the_wire():
    """One token of one request: the id once, no field names."""
    output = TextGenerationOutput(request_id=RequestID(), tokens=[5], final_status=ACTIVE)
    assert len(encode_body(output).frames[0]) <= 54


def test_merge():
    """Tokens and log probabilities are joined, the status is the last's, the rest the first's."""
    merged = TextGenerationOutput.merge(
        [
            output_of([1], num_cached_tokens=4, ttft_join_hops_ms={"a": 1.0}, log_probabilities=[probabilities(-1.0)]),
            output_of([2], label_log_probabilities=[0.5], log_probabilities=[probabilities(-2.0)]),
            output_of([3], END, num_cached_tokens=9, label_log_probabilities=[0.7], log_probabilities=[]),
        ],
    )
    assert merged == output_of(
        [1, 2, 3],
        END,
        num_cached_tokens=4,
        ttft_join_hops_ms={"a": 1.0},
        label_log_probabilities=[0.5],
        log_probabilities=[probabilities(-1.0), probabilities(-2.0)],
    )


def test_weakness_37_empty_last_chunk():
    """A terminal chunk without tokens needs no log probabilities."""
    merged = TextGenerationOutput.merge([output_of([1], log_probabilities=[probabilities()]), output_of([], END)])
    assert (merged.tokens, merged.final_status, merged.log_probabilities) == ([1], END, [probabilities()])


def test_weakness_37_ids_are_compared():
    """Chunks of different requests are not joined."""
    with pytest.raises(ValueError, match="one request"):
        TextGenerationOutput.merge([output_of([1]), output_of([2], request_id="other")])


def test_weakness_37_always_a_new_object():
    """One chunk or many: the result shares nothing with them."""
    single = output_of([1])
    merged = TextGenerationOutput.merge([single])
    assert merged == single
    assert merged is not single
    merged.tokens.append(2)
    assert single.tokens == [1]


def test_merge_refuses():
    """No chunk, or tokens of which only some have log probabilities."""
    with pytest.raises(ValueError, match="at least one"):
        TextGenerationOutput.merge([])
    with pytest.raises(ValueError, match="log probabilities"):
        TextGenerationOutput.merge([output_of([1], log_probabilities=[probabilities()]), output_of([2])])
