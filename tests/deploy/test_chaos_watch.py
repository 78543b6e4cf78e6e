"""What chaos finds left over: planted blocks, readers, mappings and descriptors; and how steep memory grows."""

from __future__ import annotations

import dataclasses

import pytest

from tensoryard.deploy.chaos_watch import (
    MIN_SAMPLES,
    ONCE_DESCRIPTORS,
    Known,
    compare,
    in_use,
    leftovers,
    slope_per_minute,
)
from tensoryard.deploy.vitals import Vitals

from .test_shm_report import block, report

MIB = 1 << 20


def known(name="w-1", role="worker of m", pid=7) -> Known:
    """A process."""
    return Known(role=role, name=name, pid=pid, started=1)


def having(descriptors=20, *, memory=0, kinds=None) -> Vitals:
    """What a process has."""
    return Vitals(
        private_bytes=50 * MIB,
        threads=5,
        descriptors=descriptors,
        kinds=kinds or {"socket": descriptors},
        memory_descriptors=memory,
        mappings=300,
        memory_mappings=memory,
    )


def quiet(name: str, *blocks, readers=0, **fields):
    """A pool without readers, if not said otherwise."""
    made = report(name, *blocks, **fields)
    figures = made.statistics
    return type(made)(
        **{**made.__dict__, "statistics": figures and type(figures)(**{**figures.__dict__, "readers": readers})}
    )


# -- the ledger -------------------------------------------------------------------------------------------------------


def test_nothing_in_use_is_no_problem():
    """Pools of ours without blocks and readers; pools of others with whatever they like."""
    reports = [quiet("a" * 16, owner="worker m-1"), quiet("b" * 16, block(1), readers=3, owner="client")]
    assert in_use(reports, prefix="chaos-", owners={"worker m-1"}) == []


def test_a_leaked_block_is_found_by_its_request():
    """In whatever pool it lies: a block of a request of ours that is still in use, with its bytes and its state."""
    leaked = block(3, request_id="chaos-1-7", size_bytes=2 * MIB)
    (problem,) = in_use([quiet("b" * 16, block(1), leaked, owner="other")], prefix="chaos-", owners=set())
    assert problem == "1 block (2.0 MiB) still in use at other (pid 0): chaos-1-7 [held]"


def test_any_block_in_a_worker_of_ours_is_found():
    """Where nobody else uses the cluster, also one without a request."""
    reports = [quiet("a" * 16, block(1, request_id=""), owner="worker m-1", pid=9)]
    (problem,) = in_use(reports, prefix="chaos-", owners={"worker m-1"})
    assert "still in use at worker m-1 (pid 9): no request [held]" in problem


def test_a_reader_that_stays_is_found():
    """A connection of a client that should be gone."""
    (problem,) = in_use([quiet("a" * 16, owner="worker m-1", readers=2)], prefix="chaos-", owners={"worker m-1"})
    assert problem == "2 readers still connected to worker m-1 (pid 0)"


def test_a_pool_that_does_not_tell_is_no_good_sign():
    """Of ours it is a problem; of others it is theirs."""
    silent = quiet("a" * 16, statistics=None, trouble="stopped", owner="worker m-1")
    assert in_use([silent], prefix="chaos-", owners={"worker m-1"}) == [
        "the pool of worker m-1 (pid 0) does not tell: stopped"
    ]
    assert in_use([silent], prefix="chaos-", owners=set()) == []


# -- /proc ------------------------------------------------------------------------------------------------------------


def test_shared_memory_that_a_worker_keeps_is_found():
    """Open or mapped, and not in its own pool; that of other processes than workers is their own."""
    assert leftovers({known(): having(memory=0), known("coordinator", "coordinator"): having(memory=5)}, {}) == []
    (problem,) = leftovers({known(): having(memory=3)}, {8: 2})
    assert problem == "w-1 (pid 7) still has 3 descriptors and 3 mappings of others' shared memory"
    own = dataclasses.replace(having(memory=2), memory_descriptors=4)
    assert leftovers({known(): own}, {7: 2}) == []
    assert leftovers({known(): dataclasses.replace(own, memory_mappings=3)}, {7: 2}) != []
    assert leftovers({known(): dataclasses.replace(own, memory_descriptors=5)}, {7: 2}) != []


def test_descriptors_as_before_are_no_problem():
    """As many, fewer, or a few that libraries open once."""
    before = {known(): having(20)}
    for count in (20, 12, 20 + ONCE_DESCRIPTORS):
        assert compare(before, {known(): having(count)}) == []


def test_a_leaked_descriptor_is_found():
    """More than that: named by what they are."""
    before = {known(): having(20, kinds={"socket": 10, "pidfd": 10})}
    after = {known(): having(40, kinds={"socket": 9, "pidfd": 31})}
    assert compare(before, after) == [
        "w-1 (pid 7) has 40 descriptors open, and 20 before: +21 pidfd, -1 socket",
    ]


def test_a_new_process_is_compared_with_its_like():
    """A worker that replaced another has no past of its own; one of another kind tells nothing."""
    before = {
        known("w-1", pid=1): having(20),
        known("w-2", pid=2): having(24),
        known("c", "coordinator", 3): having(90),
    }
    assert compare(before, {known("w-3", pid=4): having(24 + ONCE_DESCRIPTORS)}) == []
    assert len(compare(before, {known("w-3", pid=4): having(25 + ONCE_DESCRIPTORS)})) == 1
    assert compare({}, {known("w-3", pid=4): having(1000)}) == []


# -- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [-3.0, 0.0, 5.0])
def test_the_slope_of_a_line(slope):
    """Growth per minute, whatever the unit; what came in the first third does not count."""
    line = [(float(at), 100 + slope * at / 60) for at in range(90)]
    assert slope_per_minute(line) == pytest.approx(slope)
    loading = [(float(at), 1e9) for at in range(-45, 0)]
    assert slope_per_minute([*loading, *line]) == pytest.approx(slope)


def test_too_little_has_no_slope():
    """A few samples, or all of one moment, say nothing."""
    assert slope_per_minute([(float(at), 1.0) for at in range(MIN_SAMPLES - 1)]) is None
    assert slope_per_minute([(1.0, float(value)) for value in range(20)]) is None
    assert slope_per_minute([]) is None
