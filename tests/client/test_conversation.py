"""The client's side of the dialogue: whatever the coordinator says, or does not, each request ends once."""

from __future__ import annotations

import gc
import weakref

import msgspec
import pytest

from tensoryard import errors
from tensoryard.client.retry import Retry
from tensoryard.proto import wire
from tensoryard.proto.codec import encode_body

from .scene import WELCOME, Loan, Scene


@pytest.fixture
def scene():
    return Scene()


def ending(reply):
    """How a reply ended: its error's class, or its outputs."""
    assert reply.done
    try:
        return reply.outputs_from(0)[0] if reply._error is None else type(reply._error)
    finally:
        assert reply.done


# -- sending ----------------------------------------------------------------------------------------------------------


def test_a_request_is_posted_with_its_body(scene):
    """SUBMIT and the body's frames, once; the request is under way until its answer."""
    reply = scene.submit()
    ((message, body),) = scene.posted
    assert (message.request_id, body) == ("r", encode_body("body of r").frames)
    assert not reply.done
    scene.final()
    assert ending(reply) == [b"last"]
    assert len(scene.conversation.pending) == 0


def test_a_live_id_is_refused_before_it_is_sent(scene):
    """A second request of an id is a DuplicateRequest; the first is not touched."""
    reply = scene.submit()
    scene.take()
    with pytest.raises(errors.DuplicateRequest):
        scene.submit()
    assert scene.take() == []
    scene.final()
    assert ending(reply) == [b"last"]


@pytest.mark.parametrize("act", ["submit", "ask"])
def test_nothing_is_sent_where_nobody_would_answer(act):
    """Closed, refused, failed, or silent for too long: whoever asks is told why, and nothing stays behind."""

    def closed(conversation):
        conversation.close()

    def refused(conversation):
        conversation.refused(errors.VersionMismatch("another version"))

    def failed(conversation):
        conversation.failed(ZeroDivisionError("our bug"))

    for end, error in [(closed, errors.NotConnected), (refused, errors.VersionMismatch), (failed, errors.NotConnected)]:
        scene = Scene()
        end(scene.conversation)
        with pytest.raises(error):
            scene.submit() if act == "submit" else scene.conversation.ask(wire.AskStatus, list, 0.0)
        assert (len(scene.conversation.pending), scene.conversation.queries, scene.posted) == (0, {}, [])
    scene = Scene()
    with pytest.raises(errors.NotConnected, match="not been heard for 16 s"):
        scene.conversation.require_open(16.0)
    assert scene.conversation.require_open(14.0) is WELCOME


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(22)
def test_a_stream_is_taken_in_order_and_once(scene):
    """Parts that come again are read, which takes their leases, and not delivered."""
    reply = scene.submit()
    for seq in (0, 1, 0, 1, 2):
        scene.partial(seq, b"%d" % seq)
    scene.final(3, b"3")
    scene.final(3, b"3")
    assert ending(reply) == [b"0", b"1", b"2", b"3"]
    assert len(scene.decoded) == 7


@pytest.mark.parametrize(
    "message",
    [
        wire.Final(request_id="x", seq=0),
        wire.Partial(request_id="x", seq=5),
        wire.Error(request_id="x", code="failed", text=""),
        wire.Report(query=5),
        wire.Heartbeat(),
        wire.Rejoin(),
    ],
)
def test_answers_to_nobody_change_nothing(scene, message):
    """Outputs, errors and reports that nobody waits for are passed over; their memory is claimed all the same."""
    reply = scene.submit()
    scene.take()
    scene.say(message, b"body")
    assert scene.take() == []
    assert not reply.done
    assert scene.decoded == ([b"body"] if isinstance(message, wire.Final | wire.Partial) else [])


