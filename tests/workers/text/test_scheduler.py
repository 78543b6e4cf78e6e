"""Continuous batching, without a model: everybody ends, nobody is passed over, and no token is lost."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensoryard.errors import InvalidRequest
from tensoryard.workers.text.blocks import BlockManager
from tensoryard.workers.text.scheduler import Scheduler


def ids(count, first=0):
    return np.arange(first, first + count, dtype=np.int64)


def make(blocks=16, size=4, **limits):
    limits = {"max_tokens": 12, "max_chunk": 8, "max_running": 6} | limits
    return Scheduler(BlockManager(blocks=blocks, block_size=size), **limits)


def told(plan):
    return [(work.sequence.key, work.start, work.size, work.last) for work in plan.works]


def step(scheduler, still=()):
    """One step whose every finished request gets the number of its tokens as its next one."""
    plan = scheduler.plan(still)
    scheduler.computed(plan)
    for work in plan.works:
        if work.last:
            tokens = work.sequence.tokens
            scheduler.append(work.sequence, np.append(tokens, len(tokens)))
    return plan


def test_a_prompt_comes_in_chunks_beside_streams():
    """Who awaits one token has it in each step; a long prompt takes what is left of the budget."""
    scheduler = make()
    scheduler.add("a", ids(3), most=20)
    assert told(step(scheduler)) == [("a", 0, 3, True)]
    scheduler.add("b", ids(18, 100), most=30)
    assert told(step(scheduler)) == [("a", 3, 1, True), ("b", 0, 8, False)]
    assert told(step(scheduler)) == [("a", 4, 1, True), ("b", 8, 8, False)]
    assert told(step(scheduler)) == [("a", 5, 1, True), ("b", 16, 2, True)]
    assert told(step(scheduler)) == [("a", 6, 1, True), ("b", 18, 1, True)]


def test_a_step_keeps_to_its_budget():
    """Several prompts share a step as far as it goes, in order of arrival."""
    scheduler = make()
    for key in "abc":
        scheduler.add(key, ids(7, ord(key)), most=10)
    assert told(scheduler.plan()) == [("a", 0, 7, True), ("b", 0, 5, False)]


def test_the_last_gives_its_blocks_back():
    """Without room the newest request is put out, and computed again from what the cache still holds."""
    scheduler = make(blocks=5, max_chunk=12)
    scheduler.add("a", ids(5), most=16)
    scheduler.add("b", ids(5, 100), most=16)
    step(scheduler)
    for _ in range(3):
        assert [entry[0] for entry in told(step(scheduler))] == ["a", "b"]
    plan = step(scheduler)
    assert [sequence.key for sequence in plan.preempted] == ["b"]
    assert told(plan) == [("a", 8, 1, True)]
    scheduler.remove("a")
    plan = step(scheduler)
    assert [sequence.key for sequence in plan.admitted] == ["b"]
    assert told(plan) == [("b", 8, 1, True)]
    assert plan.admitted[0].cached == 0


def test_drafts_take_what_room_is_left():
    """Of the step's budget and of the cache, and nobody's blocks; those confirmed count as computed."""
    scheduler = make(blocks=7, max_running=2)
    for key in "ab":
        scheduler.add(key, ids(5, ord(key)), most=16)
    step(scheduler)
    plan = scheduler.plan()
    assert [scheduler.reserve(plan, work, 4) for work in plan.works] == [4, 2]
    assert plan.tokens == 8
    scheduler.check_invariants()
    scheduler.computed(plan)
    first, second = (work.sequence for work in plan.works)
    scheduler.append(first, ids(10, ord("a")))
    scheduler.append(second, ids(7, ord("b")))
    assert (first.computed, second.computed) == (9, 6)
    assert scheduler.blocks.find(ids(10, ord("a"))) == 2
    scheduler.check_invariants()
    tight = make(max_tokens=6, max_running=6)
    tight.add("a", ids(3), most=16)
    step(tight)
    plan = tight.plan()
    assert [tight.reserve(plan, work, 16) for work in plan.works] == [5]


def test_who_stands_still_goes_first():
    """A request whose reader does not keep up is put out before one that came later and is read."""
    scheduler = make(blocks=6)
    scheduler.add("a", ids(8), most=16)
    scheduler.add("b", ids(11, 100), most=24)
    step(scheduler)
    while not (plan := step(scheduler, still={"a"})).preempted:
        assert [entry[0] for entry in told(plan)] == ["b"]
    assert [sequence.key for sequence in plan.preempted] == ["a"]
    assert told(plan) == [("b", 16, 1, True)]


def test_a_cached_prompt_is_not_computed_again():
    """What another request has computed is skipped, except for the last token."""
    scheduler = make()
    scheduler.add("a", ids(8), most=20)
    step(scheduler)
    scheduler.remove("a")
    sequence = scheduler.add("b", ids(8), most=20)
    scheduler.add("c", ids(8), most=20, salt="apart")
    assert told(scheduler.plan()) == [("b", 4, 4, True), ("c", 0, 8, True)]
    assert sequence.cached == 4


def test_what_can_never_fit_is_refused():
    """At once, and by name; up to the cache's size is fine."""
    scheduler = make(blocks=4)
    with pytest.raises(InvalidRequest, match=r"17 tokens do not fit.*holds 16"):
        scheduler.add("a", ids(3), most=17)
    scheduler.add("a", ids(3), most=16)
    assert len(scheduler) == 1


