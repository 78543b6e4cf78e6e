"""The reader: what it believes, what it keeps, and when it lets go."""

import contextlib
import gc
import os
import socket
import struct
import threading

import numpy as np
import pytest

from tensoryard.errors import ConfigError, ForgedHandle, SegmentGone, StaleHandle, TensoryardError
from tensoryard.shm import Pool, Reader, SharedMemoryArray, host_name, messages
from tensoryard.shm import reader as reader_module
from tensoryard.shm.os_memory import create_table
from tensoryard.shm.runtime_dir import listen
from tensoryard.shm.segment import OwnedSegment

from ..baseline import Baseline

MIB = 1 << 20
SLOTS_PER_PAGE = 511


def forge(handle, **changed):
    """The handle with other fields."""
    fields = dict(zip(("name", "shape", "dtype", "offset", "generation", "host"), handle.to_wire(), strict=True))
    return SharedMemoryArray(**{**fields, **changed})


@pytest.fixture
def small_tables(monkeypatch):
    """Lease tables of one page: 511 slots."""
    monkeypatch.setattr("tensoryard.shm.server.TABLE_BYTES", 4096)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_open_and_claim_read_the_same_bytes(pool, reader):
    """Both give read-only views of the memory itself."""
    array = pool.empty(5, np.int16)
    array[:] = range(5)
    loan = pool.lend(array)
    views = [reader.open(loan.handle), reader.claim(loan.handle)]
    array[3] = 77
    for view in views:
        assert view.tolist() == [0, 1, 2, 77, 4]
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_only_a_claim_keeps_a_block(pool, reader):
    """What was opened is its owner's to keep; what was claimed is the reader's."""
    loans = [pool.place(np.ones(5)), pool.place(np.ones(5))]
    opened, claimed = reader.open(loans[0].handle), reader.claim(loans[1].handle)
    for loan in loans:
        loan.release()
    assert pool.statistics().used_blocks == 1
    del claimed
    assert pool.statistics().used_blocks == 0
    del opened


def test_a_claim_lives_as_long_as_any_view_of_it(pool, reader):
    """Slices, reshapes, buffers and views under another dtype keep the block after the claimed array is gone."""
    loan = pool.place(np.arange(100.0).reshape(10, 10))
    view = reader.claim(loan.handle)
    loan.release()
    parts = [view[2:], view.T, view.reshape(-1)[::7], memoryview(view), view.view(np.uint8), view[0, 0:1]]
    del view
    while parts:
        gc.collect()
        assert pool.statistics().used_blocks == 1
        parts.pop()
    assert pool.statistics().used_blocks == 0