@pytest.mark.parametrize("kind", ["partial", "final", "error"])
def test_w_38_an_answer_to_what_was_given_up_is_nobodys(scene, kind):
    """A request that ended here alone may be answered yet; another of its name does not take that for its own.

    An output is read all the same, which takes its lease. An answer that names no submission counts: older peers'.
    """
    scene.submit()
    scene.conversation.beat(16.0)
    reply = scene.submit()
    first, second = (message.submission for message, _ in scene.posted)
    assert second == first + 1
    answers = {
        "partial": lambda submission: wire.Partial(request_id="r", seq=0, submission=submission),
        "final": lambda submission: wire.Final(request_id="r", seq=0, submission=submission),
        "error": lambda submission: wire.Error(request_id="r", code="expired", text="", submission=submission),
    }
    scene.faults[b"gone"] = errors.SegmentGone("its memory, too")
    for body in (b"first's", b"gone"):
        scene.say(answers[kind](first), body)
    assert not reply.outputs_from(0)[0]
    assert not reply.done
    assert scene.decoded == ([] if kind == "error" else [b"first's", b"gone"])
    assert scene.take() == ["Submit", "Submit"]
    scene.say(answers[kind](second if kind == "final" else 0), b"second's")
    assert ending(reply) is errors.DeadlineExpired if kind == "error" else reply.outputs_from(0)[0] == [b"second's"]


def test_what_is_sent_again_is_the_same_submission(scene):
    """To a new coordinator, and after a result was lost."""
    scene.submit()
    scene.conversation.welcomed(WELCOME, scene.at)
    scene.partial(3)
    assert len({message.submission for message, _ in scene.posted if isinstance(message, wire.Submit)}) == 1


def test_submissions_of_two_clients_differ():
    """Each counts from a number of its own."""
    scenes = [Scene(first_submission=number) for number in (5, 1 << 40)]
    for scene in scenes:
        scene.submit("a")
        scene.submit("b")
    told = [[message.submission for message, _ in scene.posted] for scene in scenes]
    assert told == [[5, 6], [1 << 40, (1 << 40) + 1]]


def test_an_error_ends_a_request_once(scene):
    """The first terminal answer counts; what comes later is nobody's."""
    reply = scene.submit()
    scene.error("overloaded")
    scene.final()
    scene.error("expired")
    assert ending(reply) is errors.Overloaded
    assert reply._error.request_id == "r"


@pytest.mark.parametrize("kind", ["partial", "final"])
def test_what_cannot_be_read_fails_alone(scene, kind):
    """A broken body ends its request; if that still runs, it is cancelled."""
    scene.faults[b"bad"] = errors.DecodeError("broken")
    reply, other = scene.submit(), scene.submit("other")
    scene.take()
    getattr(scene, kind)(0, b"bad")
    assert ending(reply) is errors.DecodeError
    assert scene.take() == (["Cancel"] if kind == "partial" else [])
    assert not other.done


def test_a_report_answers_its_question(scene):
    """Each question gets the body of the report with its number; without one, and after the end, None."""
    answers = {1: [], 2: []}
    numbers = [scene.conversation.ask(wire.AskStatus, answers[number].append, 0.0) for number in answers]
    scene.say(wire.Report(query=numbers[1]), memoryview(b"two"))
    scene.say(wire.Report(query=numbers[0]))
    assert answers == {1: [], 2: [b"two"]}
    scene.conversation.forget(numbers[1])
    scene.conversation.failed(ZeroDivisionError())
    assert answers == {1: [None], 2: [b"two"]}


# -- results that are lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errors.StaleHandle("stale"), errors.SegmentGone("gone")])
def test_a_lost_result_is_asked_for_again(scene, error):
    """CANCEL, then SUBMIT; the answer to that CANCEL ends nothing, nor does what is left of the run before."""
    scene.faults[b"lost"] = error
    reply = scene.submit()
    scene.take()
    scene.partial(0, b"lost")
    assert scene.take() == ["Cancel", "Submit"]
    scene.error("cancelled")
    scene.partial(1, b"left over")
    scene.partial(0, b"0")
    scene.final(1, b"1")
    assert ending(reply) == [b"0", b"1"]


