"""How the router's workers come and leave, and what its deployments have to do with it."""

from __future__ import annotations

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import WorkerState

from .yard import kinds, only, refusal

# -- drain ------------------------------------------------------------------------------------------------------------


def test_a_draining_worker_finishes_and_leaves(yard):
    """It is told, gets nothing new, its answers count, and its leaving loses nothing."""
    yard.start("w", "v", credits=2)
    yard.submit("r0")
    yard.submit("r1")
    assert yard.drain("w") == [ev.SendDrain(worker="w")]
    assert yard.drain("w") == []
    assert yard.router.workers["w"].state is WorkerState.DRAINING
    yard.submit("r2")
    yard.submit("r3")
    assert yard.sent()[2:] == [("v", "r2")]
    assert not yard.sent(yard.answer("w", "r0"))
    assert kinds(yard.gone("w", "left")) == ["NotifyFleet"]
    yard.answer("v", "r1")
    yard.answer("v", "r2")
    yard.answer("v", "r3")
    assert yard.is_empty()
    assert yard.router.outcomes == {"finished": 4}


def test_a_draining_worker_that_dies_is_retried(yard):
    """What it still held runs elsewhere."""
    yard.start("w")
    yard.submit("r")
    yard.start("v")
    yard.drain("w")
    assert yard.sent(yard.gone("w")) == [("v", "r")]


def test_a_worker_drained_while_it_starts_gets_nothing(yard):
    """It is told to leave, and a READY that crosses does not bring it back."""
    yard.expect("m")
    yard.submit("r")
    yard.join("w")
    assert yard.drain("w") == [ev.SendDrain(worker="w")]
    assert yard.ready("w") == []
    assert kinds(yard.gone("w")) == ["NotifyFleet"]
    assert yard.where("r") == ""


# -- workers that come ------------------------------------------------------------------------------------------------


def test_a_worker_that_joins_anew_replaces_itself(yard):
    """Under one name there is one worker: the earlier one is lost, and what it ran is retried.

    The fleet does not hear that it is gone: it would end the newcomer, and after three such give the deployment up.
    """
    yard.start("w")
    yard.submit("r")
    effects = yard.join("w")
    assert not any(isinstance(effect, ev.NotifyFleet) for effect in effects)
    assert any("worker w joined anew" in line for line in yard.router.story("r"))
    assert yard.router.workers["w"].state is WorkerState.STARTING
    assert kinds(yard.answer("w", "r", attempt=1)) == ["SendDiscard"]
    yard.expect("m")


def test_joining_anew_keeps_requests_of_an_expected_model(yard):
    """A worker that restarts under its name serves its requests again."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r")
    yard.join("w")
    assert yard.sent(yard.ready("w")) == [("w", "r")]
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


def test_ready_twice_counts_once(yard):
    """A second READY of a worker that serves changes neither its credits nor its model."""
    yard.start("w", credits=1)
    yard.submit("r")
    assert yard.ready("w", credits=5, model="other") == []
    assert yard.router.workers["w"].credits == 1
    assert list(yard.router.models) == ["m"]


def test_strangers_change_nothing(yard):
    """Events about workers that never joined have no effect; what they answer is discarded."""
    assert yard.ready("ghost") == []
    assert yard.gone("ghost") == []
    assert yard.drain("ghost") == []
    assert yard.beat("ghost") == []
    assert yard.client_gone("ghost") == []
    assert yard.feed(ev.WorkerStartFailed, worker="ghost", deployment="d", text="boom") == []
    assert yard.answer("ghost", "r", attempt=1) == [
        ev.SendDiscard(worker="ghost", request_id="r", attempt=1, seq=0),
    ]
    assert yard.router.workers == yard.router.models == {}


def test_an_answer_for_what_was_never_given_frees_nothing(yard):
    """A worker cannot free a slot with a RequestID or an attempt that it does not hold, nor end others' requests."""
    yard.start("w", "v")
    yard.submit("r")
    yard.submit("s")
    yard.submit("waiting")
    for request_id, attempt in (("r", 99), ("nothing", 1), ("s", 2)):
        assert kinds(yard.answer("w", request_id, attempt=attempt)) == ["SendDiscard"]
    assert (yard.where("r"), yard.where("s"), yard.where("waiting")) == ("w", "v", "")


