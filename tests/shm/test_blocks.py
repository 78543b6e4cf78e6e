"""The pool's books alone: every block is free exactly when nobody holds it, claims it or is about to."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensoryard.shm.blocks import Block, BlockTable


def block(generation, **counts):
    return Block(segment=None, index=0, generation=generation, since=0.0, **counts)


@pytest.fixture
def table():
    """A table with one block, generation 1, held once."""
    made = BlockTable()
    made.add(block(1))
    return made


def free(table):
    """The generations that have become free, removed as the pool does."""
    found = table.take_free()
    for each in found:
        table.remove(each)
    return [each.generation for each in found]


def test_a_block_is_free_when_its_last_holder_lets_go(table):
    """Two holds need two releases; what is gone can be let go of again without harm."""
    table.hold(1)
    table.unhold(1)
    assert free(table) == []
    table.unhold(1)
    assert free(table) == [1]
    table.unhold(1)
    assert free(table) == []


def test_a_published_block_waits_for_its_claim(table):
    """A block that left without holders stays until it was claimed and released."""
    table.publish(1, deadline=10.0)
    table.unhold(1)
    assert free(table) == []
    table.claim(1, reader=7)
    assert free(table) == []
    table.release(1, reader=7)
    assert free(table) == [1]


def test_each_claim_needs_its_release(table):
    """Two claims of one reader end with two releases, not with one."""
    table.claim(1, reader=7)
    table.claim(1, reader=7)
    table.unhold(1)
    table.release(1, reader=7)
    assert free(table) == []
    table.release(1, reader=7)
    assert free(table) == [1]


def test_a_reader_cannot_end_what_it_has_not_begun(table):
    """A release without a claim, or by another reader, changes nothing."""
    table.publish(1, deadline=10.0)
    table.claim(1, reader=7)
    table.unhold(1)
    table.release(1, reader=8)
    table.release(2, reader=7)
    assert free(table) == []
    assert table.used[1].claims == {7: 1}


def test_a_reader_that_is_gone_claims_nothing(table):
    """All claims of a dead reader end at once, those of others stay."""
    table.add(block(2))
    for generation in (1, 2):
        table.unhold(generation)
        table.claim(generation, reader=7)
    table.claim(2, reader=8)
    table.forget_reader(7)
    assert free(table) == [1]
    table.forget_reader(8)
    assert free(table) == [2]


def test_nobody_waits_for_a_claim_for_ever(table):
    """At its deadline, and not before, a published block is given up."""
    table.publish(1, deadline=10.0)
    table.unhold(1)
    table.expire(at=9.9)
    assert free(table) == []
    table.expire(at=10.0)
    assert free(table) == [1]


def test_a_handle_taken_back_counts_once(table):
    """Of two handles on their way, taking one back leaves the other; one too many changes nothing."""
    table.publish(1, deadline=10.0)
    table.publish(1, deadline=10.0)
    table.unhold(1)
    table.unpublish(1)
    assert free(table) == []
    table.unpublish(1)
    assert free(table) == [1]
    table.unpublish(1)
    assert free(table) == []


def test_holding_or_publishing_what_is_gone_is_a_key_error(table):
    """A block that is not in use can be neither held nor published."""
    for act in (lambda: table.hold(2), lambda: table.publish(2, 1.0)):
        with pytest.raises(KeyError):
            act()


@pytest.mark.parametrize(
    "broken",
    [
        {"holds": -1},
        {"holds": 0},
        {"claims": {7: 0}},
    ],
    ids=str,
)
def test_broken_books_are_noticed(table, broken):
    """Over-released, free but unnoticed, and empty claims fail the invariants."""
    table.check_invariants()
    table.add(block(2, **broken))
    with pytest.raises(AssertionError):
        table.check_invariants()


def test_a_misfiled_block_is_noticed(table):
    """A block under another's generation, or one that waits to be freed and is gone, fails the invariants."""
    table.used[5] = table.used[1]
    with pytest.raises(AssertionError):
        table.check_invariants()
    del table.used[5]
    table.unhold(1)
    del table.used[1]
    with pytest.raises(AssertionError):
        table.check_invariants()