def test_removal_frees_at_once():
    """Running, waiting or unknown."""
    scheduler = make()
    scheduler.add("a", ids(8), most=20)
    scheduler.add("b", ids(8), most=20)
    step(scheduler)
    for key in ("a", "b", "nobody"):
        scheduler.remove(key)
        scheduler.check_invariants()
    assert (len(scheduler), scheduler.blocks.free) == (0, 16)


class Scheduling(RuleBasedStateMachine):
    """Requests with prompts that often begin alike come, stand still and are aborted, in a cache that is too small."""

    def __init__(self):
        super().__init__()
        self.scheduler = make(blocks=9, size=3, max_tokens=7, max_chunk=5, max_running=4)
        self.wanted = {}
        self.count = 0
        #: Blocks written: the tokens up to each place.
        self.content = {}

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20), answer=st.integers(1, 7))
    def add(self, prompt, answer):
        self.count += 1
        most = min(len(prompt) + answer, 27)
        sequence = self.scheduler.add(self.count, np.array(prompt, np.int64), most=most)
        self.wanted[self.count] = (sequence, prompt, most)

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data):
        key = data.draw(st.sampled_from(sorted(self.wanted)))
        self.scheduler.remove(key)
        del self.wanted[key]

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def step(self, data):
        still = data.draw(st.sets(st.sampled_from(sorted(self.wanted))))
        self.carry_out(self.scheduler.plan(still), still)

    def carry_out(self, plan, still):
        assert sum(work.size for work in plan.works) == plan.tokens <= 7
        assert not {work.sequence.key for work in plan.works} & still
        for sequence, start, count, last in plan.works:
            assert sequence.running
            assert start == sequence.computed
            assert last == (start + count == len(sequence.tokens))
            self.compute(sequence, start, count)
        self.scheduler.computed(plan)
        for work in plan.works:
            if work.last:
                self.answer(work.sequence)

    def compute(self, sequence, start, count):
        """Write the places, and see that everything before them is in place."""
        tokens, table = sequence.tokens.tolist(), self.scheduler.blocks.table(sequence.key)
        for place in range(start + count):
            where = (table[place // 3], place % 3)
            if place < start:
                assert self.content[where] == tokens[: place + 1]
            self.content[where] = tokens[: place + 1]

    def answer(self, sequence):
        _, prompt, most = self.wanted[sequence.key]
        assert sequence.tokens.tolist()[: len(prompt)] == prompt
        tokens = np.append(sequence.tokens, len(sequence.tokens) % 2)
        if len(tokens) >= most:
            self.scheduler.remove(sequence.key)
            del self.wanted[sequence.key]
        else:
            self.scheduler.append(sequence, tokens)

    @invariant()
    def books_are_right(self):
        self.scheduler.check_invariants()

    def teardown(self):
        """Left alone, everything ends: each step makes some progress."""
        for _ in range(2000):
            if not self.wanted:
                break
            plan = self.scheduler.plan()
            assert plan.works, "requests wait and nothing is computed"
            self.carry_out(plan, set())
        assert not self.wanted
        assert self.scheduler.blocks.free == 9


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=150, stateful_step_count=30)


def test_in_whole_blocks_chunks_end_where_blocks_do():
    """Whatever budget the others leave; what does not reach a block's end waits for the next step."""
    scheduler = make(max_tokens=10, whole_blocks=True)
    scheduler.add("a", ids(3), most=20)
    scheduler.add("b", ids(18, 100), most=30)
    assert told(step(scheduler)) == [("a", 0, 3, True), ("b", 0, 4, False)]
    assert told(step(scheduler)) == [("a", 3, 1, True), ("b", 4, 8, False)]
    scheduler.add("c", ids(6, 50), most=30)
    assert told(step(scheduler)) == [("a", 4, 1, True), ("b", 12, 6, True)]
    assert told(step(scheduler)) == [("a", 5, 1, True), ("b", 18, 1, True), ("c", 0, 6, True)]
    scheduler.check_invariants()


def test_in_whole_blocks_prompts_alone_are_shared():
    """What was generated is neither found by others nor, after preemption, by who generated it."""
    scheduler = make(whole_blocks=True)
    scheduler.add("a", ids(8), most=20, prompt=8)
    for _ in range(10):
        step(scheduler)
    scheduler.remove("a")
    scheduler.add("b", ids(18), most=20)
    assert step(scheduler).works[0].start == 8
    scheduler.remove("b")
    moved = scheduler.add("c", ids(18), most=20, prompt=5)
    step(scheduler)
    assert moved.cached == 4
