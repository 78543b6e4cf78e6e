"""A pool and its readers under hostile, random use: live views hold what was written, and nothing is left over."""

import gc
import math

import numpy as np
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensoryard.errors import PoolExhausted, StaleHandle
from tensoryard.shm import Pool, Reader

SIZES = [1, 7, 100, 1500, 20_000, 150_000]
BUDGET = 7 << 20


class Entry:
    """One use of a block, as the test knows it."""

    def __init__(self, tag):
        self.tag = tag
        #: Whether a handle of it was ever made.
        self.is_known = False
        #: Arrays of the owner that lie in it, and loans.
        self.arrays = []
        self.loans = []
        #: Views that readers claimed.
        self.views = []
        self.sends = 0
        #: Claims tried, and handles taken back: each may have used up one handle on its way.
        self.spent = 0

    def waits(self, *, patient):
        """Whether a claim must succeed."""
        return bool(self.arrays or self.loans or self.views) or (patient and self.sends > self.spent)


class Yard(RuleBasedStateMachine):
    """One pool, two readers, and everything that can be done with them, in any order."""

    @initialize(patient=st.booleans(), idle_s=st.sampled_from([0.0, 1e6]))
    def begin(self, patient, idle_s):
        """Pools that give up on unclaimed blocks at once, and ones that never do; that keep idle memory, or do not."""
        self.patient = patient
        self.pool = Pool(budget_bytes=BUDGET, idle_s=idle_s, claim_timeout_s=1e6 if patient else 0.0)
        self.readers = [Reader(), Reader()]
        self.entries = []
        self.arrays = []  # (array, expected, entry) of the owner
        self.loans = []  # (loan, handle, expected, entry)
        self.handles = []  # (handle, expected, entry): every handle that ever left
        self.views = []  # (view, expected, entry) of readers
        self.next = 0

    numbers = st.integers(0, 10**6)

    def fill(self, array):
        """Write a pattern of this use alone; gives a copy."""
        self.next += 1
        array[...] = np.arange(array.size, dtype=np.uint32).reshape(array.shape) * np.uint32(self.next) + self.next
        return array.copy()

    def entry(self):
        self.next += 1
        self.entries.append(Entry(self.next))
        return self.entries[-1]

    # -- the owner --

    @rule(size=st.sampled_from(SIZES), rows=st.integers(1, 3))
    def empty(self, size, rows):
        try:
            array = self.pool.empty((rows, size), np.uint32)
        except PoolExhausted:
            return
        entry = self.entry()
        entry.arrays.append(id(array))
        self.arrays.append((array, self.fill(array), entry))

    @rule(size=st.sampled_from(SIZES))
    def place(self, size):
        array = np.empty(size, np.uint32)
        expected = self.fill(array)
        try:
            loan = self.pool.place(array)
        except PoolExhausted:
            return
        entry = self.entry()
        entry.is_known = True
        entry.loans.append(id(loan))
        self.loans.append((loan, loan.handle, expected, entry))

    @precondition(lambda self: self.arrays)
    @rule(n=numbers, start=numbers, stop=numbers)
    def slice_array(self, n, start, stop):
        """A part of an array, which keeps the block when the whole is dropped."""
        array, expected, entry = self.arrays[n % len(self.arrays)]
        part = slice(*sorted((start % (len(array) + 1), stop % (len(array) + 1))))
        entry.arrays.append(n)
        self.arrays.append((array[part], expected[part], entry))

    @precondition(lambda self: self.arrays)
    @rule(n=numbers, flip=st.booleans())
    def publish(self, n, flip):
        """Lent in place, or copied where that cannot be."""
        array, expected, entry = self.arrays[n % len(self.arrays)]
        if flip:
            array, expected = array[..., ::-1], expected[..., ::-1]
        try:
            loan, copied = self.pool.publish(array)
        except PoolExhausted:
            return
        assert copied or (array.flags.c_contiguous and array.size)
        if copied:
            entry = self.entry()
        entry.is_known = True
        entry.loans.append(n)
        self.loans.append((loan, loan.handle, expected, entry))

    @precondition(lambda self: self.loans)
    @rule(n=numbers)
    def send(self, n):
        loan, handle, expected, entry = self.loans.pop(n % len(self.loans))
        self.pool.send(loan)
        entry.loans.pop()
        entry.sends += 1
        self.handles.append((handle, expected, entry))

    @precondition(lambda self: self.loans)
    @rule(n=numbers, by_hand=st.booleans())
    def drop_loan(self, n, by_hand):
        loan, handle, expected, entry = self.loans.pop(n % len(self.loans))
        if by_hand:
            loan.release()
        del loan
        entry.loans.pop()
        self.handles.append((handle, expected, entry))

    @precondition(lambda self: self.arrays)
    @rule(n=numbers)
    def drop_array(self, n):
        *_, entry = self.arrays.pop(n % len(self.arrays))
        entry.arrays.pop()

    @precondition(lambda self: self.arrays)
    @rule(n=numbers)
    def overwrite(self, n):
        """The owner may write on, as long as it gave no handle away."""
        array, _, entry = self.arrays[n % len(self.arrays)]
        if len(entry.arrays) == 1 and not entry.is_known:
            self.arrays[n % len(self.arrays)] = (array, self.fill(array), entry)

    @precondition(lambda self: self.handles)
    @rule(n=numbers)
    def discard(self, n):
        handle, _, entry = self.handles[n % len(self.handles)]
        self.pool.discard(handle.generation)
        entry.spent += 1

    # -- the readers --

    @precondition(lambda self: self.handles or self.loans)
    @rule(n=numbers, which=st.integers(0, 1), times=st.integers(1, 2), keep=st.booleans())
    def claim(self, n, which, times, keep):
        """Handles that left, once or more, by either reader; and handles of loans that have not left yet."""
        known = [*self.handles, *((handle, expected, entry) for _, handle, expected, entry in self.loans)]
        handle, expected, entry = known[n % len(known)]
        for _ in range(times):
            must = entry.waits(patient=self.patient)
            entry.spent += 1
            try:
                view = self.readers[which].claim(handle)
            except StaleHandle:
                assert not must, "a block that somebody keeps was stale"
                continue
            np.testing.assert_array_equal(view, expected)
            if keep:
                entry.views.append(n)
                self.views.append((view, expected, entry))

    @precondition(lambda self: self.loans)
    @rule(n=numbers, which=st.integers(0, 1))
    def open(self, n, which):
        """What a loan keeps can be opened."""
        _, handle, expected, _ = self.loans[n % len(self.loans)]
        np.testing.assert_array_equal(self.readers[which].open(handle), expected)

    @precondition(lambda self: self.handles)
    @rule(n=numbers, which=st.integers(0, 1))
    def release_unread(self, n, which):
        handle, _, entry = self.handles[n % len(self.handles)]
        self.readers[which].release(handle)
        entry.spent += 1

    @precondition(lambda self: self.views)
    @rule(n=numbers, start=numbers)
    def slice_view(self, n, start):
        view, expected, entry = self.views[n % len(self.views)]
        start %= len(view) + 1
        entry.views.append(n)
        self.views.append((view[start:], expected[start:], entry))

    @precondition(lambda self: self.views)
    @rule(n=numbers)
    def drop_view(self, n):
        *_, entry = self.views.pop(n % len(self.views))
        entry.views.pop()

    @rule(which=st.integers(0, 1), anew=st.booleans())
    def close_reader(self, which, anew):
        self.readers[which].close()
        if anew:
            self.readers[which] = Reader()

    @rule(which=st.integers(0, 1))
    def reader_housekeep(self, which):
        self.readers[which].housekeep()

    @rule()
    def housekeep(self):
        self.pool.housekeep()

    # -- what holds --

    @invariant()
    def every_live_array_holds_what_was_written(self):
        self.pool.check_invariants()
        for array, expected, _ in [*self.arrays, *self.views]:
            assert np.array_equal(array, expected)

    @invariant()
    def the_figures_hold_what_must_live(self):
        statistics = self.pool.statistics()
        certain = sum(bool(entry.arrays or entry.loans or entry.views) for entry in self.entries)
        assert statistics.used_blocks >= certain
        assert statistics.reserved_bytes <= BUDGET

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for _ in range(math.ceil(max([0, *(entry.sends for entry in self.entries)]))):
            for handle, _, _ in self.handles:
                self.pool.discard(handle.generation)
        self.arrays.clear()
        self.loans.clear()
        self.views.clear()
        gc.collect()
        statistics = self.pool.statistics()
        note(str(self.pool.live_blocks()))
        self.pool.check_invariants()
        for reader in self.readers:
            reader.close()
        self.pool.close()
        assert (statistics.used_blocks, statistics.used_bytes, statistics.published_blocks) == (0, 0, 0)


TestYard = Yard.TestCase
TestYard.settings = settings(
    max_examples=35,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestYard.__doc__ = "Whatever owner and readers do, live views hold what was written, and in the end nothing is in use."
