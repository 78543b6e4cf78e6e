"""Porters of two hosts in one process: real pools, readers, sockets and leases; bytes go by a carrier in memory."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tensoryard.errors import OutOfReach, SegmentGone, StaleHandle
from tensoryard.settings import Settings
from tensoryard.shm import Courier, Pool, Reader, messages
from tensoryard.shm.courier import porter_path
from tensoryard.workers.porter import Counters, Parcel, Porter
from tensoryard.workers.porter_door import PorterDoor

CLUSTER = "here"
DEADLINE_S = 60.0
SIZE = 100_000


class Carrier:
    """What Ray's object store is to porters: hands copies on; fails when it is told to, or dies having borrowed."""

    #: The host that borrows, of which the lender only remembers the name.
    host = "x"

    def __init__(self, porters):
        self._porters = porters
        self.dying = False
        self.brought = 0
        self.failure = None
        self.gate = threading.Event()
        self.gate.set()

    def put(self, data):
        copy = data.copy()
        copy.flags.writeable = False
        return copy

    def bring(self, parcel):
        assert self.gate.wait(DEADLINE_S)
        if self.dying:
            self._porters[parcel.handle.host].lend(parcel, self.host)
            raise OutOfReach("died")
        if self.failure is not None:
            raise self.failure
        if parcel.handle.host not in self._porters:
            raise OutOfReach("no porter")
        self.brought += 1
        return self._porters[parcel.handle.host].lend(parcel, self.host)

    def give_back(self, parcel):
        if parcel.handle.host in self._porters:
            self._porters[parcel.handle.host].take_back(parcel, self.host)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.at = 0.0

    def __call__(self):
        return self.at


