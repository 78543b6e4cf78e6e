"""Messages that wait for a new coordinator to know its cluster."""

from __future__ import annotations

import pytest

from tensoryard.coordinator.waiting_room import MAX_LETTERS, WaitingRoom
from tensoryard.errors import Overloaded
from tensoryard.proto import wire


def _submit(name: str) -> wire.Submit:
    return wire.Submit(request_id=name, task="pixel_generation", model="m")


def test_letters_come_out_once_in_the_order_they_came() -> None:
    """Whoever waits is taken up in order, and only once."""
    room = WaitingRoom(open_at=1.0, max_bytes=100)
    letters = [(b"a", _submit("1"), [b"x"]), (b"b", wire.Cancel(request_id="1"), []), (b"a", _submit("2"), [b"yy"])]
    for letter in letters:
        room.add(*letter)
    assert room.empty() == letters
    assert room.empty() == []


def test_bytes_are_bounded() -> None:
    """A message for whose bytes there is no room is refused by name, and those that wait are unharmed."""
    room = WaitingRoom(open_at=1.0, max_bytes=10)
    room.add(b"a", _submit("1"), [b"12345678"])
    with pytest.raises(Overloaded, match="1 messages wait") as caught:
        room.add(b"a", _submit("2"), [b"123"])
    assert (caught.value.request_id, caught.value.retry_after_s) == ("2", 1.0)
    assert len(room.empty()) == 1
    room.add(b"a", _submit("3"), [b"1234567890"])


def test_messages_are_bounded() -> None:
    """So is their number, however small they are."""
    room = WaitingRoom(open_at=1.0, max_bytes=10)
    cancel = wire.Cancel(request_id="1")
    for _ in range(MAX_LETTERS):
        room.add(b"a", cancel, [])
    with pytest.raises(Overloaded):
        room.add(b"a", cancel, [])
