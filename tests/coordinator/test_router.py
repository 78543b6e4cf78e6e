"""The router, case by case: one event after the other, the books checked after each, every effect looked at."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import Limits, RequestState, WorkerState
from tensoryard.coordinator.router import MAX_ATTEMPTS, Router
from tensoryard.coordinator.story import MAX_LINES


class Yard:
    """A router with its clock; each verb feeds one event, checks the books and returns the effects."""

    def __init__(self, **limits):
        self.router = Router(Limits(**limits))
        self.at = 0.0
        #: Every effect since the start.
        self.effects = []

    def feed(self, kind, **fields):
        effects = self.router.handle(kind(at=self.at, **fields))
        self.router.check_invariants()
        self.effects += effects
        return effects

    # clients

    def submit(self, request_id, client="c", model="m", task="t", **fields):
        return self.feed(ev.RequestArrived, request_id=request_id, client=client, model=model, task=task, **fields)

    def cancel(self, request_id, client="c"):
        return self.feed(ev.CancelAsked, request_id=request_id, client=client)

    def consume(self, request_id, parts, client="c"):
        return self.feed(ev.PartsConsumed, request_id=request_id, client=client, parts=parts)

    def client_gone(self, client="c"):
        return self.feed(ev.ClientGone, client=client)

    # workers

    def join(self, *workers, host=""):
        return [effect for name in workers for effect in self.feed(ev.WorkerJoined, worker=name, host=host)]

    def ready(self, worker, model="m", task="t", **fields):
        fields = {"deployment": "d", "credits": 1} | fields
        return self.feed(ev.WorkerReadied, worker=worker, model=model, task=task, **fields)

    def start(self, *workers, host="", **fields):
        """Workers join and become ready."""
        out = []
        for name in workers:
            out += self.join(name, host=host) + self.ready(name, **fields)
        return out

    def gone(self, worker, reason="died"):
        return self.feed(ev.WorkerGone, worker=worker, reason=reason)

    def drain(self, worker):
        return self.feed(ev.DrainAsked, worker=worker)

    def beat(self, worker, progress=0, busy=True):
        return self.feed(ev.WorkerBeat, worker=worker, progress=progress, busy=busy)

    def answer(self, worker, request_id, *, attempt=None, seq=0, done=True, code="", text=""):
        """An output; of the attempt that was sent to this worker last, unless told otherwise."""
        if attempt is None:
            attempt = self.attempt(worker, request_id)
        return self.feed(
            ev.OutputArrived,
            worker=worker,
            request_id=request_id,
            attempt=attempt,
            seq=seq,
            done=done,
            code=code,
            text=text,
        )

    def part(self, worker, request_id, seq, attempt=None):
        return self.answer(worker, request_id, seq=seq, done=False, attempt=attempt)

    # the rest

    def expect(self, *models, **fields):
        defaults = {"deployment": "d", "task": "t", "replicas": 1}
        entries = tuple(ev.DeploymentExpected(**(defaults | {"model": model} | fields)) for model in models)
        return self.feed(ev.DeploymentsChanged, deployments=entries)

    def tick(self, at=None):
        self.at = self.at if at is None else at
        return self.feed(ev.Ticked)

    def attempt(self, worker, request_id):
        return [e for e in self.of(ev.SendRequest) if (e.worker, e.request_id) == (worker, request_id)][-1].attempt

    def of(self, kind, effects=None):
        return [effect for effect in (self.effects if effects is None else effects) if isinstance(effect, kind)]

    def sent(self, effects=None):
        """Requests sent, as (worker, request_id)."""
        return [(effect.worker, effect.request_id) for effect in self.of(ev.SendRequest, effects)]

    def ends(self, request_id):
        """How a request ended, in order: "done", or the code of its error."""
        out = []
        for effect in self.effects:
            if isinstance(effect, ev.SendError) and effect.request_id == request_id:
                out.append(effect.code)
            if isinstance(effect, ev.SendOutput) and effect.request_id == request_id and effect.done:
                out.append("done")
        return out

    def outputs(self, request_id):
        return [effect.seq for effect in self.of(ev.SendOutput) if effect.request_id == request_id]

    def forgotten(self, request_id):
        return sum(effect.request_id == request_id for effect in self.of(ev.ForgetBody))

    def where(self, request_id):
        return self.router.requests[request_id].worker

    def is_empty(self):
        """Whether nothing of any request is left."""
        router = self.router
        return not any((router.requests, router.clients, len(router._deadlines), len(router._stories))) and not any(
            worker.slots or worker.exclusive for worker in router.workers.values()
        )


@pytest.fixture
def yard():
    return Yard()


def only(kind, effects):
    """The one effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def kinds(effects):
    return [type(effect).__name__ for effect in effects]


# -- the simple life ---------------------------------------------------------------------------------------------------


def test_a_request_goes_to_a_worker_and_its_answer_to_the_client(yard):
    """Accepted, sent, answered, forgotten: one effect each, and nothing is left."""
    assert kinds(yard.start("w")) == ["NotifyFleet"]
    assert yard.submit("r", deadline_s=5.0) == [ev.SendRequest(worker="w", request_id="r", attempt=1, deadline_s=5.0)]
    assert yard.answer("w", "r") == [
        ev.SendOutput(client="c", request_id="r", seq=0, done=True),
        ev.ForgetBody(request_id="r"),
    ]
    assert yard.is_empty()
    assert yard.router.outcomes == {"finished": 1}


def test_a_stream_is_passed_on_part_by_part(yard):
    """Parts go to the client in order; the slot is free after the last."""
    yard.start("w")
    yard.submit("r")
    yard.submit("next")
    for seq in range(3):
        assert yard.part("w", "r", seq) == [ev.SendOutput(client="c", request_id="r", seq=seq, done=False)]
    assert yard.sent(yard.answer("w", "r", seq=3)) == [("w", "next")]
    assert yard.outputs("r") == [0, 1, 2, 3]


def test_a_pipelines_error_ends_its_request_alone(yard):
    """An error goes to its client with the story, and its neighbour on the worker runs on."""
    yard.start("w", credits=2)
    yard.submit("bad")
    yard.submit("good")
    effects = yard.answer("w", "bad", done=False, code="pipeline_error", text="boom")
    error = only(ev.SendError, effects)
    assert (error.client, error.code, error.text) == ("c", "pipeline_error", "boom")
    assert [line.split(" ", 1)[1] for line in error.story] == [
        "accepted",
        "sent to w, attempt 1",
        "pipeline_error: boom",
    ]
    assert not yard.of(ev.SendDiscard)
    yard.answer("w", "good")
    assert yard.ends("good") == ["done"]
    assert yard.router.outcomes == {"failed": 1, "finished": 1}


def test_time_does_not_go_back(yard):
    """An event of an earlier time counts as one of now."""
    yard.start("w")
    yard.at = 10.0
    yard.submit("r", deadline_s=5.0)
    yard.at = 4.0
    yard.submit("s", deadline_s=5.0)
    assert yard.router.next_deadline() == 15.0
    assert yard.router.requests["s"].deadline == 15.0


# -- admission ---------------------------------------------------------------------------------------------------------


def refusal(effects, request_id="r"):
    """The error of a request that was not accepted."""
    assert kinds(effects) == ["SendError", "ForgetBody"]
    assert {effect.request_id for effect in effects} == {request_id}
    return effects[0]


def refusal_or_none(effects, request_id):
    """The refusal of a request, if it was refused."""
    errors = [e for e in effects if isinstance(e, ev.SendError) and e.request_id == request_id]
    return errors[0] if errors else None


def test_an_unknown_model_is_refused_with_the_known_ones(yard):
    """The answer names the model asked for and those that are served."""
    yard.expect("beta", "alpha")
    error = refusal(yard.submit("r", model="gamma"))
    assert error.code == "unknown_model"
    assert "'gamma'" in error.text
    assert "['alpha', 'beta']" in error.text
    assert yard.router.outcomes == {"rejected": 1}
    assert yard.is_empty()


def test_the_wrong_task_is_refused(yard):
    """A model is served for its task only, and the answer names both."""
    yard.start("w", task="embed")
    error = refusal(yard.submit("r", task="paint"))
    assert error.code == "wrong_task"
    assert "'embed'" in error.text
    assert "'paint'" in error.text


