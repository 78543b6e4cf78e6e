"""The pool: what it lends, what it refuses, and that memory comes back."""

import gc
import os
import random
import re
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensoryard.errors import PoolExhausted, SegmentGone, StaleHandle, UnsupportedArray
from tensoryard.shm import Pool, Reader, os_memory
from tensoryard.shm.mapping import PAGE_BYTES
from tensoryard.shm.pool import default_budget_bytes

from ..baseline import Baseline

MIB = 1 << 20


def used(pool):
    return pool.statistics().used_blocks


def big(pool, mib=1):
    """An array with a segment of its own."""
    return pool.empty(mib * MIB, np.uint8)


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), 7, (3, 5, 2), (1, 1, 1, 1), (100_000,), (0,), (4, 0, 2)], ids=str)
def test_an_empty_array_has_the_shape_asked_for(pool, shape):
    """Any shape, a bare number too, comes back writable, aligned and in C order."""
    array = pool.empty(shape, np.float64)
    assert array.shape == np.empty(shape).shape
    assert array.flags.c_contiguous
    assert array.flags.writeable
    array[...] = 3
    assert (array == 3).all()
    if array.size:
        assert array.__array_interface__["data"][0] % 64 == 0
        assert used(pool) == 1


def test_large_arrays_begin_on_a_page(pool):
    """An array with a segment of its own is aligned to the page."""
    assert big(pool).__array_interface__["data"][0] % PAGE_BYTES == 0


@pytest.mark.parametrize("shape", [(-1,), (-1, -1), (2, -3), (-2, -3), (-1, 0), ("a",), (1.5,), None], ids=str)
def test_a_bad_shape_is_refused_and_takes_nothing(pool, shape):
    """Negative and fractional sides are numpy's own errors, and no block stays behind."""
    with pytest.raises((ValueError, TypeError)):
        pool.empty(shape, np.float32)
    gc.collect()
    assert used(pool) == 0


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
    hnp.unicode_string_dtypes(min_len=1, max_len=9),
)


@pytest.fixture(scope="module")
def shared_pair():
    """A pool and a reader for many examples."""
    with Pool(budget_bytes=64 * MIB) as pool:
        reader = Reader()
        yield pool, reader
        reader.close()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), order=st.sampled_from("CF"), step=st.sampled_from([1, 2, -1]))
def test_every_array_comes_back_as_it_was(shared_pair, data, order, step):
    """Any allowed dtype, of any shape, order and stride, is read by a reader with the same bytes, shape and dtype."""
    pool, reader = shared_pair
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
    array = data.draw(hnp.arrays(DTYPES, shapes))
    array = np.asarray(array, order=order)[(slice(None, None, step),) * array.ndim]
    array = np.asarray(array)
    loan = pool.place(array)
    read = reader.claim(loan.handle)
    assert read.dtype == array.dtype
    assert read.dtype.str == array.dtype.str
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()
    assert not read.flags.writeable
    assert read.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5),
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.array([1 + 2j, 3], np.complex64),
        np.array([True, False]),
        np.array(["2024-02-29", "NaT"], "M8[D]"),
        np.array([5, 6], "m8[ms]"),
        np.array(["añb", ""]),
        np.array([b"a\0b", b""]),
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.broadcast_to(np.float32(3), (4, 5)),
        np.zeros((0, 3)),
        np.zeros((), ">M8[us]"),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_each_kind_of_array_comes_back_as_it_was(pool, reader, array):
    """Big-endian, complex, boolean, dates, texts, bytes, 0-d, strided, Fortran, broadcast and empty arrays travel."""
    loan, copied = pool.publish(array)
    pool.send(loan)
    read = reader.claim(loan.handle)
    assert copied
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(3, [("a", "<f4"), ("b", object)]),
        np.zeros(3, [("a", "<f4")]),
        np.zeros(3, "V8"),
        np.array(["text"], np.dtypes.StringDType()),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_cannot_travel_is_refused_and_takes_nothing(pool, array):
    """Objects, structures and void are UnsupportedArray wherever they are handed in."""
    for act in (pool.place, pool.publish, lambda a: pool.empty(a.shape, a.dtype)):
        with pytest.raises(UnsupportedArray):
            act(array)
    assert used(pool) == 0