def test_one_block_has_many_readers_and_is_read_many_times(pool, make_reader):
    """Each of several readers claims a block several times; it is free when the last view has died, in any order."""
    loan = pool.place(np.arange(9))
    handle = loan.handle
    views = [reader.claim(handle) for reader in [make_reader() for _ in range(3)] for _ in range(4)]
    loan.release()
    while views:
        assert pool.statistics().used_blocks == 1
        assert all(view.tolist() == list(range(9)) for view in views)
        views.pop(len(views) // 2)
    assert pool.statistics().used_blocks == 0
    with pytest.raises(StaleHandle):
        make_reader().claim(handle)


def test_dropping_a_second_view_leaves_the_first(pool, reader):
    """A claim that comes and goes between two looks of the owner does not end another claim of the same block."""
    loan = pool.place(np.arange(5))
    first = reader.claim(loan.handle)
    loan.release()
    assert pool.statistics().used_blocks == 1
    reader.claim(loan.handle)
    assert pool.statistics().used_blocks == 1
    others = [pool.place(np.arange(5) + 100) for _ in range(3)]
    assert first.tolist() == [0, 1, 2, 3, 4]
    del first, others
    assert pool.statistics().used_blocks == 0


def test_release_lets_go_of_a_result_unread(pool, reader):
    """A sent block that nobody wants is free after `release`, which raises nothing for a stale or lost one."""
    loan, _ = pool.publish(np.ones(5))
    pool.send(loan)
    assert pool.statistics().used_blocks == 1
    reader.release(loan.handle)
    assert pool.statistics().used_blocks == 0
    for handle in (loan.handle, forge(loan.handle, host="elsewhere"), forge(loan.handle, offset=0)):
        reader.release(handle)


# -- more views than slots --------------------------------------------------------------------------------------------


def test_beyond_the_last_slot_a_result_is_copied_out(pool, reader, eventually):
    """The 4096th live view is a read-only copy with the same bytes, which uses up its handle and holds no block."""
    loan = pool.place(np.arange(5))
    views = [reader.claim(loan.handle) for _ in range(4095)]
    other, _ = pool.publish(np.full(3, 8))
    handle = other.handle
    pool.send(other)
    copy = reader.claim(handle)
    assert copy.tolist() == [8, 8, 8]
    assert copy.base is None
    assert not copy.flags.writeable
    assert views[17].tolist() == [0, 1, 2, 3, 4]
    del views, loan
    eventually(lambda: pool.statistics().used_blocks == 0, "the owner hears of the copy")
    with pytest.raises(StaleHandle):
        reader.claim(handle)


def test_a_copy_does_not_end_the_claim_of_a_live_view(small_tables, pool, reader, eventually):
    """When a block that is being read is read once more without a slot, the view that has one stays protected."""
    loan, _ = pool.publish(np.arange(5))
    handle = loan.handle
    first = reader.claim(handle)
    filler = pool.place(np.ones(3))
    fillers = [reader.claim(filler.handle) for _ in range(SLOTS_PER_PAGE - 1)]
    pool.send(loan)
    copy = reader.claim(handle)
    assert copy.base is None
    eventually(lambda: not pool.statistics().published_blocks, "the owner hears of the copy")
    others = [pool.place(np.arange(5) + 100) for _ in range(3)]
    assert first.tolist() == copy.tolist() == [0, 1, 2, 3, 4]
    del first, others, fillers, filler
    assert pool.statistics().used_blocks == 0


def test_a_copy_that_came_too_late_is_stale(small_tables, pool, reader, monkeypatch):
    """When the block is reused while it is being copied, the copy is thrown away as stale."""
    filler = pool.place(np.ones(3))
    fillers = [reader.claim(filler.handle) for _ in range(SLOTS_PER_PAGE)]
    loan = pool.place(np.arange(5))
    view = reader_module._view

    def reused_meanwhile(*args):
        loan.release()
        assert pool.statistics().used_blocks == 1
        return view(*args)

    monkeypatch.setattr(reader_module, "_view", reused_meanwhile)
    with pytest.raises(StaleHandle):
        reader.claim(loan.handle)
    del fillers


def test_slots_come_back_when_the_owner_has_looked(small_tables, pool, reader, eventually):
    """A reader that ran out of slots claims again once its releases were seen, which a copy brings about by itself."""
    loan = pool.place(np.ones(3))
    for _ in range(SLOTS_PER_PAGE):
        reader.claim(loan.handle)

    def claimed():
        return reader.claim(loan.handle).base is not None

    eventually(claimed, "the slots are cleared")


# -- what is not believed ---------------------------------------------------------------------------------------------


@pytest.mark.case(8)
def test_forged_handles_read_nothing(pool, reader):
    """No change of a true handle's fields reads memory it should not: it is forged, stale or gone."""
    loan = pool.place(np.zeros(600, "u1"))
    neighbour = pool.place(np.full(600, 9, "u1"))
    true = loan.handle
    size = 1024
    for changed in (
        {"offset": 0},
        {"offset": true.offset - 64},
        {"offset": true.offset + 512},
        {"offset": true.offset + 2 * MIB},
        {"offset": 1 << 40},
        {"shape": (size + 1,)},
        {"shape": (1 << 40,)},
        {"shape": (300,), "dtype": "<i8"},
        {"generation": 0},
        {"generation": 0, "offset": true.offset + 5 * size},
        {"generation": true.generation + 1},
        {"generation": (1 << 62) - 1},
        {"offset": neighbour.handle.offset},
        {"name": f"{pool.name}.2"},
        {"name": f"{pool.name}.999999999999999999"},
        {"name": f"{'0' * 16}.1"},
        {"host": "elsewhere"},
        {"host": ""},
    ):
        for read in (reader.open, reader.claim):
            with pytest.raises((ForgedHandle, StaleHandle, SegmentGone)):
                read(forge(true, **changed))
    assert pool.live_blocks()[0].readers == 0
    assert not reader.claim(true).any()


def test_a_forged_handle_uses_up_nobodys_claim(pool, reader):
    """A handle with a true generation and a wrong place leaves the block to the reader it was sent to."""
    loan, _ = pool.publish(np.arange(5))
    other = pool.place(np.arange(5))
    pool.send(loan)
    for _ in range(3):
        with pytest.raises(StaleHandle):
            reader.claim(forge(loan.handle, offset=other.handle.offset))
    assert pool.statistics().used_blocks == 2
    assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]


