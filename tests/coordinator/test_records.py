"""The books: what a record works out by itself, and that the checks notice books that do not balance."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import Model, Worker, WorkerState
from tensoryard.coordinator.router import Router


def readied(**fields):
    defaults = {"at": 1.0, "worker": "w", "model": "m", "task": "t", "deployment": "d", "credits": 2}
    return ev.WorkerReadied(**(defaults | fields))


def busy_router():
    """One worker with two credits and a suspect, two requests running elsewhere, two waiting, one adoptable."""
    router = Router()
    for name, running in (("w", ()), ("x", (("old", 3),))):
        router.handle(ev.WorkerJoined(at=0.0, worker=name))
        router.handle(readied(worker=name, running=running))
    for number in range(5):
        router.handle(ev.RequestArrived(at=1.0, client="c", request_id=f"r{number}", task="t", model="m", body_bytes=1))
    router.handle(ev.WorkerGone(at=1.0, worker="w", reason="died"))
    router.check_invariants()
    return router


def test_a_worker_takes_over_what_it_says_of_itself():
    """READY sets what a worker serves and holds, and when it would count as hung."""
    worker = Worker(name="w", host="h")
    worker.ready(readied(running=(("a", 1), ("b", 7)), hang_limit_s=10.0), 5.0)
    assert worker.state is WorkerState.READY
    assert (worker.model, worker.deployment, worker.credits) == ("m", "d", 2)
    assert list(worker.slots) == [("a", 1), ("b", 7)]
    assert worker.hangs_at == 15.0


def test_a_worker_has_credits_for_what_it_holds():
    """A worker that holds more than it announces credits for gets nothing new until it has answered some."""
    worker = Worker(name="w", host="h")
    worker.ready(readied(credits=1, running=(("a", 1), ("b", 1), ("b", 1))), 0.0)
    assert worker.credits == 2


def test_the_mean_follows_what_requests_take():
    """The moving average comes close to a steady value and does not jump to a single one."""
    model = Model(name="m", task="t", deployment="d")
    model.learn(10.0)
    assert 0.05 < model.mean_s < 2.0
    for _ in range(100):
        model.learn(10.0)
    assert model.mean_s == pytest.approx(10.0, rel=0.01)


def test_the_expected_wait_is_the_time_to_run_what_waits():
    """The wait grows with what waits, shrinks with credits, and stays between 50 ms and a minute."""
    model = Model(name="m", task="t", deployment="d", mean_s=0.5)
    assert model.expected_wait_s() == 0.05
    for number in range(40):
        model.queue.push(str(number), client="c", priority=0)
    assert model.expected_wait_s() == 20.0
    model.credits = 10
    assert model.expected_wait_s() == 2.0
    model.mean_s = 1e9
    assert model.expected_wait_s() == 60.0


def test_suspects_wait_too():
    """What was lost with a worker counts among what waits."""
    model = Model(name="m", task="t", deployment="d", mean_s=1.0)
    model.suspects["a"] = None
    model.queue.push("b", client="c", priority=0)
    assert model.waiting == 2
    assert model.expected_wait_s() == 2.0


def _worker(router):
    return router.workers["x"]


def _model(router):
    return router.models["m"]


CORRUPTIONS = {
    "a running request without a slot": lambda r: _worker(r).slots.pop(
        next(s for s in _worker(r).slots if s[0] != "old")
    ),
    "a waiting request that no queue has": lambda r: _model(r).queue.pop(),
    "a suspect in two queues": lambda r: _model(r).queue.push("r0", client="c", priority=0),
    "bytes that nobody waits with": lambda r: setattr(_model(r), "queued_bytes", 99),
    "credits that nobody gave": lambda r: setattr(_model(r), "credits", 99),
    "more slots than credits": lambda r: _worker(r).slots.update({("z", n): None for n in range(9)}),
    "an exclusive worker with company": lambda r: setattr(_worker(r), "exclusive", True),
    "a free worker that is full": lambda r: _model(r).free_workers.set("x", 0.0, ""),
    "a reservation for nobody": lambda r: (setattr(_model(r), "reserved", "x"), _model(r).suspects.clear()),
    "a worker its model does not know": lambda r: _model(r).workers.clear(),
    "a model that nobody needs": lambda r: r.models.update(n=Model(name="n", task="t", deployment="d")),
    "a client without requests": lambda r: r.clients["c"].live.clear(),
    "a request that nobody sent": lambda r: r.clients.clear(),
    "adoptable work in no slot": lambda r: _model(r).adoptable.update(ghost=(_worker(r), 1, 0)),
    "adoptable work that is live": lambda r: _model(r).adoptable.update(r0=(_worker(r), 3, 0)),
    "a deadline of nobody": lambda r: r._deadlines.set("ghost", 1.0),
    "a busy worker that nobody watches": lambda r: r._hang_checks.remove("x"),
    "a story of nobody": lambda r: r._stories.add("ghost", 0.0, "boo"),
    "a model that was not dispatched": lambda r: r._stirred.update(m=_model(r)),
    "a worker for a model that is not there": lambda r: setattr(_worker(r), "model", "elsewhere"),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_the_checks_notice(corrupt):
    """`check_invariants` passes on books that balance and fails on any that do not."""
    router = busy_router()
    corrupt(router)
    with pytest.raises((AssertionError, KeyError)):
        router.check_invariants()