def test_two_arrays_never_overlap(pool):
    """Arrays of all sizes that live at once keep what was written to each."""
    chance = random.Random(5)
    arrays = [(number, pool.empty(chance.choice([1, 100, 1025, 5000, 70_000, 600_000]), "u1")) for number in range(60)]
    for number, array in arrays:
        array[:] = number
    assert all((array == number).all() for number, array in arrays)
    assert used(pool) == 60


# -- lending ----------------------------------------------------------------------------------------------------------


def test_an_array_of_the_pool_is_lent_without_a_copy(pool, reader):
    """What already lies in the pool is published as it lies, and a later write shows: the bytes are the same."""
    array = pool.empty((4, 4), np.int32)
    array[:] = 1
    loan, copied = pool.publish(array)
    assert not copied
    view = reader.claim(loan.handle)
    array[2, 2] = 9
    assert view[2, 2] == 9


@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a[3],
        lambda a: a[2:5],
        lambda a: a.reshape(-1)[7:40],
        lambda a: a.view(np.uint8)[1:2, :8],
        lambda a: a[-1:],
    ],
)
def test_contiguous_slices_are_lent_in_place(pool, reader, cut):
    """A C-ordered part of an array is lent where it lies, with its own shape and dtype."""
    array = pool.empty((8, 8), np.float32)
    array[:] = np.arange(64).reshape(8, 8)
    part = cut(array)
    loan = pool.lend(part)
    np.testing.assert_array_equal(reader.claim(loan.handle), part)
    assert used(pool) == 1


@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a[:, 1],
        lambda a: a.T,
        lambda a: a[::2],
        lambda a: a[:0],
        lambda a: a.reshape(-1).view(np.uint8)[1:9].view(np.float32),
        lambda a: np.ones(5),
        lambda a: a.copy(),
        lambda a: np.lib.stride_tricks.as_strided(a, (100_000,), (4,)),
    ],
    ids=["column", "transposed", "strided", "nothing", "misaligned", "elsewhere", "copy", "too far"],
)
def test_what_cannot_be_lent_in_place_is_not(pool, cut):
    """Strided, empty, misaligned and foreign arrays, and ones that reach beyond their block, are not lent, nor held."""
    array = pool.empty((8, 8), np.float32)
    array[:] = 0
    assert pool.lend(cut(array)) is None
    del array
    gc.collect()
    assert used(pool) == 0


def test_an_array_of_another_pool_is_copied(make_pool):
    """A pool does not lend what another pool of the process owns."""
    one, other = make_pool(), make_pool()
    array = one.empty(10, np.uint8)
    array[:] = 4
    assert other.lend(array) is None
    assert used(other) == 0


def test_memory_before_every_segment_is_not_the_pools(pool):
    """Arrays below, between and in the headers of segments are not found."""
    assert pool.lend(np.ones(1000)) is None
    kept = [big(pool), big(pool), pool.empty(5, "u1")]
    assert pool.lend(np.ones(1000)) is None
    header = next(iter(pool._segments.values())).mapping.words(4)
    assert pool.lend(header) is None
    assert used(pool) == len(kept)


def test_a_refused_dtype_leaves_no_hold(pool):
    """Lending a view of the pool's memory under a dtype that may not travel raises, and holds nothing."""
    array = pool.empty(8, np.float32)
    with pytest.raises(UnsupportedArray):
        pool.lend(array.view([("x", "<f4")]))
    del array
    assert used(pool) == 0


def test_every_view_keeps_its_block(pool):
    """A block is used until the last view, slice, buffer or reshape of it has died."""
    array = pool.empty((10, 10), np.float32)
    views = [array[3:], array.T, array.reshape(-1)[::3], memoryview(array), array.view(np.uint8), np.asarray(array[0])]
    del array
    while views:
        gc.collect()
        assert used(pool) == 1
        views.pop()
    assert used(pool) == 0


def test_a_loan_keeps_its_block_without_a_view(pool):
    """A loan holds its block until it is released or forgotten; releasing it again changes nothing."""
    one = pool.place(np.ones(5))
    other = pool.place(np.ones(5))
    assert used(pool) == 2
    one.release()
    one.release()
    assert used(pool) == 1
    del other
    assert used(pool) == 0


