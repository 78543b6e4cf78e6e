"""`EOSTracker`: endings by token, sequence and text, wherever the pieces are cut."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import InvalidRequest
from tensoryard.proto.eos import MAX_EOS_SEQUENCES, EOSTracker, StopMatch
from tensoryard.proto.sampling import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS, SamplingParams


def tokens(*ids):
    return np.array(ids, np.int64)


# Tokens


def test_end_tokens_and_sequences():
    """The last token in the set, or a sequence as suffix."""
    tracker = EOSTracker(eos_token_ids={2}, eos_sequences=[[5, 6, 7], [9, 7]])
    assert tracker.is_eos_from_tokens(tokens(1, 2))
    assert tracker.is_eos_from_tokens(tokens(5, 6, 7))
    assert tracker.is_eos_from_tokens(tokens(4, 9, 7))
    assert not tracker.is_eos_from_tokens(tokens(2, 1))
    assert not tracker.is_eos_from_tokens(tokens(6, 7))
    assert not tracker.is_eos_from_tokens(tokens(7))
    assert tracker.is_eos_from_tokens([0, 9, 7])


def test_no_tokens_is_an_error():
    """There is no last token to look at."""
    with pytest.raises(ValueError, match="at least one"):
        EOSTracker(eos_token_ids={2}).is_eos_from_tokens(tokens())


def test_may_end_settles_most_tokens():
    """Only ids that end something need a closer look."""
    tracker = EOSTracker(eos_token_ids={2}, eos_sequences=[[5, 6]])
    assert [token for token in range(8) if tracker.may_end(token)] == [2, 6]


def test_first_offset_in_a_commit():
    """An ending inside a commit of several tokens is found, also one that began before it."""
    tracker = EOSTracker(eos_token_ids={2}, eos_sequences=[[5, 6, 7]])
    assert tracker.eos_sequence_lookback == 2
    assert tracker.first_eos_offset([], [1, 2, 3]) == 1
    assert tracker.first_eos_offset([9, 5, 6], [7, 2]) == 0
    assert tracker.first_eos_offset(tokens(5), tokens(6, 7, 2)) == 1
    assert tracker.first_eos_offset([6], [7, 5, 6]) is None
    assert tracker.first_eos_offset([2], []) is None


def test_lookback_without_sequences():
    """Single tokens need nothing before them."""
    tracker = EOSTracker(eos_token_ids={2})
    assert tracker.eos_sequence_lookback == 0
    assert tracker.first_eos_offset([2, 2], [1, 2]) == 1


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=3),
    st.sets(st.integers(0, 9), max_size=1),
    st.lists(st.integers(0, 4), max_size=12),
    st.integers(0, 12),
)
def test_offset_agrees_with_one_token_at_a_time(sequences, ids, generated, cut):
    """A commit is judged as its tokens would be one by one."""
    tracker = EOSTracker(eos_token_ids=ids, eos_sequences=sequences)
    prior, new = generated[:cut], generated[cut:]
    expected = next((i for i in range(len(new)) if tracker.is_eos_from_tokens(tokens(*prior, *new[: i + 1]))), None)
    assert tracker.first_eos_offset(prior, new) == expected
    for end in range(1, len(generated) + 1):
        head = generated[:end]
        naive = head[-1] in ids or any(head[-len(s) :] == s for s in sequences)
        assert tracker.is_eos_from_tokens(tokens(*head)) == naive


# Text


def test_stop_string_across_pieces():
    """A stop string cut anywhere is found when it is complete."""
    tracker = EOSTracker(eos_stop_strings=["</end>"])
    assert [tracker.is_eos_from_string(piece) for piece in ("abc<", "/e", "", "nd", "> more")] == [
        None,
        None,
        None,
        None,
        "</end>",
    ]


def test_the_first_in_the_text_wins():
    """Of several the one that begins first; of those that begin together the one listed first."""
    assert EOSTracker(eos_stop_strings=["cd", "bc"]).is_eos_from_string("abcd") == "bc"
    assert EOSTracker(eos_stop_strings=["ab", "abc"]).is_eos_from_string("abc") == "ab"
    assert EOSTracker(eos_stop_strings=["abc", "ab"]).is_eos_from_string("abc") == "abc"


def test_no_stop_strings_remembers_nothing():
    """Without stop strings text costs nothing."""
    tracker = EOSTracker(eos_token_ids={2})
    assert tracker.find_stop("text") is None
    assert tracker.to_wire()[3] == ""


def test_find_stop_says_where():
    """Counted from the start of the newest piece; negative when it began earlier."""
    tracker = EOSTracker(eos_stop_strings=["STOP"])
    assert tracker.find_stop("go STOP on") == StopMatch("STOP", 3)
    assert tracker.find_stop("on ST") is None
    assert tracker.find_stop("OP") == StopMatch("STOP", -2)


def test_regular_expression_characters_are_plain():
    """A stop string is no pattern."""
    tracker = EOSTracker(eos_stop_strings=["a.b", "(", "$^"])
    assert tracker.is_eos_from_string("axb") is None
    assert tracker.is_eos_from_string("a.b") == "a.b"
    assert tracker.is_eos_from_string("x(") == "("


def test_partial_stop_is_held_back():
    """How much of the end may still become a stop string."""
    tracker = EOSTracker(eos_stop_strings=["abab!", "bax"])
    for piece, held in (("zzz", 0), ("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 3), ("q", 0)):
        assert tracker.find_stop(piece) is None
        assert tracker.partial_stop_length == held


def test_reset_forgets_the_text():
    """The first half of a stop string before a reset does not count."""
    tracker = EOSTracker(eos_stop_strings=["ab"])
    tracker.find_stop("a")
    tracker.reset()
    assert tracker.find_stop("b") is None


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.text("abc", max_size=9)))
def test_text_agrees_with_a_search_of_everything(stops, pieces):
    """However the text is cut, what is found is what a search of the whole text since the last hit finds."""
    tracker = EOSTracker(eos_stop_strings=stops)
    text = ""
    for piece in pieces:
        text += piece
        starts = [(text.find(stop), order) for order, stop in enumerate(stops) if stop in text]
        expected = stops[min(starts)[1]] if starts else None
        assert tracker.is_eos_from_string(piece) == expected
        if expected is not None:
            text = ""
        held = [n for n in range(1, 5) for stop in stops if n < len(stop) and text.endswith(stop[:n])]
        assert tracker.partial_stop_length == max(held, default=0)


# How requests fill it


def test_from_sampling_params():
    """The model's ids and the request's, the stop strings and their tokens."""
    params = SamplingParams(stop=["END"], stop_token_ids=[7])
    tracker = EOSTracker.from_sampling_params(params, model_eos_token_ids=[2], stop_sequences=[[5, 6], []])
    assert tracker == EOSTracker(eos_token_ids={2, 7}, eos_sequences=[[5, 6]], eos_stop_strings=["END"])


def test_ignore_eos_leaves_stop_strings():
    """ignore_eos empties ids and sequences, stop strings stay."""
    params = SamplingParams(stop=["END"], stop_token_ids=[7], ignore_eos=True)
    tracker = EOSTracker.from_sampling_params(params, model_eos_token_ids=[2], stop_sequences=[[5, 6]])
    assert tracker == EOSTracker(eos_stop_strings=["END"])


# Identity and travel


def test_travels_with_the_text_so_far():
    """A moved tracker finds the stop string that the move cut in two."""
    tracker = EOSTracker(eos_token_ids={3, 2}, eos_sequences=[[5, 6]], eos_stop_strings=["END"])
    tracker.find_stop("E")
    clones = [
        EOSTracker.from_wire(list(tracker.to_wire())),
        pickle.loads(pickle.dumps(tracker)),
        copy.deepcopy(tracker),
    ]
    for clone in clones:
        assert clone == tracker
        assert hash(clone) == hash(tracker)
        assert clone.is_eos_from_string("ND") == "END"
    assert tracker != EOSTracker()
    assert tracker != 3
    assert "END" in repr(tracker)


@pytest.mark.parametrize(
    "wire",
    [None, "text", [], [[2], [], ["ab"], "ab"], [[2], [], ["ab"], 5], [[2], [], [], "a"], [[-1], [], [], ""]],
)
def test_arrival_is_checked(wire):
    """What no tracker can have been is refused."""
    with pytest.raises(InvalidRequest):
        EOSTracker.from_wire(wire)


# Weaknesses of the reference, by number


def test_weakness_31_large_piece():
    """A stop string inside one long piece, with text behind it, is found."""
    tracker = EOSTracker(eos_stop_strings=["STOP"])
    assert tracker.is_eos_from_string("x" * 500 + "STOP" + "y" * 5000) == "STOP"


def test_weakness_31_found_once():
    """After a hit later pieces do not hit again."""
    tracker = EOSTracker(eos_stop_strings=["STOP"])
    assert tracker.is_eos_from_string("a STOP") == "STOP"
    assert tracker.is_eos_from_string("b") is None
    assert tracker.is_eos_from_string("STOP") == "STOP"


def test_weakness_33_rules_cannot_change():
    """No assignment, and nothing mutable is handed out or taken in."""
    ids, sequence, strings = {2}, [5, 6], ["END"]
    tracker = EOSTracker(eos_token_ids=ids, eos_sequences=[sequence], eos_stop_strings=strings)
    ids.add(3)
    sequence.append(7)
    strings.append("x")
    assert tracker.eos_token_ids == {2}
    assert tracker.eos_sequences == ((5, 6),)
    assert tracker.eos_stop_strings == ("END",)
    for name in ("eos_token_ids", "eos_sequences", "eos_stop_strings"):
        with pytest.raises(AttributeError):
            setattr(tracker, name, ())
    with pytest.raises(AttributeError):
        tracker.eos_token_ids.add(4)


@pytest.mark.parametrize(
    "rules",
    [
        {"eos_sequences": [[]]},
        {"eos_sequences": [[5], []]},
        {"eos_sequences": [[-1]]},
        {"eos_sequences": [["a"]]},
        {"eos_sequences": ["ab"]},
        {"eos_sequences": "ab"},
        {"eos_sequences": [5]},
        {"eos_sequences": [[1]] * (MAX_EOS_SEQUENCES + 1)},
        {"eos_stop_strings": [""]},
        {"eos_stop_strings": [3]},
        {"eos_stop_strings": "END"},
        {"eos_stop_strings": ["x"] * (MAX_STOP_STRINGS + 1)},
        {"eos_stop_strings": ["x" * (MAX_STOP_STRING_CHARS + 1)]},
        {"eos_token_ids": {-1}},
        {"eos_token_ids": {1.5}},
        {"eos_token_ids": "12"},
        {"eos_token_ids": 2},
        {"eos_token_ids": range(MAX_STOP_TOKEN_IDS + 1)},
    ],
)
def test_weakness_33_rules_are_checked(rules):
    """An entry that matches everything, or is no entry at all, is an input error."""
    with pytest.raises(InvalidRequest):
        EOSTracker(**rules)
