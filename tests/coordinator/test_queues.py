"""The order of waiting requests and the choice of workers, against models too simple to be wrong."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.coordinator.queues import LazyHeap, LeastLoaded, RequestQueue


def heap_bound(live):
    """What a LazyHeap may hold with so many live keys."""
    return 2 * live + 16


def pushed(*entries):
    queue = RequestQueue()
    for entry in entries:
        request_id, client, priority, deadline = (*entry, 0, math.inf)[:4] if len(entry) == 2 else entry
        queue.push(request_id, client=client, priority=priority, deadline=deadline)
    return queue


def popped(queue, count=10**9):
    out = []
    while len(out) < count and (request_id := queue.pop()) is not None:
        out.append(request_id)
    return out


# LazyHeap


def test_heap_orders_by_rank_then_stamp():
    """The lowest rank is first, and among equal ranks the lowest stamp."""
    heap = LazyHeap()
    heap.set("late", 2.0, 1)
    heap.set("second", 1.0, 3)
    heap.set("first", 1.0, 2)
    assert heap.first_rank() == 1.0
    assert [heap.pop() for _ in range(4)] == ["first", "second", "late", None]


def test_heap_moves_a_key_that_is_set_again():
    """Only the rank set last counts, also when a key comes back to a rank it had."""
    heap = LazyHeap()
    heap.set("a", 1.0)
    heap.set("b", 2.0)
    heap.set("a", 3.0)
    assert (heap.first(), heap.first_rank(), len(heap)) == ("b", 2.0, 2)
    heap.set("a", 1.0)
    assert [heap.pop(), heap.pop(), heap.pop()] == ["a", "b", None]


def test_heap_gives_only_what_is_due():
    """`pop_due` takes the first key when its rank is reached, and no other."""
    heap = LazyHeap()
    heap.set("a", 1.0)
    heap.set("b", 2.0)
    assert heap.pop_due(0.5) is None
    assert heap.pop_due(1.0) == "a"
    assert heap.pop_due(1.0) is None
    assert heap.pop_due(math.inf) == "b"
    assert heap.pop_due(math.inf) is None


def test_an_empty_heap_has_no_first():
    """Without live keys there is no first one and its rank is infinite, whatever was removed."""
    heap = LazyHeap()
    heap.set("a", 1.0)
    heap.remove("a")
    heap.remove("stranger")
    assert (heap.first(), heap.first_rank(), heap.pop(), len(heap)) == (None, math.inf, None, 0)
    assert "a" not in heap


def test_heap_forgets_old_ranks():
    """A key that is set again and again, or removed, does not leave its past behind."""
    heap = LazyHeap()
    for rank in range(1000):
        heap.set("a", rank)
    assert len(heap._heap) <= heap_bound(1)
    for number in range(1000):
        heap.set(f"k{number}", -number)
    for number in range(1000):
        heap.remove(f"k{number}")
    assert len(heap._heap) <= heap_bound(1)
    assert heap.first_rank() == 999


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("srp"), st.integers(0, 7), st.integers(0, 5)), max_size=200))
def test_heap_against_a_dictionary(steps):
    """A LazyHeap answers like a dictionary whose minimum is searched, and stays small."""
    heap, model = LazyHeap(), {}
    for stamp, (verb, number, rank) in enumerate(steps):
        key = str(number)
        if verb == "s":
            heap.set(key, rank, stamp)
            model[key] = (rank, stamp)
        elif verb == "r":
            heap.remove(key)
            model.pop(key, None)
        else:
            least = min(model, key=model.get, default=None)
            assert heap.pop() == least
            model.pop(least, None)
        assert heap.first() == min(model, key=model.get, default=None)
        assert heap.first_rank() == min((entry[0] for entry in model.values()), default=math.inf)
        assert len(heap) == len(model)
        assert len(heap._heap) <= heap_bound(len(model))


# RequestQueue


def test_the_higher_priority_goes_first():
    """A request of higher priority is taken before all of lower, whoever sent them and when."""
    queue = pushed(("a", "c", 0, 1.0), ("b", "c", 5, 9.0), ("d", "d", -3, 0.0), ("e", "e", 5, 8.0))
    assert popped(queue) == ["b", "e", "a", "d"]


def test_the_earliest_deadline_of_a_client_goes_first():
    """Within a client deadlines decide, then arrival; no deadline is the latest."""
    queue = pushed(("none", "c"), ("late", "c", 0, 5.0), ("soon", "c", 0, 1.0), ("soon2", "c", 0, 1.0), ("none2", "c"))
    assert popped(queue) == ["soon", "soon2", "late", "none", "none2"]


def test_clients_take_turns():
    """A client with 1,000 waiting gets one for each one of the others."""
    queue = pushed(*((f"big{n}", "big") for n in range(1000)), ("one", "small"), ("x", "other"), ("y", "other"))
    assert popped(queue, 6) == ["big0", "one", "x", "big1", "y", "big2"]


def test_a_newcomer_waits_one_round_at_most():
    """A client that comes is served before any other has had two turns, and not before those that wait."""
    queue = pushed(*((f"{client}{n}", client) for n in range(50) for client in "abc"))
    assert popped(queue, 4) == ["a0", "b0", "c0", "a1"]
    queue.push("new", client="new", priority=0)
    assert popped(queue, 4) == ["b1", "c1", "a2", "new"]


def test_a_stream_of_new_clients_starves_nobody():
    """A client that waits is served though a client never seen before comes with every turn."""
    queue = pushed(("mine0", "zzz"), ("mine1", "zzz"), ("mine2", "zzz"))
    served = []
    for number in range(20):
        queue.push(f"n{number}", client=f"newcomer{number}", priority=0)
        served.append(queue.pop())
    assert {"mine0", "mine1", "mine2"} <= set(served[:10])


def test_coming_and_going_earns_no_turns():
    """A client that is idle in between gets no more than one that always waits."""
    queue = pushed(*((f"steady{n}", "steady") for n in range(100)))
    shares = Counter()
    for number in range(60):
        if not any(name.startswith("visitor") for name in queue.waiting()):
            queue.push(f"visitor{number}", client="visitor", priority=0)
        shares[queue.pop().rstrip("0123456789")] += 1
    assert abs(shares["steady"] - shares["visitor"]) <= 1


def test_cancelled_requests_cost_no_turns():
    """A client that took back half of what waited is served as often as the others."""
    queue = pushed(*((f"{client}{n}", client) for n in range(100) for client in "ab"))
    for number in range(50):
        queue.remove(f"a{number}")
    assert Counter(name[0] for name in popped(queue, 40)) == {"a": 20, "b": 20}


def test_a_request_waits_once():
    """Pushing a request that waits already is a bug of the caller's; afterwards it may come again."""
    queue = pushed(("a", "c"))
    with pytest.raises(AssertionError, match="waits twice"):
        queue.push("a", client="d", priority=1)
    assert queue.pop() == "a"
    queue.push("a", client="d", priority=1)
    assert (len(queue), "a" in queue, queue.waiting()) == (1, True, ["a"])


