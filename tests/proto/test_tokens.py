"""`TokenBuffer`, `Range` and `LogProbabilities`: their rules, and that a call that fails changes nothing."""

from __future__ import annotations

import copy
import pickle

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensoryard.errors import InvalidRequest
from tensoryard.proto.tokens import MAX_TOKEN_ID, LogProbabilities, Range, TokenBuffer


def prompt_of(n):
    return np.arange(n, dtype=np.int64)


def made(prompt=4, generated=()):
    buffer = TokenBuffer(prompt_of(prompt))
    for token in generated:
        buffer.advance_with_token(token)
    return buffer


def snapshot(buffer):
    tokens, *state = buffer.to_wire()
    return tokens.tolist(), state


# LogProbabilities


def test_log_probabilities_of_both_reference_versions():
    """Two positional lists are enough, sampled ids are a third."""
    assert LogProbabilities([-0.5], [{7: -0.5}]).sampled_token_ids == []
    assert LogProbabilities([-0.5], [{7: -0.5}], [7]).sampled_token_ids == [7]


def test_log_probabilities_travel():
    """Tagged, integer keys kept, empty sampled ids left out."""
    value = LogProbabilities([-0.5], [{7: -0.5, 9: -1.5}])
    wire = msgspec.msgpack.encode(value)
    assert msgspec.msgpack.decode(wire, strict=False)["type"] == "LogProbabilities"
    assert b"sampled" not in wire
    assert msgspec.msgpack.decode(wire, type=LogProbabilities) == value


@pytest.mark.parametrize("lists", [([0.0], []), ([], [{}]), ([0.0], [{}], [1, 2])])
def test_log_probabilities_are_parallel(lists):
    """Lists of different lengths are refused."""
    with pytest.raises(InvalidRequest, match="parallel"):
        LogProbabilities(*lists)


# Range


def test_range_moves():
    """Bounds move both ways, and advance leaves nothing."""
    span = Range(2, 5)
    assert len(span) == 3
    span.bump_start(1)
    span.bump_end(2)
    span.bump_start(-2)
    assert span == Range(1, 7)
    span.bump_end(-6)
    assert not span
    span.bump_end(4)
    span.advance()
    assert (span.start, span.end) == (5, 5)


@pytest.mark.parametrize("bounds", [(3, 2), (-1, 2), (-2, -1), (1.0, 2), (True, 2), (0, "2")])
def test_range_refuses_bounds(bounds):
    """Crossed, negative and non-integer bounds are input errors."""
    with pytest.raises(InvalidRequest):
        Range(*bounds)


@pytest.mark.parametrize(("move", "n"), [("bump_start", 4), ("bump_start", -3), ("bump_end", -4), ("bump_end", 1.0)])
def test_range_refused_move_changes_nothing(move, n):
    """A move that would break the range leaves it as it was."""
    span = Range(2, 5)
    with pytest.raises(ValueError, match="Range"):
        getattr(span, move)(n)
    assert span == Range(2, 5)


def test_range_is_not_hashable():
    """It is mutable."""
    with pytest.raises(TypeError):
        hash(Range(0, 1))


# TokenBuffer: construction


def test_a_new_buffer_is_prompt_and_active():
    """Everything is prompt and active, nothing is outstanding or chunked."""
    buffer = made(4)
    assert (
        buffer.all.tolist() == buffer.array.tolist() == buffer.prompt.tolist() == buffer.active.tolist() == [0, 1, 2, 3]
    )
    assert (len(buffer), buffer.prompt_length, buffer.generated_length, buffer.processed_length) == (4, 4, 0, 0)
    assert (buffer.active_length, buffer.current_position, buffer.actively_chunked) == (4, 4, False)
    assert not buffer.has_outstanding_generated_tokens
    assert buffer.generated.shape == (0,)


@pytest.mark.parametrize(
    "array",
    [[1, 2], np.zeros((2, 2), np.int64), np.zeros(2, np.int32), np.zeros(0, np.int64), np.int64(3), np.zeros(2, ">i8")],
)
def test_construction_refuses(array):
    """Anything but a one-dimensional, non-empty int64 array is an input error."""
    with pytest.raises(InvalidRequest):
        TokenBuffer(array)


