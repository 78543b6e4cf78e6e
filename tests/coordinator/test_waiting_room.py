"""Requests that wait for a new coordinator to know its cluster."""

from __future__ import annotations

import msgspec
import pytest

from tensoryard.coordinator.waiting_room import MAX_LETTERS, WaitingRoom
from tensoryard.errors import Overloaded
from tensoryard.proto import wire


def _submit(name: str, deadline_s: float | None = None) -> wire.Submit:
    return wire.Submit(request_id=name, task="pixel_generation", model="m", deadline_s=deadline_s)


def _names(room: WaitingRoom, at: float = 0.0) -> list[str]:
    return [letter.message.request_id for letter in room.empty(at)]


@pytest.fixture
def room() -> WaitingRoom:
    return WaitingRoom(open_at=10.0, max_bytes=10)


def test_letters_come_out_once_in_the_order_they_came(room) -> None:
    """Whoever waits is taken up in order, with the very frames that came, and only once."""
    letters = [(b"a", _submit("1"), [b"x"]), (b"b", _submit("1"), []), (b"a", _submit("2"), [b"yy"])]
    for letter in letters:
        room.add(*letter, 0.0)
    assert [(letter.identity, letter.message, letter.body) for letter in room.empty(1.0)] == letters
    assert (room.empty(1.0), len(room)) == ([], 0)


def test_bytes_are_bounded(room) -> None:
    """A request for whose bytes there is no room is refused by name, and those that wait are unharmed."""
    room.add(b"a", _submit("1"), [b"12345678"], 0.0)
    with pytest.raises(Overloaded, match="1 requests wait") as caught:
        room.add(b"a", _submit("2"), [b"123"], 0.0)
    assert (caught.value.request_id, caught.value.retry_after_s) == ("2", 1.0)
    assert _names(room) == ["1"]
    room.add(b"a", _submit("3"), [b"1234567890"], 0.0)


def test_requests_are_bounded(room) -> None:
    """So is their number, however small they are."""
    for number in range(MAX_LETTERS):
        room.add(b"a", _submit(f"{number}"), [], 0.0)
    with pytest.raises(Overloaded):
        room.add(b"a", _submit("one more"), [], 0.0)


def test_one_client_does_not_take_all_the_room() -> None:
    """Each has its own bound; the others are not affected."""
    room = WaitingRoom(open_at=10.0, max_bytes=10, max_per_client=2)
    for name in "12":
        room.add(b"a", _submit(name), [], 0.0)
    with pytest.raises(Overloaded):
        room.add(b"a", _submit("3"), [], 0.0)
    room.add(b"b", _submit("3"), [], 0.0)
    room.cancel(b"a", "1")
    room.add(b"a", _submit("3"), [], 0.0)


def test_the_same_again_changes_nothing(room) -> None:
    """A request that waits already is not refused for want of room, and comes out once; another client's is another."""
    for _ in range(2):
        room.add(b"a", _submit("1"), [b"1234567890"], 0.0)
    with pytest.raises(Overloaded):
        room.add(b"b", _submit("1"), [b"x"], 0.0)
    assert _names(room) == ["1"]


def test_another_of_the_same_name_takes_its_place(room) -> None:
    """A client that has given a request up may ask for another by its name; one that cannot tell asks for the same."""
    room.add(b"a", _submit("1"), [b"1234567890"], 0.0)
    for submission, body in [(7, b"unheeded"), (7, b"this too")]:
        room.add(b"a", msgspec.structs.replace(_submit("1"), submission=submission), [body], 0.0)
    assert [letter.body for letter in room.empty(0.0)] == [[b"1234567890"]]
    for submission in (7, 8, 8, 9):
        room.add(b"a", msgspec.structs.replace(_submit("1"), submission=submission), [b"of %d" % submission], 0.0)
    assert [letter.body for letter in room.empty(0.0)] == [[b"of 9"]]


def test_what_is_cancelled_makes_room(room) -> None:
    """A cancel ends its client's request, once; nobody else's."""
    room.add(b"a", _submit("1"), [b"1234567890"], 0.0)
    cancelled = [room.cancel(b"b", "1"), room.cancel(b"a", "2"), room.cancel(b"a", "1"), room.cancel(b"a", "1")]
    assert [letter is not None for letter in cancelled] == [False, False, True, False]
    room.add(b"b", _submit("2"), [b"1234567890"], 0.0)
    assert _names(room) == ["2"]


def test_whoever_leaves_makes_room(room) -> None:
    """All requests of a client go with it, and no other's."""
    for client, name in [(b"a", "1"), (b"b", "1"), (b"a", "2")]:
        room.add(client, _submit(name, 1.0), [b"xxx"], 0.0)
    room.leave(b"a")
    room.leave(b"nobody")
    assert [(letter.identity, letter.message.request_id) for letter in room.empty(0.0)] == [(b"b", "1")]
    assert room._by_client == {}


def test_waiting_counts_against_the_deadline(room) -> None:
    """What comes out has less time left by as long as it waited; without a deadline it is as it was."""
    for name, deadline_s in [("1", 5.0), ("2", None), ("3", 2.0)]:
        room.add(b"a", _submit(name, deadline_s), [], 1.0)
    assert [letter.message.deadline_s for letter in room.empty(3.5)] == [2.5, None, 0.0]


def test_deadlines_pass_while_it_waits(room) -> None:
    """`expired` gives each request whose time is up, once; `next_deadline` says when to look, or when to open."""
    assert room.next_deadline() == 10.0
    for name, deadline_s in [("late", 50.0), ("second", 5.0), ("first", 2.0), ("cancelled", 1.0)]:
        room.add(b"a", _submit(name, deadline_s), [], 1.0)
    room.cancel(b"a", "cancelled")
    assert room.next_deadline() == 3.0
    assert room.expired(2.9) == []
    assert [letter.message.request_id for letter in room.expired(6.0)] == ["first", "second"]
    assert (room.expired(6.0), room.next_deadline()) == ([], 10.0)
    assert _names(room) == ["late"]
