"""Looking at the pools of a host: what they hold, who reads it, and what is told of pools that do not answer."""

import contextlib
import os
import socket
import tempfile

import numpy as np
import pytest

from tensoryard.shm import Inspector, messages
from tensoryard.shm.ledger import PAGE_BLOCKS, encode_page
from tensoryard.shm.runtime_dir import listen

DEADLINE_S = 30.0


@pytest.fixture
def inspector():
    """An inspector."""
    with Inspector() as inspector:
        yield inspector


@pytest.fixture
def impostor(runtime_folder):
    """Listens as a pool would, and does what the test says."""
    with contextlib.ExitStack() as stack:

        def start(name="0" * 16):
            path = runtime_folder / f"pool-{name}.sock"
            listener = stack.enter_context(listen(path))
            stack.callback(path.unlink, missing_ok=True)
            listener.settimeout(DEADLINE_S)
            return listener

        yield start


def look(inspector, name, **options):
    """The report of one pool."""
    (report,) = [r for r in inspector.look(**{"timeout_s": DEADLINE_S, **options}) if r.pool == name]
    return report


OWNER = """
pool = Pool(budget_bytes=64 << 20, owner="worker w-1")
held = pool.empty(100_000, "u1", tag="r-held")
loan, _ = pool.publish(np.arange(9), tag="r-sent")
handle = loan.handle
pool.send(loan)
"""


def test_pools_of_other_processes_tell_what_they_hold(spawn, inspector):
    """Owner, process, figures and blocks, with their RequestIDs and states."""
    owner = spawn()
    name = owner.do(OWNER, "pool.name")
    report = look(inspector, name)
    assert (report.pid, report.owner, report.trouble, report.unlisted) == (owner.pid, "worker w-1", "", 0)
    assert [(b.request_id, b.state) for b in report.blocks] == [("r-held", "held"), ("r-sent", "sent")]
    assert report.statistics.used_bytes == sum(b.size_bytes for b in report.blocks)
    assert report.statistics.readers == 0, "who only looks is no reader"


def test_a_leaked_block_is_seen_with_its_request(spawn, inspector):
    """A block whose holder was lost on the way stays in the ledger, by its RequestID, until its owner's end."""
    owner = spawn()
    name = owner.do(OWNER + "leaked = [held[:5]]; del held", "pool.name")
    for _ in range(3):
        (leaked,) = [b for b in look(inspector, name).blocks if b.request_id == "r-held"]
    assert leaked.holds == 1
    owner.kill()
    assert "has ended" in look(inspector, name).trouble


def test_the_end_of_a_killed_readers_hold_is_seen(spawn, inspector, eventually):
    """While a reader lives, the block names its process; after kill -9 the hold is gone."""
    owner, reading = spawn(), spawn()
    name = owner.do(OWNER, "pool.name")
    reading.do("reader = Reader(); view = reader.claim(H(h))", h=owner.get("list(handle.to_wire())"))
    (block,) = [b for b in look(inspector, name).blocks if b.request_id == "r-sent"]
    assert (block.state, block.readers, block.reader_pids) == ("read", 1, (reading.pid,))
    reading.kill()
    eventually(lambda: [b.request_id for b in look(inspector, name).blocks] == ["r-held"], "its hold has ended")


def test_a_frozen_owner_costs_its_own_pool_a_short_time(pool, spawn, inspector):
    """The others answer meanwhile; when it comes to itself it answers the one question that it was asked."""
    owner = spawn()
    name = owner.do(OWNER, "pool.name")
    kept = pool.empty(50, tag="mine")
    owner.stop()
    for _ in range(3):
        reports = {report.pool: report for report in inspector.look(timeout_s=0.2)}
        assert "has not answered within 0.2 s" in reports[name].trouble
        assert (reports[name].pid, reports[name].blocks) == (owner.pid, ())
        assert [b.request_id for b in reports[pool.name].blocks] == ["mine"]
    owner.resume()
    report = look(inspector, name)
    assert (report.trouble, len(report.blocks)) == ("", 2)
    assert owner.get("next(pool._server._keys)") == 2, "one connection, however often it was looked at"
    del kept


def test_an_owner_frozen_between_two_looks(spawn, inspector):
    """The late answer to a look that was given up is the answer to the next one."""
    owner = spawn()
    name = owner.do(OWNER, "pool.name")
    assert look(inspector, name).trouble == ""
    owner.stop()
    for _ in range(2):
        assert "has not answered" in look(inspector, name, timeout_s=0.1).trouble
    owner.resume()
    assert [b.request_id for b in look(inspector, name).blocks] == ["r-held", "r-sent"]
    owner.kill()
    assert "its process has ended" in look(inspector, name).trouble


def test_many_blocks_come_in_pages_and_have_a_bound(pool, inspector):
    """All of them if asked for; else the oldest, and how many more there are."""
    kept = [pool.empty(50, "u1", tag=f"r{n}") for n in range(3 * PAGE_BLOCKS)]
    assert len(look(inspector, pool.name).blocks) == len(kept)
    few = look(inspector, pool.name, max_blocks=10)
    assert [b.request_id for b in few.blocks] == [f"r{n}" for n in range(10)]
    assert few.unlisted == len(kept) - 10


