"""Interleavings of owner and readers, each forced to happen, and then all at once under load."""

import json
import os
import queue
import random
import sys
import threading
import time

import numpy as np
import pytest

from tensoryard.errors import PoolExhausted, StaleHandle
from tensoryard.shm import pool as pool_module
from tensoryard.shm.leases import GrantedLeases, HeldLeases

STRESS_S = 2.0


@pytest.fixture
def meanwhile(monkeypatch):
    """Has something happen right before, or right after, one call of a method."""

    def arrange(owner, name, act, *, after=False):
        original = getattr(owner, name)
        todo = [act]

        def with_act(*args):
            if not after and todo:
                todo.pop()()
            result = original(*args)
            if after and todo:
                todo.pop()()
            return result

        monkeypatch.setattr(owner, name, with_act)

    return arrange


def overwrite(pool):
    """Fill every free block of the smallest class; what was freed wrongly shows it."""
    return [pool.place(np.full(128, -1.0)) for _ in range(5)]


def attached(reader, pool):
    """Let the reader map the pool's first slab, so that its claims later need no answer of the owner."""
    keep = pool.place(np.ones(128))
    reader.open(keep.handle)
    return keep


def claim_during_withdrawal(pool, reader, meanwhile, moment):
    """Publish, and discard while a claim falls into the given moment. Gives the view, or None when it was stale."""
    keep = attached(reader, pool)
    loan, _ = pool.publish(np.arange(128.0))
    handle = loan.handle
    pool.send(loan)
    found = []

    def claim():
        try:
            found.append(reader.claim(handle))
        except StaleHandle:
            found.append(None)

    moment(claim)
    pool.discard(handle.generation)
    others = overwrite(pool)
    del keep
    assert len(found) == 1, "the moment never came"
    if found[0] is not None:
        assert found[0].tolist() == list(range(128))
        assert reader.open(handle).tolist() == list(range(128)), "the handle of a block that lives is good"
    return found.pop(), others


def test_a_claim_before_the_generation_vanishes_is_honoured(pool, reader, meanwhile):
    """A claim between the owner's first look and its withdrawal keeps the block, and its view is never overwritten."""
    view, others = claim_during_withdrawal(
        pool, reader, meanwhile, lambda claim: meanwhile(pool, "_free_unclaimed", claim)
    )
    assert view is not None
    used = pool.statistics().used_blocks
    del view
    assert pool.statistics().used_blocks == used - 1
    del others


def test_a_claim_after_the_generation_vanished_is_stale(pool, reader, meanwhile, monkeypatch):
    """A claim between the withdrawal and the owner's second look is refused, and the block is free."""
    view, others = claim_during_withdrawal(
        pool, reader, meanwhile, lambda claim: meanwhile(pool_module, "fence", claim)
    )
    assert view is None
    del others
    assert pool.statistics().used_blocks == 0


def test_a_claim_entered_in_time_and_checked_too_late_is_stale_and_frees_the_block(pool, reader, meanwhile):
    """A claim whose check falls behind the withdrawal is refused though the owner saw it, and then leaves nothing."""
    keep = attached(reader, pool)
    loan, _ = pool.publish(np.arange(128.0))
    handle = loan.handle
    pool.send(loan)
    discarding = threading.Thread(target=pool.discard, args=(handle.generation,))
    vanished, entered = threading.Event(), threading.Event()

    def let_the_reader_go():
        vanished.set()
        assert entered.wait(30)

    def discard_now():
        discarding.start()
        assert vanished.wait(30)

    meanwhile(pool_module, "fence", let_the_reader_go)
    meanwhile(HeldLeases, "claim", discard_now)
    meanwhile(HeldLeases, "claim", entered.set, after=True)
    try:
        view = reader.claim(handle)
    except StaleHandle:
        view = None
    discarding.join(30)
    others = overwrite(pool)
    if view is not None:  # the owner saw the claim and put the generation back before the reader looked
        assert view.tolist() == list(range(128))
    del keep, others, view
    assert pool.statistics().used_blocks == 0