def test_index_and_slice():
    """Scalars by any integer, negative too; slices are clipped; other keys are refused."""
    buffer = made(3, [10, 11])
    assert isinstance(buffer[0], np.int64)
    assert (buffer[-1], buffer[np.int32(3)]) == (11, 10)
    assert buffer[1:99].tolist() == [1, 2, 10, 11]
    assert buffer[::-2].tolist() == [11, 2, 0]
    for bad in (5, -6):
        with pytest.raises(IndexError):
            buffer[bad]
    for bad in ("0", None, 1.0):
        with pytest.raises(TypeError):
            buffer[bad]


# TokenBuffer: processing


def test_append_makes_the_token_the_window():
    """Appending marks the window as processed and leaves a window of one outstanding token."""
    buffer = made(4, [10, 11])
    assert buffer.generated.tolist() == [10, 11]
    assert buffer.active.tolist() == [11]
    assert (buffer.processed_length, buffer.active_length, buffer.current_position) == (5, 1, 6)


def test_numpy_ids_are_taken():
    """A sampled id may be a numpy integer; bools and floats are told apart."""
    buffer = made(1)
    buffer.advance_with_token(np.int32(7))
    assert buffer[-1] == 7
    with pytest.raises(TypeError):
        buffer.advance_with_token(1.5)


def test_chunked_prefill_cycle():
    """chunk, advance_chunk, chunk, ... then an append."""
    buffer = made(10)
    buffer.chunk(6)
    buffer.chunk(4)
    assert buffer.actively_chunked
    assert buffer.active.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="chunks"):
        buffer.advance_with_token(1)
    buffer.advance_chunk()
    assert (buffer.processed_length, buffer.active_length, buffer.actively_chunked) == (4, 6, False)
    with pytest.raises(ValueError, match="chunk"):
        buffer.advance_chunk()
    buffer.advance_with_token(99)
    assert buffer.active.tolist() == [99]


@pytest.mark.parametrize("size", [0, -1, 4, 5])
def test_chunk_refuses(size):
    """Sizes that cut nothing or leave nothing are refused."""
    buffer = made(4)
    with pytest.raises(ValueError, match="chunk"):
        buffer.chunk(size)
    assert not buffer.actively_chunked


def test_rewind_and_skip():
    """The window's start moves; its end stays."""
    buffer = made(4, [10])
    buffer.rewind_processing(3)
    assert buffer.active.tolist() == [1, 2, 3, 10]
    buffer.skip_processing(2)
    assert buffer.active.tolist() == [3, 10]
    buffer.skip_processing(0)
    assert buffer.current_position == 5
    buffer.advance_with_token(11)
    assert buffer.active.tolist() == [11]


@pytest.mark.parametrize(
    ("method", "n"),
    [
        ("rewind_processing", -1),
        ("rewind_processing", 5),
        ("skip_processing", -1),
        ("skip_processing", 1),
        ("apply_processing_offset", -5),
        ("apply_processing_offset", 2),
    ],
)
def test_refused_moves_change_nothing(method, n):
    """A move outside the tokens is refused and leaves the state alone."""
    buffer = made(4, [10])
    before = snapshot(buffer)
    with pytest.raises(ValueError):
        getattr(buffer, method)(n)
    assert snapshot(buffer) == before


def test_offset_shows_earlier_tokens():
    """The offset is absolute and leaves processed_length alone; an append clears it."""
    buffer = made(4, [10])
    buffer.apply_processing_offset(-2)
    buffer.apply_processing_offset(-1)
    assert buffer.active.tolist() == [3, 10]
    assert (buffer.processed_length, buffer.active_length) == (4, 2)
    buffer.apply_processing_offset(1)
    assert buffer.active_length == 0
    buffer.skip_processing(0)
    buffer.advance_with_token(11)
    assert buffer.active.tolist() == [11]


