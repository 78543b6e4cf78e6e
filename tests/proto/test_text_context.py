"""A text context advances, ends, moves and is preempted as promised."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensoryard.errors import InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.context import BaseContext
from tensoryard.proto.eos import EOSTracker
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.text_protocol import SpecDecodingState, TextGenerationContext

from .text_samples import ACTIVE, CANCELLED, END, FULL, Matcher, context_of, probabilities, travelled

# Contexts: construction and travel


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": 101},
        {"prompt": 95, "min_new": 6},
        {"target_endpoint": "http://x:1"},
        {"target_endpoint": "tcp://host"},
        {"target_endpoint": "ipc://"},
        {"target_endpoint": "host:1"},
        {"kind": "text_and_vision"},
        {"first_generated": 5},
        {"undelivered": (3, 4)},
        {"undelivered": (4, 5)},
        {"max_length": None},
        {"max_length": 9.5},
        {"request_id": "r"},
        {"target_endpoint": 5},
    ],
)
def test_contexts_that_are_wrong(fields):
    """A prompt that does not fit, a bad endpoint, an impossible state."""
    with pytest.raises(InvalidRequest):
        context_of(**fields)


def test_tokens_are_a_buffer():
    """A list of ids is none."""
    with pytest.raises(InvalidRequest, match="`tokens`"):
        TextContext(tokens=[1, 2], max_length=9)


@pytest.mark.parametrize("endpoint", ["tcp://host:5", "ipc:///tmp/x", None])
def test_endpoints(endpoint):
    """The two schemes there are."""
    assert context_of(target_endpoint=endpoint).target_endpoint == endpoint


def test_context_satisfies_the_protocols():
    """Both protocols, by isinstance."""
    context = context_of()
    assert isinstance(context, BaseContext)
    assert isinstance(context, TextGenerationContext)
    assert not isinstance(SimpleNamespace(tokens=1), TextGenerationContext)
    assert not isinstance(3, TextGenerationContext)
    assert isinstance(context, TextContext)


def test_context_travels_in_every_state():
    """A context decoded elsewhere goes on where it was."""
    context = context_of(sequences=[[7, 8]], strings=["END"], log_probabilities=2, model_name="m", min_new=1)
    context.update(5, probabilities())
    context.reset()
    context.update(7)
    context.update_with_text("..E")
    other = travelled(context)
    assert other.tokens == context.tokens
    assert other.request_id == context.request_id
    assert other.undelivered == (4, 5)
    assert other.status is ACTIVE
    assert other.update_with_text("ND") == "END"
    assert other.is_done
    assert travelled(other).status is END
    output = other.to_generation_output()
    assert output.tokens == [5, 7]
    assert output.log_probabilities == [probabilities()]
    assert other.matcher is None


def test_arrival_is_checked():
    """The checks of construction run on arrival."""
    wire = msgspec.msgpack.decode(encode_body(context_of(prompt=8)).frames[0], ext_hook=msgspec.msgpack.Ext)
    wire["max_length"] = 7
    with pytest.raises(ValueError, match="max_length"):
        decode_body([msgspec.msgpack.encode(wire)], TextContext)


def test_contexts_are_compared_by_identity():
    """Two requests are never the same, and contexts can be set members."""
    context = context_of()
    assert context == context
    assert context != context_of()
    assert len({context, context}) == 1


# Contexts: one token at a time


def test_update_until_an_end_token():
    """Tokens are appended; an end token ends the request and is part of the output."""
    context = context_of()
    assert context.is_initial_prompt
    context.update(5)
    assert not context.is_initial_prompt
    assert not context.is_done
    context.update(2)
    assert context.status is END
    assert context.to_generation_output().tokens == [5, 2]


def test_update_until_max_length():
    """max_length counts the prompt; an end token at the cap wins."""
    context = context_of(4, max_length=6)
    context.update(5)
    assert context.status is ACTIVE
    context.update(5)
    assert context.status is FULL
    context = context_of(4, max_length=5)
    context.update(2)
    assert context.status is END


def test_stop_sequence():
    """A sequence of generated tokens ends the request; the prompt's tokens do not count."""
    context = context_of(sequences=[[103, 7], [7, 8]])
    context.update(7)
    assert context.status is ACTIVE
    context.update(8)
    assert context.status is END