def test_a_claim_while_the_last_one_ends_is_honoured_or_stale(pool, make_reader, meanwhile):
    """A claim made while the owner reads that another reader has just finished keeps the block from being reused."""
    late, early = make_reader(), make_reader()
    loan = pool.place(np.arange(128.0))
    handle = loan.handle
    late.open(handle)  # connects first, so its table is read first
    views = [early.claim(handle)]
    loan.release()
    assert pool.statistics().used_blocks == 1
    found = []

    def meanwhile_claim():
        found.append(late.claim(handle))
        views.clear()

    tables = [connection.leases for connection in pool._server._readers.values()]
    meanwhile(tables[1], "enter_changes", meanwhile_claim)
    pool.statistics()
    others = overwrite(pool)
    assert found[0].tolist() == list(range(128))
    used = pool.statistics().used_blocks
    found.clear()
    assert pool.statistics().used_blocks == used - 1
    del others


def test_a_second_claim_while_the_first_is_released_is_honoured(pool, reader, meanwhile):
    """One reader that claims a block again while the owner reads the end of its first claim keeps the block."""
    loan = pool.place(np.arange(128.0))
    handle = loan.handle
    views = [reader.claim(handle)]
    loan.release()
    assert pool.statistics().used_blocks == 1
    views.clear()
    meanwhile(GrantedLeases, "enter_changes", lambda: views.append(reader.claim(handle)), after=True)
    pool.statistics()
    others = overwrite(pool)
    assert views[0].tolist() == list(range(128))
    views.clear()
    del others
    assert pool.statistics().used_blocks == 0


def test_a_finalizer_may_run_anywhere_in_the_pool(pool, reader):
    """Loans and claims that end inside the pool's own lock, as garbage collection may do, do not block."""
    loans = [pool.place(np.ones(3)) for _ in range(3)]
    views = [reader.claim(loan.handle) for loan in loans]
    with pool._lock:
        loans.clear()
        views.clear()
    assert pool.statistics().used_blocks == 0
    pool._waiters = 1  # with a waiter, each release also wakes
    loan = pool.place(np.ones(3))
    with pool._lock:
        del loan
    pool._waiters = 0
    assert pool.statistics().used_blocks == 0