def test_what_was_read_of_an_output_that_cannot_be_goes_at_once(scene):
    """The error keeps neither its frames nor, by them, arrays that were claimed before; no collector need come."""
    kept = []

    def decode(_body, _type):
        claim = Loan()
        kept.append(weakref.ref(claim))
        raise errors.StaleHandle("the second array is gone")

    scene.conversation._decode = decode
    scene.submit()
    gc.disable()
    try:
        scene.partial(0, b"0")
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_parts_that_were_taken_are_not_taken_twice(scene):
    """After a resend the stream begins anew, and goes on where it was."""
    scene.faults[b"lost"] = errors.SegmentGone("gone")
    reply = scene.submit()
    scene.partial(0, b"0")
    scene.partial(1, b"lost")
    for seq in (0, 1):
        scene.partial(seq, b"%d" % seq)
    scene.final(2, b"2")
    assert ending(reply) == [b"0", b"1", b"2"]


@pytest.mark.case(22)
def test_a_gap_is_asked_for_again(scene):
    """A part that comes before its turn means that one was lost on the way."""
    reply = scene.submit()
    scene.take()
    scene.partial(1)
    assert scene.take() == ["Cancel", "Submit"]
    scene.final(0)
    assert ending(reply) == [b"last"]


def test_it_is_asked_for_three_times_at_most(scene):
    """The fourth loss ends the request, at the coordinator too."""
    scene.faults[b"lost"] = errors.SegmentGone("gone")
    reply = scene.submit()
    for _ in range(3):
        scene.final(0, b"lost")
        assert not reply.done
    scene.take()
    scene.final(0, b"lost")
    assert ending(reply) is errors.WorkerLost
    assert scene.take() == ["Cancel"]


def test_what_was_cancelled_is_not_asked_for_again(scene):
    """A result that is lost after `cancel` ends the request as cancelled."""
    scene.faults[b"lost"] = errors.SegmentGone("gone")
    reply = scene.submit()
    reply.cancel()
    scene.take()
    scene.final(0, b"lost")
    assert ending(reply) is errors.RequestCancelled
    assert scene.take() == ["Cancel"]


def test_a_resend_keeps_the_deadline(scene):
    """SUBMIT sent again carries what is left of its deadline at that time."""
    scene.submit(deadline_s=30.0)
    scene.take()
    scene.at += 20.0
    scene.partial(1)
    assert scene.posted[-1][0].deadline_s == 10.0


def test_a_cancel_is_said_once(scene):
    """However often the caller says it: nothing piles up while the coordinator is away."""
    reply = scene.submit()
    scene.take()
    for _ in range(3):
        reply.cancel()
    assert scene.take() == ["Cancel"]


def test_questions_are_bounded(scene):
    """So many at once; one that is answered or given up makes room."""
    numbers = [scene.conversation.ask(wire.AskStatus, lambda _: None, 0.0) for _ in range(256)]
    with pytest.raises(errors.Overloaded, match="256 questions"):
        scene.conversation.ask(wire.AskStatus, lambda _: None, 0.0)
    scene.conversation.forget(numbers[0])
    scene.conversation.ask(wire.AskStatus, lambda _: None, 0.0)


def test_a_refusal_closes_the_gate_for_its_model(scene):
    """Until the time that the coordinator gave; and as many requests as may be are no more."""
    reply = scene.submit()
    scene.say(wire.Error(request_id="r", code="overloaded", text="full", retry_after_s=5.0))
    assert ending(reply) is errors.Overloaded
    assert scene.conversation.overload("m", scene.at + 4.0).retry_after_s == 1.0
    assert scene.conversation.overload("m", scene.at + 5.0) is None
    assert scene.conversation.overload("other", scene.at) is None
    for number in range(WELCOME.max_in_flight):
        scene.submit(f"r{number}")
    assert "max_in_flight" in scene.conversation.overload("other", scene.at).text


