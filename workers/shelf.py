"""What a porter keeps, for whom and for how long: a pure machine.

`porter.py` has two of them: for arrays of this host that are lent to others, and for arrays of others that have landed
here. It knows no memory, socket, thread, Ray or clock; times, `at`, are monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


class Turn(Enum):
    """What whoever asks for something is to do."""

    #: It is not there, and nobody brings it yet: bring it, then say `arrived` or `failed`.
    BRING = "bring"
    #: Somebody brings it: wait for that.
    WAIT = "wait"
    #: It is there.
    TAKE = "take"


@dataclass(slots=True, eq=False)
class Item:
    """One thing on the shelf."""

    size_bytes: int
    #: Others may ask for it later; else it goes with its last user.
    shared: bool
    #: When it was last asked for or given back.
    at: float
    #: Those who have asked for it and are not `done`.
    users: int = 0
    there: bool = False
    #: A user of it died, and may ask again.
    lost: bool = False


class Shelf:
    """Things by key, each brought once however many ask for it.

    What nobody uses is kept for `keep_s`, and no more than `budget_bytes` of it, the one used last the longest; who
    does not say `done` within `hold_s` is forgotten: it died. Things that somebody uses or brings are never dropped
    before that.
    """

    def __init__(self, *, budget_bytes: int, keep_s: float, hold_s: float) -> None:
        self._budget_bytes = budget_bytes
        self._keep_s = keep_s
        self._hold_s = hold_s
        #: By key; the one asked for or given back longest ago is first.
        self._items: OrderedDict[Hashable, Item] = OrderedDict()
        #: Keys of what has been taken off, to be let go of.
        self._dropped: list[Hashable] = []
        #: Bytes of what is there.
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def ask(self, key: Hashable, size_bytes: int, *, shared: bool, at: float) -> Turn:
        """Somebody wants it, and uses it until `done`."""
        item = self._items.get(key)
        turn = Turn.BRING if item is None else Turn.TAKE if item.there else Turn.WAIT
        if item is None:
            item = self._items[key] = Item(size_bytes, shared, at)
        item.users += 1
        item.lost = False
        self._touch(key, item, at)
        return turn

    def arrived(self, key: Hashable, at: float) -> None:
        """Whoever brought it has put it here."""
        item = self._items[key]
        item.there = True
        self.size_bytes += item.size_bytes
        self._touch(key, item, at)
        self._make_room()

    def failed(self, key: Hashable) -> None:
        """It cannot be brought; those who wait for it are told elsewhere, and are no users any more."""
        del self._items[key]

    def done(self, key: Hashable, at: float) -> None:
        """One user less. Late words, of what is gone or came anew, mean nothing: who brings it stays."""
        item = self._items.get(key)
        if item is None or item.users <= (not item.there):
            return
        item.users -= 1
        self._touch(key, item, at)
        if not item.users and item.there and not (item.shared or item.lost):
            self._drop(key)
        self._make_room()

    def lost(self, key: Hashable, at: float) -> None:
        """One user less, which died: it is kept for a while, since whoever comes in its place asks again."""
        item = self._items.get(key)
        if item is not None:
            item.lost = True
            self.done(key, at)

    def tick(self, at: float) -> None:
        """Time has passed: due about once a second."""
        for key, item in list(self._items.items()):
            if item.at > at - min(self._keep_s, self._hold_s):
                return
            if item.there and at - item.at >= (self._hold_s if item.users else self._keep_s):
                self._drop(key)

    def clear_unused(self) -> None:
        """Room is wanted for something else."""
        for key, item in list(self._items.items()):
            if item.there and not item.users:
                self._drop(key)

    def take_dropped(self) -> list[Hashable]:
        """What is to be let go of, since it was last asked."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _touch(self, key: Hashable, item: Item, at: float) -> None:
        item.at = at
        self._items.move_to_end(key)

    def _make_room(self) -> None:
        """Drop what nobody uses, the oldest first, until all of it fits; what is in use may be more than that."""
        if self.size_bytes <= self._budget_bytes:
            return
        for key, item in list(self._items.items()):
            if item.there and not item.users:
                self._drop(key)
                if self.size_bytes <= self._budget_bytes:
                    return

    def _drop(self, key: Hashable) -> None:
        item = self._items.pop(key)
        self.size_bytes -= item.size_bytes
        self._dropped.append(key)

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance, or something is kept that should not be."""
        there = [item for item in self._items.values() if item.there]
        assert self.size_bytes == sum(item.size_bytes for item in there), "bytes are miscounted"
        assert all(item.users >= 0 for item in self._items.values()), "something has fewer users than none"
        assert all(item.users for item in self._items.values() if not item.there), "something is brought for nobody"
        idle = [item for item in there if not item.users]
        assert all(item.shared or item.lost for item in idle), "what is nobody else's outlives its user"
        assert not idle or self.size_bytes <= self._budget_bytes, "more is kept than may be"
        ages = [item.at for item in self._items.values()]
        assert ages == sorted(ages), "the oldest is not first"
