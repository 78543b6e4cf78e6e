"""What a router that comes anew makes of the work that its workers bring."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import RequestState

from .yard import kinds, only, refusal


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
