"""The worker's side of the dialogue: it asks for work once it is known and able, and knows when it is to end."""

from __future__ import annotations

import types

import msgspec
import pytest

from tensoryard import errors
from tensoryard.proto import wire
from tensoryard.settings import Settings
from tensoryard.workers import conversation as module
from tensoryard.workers.answers import MAX_FRAMES
from tensoryard.workers.conversation import EXIT_DRAINED, EXIT_ORPHANED, EXIT_REFUSED, Conversation, Held

SETTINGS = Settings(heartbeat_s=1.0, orphan_s=30.0, max_frame_bytes=1000, max_message_bytes=50_000)
READY = wire.Ready(model="m", task="t", deployment="d", credits=4)
WELCOME = wire.Welcome(
    version=wire.WIRE_VERSION,
    epoch="e1",
    host="h",
    heartbeat_s=1.0,
    liveness_s=10.0,
    max_frame_bytes=10_000,
    max_message_bytes=20_000,
    max_in_flight=10,
)


class Scene:
    """A conversation; what it posts, hands on, lends and takes back is written down."""

    def __init__(self):
        self.posted = []
        self.told = []
        self.lent = []
        self.back = []
        self.left = 0
        self.holds = {}
        self.conversation = Conversation(
            name="w",
            settings=SETTINGS,
            post=self.post,
            requests=self,
            memory=self,
            leave=self.leave,
            begin_anew=self.begin_anew,
        )

    def post(self, message, body=()):
        self.posted.append((message, list(body)))

    def leave(self):
        self.left += 1

    def begin_anew(self):
        self.told.append(("begin anew",))

    def take(self, message, body):
        self.told.append(("take", message.request_id, body))

    def cancel(self, key):
        self.told.append(("cancel", key))

    def consume(self, key, parts):
        self.told.append(("consume", key, parts))

    def drain(self):
        self.told.append(("drain",))

    def held(self):
        return self.holds

    def send(self, loan):
        self.lent.append(loan.generation)

    def discard(self, generation):
        self.back.append(generation)

    def say(self, message, *body):
        self.conversation.message(message, list(body))

    def messages(self):
        """What was posted since it was last asked."""
        posted, self.posted = self.posted, []
        return [message for message, _ in posted]


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def known(scene):
    """A worker that has said READY."""
    scene.conversation.welcomed(WELCOME)
    scene.conversation.ready(READY)
    scene.messages()
    return scene


def answer(name, *frames, seq=0, loans=()):
    output = wire.Output(request_id=name, attempt=1, seq=seq, done=True, frames=len(frames))
    return output, list(frames), [types.SimpleNamespace(generation=number) for number in loans]


@pytest.mark.parametrize("first", ["welcome", "ready"])
def test_ready_needs_both(scene, first):
    """READY is said once the worker is known and its pipeline loaded, whichever comes first."""
    acts = [lambda: scene.conversation.welcomed(WELCOME), lambda: scene.conversation.ready(READY)]
    for act in acts if first == "welcome" else reversed(acts):
        assert scene.messages() == []
        act()
    assert scene.messages() == [READY]


def test_each_coordinator_hears_what_is_held(known):
    """WELCOME again: READY again, with the requests that are still here."""
    known.holds = {("a", 3): Held(submission=77, sent=2, cancelled=True), ("b", 1): Held()}
    known.conversation.welcomed(WELCOME)
    running = [
        wire.Running(request_id="a", attempt=3, submission=77, sent=2, cancelled=True),
        wire.Running(request_id="b", attempt=1),
    ]
    assert known.messages() == [msgspec.structs.replace(READY, running=running)]


def test_the_lower_limits_count(scene):
    """Of the coordinator's limits and ours the lower ones."""
    limits = scene.conversation
    assert (limits.max_frame_bytes, limits.max_message_bytes) == (1000, 50_000)
    scene.conversation.welcomed(WELCOME)
    assert (limits.max_frame_bytes, limits.max_message_bytes) == (1000, 20_000)


