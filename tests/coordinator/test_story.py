"""`Stories`: what is kept of each request, and how much at most."""

from __future__ import annotations

from tensoryard.coordinator.story import MAX_CHARS, MAX_ENDED, MAX_LINES, Stories


def test_a_story_counts_from_its_first_line():
    """Lines come oldest first, with the seconds since the first."""
    stories = Stories()
    stories.add("r", 100.0, "accepted")
    stories.add("r", 100.25, "sent to w")
    assert stories.tell("r") == ("+0.000s accepted", "+0.250s sent to w")


def test_unknown_requests_have_no_story():
    """Of a request never seen nothing is told, and ending it changes nothing."""
    stories = Stories()
    stories.end("r")
    assert stories.tell("r") == ()
    assert len(stories) == 0


def test_a_story_outlives_its_request():
    """An ended request is not live any more, and its story can still be told."""
    stories = Stories()
    stories.add("r", 0.0, "accepted")
    assert len(stories) == 1
    stories.end("r")
    assert len(stories) == 0
    assert stories.tell("r") == ("+0.000s accepted",)


def test_a_second_life_has_its_own_story():
    """A RequestID used again tells its new story, and keeps that one when it ends."""
    stories = Stories()
    stories.add("r", 0.0, "first")
    stories.end("r")
    stories.add("r", 5.0, "second")
    assert stories.tell("r") == ("+0.000s second",)
    stories.end("r")
    assert stories.tell("r") == ("+0.000s second",)


def test_a_long_story_keeps_its_beginning_and_its_end():
    """Beyond MAX_LINES the middle is dropped."""
    stories = Stories()
    for number in range(10 * MAX_LINES):
        stories.add("r", 0.0, str(number))
    numbers = [int(line.split()[1]) for line in stories.tell("r")]
    assert len(numbers) == MAX_LINES
    assert numbers == sorted(numbers)
    assert numbers[:10] == list(range(10))
    assert numbers[-10:] == list(range(10 * MAX_LINES - 10, 10 * MAX_LINES))


def test_a_long_line_is_cut():
    """A line has at most MAX_CHARS characters, whatever a worker says."""
    stories = Stories()
    stories.add("r", 0.0, "x" * 1_000_000)
    assert stories.tell("r") == ("+0.000s " + "x" * MAX_CHARS,)


def test_old_stories_are_forgotten():
    """The last MAX_ENDED ended requests can be asked for, in the order in which they ended."""
    stories = Stories()
    for number in range(MAX_ENDED + 10):
        stories.add(f"r{number}", 0.0, "accepted")
        stories.end(f"r{number}")
    assert stories.tell("r9") == ()
    assert stories.tell("r10") == ("+0.000s accepted",)
    assert len(stories._ended) == MAX_ENDED


def test_ending_again_counts_as_new():
    """A RequestID whose second life ended lately is kept longer than those that ended before."""
    stories = Stories()
    for name in ["again", *(f"r{number}" for number in range(MAX_ENDED - 1)), "again", "last"]:
        stories.add(name, 0.0, name)
        stories.end(name)
    assert stories.tell("again")
    assert not stories.tell("r0")