def test_the_queue_has_a_bound(yard):
    """Beyond max_queued waiting requests the next is refused with a time to try again; a place freed is given."""
    yard.expect("m", max_queued=3)
    yard.start("w")
    for number in range(4):
        yard.submit(f"r{number}")
    error = refusal(yard.submit("r4"), "r4")
    assert error.code == "overloaded"
    assert "3 requests wait" in error.text
    assert 0.05 <= error.retry_after_s <= 60.0
    yard.answer("w", "r0")
    assert yard.submit("r4") == []
    assert len(yard.router.models["m"].queue) == 3


def test_the_time_to_try_again_is_that_of_the_next_place(yard):
    """It is what one answer takes: longer for slow requests, shorter with more workers, later for each who asks."""
    yard.expect("m", max_queued=50)
    assert yard.submit("slow0") == []
    yard.start("w")
    for number in range(1, 60):
        yard.submit(f"slow{number}", client="a")
        yard.at += 10.0
        if number < 10:
            yard.answer("w", f"slow{number - 1}")
    assert 3.0 < refusal(yard.submit("x"), "x").retry_after_s < 10.0
    yard.at += 100.0
    yard.router.models["m"].mean_s = 0.5
    assert [refusal(yard.submit("x"), "x").retry_after_s for _ in range(2)] == [0.5, 1.0]
    yard.at += 100.0
    yard.start("v", credits=4)
    for number in range(100, 104):
        yard.submit(f"slow{number}", client="a")
    assert refusal(yard.submit("x"), "x").retry_after_s == pytest.approx(0.1)


def test_bytes_that_wait_have_a_bound(yard):
    """Beyond max_queued_bytes the next is refused, with shared bytes or others; freed bytes are given."""
    yard.expect("m", max_queued_bytes=100)
    yard.start("w")
    yard.submit("running", shared_bytes=1000)
    yard.submit("a", shared_bytes=60, body_bytes=30)
    error = refusal(yard.submit("b", shared_bytes=5, body_bytes=6), "b")
    assert error.code == "overloaded"
    assert "90 bytes wait" in error.text
    assert yard.submit("c", shared_bytes=10) == []
    yard.cancel("a")
    assert yard.router.models["m"].queued_bytes == 10
    assert yard.submit("d", body_bytes=90) == []


def test_one_request_larger_than_the_bound_may_wait(yard):
    """Where nothing waits, a request of any size is accepted: else it never could be."""
    yard.expect("m", max_queued_bytes=100)
    assert yard.submit("huge", shared_bytes=10**9) == []
    assert refusal(yard.submit("small", shared_bytes=1), "small").code == "overloaded"


def test_suspects_count_against_the_bounds(yard):
    """Requests lost with a worker wait too, in number and in bytes."""
    yard.expect("m", max_queued=2, max_queued_bytes=100)
    yard.start("w", credits=2)
    yard.submit("a", body_bytes=50)
    yard.submit("b", body_bytes=50)
    yard.gone("w")
    assert refusal(yard.submit("c"), "c").code == "overloaded"
    yard.cancel("a")
    assert refusal(yard.submit("c", body_bytes=51), "c").code == "overloaded"
    assert yard.submit("c", body_bytes=50) == []


def test_a_client_has_a_bound():
    """One client's requests in flight are bounded, running or waiting; the others' are not affected."""
    yard = Yard(max_in_flight_per_client=2)
    yard.start("w")
    yard.submit("r0")
    yard.submit("r1")
    error = refusal(yard.submit("r2"), "r2")
    assert error.code == "overloaded"
    assert error.retry_after_s > 0
    assert "this client has 2" in error.text
    assert yard.submit("other", client="d") == []
    yard.answer("w", "r0")
    assert "r2" not in yard.router.requests
    yard.submit("r2")
    assert "r2" in yard.router.requests


def test_a_client_has_a_bound_in_bytes():
    """What one client's requests weigh is bounded, running or waiting; one request of any size may come."""
    yard = Yard(max_bytes_per_client=100)
    yard.start("w")
    assert refusal_or_none(yard.submit("r0", shared_bytes=500), "r0") is None
    error = refusal(yard.submit("r1", body_bytes=1), "r1")
    assert error.code == "overloaded"
    assert "500 bytes in flight and would have 1 more" in error.text
    assert refusal_or_none(yard.submit("other", client="d", shared_bytes=60, body_bytes=30), "other") is None
    assert refusal(yard.submit("more", client="d", shared_bytes=11), "more").code == "overloaded"
    yard.answer("w", "r0")
    assert refusal_or_none(yard.submit("r1", body_bytes=1), "r1") is None


def test_bodies_have_a_bound():
    """What the coordinator keeps for all requests together; shared memory is not its own."""
    yard = Yard(max_kept_bytes=100)
    yard.start("w", credits=8)
    assert refusal_or_none(yard.submit("r0", body_bytes=90, shared_bytes=10**9), "r0") is None
    error = refusal(yard.submit("r1", client="d", body_bytes=11), "r1")
    assert error.code == "overloaded"
    assert "keeps 90 bytes" in error.text
    assert refusal_or_none(yard.submit("r1", client="d", body_bytes=10), "r1") is None
    yard.answer("w", "r0")
    assert yard.router.kept_bytes == 10


@pytest.mark.case(21)
def test_the_same_request_again_changes_nothing(yard):
    """A request sent again by its client is the same request, queued or running, and its body is kept."""
    yard.expect("m")
    yard.submit("r", priority=1)
    assert yard.submit("r", priority=9) == []
    yard.start("w")
    assert yard.submit("r") == []
    assert yard.sent() == [("w", "r")]
    assert any("sent again" in line for line in yard.router.story("r"))
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]
    assert yard.forgotten("r") == 1


@pytest.mark.case(21)
def test_a_strangers_duplicate_is_refused(yard):
    """Another client's request under a live RequestID is refused, and the first one is not touched."""
    yard.start("w")
    yard.submit("r", client="first")
    effects = yard.submit("r", client="second")
    assert kinds(effects) == ["SendError"]
    assert (effects[0].client, effects[0].code) == ("second", "duplicate_request")
    assert yard.answer("w", "r")[0] == ev.SendOutput(client="first", request_id="r", seq=0, done=True)


def test_a_request_id_can_be_used_again(yard):
    """After its end a RequestID is free, for any client, and the new life has a new attempt and a new story."""
    yard.start("w")
    yard.submit("r", client="first")
    yard.answer("w", "r")
    yard.submit("r", client="second")
    assert yard.attempt("w", "r") == 2
    assert len(yard.router.story("r")) == 2
    yard.answer("w", "r")
    assert yard.of(ev.SendOutput)[-1].client == "second"
    assert yard.forgotten("r") == 2


@pytest.mark.parametrize("runs", [False, True])
def test_w_39_another_submission_of_an_id_is_another_request(yard, runs):
    """A client that gave a request up, unheard by us, and asks for something else by its name, gets that and no more.

    Nobody hears of the first, whose work is stopped and whose answer is nobody's.
    """
    yard.start("w", credits=2) if runs else yard.expect("m")
    yard.submit("r", deadline_s=1.0, body_bytes=3, submission=7)
    effects = yard.submit("r", priority=4, body_bytes=5, submission=8)
    if runs:
        assert effects == [
            ev.SendCancel(worker="w", request_id="r", attempt=1),
            ev.SendRequest(worker="w", request_id="r", attempt=2, deadline_s=None, submission=8),
        ]
        assert kinds(yard.answer("w", "r", attempt=1)) == ["SendDiscard"]
    else:
        assert effects == []
        assert yard.router.models["m"].queued_bytes == 5
        yard.start("w")
    yard.tick(2.0)
    assert yard.ends("r") == []
    assert only(ev.SendOutput, yard.answer("w", "r")).submission == 8
    assert (yard.ends("r"), yard.forgotten("r")) == (["done"], 1)
    assert yard.router.outcomes == {"cancelled": 1, "finished": 1}
    assert yard.is_empty()


