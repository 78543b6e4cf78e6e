"""Lease tables: what a reader writes is what the owner reads, whatever either does in between."""

import os
import random
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.shm import leases
from tensoryard.shm.blocks import Block, BlockTable
from tensoryard.shm.leases import CLAIMED, RELEASED, SLOTS, TABLE_BYTES, GrantedLeases, HeldLeases, fence
from tensoryard.shm.mapping import PAGE_BYTES
from tensoryard.shm.os_memory import attach, create_table

READER = 7


class Both:
    """One table, seen by its reader and by its owner, with books of blocks that hold nothing but claims."""

    def __init__(self, size_bytes=TABLE_BYTES, generations=()):
        fd, owner = create_table(size_bytes)
        self.held = HeldLeases(attach(fd, writable=True))
        os.close(fd)
        self.granted = GrantedLeases(owner)
        self.words = owner.words(size_bytes // 8)
        self.books = BlockTable()
        for generation in generations:
            self.books.add(Block(segment=None, index=0, generation=generation, since=0.0))

    def look(self):
        """What the owner knows to be claimed, by generation."""
        self.granted.enter_changes(self.books, READER)
        self.books.check_invariants()
        return {g: block.claims[READER] for g, block in self.books.used.items() if READER in block.claims}


def test_a_claim_and_its_release_are_seen_in_turn():
    """The owner sees a claim while it lasts, and its slot is used again."""
    both = Both(generations=[1])
    slot = both.held.claim(1)
    assert both.look() == {1: 1}
    assert both.look() == {1: 1}
    both.held.release(slot, 1)
    assert both.look() == {}
    assert not both.words.any()


def test_a_claim_that_came_and_went_unseen_uses_up_its_handle():
    """A claim that was released before the owner looked counts as one reader that came."""
    both = Both(generations=[1])
    both.books.publish(1, 10.0)
    both.held.release(both.held.claim(1), 1)
    assert both.look() == {}
    assert both.books.used[1].pending == 0


def test_a_second_claim_that_came_and_went_unseen_leaves_the_first():
    """While one claim lasts, another of the same block that begins and ends between two looks does not end it."""
    both = Both(generations=[1])
    slot = both.held.claim(1)
    assert both.look() == {1: 1}
    both.held.release(both.held.claim(1), 1)
    assert both.look() == {1: 1}
    both.held.release(slot, 1)
    assert both.look() == {}


def test_every_slot_can_be_used_and_then_none():
    """A table has 4095 slots; beyond, there is none until the owner has seen a release."""
    both = Both(generations=range(1, SLOTS + 2))
    slots = [both.held.claim(generation) for generation in range(1, SLOTS + 1)]
    assert sorted(slots) == list(range(1, 4096))
    assert both.held.claim(SLOTS + 1) is None
    assert len(both.look()) == SLOTS
    both.held.release(slots[9], 10)
    assert both.held.claim(SLOTS + 1) is None
    both.look()
    assert both.held.claim(SLOTS + 1) == slots[9]


def test_a_release_asks_for_a_wake_only_while_somebody_waits():
    """The owner's first word tells a reader at its release whether a WAKE is wanted, and is never taken for a claim."""
    both = Both(generations=[1])
    assert both.held.release(both.held.claim(1), 1) is False
    both.granted.set_waiting(True)
    assert both.held.release(both.held.claim(1), 1) is True
    assert both.look() == {}
    both.granted.set_waiting(False)
    assert both.held.release(both.held.claim(1), 1) is False


def test_the_largest_generation_fits_a_slot():
    """Generations up to 2^62 - 1 are written and read whole."""
    last = (1 << 62) - 1
    both = Both(generations=[last])
    slot = both.held.claim(last)
    assert both.look() == {last: 1}
    both.held.release(slot, last)
    assert both.look() == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=60))
def test_books_agree_with_the_views_that_live(acts):
    """After any claims, releases and looks, a look finds exactly the claims that last."""
    both = Both(PAGE_BYTES, generations=range(1, 7))
    live = []
    for act, number in acts:
        if act <= 1:
            live.append((both.held.claim(number), number))
        elif act == 2 and live:
            both.held.release(*live.pop(number % len(live)))
        elif act == 3:
            both.look()
    count = {number: sum(each == number for _, each in live) for number in range(1, 7)}
    assert both.look() == {number: n for number, n in count.items() if n}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 511), st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1))), max_size=40))
def test_a_reader_that_writes_nonsense_harms_only_itself(writes):
    """Whatever words a reader writes, the owner reads on, and another reader's claims stay."""
    both = Both(PAGE_BYTES, generations=range(1, 9))
    for generation in range(1, 9):
        both.books.claim(generation, 99)
    for slot, word in writes:
        both.words[slot] = word
        both.look()
    assert all(block.claims[99] == 1 for block in both.books.used.values())
    both.books.forget_reader(READER)
    assert both.books.take_free() == []
    both.words[1:] = 0
    assert both.look() == {}


@pytest.mark.parametrize(
    ("word", "claims"),
    [
        (2 << 2 | CLAIMED, {2: 1}),
        (2 << 2 | RELEASED, {}),
        (0, {}),
        (1 << 2 | 3, {}),
    ],
)
def test_a_slot_written_over_ends_its_claim(word, claims):
    """A slot that says something else than the claim seen in it has ended that claim."""
    both = Both(PAGE_BYTES, generations=[1, 2])
    slot = both.held.claim(1)
    both.look()
    both.words[slot] = word
    assert both.look() == claims


def test_threads_never_share_a_slot():
    """Threads that claim and release at once, in a table that runs full, get slots of their own and no error."""
    both = Both(PAGE_BYTES, generations=range(1, 5))
    taken, errors = set(), []
    lock = threading.Lock()

    def work(generation):
        chance = random.Random(generation)
        mine = []
        try:
            for _ in range(4000):
                if chance.random() < 0.6 and (slot := both.held.claim(generation)) is not None:
                    with lock:
                        assert slot not in taken
                        taken.add(slot)
                    mine.append(slot)
                elif mine:
                    slot = mine.pop(chance.randrange(len(mine)))
                    with lock:
                        taken.remove(slot)
                    both.held.release(slot, generation)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(generation,)) for generation in range(1, 5)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            both.look()
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(30)
    assert errors == []
    assert sum(both.look().values()) == len(taken)


def test_a_fence_can_be_taken_anywhere(monkeypatch):
    """A fence neither blocks nor fails, on machines with strong and with weak memory order."""
    for is_x86 in (True, False):
        monkeypatch.setattr(leases, "_IS_X86", is_x86)
        fence()