def test_removing_a_stranger_changes_nothing():
    """Removal of what does not wait is ignored."""
    queue = pushed(("a", "c"))
    queue.remove("b")
    assert queue.waiting() == ["a"]


class NaiveQueue:
    """The same rules over plain lists."""

    def __init__(self):
        self.entries = []
        self.rings = {}

    def push(self, request_id, client, priority, deadline):
        self.entries.append((request_id, client, priority, deadline))
        ring = self.rings.setdefault(priority, [])
        if client not in ring:
            ring.append(client)

    def remove(self, request_id):
        self.entries = [entry for entry in self.entries if entry[0] != request_id]
        for priority, ring in self.rings.items():
            left = {entry[1] for entry in self.entries if entry[2] == priority}
            self.rings[priority] = [client for client in ring if client in left]

    def pop(self):
        if not self.entries:
            return None
        priority = max(entry[2] for entry in self.entries)
        ring = self.rings[priority]
        client = ring.pop(0)
        ring.append(client)
        mine = [entry for entry in self.entries if entry[1] == client and entry[2] == priority]
        first = min(mine, key=lambda entry: entry[3])[0]
        self.remove(first)
        return first


def check_queue_is_small(queue):
    """Everything inside is in proportion to what waits."""
    clients = set(queue._places.values())
    assert set(queue._levels) == {level for level, _ in clients}
    assert queue._order == sorted(queue._levels)
    lines = [(level, client) for level, ring in queue._levels.items() for client in ring]
    assert set(lines) == clients
    assert len(lines) == len(clients)
    for ring in queue._levels.values():
        assert all(len(line._heap) <= heap_bound(len(line)) for line in ring.values())


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from("abc"),
            st.integers(-1, 2),
            st.sampled_from([math.inf, 1.0, 2.0, 3.0]),
        ),
        st.tuples(st.just("pop")),
        st.tuples(st.just("remove"), st.integers(0, 200)),
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_queue_against_plain_lists(steps):
    """Every order of pushes, pops and removals gives what the rules say, and leaves nothing inside."""
    queue, naive = RequestQueue(), NaiveQueue()
    for number, (verb, *values) in enumerate(steps):
        if verb == "push":
            client, priority, deadline = values
            queue.push(str(number), client=client, priority=priority, deadline=deadline)
            naive.push(str(number), client, priority, deadline)
        elif verb == "pop":
            assert queue.pop() == naive.pop()
        else:
            queue.remove(str(values[0]))
            naive.remove(str(values[0]))
        assert queue.waiting() == [entry[0] for entry in naive.entries]
        assert len(queue) == len(naive.entries)
        check_queue_is_small(queue)
    while naive.entries:
        assert queue.pop() == naive.pop()
    assert queue.pop() is None
    assert not queue._levels
    assert not queue._order


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 60))
def test_shares_of_waiting_clients_differ_by_one_at_most(backlogs, turns):
    """While several clients have something waiting, none has had two turns more than another."""
    queue = pushed(*((f"{c}-{n}", f"{c}") for c, backlog in enumerate(backlogs) for n in range(backlog)))
    shares = Counter()
    for _ in range(min(turns, sum(backlogs))):
        shares[int(queue.pop().split("-")[0])] += 1
        hungry = [shares[c] for c, backlog in enumerate(backlogs) if shares[c] < backlog]
        assert max(hungry, default=0) - min(hungry, default=0) <= 1