def test_releasing_a_loan_twice_does_not_end_anothers(pool):
    """Two loans of one block are released apart, however often each is released."""
    array = pool.empty(5)
    one, other = pool.lend(array), pool.lend(array)
    del array
    for _ in range(3):
        one.release()
    assert used(pool) == 1
    other.release()
    assert used(pool) == 0


def test_a_loan_that_is_over_cannot_be_sent(pool, make_pool):
    """Sending a loan twice, after its release, or through another pool is StaleHandle."""
    loan = pool.place(np.ones(5))
    with pytest.raises(StaleHandle):
        make_pool().send(loan)
    pool.send(loan)
    with pytest.raises(StaleHandle):
        pool.send(loan)
    released = pool.place(np.ones(5))
    released.release()
    with pytest.raises(StaleHandle):
        pool.send(released)
    pool.discard(loan.generation)
    assert used(pool) == 0


# -- publishing -------------------------------------------------------------------------------------------------------


def test_a_sent_block_waits_for_its_reader(pool, reader):
    """A sent block stays without any local holder until it was claimed, and is free once the claim has ended."""
    loan, _ = pool.publish(np.arange(5))
    pool.send(loan)
    assert (used(pool), pool.statistics().published_blocks) == (1, 1)
    view = reader.claim(loan.handle)
    assert (used(pool), pool.statistics().published_blocks) == (1, 0)
    del view
    assert used(pool) == 0


def test_a_discarded_block_is_free_and_its_handle_stale(pool, reader):
    """What was sent and discarded before its claim is free at once, and a claim that comes later is StaleHandle."""
    loan, _ = pool.publish(np.arange(5))
    pool.send(loan)
    reader.open(loan.handle)
    pool.discard(loan.generation)
    assert used(pool) == 0
    for read in (reader.claim, reader.open):
        with pytest.raises(StaleHandle):
            read(loan.handle)
    reader.release(loan.handle)


def test_discarding_what_was_claimed_changes_nothing(pool, reader):
    """A claim that came first is honoured, seen by the owner or not."""
    for look in (pool.statistics, lambda: None):
        loan, _ = pool.publish(np.arange(5))
        pool.send(loan)
        view = reader.claim(loan.handle)
        look()
        pool.discard(loan.generation)
        other = pool.place(np.arange(5) + 100)
        assert view.tolist() == [0, 1, 2, 3, 4]
        del view, other
        assert used(pool) == 0
    pool.discard(loan.generation)
    pool.discard(12345)


def test_discarding_one_of_two_handles_leaves_the_other(pool, reader):
    """A block sent twice and discarded once still waits for a reader."""
    array = pool.empty(3)
    array[:] = 8
    loans = [pool.lend(array), pool.lend(array)]
    del array
    for loan in loans:
        pool.send(loan)
    pool.discard(loans[0].generation)
    view = reader.claim(loans[0].handle)
    assert view.tolist() == [8, 8, 8]
    del view
    assert used(pool) == 0


def test_a_block_that_nobody_claims_is_free_after_its_time(make_pool, reader):
    """Past `claim_timeout_s` an unclaimed block is reused, and its handle is stale."""
    pool = make_pool(claim_timeout_s=0.0)
    loan, _ = pool.publish(np.arange(5))
    reader.open(loan.handle)
    pool.send(loan)
    assert used(pool) == 0
    with pytest.raises(StaleHandle):
        reader.claim(loan.handle)


def test_its_time_and_its_memory_are_those_that_it_is_given(make_pool):
    """Another clock decides when a claim is overdue, and another source gives the memory, or refuses it."""
    now, asked = [1000.0], []

    def create(size_bytes):
        asked.append(size_bytes)
        if len(asked) > 1:
            raise PoolExhausted("nothing left")
        return os_memory.create_sealed(size_bytes)

    pool = make_pool(claim_timeout_s=60.0, idle_s=1e6, clock=lambda: now[0], create=create)
    array = np.arange(5)
    loan, _ = pool.publish(array)
    pool.send(loan)
    now[0] += 59.0
    assert used(pool) == 1
    now[0] += 2.0
    assert used(pool) == 0
    with pytest.raises(PoolExhausted, match="nothing left"):
        big(pool)


def test_an_overdue_block_that_was_claimed_in_time_lives(make_pool, reader):
    """The owner looks at the claims before it gives up on a block."""
    pool = make_pool(claim_timeout_s=0.0)
    array = pool.empty(3)
    array[:] = 8
    loan = pool.lend(array)
    reader.open(loan.handle)
    view = reader.claim(loan.handle)
    pool.send(loan)
    del array
    assert used(pool) == 1
    assert view.tolist() == [8, 8, 8]
    del view
    assert used(pool) == 0