class World:
    """Hosts, each with a porter, a door, and what lives there."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.porters = {}
        self.carrier = Carrier(self.porters)
        self.clock = Clock()
        self.closing = []

    def on(self, host):
        """From now on, this process is on that host."""
        self._monkeypatch.setenv("TENSORYARD_HOST", host)

    def porter(self, host, **settings):
        self.on(host)
        porter = self.porters[host] = Porter(self.carrier, Settings(**settings), self.clock)
        door = PorterDoor(porter_path(CLUSTER, host), porter.fetch, porter.withdraw, porter.housekeep)
        door.start()
        self.closing += [door, porter]
        return porter

    def pool(self, host):
        self.on(host)
        pool = Pool(budget_bytes=64 << 20)
        self.closing.insert(0, pool)
        return pool

    def reader(self, host):
        self.on(host)
        courier = Courier()
        courier.serve(CLUSTER)
        reader = Reader(courier=courier)
        self.closing.insert(0, reader)
        return reader

    def close(self):
        for thing in self.closing:
            thing.close()


@pytest.fixture
def world(monkeypatch):
    world = World(monkeypatch)
    yield world
    for porter in world.porters.values():
        porter.check_invariants()
    world.close()


@pytest.fixture
def two(world):
    """Porters on hosts a and b."""
    world.porter("a")
    world.porter("b")
    return world


def array(value=7):
    return np.full((SIZE // 4,), value, np.float32)


def until(condition, what):
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        gc.collect()
        assert time.monotonic() < give_up, what
        time.sleep(0.005)


def used(pool):
    return pool.statistics().used_blocks


def test_an_input_is_read_on_another_host(two):
    """What a pool of host a lends is a read-only array on host b, with shape, dtype and content."""
    loan = two.pool("a").place(array().reshape(5, -1))
    got = two.reader("b").open(loan.handle, loan.use)
    assert got.shape == (5, SIZE // 20)
    assert got.dtype == np.float32
    assert (got == 7).all()
    assert not got.flags.writeable


def test_what_came_and_cannot_be_landed_goes_at_once(two, monkeypatch):
    """The error keeps neither its frames nor, by them, bytes that the store would have to keep too."""
    loan = two.pool("a").place(array())
    came = []

    def bring(_parcel):
        data = np.zeros(5, np.uint8)
        came.append(weakref.ref(data))
        return data

    monkeypatch.setattr(two.carrier, "bring", bring)
    gc.disable()
    try:
        with contextlib.suppress(StaleHandle):
            two.porters["b"].fetch(loan.handle, loan.use, "")
        assert [reference() for reference in came] == [None]
    finally:
        gc.enable()


def test_one_block_travels_once_for_all_its_readers(two):
    """Three readers of host b and one of host c share one put; those of b one landing; each has the right bytes."""
    two.porter("c")
    loan = two.pool("a").place(array())
    readers = [two.reader("b"), two.reader("b"), two.reader("b"), two.reader("c")]
    two.carrier.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        coming = [threads.submit(reader.open, loan.handle, loan.use) for reader in readers]
        until(lambda: two.porters["b"].report()["shared"] == 2, "the others wait")
        two.carrier.gate.set()
        assert all((each.result(DEADLINE_S) == 7).all() for each in coming)
    assert two.porters["a"].report()["puts"] == 1
    assert two.porters["b"].report()["fetched_bytes"] == {"a": SIZE}
    assert two.porters["c"].report()["fetched_bytes"] == {"a": SIZE}


def test_what_has_landed_lives_as_long_as_its_views(two):
    """A landing is an ordinary lease: its block is free when the last view is gone and the cache has let go of it."""
    loan = two.pool("a").place(array())
    first, second = two.reader("b").open(loan.handle, loan.use), two.reader("b").open(loan.handle, loan.use)
    two.clock.at += 1000
    two.porters["b"].housekeep()
    assert two.porters["b"].report()["landed_now"] == 0
    assert (first == 7).all()
    del first
    assert two.porters["b"].report()["used_blocks"] == 1
    assert (second == 7).all()
    del second
    until(lambda: two.porters["b"].report()["used_blocks"] == 0, "the block is free")


def test_w_53_another_use_of_a_block_is_another_array(two):
    """Memory that its owner wrote to between two requests is never served from a cache, nor within the same request."""
    pool, reader = two.pool("a"), two.reader("b")
    mine = pool.empty((SIZE,), np.uint8)
    for value in (1, 2):
        mine[:] = value
        loan = pool.lend(mine)
        assert (reader.open(loan.handle, loan.use) == value).all()
        loan.release()
    assert two.porters["a"].report()["puts"] == 2


def test_w_53_who_does_not_know_the_use_never_shares(two):
    """Without a number, as an older client sends it, each request fetches for itself."""
    pool, reader = two.pool("a"), two.reader("b")
    mine = pool.empty((SIZE,), np.uint8)
    loan = pool.lend(mine)
    for value in (1, 2):
        mine[:] = value
        assert (reader.open(loan.handle) == value).all()
    assert two.porters["b"].report()["landed_now"] == two.porters["a"].report()["lent_now"] == 0


def test_a_result_stays_lent_until_it_has_landed(two):
    """A published block is kept by its owner while the bytes are on their way, and is free when they are there."""
    pool, reader = two.pool("a"), two.reader("b")
    loan, _ = pool.publish(array())
    handle = loan.handle
    pool.send(loan)
    lent, landed = threading.Event(), threading.Event()
    put = two.carrier.put

    def slow(data):
        lent.set()
        assert landed.wait(DEADLINE_S)
        return put(data)

    two.carrier.put = slow
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(reader.claim, handle)
        assert lent.wait(DEADLINE_S)
        assert used(pool) == 1
        landed.set()
        result = coming.result(DEADLINE_S)
    until(lambda: used(pool) == 0, "its owner has it back")
    assert (result == 7).all()
    assert two.porters["a"].report()["leases_now"] == 0


@pytest.mark.case(34)
def test_a_borrower_that_died_may_ask_again(two):
    """A result stays with its owner when the porter that fetched it dies: the next one gets it, and nothing is left."""
    pool, reader = two.pool("a"), two.reader("b")
    loan, _ = pool.publish(array())
    handle = loan.handle
    pool.send(loan)
    question = ("word",)
    two.carrier.dying = True
    with pytest.raises(OutOfReach):
        two.porters["b"].fetch(handle, 0, *question)
    two.carrier.dying = False
    two.porters["a"].borrower_died("x")
    assert used(pool) == 1
    assert (reader.claim(two.porters["b"].fetch(handle, 0, *question)) == 7).all()
    until(lambda: used(pool) == 0, "its owner has it back")
    assert two.porters["a"].report()["lent_now"] == 0


def test_who_asks_twice_has_borrowed_once(two):
    """A porter that did not hear the answer asks again, and gives back once: then nothing is lent any more."""
    loan, _ = (pool := two.pool("a")).publish(array())
    handle = loan.handle
    pool.send(loan)
    two.carrier.host = "b"
    lend = two.porters["a"].lend
    lend(Parcel.of(handle, 0, "word"), "b")
    assert (two.reader("b").claim(two.porters["b"].fetch(handle, 0, "word")) == 7).all()
    assert two.porters["a"].report()["lent_now"] == two.porters["a"].report()["leases_now"] == 0
    assert two.porters["a"].report()["puts"] == 1


def test_what_a_dead_borrower_had_is_given_up_in_time(two):
    """When nobody comes in its place, its owner has the block back after a while."""
    pool = two.pool("a")
    loan, _ = pool.publish(array())
    handle = loan.handle
    pool.send(loan)
    two.carrier.dying = True
    with pytest.raises(OutOfReach):
        two.porters["b"].fetch(handle, 0, "word")
    two.porters["a"].borrower_died("x")
    two.clock.at += 11
    two.porters["a"].housekeep()
    until(lambda: used(pool) == 0, "its owner has it back")
    assert two.porters["a"].report()["lent_now"] == two.porters["a"].report()["leases_now"] == 0


def test_memory_that_is_gone_is_told_by_its_name(two):
    """A block that was reused is stale, a process that ended is gone: both as on one host, and both leave nothing."""
    pool, reader = two.pool("a"), two.reader("b")
    loan = pool.place(array())
    handle, use = loan.handle, loan.use
    loan.release()
    last = pool.place(array(8)).handle
    with pytest.raises(StaleHandle):
        reader.open(handle, use)
    pool.close()
    two.porters["a"].housekeep()
    with pytest.raises(SegmentGone, match="is gone"):
        reader.open(last, use)
    for porter in two.porters.values():
        report = porter.report()
        assert (report["lent_now"], report["landed_now"], report["leases_now"]) == (0, 0, 0)


def test_all_who_wait_hear_of_a_failure(two):
    """When the bytes do not come, each who waits gets the error, and the next who asks tries again."""
    loan = two.pool("a").place(array())
    reader = two.reader("b")
    two.carrier.gate.clear()
    two.carrier.failure = RuntimeError("the store is full")
    with ThreadPoolExecutor(3) as threads:
        coming = [threads.submit(reader.open, loan.handle, loan.use) for _ in range(3)]
        until(lambda: two.porters["b"].report()["shared"] == 2, "the others wait")
        two.carrier.gate.set()
        for each in coming:
            with pytest.raises(OutOfReach, match="the store is full"):
                each.result(DEADLINE_S)
    two.carrier.failure = None
    assert (reader.open(loan.handle, loan.use) == 7).all()


def test_without_a_porter_it_is_out_of_reach(world):
    """A host without a porter, on either side, is named in an OutOfReach, at once."""
    world.porter("a")
    loan = world.pool("a").place(array())
    with pytest.raises(OutOfReach, match="which has no porter"):
        world.reader("b").open(loan.handle, loan.use)
    world.porter("b")
    far = world.pool("c").place(array())
    with pytest.raises(OutOfReach, match="no porter"):
        world.reader("b").open(far.handle, far.use)


def test_a_full_landing_pool_makes_room_and_then_says_so(world):
    """What nobody uses makes room for what lands; when all is in use, the array is out of reach, with the budget."""
    world.porter("a")
    world.porter("b", pool_budget_bytes=9 << 20, allocate_timeout_s=0.01)
    pool, reader = world.pool("a"), world.reader("b")
    loans = [pool.place(np.full(4 << 20, number, np.uint8)) for number in range(4)]
    views = []
    for number, loan in enumerate(loans[:2]):
        views.append(reader.open(loan.handle, loan.use))
        assert (views[number] == number).all()
    with pytest.raises(OutOfReach, match="budget"):
        reader.open(loans[2].handle, loans[2].use)
    views.clear()
    until(lambda: world.porters["b"].report()["used_blocks"] <= 2, "the views are gone")
    assert (reader.open(loans[3].handle, loans[3].use) == 3).all()


def test_an_asker_that_dies_leaves_nothing(two):
    """A process that goes while its array is on its way: what lands for it is taken back."""
    loan = two.pool("a").place(array())
    two.carrier.gate.clear()
    two.on("b")
    code = (
        "import sys, threading; from tensoryard.shm import Courier, SharedMemoryArray\n"
        f"courier = Courier(); courier.serve({CLUSTER!r})\n"
        "threading.Timer(0.0, lambda: (print('asking', flush=True))).start()\n"
        f"courier.fetch({loan.handle!r}, 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ), text=True
    ) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "asking\n"
        until(lambda: two.porters["b"].report()["landed_now"] == 1, "it is being brought")
        asker.send_signal(signal.SIGKILL)
    two.carrier.gate.set()
    until(lambda: two.porters["b"].report()["used_blocks"] == 0, "nothing is left of it")


@pytest.mark.case(34)
def test_a_porter_that_died_is_asked_again(world):
    """A reader waits for the next porter of its host, and has its array from that one."""
    world.porter("a")
    path = porter_path(CLUSTER, "b")
    loan = world.pool("a").place(array())
    reader = world.reader("b")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
        dead.listen()
        with ThreadPoolExecutor(1) as threads:
            coming = threads.submit(reader.open, loan.handle, loan.use)
            connection, _ = dead.accept()
            with connection:
                assert connection.recv(4096)[:1] == messages.FETCH
            dead.close()
            world.porter("b")
            assert (coming.result(DEADLINE_S) == 7).all()


@pytest.mark.case(34)
def test_a_porter_that_does_not_come_back_is_out_of_reach(world, monkeypatch):
    """Who asks gives up after a while, and says what it waited for."""
    monkeypatch.setattr("tensoryard.shm.courier._PATIENCE_S", 0.2)
    world.porter("a")
    loan = world.pool("a").place(array())
    reader = world.reader("b")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(porter_path(CLUSTER, "b")))
        with pytest.raises(OutOfReach, match="does not answer"):
            reader.open(loan.handle, loan.use)


def test_another_porter_of_the_host_takes_over(world):
    """Where two are on one host, the later one is asked; when it has ended, the first one is again."""
    world.porter("a")
    first = world.porter("b")
    second = world.porter("b")
    loan = world.pool("a").place(array())
    assert (world.reader("b").open(loan.handle, loan.use) == 7).all()
    assert (first.report()["fetched"], second.report()["fetched"]) == (0, 1)
    doors = [thing for thing in world.closing if isinstance(thing, PorterDoor)]
    path = doors[-1]._path
    doors[-1].close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    until(lambda: path.exists() and _answers(path), "the first has the name again")
    assert (world.reader("b").open(loan.handle, loan.use) == 7).all()
    assert first.report()["fetched"] == 1


def _answers(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.mark.parametrize("packet", [b"Fnonsense", b"F[]", b"F[1,2,3]", b'F["x.1",[1],"|u1",0,1,"h",-1,""]', b"F\xff"])
def test_what_is_no_question_is_answered_so(two, packet):
    """Garbage of a process of ours costs it an error; the next question of that connection is served."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(porter_path(CLUSTER, "b")))
        for _ in range(2):
            sock.sendall(packet)
            assert sock.recv(4096)[:1] == messages.FAILED