def test_numpy_ids():
    """Sampled ids may be numpy integers."""
    context = context_of()
    context.update(np.int64(2))
    assert context.status is END
    assert context.to_generation_output().tokens == [2]


def test_ids_outside_the_vocabulary():
    """Refused before anything has changed."""
    context = context_of(vocab_size=10)
    for attempt in (lambda: context.update(10), lambda: context.update(-1)):
        with pytest.raises(InvalidRequest):
            attempt()
    assert context.is_initial_prompt
    assert len(context.tokens) == 4
    context.update_with_future_token()
    with pytest.raises(InvalidRequest):
        context.realize_future_token(10)
    assert context.tokens.has_placeholder
    context.realize_future_token(9)


def test_steps_available():
    """How many tokens fit, counted from the window's start."""
    context = context_of(4)
    assert context.compute_num_available_steps(10) == 10
    context.update(5)
    assert context.compute_num_available_steps(10) == 6
    assert context.compute_num_available_steps(3) == -1


def test_log_probabilities():
    """One entry per commit that has them; None when none of the drained tokens has."""
    context = context_of()
    context.update(5)
    context.update(6, probabilities(-1.0))
    context.update(7, probabilities(-2.0))
    assert context.to_generation_output().log_probabilities == [probabilities(-1.0), probabilities(-2.0)]
    context.update(8)
    assert context.to_generation_output().log_probabilities is None
    context.update_with_future_token()
    context.realize_future_token(9, probabilities(-3.0))
    context.update(10)
    assert context.to_generation_output().log_probabilities == [probabilities(-3.0)]
    assert context.log_probabilities_data == {}


def test_output():
    """Only what is new, as ints; empty when there is nothing."""
    context = context_of(cached_prefix_length=3)
    context.update(5)
    output = context.to_generation_output()
    assert (output.request_id, output.tokens, output.final_status) == (context.request_id, [5], ACTIVE)
    assert output.num_cached_tokens == 3
    assert type(output.tokens[0]) is int
    assert context.to_generation_output().tokens == []


def test_weakness_21_ordinary_tokens_cost_one_lookup(monkeypatch):
    """Only a token that can end something makes the context look at the tokens before it."""
    looked = []
    real = EOSTracker.is_eos_from_tokens
    monkeypatch.setattr(EOSTracker, "is_eos_from_tokens", lambda self, tokens: looked.append(1) or real(self, tokens))
    context = context_of(sequences=[[5, 6], [7, 8, 9]], strings=["STOP", "END"])
    for token in (3, 4, 5, 7, 8, 3):
        context.update(token)
        context.update_with_text("text")
    assert looked == []
    context.update(6)
    assert looked == [1]


# Contexts: grammar


def test_grammar_advances_with_update():
    """update feeds the matcher, advance_token_buffer does not."""
    context = context_of()
    assert context.advance_fsm(5) is False
    matcher = Matcher()
    context.set_matcher(matcher)
    assert context.matcher is matcher
    context.update(5)
    context.advance_token_buffer(6)
    assert context.advance_fsm(7) is True
    assert matcher.consumed == [5, 7]


def test_end_tokens_bypass_the_grammar():
    """An end token is not fed."""
    context = context_of()
    context.set_matcher(matcher := Matcher())
    context.update(2)
    assert matcher.consumed == []
    assert context.status is END


def test_refused_token_turns_the_grammar_off(caplog):
    """It is logged, and the request goes on without the grammar."""
    context = context_of()
    context.set_matcher(Matcher())
    context.update(13)
    assert "grammar" in caplog.text
    assert context.matcher is None
    context.update(14)
    assert context.tokens.generated.tolist() == [13, 14]


def test_weakness_24_chunks_do_not_reach_the_grammar():
    """The token that ends a chunk means nothing: buffer and grammar both pass it by."""
    context = context_of(6)
    context.set_matcher(matcher := Matcher())
    context.tokens.chunk(2)
    context.update(55, probabilities())
    assert (matcher.consumed, context.tokens.generated_length, context.is_initial_prompt) == ([], 0, True)
    assert context.tokens.processed_length == 2
    context.update(56)
    assert matcher.consumed == [56]
    assert context.to_generation_output().log_probabilities is None


# Contexts: future tokens