@pytest.mark.parametrize(("first", "second"), [(0, 8), (8, 0), (8, 8)])
def test_a_submission_that_is_not_known_is_the_same(yard, first, second):
    """Where one side cannot tell, as an older client, the same id is the same request."""
    yard.start("w")
    yard.submit("r", submission=first)
    assert yard.submit("r", submission=second) == []


def test_another_submission_that_is_refused_leaves_nothing(yard):
    """The first is given up all the same; its name, and the body kept under it, are forgotten."""
    yard.start("w")
    yard.submit("r", submission=7)
    yard.feed(ev.ShutdownAsked)
    effects = yard.submit("r", submission=8)
    assert kinds(effects) == ["SendCancel", "SendError", "ForgetBody"]
    assert (effects[1].code, effects[1].submission) == ("shutting_down", 8)
    assert list(yard.router.requests) == []


def test_an_error_tells_its_submission(yard):
    """As every answer does."""
    yard.start("w")
    yard.submit("r", submission=7)
    assert only(ev.SendError, yard.cancel("r")).submission == 7


def test_shutdown_refuses_what_is_new_and_finishes_the_rest(yard):
    """After a shutdown was asked for, accepted requests still run, and known ones may be sent again."""
    yard.start("w")
    yard.submit("running")
    yard.submit("waiting")
    assert yard.feed(ev.ShutdownAsked) == []
    assert refusal(yard.submit("new"), "new").code == "shutting_down"
    assert yard.submit("waiting") == []
    yard.answer("w", "running")
    yard.answer("w", "waiting")
    assert yard.is_empty()
    assert yard.router.outcomes == {"finished": 2, "rejected": 1}


def test_shutdown_leaves_nobody_waiting(yard):
    """What still waits when a model's last worker has left fails, whatever a fleet expects: no other will come."""
    yard.expect("m", "n")
    yard.submit("nobody comes", model="n")
    yard.start("w")
    yard.submit("running")
    yard.submit("waiting")
    yard.feed(ev.ShutdownAsked)
    assert yard.ends("nobody comes") == ["worker_lost"]
    yard.drain("w")
    yard.answer("w", "running")
    assert yard.ends("waiting") == []
    yard.gone("w", "left")
    assert yard.ends("running") == ["done"]
    assert yard.ends("waiting") == ["worker_lost"]
    assert "shutting down" in yard.of(ev.SendError)[-1].text
    yard.expect("m", "n")
    assert yard.router.models == {}


# -- order and choice --------------------------------------------------------------------------------------------------


def served(yard, worker="w", count=10**9):
    """Answer what a worker of one credit runs, again and again; the order in which it got its requests."""
    out = []
    while len(out) < count and (running := list(yard.router.workers[worker].slots)):
        ((request_id, attempt),) = running
        out.append(request_id)
        yard.answer(worker, request_id, attempt=attempt)
    return out


def test_credits_are_never_exceeded(yard):
    """A worker gets as many requests as it has credits, and one more per answer."""
    yard.start("w", credits=3)
    for number in range(10):
        yard.submit(f"r{number}")
    assert len(yard.sent()) == 3
    assert len(yard.sent(yard.part("w", "r0", 0))) == 0
    assert len(yard.sent(yard.answer("w", "r0", seq=1))) == 1
    assert len(yard.router.workers["w"].slots) == 3


def test_urgent_requests_go_first(yard):
    """Priority comes before arrival."""
    yard.start("w")
    for name, priority in (("first", 0), ("low", -1), ("mid", 0), ("high", 7)):
        yard.submit(name, priority=priority)
    assert served(yard) == ["first", "high", "mid", "low"]


def test_clients_share_a_worker(yard):
    """A client with 1,000 waiting does not delay one with a single request, and shares stay within one."""
    yard.start("w")
    for number in range(1000):
        yard.router.handle(ev.RequestArrived(at=0.0, client="big", request_id=f"big{number}", task="t", model="m"))
    yard.submit("single", client="small")
    for number in range(20):
        yard.submit(f"mid{number}", client="mid")
    order = served(yard, count=40)
    assert order.index("single") <= 2
    shares = Counter(name.rstrip("0123456789") for name in order)
    assert abs(shares["big"] - shares["mid"]) <= 2  # one of big's ran before anybody waited


def test_the_earliest_deadline_of_a_client_goes_first(yard):
    """Within a client the earliest deadline is served first; requests without one come last."""
    yard.start("w")
    for name, deadline_s in (("first", None), ("never", None), ("late", 9.0), ("soon", 3.0)):
        yard.submit(name, deadline_s=deadline_s)
    assert served(yard) == ["first", "soon", "late", "never"]


def test_tensors_are_worked_on_where_they_lie(yard):
    """Where they are dear to move, their host comes first, even when loaded; then the least loaded worker elsewhere."""
    yard.start("near", host="h1", credits=2)
    yard.start("far", "away", host="h2", credits=2)
    for number in range(4):
        yard.submit(f"r{number}", host="h1", shared_bytes=1 << 28)
    assert [worker for worker, _ in yard.sent()] == ["near", "near", "far", "away"]


@pytest.mark.parametrize(
    ("took_s", "shared_bytes", "stay"),
    [(0.03, 1, 3), (1.0, 1, 1), (1.0, 100 << 20, 1), (1.0, 300 << 20, 3), (100.0, 1 << 28, 1), (0.0, 1, 4)],
)
def test_what_is_worth_its_way_is_moved(yard, took_s, shared_bytes, stay):
    """A worker elsewhere is taken when waiting here costs more than moving the bytes: so many go here before that."""
    yard.start("near", host="h1", credits=4)
    yard.start("far", host="h2", credits=4)
    yard.router.models["m"].mean_s = took_s
    for number in range(8):
        yard.submit(f"r{number}", host="h1", shared_bytes=shared_bytes)
    workers = [worker for worker, _ in yard.sent()]
    assert workers.index("far") == stay
    assert sorted(workers) == ["far"] * 4 + ["near"] * 4


def test_a_host_without_tensors_means_nothing(yard):
    """A request with nothing in shared memory goes to the least loaded worker of any host."""
    yard.start("a", host="h1", credits=2)
    yard.start("b", host="h2", credits=4)
    for number in range(4):
        yard.submit(f"r{number}", host="h1")
    # Loads before each: 0 and 0; 1/2 and 0; 1/2 and 1/4; 1/2 and 2/4, where a was set longest ago.
    assert [worker for worker, _ in yard.sent()] == ["a", "b", "b", "a"]


def test_models_have_their_own_workers(yard):
    """A request is run by a worker of its model, however long it waits beside idle ones of others."""
    yard.start("w", model="m")
    yard.start("v", model="n", task="u")
    yard.submit("r0")
    yard.submit("r1")
    yard.submit("s", model="n", task="u")
    assert yard.sent() == [("w", "r0"), ("v", "s")]


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_waiting_request_expires(yard):
    """A request whose deadline passes in the queue ends as expired and is never sent."""
    yard.start("w")
    yard.submit("running")
    yard.submit("r", deadline_s=2.0)
    assert yard.router.next_deadline() == 2.0
    assert yard.tick(1.999) == []
    effects = yard.tick(2.0)
    assert kinds(effects) == ["SendError", "ForgetBody"]
    assert effects[0].code == "expired"
    assert "while waiting" in effects[0].text
    yard.answer("w", "running")
    assert yard.sent() == [("w", "running")]
    assert yard.router.outcomes == {"expired": 1, "finished": 1}


def test_a_running_request_expires(yard):
    """The worker is told to stop; its slot is free only when it has answered, and that answer reaches nobody."""
    yard.start("w")
    yard.submit("r", deadline_s=2.0)
    yard.submit("next")
    effects = yard.tick(2.5)
    assert effects[0] == ev.SendCancel(worker="w", request_id="r", attempt=1)
    assert effects[1].code == "expired"
    assert "running on w" in effects[1].text
    assert not yard.sent(effects)
    effects = yard.answer("w", "r", done=True)
    assert effects[0] == ev.SendDiscard(worker="w", request_id="r", attempt=1, seq=0)
    assert yard.sent(effects) == [("w", "next")]
    assert yard.ends("r") == ["expired"]


