"""The benchmarks of one part each, small: they measure what they say, and their books are right."""

from __future__ import annotations

import pytest

from tensoryard.benchmarks import allocations, detection, hops, idle, router_scale


def test_the_router_is_as_full_after_as_before():
    """Every kind of event is timed, the queue stays as long as it was, and the router's books balance."""
    yard = router_scale.Yard(workers=2, clients=10)
    yard.fill(50)
    waiting = yard.model.waiting
    costs = router_scale.costs(yard, blocks=5, arrivals=2)
    assert set(costs) >= {"submit", "answer and dispatch", "cancel", "tick", "worker joins", "worker is lost"}
    assert all(cost > 0 for cost in costs.values())
    assert yard.model.waiting == waiting
    assert len(yard.router.workers) == 2
    yard.router.check_invariants()


def test_walks_pass_their_stops():
    """A walk measures at each number of requests or workers, and growth is last over first."""
    found = router_scale.measure(2, queued=(10, 100), workers=(2, 4), blocks=3)
    assert list(found["queued"]["submit"]) == ["10", "100"]
    assert list(found["workers"]["submit"]) == ["2", "4"]
    assert len(found["growth_queued"]["cancel"]) == 2
    assert "growth" in router_scale.as_text(found)
    rounds = [{10: {"x": 2.0}, 100: {"x": 3.0}}, {10: {"x": 1.0}, 100: {"x": 4.0}}]
    assert router_scale.growths(rounds) == {"x": [1.5, 4.0]}
    assert router_scale.table(rounds) == {"x": {"10": 1.5, "100": 3.5}}


@pytest.mark.process
def test_a_killed_workers_request_is_timed():
    """Each kill gives the time until another worker began with the request."""
    found = detection.measure(2)
    assert len(found["ms"]) == 2
    assert all(ms > 0 for ms in found["ms"])
    assert "2 kills" in detection.as_text(found)


@pytest.mark.process
def test_an_idle_cluster_is_measured():
    """Coordinator and each worker have a share of a core; this process, which measures, is not judged."""
    found = idle.measure(0.3, workers=1)
    assert set(found["percent"]) == {"coordinator", "works-1"}
    assert all(share >= 0 for share in found["percent"].values())
    assert "client and fleet" in idle.as_text(found)


@pytest.mark.process
def test_allocations_are_counted_or_it_is_said_why_not():
    """Each process of the cluster takes blocks for a request, unless there is no compiler to count them with."""
    found = allocations.measure(50, warm_up=10)
    if found["per_request"]:
        assert set(found["per_request"]) == {"client", "coordinator", "worker"}
        assert all(counted["blocks"] > 1 and counted["bytes"] > 1 for counted in found["per_request"].values())
    else:
        assert "compile" in found["reason"]


@pytest.mark.process
def test_each_hop_has_its_cost():
    """For each kind of traffic, client, coordinator and worker use time, and something comes back."""
    found = hops.measure(0.05)
    assert len(found["per"]) == 4
    for costs in found["per"].values():
        assert set(costs) == {"client", "coordinator", "worker", "per second"}
        assert all(cost > 0 for cost in costs.values())
    assert "coordinator" in hops.as_text(found)