def test_a_worker_for_another_task_is_turned_away(yard):
    """A READY for a model of another task does not touch the model: the worker fails to start and is told to leave."""
    yard.start("w", task="t")
    yard.submit("r0")
    yard.submit("r1")
    effects = yard.start("wrong", task="u", deployment="e", running=(("r1", 1),))
    assert kinds(effects) == ["SendDrain", "NotifyFleet"]
    assert (effects[1].worker, effects[1].deployment, effects[1].what) == ("wrong", "e", "start_failed")
    assert "'t'" in effects[1].text
    assert "'u'" in effects[1].text
    assert "wrong" not in yard.router.workers
    assert yard.router.models["m"].task == "t"
    assert list(yard.router.models["m"].workers) == ["w"]
    assert yard.gone("wrong") == []
    yard.answer("w", "r0")
    assert yard.sent() == [("w", "r0"), ("w", "r1")]


def test_a_failed_start_is_told(yard):
    """The fleet hears the factory's traceback, once, and the worker is out of the books."""
    yard.join("w")
    text = "Traceback: no such file"
    effects = yard.feed(ev.WorkerStartFailed, worker="w", deployment="d", text=text)
    assert effects == [ev.NotifyFleet(worker="w", deployment="d", what="start_failed", text=text)]
    assert yard.gone("w") == []
    assert yard.router.workers == {}


def test_a_failed_start_of_a_ready_worker_loses_it(yard):
    """Even a worker that serves may say so; what it held is retried elsewhere and nothing dangles."""
    yard.start("w", "v")
    yard.submit("r")
    effects = yard.feed(ev.WorkerStartFailed, worker="w", deployment="d", text="boom")
    assert only(ev.NotifyFleet, effects).what == "start_failed"
    assert yard.sent(effects) == [("v", "r")]


# -- deployments ------------------------------------------------------------------------------------------------------


def test_an_expected_model_keeps_its_queue(yard):
    """Requests for a model that the fleet is starting wait, also when its last worker leaves."""
    yard.expect("m")
    yard.submit("r0")
    yard.submit("r1")
    yard.start("w")
    yard.gone("w")
    assert not yard.of(ev.SendError)
    yard.start("v", credits=2)
    assert served_all(yard) == {"r0", "r1"}


def served_all(yard):
    """Answer everything that runs until nothing does."""
    out = set()
    while running := [(worker.name, *slot) for worker in yard.router.workers.values() for slot in worker.slots]:
        for worker, request_id, attempt in running:
            out.add(request_id)
            yard.answer(worker, request_id, attempt=attempt)
    return out


def test_the_last_standalone_worker_takes_its_model_with_it(yard):
    """Without a fleet, what waits when the last worker leaves fails as worker_lost, and the model is unknown again."""
    yard.start("w")
    yard.submit("running")
    yard.submit("waiting")
    effects = yard.gone("w")
    errors = yard.of(ev.SendError, effects)
    assert {(error.request_id, error.code) for error in errors} == {
        ("running", "worker_lost"),
        ("waiting", "worker_lost"),
    }
    assert all("'m'" in error.text for error in errors)
    assert yard.router.models == {}
    assert yard.submit("r")[0].code == "unknown_model"
    assert yard.router.outcomes == {"worker_lost": 2, "rejected": 1}
    assert yard.is_empty()


def test_a_standalone_worker_sets_the_bounds_of_its_model(yard):
    """The first worker's limits hold until a fleet says otherwise."""
    yard.start("w", max_queued=1)
    yard.submit("running")
    yard.submit("waiting")
    assert yard.submit("r")[0].code == "overloaded"
    yard.expect("m", max_queued=2)
    assert yard.submit("r") == []


