"""The window of a stream: so much may be unread, nothing that was read is waited for, one output may always go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.workers.window import Window


def sent(window: Window, count: int, size_bytes: int = 1) -> Window:
    for _ in range(count):
        assert window.is_open
        window.send(size_bytes)
    return window


def test_without_a_number_it_is_always_open():
    """0 parts: an old client, or one that wants everything; nothing is kept for it."""
    window = sent(Window(), 10_000)
    assert window.is_open
    assert not window._unread


@pytest.mark.parametrize(
    ("size_bytes", "count"), [(1, 3), (50, 2), (100, 1), (10_000, 1)], ids=["parts", "bytes", "full", "over"]
)
def test_it_closes_at_its_bound_and_opens_when_one_is_read(size_bytes, count):
    """At 3 outputs, or at 100 bytes of them; one output is let through whatever its size."""
    window = sent(Window(parts=3, size_bytes=100), count, size_bytes)
    assert not window.is_open
    window.consume(1)
    assert window.is_open


def test_an_old_number_changes_nothing():
    """What is read is counted from the first output, so that a repeat or a late word does no harm."""
    window = sent(Window(parts=2, size_bytes=100), 2)
    assert window.consume(2)
    assert not window.consume(2)
    assert not window.consume(1)
    assert window.consumed == 2


def test_a_reader_may_be_ahead_of_a_stream_that_runs_again():
    """What was read of an earlier attempt does not count against this one."""
    window = sent(Window(parts=2, size_bytes=100, consumed=5), 7)
    assert not window.is_open
    window.consume(6)
    assert window.is_open


def test_all_of_it_may_be_read_beforehand():
    """The largest number that the wire knows opens it for good."""
    window = Window(parts=1, size_bytes=1)
    window.consume(1 << 53)
    sent(window, 1000, 1 << 20)


@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(0, 4),
    st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60),
)
def test_any_course_keeps_the_rule(parts, size_bytes, begun, course):
    """After each step the window is open exactly when the rule says so, by plain counting."""
    window, sizes, consumed = Window(parts=parts, size_bytes=size_bytes, consumed=begun), [], begun
    for is_send, number in course:
        if is_send:
            window.send(number)
            sizes.append(number)
        else:
            window.consume(number)
            consumed = max(consumed, number)
        unread = sizes[consumed:]
        assert window.is_open == (not unread or (len(unread) < parts and sum(unread) < size_bytes))
