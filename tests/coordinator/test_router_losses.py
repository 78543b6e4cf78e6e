"""What the router does for requests whose worker dies, kills or stands still."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.router import MAX_ATTEMPTS

from .yard import kinds, only

# -- workers lost -----------------------------------------------------------------------------------------------------


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


# -- poison -----------------------------------------------------------------------------------------------------------


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


# -- hung workers -----------------------------------------------------------------------------------------------------


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