class Stress:
    """Owners, readers and a discarder at work at once; every array read must hold exactly what was published for it."""

    def __init__(self, pool, readers):
        self.pool = pool
        self.readers = readers
        self.give_up = time.monotonic() + STRESS_S
        self.sent = queue.Queue(maxsize=200)
        self.errors = []
        self.counts = {"read": 0, "stale": 0, "full": 0}

    @property
    def going(self):
        return time.monotonic() < self.give_up and not self.errors

    def guard(self, work, *args):
        try:
            work(*args)
        except BaseException as error:
            self.errors.append(error)

    def publish(self, seed):
        chance = random.Random(seed)
        number = seed << 32
        kept = []
        while self.going:
            number += 1
            size = chance.choice([10, 100, 1000, 5000])
            try:
                array = self.pool.empty(size, np.int64, timeout_s=0.05)
            except PoolExhausted:
                self.counts["full"] += 1
                kept.clear()
                continue
            array[:] = number
            part = array[chance.randrange(size) :]
            loans = [self.pool.lend(part) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
            handles = [loan.handle for loan in loans]
            for loan in loans:
                self.pool.send(loan)
            if chance.random() < 0.2:
                kept.append(array)
            del array, part, loans
            for handle in handles:
                self.put((handle, number, chance.random() < 0.3))
            if chance.random() < 0.1:
                kept.clear()

    def put(self, item):
        while self.going:
            try:
                self.sent.put(item, timeout=0.05)
            except queue.Full:
                continue
            break

    def read(self, seed):
        chance = random.Random(seed)
        live = []
        while self.going:
            try:
                handle, number, discard = self.sent.get(timeout=0.05)
            except queue.Empty:
                continue
            if discard and chance.random() < 0.5:
                self.pool.discard(handle.generation)
            for _ in range(chance.choice([1, 1, 2])):
                try:
                    live.append((chance.choice(self.readers).claim(handle), number))
                except StaleHandle:
                    self.counts["stale"] += 1
            if discard:
                self.pool.discard(handle.generation)
            if len(live) > 40 or chance.random() < 0.3:
                chance.shuffle(live)
                while len(live) > 20:
                    self.check(*live.pop())
        for view, number in live:
            self.check(view, number)

    def check(self, view, number):
        self.counts["read"] += 1
        assert (view == number).all(), f"published {number}, read {view[view != number][:3]}"

    def look(self):
        while self.going:
            self.pool.check_invariants()
            self.pool.housekeep()
            for reader in self.readers:
                reader.housekeep()

    def run(self):
        works = [(self.publish, 1), (self.publish, 2), (self.read, 3), (self.read, 4), (self.read, 5), (self.look,)]
        threads = [threading.Thread(target=self.guard, args=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]
        while not self.sent.empty():
            self.sent.get()


@pytest.mark.parametrize("switch_s", [1e-6, 5e-3])
def test_under_load_every_array_holds_what_was_published_for_it(make_pool, make_reader, switch_s):
    """Threads that publish, claim, discard and look at once, with memory short, never read another array's bytes."""
    pool = make_pool(budget_bytes=5 << 20, idle_s=0.0, claim_timeout_s=0.02)
    stress = Stress(pool, [make_reader(), make_reader()])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(switch_s)
    try:
        stress.run()
    finally:
        sys.setswitchinterval(interval)
    assert stress.counts["read"] > 100
    time_out = time.monotonic() + 30
    while pool.statistics().used_blocks and time.monotonic() < time_out:
        time.sleep(0.01)  # until the last unclaimed handles are overdue
    assert pool.statistics().used_blocks == 0


_READ = """
import random, struct
from tensoryard.errors import StaleHandle
def check(live, number):
    assert (live == number).all(), f"published {number}, read {live[live != number][:3]}"
def read(fd, seed):
    chance, reader, live, count = random.Random(seed), Reader(), [], [0, 0]
    with os.fdopen(fd, "rb") as pipe:
        for line in pipe:
            fields, number = json.loads(line)
            handle = H(fields)
            for _ in range(chance.choice([1, 1, 2])):
                try:
                    live.append((reader.claim(handle), number))
                    count[0] += 1
                except StaleHandle:
                    count[1] += 1
            if len(live) > 30:
                chance.shuffle(live)
                while len(live) > 10:
                    check(*live.pop())
    for each in live:
        check(*each)
    live.clear()
    return count
"""


def test_processes_under_load_read_what_was_published_for_them(make_pool, spawn, eventually, tmp_path):
    """Readers in other processes, racing with withdrawal and reuse by the owner, never read another array's bytes."""
    pool = make_pool(budget_bytes=5 << 20, claim_timeout_s=0.003)
    remotes, pipes = [spawn(), spawn()], []
    for number, remote in enumerate(remotes):
        path = tmp_path / f"pipe-{number}"
        os.mkfifo(path)
        remote.do(_READ)
        remote.tell("", f"read(os.open({str(path)!r}, os.O_RDONLY), {number})")
        pipes.append(path.open("w", buffering=1))
    chance = random.Random(1)
    give_up = time.monotonic() + STRESS_S
    number = 0
    while time.monotonic() < give_up:
        number += 1
        try:
            array = pool.empty(chance.choice([10, 100, 2000]), np.int64, timeout_s=0.05)
        except PoolExhausted:
            continue
        array[:] = number
        targets = chance.sample(pipes, chance.choice([1, 2]))
        loans = [pool.lend(array) for _ in targets]
        del array
        handle = loans[0].handle
        for loan in loans:
            pool.send(loan)
        for pipe in targets:
            pipe.write(json.dumps((handle.to_wire(), number)) + "\n")
        if chance.random() < 0.5:
            pool.discard(handle.generation)
    for pipe in pipes:
        pipe.close()
    counts = [remote.answer() for remote in remotes]
    assert all(read > 100 for read, _stale in counts), counts
    eventually(lambda: pool.statistics().used_blocks == 0, "all is released")
    pool.check_invariants()