def test_a_block_that_was_never_sent_can_be_claimed_too(pool, reader):
    """A claim keeps a block also when its owner only lent it and lets go first."""
    loan = pool.place(np.arange(5))
    view = reader.claim(loan.handle)
    loan.release()
    other = pool.place(np.arange(5) + 100)
    assert used(pool) == 2
    assert view.tolist() == [0, 1, 2, 3, 4]
    del view, other


# -- stale handles ----------------------------------------------------------------------------------------------------


@pytest.mark.case(7)
def test_a_handle_of_reused_memory_is_stale(pool, reader):
    """After release and reuse the old handle is StaleHandle for open and claim, and the new one reads the new bytes."""
    old = pool.place(np.full(10, 1))
    reader.open(old.handle)
    old.release()
    assert used(pool) == 0
    new = pool.place(np.full(10, 2))
    assert (new.handle.name, new.handle.offset) == (old.handle.name, old.handle.offset)
    for read in (reader.open, reader.claim):
        with pytest.raises(StaleHandle, match="reused"):
            read(old.handle)
        assert (read(new.handle) == 2).all()


def test_a_generation_never_comes_back(pool):
    """Each use of a block has a generation of its own."""
    seen = [pool.place(np.ones(3)).generation for _ in range(200)]
    assert len(set(seen)) == 200


# -- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.case(9)
def test_a_full_budget_is_an_error_that_says_all(make_pool):
    """Beyond the budget PoolExhausted names the request, the budget, the use and the setting."""
    pool = make_pool(budget_bytes=5 * MIB)
    kept = [big(pool, 2), big(pool, 2)]
    with pytest.raises(PoolExhausted) as caught:
        big(pool, 2)
    text = str(caught.value)
    for part in (
        str(2 * MIB),
        str(5 * MIB),
        str(4 * MIB),
        "2 arrays",
        "pool_budget_bytes",
        "TENSORYARD_POOL_BUDGET_BYTES",
    ):
        assert part in text
    assert isinstance(caught.value, MemoryError)
    assert caught.value.retryable
    kept.pop()
    big(pool, 2)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2000, 5000, 20_000, 100_000, 600_000, 2 * MIB]), max_size=30), st.integers(0, 12 * MIB)
)
def test_the_budget_is_never_exceeded(sizes, budget):
    """Whatever is asked for, the memory reserved, headers included, stays within the budget."""
    with Pool(budget_bytes=budget) as pool:
        kept = []
        for size in sizes:
            try:
                kept.append(pool.empty(size, "u1"))
            except PoolExhausted:
                pass
            assert pool.statistics().reserved_bytes <= budget
        pool.check_invariants()


def test_a_request_that_can_never_fit_does_not_wait(make_pool):
    """More than the whole budget is refused at once, however long the caller would wait."""
    pool = make_pool(budget_bytes=4 * MIB)
    with pytest.raises(PoolExhausted):
        pool.empty(5 * MIB, "u1", timeout_s=1e6)
    with pytest.raises(PoolExhausted):
        pool.empty((1 << 40, 1 << 40), "u1", timeout_s=1e6)


def test_without_a_budget_an_eighth_of_the_machine_is_taken(make_pool):
    """The default budget is an eighth of the memory that this machine, or its control group, has."""
    assert make_pool(budget_bytes=None).budget_bytes == default_budget_bytes()
    assert default_budget_bytes() == os_memory.total_memory_bytes() // 8


def test_idle_segments_of_one_class_make_room_for_another(make_pool):
    """Free memory of one size does not stand in the way of another size."""
    pool = make_pool(budget_bytes=5 * MIB)
    for mib in (1, 2, 3, 4, 1, 2):
        assert big(pool, mib).size == mib * MIB
    assert [pool.empty(size, "u1").size for size in (100, 5000, 70_000)] == [100, 5000, 70_000]


def test_memory_that_the_machine_lacks_is_made_from_idle_segments(pool, monkeypatch):
    """When the machine refuses, idle segments are given back and the request is tried again."""
    kept = [big(pool, 2), big(pool, 3)]
    kept.clear()

    def available():
        return 64 * MIB + (0 if pool._reserved_bytes else 4 * MIB)

    monkeypatch.setattr(os_memory, "available_memory_bytes", available)
    assert big(pool, 1).size == MIB


