"""Owners and readers in processes of their own: killed, stopped, forked and left to end by themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensoryard.errors import SegmentGone, StaleHandle
from tensoryard.shm import Pool
from tensoryard.shm.mapping import PAGE_BYTES

MIB = 1 << 20


@pytest.fixture
def reading(spawn):
    """Another process with a reader."""
    remote = spawn()
    remote.do("reader = Reader(); views = {}")
    return remote


@pytest.fixture
def owning(spawn):
    """Another process with a pool, and three arrays in it: small, large, and one that was sent."""
    remote = spawn()
    remote.do(
        """
pool = Pool(budget_bytes=64 << 20)
small, large = pool.place(np.arange(100.0)), pool.place(np.full(3 << 20, 7, 'u1'))
sent, _ = pool.publish(np.arange(9))
pool.send(sent)
"""
    )
    return remote


@pytest.fixture
def handles(owning, handle_of):
    """The handles of what the other process owns."""
    return {name: handle_of(owning.get(f"list({name}.handle.to_wire())")) for name in ("small", "large", "sent")}


# -- a reader elsewhere -----------------------------------------------------------------------------------------------


def test_claim_and_release_across_processes(pool, reading, eventually):
    """A claim in another process keeps the block; the end of its last view there frees it here, without a message."""
    loan, _ = pool.publish(np.arange(1000))
    pool.send(loan)
    total = "int(views['a'].sum()), views['a'].flags.writeable"
    assert reading.do("views['a'] = reader.claim(H(h))", total, h=loan.handle) == [499500, False]
    reading.do("views['b'] = views.pop('a')[5:]")
    assert pool.statistics().used_blocks == 1
    reading.do("views.clear()")
    assert pool.statistics().used_blocks == 0
    with pytest.raises(Exception, match="StaleHandle"):
        reading.do("reader.claim(H(h))", h=loan.handle)


def test_many_readers_of_one_block(pool, spawn):
    """A block sent to three processes is free when the last of them has finished."""
    remotes = [spawn() for _ in range(3)]
    array = pool.empty(50, np.float32)
    array[:] = 3
    for remote in remotes:
        loan = pool.lend(array)
        handle = loan.handle
        pool.send(loan)
        remote.tell("reader = Reader(); view = reader.claim(H(h))", "float(view.sum())", h=handle)
    del array, loan
    for remote in remotes:
        assert remote.answer() == 150
    for remote in remotes:
        assert pool.statistics().used_blocks == 1
        remote.do("del view")
    assert pool.statistics().used_blocks == 0


@pytest.mark.case(4)
def test_a_killed_readers_claims_end_at_once(pool, spawn, eventually):
    """After kill -9 of a reader its blocks are free, seen or not seen before; those of another reader stay."""
    killed, other = spawn(), spawn()
    sent = [pool.publish(np.full(10, number))[0] for number in range(4)]
    both = pool.place(np.full(10, 9))
    for loan in sent:
        pool.send(loan)
    wire = [loan.handle.to_wire() for loan in sent]
    killed.do("reader = Reader(); views = [reader.claim(H(h)) for h in hs]", hs=wire[:2])
    killed.do("views.append(reader.claim(H(h)))", h=both.handle)
    assert pool.statistics().published_blocks == 2
    killed.do("views.append(reader.claim(H(h)))", h=sent[2].handle)  # the owner has not looked since
    other.do("reader = Reader(); view = reader.claim(H(h))", h=both.handle)
    both.release()
    killed.kill()
    eventually(lambda: pool.statistics().readers == 1, "the owner notices")
    statistics = pool.statistics()
    assert (statistics.used_blocks, statistics.published_blocks) == (2, 1)
    assert other.get("view.tolist()") == [9] * 10
    pool.discard(sent[3].generation)
    other.kill()
    eventually(lambda: pool.statistics().used_blocks == 0, "all is free")


@pytest.mark.case(4)
def test_a_waiter_gets_a_killed_readers_memory(make_pool, reading, in_thread, eventually):
    """Who waits for memory that a reader holds gets it when the reader is killed."""
    pool = make_pool(budget_bytes=2 * MIB)
    loan, _ = pool.publish(np.ones(MIB, "u1"))
    pool.send(loan)
    reading.do("views['a'] = reader.claim(H(h))", h=loan.handle)
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._waiters, "the thread waits")
    reading.kill()
    assert waiting.result().size == MIB


def test_a_waiter_is_woken_by_a_release_in_another_process(make_pool, reading, in_thread, eventually, monkeypatch):
    """Who waits for memory that a reader elsewhere holds is woken when its view dies there."""
    monkeypatch.setattr("tensoryard.shm.pool._RECHECK_S", 1e6)
    pool = make_pool(budget_bytes=2 * MIB)
    loan, _ = pool.publish(np.ones(MIB, "u1"))
    pool.send(loan)
    reading.do("views['a'] = reader.claim(H(h))", h=loan.handle)
    waiting = in_thread(pool.empty, MIB, "u1", timeout_s=1e6)
    eventually(lambda: pool._server._waiting, "the readers are told")
    reading.do("views.clear()")
    assert waiting.result().size == MIB


def test_a_stopped_reader_keeps_its_blocks_and_holds_up_nobody(pool, spawn, reader):
    """A reader under SIGSTOP keeps what it claimed, others are served, and its views are the same when it goes on."""
    stopped = spawn()
    loan, _ = pool.publish(np.arange(100))
    pool.send(loan)
    stopped.do("reader = Reader(); view = reader.claim(H(h))", h=loan.handle)
    stopped.stop()
    assert pool.statistics().used_blocks == 1
    for _ in range(5):
        other, _ = pool.publish(np.full(100, -1))
        handle = other.handle
        pool.send(other)
        assert (reader.claim(handle) == -1).all()
        pool.housekeep()
    assert pool.statistics().used_blocks == 1
    stopped.resume()
    assert stopped.get("view.tolist()") == list(range(100))
    stopped.do("del view")
    assert pool.statistics().used_blocks == 0


def test_a_pool_closes_while_a_reader_is_stopped(make_pool, spawn):
    """Closing a pool does not wait for a frozen reader, whose view stays good."""
    pool = make_pool()
    stopped = spawn()
    loan = pool.place(np.arange(100))
    stopped.do("reader = Reader(); view = reader.claim(H(h))", h=loan.handle)
    stopped.stop()
    pool.close()
    stopped.resume()
    assert stopped.get("view.tolist()") == list(range(100))
    stopped.do("reader.housekeep(); del view; reader.close()")
    stopped.finish()


def test_a_stopped_reader_gives_retired_memory_back_when_it_goes_on(make_pool, spawn):
    """However much was retired while a reader was stopped, its next look unmaps all of it."""
    pool = make_pool(idle_s=0.0, budget_bytes=600 * MIB)
    stopped = spawn()
    loans = [pool.place(np.zeros(600_000, "u1")) for _ in range(20)]
    wire = [loan.handle.to_wire() for loan in loans]
    stopped.do("reader = Reader()\nfor h in hs: reader.open(H(h))", hs=wire)
    assert stopped.get("reader.mapped_segments") == 20
    stopped.stop()
    loans.clear()
    pool.housekeep()
    for _ in range(400):  # more than the notices that a socket would hold
        pool.place(np.zeros(600_000, "u1")).release()
        pool.housekeep()
    stopped.resume()
    assert stopped.do("reader.housekeep()", "reader.mapped_segments") == 0


def test_a_reader_unmaps_what_the_owner_returns(make_pool, reading):
    """A segment given back leaves a reader's address space too, but for what its live views read."""
    pool = make_pool(idle_s=0.0)
    loans = [pool.place(np.full(MIB, number, "u1")) for number in range(2)]
    reading.do("from pathlib import Path")
    count = "Path('/proc/self/maps').read_text().count('/memfd:tensoryard (')"
    reading.do("views['a'] = reader.open(H(h))", h=loans[0].handle)
    reading.do("reader.open(H(h))", h=loans[1].handle)
    assert reading.get(count) == 2
    loans.clear()
    pool.housekeep()
    assert reading.do("reader.housekeep()", count) == 1
    assert reading.get("bool((views['a'] == 0).all())")
    assert reading.do("views.clear(); gc.collect()", count) == 0