def test_what_has_expired_is_not_sent(yard):
    """A worker that becomes free after a deadline, and before the tick, does not get that request."""
    yard.start("w")
    yard.submit("running")
    yard.submit("r", deadline_s=2.0)
    yard.submit("s")
    yard.at = 3.0
    effects = yard.answer("w", "running")
    assert yard.ends("r") == ["expired"]
    assert yard.sent(effects) == [("w", "s")]


def test_a_suspect_that_has_expired_is_not_sent(yard):
    """The same holds for a request that was lost with a worker, and its reservation is given up."""
    yard.start("w", "v", credits=2)
    yard.submit("r", deadline_s=2.0)
    yard.submit("s")
    yard.gone("w")
    assert yard.where("r") == ""
    yard.at = 3.0
    yard.answer("v", "s")
    assert yard.ends("r") == ["expired"]
    assert yard.sent(yard.submit("next")) == [("v", "next")]


def test_a_deadline_of_no_time_is_over_at_once(yard):
    """A request with no time left is answered without troubling a worker."""
    yard.start("w")
    effects = yard.submit("r", deadline_s=0.0)
    assert kinds(effects) == ["SendError", "ForgetBody"]
    assert effects[0].code == "expired"


def test_an_answer_at_the_deadline_counts(yard):
    """An answer that comes before the tick is delivered, however late: it is there."""
    yard.start("w")
    yard.submit("r", deadline_s=2.0)
    yard.at = 2.5
    yard.answer("w", "r")
    yard.tick()
    assert yard.ends("r") == ["done"]


def test_the_time_left_is_told(yard):
    """The worker is told what is left of the deadline when the request is sent, at a retry too."""
    yard.start("w", "v")
    yard.submit("r", deadline_s=10.0)
    yard.submit("forever", deadline_s=math.inf)
    yard.at = 4.0
    yard.gone("w")
    yard.start("u")
    assert [effect.deadline_s for effect in yard.of(ev.SendRequest)] == [10.0, None, 6.0]


def test_next_deadline_forgets_what_has_ended(yard):
    """The next deadline is that of a live request; None when there is none."""
    assert yard.router.next_deadline() is None
    yard.start("w", hang_limit_s=math.inf)
    yard.submit("r", deadline_s=5.0)
    yard.submit("s", deadline_s=3.0)
    assert yard.router.next_deadline() == 3.0
    yard.cancel("s")
    assert yard.router.next_deadline() == 5.0
    yard.answer("w", "r")
    assert yard.router.next_deadline() is None


def test_ended_requests_leave_no_deadlines(yard):
    """A day's worth of requests with long deadlines does not pile up."""
    yard.start("w")
    for number in range(300):
        yard.submit(f"r{number}", deadline_s=86_400.0)
        yard.answer("w", f"r{number}")
    assert len(yard.router._deadlines._heap) < 40


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_a_waiting_request_is_cancelled(yard):
    """It ends as cancelled and is never sent."""
    yard.start("w")
    yard.submit("running")
    yard.submit("r")
    assert kinds(yard.cancel("r")) == ["SendError", "ForgetBody"]
    assert not yard.sent(yard.answer("w", "running"))
    assert yard.ends("r") == ["cancelled"]
    assert yard.router.outcomes == {"cancelled": 1, "finished": 1}


def test_a_running_request_is_cancelled(yard):
    """The worker is told, the client has its answer at once, and the slot is kept until the worker answers."""
    yard.start("w")
    yard.submit("r")
    yard.submit("next")
    assert kinds(yard.cancel("r")) == ["SendCancel", "SendError", "ForgetBody"]
    assert yard.cancel("r") == []
    assert yard.part("w", "r", 0) == [ev.SendDiscard(worker="w", request_id="r", attempt=1, seq=0)]
    assert yard.sent(yard.answer("w", "r", code="cancelled", done=False)) == [("w", "next")]
    assert not yard.of(ev.SendOutput)


@pytest.mark.case(20)
def test_a_cancel_that_comes_late_is_ignored(yard):
    """After the answer there is nothing to cancel, and nothing is said twice."""
    yard.start("w")
    yard.submit("r")
    yard.answer("w", "r")
    assert yard.cancel("r") == []
    assert yard.ends("r") == ["done"]


def test_only_the_client_itself_cancels(yard):
    """A stranger's cancel, and one of an unknown request, change nothing."""
    yard.start("w")
    yard.submit("r")
    assert yard.cancel("r", client="stranger") == []
    assert yard.cancel("nothing") == []
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


def test_a_late_answer_is_not_that_of_a_new_life(yard):
    """A cancelled request sent again under its RequestID is not answered by what the worker says of the old attempt."""
    yard.start("w", credits=2)
    yard.submit("r")
    old = yard.attempt("w", "r")
    yard.cancel("r")
    yard.submit("r")
    new = yard.attempt("w", "r")
    assert new != old
    assert len(yard.router.workers["w"].slots) == 2
    yard.answer("w", "r", attempt=old, code="cancelled", done=False)
    assert yard.ends("r") == ["cancelled"]
    yard.answer("w", "r", attempt=new)
    assert yard.ends("r") == ["cancelled", "done"]
    assert yard.is_empty()


def test_a_client_that_leaves_takes_its_requests_with_it(yard):
    """Queued and running requests end without an answer, workers are told, and other clients' go on."""
    yard.start("w")
    yard.submit("running", client="leaver")
    yard.submit("waiting", client="leaver", deadline_s=9.0)
    yard.submit("other", client="stays")
    effects = yard.client_gone("leaver")
    assert Counter(kinds(effects)) == {"SendCancel": 1, "ForgetBody": 2}
    assert yard.client_gone("leaver") == []
    assert yard.sent(yard.answer("w", "running")) == [("w", "other")]
    yard.answer("w", "other")
    assert yard.is_empty()
    assert yard.router.outcomes == {"cancelled": 2, "finished": 1}


def test_a_cancel_frees_nothing_for_the_leaver_itself(yard):
    """While a client's requests are ended, none of its others is sent in their place."""
    yard.start("w", "v")
    yard.submit("lost", client="leaver")
    yard.submit("busy", client="stays")
    yard.gone("w")
    yard.submit("waiting", client="leaver")
    assert not yard.sent(yard.client_gone("leaver"))


# -- windows ----------------------------------------------------------------------------------------------------------


def test_what_was_read_goes_to_the_worker(yard):
    """The window goes with the request, each step on with the attempt; what is no news goes nowhere."""
    yard.start("w")
    (sent,) = yard.of(ev.SendRequest, yard.submit("r", window_parts=8, window_bytes=100))
    assert (sent.window_parts, sent.window_bytes, sent.consumed) == (8, 100, 0)
    told = only(ev.SendConsumed, yard.consume("r", 3))
    assert (told.worker, told.request_id, told.attempt, told.parts) == ("w", "r", sent.attempt, 3)
    for effects in (yard.consume("r", 3), yard.consume("r", 2), yard.consume("r", 9, client="x"), yard.consume("x", 9)):
        assert effects == []
    yard.answer("w", "r")
    assert yard.consume("r", 9) == []


def test_what_was_read_goes_along_to_the_next_worker(yard):
    """A stream that runs again may go as far as its reader is, and that while it waits, too."""
    yard.start("w")
    yard.submit("r", window_parts=2, window_bytes=100)
    yard.consume("r", 3)
    yard.expect("m")
    yard.gone("w")
    assert yard.consume("r", 4) == []
    (sent,) = yard.of(ev.SendRequest, yard.start("v"))
    assert (sent.worker, sent.consumed) == ("v", 4)


def test_work_brought_along_hears_what_was_read_meanwhile(yard):
    """A worker that joins anew with a stream that its client has sent again is told how far the reader is."""
    yard.join("w")
    yard.ready("w", running=(("r", 5),))
    told = only(ev.SendConsumed, yard.submit("r", window_parts=2, window_bytes=100, consumed=7))
    assert (told.attempt, told.parts) == (5, 7)
    assert only(ev.SendConsumed, yard.submit("r", window_parts=2, window_bytes=100, consumed=9)).parts == 9


# -- workers lost ------------------------------------------------------------------------------------------------------