def test_memory_that_the_machine_lacks_is_waited_for(pool, monkeypatch, in_thread, eventually):
    """Who waits is served when the machine has memory again; who does not is told how little there is."""
    left = [123]
    monkeypatch.setattr(os_memory, "available_memory_bytes", lambda: left[0])
    with pytest.raises(PoolExhausted, match=r"machine has 123 left.*budget is.*TENSORYARD_POOL_BUDGET_BYTES"):
        big(pool)
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=60.0)
    eventually(lambda: pool._waiters, "the thread waits")
    left[0] = 1 << 40
    assert waiting.result().size == MIB


# -- waiting ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(make_pool):
    """A pool of one large block, and that block."""
    pool = make_pool(budget_bytes=2 * MIB)
    return pool, [big(pool)]


def test_a_waiter_is_woken_by_a_release_in_another_thread(full, in_thread, eventually, monkeypatch):
    """Who waits for memory gets it when a view dies here, by the wake-up and not by looking again."""
    monkeypatch.setattr("tensoryard.shm.pool._RECHECK_S", 1e6)
    pool, kept = full
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._waiters, "the thread waits")
    kept.clear()
    assert waiting.result().size == MIB


def test_a_waiter_is_woken_by_a_readers_release(full, reader, in_thread, eventually, monkeypatch):
    """Who waits for memory gets it when a reader's view dies, by the reader's message."""
    monkeypatch.setattr("tensoryard.shm.pool._RECHECK_S", 1e6)
    pool, kept = full
    loan = pool.lend(kept.pop())
    pool.send(loan)
    views = [reader.claim(loan.handle)]
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._server._waiting, "the readers are told")
    views.clear()
    assert waiting.result().size == MIB
    assert not pool._server._waiting


def test_a_reader_that_connects_while_somebody_waits_wakes_too(full, make_reader, in_thread, eventually, monkeypatch):
    """A reader connected after the wait began is asked for a WAKE as well."""
    monkeypatch.setattr("tensoryard.shm.pool._RECHECK_S", 1e6)
    pool, kept = full
    loan = pool.lend(kept.pop())
    pool.send(loan)
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._server._waiting, "the readers are told")
    views = [make_reader().claim(loan.handle)]
    views.clear()
    assert waiting.result().size == MIB


def test_a_waiter_is_woken_when_a_reader_is_gone(full, in_thread, eventually, monkeypatch):
    """Who waits gets the memory of a reader whose connection ends."""
    monkeypatch.setattr("tensoryard.shm.pool._RECHECK_S", 1e6)
    pool, kept = full
    loan = pool.lend(kept.pop())
    pool.send(loan)
    reader = Reader()
    view = reader.claim(loan.handle)
    owner = reader._owners[pool.name]
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._waiters, "the thread waits")
    owner.sock.shutdown(2)
    assert waiting.result().size == MIB
    del view


def test_waiting_ends_at_its_deadline(full):
    """Without a release the wait ends with PoolExhausted that says how long it was."""
    pool, kept = full
    began = time.monotonic()
    with pytest.raises(PoolExhausted, match=r"\(0\.1 s waited\)"):
        pool.empty(MIB, "u1", timeout_s=0.1)
    assert time.monotonic() - began >= 0.1
    assert pool._waiters == 0
    assert len(kept) == 1


def test_a_lost_wake_up_is_made_good(full, in_thread, eventually, monkeypatch):
    """A waiter looks again by itself, so that a release without a wake-up only comes a little later."""
    pool, kept = full
    monkeypatch.setattr(Pool, "wake", lambda _self: None)
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._waiters, "the thread waits")
    kept.clear()
    assert waiting.result().size == MIB


def test_many_waiters_are_all_served(full, in_thread):
    """Ten threads that want the one block get it one after the other."""
    pool, kept = full

    def work():
        for _ in range(5):
            pool.empty(MIB, "u1", timeout_s=60.0)[:] = 1

    threads = [in_thread(work) for _ in range(10)]
    kept.clear()
    for thread in threads:
        thread.result()
    assert used(pool) == 0
    assert pool._waiters == 0