def test_a_reader_that_ends_by_itself_says_nothing(pool, reading, eventually):
    """A process that ends with live views, open readers and module globals that hold them ends in silence."""
    loan = pool.place(np.arange(5))
    reading.do("views['a'] = reader.claim(H(h)); views['b'] = memoryview(views['a'])", h=loan.handle)
    reading.do("import tensoryard; tensoryard.kept = [reader.claim(H(h)), reader]; loop = [views]; loop.append(loop)")
    loan.release()
    assert pool.statistics().used_blocks == 1
    reading.finish()
    eventually(lambda: pool.statistics().used_blocks == 0, "its claims end")


# -- an owner elsewhere -----------------------------------------------------------------------------------------------


def test_a_killed_owners_memory_stays_with_its_readers(owning, handles, reader, mapped):
    """After kill -9 of the owner views stay readable and equal, new segments are SegmentGone, and nothing stays."""
    before = mapped()
    views = [reader.claim(handles["small"]), reader.open(handles["sent"])]
    owning.kill()
    assert views[0].tolist() == list(range(100))
    assert views[1].tolist() == list(range(9))
    with pytest.raises(SegmentGone):
        reader.claim(handles["large"])
    reader.housekeep()
    for read in (reader.open, reader.claim):
        with pytest.raises(SegmentGone):
            read(handles["small"])
    assert views[0].tolist() == list(range(100))
    assert mapped() > before
    views.clear()
    assert mapped() == before


