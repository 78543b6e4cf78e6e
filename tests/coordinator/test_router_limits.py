"""What the router refuses, gives up or holds back: bounds, deadlines, cancelled requests, windows."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tensoryard.coordinator import events as ev

from .yard import Yard, kinds, only, refusal

# -- admission --------------------------------------------------------------------------------------------------------


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


# -- deadlines --------------------------------------------------------------------------------------------------------


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


# -- cancel -----------------------------------------------------------------------------------------------------------


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