def test_offset_and_moves_stay_in_bounds_together():
    """Rewinding, skipping and chunking respect an offset that is already applied."""
    buffer = made(4, [10])
    buffer.apply_processing_offset(-2)
    for refused in (lambda: buffer.rewind_processing(3), lambda: buffer.skip_processing(2), lambda: buffer.chunk(1)):
        with pytest.raises(ValueError):
            refused()
    buffer.rewind_processing(2)
    assert buffer.active.tolist() == [0, 1, 2, 3, 10]


# TokenBuffer: streaming


def test_streaming_hands_out_once():
    """Each generated token is handed out once, in order."""
    buffer = made(2, [10, 11])
    assert buffer.has_outstanding_generated_tokens
    assert buffer.consume_recently_generated_tokens().tolist() == [10, 11]
    with pytest.raises(ValueError, match="outstanding"):
        buffer.consume_recently_generated_tokens()
    buffer.advance_with_token(12)
    assert buffer.consume_recently_generated_tokens().tolist() == [12]


def test_overwrite_last_token():
    """In place, no range moves."""
    buffer = made(2, [10])
    before = snapshot(buffer)[1]
    buffer.overwrite_last_token(20)
    assert buffer.generated.tolist() == [20]
    assert snapshot(buffer)[1] == before


def test_placeholder_is_held_back_and_realised():
    """A placeholder takes a slot and a window but is no output until it is a token."""
    buffer = made(2, [10])
    buffer.advance_with_placeholder()
    assert buffer.has_placeholder
    assert len(buffer) == 4
    assert buffer.active_length == 1
    assert buffer.consume_recently_generated_tokens().tolist() == [10]
    assert not buffer.has_outstanding_generated_tokens
    for refused in (lambda: buffer.advance_with_token(1), buffer.advance_with_placeholder):
        with pytest.raises(ValueError, match="placeholder"):
            refused()
    buffer.overwrite_last_token(11)
    assert not buffer.has_placeholder
    assert buffer.consume_recently_generated_tokens().tolist() == [11]


def test_placeholder_waits_for_chunks():
    """A placeholder cannot be appended while chunked, and the refusal leaves no placeholder behind."""
    buffer = made(4)
    buffer.chunk(2)
    with pytest.raises(ValueError, match="chunks"):
        buffer.advance_with_placeholder()
    assert not buffer.has_placeholder


def test_reset_makes_all_tokens_prompt():
    """Prompt and active are everything; nothing is outstanding or chunked."""
    buffer = made(4, [10, 11])
    buffer.rewind_processing(2)
    buffer.chunk(1)
    buffer.reset_as_new_prompt()
    assert buffer.prompt.tolist() == buffer.active.tolist() == [0, 1, 2, 3, 10, 11]
    assert not buffer.has_outstanding_generated_tokens
    assert not buffer.actively_chunked


def test_reset_can_drop_the_last_token():
    """delete_last_generated_token drops one; with only a prompt it is refused."""
    buffer = made(2, [10, 11])
    buffer.reset_as_new_prompt(delete_last_generated_token=True)
    assert buffer.prompt.tolist() == [0, 1, 10]
    with pytest.raises(ValueError, match="generated"):
        buffer.reset_as_new_prompt(delete_last_generated_token=True)


@pytest.mark.parametrize("delete", [False, True])
def test_reset_drops_the_placeholder(delete):
    """A token that is not known never becomes prompt; only one slot is dropped."""
    buffer = made(2, [10])
    buffer.advance_with_placeholder()
    buffer.reset_as_new_prompt(delete_last_generated_token=delete)
    assert buffer.prompt.tolist() == [0, 1, 10]
    assert not buffer.has_placeholder


# TokenBuffer: identity and travel


def test_equality_and_repr():
    """Equal by tokens and state, not hashable, and a repr that shows no token."""
    one, other = made(3, [10]), made(3, [10])
    assert one == other
    other.consume_recently_generated_tokens()
    assert one != other
    assert one != made(3, [11])
    assert one != 3
    assert "prompt=3" in repr(one)
    with pytest.raises(TypeError):
        hash(one)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_are_separate(clone):
    """A copy continues on its own."""
    buffer = made(3, [10])
    other = clone(buffer)
    assert other == buffer
    other.advance_with_token(11)
    assert len(buffer) == 4