def test_every_refusal_is_one_of_ours(pool, reader):
    """Handles that were changed after their checks still end in an error of ours."""
    loan = pool.place(np.zeros(600, "u1"))
    for field, value in (("offset", -64), ("offset", 1 << 62), ("shape", (1 << 61,)), ("generation", 0)):
        handle = forge(loan.handle)
        setattr(handle, field, value)
        for read in (reader.open, reader.claim):
            with pytest.raises(TensoryardError):
                read(handle)


def test_another_host_is_named(pool, reader):
    """A handle of another host is SegmentGone that names both hosts."""
    loan = pool.place(np.ones(5))
    with pytest.raises(SegmentGone, match=f"node-b.*{host_name()}"):
        reader.claim(forge(loan.handle, host="node-b"))


class FakeOwner:
    """A socket that answers for a pool, with whatever it is told."""

    def __init__(self, folder):
        self.name = os.urandom(8).hex()
        self.path = folder / f"pool-{self.name}.sock"
        self.listener = listen(self.path)
        self.handle = SharedMemoryArray(f"{self.name}.1", (1,), "|u1", 4096, 1, host_name())
        self.threads = []

    def serve(self, *packets):
        """Accept one reader and send it packets, each (bytes, descriptors), one for each word it says."""

        def run():
            sock, _ = self.listener.accept()
            with sock:
                for number, (packet, fds) in enumerate(packets):
                    if number:
                        sock.recv(100)
                    if packet is None:
                        return
                    socket.send_fds(sock, [packet], fds)
                sock.recv(100)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def close(self):
        """End every connection."""
        self.listener.close()
        self.path.unlink()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def fake(runtime_folder):
    """A pool that is none."""
    owner = FakeOwner(runtime_folder)
    yield owner
    owner.close()


@pytest.fixture
def table():
    """The descriptor of a lease table."""
    fd, _mapping = create_table(4096)
    yield fd
    os.close(fd)


@pytest.fixture
def unsealed():
    """A memfd without seals."""
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 16)
    yield fd
    os.close(fd)


@pytest.fixture
def segment():
    """A true segment, number 1, in which no block is used."""
    owned = OwnedSegment(1, 64 << 10)
    yield owned
    owned.close()


@pytest.mark.parametrize("answer", [b"TYSHM-2", b"", b"x" * 60, None], ids=repr)
def test_a_pool_that_does_not_welcome_is_gone(fake, reader, table, answer):
    """Another version, nonsense, or a closed connection instead of a welcome is SegmentGone."""
    fake.serve((answer, [table] if answer else []))
    with pytest.raises(SegmentGone):
        reader.open(fake.handle)


def test_a_welcome_needs_exactly_one_sealed_table(fake, make_reader, table, unsealed):
    """A welcome without a table or with two is SegmentGone, one with unsealed memory is ForgedHandle."""
    before = Baseline()
    for fds, error in (([], SegmentGone), ([table, table], SegmentGone), ([unsealed], ForgedHandle)):
        fake.serve((messages.WELCOME, fds))
        with pytest.raises(error):
            make_reader().claim(fake.handle)
        fake.threads[-1].join(30)
    before.assert_nothing_new()


def test_memory_that_is_not_sealed_is_never_mapped(fake, reader, table, unsealed, mapped):
    """A segment whose owner could truncate it under us is ForgedHandle."""
    fake.serve((messages.WELCOME, [table]), (messages.pack(messages.SEGMENT, 1), [unsealed]))
    with pytest.raises(ForgedHandle):
        reader.open(fake.handle)
    assert reader.mapped_segments == 0


def test_a_segment_that_is_another_is_refused(fake, reader, table):
    """A segment whose own number is not the one asked for is ForgedHandle."""
    other = OwnedSegment(2, 64 << 10)
    fake.serve((messages.WELCOME, [table]), (messages.pack(messages.SEGMENT, 1), [other.fd]))
    with pytest.raises(ForgedHandle, match="segment 2 for 1"):
        reader.open(fake.handle)
    other.close()