class Books(RuleBasedStateMachine):
    """A table beside plain counters, told everything that can happen in any order, true or not."""

    def __init__(self):
        super().__init__()
        self.table = BlockTable()
        self.now = 0
        self.next = 1
        self.model = {}

    some = st.integers(0, 12)
    readers = st.integers(1, 3)

    def pick(self, n):
        """A generation in use, or now and then one that is not."""
        return sorted(self.model)[n % len(self.model)] if self.model and n else n + self.next

    @rule()
    def add(self):
        self.table.add(block(self.next))
        self.model[self.next] = {"holds": 1, "pending": 0, "due": 0, "claims": {}}
        self.next += 1

    @rule(n=some)
    def hold(self, n):
        generation = self.pick(n)
        if generation in self.model:
            self.table.hold(generation)
            self.model[generation]["holds"] += 1

    @rule(n=some)
    def unhold(self, n):
        generation = self.pick(n)
        entry = self.model.get(generation)
        if entry is None or entry["holds"]:
            self.table.unhold(generation)
            if entry:
                entry["holds"] -= 1

    @rule(n=some, after=st.integers(0, 5))
    def publish(self, n, after):
        generation = self.pick(n)
        if generation in self.model:
            self.table.publish(generation, self.now + after)
            self.model[generation]["pending"] += 1
            self.model[generation]["due"] = self.now + after

    @rule(n=some)
    def unpublish(self, n):
        generation = self.pick(n)
        self.table.unpublish(generation)
        if entry := self.model.get(generation):
            entry["pending"] = max(entry["pending"] - 1, 0)

    @rule(n=some, reader=readers)
    def claim(self, n, reader):
        generation = self.pick(n)
        self.table.claim(generation, reader)
        if entry := self.model.get(generation):
            entry["claims"][reader] = entry["claims"].get(reader, 0) + 1
            entry["pending"] = max(entry["pending"] - 1, 0)

    @rule(n=some, reader=readers)
    def release(self, n, reader):
        generation = self.pick(n)
        self.table.release(generation, reader)
        if entry := self.model.get(generation):
            entry["claims"][reader] = max(entry["claims"].get(reader, 0) - 1, 0)

    @rule(reader=readers)
    def forget(self, reader):
        self.table.forget_reader(reader)
        for entry in self.model.values():
            entry["claims"][reader] = 0

    @rule(later=st.integers(0, 3))
    def expire(self, later):
        self.now += later
        self.table.expire(self.now)
        for entry in self.model.values():
            if entry["due"] <= self.now:
                entry["pending"] = 0

    @rule(keep=st.booleans())
    def free(self, keep):
        """The pool removes what is free, unless a claim that it sees only now keeps it."""
        found = self.table.take_free()
        expected = {g for g, e in self.model.items() if not (e["holds"] or e["pending"] or sum(e["claims"].values()))}
        assert {each.generation for each in found} == expected
        for each in found:
            if keep:
                self.claim_of(each.generation)
            else:
                self.table.remove(each)
                del self.model[each.generation]

    def claim_of(self, generation):
        self.table.claim(generation, 1)
        self.model[generation]["claims"][1] = self.model[generation]["claims"].get(1, 0) + 1

    @invariant()
    def the_books_are_the_model(self):
        self.table.check_invariants()
        assert {g: (b.holds, b.pending, b.claims) for g, b in self.table.used.items()} == {
            g: (e["holds"], e["pending"], {r: n for r, n in e["claims"].items() if n}) for g, e in self.model.items()
        }

    def teardown(self):
        self.table.clear()
        self.table.check_invariants()
        assert not self.table.used
        assert not self.table.take_free()


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBooks.__doc__ = "Whatever happens in whatever order, a block is free exactly when nobody needs it."