# -- tries ------------------------------------------------------------------------------------------------------------

PATIENT = Retry(runs=3, first_s=1.0, longest_s=4.0, total_s=1000.0)


def test_a_refused_request_comes_back_when_it_was_told(scene):
    """Not before, with the same body; its memory is kept meanwhile, and its deadline runs on."""
    reply = scene.submit(retry=PATIENT, deadline_s=100.0)
    scene.error("overloaded", retry_after_s=5.0)
    scene.take()
    scene.wait(5.9)
    assert scene.posted == []
    scene.wait(0.1)
    ((message, body),) = scene.posted
    assert (message.request_id, message.deadline_s) == ("r", 94.0)
    assert body == encode_body("body of r").frames
    assert not reply.done
    scene.final()
    assert ending(reply) == [b"last"]
    assert reply.outcome == "finished"


def test_a_lost_request_is_run_so_often_and_no_more(scene):
    """Three times in all, later and later; then its last error, with the story of all of them."""
    reply = scene.submit(retry=PATIENT)
    times = []
    for _ in range(3):
        scene.take()
        scene.error("worker_lost", story=["+0.000s accepted"], outcome="worker_lost")
        before = scene.at
        if not reply.done:
            scene.wait(20.0)
            times.append(scene.alarms[-1] - before)
    assert times == [1.0, 2.0]
    assert scene.take() == []
    assert ending(reply) is errors.WorkerLost
    with pytest.raises(errors.WorkerLost, match=r"text \(given up after 3 tries\)") as raised:
        reply.result()
    assert raised.value.story == (
        "+0.000s client: sent",
        "+0.000s client: worker_lost: text; tried again in 1.00 s",
        "+20.000s client: worker_lost: text; tried again in 2.00 s",
        "+0.000s accepted",
    )
    assert reply.outcome == "worker_lost"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("invalid_request", "rejected"), ("pipeline_error", "failed"), ("expired", "expired"), ("cancelled", "cancelled")],
)
def test_what_would_not_go_better_is_not_tried_again(scene, code, outcome):
    """Nor is anything, where the caller has no policy."""
    replies = [scene.submit(retry=PATIENT), scene.submit("impatient")]
    scene.error(code)
    scene.error("worker_lost", "impatient")
    scene.take()
    scene.wait(1000.0)
    assert scene.take() == []
    assert [reply.outcome for reply in replies] == [outcome, "worker_lost"]


def test_a_stream_that_is_tried_again_goes_on_where_it_was(scene):
    """Parts that were delivered are not delivered twice."""
    reply = scene.submit(retry=PATIENT)
    scene.partial(0, b"a")
    scene.partial(1, b"b")
    scene.error("worker_lost")
    scene.wait(1.0)
    for seq, body in enumerate([b"a", b"b", b"c"]):
        scene.partial(seq, body)
    scene.final(3, b"d")
    assert ending(reply) == [b"a", b"b", b"c", b"d"]


def test_a_sleeping_request_is_cancelled_at_once(scene):
    """Nobody else knows of it: it is not sent any more, and what wakes for it finds nothing."""
    reply = scene.submit(retry=PATIENT)
    scene.error("overloaded", retry_after_s=5.0)
    scene.take()
    reply.cancel()
    assert ending(reply) is errors.RequestCancelled
    scene.wait(100.0)
    assert scene.take() == []


def test_a_request_cancelled_as_it_wakes_is_cancelled_there_too(scene):
    """The coordinator hears CANCEL after SUBMIT, whoever was faster here."""
    reply = scene.submit(retry=PATIENT)
    scene.error("overloaded", retry_after_s=5.0)
    post, scene.conversation._post = scene.conversation._post, None
    scene.take()

    def cancel_meanwhile(message, body=()):
        post(message, body)
        scene.conversation._post = post
        reply.cancel()

    scene.conversation._post = cancel_meanwhile
    scene.wait(6.0)
    assert scene.take() == ["Submit", "Cancel", "Cancel"]
    scene.error("cancelled")
    assert reply.outcome == "cancelled"


