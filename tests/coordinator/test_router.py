"""The router, case by case: who runs next and where, what passes, and what is told of it."""

from __future__ import annotations

from collections import Counter

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.story import MAX_LINES

from .yard import kinds, only

# -- the simple life --------------------------------------------------------------------------------------------------


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


# -- order and choice -------------------------------------------------------------------------------------------------


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


# -- stories and counts -----------------------------------------------------------------------------------------------


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


# -- parts of streams, the short way ----------------------------------------------------------------------------------


def test_the_next_part_of_a_stream_is_entered_without_an_event(yard):
    """Its request is returned, the worker has moved, and the ordinary way goes on from there."""
    yard.start("w")
    yard.submit("r", submission=7)
    request = yard.router.take_part("w", "r", 1, 0, 3.0)
    assert (request.client, request.submission, request.delivered) == ("c", 7, 1)
    assert yard.router.workers["w"].progressed == 3.0
    yard.router.check_invariants()
    assert only(ev.SendOutput, yard.answer("w", "r", seq=1)).seq == 1


def test_the_last_output_ends_its_request_without_an_event(yard):
    """It has finished, nothing of it is left but its story, and there is no news where nobody waits."""
    yard.start("w")
    yard.submit("r", submission=7)
    request = yard.router.take_last("w", "r", 1, 0, 3.0)
    assert (request.client, request.submission) == ("c", 7)
    assert not yard.router.has_news
    assert yard.is_empty()
    assert yard.router.outcomes == {"finished": 1}
    assert yard.router.story("r")[-1] == "+3.000s finished"
    yard.router.check_invariants()


def test_who_waited_for_its_place_starts_with_the_next_event(yard):
    """The news that a last output brings is told by whatever comes next."""
    yard.start("w")
    yard.submit("r")
    yard.submit("waits")
    assert yard.router.take_last("w", "r", 1, 0, 3.0) is not None
    assert yard.router.has_news
    assert only(ev.SendRequest, yard.feed(ev.Ticked)).request_id == "waits"
    assert not yard.router.has_news


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
    assert yard.router.take_last(*part, 3.0) is None
    assert not yard.router.has_news
    assert [(request.delivered, request.attempt) for request in yard.router.requests.values()] == before
    assert {worker.progressed for worker in yard.router.workers.values()} == {0.0}