def test_waiting_ends_when_the_pool_closes(full, in_thread, eventually):
    """Who waits for memory of a pool that is closed gets SegmentGone."""
    pool, kept = full
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._waiters, "the thread waits")
    pool.close()
    with pytest.raises(SegmentGone):
        waiting.result()
    kept.clear()


def test_waiting_works_with_many_open_descriptors(spawn):
    """A pool whose descriptors are numbered beyond 1024 can be waited for."""
    remote = spawn()
    remote.do("resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)")
    if remote.get("resource.getrlimit(resource.RLIMIT_NOFILE)[0]") < 2000:
        pytest.skip("this machine allows too few descriptors")
    remote.do("files = [os.open('/', os.O_RDONLY) for _ in range(1100)]; pool = Pool(budget_bytes=2 << 20)")
    remote.do("kept = [pool.empty(1 << 20, 'u1')]; threading.Timer(0.1, kept.clear).start()")
    assert remote.get("pool.empty(1 << 20, 'u1', timeout_s=60.0).size") == MIB


# -- giving memory back -----------------------------------------------------------------------------------------------


def test_idle_segments_go_back_to_the_system(make_pool, reader, mapped):
    """A segment unused for `idle_s` is unmapped by its owner, and by each reader at its next look."""
    before = mapped()
    pool = make_pool(idle_s=0.0)
    array = big(pool)
    reader.open(pool.lend(array).handle)
    assert mapped() - before == 2 * (MIB + PAGE_BYTES)
    pool.housekeep()
    assert pool.statistics().segments == 1
    del array
    pool.housekeep()
    assert (pool.statistics().segments, pool.statistics().reserved_bytes) == (0, 0)
    assert mapped() - before == MIB + PAGE_BYTES
    reader.housekeep()
    assert reader.mapped_segments == 0
    assert mapped() == before


def test_the_servers_thread_gives_memory_back_by_itself(make_pool, mapped, eventually):
    """Nobody needs to call `housekeep` of a pool."""
    before = mapped()
    pool = make_pool(idle_s=0.0)
    big(pool)
    eventually(lambda: mapped() == before, "the segment is unmapped")


def test_segments_stay_for_their_idle_time(make_pool):
    """Before `idle_s` has passed a free segment is kept warm, and reused."""
    pool = make_pool(idle_s=1e6)
    for _ in range(5):
        big(pool)
        pool.housekeep()
    statistics = pool.statistics()
    assert (statistics.segments, statistics.segments_created_total, statistics.taken_total) == (1, 1, 5)


def test_a_handle_into_a_retired_segment_is_stale(make_pool, make_reader):
    """For a reader that has it mapped and one that has not, a segment given back is StaleHandle."""
    pool = make_pool(idle_s=0.0)
    readers = [make_reader(), make_reader(), make_reader()]
    loan = pool.place(np.zeros(MIB, "u1"))
    readers[0].open(loan.handle)
    readers[1].open(loan.handle)
    readers[1].housekeep()
    loan.release()
    pool.housekeep()
    assert pool.statistics().segments == 0
    readers[1].housekeep()
    for reader in readers:
        with pytest.raises(StaleHandle):
            reader.claim(loan.handle)


def test_a_reader_that_looks_seldom_still_gives_everything_back(make_pool, reader, mapped):
    """However many segments came and went while a reader did not look, one look unmaps them all."""
    before = mapped()
    pool = make_pool(idle_s=0.0, budget_bytes=600 * MIB)
    for _ in range(40):
        arrays = [pool.empty(600_000, "u1") for _ in range(10)]
        for array in arrays:
            reader.open(pool.lend(array).handle)
        del array
        arrays.clear()
        pool.housekeep()
    reader.housekeep()
    assert reader.mapped_segments == 0
    assert mapped() <= before  # what earlier tests left may have gone meanwhile


def test_a_reader_gives_retired_segments_back_when_it_maps_another(make_pool, reader):
    """A reader that is never told to look keeps only what was retired since it last mapped a segment."""
    pool = make_pool(idle_s=0.0)
    for _ in range(10):
        loan = pool.place(np.zeros(MIB, "u1"))
        reader.open(loan.handle)
        loan.release()
        pool.housekeep()
        assert reader.mapped_segments == 1