def test_a_segment_without_its_descriptor_is_no_segment(fake, reader, table):
    """When the descriptor did not arrive, as with too many open files, the error says so."""
    fake.serve((messages.WELCOME, [table]), (messages.pack(messages.SEGMENT, 1), []))
    with pytest.raises(SegmentGone, match="too many open files"):
        reader.open(fake.handle)


@pytest.mark.parametrize("packet", [b"", messages.pack(b"?", 1), None], ids=repr)
def test_no_answer_means_that_the_pool_is_gone(fake, reader, table, packet):
    """An end of the connection, or an answer that is none, is SegmentGone."""
    fake.serve((messages.WELCOME, [table]), (packet, []))
    with pytest.raises(SegmentGone):
        reader.open(fake.handle)


def test_a_late_answer_is_passed_over(fake, reader, table, segment):
    """The answer to an earlier question, given up meanwhile, is dropped with its descriptor."""
    before = Baseline()
    held = [OwnedSegment(7, 64 << 10)]
    segment.generations[0] = 1

    def run():
        sock, _ = fake.listener.accept()
        with sock:
            socket.send_fds(sock, [messages.WELCOME], [table])
            sock.recv(100)
            socket.send_fds(sock, [messages.pack(messages.SEGMENT, 7)], [held[0].fd])
            sock.send(messages.pack(messages.NO_SEGMENT, 9))
            socket.send_fds(sock, [messages.pack(messages.SEGMENT, 1)], [segment.fd])
            sock.recv(100)

    fake.threads.append(threading.Thread(target=run, daemon=True))
    fake.threads[-1].start()
    view = reader.open(forge(fake.handle, offset=segment.offset_of(0)))
    assert view.tolist() == [0]
    held[0].close()
    reader.close()
    fake.threads[-1].join(30)
    held.clear()
    del view
    before.assert_nothing_new()


def test_an_owner_that_does_not_answer_is_given_up(fake, reader, table, monkeypatch):
    """A question unanswered for its time limit is SegmentGone; the connection stays for later."""
    monkeypatch.setattr(reader_module, "_TIME_LIMIT", struct.pack("@ll", 0, 50_000))
    done = threading.Event()

    def run():
        sock, _ = fake.listener.accept()
        with sock:
            socket.send_fds(sock, [messages.WELCOME], [table])
            done.wait(30)
            with contextlib.suppress(OSError):
                sock.send(messages.pack(messages.NO_SEGMENT, 1))

    fake.threads.append(threading.Thread(target=run, daemon=True))
    fake.threads[-1].start()
    with pytest.raises(SegmentGone):
        reader.open(fake.handle)
    assert reader._owners[fake.name].is_alive()
    done.set()


def test_an_owner_that_ended_with_words_unread_is_gone(fake, reader, table):
    """A connection that the owner's end cut off in the middle of a word is forgotten like any other."""
    spoken = threading.Event()

    def run():
        sock, _ = fake.listener.accept()
        with sock:
            socket.send_fds(sock, [messages.WELCOME], [table])
            sock.recv(100)
            sock.send(messages.pack(messages.NO_SEGMENT, 1))
            spoken.wait(30)

    fake.threads.append(threading.Thread(target=run, daemon=True))
    fake.threads[-1].start()
    with pytest.raises(StaleHandle):
        reader.open(fake.handle)
    owner = reader._owners[fake.name]
    assert owner.is_alive()
    owner.sock.send(messages.pack(messages.WAKE))
    spoken.set()
    fake.threads[-1].join(30)
    reader.housekeep()
    assert not reader._owners


# -- owners that come and go ------------------------------------------------------------------------------------------


def test_a_pool_that_is_not_there_is_gone(reader):
    """A handle of a pool without a socket, or whose process left its socket behind, is SegmentGone."""
    with pytest.raises(SegmentGone, match="gone"):
        reader.open(SharedMemoryArray("00000000deadbeef.1", (1,), "|u1", 0, 1, host_name()))


def test_a_dead_socket_is_gone(fake, reader):
    """A socket file without a process is SegmentGone."""
    fake.listener.close()
    with pytest.raises(SegmentGone):
        reader.open(fake.handle)