def test_wire_round_trip_in_every_state():
    """Chunked, offset, streamed and placeholder states all survive."""
    buffer = made(6, [10, 11])
    buffer.consume_recently_generated_tokens()
    buffer.advance_with_placeholder()
    buffer.rewind_processing(3)
    buffer.apply_processing_offset(-1)
    buffer.chunk(3)
    wire = buffer.to_wire()
    wire[0].flags.writeable = False
    other = TokenBuffer.from_wire(list(wire))
    assert other == buffer
    other.advance_chunk()
    other.overwrite_last_token(12)
    assert other.consume_recently_generated_tokens().tolist() == [12]


# Weaknesses of the reference, by number


def test_weakness_17_no_spare_capacity_on_the_wire():
    """What travels is exactly the tokens, in their own memory; pickles too."""
    buffer = made(8000, [1])
    tokens = buffer.to_wire()[0]
    assert tokens.nbytes == 8001 * 8
    assert tokens.base is None
    assert len(pickle.dumps(buffer)) < 8001 * 8 + 500


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "text",
        [],
        [np.zeros((2, 2), np.float32), 2, 0, 2, 0, 2, False],
        [[1, 2], 2, 0, 2, 0, 2, False],
        [prompt_of(2), 2, 0, 2, 0, 2, 0],
        [prompt_of(2), 2, 0, 2.0, 0, 2, False],
        [prompt_of(2), True, 0, 2, 0, 2, False],
        [prompt_of(2), 0, 0, 2, 0, 2, False],
        [prompt_of(2), 3, 0, 2, 0, 3, False],
        [prompt_of(2), 2, -1, 2, 0, 2, False],
        [prompt_of(2), 2, 2, 1, 0, 2, False],
        [prompt_of(2), 2, 0, 3, 0, 2, False],
        [prompt_of(2), 2, 0, 2, -1, 2, False],
        [prompt_of(2), 2, 0, 2, 3, 2, False],
        [prompt_of(2), 2, 0, 2, 0, 1, False],
        [prompt_of(2), 2, 0, 2, 0, 2, True],
        [np.array([1, -999], np.int64), 1, 1, 2, 0, 1, False],
    ],
)
def test_weakness_17_wire_decode_checks_everything(wire):
    """Wrong dtype, rank, lengths, types and impossible states are refused on arrival."""
    with pytest.raises(InvalidRequest):
        TokenBuffer.from_wire(wire)


def test_weakness_17_range_is_checked_on_arrival():
    """A crossed range on the wire is refused."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"start": 3, "end": 1}), type=Range)


def test_weakness_18_reset_forgets_offset():
    """After a reset the offset is gone: active, its length and the position agree."""
    buffer = made(4, [10])
    buffer.apply_processing_offset(-2)
    buffer.reset_as_new_prompt()
    assert len(buffer.active) == buffer.active_length == len(buffer)
    assert buffer.to_wire()[4] == 0


def test_weakness_18_position_ignores_the_offset():
    """current_position is the index of the next token, whatever is shown again."""
    buffer = made(4, [10])
    for offset in (-3, 0, 1):
        buffer.apply_processing_offset(offset)
        assert buffer.current_position == len(buffer) == 5


@pytest.mark.parametrize("token", [MAX_TOKEN_ID + 1, -1, -(2**63) - 1, "7", None, 1.0])
def test_weakness_19_failed_append_changes_nothing(token):
    """An id that cannot be stored is refused before any range moves."""
    buffer = made(4, [10])
    before = snapshot(buffer)
    for method in (buffer.advance_with_token, buffer.overwrite_last_token):
        with pytest.raises((ValueError, TypeError)):
            method(token)
    assert snapshot(buffer) == before
    buffer.advance_with_token(MAX_TOKEN_ID)
    assert buffer[-1] == MAX_TOKEN_ID


def test_weakness_20_views_cannot_be_written():
    """Every array handed out refuses writes, and none can be made writable."""
    buffer = made(4, [10])
    views = [buffer.all, buffer.array, buffer.prompt, buffer.generated, buffer.active, buffer[1:3]]
    views.append(buffer.consume_recently_generated_tokens())
    for view in views:
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_weakness_20_views_keep_their_content_when_the_buffer_grows():
    """Growth moves the storage, not what an older view shows."""
    buffer = made(4)
    view = buffer.all
    for token in range(500):
        buffer.advance_with_token(token)
    assert view.tolist() == [0, 1, 2, 3]
    assert buffer.generated.tolist() == list(range(500))


def test_weakness_20_the_callers_array_is_copied():
    """Neither side sees the other's later writes."""
    array = prompt_of(3)
    buffer = TokenBuffer(array)
    array[0] = 77
    buffer.overwrite_last_token(88)
    assert buffer.all.tolist() == [0, 1, 88]
    assert array.tolist() == [77, 1, 2]