@pytest.mark.case(2)
def test_a_lost_workers_request_runs_on_another(yard):
    """It is sent again under a higher attempt number, and its client sees one answer."""
    yard.start("w", "v")
    yard.submit("r")
    effects = yard.gone("w")
    assert effects[0] == ev.NotifyFleet(worker="w", deployment="d", what="gone", text="worker w died")
    retry = only(ev.SendRequest, effects)
    assert (retry.worker, retry.request_id) == ("v", "r")
    assert retry.attempt > 1
    yard.answer("v", "r")
    assert yard.ends("r") == ["done"]
    assert yard.forgotten("r") == 1
    assert "worker w died" in " ".join(yard.router.story("r"))


def test_a_lost_worker_is_retried_by_the_next_that_comes(yard):
    """Without another worker the request waits for one."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r")
    assert not yard.of(ev.SendError, yard.gone("w"))
    assert yard.sent(yard.start("v")) == [("v", "r")]


def test_answers_of_old_attempts_go_to_nobody(yard):
    """What a worker thought dead says of its attempt is discarded, done or not, and does not disturb the retry."""
    yard.start("w", "v")
    yard.submit("r")
    yard.gone("w")
    assert yard.part("w", "r", 0, attempt=1) == [ev.SendDiscard(worker="w", request_id="r", attempt=1, seq=0)]
    assert kinds(yard.answer("w", "r", attempt=1)) == ["SendDiscard"]
    assert yard.answer("w", "r", attempt=1, code="failed") == []
    assert kinds(yard.answer("v", "r", attempt=1)) == ["SendDiscard"]
    assert yard.where("r") == "v"
    yard.answer("v", "r")
    assert yard.ends("r") == ["done"]


@pytest.mark.case(22)
def test_parts_are_not_delivered_twice(yard):
    """A retry starts from its first part; those the client has already are discarded."""
    yard.start("w", "v")
    yard.submit("r")
    yard.part("w", "r", 0)
    yard.part("w", "r", 1)
    yard.gone("w")
    assert kinds(yard.part("v", "r", 0)) == ["SendDiscard"]
    assert kinds(yard.part("v", "r", 1)) == ["SendDiscard"]
    assert kinds(yard.part("v", "r", 2)) == ["SendOutput"]
    assert kinds(yard.part("v", "r", 2)) == ["SendDiscard"]
    assert kinds(yard.answer("v", "r", seq=3)) == ["SendOutput", "ForgetBody"]
    assert yard.outputs("r") == [0, 1, 2, 3]


def test_a_missing_part_fails_the_request(yard):
    """A gap in the parts ends the request with an error; the worker is told to stop and keeps its slot until then."""
    yard.start("w")
    yard.submit("r")
    yard.part("w", "r", 0)
    effects = yard.part("w", "r", 2)
    assert kinds(effects) == ["SendDiscard", "SendCancel", "SendError", "ForgetBody"]
    assert effects[2].code == "pipeline_error"
    assert "part 2 where part 1 was due" in effects[2].text
    assert yard.router.workers["w"].slots
    assert kinds(yard.answer("w", "r", seq=3)) == ["SendDiscard"]
    assert yard.is_empty()


def test_a_last_part_after_a_gap_fails_the_request(yard):
    """When the part after the gap is the last one there is nothing to stop, and the slot is free."""
    yard.start("w")
    yard.submit("r")
    yard.submit("next")
    effects = yard.answer("w", "r", seq=1)
    assert kinds(effects) == ["SendDiscard", "SendError", "ForgetBody", "SendRequest"]
    assert yard.ends("r") == ["pipeline_error"]


def test_a_retry_that_ends_too_early_fails_the_request(yard):
    """A retry whose last part is one the client has had cannot be the same stream; it must not stay open for ever."""
    yard.start("w", "v")
    yard.submit("r")
    for seq in range(3):
        yard.part("w", "r", seq)
    yard.gone("w")
    effects = yard.answer("v", "r", seq=1, done=True)
    assert kinds(effects) == ["SendDiscard", "SendError", "ForgetBody"]
    assert yard.ends("r") == ["pipeline_error"]
    assert yard.is_empty()


def test_a_retry_that_fails_early_ends_the_request(yard):
    """An error counts whatever its number: a worker that cannot read a retry says so with number 0."""
    yard.start("w", "v")
    yard.submit("r")
    yard.part("w", "r", 0)
    yard.part("w", "r", 1)
    yard.gone("w")
    effects = yard.answer("v", "r", seq=0, done=False, code="segment_gone", text="the client's memory is gone")
    assert kinds(effects) == ["SendError", "ForgetBody"]
    assert yard.ends("r") == ["segment_gone"]
    assert yard.is_empty()


def test_a_cancelled_request_is_not_retried(yard):
    """What nobody wants any more dies with its worker."""
    yard.start("w", "v")
    yard.submit("r")
    yard.cancel("r")
    assert kinds(yard.gone("w")) == ["NotifyFleet"]
    assert yard.is_empty()


@pytest.mark.case(1)
def test_the_loss_of_an_idle_worker_harms_nobody(yard):
    """Its fleet is told, and requests go to the others."""
    yard.start("w", "v")
    assert kinds(yard.gone("w")) == ["NotifyFleet"]
    yard.submit("r")
    assert yard.sent() == [("v", "r")]


def test_a_worker_lost_while_starting_is_only_told(yard):
    """Before READY there is nothing to lose."""
    yard.join("w")
    assert yard.gone("w") == [ev.NotifyFleet(worker="w", deployment="", what="gone", text="worker w died")]
    assert yard.router.workers == {}


# -- poison ------------------------------------------------------------------------------------------------------------


@pytest.mark.case(18)
def test_a_request_that_kills_its_workers_is_poison(yard):
    """After three lost workers it fails, names the deployment, and kills no fourth."""
    yard.start("w1", "w2", "w3", "w4")
    yard.submit("r")
    victims = []
    while "r" in yard.router.requests:
        victims.append(yard.where("r"))
        effects = yard.gone(victims[-1])
    assert len(victims) == MAX_ATTEMPTS == 3
    error = only(ev.SendError, effects)
    assert error.code == "poison_request"
    assert "3 workers of deployment 'd'" in error.text
    assert sum("sent to" in line for line in error.story) == 3
    assert yard.router.outcomes == {"poison_request": 1}
    assert [effect.attempt for effect in yard.of(ev.SendRequest)] == [1, 2, 3]


@pytest.mark.case(18)
def test_an_innocent_request_of_the_same_batch_survives(yard):
    """Requests lost together share a worker once more and then run alone: only the poisonous one is taken for it."""
    yard.expect("m")
    yard.start("w1", credits=8)
    for name in ("a", "poison", "b"):
        yard.submit(name)
    yard.gone("w1")
    for number in range(2, 20):
        name = f"w{number}"
        yard.start(name, credits=8)
        while name in yard.router.workers and (slots := list(yard.router.workers[name].slots)):
            assert len(slots) == (3 if number == 2 else 1)
            if "poison" in [request_id for request_id, _ in slots]:
                yard.gone(name)
            else:
                yard.answer(name, slots[0][0])
    assert yard.ends("a") == yard.ends("b") == ["done"]
    assert yard.ends("poison") == ["poison_request"]
    assert yard.is_empty()


def test_a_suspect_runs_apart(yard):
    """A worker that runs a suspect gets nothing else until it has answered it."""
    yard.start("w", credits=4)
    yard.submit("suspect")
    yard.gone("w")
    yard.expect("m")
    yard.start("w")
    yard.submit("suspect")
    yard.gone("w")
    yard.start("v", credits=4)
    for number in range(5):
        yard.submit(f"r{number}")
    assert list(yard.router.workers["v"].slots) == [("suspect", yard.attempt("v", "suspect"))]
    yard.part("v", "suspect", 0)
    assert len(yard.router.workers["v"].slots) == 1
    yard.answer("v", "suspect", seq=1)
    assert len(yard.router.workers["v"].slots) == 4


def lose_one(yard, *others):
    """A suspect that waits because every other worker is busy with one request each."""
    yard.start("victim", credits=2)
    yard.submit("suspect")
    yard.start(*others, credits=2)
    for name in others:
        yard.submit(f"on-{name}")
    yard.gone("victim")
    assert yard.where("suspect") == ""


def test_suspects_are_not_starved(yard):
    """Under constant load a worker is kept free of new work until the suspect has run."""
    lose_one(yard, "w")
    for number in range(10):
        yard.submit(f"load{number}")
    assert len(yard.router.workers["w"].slots) == 1
    assert yard.sent(yard.answer("w", "on-w")) == [("w", "suspect")]
    yard.answer("w", "suspect")
    assert len(yard.router.workers["w"].slots) == 2


def test_suspects_wait_for_a_full_worker_too(yard):
    """Where every worker is full, the first that frees a slot is reserved, though others wait for that slot."""
    yard.start("victim")
    yard.submit("suspect")
    yard.start("w", credits=2)
    for number in range(10):
        yard.submit(f"r{number}")
    assert len(yard.router.workers["w"].slots) == 2
    yard.gone("victim")
    assert not yard.sent(yard.answer("w", "r0"))
    assert yard.sent(yard.answer("w", "r1")) == [("w", "suspect")]


def test_suspects_share_a_worker_with_their_like(yard):
    """On their second try an idle worker takes as many as it has credits, and nothing else until all are answered."""
    yard.start("victim", credits=3)
    for name in "abc":
        yard.submit(name)
    yard.start("w", "v", credits=2)
    assert yard.sent(yard.gone("victim")) == [("w", "a"), ("w", "b"), ("v", "c")]
    yard.submit("new")
    assert yard.where("new") == ""
    assert not yard.sent(yard.answer("w", "a"))
    assert yard.sent(yard.answer("w", "b")) == [("w", "new")]


def test_suspects_on_their_last_try_have_a_worker_each(yard):
    """Twice lost together, they are sent one per idle worker; one lost once does not join them."""
    yard.start("victim", credits=3)
    for name in "ab":
        yard.submit(name)
    yard.start("second", credits=3)
    yard.gone("victim")
    yard.start("w", "v", credits=3)
    assert yard.sent(yard.gone("second")) == [("w", "a"), ("v", "b")]
    assert yard.sent(yard.answer("w", "a")) == []


def test_a_suspect_takes_the_first_idle_worker(yard):
    """A worker that becomes idle before the reserved one runs the suspect, and the reserved one serves again."""
    lose_one(yard, "w", "v")
    reserved = yard.router.models["m"].reserved
    other = {"w": "v", "v": "w"}[reserved]
    assert yard.sent(yard.answer(other, f"on-{other}")) == [(other, "suspect")]
    assert yard.sent(yard.submit("next")) == [(reserved, "next")]


@pytest.mark.parametrize("leave", ["gone", "drain"])
def test_the_reservation_moves_when_its_worker_leaves(yard, leave):
    """When the reserved worker dies or is drained, another is reserved and the suspect runs there."""
    lose_one(yard, "w", "v")
    reserved = yard.router.models["m"].reserved
    other = {"w": "v", "v": "w"}[reserved]
    getattr(yard, leave)(reserved)
    assert yard.router.models["m"].reserved == other
    assert ("suspect" in [request_id for _, request_id in yard.sent(yard.answer(other, f"on-{other}"))]) is True


@pytest.mark.parametrize("leave", ["gone", "drain"])
def test_the_reservation_is_given_up_when_no_worker_is_left(yard, leave):
    """Without any worker nothing is reserved, and the next worker runs the suspect."""
    yard.expect("m")
    lose_one(yard, "w")
    getattr(yard, leave)("w")
    assert yard.router.models["m"].reserved == ""
    assert ("new", "suspect") in yard.sent(yard.start("new"))


@pytest.mark.parametrize("end", ["cancel", "client_gone", "expire"])
def test_the_reservation_is_given_up_with_the_suspect(yard, end):
    """When the last suspect ends while it waits, the worker reserved for it serves the others again, at once."""
    yard.start("victim", credits=2)
    yard.submit("suspect", client="its own", deadline_s=5.0)
    yard.start("w", credits=2)
    yard.submit("running")
    yard.gone("victim")
    yard.submit("waiting")
    assert yard.router.models["m"].reserved == "w"
    if end == "cancel":
        effects = yard.cancel("suspect", client="its own")
    elif end == "client_gone":
        effects = yard.client_gone("its own")
    else:
        effects = yard.tick(5.0)
    assert yard.router.models["m"].reserved == ""
    assert yard.sent(effects) == [("w", "waiting")]


# -- drain -------------------------------------------------------------------------------------------------------------


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


# -- hung workers ------------------------------------------------------------------------------------------------------


def test_a_hung_worker_is_lost(yard):
    """A worker that holds work and makes no progress for its limit is given up, and its work runs elsewhere."""
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.start("v", hang_limit_s=10.0)
    assert yard.router.next_deadline() == 10.0
    yard.at = 9.9
    assert yard.beat("w", progress=0) == []
    assert yard.tick() == []
    effects = yard.tick(10.0)
    notice = only(ev.NotifyFleet, effects)
    assert (notice.worker, notice.deployment, notice.what) == ("w", "d", "hung")
    assert "no progress for 10.0 s" in notice.text
    assert yard.sent(effects) == [("v", "r")]
    assert yard.router.next_deadline() == 20.0


def test_an_idle_worker_does_not_hang(yard):
    """Without work there is no progress to be expected, and its time starts with its next request."""
    yard.start("w", hang_limit_s=10.0)
    assert yard.router.next_deadline() is None
    yard.submit("r0")
    yard.answer("w", "r0")
    assert yard.tick(1000.0) == []
    yard.submit("r")
    assert yard.tick(1009.0) == []
    assert yard.router.next_deadline() == 1010.0
    assert only(ev.NotifyFleet, yard.tick(1010.0)).what == "hung"


def test_progress_keeps_a_worker(yard):
    """A beat with another progress count, or any answer, starts its time again."""
    yard.start("w", credits=2, hang_limit_s=10.0)
    yard.submit("r")
    yard.at = 9.0
    yard.beat("w", progress=1)
    assert yard.tick(18.0) == []
    yard.part("w", "r", 0)
    assert yard.tick(27.0) == []
    yard.submit("s")  # work given to a worker that is busy is no progress of it
    assert only(ev.NotifyFleet, yard.tick(28.0)).what == "hung"


def test_a_worker_that_calls_itself_idle_with_work_out_has_lost_it(yard):
    """Beats without progress do not keep a worker, busy or not: its requests would never be answered."""
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.start("v", hang_limit_s=10.0)
    for second in range(1, 10):
        yard.at = second
        yard.beat("w", progress=0, busy=False)
    assert yard.sent(yard.tick(10.0)) == [("v", "r")]


def test_a_cancelled_request_still_counts_as_work(yard):
    """A worker that never answers a cancelled request is hung too; nothing is retried."""
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.cancel("r")
    assert kinds(yard.tick(10.0)) == ["NotifyFleet"]


@pytest.mark.case(17)
def test_each_worker_has_its_own_limit(yard):
    """Long work with a long limit is not taken for hung beside short work."""
    yard.start("slow", hang_limit_s=1000.0)
    yard.submit("r")
    yard.start("quick", hang_limit_s=10.0)
    yard.submit("s")
    assert only(ev.NotifyFleet, yard.tick(500.0)).worker == "quick"
    assert yard.router.workers["slow"].slots


def test_a_draining_worker_may_hang(yard):
    """What it holds is retried elsewhere."""
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.start("v")
    yard.drain("w")
    assert yard.sent(yard.tick(10.0)) == [("v", "r")]


def test_a_lost_worker_is_not_watched(yard):
    """A worker that died at work is not looked for when its limit would have passed, nor is a successor blamed."""
    yard.expect("m")
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.gone("w")
    assert yard.router.next_deadline() is None
    yard.at = 5.0
    yard.start("w", hang_limit_s=10.0)
    assert yard.router.next_deadline() == 15.0
    assert yard.tick(14.9) == []


def test_a_hung_worker_that_comes_round_is_a_stranger(yard):
    """Its late answers go to nobody and its beats mean nothing."""
    yard.start("w", hang_limit_s=10.0)
    yard.submit("r")
    yard.start("v")
    yard.tick(10.0)
    assert kinds(yard.answer("w", "r", attempt=1)) == ["SendDiscard"]
    assert yard.beat("w", progress=5) == []
    assert yard.where("r") == "v"


# -- adoption ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(15)
def test_a_new_coordinator_adopts_running_work(yard):
    """A request that its client sends again and a worker still runs is not run twice."""
    yard.start("w", credits=2, running=(("r", 3),))
    assert yard.submit("r") == []
    assert "already running on w, attempt 3" in yard.router.story("r")[-1]
    assert kinds(yard.answer("w", "r", attempt=3)) == ["SendOutput", "ForgetBody"]
    assert yard.is_empty()
    assert not yard.of(ev.SendRequest)


def test_a_request_that_came_before_its_worker_is_adopted(yard):
    """The order in which client and worker find the new coordinator makes no difference."""
    yard.expect("m")
    yard.submit("r", body_bytes=7)
    yard.submit("s")
    effects = yard.start("w", credits=2, running=(("r", 3),))
    assert yard.sent(effects) == [("w", "s")]
    assert yard.router.models["m"].queued_bytes == 0
    yard.answer("w", "r", attempt=3)
    assert yard.ends("r") == ["done"]


@pytest.mark.parametrize("worker_first", [True, False])
@pytest.mark.parametrize(("held", "asked"), [(7, 8), (7, 7), (0, 8), (7, 0)])
def test_work_on_another_request_of_that_name_is_not_adopted(yard, worker_first, held, asked):
    """What a worker brings along is the answer to what was submitted then; a submission that is not known is the same.

    Seen in a simulation: a client gave a request up, its memory was used for another, and that got the first's answer.
    """
    yard.expect("m")

    def start():
        return yard.start("w", credits=2, running=(("r", 3),), submissions=(held,))

    effects = start() if worker_first else []
    effects += yard.submit("r", submission=asked)
    effects += [] if worker_first else start()
    if held and asked and held != asked:
        assert yard.of(ev.SendCancel, effects) == [ev.SendCancel(worker="w", request_id="r", attempt=3)]
        assert yard.sent(effects) == [("w", "r")]
        yard.answer("w", "r", attempt=3)
        assert yard.ends("r") == []
    else:
        assert yard.sent(effects) == []
        yard.answer("w", "r", attempt=3)
        assert yard.ends("r") == ["done"]


@pytest.mark.parametrize("worker_first", [True, False])
def test_w_48_work_of_which_outputs_were_lost_is_not_adopted(yard, worker_first):
    """They left the worker before this coordinator knew it, so that they came to nobody: the request runs anew.

    Seen in a simulation: the worker's window was full of them, and nobody could say that they had been read.
    """
    yard.expect("m")

    def start():
        return yard.start("w", credits=2, running=(("r", 3),), sent=(1,))

    effects = start() if worker_first else []
    effects += yard.submit("r", window_parts=1)
    effects += [] if worker_first else start()
    assert yard.of(ev.SendCancel, effects) == [ev.SendCancel(worker="w", request_id="r", attempt=3)]
    assert yard.sent(effects) == [("w", "r")]
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


@pytest.mark.parametrize("worker_first", [True, False])
def test_w_49_work_that_was_told_to_stop_is_not_adopted(yard, worker_first):
    """It keeps its credit until it ends, and counts as hung if it does not; the request runs anew beside it.

    Seen in a simulation: a client's connection broke, its coordinator stopped the work and died, and the next one took
    it for what the client sent again: the request ended as cancelled, which nobody had wished.
    """
    yard.expect("m")

    def start():
        return yard.start("w", credits=2, running=(("r", 3),), cancelled=(True,), hang_limit_s=5.0)

    effects = start() if worker_first else []
    effects += yard.submit("r")
    effects += [] if worker_first else start()
    assert yard.sent(effects) == [("w", "r")]
    yard.answer("w", "r", attempt=3, done=False, code="cancelled")
    assert yard.ends("r") == []
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


def test_a_worker_that_hangs_in_what_was_told_to_stop_is_found(yard):
    """Nobody waits for that work, but nobody else would ever get anything from this worker."""
    yard.expect("m")
    yard.start("w", running=(("r", 3),), cancelled=(True,), hang_limit_s=5.0)
    assert only(ev.NotifyFleet, yard.tick(100.0)).what == "hung"


def test_work_is_adopted_by_whoever_passed_its_outputs_on(yard):
    """A worker that was given up, and comes back with outputs that are its request's, goes on."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r")
    yard.answer("w", "r", done=False)
    yard.feed(ev.WorkerGone, worker="w", reason="was silent")
    yard.start("w", running=(("r", 1),), sent=(1,))
    yard.answer("w", "r", seq=1)
    assert yard.ends("r") == ["done"]