def test_a_cancelled_request_is_not_tried_again(scene):
    """Whatever ends it."""
    reply = scene.submit(retry=PATIENT)
    reply.cancel()
    scene.error("worker_lost")
    assert ending(reply) is errors.WorkerLost


def test_a_lost_coordinator_is_waited_for(scene):
    """As long as the policy says: nothing is sent into the void, and the new one hears of it once."""
    reply = scene.submit(retry=Retry(runs=10, first_s=1.0, longest_s=10.0, total_s=60.0))
    given_up = scene.submit("short", retry=Retry(runs=10, first_s=1.0, longest_s=10.0, total_s=3.0))
    scene.take()
    for _ in range(5):
        scene.beat(20.0)
        scene.wait(4.0)
    assert scene.take() == []
    assert given_up.outcome == "coordinator_lost"
    scene.conversation.welcomed(msgspec.structs.replace(WELCOME, epoch="e2"), scene.at)
    scene.silent_s = 0.0
    scene.wait(10.0)
    assert scene.take() == ["Submit"]
    scene.final()
    assert ending(reply) == [b"last"]


def test_who_wakes_asks_anew_whether_the_coordinator_is_heard(scene):
    """At the last beat it was not, but it has come back since: its first word is no message of ours.

    Seen in a simulation: with its last try left, a request woke between REJOIN and WELCOME and was given up.
    """
    reply = scene.submit(retry=Retry(runs=2, first_s=1.0, longest_s=1.0, total_s=60.0))
    scene.beat(20.0)
    scene.take()
    scene.silent_s = 0.0
    scene.wait(1.0)
    assert scene.take() == ["Submit"]
    scene.final()
    assert ending(reply) == [b"last"]


def test_an_answer_may_come_while_it_sleeps(scene):
    """A coordinator that was frozen, not dead, goes on: its answer counts, and nothing is tried again."""
    reply = scene.submit(retry=PATIENT)
    scene.partial(0, b"a")
    scene.beat(20.0)
    scene.partial(1, b"b")
    scene.final(2, b"c")
    assert ending(reply) == [b"a", b"b", b"c"]
    scene.take()
    scene.wait(100.0)
    assert scene.take() == []


def test_word_of_a_try_that_is_over_does_not_end_the_next(scene):
    """The answer to our own CANCEL comes while it sleeps, or after it was sent again."""
    scene.faults[b"lost"] = errors.SegmentGone("gone")
    for when in ("asleep", "awake"):
        reply = scene.submit(when, retry=PATIENT)
        for _ in range(4):
            scene.final(0, b"lost", when)
            scene.conversation.pending.get(when).restarting = False
        assert scene.conversation.pending.sleeps(when)
        scene.conversation.pending.get(when).restarting = True
        if when == "asleep":
            scene.error("cancelled", when)
            scene.wait(4.0)
        else:
            scene.wait(4.0)
            scene.error("cancelled", when)
        scene.final(0, b"found", when)
        assert ending(reply) == [b"found"]


def test_closing_ends_those_that_sleep(scene):
    """As cancelled, like all others."""
    reply = scene.submit(retry=PATIENT)
    scene.error("overloaded", retry_after_s=5.0)
    scene.conversation.close()
    scene.conversation.ended()
    assert reply.outcome == "cancelled"


# -- outcomes and stories ---------------------------------------------------------------------------------------------


def test_the_coordinator_says_how_it_ended(scene):
    """Its word counts: an invalid request that was accepted has failed, one that was not is rejected."""
    for name, told in [("a", "failed"), ("b", ""), ("c", "rejected")]:
        reply = scene.submit(name)
        assert reply.outcome is None
        scene.error("invalid_request", name, outcome=told)
        assert reply.outcome == (told or "rejected")