def test_a_late_page_of_the_middle_is_not_taken_for_the_first(impostor, inspector, pool, in_thread):
    """What answers a question of an earlier look is thrown away, and the question asked anew."""
    listener = impostor("1" * 16)
    kept = [pool.empty(50, "u1", tag=f"r{n}") for n in range(PAGE_BLOCKS + 1)]

    def serve(peer, number):
        kind, after = messages.unpack(messages.receive(peer)[0])
        assert (kind, after) == (messages.TELL, number)
        return messages.PAGE + encode_page(pool.page(number))

    first_look = in_thread(inspector.look, timeout_s=1.0)
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(DEADLINE_S)
        peer.send(messages.WELCOME)
        peer.send(serve(peer, 0))
        last = pool.page(0).blocks[-1].generation
        late = serve(peer, last)
        assert {r.pool: r.trouble for r in first_look.result()}["1" * 16].startswith("it has not answered")
        second_look = in_thread(inspector.look, timeout_s=DEADLINE_S)
        peer.send(late)
        peer.send(serve(peer, 0))
        peer.send(serve(peer, last))
        report = {r.pool: r for r in second_look.result()}["1" * 16]
    assert [b.request_id for b in report.blocks] == [f"r{n}" for n in range(len(kept))]


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ([b"TYSHM-9"], "speaks another version"),
        ([messages.WELCOME, messages.PAGE + b"{}"], "no page"),
        ([messages.WELCOME, messages.PAGE + b"x" * 100_000], "no page"),
        ([messages.WELCOME, b"?", messages.pack(messages.SEGMENT, 1), None], "has closed the connection"),
        ([None], "has closed the connection"),
        ([messages.WELCOME], "has not answered"),
    ],
    ids=["version", "empty", "long", "other", "refused", "older"],
)
def test_a_pool_that_answers_something_else(impostor, inspector, in_thread, said, trouble):
    """Another version, nonsense, a refusal or silence: said of that pool, and nothing breaks."""
    listener = impostor()
    looking = in_thread(inspector.look, timeout_s=0.5 if trouble == "has not answered" else DEADLINE_S)
    peer, _ = listener.accept()
    with peer:
        for packet in said:
            if packet is None:
                peer.close()
                break
            peer.send(packet)
        (report,) = [r for r in looking.result() if r.pool == "0" * 16]
    assert trouble in report.trouble
    assert report.pid == os.getpid()


def test_descriptors_that_come_along_are_closed(impostor, inspector, in_thread):
    """The lease table of a welcome, or whatever else is sent, is not kept open."""
    listener = impostor()
    looking = in_thread(inspector.look, timeout_s=DEADLINE_S)
    peer, _ = listener.accept()
    with peer, tempfile.TemporaryFile() as file:
        opened = lambda: sum(_is_same(fd, file.fileno()) for fd in os.listdir("/proc/self/fd"))
        socket.send_fds(peer, [messages.WELCOME], [file.fileno()] * 3)
        assert messages.unpack(messages.receive(peer)[0]) == (messages.TELL, 0)
        assert opened() == 1
        peer.close()
        looking.result()


def _is_same(fd, other):
    try:
        return os.path.samestat(os.fstat(int(fd)), os.fstat(other))
    except OSError:
        return False


def test_a_pool_whose_door_is_full(impostor, inspector):
    """More connections than may wait to be accepted: said, and not waited for."""
    listener = impostor()
    path = listener.getsockname().removesuffix(".new")
    with contextlib.ExitStack() as stack:
        while True:
            knocking = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
            try:
                knocking.connect(path)
            except BlockingIOError:
                break
        assert "takes no connections" in look(inspector, "0" * 16).trouble


def test_looking_disturbs_no_reader(pool, reader, inspector):
    """Looks between claim and release change neither; nothing of them stays with the owner."""
    views = []
    for number in range(20):
        loan, _ = pool.publish(np.full(5, number), tag=f"r{number}")
        handle = loan.handle
        pool.send(loan)
        look(inspector, pool.name)
        views.append(reader.claim(handle))
        assert look(inspector, pool.name).statistics.readers == 1
        assert views[number].tolist() == [number] * 5
    del views
    assert look(inspector, pool.name).blocks == ()


def test_a_pool_that_closes_is_forgotten(make_pool, inspector, eventually):
    """Between two looks pools come and go; a closed inspector has no connection open."""
    one = make_pool()
    assert look(inspector, one.name).trouble == ""
    two = make_pool()
    one.close()
    assert [r.pool for r in inspector.look(timeout_s=DEADLINE_S) if r.pool in (one.name, two.name)] == [two.name]
    inspector.close()
    inspector.close()
    eventually(lambda: len(two._server._readers) == 0, "the owner sees the connection end")