def test_an_output_that_came_before_its_request_is_missed(yard):
    """Work that nobody has asked for yet and whose output was discarded is no use to anybody: it is stopped.

    Seen in a simulation: it was adopted later, and waited for ever for the lost output to be read.
    """
    yard.expect("m")
    yard.start("w", credits=2, running=(("r", 3),))
    effects = yard.answer("w", "r", attempt=3, done=False)
    assert yard.of(ev.SendCancel, effects) == [ev.SendCancel(worker="w", request_id="r", attempt=3)]
    assert yard.sent(yard.submit("r", window_parts=1)) == [("w", "r")]
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


def test_work_that_cannot_be_adopted_opens_no_door(yard):
    """A request of the same name as running work is admitted like any other."""
    yard.expect("m", max_queued=1)
    yard.start("w", credits=1, running=(("r", 3),), submissions=(7,), max_queued=1)
    yard.submit("other")
    assert only(ev.SendError, yard.submit("r", submission=8)).code == "overloaded"


def test_work_of_before_takes_credits(yard):
    """What a worker brings along fills its credits, and its end frees them."""
    yard.start("w", credits=2, running=(("old", 1), ("older", 1)))
    yard.submit("r")
    yard.submit("s")
    assert not yard.sent()
    assert len(yard.sent(yard.answer("w", "old", attempt=1))) == 1
    assert len(yard.sent(yard.answer("w", "older", attempt=1))) == 1