def test_weakness_27_no_magic_id():
    """A placeholder lies out of band: its slot holds a valid id and output never shows it."""
    buffer = made(2)
    buffer.advance_with_placeholder()
    assert buffer.all.min() >= 0
    assert not buffer.has_outstanding_generated_tokens


class BufferMachine(RuleBasedStateMachine):
    """The buffer against plain lists, with refused calls mixed in."""

    def __init__(self):
        super().__init__()
        self.buffer = made(5)
        self.tokens = list(range(5))
        self.prompt = 5
        self.streamed = 5

    @rule(token=st.integers(-2, 2**63))
    def append(self, token):
        before = snapshot(self.buffer)
        try:
            self.buffer.advance_with_token(token)
        except ValueError:
            assert snapshot(self.buffer) == before
            assert before[1][5] or self.buffer.actively_chunked or not 0 <= token < 2**63
        else:
            self.tokens.append(token)

    @precondition(lambda self: not self.buffer.has_placeholder and not self.buffer.actively_chunked)
    @rule()
    def append_placeholder(self):
        self.buffer.advance_with_placeholder()
        self.tokens.append(0)

    @precondition(lambda self: self.buffer.has_placeholder)
    @rule(token=st.integers(0, 9))
    def realise(self, token):
        self.buffer.overwrite_last_token(token)
        self.tokens[-1] = token

    @rule(
        method=st.sampled_from(["chunk", "rewind_processing", "skip_processing", "apply_processing_offset"]),
        n=st.integers(-6, 12),
    )
    def move(self, method, n):
        before = snapshot(self.buffer)
        try:
            getattr(self.buffer, method)(n)
        except ValueError:
            assert snapshot(self.buffer) == before

    @precondition(lambda self: self.buffer.actively_chunked)
    @rule()
    def advance_chunk(self):
        self.buffer.advance_chunk()

    @precondition(lambda self: self.buffer.has_outstanding_generated_tokens)
    @rule()
    def stream(self):
        end = len(self.tokens) - self.buffer.has_placeholder
        assert self.buffer.consume_recently_generated_tokens().tolist() == self.tokens[self.streamed : end]
        self.streamed = end

    @rule(delete=st.booleans())
    def reset(self, delete):
        if delete and self.buffer.generated_length == 0:
            return
        if delete or self.buffer.has_placeholder:
            self.tokens.pop()
        self.buffer.reset_as_new_prompt(delete)
        self.prompt = self.streamed = len(self.tokens)

    @rule()
    def travel(self):
        other = TokenBuffer.from_wire(self.buffer.to_wire())
        assert other == self.buffer
        self.buffer = other

    @invariant()
    def agrees(self):
        buffer = self.buffer
        assert buffer.all.tolist() == self.tokens
        assert buffer.prompt_length == self.prompt
        assert len(buffer) == len(self.tokens)
        assert len(buffer.active) == buffer.active_length
        assert buffer.actively_chunked == (buffer.current_position < len(buffer))


BufferMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_buffer_machine = BufferMachine.TestCase