def test_a_reader_without_descriptors_says_so(reader, pool, monkeypatch):
    """When no socket can be made, the error is SegmentGone with the system's reason."""
    loan = pool.place(np.ones(3))

    def none_left():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reader_module, "_socket", none_left)
    with pytest.raises(SegmentGone, match="Too many open files"):
        reader.open(loan.handle)
    gc.collect()


def test_a_bad_runtime_folder_is_the_settings_fault(reader, pool, monkeypatch):
    """A reader whose runtime folder cannot be used says so, and not that the pool is gone."""
    loan = pool.place(np.ones(3))
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", "/" + "x" * 100)
    with pytest.raises(ConfigError):
        reader.open(loan.handle)


def test_housekeeping_forgets_owners_that_are_gone(make_pool, reader, mapped, eventually):
    """A closed pool's connection and mappings go at the next look; its live views stay."""
    before = mapped()
    pools = [make_pool(), make_pool()]
    loans = [pool.place(np.full(MIB, 5, "u1")) for pool in pools]
    view = reader.claim(loans[0].handle)
    reader.open(loans[1].handle)
    assert reader.mapped_segments == 2
    pools[0].close()
    reader.housekeep()
    assert reader.mapped_segments == 1
    assert (view == 5).all()
    pools[1].close()
    reader.housekeep()
    assert reader.mapped_segments == 0
    del view, loans
    assert mapped() == before


@pytest.mark.parametrize("way", ["open", "claim"])
def test_an_error_that_is_kept_keeps_no_memory(make_pool, reader, mapped, eventually, way):
    """Whoever keeps a StaleHandle or a SegmentGone, with its traceback, keeps neither mapping nor claim with it."""
    pool = make_pool()
    before = mapped()
    loan = pool.place(np.ones(MIB, "u1"))
    handle = loan.handle
    getattr(reader, way)(handle)
    loan.release()
    assert pool.statistics().used_blocks == 0
    kept = []
    with pytest.raises(StaleHandle) as caught:
        getattr(reader, way)(handle)
    kept.append(caught.value)
    assert pool.statistics().used_blocks == 0
    pool.close()
    eventually(lambda: reader.housekeep() or mapped() == before, "nothing is mapped any more")
    with pytest.raises(SegmentGone) as caught:
        getattr(reader, way)(handle)
    kept.append(caught.value)
    assert mapped() == before
    assert kept[0].__traceback__ is not None


def test_looking_for_a_new_owner_forgets_those_that_are_gone(make_pool, reader):
    """A reader that is never told to look keeps no more than the live owners when it meets a new one."""
    for _ in range(5):
        pool = make_pool()
        loan = pool.place(np.ones(3))
        reader.open(loan.handle)
        pool.close()
    assert len(reader._owners) == 1


def test_beyond_the_bound_the_owner_used_longest_ago_is_let_go(make_pool, reader, monkeypatch, eventually):
    """At most MAX_OWNERS stay connected; who is let go keeps the leases of its live views and is met again at need."""
    monkeypatch.setattr(reader_module, "MAX_OWNERS", 2)
    pools = [make_pool() for _ in range(3)]
    loans = [pool.place(np.full(3, number)) for number, pool in enumerate(pools)]
    view = reader.claim(loans[0].handle)
    reader.open(loans[1].handle)
    reader.open(loans[2].handle)
    assert list(reader._owners) == [pools[1].name, pools[2].name]
    loans[0].release()
    assert pools[0].statistics().used_blocks == 1
    assert view.tolist() == [0, 0, 0]
    again = reader.claim(forge(loans[0].handle))
    eventually(lambda: pools[1].statistics().readers == 0, "the other connection ends")
    assert pools[0].statistics().readers == 2
    del view
    assert pools[0].statistics().used_blocks == 1
    del again
    assert pools[0].statistics().used_blocks == 0


def test_views_and_leases_outlive_the_reader(pool, reader, eventually):
    """After `close`, live claims still keep their blocks and end with their views; the reader can be used again."""
    loan = pool.place(np.arange(5))
    handle = loan.handle
    view = reader.claim(handle)
    loan.release()
    reader.close()
    reader.close()
    assert pool.statistics().used_blocks == 1
    assert view.tolist() == [0, 1, 2, 3, 4]
    again = reader.claim(handle)
    del view
    assert pool.statistics().used_blocks == 1
    del again
    assert pool.statistics().used_blocks == 0
    reader.close()
    eventually(lambda: pool.statistics().readers == 0, "the connections end")