def test_answers_before_the_client_asks_go_to_nobody(yard):
    """What is answered before its client is back is discarded, and the request is run again."""
    yard.start("w", running=(("r", 3),))
    assert kinds(yard.answer("w", "r", attempt=3)) == ["SendDiscard"]
    assert yard.sent(yard.submit("r")) == [("w", "r")]
    assert yard.attempt("w", "r") > 3


def test_adopted_work_whose_beginning_is_lost_runs_again(yard):
    """Parts that went to the earlier coordinator are not skipped: the request is run again from its first part."""
    yard.start("w", credits=2, running=(("r", 3),))
    yard.submit("r")
    effects = yard.part("w", "r", 5, attempt=3)
    assert kinds(effects) == ["SendDiscard", "SendCancel", "SendRequest"]
    assert effects[1] == ev.SendCancel(worker="w", request_id="r", attempt=3)
    assert kinds(yard.part("w", "r", 6, attempt=3)) == ["SendDiscard"]
    assert yard.answer("w", "r", attempt=3, seq=7, code="cancelled", done=False) == []
    assert kinds(yard.part("w", "r", 0)) == ["SendOutput"]
    assert kinds(yard.part("w", "r", 2)) == ["SendDiscard", "SendCancel", "SendError", "ForgetBody"]


def test_adopted_work_whose_last_part_comes_alone_runs_again(yard):
    """Also when the part out of step is the last one: there is nothing to cancel then."""
    yard.start("w", running=(("r", 3),))
    yard.submit("r")
    assert kinds(yard.answer("w", "r", seq=5, attempt=3)) == ["SendDiscard", "SendRequest"]
    yard.answer("w", "r")
    assert yard.ends("r") == ["done"]


def test_adopted_work_is_retried_when_its_worker_dies(yard):
    """An adopted request is one like any other."""
    yard.start("w", running=(("r", 3),))
    yard.submit("r")
    yard.start("v")
    assert yard.sent(yard.gone("w")) == [("v", "r")]
    yard.answer("v", "r")
    assert yard.ends("r") == ["done"]