def test_errors_made_here_have_a_story_too(scene):
    """What this side saw: sent, lost, sent to another coordinator; bounded, whatever happens how often."""
    scene.faults[b"lost"] = errors.SegmentGone("gone")
    reply = scene.submit()
    scene.at += 1.0
    scene.final(0, b"lost")
    for number in range(100):
        scene.conversation.welcomed(msgspec.structs.replace(WELCOME, epoch=f"n{number}"), scene.at)
    scene.conversation.beat(30.0, scene.at)
    with pytest.raises(errors.CoordinatorLost) as raised:
        reply.result()
    story = raised.value.story
    assert story[0] == "+0.000s client: sent"
    assert story[1] == "+1.000s client: its result was lost, to be run again: gone"
    assert story[-1] == "+1.000s client: the coordinator was replaced; sent to the new one"
    assert len(story) <= 20


# -- windows ----------------------------------------------------------------------------------------------------------


def read(reply, count):
    """Read so many outputs."""
    for _, output in zip(range(count), reply, strict=False):
        assert output is not None


def test_what_was_read_is_told_now_or_at_the_next_beat(scene):
    """Half a window at once, less with the beat, and after the end nothing."""
    reply = scene.submit(window=4)
    for seq in range(4):
        scene.partial(seq)
    scene.take()
    outputs = iter(reply)
    next(outputs), next(outputs), next(outputs)
    assert [message for message, _ in scene.posted] == [wire.Consumed(request_id="r", parts=2)]
    scene.conversation.beat(0.0)
    scene.conversation.beat(0.0)
    assert [message.parts for message, _ in scene.posted] == [2, 3]
    scene.final(4)
    scene.take()
    assert list(outputs) == [b"part", b"last"]
    scene.conversation.beat(0.0)
    assert scene.take() == []


def test_w_35_nothing_is_told_to_a_coordinator_that_does_not_speak_windows():
    """One of an earlier release would not understand the message."""
    scene = Scene(welcome=False)
    scene.conversation.welcomed(msgspec.structs.replace(WELCOME, features=[]), 1.0)
    reply = scene.submit(window=1)
    scene.take()
    scene.partial(0)
    reply.collect()
    scene.conversation.beat(0.0)
    assert scene.take() == []


def test_what_is_sent_again_takes_along_what_was_read(scene):
    """A new coordinator, and a run that is asked for again, hear how far the reader is."""
    reply, whole = scene.submit(window=16), scene.submit("whole", window=16)
    whole.collect()
    for seq in range(3):
        scene.partial(seq)
    read(reply, 2)
    scene.take()
    scene.conversation.welcomed(WELCOME, scene.at)
    assert [message.consumed for message, _ in scene.posted] == [2, 1 << 53]
    scene.faults[b"part"] = errors.SegmentGone("gone")
    scene.posted.clear()
    scene.partial(3)
    assert [message.consumed for message, _ in scene.posted if isinstance(message, wire.Submit)] == [2]