def test_an_unhealthy_deployment_fails_what_waits(yard):
    """When a deployment cannot start, what waits ends with the traceback, suspects too, and what is new is refused."""
    yard.expect("m")
    yard.start("w")
    yard.submit("suspect")
    yard.submit("waiting")
    yard.gone("w")
    effects = yard.expect("m", unhealthy="Traceback: no module named x")
    errors = yard.of(ev.SendError, effects)
    assert {error.request_id for error in errors} == {"suspect", "waiting"}
    assert all(error.code == "deployment_unhealthy" and "no module named x" in error.text for error in errors)
    refused = refusal(yard.submit("r"))
    assert refused.code == "deployment_unhealthy"
    assert "no module named x" in refused.text
    assert yard.is_empty()


def test_a_deployment_recovers_with_a_ready_worker(yard):
    """A worker that becomes ready makes the model healthy again."""
    yard.expect("m", unhealthy="boom")
    yard.start("w")
    yard.submit("r")
    assert yard.sent() == [("w", "r")]
    yard.gone("w")
    assert yard.router.models["m"].unhealthy == ""
    assert not yard.of(ev.SendError)


def test_an_unhealthy_deployment_with_a_worker_still_serves(yard):
    """While an older worker serves, requests are accepted; when it leaves, what waits fails and does not hang."""
    yard.start("w")
    yard.submit("r0")
    yard.expect("m", unhealthy="the new version cannot start")
    yard.submit("r1")
    assert not yard.of(ev.SendError)
    yard.answer("w", "r0")
    yard.submit("r2")
    yard.gone("w")
    assert yard.ends("r1") == yard.ends("r2") == ["deployment_unhealthy"]
    assert yard.submit("r3")[0].code == "deployment_unhealthy"


def test_a_removed_model_fails_what_waits(yard):
    """A model that the fleet drops and no worker serves is gone, with an answer for each waiting request."""
    yard.expect("m", "n")
    yard.submit("r")
    yard.submit("s", model="n")
    yard.expect("n")
    assert yard.ends("r") == ["worker_lost"]
    assert yard.ends("s") == []
    assert list(yard.router.models) == ["n"]


def test_a_removed_model_is_served_while_workers_are_left(yard):
    """Its workers finish what they hold and what waits; the model goes with the last of them."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r0")
    yard.submit("r1")
    yard.expect()
    yard.answer("w", "r0")
    yard.answer("w", "r1")
    assert yard.ends("r1") == ["done"]
    yard.gone("w", "left")
    assert yard.router.models == {}


def test_a_model_that_changes_its_task_starts_afresh(yard):
    """Redeployed for another task: what waits fails, old workers drain, new ones of the new task serve."""
    yard.expect("m")
    yard.start("old")
    yard.submit("running")
    yard.submit("waiting")
    effects = yard.expect("m", task="u", deployment="e")
    assert ev.SendDrain(worker="old") in effects
    assert yard.ends("waiting") == ["wrong_task"]
    yard.answer("old", "running")
    assert yard.ends("running") == ["done"]
    assert yard.submit("late")[0].code == "wrong_task"
    yard.start("new", task="u")
    assert yard.sent(yard.submit("r", task="u")) == [("new", "r")]
    assert yard.router.models["m"].deployment == "e"


def test_a_failed_wait_starts_nothing(yard):
    """While a changed model's waiting requests fail, none of them is sent to a worker that is about to drain."""
    yard.expect("m")
    yard.start("victim", credits=2)
    yard.submit("suspect")
    yard.start("w", credits=2)
    yard.submit("on-w")
    yard.gone("victim")
    yard.submit("waiting")
    assert not yard.sent(yard.expect("m", task="u"))


def test_the_fleet_may_scale_to_nothing(yard):
    """An expected model without replicas keeps what waits for its first worker."""
    yard.expect("m", replicas=0)
    assert yard.submit("r") == []
    yard.expect("m", replicas=3)
    assert yard.router.models["m"].replicas == 3
    assert yard.sent(yard.start("w")) == [("w", "r")]