def test_work_brought_along_dies_with_its_worker(yard):
    """What nobody has asked for again is forgotten with the worker, and a client that asks later is served anew."""
    yard.expect("m")
    yard.start("w", running=(("r", 3),))
    yard.gone("w")
    yard.submit("r")
    assert yard.sent(yard.start("v")) == [("v", "r")]


def test_any_client_may_ask_for_what_runs(yard):
    """Clients have new names after a restart of the coordinator: the first that asks has the answer, a second not."""
    yard.start("w", running=(("r", 3),))
    yard.submit("r", client="new name")
    assert yard.submit("r", client="stranger")[0].code == "duplicate_request"
    assert yard.answer("w", "r", attempt=3)[0].client == "new name"


def test_running_work_is_accepted_though_the_queue_is_full(yard):
    """What an earlier coordinator accepted and a worker runs takes no place in the queue."""
    yard.expect("m", max_queued=1)
    yard.start("w", running=(("r", 3),))
    yard.submit("waiting")
    assert refusal(yard.submit("more"), "more").code == "overloaded"
    assert yard.submit("r") == []
    assert yard.where("r") == "w"


def test_two_workers_with_the_same_request(yard):
    """The first to say so keeps it, the other is told to stop; a duplicate in one list counts once."""
    yard.start("w", running=(("r", 3), ("r", 3)))
    effects = yard.start("v", running=(("r", 4),))
    assert ev.SendCancel(worker="v", request_id="r", attempt=4) in effects
    yard.submit("r")
    assert kinds(yard.answer("v", "r", attempt=4)) == ["SendDiscard"]
    assert kinds(yard.answer("w", "r", attempt=3)) == ["SendOutput", "ForgetBody"]


def test_a_worker_that_comes_back_goes_on_with_its_work(yard):
    """A worker lost to silence that returns before a retry was sent keeps its request."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r")
    yard.part("w", "r", 0)
    yard.gone("w", "was silent")
    assert not yard.sent(yard.start("w", running=(("r", 1),)))
    assert kinds(yard.part("w", "r", 1, attempt=1)) == ["SendOutput"]
    assert kinds(yard.answer("w", "r", seq=2, attempt=1)) == ["SendOutput", "ForgetBody"]


def test_a_worker_that_comes_back_late_is_told_to_stop(yard):
    """When its request runs elsewhere already, that goes on, and the old attempt is stopped."""
    yard.start("w", "v")
    yard.submit("r")
    yard.gone("w", "was silent")
    effects = yard.start("w", running=(("r", 1),))
    assert ev.SendCancel(worker="w", request_id="r", attempt=1) in effects
    assert yard.where("r") == "v"
    assert yard.answer("w", "r", attempt=1, code="cancelled") == []
    yard.answer("v", "r")
    assert yard.ends("r") == ["done"]


def test_the_loss_of_an_old_attempt_is_none(yard):
    """A worker that dies with an attempt that does not count any more takes nothing with it."""
    yard.start("w", "v")
    yard.submit("r")
    yard.gone("w", "was silent")
    yard.start("w", running=(("r", 1),))
    assert kinds(yard.gone("w")) == ["NotifyFleet"]
    assert yard.where("r") == "v"
    assert yard.router.requests["r"].losses == 1


def test_an_attempt_of_an_earlier_life_is_not_adopted(yard):
    """A returning worker's attempt that is not the request's last one is stopped, though the request waits."""
    yard.expect("m")
    yard.start("w")
    yard.submit("r")
    yard.gone("w", "was silent")
    yard.start("v")
    yard.gone("v")
    effects = yard.start("w", running=(("r", 1),))
    assert ev.SendCancel(worker="w", request_id="r", attempt=1) in effects
    assert not yard.router.requests["r"].adopted
    yard.answer("w", "r", attempt=1, code="cancelled")
    assert yard.where("r") == "w"
    assert yard.attempt("w", "r") == 3


def test_work_of_another_model_is_not_adopted(yard):
    """A worker cannot bring along a request of a model that it does not serve."""
    yard.expect("m")
    yard.submit("r")
    effects = yard.start("w", model="n", running=(("r", 1),))
    assert ev.SendCancel(worker="w", request_id="r", attempt=1) in effects
    assert yard.router.requests["r"].state is RequestState.QUEUED


def test_a_request_of_another_model_adopts_nothing(yard):
    """A RequestID that a worker of another model holds runs in its own model, and the worker's answer is nobody's."""
    yard.start("w", model="n", running=(("r", 1),))
    yard.start("v")
    assert yard.sent(yard.submit("r")) == [("v", "r")]
    assert kinds(yard.answer("w", "r", attempt=1)) == ["SendDiscard"]
    yard.answer("v", "r")
    assert yard.ends("r") == ["done"]


def test_attempt_numbers_are_above_all_brought_along(yard):
    """A number that a worker knows from an earlier coordinator is not used again."""
    yard.start("w", credits=2, running=(("old", 41),))
    yard.submit("r")
    assert yard.attempt("w", "r") == 42


def test_a_worker_that_brings_work_may_hang(yard):
    """What a worker brought along is watched like what it was given."""
    yard.start("w", hang_limit_s=10.0, running=(("r", 3),))
    assert yard.router.next_deadline() == 10.0
    assert only(ev.NotifyFleet, yard.tick(10.0)).what == "hung"


# -- workers that come -------------------------------------------------------------------------------------------------


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


# -- deployments -------------------------------------------------------------------------------------------------------


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


# -- stories and counts ------------------------------------------------------------------------------------------------


def test_an_error_tells_the_story(yard):
    """The error of a request carries what happened to it, with times, and it can be asked for afterwards."""
    yard.start("w", "v")
    yard.submit("r")
    yard.at = 1.5
    yard.gone("w")
    effects = yard.cancel("r")
    assert only(ev.SendError, effects).story == (
        "+0.000s accepted",
        "+0.000s sent to w, attempt 1",
        "+1.500s worker w died",
        "+1.500s sent to v, attempt 2",
        "+1.500s cancelled: cancelled by its client",
    )
    assert yard.router.story("r")[-1] == "+1.500s cancelled"
    assert yard.router.story("unknown") == ()


def test_a_story_is_bounded(yard):
    """A request sent again and again does not make its story longer and longer."""
    yard.expect("m")
    for _ in range(500):
        yard.submit("r")
    assert len(yard.router.story("r")) == MAX_LINES


@pytest.mark.parametrize("code", ["pipeline_error", "no_code_of_ours", "overloaded", "finished"])
def test_errors_of_workers_count_as_failed(yard, code):
    """Outcomes are few, whatever codes workers make up."""
    yard.start("w")
    yard.submit("r")
    yard.answer("w", "r", code=code)
    assert yard.ends("r") == [code]
    assert yard.router.outcomes == {"failed": 1}


# -- parts of streams, the short way -------------------------------------------------------------------------------


def test_the_next_part_of_a_stream_is_entered_without_an_event(yard):
    """Its request is returned, the worker has moved, and the ordinary way goes on from there."""
    yard.start("w")
    yard.submit("r", submission=7)
    request = yard.router.take_part("w", "r", 1, 0, 3.0)
    assert (request.client, request.submission, request.delivered) == ("c", 7, 1)
    assert yard.router.workers["w"].progressed == 3.0
    yard.router.check_invariants()
    assert only(ev.SendOutput, yard.answer("w", "r", seq=1)).seq == 1


@pytest.mark.parametrize(
    "part",
    [("w", "r", 1, 1), ("w", "r", 2, 0), ("v", "r", 1, 0), ("w", "s", 1, 0), ("", "waits", 0, 0), ("gone", "r", 1, 0)],
    ids=["another part", "another attempt", "another worker", "no request", "not running", "no worker"],
)
def test_any_other_output_is_not_taken_the_short_way(yard, part):
    """Nothing is changed: it is for `handle` to judge."""
    yard.start("w", "v")
    yard.submit("r")
    yard.submit("r2")
    yard.submit("waits")
    before = [(request.delivered, request.attempt) for request in yard.router.requests.values()]
    assert yard.router.take_part(*part, 3.0) is None
    assert [(request.delivered, request.attempt) for request in yard.router.requests.values()] == before
    assert {worker.progressed for worker in yard.router.workers.values()} == {0.0}