def test_a_long_life_leaves_nothing_behind():
    """A queue that saw 30,000 requests of ever new clients and priorities holds what waits now, and no more."""
    rng = random.Random(7)
    queue, waiting = RequestQueue(), set()
    for number in range(30_000):
        queue.push(str(number), client=f"c{number // 3}", priority=number % 997, deadline=rng.random())
        waiting.add(str(number))
        while len(waiting) > 40:
            if rng.random() < 0.5:
                waiting.remove(queue.pop())
            else:
                gone = rng.choice(sorted(waiting))
                queue.remove(gone)
                waiting.remove(gone)
        if number % 500 == 0:
            check_queue_is_small(queue)
            assert len(queue) == len(waiting)
    assert len(queue._levels) <= 40


# LeastLoaded


def test_the_least_loaded_key_is_first():
    """Load decides, and among equal loads the key that was set longest ago."""
    keys = LeastLoaded()
    for key, load in (("a", 0.5), ("b", 0.0), ("c", 0.0)):
        keys.set(key, load, "")
    assert keys.least() == "b"
    keys.set("b", 0.0, "")
    assert keys.least() == "c"
    keys.remove("c")
    keys.remove("b")
    assert keys.least() == "a"
    keys.remove("a")
    assert keys.least() is None


def test_the_asked_group_is_preferred():
    """A key of the group comes first while it has no more load than that is worth; without one, the first of all."""
    keys = LeastLoaded()
    keys.set("here", 0.75, "host1")
    keys.set("there", 0.25, "host2")
    assert keys.near("host1", 0.5) == "here"
    assert keys.near("host1", 0.4) == "there"
    assert keys.near("host2", 0.0) == "there"
    assert keys.near("host3", 9.0) == "there"
    keys.set("there", 0.75, "host2")
    assert keys.near("host1", 0.0) == keys.near("host2", 0.0).replace("there", "here") == "here"
    keys.remove("here")
    assert keys.near("host1", 9.0) == "there"
    keys.remove("there")
    assert keys.near("host1", 9.0) is None


def test_a_key_may_change_its_group():
    """A key belongs to the group it was last set under."""
    keys = LeastLoaded()
    keys.set("a", 0.5, "host1")
    keys.set("b", 0.0, "host2")
    keys.set("a", 0.5, "host2")
    assert keys.near("host1", 9.0) == "b"
    keys.remove("b")
    assert keys.near("host2", 9.0) == "a"
    assert set(keys._groups) == {"host2"}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ssr"), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("xyz")),
        max_size=150,
    ),
)
def test_least_loaded_against_a_dictionary(steps):
    """The choice is that of a search through a dictionary, and nothing is kept of what was removed."""
    keys, model = LeastLoaded(), {}
    for stamp, (verb, number, load, host) in enumerate(steps):
        key, group = str(number), host.replace("z", "")
        if verb == "s":
            keys.set(key, load, group)
            model[key] = (load, stamp, group)
        else:
            keys.remove(key)
            model.pop(key, None)
        best = min(model, key=model.get, default=None)
        assert keys.least() == best
        for asked, worth in itertools.product(("x", "y", "elsewhere"), (0.0, 0.5, 1.0)):
            near = min((k for k, v in model.items() if v[2] == asked), key=model.get, default=best)
            worse = model[near][0] - model[best][0] > worth if best is not None else False
            assert keys.near(asked, worth) == (best if worse else near)
        assert {k for k in "012345" if k in keys} == set(model)
        assert set(keys._groups) == {entry[2] for entry in model.values() if entry[2]}
        assert all(len(heap._heap) <= heap_bound(len(heap)) for heap in (keys._all, *keys._groups.values()))


def test_hosts_that_left_are_forgotten():
    """Workers on ever new hosts leave nothing behind when they go."""
    keys = LeastLoaded()
    for number in range(5000):
        for load in (0.0, 0.5, 0.0):
            keys.set(f"w{number}", load, f"host{number}")
        if number >= 3:
            keys.remove(f"w{number - 3}")
        keys.least()
    assert not keys._moved
    assert len(keys._groups) == 3
    assert len(keys._all._heap) <= heap_bound(3)