def test_work_is_handed_on(known):
    """REQUEST, CANCEL_WORK, CONSUMED and DRAIN reach the intake as they are."""
    known.say(wire.Dispatch(request_id="r", attempt=2), b"body")
    known.say(wire.Consumed(request_id="r", attempt=2, parts=3))
    known.say(wire.CancelWork(request_id="r", attempt=2))
    known.say(wire.Drain())
    assert known.told == [("take", "r", [b"body"]), ("consume", ("r", 2), 3), ("cancel", ("r", 2)), ("drain",)]


@pytest.mark.parametrize("message", [wire.Heartbeat(), wire.Disconnect(), wire.Rejoin()])
def test_other_messages_mean_nothing(known, message):
    """The coordinator's goodbye above all: the worker goes on, for the next one."""
    known.say(message)
    assert (known.told, known.posted, known.left) == ([], [], 0)


def test_answers_leave_together(known):
    """The answers of a step are one message, frames in order; their memory is lent before it leaves."""
    known.conversation.send([answer("a", b"1", b"2"), answer("b"), answer("c", b"3", loans=[7, 8])])
    ((message, frames),) = known.posted
    assert [output.request_id for output in message.outputs] == ["a", "b", "c"]
    assert frames == [b"1", b"2", b"3"]
    assert known.lent == [7, 8]


@pytest.mark.parametrize(
    ("answers", "limit", "messages"),
    [
        ([answer(f"{n}", b"") for n in range(2500)], 1 << 30, 3),
        ([answer(f"{n}", *[b""] * (MAX_FRAMES - 1)) for n in range(3)], 1 << 30, 3),
        ([answer(f"{n}", bytes(900)) for n in range(9)], 20_000, 3),
        ([], 20_000, 0),
    ],
    ids=["many", "many frames", "many bytes", "none"],
)
def test_too_much_for_one_message_is_several(known, answers, limit, messages):
    """Within the limits of count, frames and bytes; every answer leaves, in order, with its frames."""
    known.conversation.max_message_bytes = limit
    known.conversation.send(answers)
    assert [o.request_id for m in (m for m, _ in known.posted) for o in m.outputs] == [a[0].request_id for a in answers]
    assert all(sum(o.frames for o in message.outputs) == len(body) for message, body in known.posted)
    assert len(known.messages()) == messages


def test_what_reached_nobody_is_taken_back(known):
    """DISCARD frees the blocks of that very output, once; any other frees nothing."""
    known.conversation.send([answer("a", b"", loans=[1, 2]), answer("b", b"", loans=[3])])
    for name, attempt, seq in [("a", 2, 0), ("a", 1, 1), ("x", 1, 0)]:
        known.say(wire.Discard(request_id=name, attempt=attempt, seq=seq))
    assert known.back == []
    for _ in range(2):
        known.say(wire.Discard(request_id="a", attempt=1, seq=0))
    assert known.back == [1, 2]


def test_what_can_be_taken_back_is_bounded(known, monkeypatch):
    """The oldest outputs are forgotten; the pool's claim timeout frees them."""
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 2)
    for number in range(4):
        known.conversation.send([answer(f"{number}", b"", loans=[number])])
    for number in range(4):
        known.say(wire.Discard(request_id=f"{number}", attempt=1, seq=0))
    assert known.back == [2, 3]


def test_a_rejection_is_an_answer(known):
    """What is not run is answered with the error's code and text."""
    known.conversation.reject(("r", 4), errors.InvalidRequest("no such option"))
    ((message, frames),) = known.posted
    (output,) = message.outputs
    assert (output.request_id, output.attempt, output.code, output.text) == (
        "r",
        4,
        "invalid_request",
        "no such option",
    )
    assert (output.done, frames) == (False, [])


def test_a_factory_that_failed_is_told(scene):
    """START_FAILED carries the end of a long text, for that names the error."""
    scene.conversation.start_failed("d", "x" * 100_000 + "the error")
    (message,) = scene.messages()
    assert message.deployment == "d"
    assert message.text.endswith("the error")
    assert len(message.text) <= 60_000


# -- the end ----------------------------------------------------------------------------------------------------------


