"""What was read of a stream: it is told in time and seldom, and what is kept of it has a bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensoryard.client.reading import ALL, Reading


def with_outputs(count, *, parts=8, size_bytes=1000, each=1):
    reading = Reading(parts=parts, size_bytes=size_bytes)
    for _ in range(count):
        reading.add(each)
    return reading


def test_half_a_window_is_told():
    """Of 8 outputs every fourth that is read makes a message."""
    reading, told = with_outputs(8), []
    for position in range(1, 9):
        reading.read_to(position)
        told.append(reading.tell())
    assert told == [None, None, None, 4, None, None, None, 8]


def test_half_a_window_in_bytes_is_told():
    """Of 1,000 bytes every 500."""
    reading, told = with_outputs(4, each=250), []
    for position in range(1, 5):
        reading.read_to(position)
        told.append(reading.tell())
    assert told == [None, 2, None, 4]


def test_what_is_not_worth_a_message_yet_can_be_told_too():
    """Once; what was told is not told again."""
    reading = with_outputs(3)
    reading.read_to(1)
    assert reading.tell() is None
    assert reading.tell(all_of_it=True) == 1
    assert reading.tell(all_of_it=True) is None


def test_a_collected_answer_is_told_once_and_only_when_it_is_a_stream():
    """Before its first output nothing is known to be one."""
    reading = with_outputs(0)
    reading.collecting = True
    assert reading.tell() is None
    assert reading.consumed == ALL
    reading.add(1)
    assert [reading.tell(), reading.tell(), reading.tell(all_of_it=True)] == [ALL, None, None]


def test_what_was_read_is_kept_up_to_the_bound():
    """8 read outputs stay; the ninth lets the first go, and the last of all stays whatever it weighs."""
    reading = with_outputs(10)
    reading.read_to(8)
    assert reading.drop() == 0
    reading.read_to(9)
    assert (reading.drop(), reading.dropped) == (1, 1)
    heavy = with_outputs(2, each=5000)
    heavy.read_to(2)
    assert (heavy.drop(), heavy.dropped) == (1, 1)


def test_nothing_is_dropped_that_was_not_read_or_is_collected():
    """Only reading makes room, and whoever wants the whole gets the whole."""
    assert with_outputs(100).drop() == 0
    reading = with_outputs(100)
    reading.collecting = True
    reading.read_to(100)
    assert reading.drop() == 0


@given(st.integers(1, 6), st.integers(1, 30), st.lists(st.integers(0, 12), max_size=60))
def test_a_reader_who_keeps_up_is_never_waited_for(parts, size_bytes, sizes):
    """Against a worker that holds to the window exactly: when all that came is read, more may come."""
    reading, told, sent = Reading(parts=parts, size_bytes=size_bytes), 0, []
    for size in sizes:
        unread = sent[told:]
        assert not unread or (len(unread) < parts and sum(unread) < size_bytes), "stuck"
        sent.append(size)
        reading.add(size)
        reading.read_to(len(sent))
        told = reading.tell() or told
        reading.drop()
        assert len(reading._sizes) <= parts + 1


def test_a_stride_is_a_small_part_of_the_window():
    """So that an iterator may take several outputs at once, and its reader is never far behind what is told."""
    assert [Reading(parts=parts).stride for parts in (1, 16, 31, 32, 256)] == [1, 1, 1, 2, 16]