def test_a_killed_owners_socket_is_swept(owning, runtime_folder, make_pool):
    """The socket that kill -9 leaves behind is removed when the next pool starts, and live ones are not."""
    living = make_pool()
    path = runtime_folder / f"pool-{owning.get('pool.name')}.sock"
    owning.kill()
    assert path.exists()
    make_pool()
    assert not path.exists()
    assert (runtime_folder / f"pool-{living.name}.sock").exists()


def test_a_stopped_owner_keeps_what_is_mapped_readable(owning, handles, reader, in_thread):
    """While its owner is under SIGSTOP mapped memory is read and claimed; what must be asked for waits."""
    reader.open(handles["small"])
    owning.stop()
    assert reader.claim(handles["small"]).tolist() == list(range(100))
    waiting = in_thread(reader.claim, handles["large"])
    reader.housekeep()
    owning.resume()
    assert (waiting.result() == 7).all()


@pytest.mark.case(7)
def test_a_stale_handle_of_another_process(owning, handles, reader):
    """What its owner freed and used again is StaleHandle here, never the new bytes."""
    assert reader.claim(handles["small"]).tolist() == list(range(100))
    owning.do("small.release(); pool.statistics(); new = pool.place(np.full(100, -1.0))")
    new = owning.get("list(new.handle.to_wire())")
    assert (new[0], new[3]) == (handles["small"].name, handles["small"].offset)
    for read in (reader.open, reader.claim):
        with pytest.raises(StaleHandle):
            read(handles["small"])


def test_an_owner_that_ends_by_itself_leaves_nothing(owning, handles, reader, runtime_folder):
    """A process that ends with an open pool, loans and views ends in silence and takes its socket with it."""
    view = reader.claim(handles["small"])
    name = owning.get("pool.name")
    owning.do("import tensoryard; tensoryard.kept = [pool, pool.empty(5)]; array = pool.empty(9); loop = [pool]")
    owning.do("loop.append(loop)")
    owning.finish()
    assert not (runtime_folder / f"pool-{name}.sock").exists()
    assert view.tolist() == list(range(100))


def test_a_thread_that_waits_for_memory_does_not_keep_its_process(owning):
    """A process ends in silence though a daemon thread waits for memory and another has a reader."""
    owning.do("pool = Pool(budget_bytes=2 << 20); kept = pool.empty(1 << 20, 'u1')")
    owning.do(
        "thread = threading.Thread(target=pool.empty, args=(1 << 20, 'u1'), kwargs={'timeout_s': 1e6}, daemon=True)"
    )
    owning.do("thread.start()\nwhile not pool._waiters: time.sleep(0.001)")
    owning.finish()


# -- forks ------------------------------------------------------------------------------------------------------------

# A child that waits for a byte, runs code, and ends without Python's usual end or with it; one that is to outlive its
# parent ends only when it is killed.
_FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads at a fork