def test_future_token():
    """Appended, held back, realised."""
    context = context_of()
    context.update_with_future_token()
    assert not context.is_initial_prompt
    assert context.to_generation_output().tokens == []
    with pytest.raises(ValueError, match="placeholder"):
        context.update_with_future_token()
    with pytest.raises(ValueError, match="placeholder"):
        context.update(5)
    context.realize_future_token(5)
    with pytest.raises(ValueError, match="future token"):
        context.realize_future_token(6)
    assert context.to_generation_output().tokens == [5]


def test_future_token_at_the_cap():
    """The placeholder may reach the cap; an end token there counts, and no token is lost."""
    context = context_of(4, max_length=5)
    context.update_with_future_token()
    assert context.status is FULL
    assert context.to_generation_output().final_status is ACTIVE
    other = copy.deepcopy(context)
    context.realize_future_token(2)
    assert context.status is END
    other.realize_future_token(3)
    output = other.to_generation_output()
    assert (output.tokens, output.final_status) == ([3], FULL)


def test_future_token_while_chunked():
    """The next chunk becomes active instead."""
    context = context_of(6)
    context.tokens.chunk(2)
    context.update_with_future_token()
    assert not context.tokens.has_placeholder
    assert context.tokens.processed_length == 2


def test_future_token_of_a_cancelled_request():
    """Realising does not revive or rename the ending."""
    context = context_of()
    context.update_with_future_token()
    context.status = CANCELLED
    context.realize_future_token(2)
    assert context.status is CANCELLED
    assert context.cancelled


def test_weakness_27_placeholder_is_out_of_band():
    """No magic id stands in the tokens."""
    context = context_of()
    context.update_with_future_token()
    assert context.tokens.all.min() >= 0


# Contexts: minimum of new tokens


def test_min_token_mask():
    """Rows of (0, end token) inside the window, none outside."""
    context = context_of(ids={9, 2}, min_new=2)
    masks = context.get_min_token_logit_mask(3)
    assert [mask.tolist() for mask in masks] == [[[0, 2], [0, 9]], [[0, 2], [0, 9]], []]
    assert [mask.shape for mask in masks] == [(2, 2), (2, 2), (0, 2)]
    assert {mask.dtype for mask in masks} == {np.dtype(np.int32)}
    context.update(5)
    assert [len(mask) for mask in context.get_min_token_logit_mask(3)] == [2, 0, 0]


def test_min_token_mask_stays_inside_the_vocabulary():
    """An id that a caller made up never becomes an index."""
    assert context_of(ids={2, 50}, min_new=1, vocab_size=10).get_min_token_logit_mask(1)[0].tolist() == [[0, 2]]
    assert context_of(ids={2, 2**40}, min_new=1).get_min_token_logit_mask(1)[0].tolist() == [[0, 2]]


def test_weakness_23_minimum_survives_preemption():
    """The window is counted from the first prompt: a reset does not begin it again."""
    context = context_of(ids={2}, min_new=2)
    context.update(5)
    context.reset()
    assert [len(mask) for mask in context.get_min_token_logit_mask(3)] == [1, 0, 0]
    assert context.min_tokens == 2


def test_weakness_23_no_ending_before_the_minimum():
    """Neither an end token, nor a sequence, nor a stop string ends the request too early."""
    context = context_of(ids={2}, sequences=[[5, 6]], strings=["STOP"], min_new=3)
    context.update(2)
    context.update(5)
    context.update(6)
    assert context.update_with_text("a STOP b") is None
    assert context.status is ACTIVE
    context.update(2)
    assert context.status is END


def test_weakness_23_a_stop_string_may_begin_in_the_window():
    """One that is complete after the minimum counts, also behind an earlier one that did not."""
    context = context_of(strings=["STOP"], min_new=1)
    context.update(5)
    assert context.update_with_text("STOP and ST") is None
    context.update(6)
    assert context.update_with_text("OP") == "STOP"
    assert context.status is END


def test_weakness_23_the_cap_is_kept_in_the_window():
    """max_length holds even where endings are ignored."""
    context = context_of(4, max_length=6, ids={2}, min_new=2)
    context.update(2)
    context.update(2)
    assert context.status is FULL


# Contexts: status


