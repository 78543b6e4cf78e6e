"""The client's side of the dialogue: whatever the coordinator says, or does not, each request ends once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensoryard import errors
from tensoryard.client.conversation import Conversation
from tensoryard.client.pending import Pending
from tensoryard.client.reply import Reply
from tensoryard.proto import RequestID, wire
from tensoryard.proto.codec import encode_body

WELCOME = wire.Welcome(
    version=wire.WIRE_VERSION,
    epoch="e1",
    host="h",
    heartbeat_s=1.0,
    liveness_s=10.0,
    max_frame_bytes=1 << 20,
    max_message_bytes=1 << 20,
    max_in_flight=10,
)


class Scene:
    """A conversation, what it posts, and what callers heard. A body is its only frame; `faults` make it unreadable."""

    def __init__(self, *, welcome=True, **how):
        self.at = 10.0
        self.posted = []
        self.faults = {}
        self.decoded = []
        self.ends = {}
        shell = {"post": self.post, "decode": self.decode}
        self.conversation = Conversation(address="ipc://x", reconnect_s=15.0, **shell, **how)
        if welcome:
            self.conversation.welcomed(WELCOME, self.at)

    def post(self, message, body=()):
        self.posted.append((message, list(body)))

    def decode(self, body, _type):
        self.decoded.append(body[0])
        if body[0] in self.faults:
            raise self.faults[body[0]]
        return body[0]

    def submit(self, request_id="r", *, deadline_s=None):
        entry = Pending(
            reply=Reply(RequestID(request_id), lambda key: self.conversation.cancel(str(key))),
            submit=wire.Submit(request_id=request_id, task="t", model="m", deadline_s=deadline_s),
            body=encode_body(f"body of {request_id}"),
            output_type=bytes,
            sent_at=self.at,
            deadline=self.at + deadline_s if deadline_s is not None else None,
        )
        self.conversation.submit(entry, 0.0)
        return entry.reply

    def say(self, message, *body):
        self.conversation.message(message, list(body), self.at)

    def partial(self, seq, body=b"part", request_id="r"):
        self.say(wire.Partial(request_id=request_id, seq=seq), body)

    def final(self, seq=0, body=b"last", request_id="r"):
        self.say(wire.Final(request_id=request_id, seq=seq), body)

    def error(self, code, request_id="r"):
        self.say(wire.Error(request_id=request_id, code=code, text="text"))

    def take(self):
        """What was posted since it was last asked: names, in order."""
        posted, self.posted = self.posted, []
        return [type(message).__name__ for message, _ in posted]


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
def test_w_36_an_answer_to_what_was_given_up_is_nobodys(scene, kind):
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


# -- hostile ----------------------------------------------------------------------------------------------------------

REQUESTS = [f"r{number}" for number in range(3)]
requests = st.sampled_from(REQUESTS)


class HostileCoordinator(RuleBasedStateMachine):
    """A coordinator that says anything; each reply ends at most once, with its stream in order, and all end at last."""

    def __init__(self):
        super().__init__()
        self.scene = Scene()
        self.scene.faults = {
            b"lost": errors.SegmentGone("gone"),
            b"bad": errors.DecodeError("bad"),
            b"bug": KeyError(1),
        }
        self.replies = []
        self.before = {}

    @rule(request=requests)
    def submit(self, request):
        try:
            self.replies.append(self.scene.submit(request))
        except errors.TensoryardError:
            assert self.scene.conversation.pending.get(request) or self.scene.conversation.refusal

    @rule(
        request=requests,
        seq=st.integers(0, 3),
        last=st.booleans(),
        fault=st.sampled_from([b"", b"lost", b"bad", b"bug"]),
    )
    def output(self, request, seq, last, fault):
        act = self.scene.final if last else self.scene.partial
        act(seq, fault or b"%d" % seq, request)

    @rule(request=requests, code=st.sampled_from(["cancelled", "overloaded", "expired", "unheard of"]))
    def error(self, request, code):
        self.scene.error(code, request)

    @rule(data=st.data())
    def cancel(self, data):
        if self.replies:
            data.draw(st.sampled_from(self.replies)).cancel()

    @rule()
    def welcome_again(self):
        self.scene.conversation.welcomed(WELCOME, self.scene.at)

    @rule(error=st.sampled_from([errors.ProtocolError("x"), errors.VersionMismatch("y")]))
    def refuse(self, error):
        self.scene.conversation.refused(error)

    @rule(silent_s=st.sampled_from([0.0, 20.0]))
    def beat(self, silent_s):
        self.scene.conversation.beat(silent_s)

    @rule()
    def goodbye(self):
        self.scene.say(wire.Disconnect())

    @invariant()
    def replies_are_what_they_were(self):
        """What a reply has given, and how it ended, never changes; its parts have their numbers."""
        for reply in self.replies:
            now = (list(reply._outputs), reply.done, reply._error)
            assert now[0] == [b"%d" % number for number in range(len(now[0]))]
            before = self.before.get(id(reply))
            assert before is None or not before[1] or before == now, "a reply changed after its end"
            self.before[id(reply)] = now

    @invariant()
    def what_is_under_way_is_what_has_not_ended(self):
        live = [reply for reply in self.replies if not reply.done]
        assert [entry.reply for entry in self.scene.conversation.pending.all()] == live

    def teardown(self):
        self.scene.conversation.close()
        self.scene.conversation.ended()
        assert all(reply.done for reply in self.replies)
        sent = itertools.chain.from_iterable(frames for _, frames in self.scene.posted)
        assert all(isinstance(frame, bytes | memoryview | bytearray) for frame in sent)


TestHostileCoordinator = HostileCoordinator.TestCase
TestHostileCoordinator.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