def fork(code, end, outlive=False):
    go, went = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        if not outlive:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, should the child hang
            os.close(go[1])
        os.close(went[0])
        ok = b"n"
        try:
            os.read(go[0], 1)
            exec(code, globals())
            gc.collect()
            ok = b"y"
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os.write(went[1], ok)
        os.read(go[0], 1)
        end(0)
    os.close(go[0])
    os.close(went[1])
    return pid, go[1], went[0]

def run(child):
    os.write(child[1], b"g")
    return os.read(child[2], 1).decode()

def reap(child):
    os.close(child[1])
    os.close(child[2])
    return os.waitpid(child[0], 0)[1]
"""


@pytest.mark.case(24)
@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_a_forked_child_does_not_end_its_parents_leases(pool, reading, end):
    """When a child of a reader drops the views it was born with, and ends, its parent's claims stay."""
    loan = pool.place(np.arange(50))
    reading.do("views['a'] = reader.claim(H(h))", h=loan.handle)
    loan.release()
    assert pool.statistics().used_blocks == 1
    reading.do(_FORK)
    reading.do(f"child = fork('assert views.pop(\"a\").tolist() == list(range(50)); reader.close()', {end})")
    assert reading.get("run(child)") == "y"
    assert pool.statistics().used_blocks == 1
    assert reading.get("reap(child)") == 0
    assert pool.statistics().used_blocks == 1
    others = [pool.place(np.full(50, -1)) for _ in range(3)]
    assert reading.get("views['a'].tolist()") == list(range(50))
    reading.do("views.clear()")
    assert pool.statistics().used_blocks == len(others)


@pytest.mark.case(24)
def test_a_forked_child_does_not_keep_its_parents_leases(pool, reading, eventually):
    """When a reader is killed, its claims end though a child of it lives on; the child's views stay mapped."""
    loan = pool.place(np.arange(50))
    reading.do("views['a'] = reader.claim(H(h))", h=loan.handle)
    loan.release()
    reading.do(_FORK)
    reading.do("child = fork('', os._exit, outlive=True)")
    child = reading.get("child[0]")
    try:
        assert reading.get("run(child)") == "y"
        reading.kill()
        eventually(lambda: pool.statistics().readers == 0, "the owner notices")
        assert pool.statistics().used_blocks == 0
        assert "memfd:tensoryard (" in Path(f"/proc/{child}/maps").read_text()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_reads_for_itself(pool, reading):
    """A child uses its parent's Reader as its own: it connects anew and holds claims that end with it."""
    loan = pool.place(np.arange(50))
    reading.do("reader.open(H(h))", h=loan.handle)
    reading.do(_FORK)
    reading.do("child = fork('child_view = reader.claim(H(h)); assert child_view.sum() == 1225', os._exit)")
    assert reading.get("run(child)") == "y"
    loan.release()
    statistics = pool.statistics()
    assert (statistics.readers, statistics.used_blocks) == (2, 1)
    assert reading.get("reap(child)") == 0


def test_a_forked_child_gives_its_claims_back_at_its_end(pool, reading, eventually):
    """Claims that a child made itself end when the child ends."""
    loan = pool.place(np.arange(50))
    reading.do(_FORK)
    reading.do("child = fork('child_view = reader.claim(H(h))', os._exit)", h=loan.handle)
    assert reading.get("run(child)") == "y"
    loan.release()
    assert pool.statistics().used_blocks == 1
    assert reading.get("reap(child)") == 0
    eventually(lambda: pool.statistics().used_blocks == 0, "the child's claim ends")


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_a_forked_child_of_an_owner_changes_nothing(owning, handles, reader, runtime_folder, end):
    """A child that drops its parent's loans and uses its pool leaves the parent's blocks and socket alone."""
    code = """
before = len(os.listdir('/proc/self/fd'))
small.release()
large = None
assert pool.statistics().used_blocks == 0
pool.housekeep()
pool.discard(sent.generation)
pool.check_invariants()
for act in (lambda: pool.empty(5), lambda: pool.send(sent), lambda: pool.place(np.ones(3))):
    try:
        act()
    except Exception as error:
        assert type(error).__name__ == 'SegmentGone', error
    else:
        raise AssertionError('a child took memory of its parent')
pool.close()
"""
    view = reader.claim(handles["small"])
    owning.do(_FORK)
    owning.do(f"child = fork(code, {end})", code=code)
    assert owning.get("run(child)") == "y"
    assert owning.get("pool.statistics().used_blocks") == 3
    owning.do("pool.check_invariants()")
    for name in handles:
        assert reader.claim(handles[name]).size
    assert owning.get("reap(child)") == 0
    assert (runtime_folder / f"pool-{handles['small'].pool_name}.sock").exists()
    assert view.tolist() == list(range(100))
    assert owning.get("pool.place(np.arange(3)).handle is not None")


