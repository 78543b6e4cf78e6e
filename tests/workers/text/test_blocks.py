"""The books of cache blocks: nothing is shared that differs, nothing is lost, and what is found was computed."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from tensoryard.workers.text.blocks import BlockManager


def ids(*tokens):
    return np.array(tokens, np.int64)


def compute(manager, key, tokens, salt=""):
    cached = manager.open(key, tokens, salt)
    manager.computed(key, tokens)
    return cached


@pytest.fixture
def manager():
    return BlockManager(blocks=8, block_size=4)


def test_a_prompt_that_begins_alike_shares_blocks(manager):
    """Full blocks are shared, also after their first owner has gone; the rest is its own."""
    first = ids(*range(10))
    assert compute(manager, "a", first) == 0
    manager.close("a")
    assert manager.free == 8
    assert manager.open("b", ids(*range(8), 50, 51)) == 8
    assert manager.open("c", ids(*range(4), 60, 61, 62, 63, 64)) == 4
    assert manager.table("b")[:1] == manager.table("c")[:1]
    assert not set(manager.table("b")[1:]) & set(manager.table("c")[1:])
    manager.check_invariants()


def test_the_last_token_is_always_computed(manager):
    """A prompt that is there as a whole still leaves its last block to be computed: somebody must make the logits."""
    compute(manager, "a", ids(*range(8)))
    assert manager.find(ids(*range(8))) == 1
    assert manager.open("b", ids(*range(8))) == 4


def test_a_salt_keeps_apart(manager):
    """The same tokens under another salt are not found; nor does a block match behind another beginning."""
    compute(manager, "a", ids(*range(8)), salt="one")
    assert manager.find(ids(*range(9)), "one") == 2
    assert manager.find(ids(*range(9)), "two") == 0
    assert manager.find(ids(9, 9, 9, 9, 4, 5, 6, 7, 8), "one") == 0


def test_what_is_not_computed_is_not_found(manager):
    """A block is shared once its keys and values are there, not when it is given out."""
    manager.open("a", ids(*range(9)))
    assert manager.find(ids(*range(9))) == 0
    manager.computed("a", ids(*range(5)))
    assert manager.find(ids(*range(9))) == 1


def test_the_longest_unused_goes_first(manager):
    """Eviction takes what was used longest ago, and of one prompt the end before the beginning."""
    compute(manager, "a", ids(*range(8)))
    compute(manager, "b", ids(*range(100, 108)))
    manager.close("a")
    manager.close("b")
    manager.open("c", ids(*range(200, 220)))
    assert manager.free == 3
    assert manager.find(ids(*range(8), 0)) == 1
    manager.open("d", ids(300, 301))
    assert manager.find(ids(*range(8), 0)) == 0
    assert manager.find(ids(*range(100, 108), 0)) == 2


def test_no_room_changes_nothing(manager):
    """Opening or growing beyond what there is says so and takes no block."""
    assert manager.open("a", ids(*range(33))) is None
    assert manager.open("a", ids(*range(30))) == 0
    assert not manager.grow("a", 33)
    assert manager.grow("a", 32)
    assert manager.open("b", ids(1)) is None
    manager.check_invariants()


def test_shared_blocks_that_are_idle_are_not_counted_twice(manager):
    """Blocks found count as found, not as room for the rest."""
    compute(manager, "a", ids(*range(28)))
    manager.close("a")
    assert manager.open("b", ids(*range(28), *range(50, 58))) is None
    assert manager.open("b", ids(*range(28), 50)) == 28
    manager.check_invariants()


def test_forgotten_blocks_are_not_found(manager):
    """What a request computed wrongly is found by nobody; what it shared with others stays."""
    compute(manager, "a", ids(*range(8)))
    compute(manager, "b", ids(*range(4), *range(20, 25)))
    own = manager.forget("b")
    assert set(own) == set(manager.table("b")[1:])
    manager.close("b")
    assert manager.find(ids(*range(4), *range(20, 25))) == 1
    manager.check_invariants()


def test_without_caching_nothing_is_found():
    """Each prompt is computed anew."""
    manager = BlockManager(blocks=8, block_size=4, caching=False)
    compute(manager, "a", ids(*range(8)))
    assert manager.find(ids(*range(9))) == 0
    manager.close("a")
    manager.check_invariants()


class Blocks(RuleBasedStateMachine):
    """Requests come, grow and go; a model beside remembers what every block holds."""

    requests = Bundle("requests")

    def __init__(self):
        super().__init__()
        self.manager = BlockManager(blocks=12, block_size=3)
        self.tokens = {}
        self.done = {}
        self.salts = {}
        #: Salt and tokens up to its end, of each block that was written.
        self.content = {}
        self.count = 0

    @rule(
        target=requests,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        salt=st.sampled_from(["", "s"]),
    )
    def open(self, tokens, salt):
        key, self.count = self.count, self.count + 1
        free = self.manager.free
        known = self.manager.find(ids(*tokens), salt)
        cached = self.manager.open(key, ids(*tokens), salt)
        if cached is None:
            assert self.manager.free == free
            assert self.manager.needed(len(tokens)) - known > free - known
            return multiple()
        assert cached == 3 * known < len(tokens)
        for number in range(known):
            # What is found is what this very beginning wrote.
            assert self.content[self.manager.table(key)[number]] == (salt, tokens[: 3 * number + 3])
        self.tokens[key], self.done[key], self.salts[key] = tokens, cached, salt
        return key

    @precondition(lambda self: self.tokens)
    @rule(key=requests, more=st.lists(st.integers(0, 1), max_size=4))
    def grow(self, key, more):
        if key in self.tokens and self.manager.grow(key, len(self.tokens[key]) + len(more)):
            self.tokens[key] = self.tokens[key] + more

    @precondition(lambda self: self.tokens)
    @rule(key=requests, amount=st.integers(1, 6))
    def compute(self, key, amount):
        if key not in self.tokens:
            return
        tokens, table = self.tokens[key], self.manager.table(key)
        for position in range(self.done[key], min(self.done[key] + amount, len(tokens))):
            block = table[position // 3]
            owners = [other for other in self.tokens if block in self.manager.table(other)]
            assert owners == [key], "a block that others read is written"
            self.content[block] = (self.salts[key], tokens[: position + 1])
        self.done[key] = min(self.done[key] + amount, len(tokens))
        self.manager.computed(key, ids(*tokens[: self.done[key]]))

    @rule(key=consumes(requests), forget=st.booleans())
    def close(self, key, forget):
        if forget:
            self.manager.forget(key)
        self.manager.close(key)
        del self.tokens[key]

    @invariant()
    def books_are_right(self):
        self.manager.check_invariants()
        for key, tokens in self.tokens.items():
            table = self.manager.table(key)
            assert len(table) == self.manager.needed(len(tokens))
            for number in range(self.done[key] // 3):
                assert self.content[table[number]] == (self.salts[key], tokens[: 3 * number + 3])


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=150, stateful_step_count=40)