def test_a_view_outlives_the_segment_it_reads(make_pool, reader, mapped):
    """What `open` gave stays readable when its owner gave the segment back; its memory goes with it."""
    before = mapped()
    pool = make_pool(idle_s=0.0)
    loan = pool.place(np.full(MIB, 7, "u1"))
    view = reader.open(loan.handle)
    loan.release()
    pool.housekeep()
    reader.housekeep()
    assert (view == 7).all()
    del view
    assert mapped() <= before  # what others left may go meanwhile


def test_nothing_leaks_over_many_lives(mapped, runtime_folder):
    """After 200 pools and readers, descriptors, mappings, threads and the runtime folder are as before."""
    size, files, opened = mapped(), set(runtime_folder.iterdir()), Baseline()
    for _ in range(200):
        with Pool(budget_bytes=4 * MIB) as pool:
            reader = Reader()
            loan, _ = pool.publish(np.ones(10))
            pool.send(loan)
            view = reader.claim(loan.handle)
            assert view.sum() == 10
            reader.close()
    del pool, reader, loan, view
    opened.assert_nothing_new()
    assert mapped() <= size  # what others left may go meanwhile
    assert set(runtime_folder.iterdir()) <= files


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(6)
def test_views_outlive_the_pool(pool, make_reader, mapped):
    """After `close` the owner's and a reader's views hold their bytes; the memory goes with the last of them."""
    before = mapped()
    reader = make_reader()
    array = pool.empty(MIB, "u1")
    array[:] = 6
    loan = pool.lend(array)
    view = reader.claim(loan.handle)
    pool.close()
    assert (array == 6).all()
    assert (view == 6).all()
    array[0] = 1
    assert view[0] == 1
    del array
    loan.release()
    assert mapped() == before + MIB + PAGE_BYTES
    reader.close()
    assert view[1] == 6
    del view
    assert mapped() == before


def test_a_closed_pool_gives_nothing_and_counts_nothing(pool, reader):
    """After `close`, which may be called again, taking and sending are SegmentGone and the figures are zero."""
    array = pool.empty(100)
    loan = pool.lend(array)
    pool.close()
    pool.close()
    for act in (
        lambda: pool.empty(5),
        lambda: pool.place(np.ones(5)),
        lambda: pool.publish(array),
        lambda: pool.send(loan),
    ):
        with pytest.raises(SegmentGone, match="closed"):
            act()
    assert pool.lend(array) is None
    pool.discard(loan.generation)
    pool.housekeep()
    statistics = pool.statistics()
    assert (statistics.used_blocks, statistics.segments, statistics.reserved_bytes, statistics.readers) == (0, 0, 0, 0)
    assert pool.live_blocks() == []
    with pytest.raises(SegmentGone):
        reader.claim(loan.handle)


def test_a_pool_that_is_forgotten_gives_everything_back(mapped, runtime_folder, eventually):
    """A pool that is collected without `close` ends its thread and leaves no socket, descriptor or memory."""
    opened, before = Baseline(), (mapped(), sorted(runtime_folder.iterdir()))
    pool = Pool(budget_bytes=4 * MIB)
    loan = pool.place(np.ones(5))
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is not None, "a loan keeps its pool"
    del loan
    gc.collect()
    eventually(lambda: gone() is None, "the pool is collected")
    opened.assert_nothing_new()
    assert (mapped(), sorted(runtime_folder.iterdir())) == before


def test_two_pools_do_not_mix(make_pool, reader):
    """Pools of one process have names, books and sockets of their own; closing one leaves the other."""
    one, other = make_pool(), make_pool()
    assert one.name != other.name
    loans = [pool.place(np.full(5, number)) for number, pool in enumerate((one, other))]
    assert [reader.claim(loan.handle).tolist() for loan in loans] == [[0] * 5, [1] * 5]
    one.close()
    assert reader.claim(loans[1].handle).tolist() == [1] * 5
    assert (used(one), used(other)) == (0, 1)


@pytest.mark.case(12)
def test_nothing_ever_lies_in_dev_shm(pool, reader):
    """Nothing that owner or reader has open or mapped has a name in /dev/shm: it is all memfds."""
    loan = pool.place(np.ones(5 * MIB, "u1"))
    view = reader.claim(loan.handle)
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert [path for path in opened if "memfd:tensoryard" in path]
    assert not [path for path in opened if path.startswith("/dev/shm")]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    assert sum("memfd:tensoryard" in line for line in mapped) >= 4  # a segment and a table, on both sides
    named = [line for line in mapped if "/dev/shm" in line]
    # Semaphores are multiprocessing's, where another test of this process has used it.
    assert not [line for line in named if "/dev/shm/sem." not in line]
    del view


