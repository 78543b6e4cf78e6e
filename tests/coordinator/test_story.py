"""Stories: what is kept of each request, and how much at most."""

from __future__ import annotations

from tensoryard.coordinator.story import MAX_CHARS, MAX_ENDED, MAX_LINES, Stories, told, write


def test_a_story_counts_from_its_first_line():
    """Lines come oldest first, with the seconds since the first."""
    lines = []
    write(lines, 100.0, "accepted")
    write(lines, 100.25, "sent to w")
    assert told(lines) == ("+0.000s accepted", "+0.250s sent to w")


def test_unknown_requests_have_no_story():
    """Of a request never seen nothing is told."""
    assert told(Stories().of("r")) == ()


def test_a_story_outlives_its_request():
    """That of an ended request can still be told."""
    stories = Stories()
    stories.keep("r", [(0.0, "accepted")])
    assert stories.of("r") == [(0.0, "accepted")]


def test_a_second_life_has_its_own_story():
    """A RequestID used again keeps the story of its last life."""
    stories = Stories()
    stories.keep("r", [(0.0, "first")])
    stories.keep("r", [(5.0, "second")])
    assert told(stories.of("r")) == ("+0.000s second",)


def test_a_long_story_keeps_its_beginning_and_its_end():
    """Beyond MAX_LINES the middle is dropped."""
    lines = []
    for number in range(10 * MAX_LINES):
        write(lines, 0.0, str(number))
    numbers = [int(text) for _, text in lines]
    assert len(numbers) == MAX_LINES
    assert numbers == sorted(numbers)
    assert numbers[:10] == list(range(10))
    assert numbers[-10:] == list(range(10 * MAX_LINES - 10, 10 * MAX_LINES))


def test_a_long_line_is_cut():
    """A line has at most MAX_CHARS characters, whatever a worker says."""
    lines = []
    write(lines, 0.0, "x" * 1_000_000)
    assert told(lines) == ("+0.000s " + "x" * MAX_CHARS,)


def test_old_stories_are_forgotten():
    """The last MAX_ENDED ended requests can be asked for, in the order in which they ended."""
    stories = Stories()
    for number in range(MAX_ENDED + 10):
        stories.keep(f"r{number}", [(0.0, "accepted")])
    assert not stories.of("r9")
    assert stories.of("r10")
    assert len(stories._ended) == MAX_ENDED


def test_ending_again_counts_as_new():
    """A RequestID whose second life ended lately is kept longer than those that ended before."""
    stories = Stories()
    for name in ["again", *(f"r{number}" for number in range(MAX_ENDED - 1)), "again", "last"]:
        stories.keep(name, [(0.0, name)])
    assert stories.of("again")
    assert not stories.of("r0")
