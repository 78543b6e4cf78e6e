"""The lease table: how a reader tells a pool, by one store and no message, that it reads or has finished a block.

Each reader has a table of its own, made by the owner (`server.py`) and mapped writable by both. A slot is one 8-byte
word, `generation << 2 | state`. The reader writes a slot that is free (to CLAIMED) or claimed (to RELEASED); the owner
writes only released slots (to 0), so no slot ever has two writers at once. Word 0 is the owner's: not 0 while somebody
waits for memory.
"""

from __future__ import annotations

import os
import threading
from collections import deque

import numpy as np
import numpy.typing as npt

from .blocks import BlockTable
from .mapping import Mapping

#: Slots per reader: live views one process may hold of one other process's memory. Beyond, results are copied out.
SLOTS = 4095
TABLE_BYTES = (SLOTS + 1) * 8
CLAIMED = 1
RELEASED = 2

#: Where a locked instruction is a full barrier.
_IS_X86 = os.uname().machine in {"x86_64", "i686"}


def fence() -> None:
    """Make the stores before this visible before the loads after it; safe in finalizers.

    Taking a lock that nobody else can hold is an atomic read-modify-write; a shared lock that is held just now would
    be read only, which orders nothing. On x86 that is a full barrier; elsewhere a yield is, in the kernel's scheduler.
    """
    if _IS_X86:
        threading.Lock().acquire()
    else:
        os.sched_yield()


class HeldLeases:
    """The reader's side of a table."""

    def __init__(self, mapping: Mapping) -> None:
        self._words: npt.NDArray[np.uint64] = mapping.words(mapping.size_bytes // 8)
        self._free: deque[int] = deque(range(1, len(self._words)))
        #: Slots released by us and not yet cleared by the owner.
        self._released: deque[int] = deque()

    def claim(self, generation: int) -> int | None:
        """Enter a claim and return its slot; None when no slot is free. The caller then checks the generation."""
        slot = self._take_slot()
        if slot is not None:
            self._words[slot] = generation << 2 | CLAIMED
            fence()
        return slot

    def _take_slot(self) -> int | None:
        slot = _pop(self._free)
        if slot is not None:
            return slot
        for _ in range(len(self._released)):
            slot = _pop(self._released)
            if slot is None:
                break
            (self._released if self._words[slot] else self._free).append(slot)
        return _pop(self._free)

    def release(self, slot: int, generation: int) -> bool:
        """End a claim; safe in a finalizer. True when the owner waits for memory and wants a WAKE."""
        self._words[slot] = generation << 2 | RELEASED
        self._released.append(slot)
        fence()
        return bool(self._words[0])


def _pop(slots: deque[int]) -> int | None:
    """The first, if there is one; another thread may have been faster."""
    try:
        return slots.popleft()
    except IndexError:
        return None


class GrantedLeases:
    """The owner's side of a table: sees what changed since it last looked."""

    def __init__(self, mapping: Mapping) -> None:
        self._words: npt.NDArray[np.uint64] = mapping.words(mapping.size_bytes // 8)
        self._seen = self._words.copy()
        #: The same as bytes: whether anything changed at all is asked twice for each array that is placed.
        self._seen_bytes = self._seen.tobytes()

    def set_waiting(self, waiting: bool) -> None:
        """Ask the reader for a WAKE at its next release, or no longer."""
        self._words[0] = int(waiting)
        self._seen[0] = int(waiting)
        self._seen_bytes = self._seen.tobytes()

    def enter_changes(self, blocks: BlockTable, reader: int) -> None:
        """Enter what changed since the last call in the pool's books, under its lock; clear the released slots."""
        if self._words.tobytes() == self._seen_bytes:
            return
        for slot in np.flatnonzero(self._words != self._seen).tolist():
            if slot:
                self._enter(slot, int(self._words[slot]), blocks, reader)
        self._seen_bytes = self._seen.tobytes()

    def _enter(self, slot: int, word: int, blocks: BlockTable, reader: int) -> None:
        """One slot; a claim begun and ended between two looks is entered too, so that it uses up its handle."""
        seen, claim = int(self._seen[slot]), word & ~3 | CLAIMED
        if seen not in {0, claim}:  # never by our `HeldLeases`, which leaves a slot alone until it is cleared
            blocks.release(seen >> 2, reader)
        if word & 3 and seen != claim:
            blocks.claim(word >> 2, reader)
        if word & RELEASED:
            blocks.release(word >> 2, reader)
            self._words[slot] = word = 0
        self._seen[slot] = word