# -- looking ----------------------------------------------------------------------------------------------------------


def test_the_figures_say_who_keeps_what(pool, reader):
    """Statistics and live blocks count bytes, holders, readers and requests."""
    kept = pool.empty(5000, "u1", tag="r1")
    loan = pool.place(np.zeros(2000, "u1"), tag="r2")
    sent, _ = pool.publish(np.zeros(2000, "u1"), tag="r3")
    pool.send(sent)
    view = reader.claim(loan.handle)
    statistics = pool.statistics()
    assert statistics.used_bytes == 5120 + 2048 + 2048
    assert (statistics.used_blocks, statistics.published_blocks, statistics.readers) == (3, 1, 1)
    assert (statistics.taken_total, statistics.segments, statistics.segments_created_total) == (3, 2, 2)
    assert statistics.reserved_bytes == sum(segment.mapping.size_bytes for segment in pool._segments.values())
    first, second, third = pool.live_blocks()
    assert (first.request_id, first.size_bytes, first.holds, first.readers, first.published) == (
        "r1",
        5120,
        1,
        0,
        False,
    )
    assert (second.request_id, second.holds, second.readers) == ("r2", 1, 1)
    assert (third.request_id, third.holds, third.published) == ("r3", 0, True)
    assert first.age_s >= second.age_s >= third.age_s >= 0
    assert first.generation < second.generation < third.generation
    del kept, view
    pool.discard(sent.generation)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pool: pool._free.clear(),
        lambda pool: pool._idle_since.update({1: 0.0}),
        lambda pool: pool._by_address.clear(),
        lambda pool: setattr(pool, "_reserved_bytes", 1),
        lambda pool: pool._used_in.update({1: 2}),
    ],
)
def test_spoiled_books_are_noticed(spoil):
    """Each figure that the pool keeps twice is compared."""
    with Pool(budget_bytes=4 * MIB) as pool:
        kept = pool.empty(5)
        pool.check_invariants()
        spoil(pool)
        with pytest.raises(AssertionError):
            pool.check_invariants()
        del kept


def test_a_pools_socket_is_named_after_it_and_goes_with_it(pool, runtime_folder):
    """While a pool serves, its socket lies in the runtime folder, and after `close` no longer."""
    path = runtime_folder / f"pool-{pool.name}.sock"
    assert re.fullmatch("[0-9a-f]{16}", pool.name)
    assert path.is_socket()
    pool.close()
    assert not path.exists()


# -- uses of memory ---------------------------------------------------------------------------------------------------


def test_loans_that_overlap_have_one_use(pool):
    """A block that is lent all the time is the same bytes; once no loan was left, its owner may have written to it."""
    mine = pool.empty((4096,), np.uint8)
    first = pool.lend(mine)
    second = pool.lend(mine[:100])
    first.release()
    third = pool.lend(mine)
    assert first.use == second.use == third.use > 0
    second.release()
    third.release()
    assert pool.lend(mine).use != first.use


def test_what_was_copied_in_has_one_use_for_ever(pool):
    """Nobody can write to a copy that the pool has made, so all its loans are the same bytes; views have no number."""
    loan = pool.place(np.zeros(4096, np.uint8))
    assert loan.use == 1
    assert pool.lend(pool.empty((4096,), np.uint8)).use != 1
    assert len(pool._uses) <= 1


def test_uses_do_not_collect(pool):
    """However many arrays were lent, what is remembered are those lent now, and the last that came back."""
    for _ in range(100):
        pool.lend(pool.empty((4096,), np.uint8)).release()
    assert len(pool._uses) == 1


def test_a_loan_shows_its_bytes(pool):
    """The owner reads what it lent, at its place, shape and dtype; not when the loan is over."""
    mine = pool.empty((8, 1024), np.float32)
    mine[:] = np.arange(8)[:, None]
    loan = pool.lend(mine[3:5])
    assert np.array_equal(pool.view(loan), mine[3:5])
    loan.release()
    with pytest.raises(StaleHandle):
        pool.view(loan)