def test_how_it_reaches_a_pool_is_given(pool):
    """A reader asks what it was given for the connection to a pool, once per pool."""
    asked = []

    def connect(name):
        asked.append(name)
        return reader_module._Owner(name)

    reader = Reader(connect)
    loan, _ = pool.publish(np.arange(3))
    assert reader.open(loan.handle).tolist() == reader.claim(loan.handle).tolist() == [0, 1, 2]
    assert asked == [pool.name]
    reader.close()


def test_two_threads_that_meet_one_owner_share_its_connection(pool, reader, in_thread, monkeypatch, eventually):
    """When two threads meet a pool at once, one connection is kept and the other closed."""
    loan = pool.place(np.arange(5))
    both = threading.Barrier(2, timeout=30)
    make = reader_module._socket

    def together():
        both.wait()
        return make()

    monkeypatch.setattr(reader_module, "_socket", together)
    views = [in_thread(reader.claim, loan.handle) for _ in range(2)]
    assert [view.result().tolist() for view in views] == [[0, 1, 2, 3, 4]] * 2
    eventually(lambda: pool.statistics().readers == 1, "the second connection ends")


def test_two_threads_that_want_one_segment_map_it_once(pool, reader, in_thread):
    """A segment asked for by several threads at once is attached once."""
    keep = pool.place(np.ones(3))
    reader.open(keep.handle)
    loans = [pool.place(np.full(70_000, number, "u1")) for number in range(20)]
    threads = [in_thread(reader.claim, loan.handle) for loan in loans]
    for number, thread in enumerate(threads):
        assert (thread.result() == number).all()
    assert reader.mapped_segments == 2


def test_an_owner_that_is_frozen_holds_up_no_other(fake, pool, make_pool, reader, in_thread, eventually):
    """While one thread waits for an owner that does not answer, others read from other owners and housekeep."""
    fake.listener.listen(5)  # connects, and is never welcomed
    waiting = in_thread(reader.open, fake.handle)
    eventually(lambda: any(o.name == fake.name for o in list(reader_module._owners)), "the thread connects")
    for each in (pool, make_pool()):
        loan = each.place(np.ones(3))
        assert reader.open(loan.handle).tolist() == [1, 1, 1]
    reader.housekeep()
    assert waiting.is_alive()
    fake.listener.close()
    with pytest.raises(SegmentGone):
        waiting.result()


def test_a_default_timeout_of_the_application_changes_nothing(make_reader, make_pool):
    """With `socket.setdefaulttimeout` set, owners stay known, and releasing does not wait."""
    socket.setdefaulttimeout(1e-4)
    try:
        pool = make_pool()
        reader = make_reader()
        for _ in range(20):
            loan = pool.place(np.arange(5))
            assert reader.claim(loan.handle).tolist() == [0, 1, 2, 3, 4]
            reader.housekeep()
        assert list(reader._owners) == [pool.name]
        assert pool.statistics().readers == 1
    finally:
        socket.setdefaulttimeout(None)


def test_a_reader_reads_its_own_process(make_pool, reader):
    """Owner and reader may be one process, also when the owner's memory is at its budget."""
    pool = make_pool(budget_bytes=3 * MIB)
    loan = pool.place(np.arange(MIB // 8))
    assert reader.claim(loan.handle)[-1] == MIB // 8 - 1


def test_a_forgotten_reader_ends_its_connections(pool, eventually):
    """A reader that is collected without `close` leaves no connection and no claim."""
    reader = Reader()
    loan = pool.place(np.ones(3))
    reader.claim(loan.handle)
    loan.release()
    del reader
    gc.collect()
    eventually(lambda: pool.statistics().readers == 0, "the connection ends")
    assert pool.statistics().used_blocks == 0


def test_claims_ended_after_their_owner_closed_are_harmless(reader):
    """A view dropped after its pool is closed, or after the pool is collected, releases in silence."""
    with Pool(budget_bytes=4 * MIB) as pool:
        loan = pool.place(np.ones(3))
        views = [reader.claim(loan.handle) for _ in range(2)]
    views.pop()
    del pool, loan
    gc.collect()
    assert views.pop().tolist() == [1, 1, 1]