def test_what_is_no_message_ends_the_connection(two):
    """Who speaks another language is not listened to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(porter_path(CLUSTER, "b")))
        sock.sendall(b"hello")
        assert sock.recv(4096) == b""


def test_beyond_the_bound_nobody_is_let_in(two, monkeypatch):
    """A porter takes so many connections; a further one is closed, and there is room again when one has gone."""
    monkeypatch.setattr("tensoryard.workers.porter_door.MAX_CONNECTIONS", 1)
    path = str(porter_path(CLUSTER, "b"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.connect(path)
        first.sendall(b"F[]")
        assert first.recv(4096)[:1] == messages.FAILED
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
            second.connect(path)
            assert second.recv(4096) == b""
    until(lambda: _is_served(path), "there is room again")


def _is_served(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        try:
            sock.sendall(b"F[]")
            return sock.recv(4096)[:1] == messages.FAILED
        except OSError:
            return False


def test_hosts_beyond_the_bound_are_counted_together(monkeypatch):
    """Nodes come and go for ever; what is counted of them has a bound."""
    monkeypatch.setattr("tensoryard.workers.porter._MAX_HOSTS", 2)
    counters = Counters()
    for host in "abcdca":
        counters.fetch(host, 1)
    assert counters.fetched_bytes == {"a": 2, "b": 1, "": 3}
    assert counters.fetched == 6
