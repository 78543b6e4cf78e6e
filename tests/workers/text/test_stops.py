"""Stop strings: cut wherever tokens are, and nothing shown that would have to be taken back."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensoryard.proto import EOSTracker
from tensoryard.workers.text.stops import StopFilter

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text, stops):
    """Where the first stop string begins, and which; of those that begin together the one listed first."""
    found = [(text.find(stop), place) for place, stop in enumerate(stops) if stop in text]
    if not found:
        return text, None
    start, place = min(found)
    return text[:start], stops[place]


def run(stops, pieces, **more):
    filtered = StopFilter(EOSTracker(eos_stop_strings=stops))
    shown = [filtered.feed(piece, **more) for piece in pieces]
    return [*shown, filtered.flush()], filtered.found


@settings(max_examples=300)
@given(LETTERS, STOPS)
@example("aab", ["ab"])
@example("abab", ["abaa", "b"])
def test_wherever_the_text_is_cut(text, stops):
    """Character by character, whole, or in two parts: what is shown is the text before the first stop."""
    whole, _ = run(stops, [text])
    assert "".join(whole) == cut(text, stops)[0]
    for place in range(len(text) + 1):
        shown, found = run(stops, [text[:place], text[place:]])
        assert ("".join(shown), found is None) == (cut(text, stops)[0], cut(text, stops)[1] is None) or overlaps(
            text, stops
        )
    letters, _ = run(stops, list(text))
    assert cut(text, stops)[0].startswith("".join(letters)) or overlaps(text, stops)


def overlaps(text, stops):
    """Whether a stop string that ends sooner begins later than another: the sooner end is seen first."""
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    return len(ends) > 1 and ends != sorted(ends, key=lambda pair: pair[1])


@given(LETTERS, STOPS)
def test_nothing_is_ever_taken_back(text, stops):
    """What was shown at any time is the beginning of the text before the stop, and no stop string is in it."""
    filtered = StopFilter(EOSTracker(eos_stop_strings=stops))
    shown = ""
    for letter in text:
        shown += filtered.feed(letter)
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


@given(LETTERS, STOPS)
def test_what_may_not_stop_yet_is_ordinary_text(text, stops):
    """Everything is shown, in order and once."""
    shown, found = run(stops, list(text), may_stop=False)
    assert "".join(shown) == text
    assert found is None


def test_a_stop_counts_from_when_it_may():
    """A stop string that began too early and ends in time does; nothing behind it is shown."""
    filtered = StopFilter(EOSTracker(eos_stop_strings=["END"]))
    assert filtered.feed("xENDE", may_stop=False) == "xEND"
    assert filtered.feed("ND and more") == ""
    assert filtered.found == "END"
    assert filtered.feed("more") + filtered.flush() == ""


def test_without_stop_strings_text_passes():
    """At once and as it is."""
    filtered = StopFilter(EOSTracker())
    assert filtered.feed("text") == "text"
    assert filtered.flush() == ""