def test_it_asks_before_it_leaves(known):
    """Asked twice, it says DRAIN_WORKER once; after two beats without an answer it drains by itself."""
    known.conversation.ask_to_leave(0.0)
    known.conversation.ask_to_leave(0.5)
    assert known.messages() == [wire.DrainWorker(worker="w")]
    known.conversation.beat(0.0, 2.0)
    assert known.told == []
    known.conversation.beat(0.0, 2.1)
    assert known.told == [("drain",)]
    assert known.conversation.exit_code == EXIT_DRAINED


def test_a_question_that_is_not_understood_needs_no_answer(known):
    """REFUSED after DRAIN_WORKER: it drains by itself; without, a refused message ends nothing."""
    error = errors.ProtocolError("what is that")
    known.conversation.refused(error)
    assert (known.told, known.left) == ([], 0)
    known.conversation.ask_to_leave(0.0)
    known.conversation.refused(error)
    assert (known.told, known.left) == ([("drain",)], 0)


def test_not_admitted_is_the_end(scene):
    """REFUSED before any welcome ends the worker, which says so by its exit code."""
    scene.conversation.refused(errors.ProtocolError("who are you"))
    assert (scene.left, scene.conversation.exit_code) == (1, EXIT_REFUSED)


def test_another_version_is_the_end(known):
    """So does a coordinator of another version, whenever it comes."""
    known.conversation.refused(errors.VersionMismatch("another"))
    assert (known.left, known.conversation.exit_code) == (1, EXIT_REFUSED)


@pytest.mark.case(31)
def test_who_hears_nothing_for_long_fences_itself(known):
    """About when the coordinator gives it up it stops all it holds, says nothing of it, and joins anew; once.

    Welcome again, it tells what still runs and was stopped, and is heard again.
    """
    known.holds = {("a", 1): Held(), ("b", 2): Held(sent=1)}
    known.conversation.beat(9.0, 100.0)
    assert known.told == []
    for silent_s in (10.0, 11.0):
        known.conversation.beat(silent_s, 90.0 + silent_s)
    assert known.told == [("cancel", ("a", 1)), ("cancel", ("b", 2)), ("begin anew",)]
    known.conversation.reject(("a", 1), errors.RequestCancelled("cancelled before it ran"))
    loan = types.SimpleNamespace(generation=7)
    known.conversation.send([(wire.Output(request_id="b", attempt=2, seq=1, done=True), [], [loan])])
    assert (known.messages(), known.lent, known.left) == ([], [], 0)
    known.holds = {("b", 2): Held(sent=1, cancelled=True)}
    known.conversation.welcomed(WELCOME)
    (ready,) = known.messages()
    assert [(work.request_id, work.cancelled) for work in ready.running] == [("b", True)]
    known.conversation.reject(("b", 2), errors.RequestCancelled("cancelled"))
    assert isinstance(known.messages()[0], wire.Outputs)


def test_on_the_coordinators_own_host_nobody_is_fenced(known):
    """There its silence means that it is frozen: when it goes on, so does everybody."""
    known.conversation._fences = False
    known.holds = {("a", 1): Held()}
    known.conversation.beat(20.0, 100.0)
    assert (known.told, known.conversation.fenced) == ([], False)


def test_who_was_never_welcome_has_nothing_to_fence(scene):
    """A worker whose coordinator is just coming up waits for it."""
    scene.conversation.beat(29.0, 100.0)
    assert (scene.told, scene.conversation.fenced) == ([], False)


def test_alone_for_too_long_is_the_end(known):
    """A worker that has not heard a coordinator for `orphan_s` ends, once."""
    known.conversation.beat(30.0, 100.0)
    assert known.left == 0
    for _ in range(2):
        known.conversation.beat(30.1, 101.0)
    assert (known.left, known.conversation.exit_code) == (1, EXIT_ORPHANED)


def test_without_a_session_it_is_alone(known):
    """When the session itself fails there is nobody to work for."""
    known.conversation.failed()
    assert (known.left, known.conversation.exit_code) == (1, EXIT_ORPHANED)
