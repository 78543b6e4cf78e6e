"""What a porter keeps: each thing is brought once, what is in use stays, what nobody uses goes in time and in order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensoryard.workers.shelf import Shelf, Turn

KEEP_S, HOLD_S, BUDGET = 10.0, 100.0, 100


def shelf(budget_bytes=BUDGET):
    return Shelf(budget_bytes=budget_bytes, keep_s=KEEP_S, hold_s=HOLD_S)


def put(on, key, size=10, *, at=0.0, shared=True):
    """Somebody asked for it, brought it, and is done."""
    assert on.ask(key, size, shared=shared, at=at) is Turn.BRING
    on.arrived(key, at)
    on.done(key, at)


def test_the_first_brings_and_the_others_wait():
    """However many ask for a thing, one brings it; those who come later find it there."""
    one = shelf()
    assert [one.ask("a", 10, shared=True, at=0.0) for _ in range(3)] == [Turn.BRING, Turn.WAIT, Turn.WAIT]
    one.arrived("a", 1.0)
    assert one.ask("a", 10, shared=True, at=1.0) is Turn.TAKE


def test_what_is_nobody_elses_goes_with_its_user():
    """A thing that was meant for one question is let go of when that has its answer."""
    one = shelf()
    put(one, "a", shared=False)
    assert one.take_dropped() == ["a"]
    assert "a" not in one


def test_what_nobody_uses_is_kept_for_a_while():
    """A shared thing outlives its last user by `keep_s`, counted from when it was last used."""
    one = shelf()
    put(one, "a")
    one.tick(KEEP_S - 1)
    assert one.ask("a", 10, shared=True, at=KEEP_S - 1) is Turn.TAKE
    one.done("a", KEEP_S - 1)
    one.tick(2 * KEEP_S - 2)
    assert "a" in one
    one.tick(2 * KEEP_S - 1)
    assert one.take_dropped() == ["a"]


def test_who_never_says_done_is_forgotten():
    """A user that died holds its thing for `hold_s`, and no longer."""
    one = shelf()
    one.ask("a", 10, shared=True, at=0.0)
    one.arrived("a", 0.0)
    one.tick(HOLD_S - 1)
    assert "a" in one
    one.tick(HOLD_S)
    assert one.take_dropped() == ["a"]


def test_what_a_dead_user_had_waits_for_the_next():
    """A thing of one user alone is kept for a while when that died; given back by the next, it goes."""
    one = shelf()
    one.ask("a", 10, shared=False, at=0.0)
    one.arrived("a", 0.0)
    one.lost("a", 1.0)
    assert one.ask("a", 10, shared=False, at=2.0) is Turn.TAKE
    one.done("a", 3.0)
    assert one.take_dropped() == ["a"]


def test_beyond_the_budget_the_one_used_longest_ago_goes():
    """What nobody uses makes room for what comes, the oldest first; what is in use does not."""
    one = shelf()
    for number, key in enumerate("abc"):
        put(one, key, 30, at=float(number))
    one.ask("a", 30, shared=True, at=3.0)
    put(one, "d", 60, at=4.0)
    assert one.take_dropped() == ["b", "c"]
    assert one.size_bytes == 90
    put(one, "e", 200, at=5.0)
    assert one.take_dropped() == ["d", "e"]
    assert "a" in one


def test_what_cannot_be_brought_is_brought_anew():
    """After a failure the next who asks tries again; a late word of the users before changes nothing."""
    one = shelf()
    one.ask("a", 10, shared=True, at=0.0)
    one.ask("a", 10, shared=True, at=0.0)
    one.failed("a")
    assert one.ask("a", 10, shared=True, at=1.0) is Turn.BRING
    one.done("a", 1.0)
    one.done("a", 1.0)
    one.check_invariants()
    assert one.ask("a", 10, shared=True, at=1.0) is Turn.WAIT


def test_room_is_made_on_request():
    """All that nobody uses goes when memory is wanted for something else."""
    one = shelf()
    put(one, "a")
    one.ask("b", 10, shared=True, at=0.0)
    one.clear_unused()
    assert one.take_dropped() == ["a"]


KEYS = st.sampled_from("abcd")


class AnyCourse(RuleBasedStateMachine):
    """Users come, wait, die and give back in any order; a model of who really uses what is kept beside."""

    def __init__(self):
        super().__init__()
        self.shelf = shelf()
        self.at = 0.0
        #: By key: whether somebody brings it now.
        self.bringing = set()
        #: Users who have not said done, with when they asked.
        self.users = []
        self.there = set()
        self.brought = 0

    @rule(key=KEYS, shared=st.booleans())
    def ask(self, key, shared):
        turn = self.shelf.ask(key, 10 * (1 + "abcd".index(key)) + 5, shared=shared, at=self.at)
        assert (turn is Turn.BRING) == (key not in self.bringing and key not in self.there), "brought twice, or by none"
        assert (turn is Turn.TAKE) == (key in self.there)
        if turn is Turn.BRING:
            self.bringing.add(key)
        self.users.append((key, self.at))

    @rule(key=KEYS)
    def arrive(self, key):
        if key in self.bringing:
            self.bringing.discard(key)
            self.there.add(key)
            self.shelf.arrived(key, self.at)
            self.look()

    @rule(key=KEYS)
    def fail(self, key):
        if key in self.bringing:
            self.bringing.discard(key)
            self.shelf.failed(key)
            self.users = [user for user in self.users if user[0] != key]

    @rule(data=st.data())
    def done(self, data):
        ready = [user for user in self.users if user[0] in self.there]
        if ready:
            user = data.draw(st.sampled_from(ready))
            self.users.remove(user)
            self.shelf.done(user[0], self.at)
            self.look()

    @rule(data=st.data())
    def die(self, data):
        ready = [user for user in self.users if user[0] in self.there]
        if ready:
            user = data.draw(st.sampled_from(ready))
            self.users.remove(user)
            self.shelf.lost(user[0], self.at)
            self.look()

    @rule(key=KEYS)
    def late_word(self, key):
        """Of something that is gone, or that nobody but its bringer wants by now."""
        if key not in self.there and sum(name == key for name, _ in self.users) <= 1:
            self.shelf.done(key, self.at)

    @rule(key=KEYS)
    def give_up(self, key):
        """Somebody waits no longer for what another brings."""
        waiting = [place for place, user in enumerate(self.users) if user[0] == key and key in self.bringing][1:]
        if waiting:
            del self.users[waiting[-1]]
            self.shelf.done(key, self.at)

    @rule(seconds=st.sampled_from([1.0, KEEP_S, HOLD_S]))
    def wait(self, seconds):
        self.at += seconds
        self.shelf.tick(self.at)
        self.look(forgets=True)

    def look(self, *, forgets=False):
        for key in self.shelf.take_dropped():
            assert key in self.there, "dropped what is not there"
            self.there.discard(key)
            users = [since for name, since in self.users if name == key]
            assert not users or (forgets and self.at - max(users) >= HOLD_S), "dropped under its users' hands"
            self.users = [user for user in self.users if user[0] != key]

    @invariant()
    def books_balance(self):
        self.shelf.check_invariants()
        assert {key for key in "abcd" if key in self.shelf} == self.there | self.bringing


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
