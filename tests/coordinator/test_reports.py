"""The status is read off the books: every model and every worker, and when each was last heard."""

from __future__ import annotations

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.reports import model_statuses
from tensoryard.coordinator.roster import Roster
from tensoryard.coordinator.router import Router
from tensoryard.proto import wire


def test_each_model_with_its_workers():
    """Two models by name: what waits, what runs, who serves; a worker without a peer has no pid and no age."""
    router, roster = Router(), Roster()
    roster.join(b"1", wire.Hello(version=1, role="worker", name="w-1", host="h", pid=42), 3.0)
    for name in ("w-1", "w-2"):
        router.handle(ev.WorkerJoined(at=0.0, worker=name, host="h"))
        ready = ev.WorkerReadied(at=0.0, worker=name, model="b", task="t", deployment="d", credits=1)
        router.handle(ready)
    expected = [
        ev.DeploymentExpected(deployment=name, model=name, task="t", replicas=2, unhealthy="ill" if name == "a" else "")
        for name in ("b", "a")
    ]
    router.handle(ev.DeploymentsChanged(at=0.0, deployments=tuple(expected)))
    for number in range(3):
        arrived = ev.RequestArrived(at=0.0, client="c", request_id=f"{number}", task="t", model="b", body_bytes=10)
        router.handle(arrived)
    ill, well = model_statuses(router, roster, 5.0)
    assert (ill.model, ill.unhealthy, ill.workers) == ("a", "ill", [])
    assert (well.model, well.task, well.deployment, well.replicas) == ("b", "t", "b", 2)
    assert (well.queued, well.queued_bytes, well.is_ready) == (1, 10, True)
    first, second = sorted(well.workers, key=lambda worker: worker.name)
    assert (first.pid, first.seen_s, first.state, first.in_flight, first.credits) == (42, 2.0, "ready", 1, 1)
    assert (second.pid, second.seen_s) == (0, 0.0)
