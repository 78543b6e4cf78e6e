"""What is under way: each request once, its memory held until it is settled, everything kept to send it again."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from tensoryard.client.pending import Pending, PendingTable, frames_of
from tensoryard.client.reply import Reply
from tensoryard.errors import CoordinatorLost, DuplicateRequest
from tensoryard.proto import RequestID, wire
from tensoryard.proto.codec import encode_body, publisher
from tensoryard.shm import Pool

from ..scripted import DEADLINE_S, submit

NOW = 100.0


@pytest.fixture
def pool():
    with Pool(budget_bytes=64 << 20) as pool:
        yield pool


def entry(request_id="r", *, pool=None, deadline_s=None):
    value = np.zeros(100_000, np.uint8) if pool is not None else "text"
    body = encode_body(value, place=publisher(pool) if pool is not None else None)
    return Pending(
        reply=Reply(RequestID(request_id), lambda _id: None),
        submit=submit(request_id, deadline_s=deadline_s, priority=3, shared_bytes=body.shared_bytes),
        body=body,
        output_type=object,
        sent_at=NOW,
        deadline=NOW + deadline_s if deadline_s is not None else None,
    )


def test_a_request_is_under_way_once():
    """A second request of the same id is a DuplicateRequest naming it; once settled, the id is free again."""
    table = PendingTable()
    first = entry()
    table.add(first)
    with pytest.raises(DuplicateRequest) as raised:
        table.add(entry())
    assert raised.value.request_id == "r"
    assert table.get("r") is first
    table.settle("r")
    table.add(entry())
    assert len(table) == 1


def test_what_is_under_way_is_weighed(pool):
    """Messages and shared memory together, from the first to the last."""
    table = PendingTable()
    small, large = entry("small"), entry("large", pool=pool)
    table.add(small)
    weight = table.size_bytes
    assert 0 < weight < 1000
    table.add(large)
    assert 100_000 < table.size_bytes - weight < 101_000
    table.settle("large")
    table.settle("large")
    assert table.size_bytes == weight
    table.settle("small")
    assert table.size_bytes == 0


def test_what_is_not_there_is_none():
    """Unknown ids are found by nobody and settled by nobody."""
    table = PendingTable()
    assert table.get("r") is None
    assert table.settle("r") is None
    assert table.all() == []


def test_order_is_kept():
    """`all` gives the requests oldest first."""
    table = PendingTable()
    entries = [entry(f"{number}") for number in range(5)]
    for one in entries:
        table.add(one)
    table.settle("2")
    assert table.all() == [*entries[:2], *entries[3:]]


def test_memory_is_held_until_it_is_settled(pool):
    """The shared memory of a request is given back by `settle`, and by nothing before."""
    table = PendingTable()
    table.add(entry(pool=pool))
    assert pool.statistics().used_blocks == 1
    settled = table.settle("r")
    assert pool.statistics().used_blocks == 0
    assert settled.submit.request_id == "r"


def test_failing_all_ends_each_and_gives_its_memory_back(pool):
    """`fail_all` settles every request with an error of its own that names it."""
    table = PendingTable()
    entries = [entry(f"{number}", pool=pool) for number in range(3)]
    for one in entries:
        table.add(one)
    table.fail_all(CoordinatorLost, "away")
    assert len(table) == 0
    assert pool.statistics().used_blocks == 0
    for number, one in enumerate(entries):
        with pytest.raises(CoordinatorLost, match=f"request {number}: away"):
            one.reply.result(0)


def test_memory_is_back_before_the_caller_knows(pool):
    """When a reply fails, its memory is free already."""
    table = PendingTable()
    one = entry(pool=pool)
    seen = []
    one.reply.add_listener(lambda: seen.append(pool.statistics().used_blocks))
    table.add(one)
    table.fail_all(CoordinatorLost, "away")
    assert seen == [0]


def test_a_message_is_the_same_again():
    """Without a deadline, SUBMIT is sent again as it was, with the very same frames."""
    one = entry()
    assert one.message(1e9) == one.submit
    assert frames_of(one) is one.body.frames


def test_a_deadline_shrinks():
    """Sent again, SUBMIT carries what is left of the deadline, never less than nothing; the rest is unchanged."""
    one = entry(deadline_s=100.0)
    assert one.message(NOW + 40.0) == msgspec.structs.replace(one.submit, deadline_s=60.0)
    assert one.message(NOW + 105.0).deadline_s == 0.0


def test_many_threads_may_use_it():
    """8 threads adding and settling 500 requests each leave nothing behind and meet no error."""
    table = PendingTable()
    failures = []

    def work(thread):
        try:
            for number in range(500):
                key = f"{thread}-{number}"
                table.add(entry(key))
                assert table.get(key).submit.request_id == key
                table.all()
                assert table.settle(key) is not None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failures == []
    assert len(table) == 0


def test_the_ledger_adds_up():
    """The ledger has this side's bytes and copies, and the worker's where it told; without, only this side's."""
    one = entry()
    one.received_bytes = 1000
    sent = one.body.socket_bytes + len(wire.encode(one.submit))
    told = wire.Ledger(
        request_socket_bytes=10,
        output_socket_bytes=20,
        output_shared_bytes=30,
        output_copies=2,
        wait_s=0.5,
        execute_s=0.25,
        worker="w",
    )
    ledger = one.ledger(told, NOW + 2.0)
    assert ledger.socket_bytes == sent + 10 + 20 + 1000
    assert (ledger.shared_bytes_out, ledger.copies_out, ledger.worker) == (30, 2, "w")
    assert (ledger.wait_s, ledger.execute_s) == (0.5, 0.25)
    assert ledger.round_trip_s == 2.0
    assert one.ledger(None, NOW).socket_bytes == sent + 1000
