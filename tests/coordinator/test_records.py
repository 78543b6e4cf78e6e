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


def model_with(waiting=0, **fields):
    model = Model(name="m", task="t", deployment="d", **fields)
    for number in range(waiting):
        model.queue.push(str(number), client="c", priority=0)
    return model


def test_room_for_one_more_comes_with_the_next_answer():
    """Not with that of the whole queue: sooner with more credits, never at once, never beyond a minute."""
    for credit, mean_s, expected in [(1, 0.5, 0.5), (10, 0.5, 0.05), (10, 0.001, 0.01), (1, 1e9, 60.0)]:
        assert model_with(40, credits=credit, mean_s=mean_s).next_room_s(7.0) == pytest.approx(expected)


def test_those_who_are_sent_away_together_come_back_one_by_one():
    """Each is told to come after the one before; whoever asks later is not kept waiting for those that stayed away."""
    model = model_with(40, credits=1, mean_s=0.5)
    assert [model.next_room_s(10.0) for _ in range(3)] == [0.5, 1.0, 1.5]
    assert model.next_room_s(11.0) == 1.0
    assert model.next_room_s(100.0) == 0.5
    for _ in range(1000):
        assert model.next_room_s(100.0) <= 60.0


def test_a_heavy_request_waits_for_as_many_places_as_it_weighs():
    """Where bytes are short, so many of the waiting requests must go first as weigh what is missing."""
    model = model_with(10, credits=1, mean_s=0.5, queued_bytes=1000, max_queued_bytes=1100)
    assert model.next_room_s(0.0, 100) == 0.5
    assert model_with(10, credits=1, mean_s=0.5, queued_bytes=1000, max_queued_bytes=1100).next_room_s(0.0, 500) == 2.0


def test_nobody_knows_when_a_worker_comes():
    """Without a credit there is no telling; a second is a guess that costs little."""
    assert model_with(3).next_room_s(0.0) == 1.0


def test_suspects_wait_too():
    """What was lost with a worker counts among what waits."""
    model = model_with(1)
    model.suspects["a"] = None
    assert model.waiting == 2


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
    "bytes that no client has": lambda r: setattr(r.clients["c"], "weight_bytes", 99),
    "bytes that nobody keeps": lambda r: setattr(r, "kept_bytes", 99),
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