def test_sizes_are_counted_with_their_shared_memory(scene):
    """Of what a worker says to have lent, each output counts for what came with it."""
    reply = scene.submit(window=1000, window_bytes=1 << 20)
    for seq, shared in enumerate([300_000, 600_000, 600_000]):
        scene.say(wire.Partial(request_id="r", seq=seq, ledger=wire.Ledger(output_shared_bytes=shared)), b"part")
    sizes = list(reply._reading._sizes)
    assert [size // 1000 for size in sizes] == [300, 300, 0]
    scene.take()
    read(reply, 2)
    assert scene.take() == ["Consumed"]


# -- coordinators that go and come ------------------------------------------------------------------------------------


def test_a_new_coordinator_gets_what_is_under_way(scene):
    """WELCOME again: requests and questions are sent again, in order; what was cancelled ends here."""
    replies = [scene.submit(name) for name in ("a", "b", "c")]
    scene.conversation.ask(wire.AskStatus, lambda _: None, 0.0)
    replies[1].cancel()
    scene.final(request_id="c")
    scene.posted.clear()
    scene.conversation.welcomed(WELCOME, scene.at)
    assert [getattr(m, "request_id", m) for m, _ in scene.posted] == ["a", wire.AskStatus(query=1)]
    assert ending(replies[1]) is errors.RequestCancelled
    scene.final(request_id="a")
    assert ending(replies[0]) == [b"last"]


def test_what_came_after_the_hello_is_not_sent_again(scene):
    """A new coordinator has it, and has perhaps answered: again, it would run twice. The next one has to be told."""
    for name, hellos in [("before", 1), ("after", 2)]:
        scene.submit(name, hellos=hellos)
    for hellos, again in [(2, ["before"]), (2, []), (3, ["before", "after"])]:
        scene.posted.clear()
        scene.conversation.welcomed(WELCOME, scene.at, hellos)
        assert [message.request_id for message, _ in scene.posted] == again


def test_the_first_welcome_sends_nothing():
    """There is nothing under way before it."""
    scene = Scene()
    assert scene.posted == []


def test_a_coordinator_that_stays_away_is_lost(scene):
    """After `reconnect_s` of silence everything under way fails, to be sent again; before, nothing does."""
    reply = scene.submit()
    scene.conversation.beat(15.0)
    assert not reply.done
    scene.conversation.beat(15.5)
    assert ending(reply) is errors.CoordinatorLost


def test_a_goodbye_ends_everything(scene):
    """DISCONNECT: nobody will answer."""
    replies = [scene.submit(name) for name in ("a", "b")]
    scene.say(wire.Disconnect())
    assert [ending(reply) for reply in replies] == [errors.CoordinatorLost] * 2


def test_a_refusal_counts_before_the_welcome_only():
    """A refused HELLO is why nothing can be sent, until a welcome; a refused message ends nothing."""
    scene = Scene(welcome=False)
    scene.conversation.refused(errors.ProtocolError("who are you"))
    with pytest.raises(errors.ProtocolError):
        scene.conversation.require_open(0.0)
    scene.conversation.welcomed(WELCOME, 0.0)
    reply = scene.submit()
    scene.conversation.refused(errors.ProtocolError("what is that"))
    assert not reply.done
    scene.conversation.refused(errors.VersionMismatch("a new one of another version"))
    assert ending(reply) is errors.VersionMismatch


def test_closing_cancels_once_the_session_has_ended(scene):
    """After `close` nothing new is sent; answers that still come count; `ended` cancels the rest."""
    replies = [scene.submit(name) for name in ("a", "b")]
    scene.conversation.close()
    scene.final(request_id="a")
    scene.conversation.ended()
    assert [ending(reply) for reply in replies] == [[b"last"], errors.RequestCancelled]


# -- several answers in one message -----------------------------------------------------------------------------------


def test_answers_mean_what_their_outputs_mean_alone(scene):
    """Each output reaches its reply with its own body, in order."""
    first, second = scene.submit("a"), scene.submit("b")
    outputs = [
        wire.Partial(request_id="a", seq=0),
        wire.Final(request_id="b", seq=0),
        wire.Final(request_id="a", seq=1),
    ]
    scene.say(wire.Answers(outputs=outputs, frames=[1, 1, 1]), b"a0", b"b0", b"a1")
    assert (ending(first), ending(second)) == ([b"a0", b"a1"], [b"b0"])


def test_w_36_answers_that_do_not_add_up_are_dropped(scene):
    """Nothing of them is taken, since nobody knows which body belongs to which output."""
    reply = scene.submit("a")
    for counts, bodies in [([2], [b"x"]), ([1, 1], [b"x", b"y"]), ([], [])]:
        scene.say(wire.Answers(outputs=[wire.Final(request_id="a", seq=0)], frames=counts), *bodies)
        assert not reply.done
    scene.final(request_id="a")
    assert ending(reply) == [b"last"]