def test_a_forked_child_of_an_owner_does_not_outlive_it_as_owner(
    owning, handles, reader, make_reader, make_pool, runtime_folder, eventually
):
    """When an owner is killed, readers and whoever sweeps its socket notice though a child of it lives on."""
    reader.open(handles["small"])
    owning.do(_FORK)
    owning.do(
        "code = \"assert not [fd for fd in os.listdir('/proc/self/fd')"
        " if 'memfd:tensoryard (' in os.path.realpath('/proc/self/fd/' + fd)]\""
    )
    owning.do("small = large = sent = None; gc.collect(); child = fork(code, os._exit, outlive=True)")
    child = owning.get("child[0]")

    def forgotten():
        reader.housekeep()
        return reader.mapped_segments == 0

    try:
        assert owning.get("run(child)") == "y"
        owning.kill()
        eventually(forgotten, "the reader notices")
        with pytest.raises(SegmentGone):
            make_reader().open(handles["small"])
        make_pool()
        assert not (runtime_folder / f"pool-{handles['small'].pool_name}.sock").exists()
        assert Path(f"/proc/{child}").exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_owns_for_itself(owning, handle_of, reader):
    """A child can have a pool of its own, which is served, and a lock held at the fork does not stop it."""
    owning.do(_FORK)
    owning.do("fields = os.pipe()")
    code = """
pool.statistics()
own = Pool(budget_bytes=4 << 20)
loan = own.place(np.full(5, 3))
os.write(fields[1], json.dumps(loan.handle.to_wire()).encode())
"""
    owning.do("pool._lock.acquire(); child = fork(code, os._exit); pool._lock.release()", code=code)
    assert owning.get("run(child)") == "y"
    handle = handle_of(owning.get("json.loads(os.read(fields[0], 1000))"))
    assert reader.claim(handle).tolist() == [3] * 5
    assert owning.get("reap(child)") == 0


@pytest.mark.case(24)
def test_a_subprocess_inherits_no_descriptor(owning, handles, reader):
    """Every descriptor closes when a process starts another program."""
    reader.open(handles["small"])
    code = "import os; print([os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')])"
    with Pool(budget_bytes=4 * MIB) as pool:
        pool.empty(5)
        done = subprocess.run(
            [sys.executable, "-S", "-c", code], capture_output=True, text=True, close_fds=False, timeout=30, check=True
        )
    assert "memfd:tensoryard" not in done.stdout
    assert "socket:" not in done.stdout


def test_memory_is_gone_when_every_process_is(spawn, handle_of, reader, eventually):
    """After kill -9 of owner and readers the machine's shared memory is back: nothing needs to be cleaned up."""
    owner, other = spawn(), spawn()
    owner.do("pool = Pool(budget_bytes=64 << 20); loan = pool.place(np.ones(32 << 20, 'u1'))")
    other.do("reader = Reader(); view = reader.claim(H(h))", h=owner.get("list(loan.handle.to_wire())"))
    inode = owner.get("os.stat(f'/proc/self/fd/{next(iter(pool._segments.values())).fd}').st_ino")
    owner.kill()
    other.kill()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        found += [line for line in maps.splitlines() if "memfd:tensoryard (" in line and line.split()[4] == str(inode)]
    assert found == []


def test_a_large_block_costs_its_own_size(make_pool):
    """What a pool reserves for one large array is its size class and one page."""
    pool = make_pool()
    kept = pool.empty(3 * MIB, "u1")
    assert pool.statistics().reserved_bytes == 3 * MIB + PAGE_BYTES
    del kept