def test_weakness_25_the_first_ending_stays():
    """Whatever is appended or set afterwards."""
    context = context_of(4, max_length=6)
    context.update(2)
    context.update(5)
    context.update(5)
    assert context.status is END
    context.status = CANCELLED
    assert context.status is END
    with pytest.raises(ValueError, match="active again"):
        context.status = ACTIVE
    context = context_of(strings=["x"])
    context.status = "cancelled"
    context.update(2)
    context.update_with_text("x")
    assert context.status is CANCELLED


def test_weakness_32_stop_strings_in_the_worker():
    """The context itself ends on text, so nothing is computed past the stop."""
    context = context_of(strings=["STOP"])
    context.update(5)
    assert context.update_with_text("some ST") is None
    assert context.eos_tracker.partial_stop_length == 2
    context.update(6)
    assert context.update_with_text("OP more") == "STOP"
    assert context.is_done


# Contexts: preemption


def test_reset():
    """Everything is prompt again; drafts are dropped, status, grammar and max_length stay."""
    context = context_of()
    context.spec_decoding_state.draft_tokens_to_verify.append(5)
    context.set_matcher(matcher := Matcher())
    context.update(5)
    context.update_with_future_token()
    context.reset()
    assert context.is_initial_prompt
    assert context.tokens.prompt_length == 5
    assert not context.tokens.has_placeholder
    assert context.spec_decoding_state == SpecDecodingState()
    assert context.matcher is matcher
    assert context.status is ACTIVE


def test_weakness_26_reset_loses_no_output():
    """Tokens not yet streamed are still delivered, once, in order, with their log probabilities."""
    context = context_of()
    context.update(5)
    assert context.to_generation_output().tokens == [5]
    context.update(6, probabilities(-1.0))
    context.reset()
    context.update(7)
    context.reset()
    context.reset()
    context.update(8)
    output = context.to_generation_output()
    assert output.tokens == [6, 7, 8]
    assert output.log_probabilities == [probabilities(-1.0)]
    assert context.to_generation_output().tokens == []


def test_weakness_26_sequences_match_across_a_reset():
    """A stop sequence that began before the preemption is found."""
    context = context_of(sequences=[[5, 6]])
    context.update(5)
    context.reset()
    context.update(6)
    assert context.status is END


class ContextMachine(RuleBasedStateMachine):
    """A context under resets, chunks, placeholders and travel delivers each token once, and ends once."""

    def __init__(self):
        super().__init__()
        self.context = context_of(5, max_length=30, ids={2}, sequences=[[3, 4]], min_new=2)
        self.generated = []
        self.delivered = []
        self.ended = None

    def note(self, token):
        self.generated.append(token)
        if self.ended is None:
            enough = len(self.generated) > 2
            if enough and (token == 2 or self.generated[-2:] == [3, 4]):
                self.ended = END
            elif 5 + len(self.generated) >= 30:
                self.ended = FULL

    @precondition(lambda self: not self.context.tokens.has_placeholder)
    @rule(token=st.integers(0, 5))
    def update(self, token):
        chunked = self.context.tokens.actively_chunked
        self.context.update(token)
        if not chunked:
            self.note(token)

    @precondition(lambda self: not self.context.tokens.has_placeholder and not self.context.tokens.actively_chunked)
    @rule(token=st.integers(0, 5), output=st.booleans(), lost=st.booleans())
    def overlapped(self, token, output, lost):
        if lost and 5 + len(self.generated) + 1 >= 30:
            return
        self.context.update_with_future_token()
        if output:
            self.drain()
        if lost:
            self.context.reset()
        else:
            self.context.realize_future_token(token)
            self.note(token)

    @rule()
    def reset(self):
        self.context.reset()

    @precondition(lambda self: self.context.tokens.active_length > 2)
    @rule()
    def chunk(self):
        self.context.tokens.chunk(2)

    @rule()
    def drain(self):
        self.delivered += self.context.to_generation_output().tokens

    @rule()
    def travel(self):
        self.context = travelled(self.context)

    @invariant()
    def agrees(self):
        tokens = self.context.tokens
        assert tokens.all[5 : len(tokens) - tokens.has_placeholder].tolist() == self.generated
        assert self.delivered == self.generated[: len(self.delivered)]
        assert self.context.status is (self.ended or ACTIVE)
        assert self.context.first_generated == 5

    def teardown(self):
        self.drain()
        assert self.delivered == self.generated


ContextMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_context_machine = ContextMachine.TestCase
