"""The broker: every dialogue of the coordinator, without a socket, a clock or a process."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensoryard import errors
from tensoryard.coordinator import adapters, waiting_room
from tensoryard.coordinator.actions import Forget, Send, Watch
from tensoryard.coordinator.broker import Broker
from tensoryard.proto import wire
from tensoryard.proto.lora import LoRAResponse, LoRAStatus
from tensoryard.proto.status import ClusterStatus
from tensoryard.settings import Settings

TASK = "embeddings_generation"
SETTINGS = Settings(heartbeat_s=1.0, liveness_s=10.0, settle_s=5.0, drain_s=30.0)
EXPECTED = wire.Expected(deployment="d", model="m", task=TASK, replicas=1)
_DECODERS = {"client": wire.TO_CLIENT, "worker": wire.TO_WORKER, "fleet": wire.TO_FLEET}


def submit(request_id, **fields):
    return wire.Submit(**{"request_id": request_id, "task": TASK, "model": "m", **fields})


def ready(**fields):
    return wire.Ready(**{"model": "m", "task": TASK, "deployment": "d", "credits": 4, **fields})


def output(dispatch, *, seq=0, done=True, frames=1, **fields):
    return wire.Output(
        request_id=dispatch.request_id, attempt=dispatch.attempt, seq=seq, done=done, frames=frames, **fields
    )


class Scene:
    """A broker and the time; what it sends waits by peer. Its books are looked at after each step."""

    def __init__(self, settings=SETTINGS, *, at=0.0, **how):
        self.at = at
        self.broker = Broker(name="test", address="ipc://x", epoch="e1", host="here", settings=settings, at=at, **how)
        self.sent = {}
        self.watched = {}

    def act(self):
        for action in self.broker.take_actions():
            match action:
                case Send(peer, frames):
                    self.sent.setdefault(peer, []).append(frames)
                case Watch(peer):
                    assert peer not in self.watched
                    self.watched[peer] = action
                case Forget(peer):
                    del self.watched[peer]
        self.broker.check_invariants()
        assert self.broker.take_actions() == []

    def say(self, peer, message, *body):
        self.say_frames(peer, wire.encode(message), *body)

    def say_frames(self, peer, *frames):
        self.broker.message(peer, list(frames), self.at)
        self.act()

    def join(self, peer, role, **fields):
        """HELLO; returns the WELCOME."""
        self.say(peer, wire.Hello(version=wire.WIRE_VERSION, role=role, name=fields.pop("name", peer.hex()), **fields))
        return self.take(peer, wire.Welcome)[0]

    def worker(self, peer, **fields):
        self.join(peer, "worker", name=fields.pop("name", peer.hex()))
        self.say(peer, ready(**fields))
        return peer

    def client(self, peer):
        self.join(peer, "client")
        return peer

    def gone(self, peer, reason="died"):
        self.broker.peer_gone(peer, reason, self.at)
        self.act()

    def wait(self, seconds):
        """Let time pass, ticking when it is due."""
        until = self.at + seconds
        while self.broker.next_tick() <= until:
            self.at = max(self.at, self.broker.next_tick())
            self.broker.tick(self.at)
            self.act()
        self.at = until

    def all(self, peer):
        """Everything sent to a peer but heartbeats, as (message, body)."""
        messages = [(_read(frames[0]), frames[1:]) for frames in self.sent.pop(peer, [])]
        return [(message, body) for message, body in messages if not isinstance(message, wire.Heartbeat)]

    def take(self, peer, kind):
        """The one message waiting for a peer, with its body; it is of this kind."""
        ((message, body),) = self.all(peer)
        assert isinstance(message, kind), message
        return message, body

    def status(self, peer):
        self.say(peer, wire.AskStatus(query=7))
        report, (body,) = self.take(peer, wire.Report)
        assert report.query == 7
        return msgspec.msgpack.decode(body, type=ClusterStatus)


def _read(frame):
    for decoder in _DECODERS.values():
        try:
            return wire.decode(decoder, frame)
        except errors.ProtocolError:
            continue
    raise AssertionError(f"unreadable: {frame!r}")


@pytest.fixture
def scene():
    return Scene()


# -- peers ------------------------------------------------------------------------------------------------------------


def test_the_welcome_says_who_and_what(scene):
    """WELCOME carries what the broker was given: epoch, host, rhythm and limits; its process is watched."""
    welcome = scene.join(b"c", "client", host="there", pid=5, pid_namespace="pid:[1]")
    assert (welcome.epoch, welcome.host, welcome.heartbeat_s, welcome.liveness_s) == ("e1", "here", 1.0, 10.0)
    assert scene.watched == {b"c": Watch(b"c", pid=5, host="there", pid_namespace="pid:[1]")}


@pytest.mark.parametrize(
    "message", [wire.Heartbeat(), submit("r"), ready(), wire.Shutdown(), wire.Deployments(deployments=[EXPECTED])]
)
def test_strangers_are_told_to_say_hello(scene, message):
    """Whatever a peer that is not known says changes nothing, and is answered by REJOIN."""
    scene.say(b"x", message, b"body")
    scene.take(b"x", wire.Rejoin)
    assert (scene.broker.bodies, scene.broker.router.models, scene.broker.finished) == ({}, {}, False)
    assert not scene.broker.knows(b"x")


def test_a_strangers_goodbye_is_passed_over(scene):
    """DISCONNECT of nobody, and the end of nobody, call for nothing."""
    scene.say(b"x", wire.Disconnect())
    scene.gone(b"x")
    assert scene.sent == {}


@pytest.mark.parametrize("frames", [[], [b""], [b"\xc1"], [b"\x91" * 100_000], [wire.encode(wire.Rejoin())]])
def test_nonsense_is_refused(scene, frames):
    """What cannot be read is REFUSED with its code, to strangers as to peers, and changes nothing."""
    scene.client(b"c")
    for peer in (b"c", b"x"):
        scene.say_frames(peer, *frames)
        assert scene.take(peer, wire.Refused)[0].code == "protocol"
    assert scene.status(b"c").clients == 1


def test_the_same_hello_again_changes_nothing(scene):
    """A peer that asks twice is welcomed twice, and neither watched anew nor does it lose its requests."""
    scene.worker(b"w")
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    scene.join(b"c", "client")
    dispatch, _ = scene.take(b"w", wire.Dispatch)
    scene.join(b"w", "worker")
    scene.say(b"w", wire.Outputs(outputs=[output(dispatch)]), b"answer")
    assert scene.take(b"c", wire.Final)[1] == [b"answer"]


def test_another_role_ends_the_first(scene):
    """HELLO in another role: what the peer was is forgotten before its process is watched for what it is."""
    scene.client(b"c")
    scene.say(b"c", submit("r", model="none"))
    scene.all(b"c")
    scene.join(b"c", "fleet", pid=9)
    assert [peer.role for peer in scene.broker.roster.all()] == ["fleet"]
    assert scene.watched[b"c"].pid == 9


def test_a_name_that_is_taken_changes_hands(scene):
    """A second worker of a name gets the first one's request; the first is a stranger from then on."""
    fleet, client = b"f", scene.client(b"c")
    scene.join(fleet, "fleet")
    scene.say(fleet, wire.Deployments(deployments=[EXPECTED]))
    scene.worker(b"1", name="w")
    scene.say(client, submit("r"), b"body")
    before, _ = scene.take(b"1", wire.Dispatch)
    scene.worker(b"2", name="w")
    after, body = scene.take(b"2", wire.Dispatch)
    assert (after.request_id, body) == ("r", [b"body"])
    assert after.attempt > before.attempt
    scene.say(b"1", wire.Outputs(outputs=[output(before)]), b"late")
    scene.take(b"1", wire.Rejoin)
    assert scene.all(client) == []
    assert list(scene.watched) == [b"c", b"f", b"2"]


def test_silence_ends_a_peer_and_speech_does_not(scene):
    """Who has not been heard for `liveness_s` is gone, with its requests; who beats, stays."""
    scene.worker(b"w")
    quiet, lively = scene.client(b"q"), scene.client(b"l")
    scene.say(quiet, submit("r"), b"body")
    scene.take(b"w", wire.Dispatch)
    for _ in range(4):
        scene.wait(4.0)
        for peer in (lively, b"w"):
            scene.say(peer, wire.Heartbeat())
    scene.take(b"w", wire.CancelWork)
    assert scene.broker.knows(lively)
    assert not scene.broker.knows(quiet)
    scene.say(quiet, wire.Heartbeat())
    scene.take(quiet, wire.Rejoin)


def test_our_own_pause_is_excused(scene):
    """Time in which the broker was not ticked is held against nobody."""
    scene.client(b"c")
    scene.at += 1000.0
    scene.broker.tick(scene.at)
    scene.act()
    assert scene.broker.knows(b"c")
    scene.wait(11.0)
    assert not scene.broker.knows(b"c")


def test_a_peer_that_does_not_read_is_dropped_early():
    """With too many bytes on their way, two silent heartbeats are enough; one who speaks is slow, not gone."""
    scene = Scene(Settings(peer_backlog_bytes=1000, liveness_s=60.0))
    scene.worker(b"w")
    for peer in (b"slow", b"stuck", b"calm"):
        scene.client(peer)
    for peer, size in [(b"slow", 1001), (b"stuck", 1001), (b"calm", 1000)]:
        scene.say(peer, submit(peer.decode()), b"body")
        dispatch, _ = scene.take(b"w", wire.Dispatch)
        scene.say(b"w", wire.Outputs(outputs=[output(dispatch, done=False)]), bytes(size))
    scene.wait(1.5)
    scene.say(b"slow", wire.Heartbeat())
    scene.say(b"w", wire.Heartbeat())
    scene.wait(1.6)
    assert [scene.broker.knows(peer) for peer in (b"slow", b"stuck", b"calm")] == [True, False, True]
    assert [message.request_id for message, _ in scene.all(b"w")] == ["stuck"]


def test_clients_have_a_bound():
    """One client more than may be is refused with a text that says what to do; a place that is free is given."""
    scene = Scene(Settings(max_clients=2))
    for peer in (b"1", b"2"):
        scene.client(peer)
    scene.say(b"3", wire.Hello(version=wire.WIRE_VERSION, role="client", name="c"))
    refused, _ = scene.take(b"3", wire.Refused)
    assert refused.code == "overloaded"
    assert "max_clients" in refused.text
    scene.say(b"2", wire.Hello(version=wire.WIRE_VERSION, role="client", name="c"))
    scene.take(b"2", wire.Welcome)
    scene.worker(b"w")
    scene.gone(b"1")
    scene.client(b"3")


def test_everybody_hears_a_beat(scene):
    """Each peer is sent HEARTBEAT once per `heartbeat_s`, however often the broker is ticked."""
    scene.client(b"c")
    scene.wait(0.5)
    scene.sent.clear()
    for _ in range(40):
        scene.at += 0.125
        scene.broker.tick(scene.at)
        scene.act()
    assert [_read(frame) for (frame,) in scene.sent[b"c"]] == [wire.Heartbeat()] * 5


def test_goodbye_is_said_to_peers(scene):
    """`goodbye` reaches every peer, and nobody else."""
    scene.client(b"c")
    scene.worker(b"w")
    scene.say(b"x", wire.Heartbeat())
    scene.all(b"x")
    scene.broker.goodbye()
    scene.act()
    for peer in (b"c", b"w"):
        scene.take(peer, wire.Disconnect)
    assert scene.all(b"x") == []


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_goes_there_and_back(scene):
    """Body frames reach the worker and answer frames the client, the very same objects; nothing of them is kept."""
    scene.worker(b"w")
    scene.client(b"c")
    body, answer = [b"envelope", bytearray(10)], [b"x", bytearray(3)]
    scene.say(b"c", submit("r", deadline_s=5.0), *body)
    dispatch, there = scene.take(b"w", wire.Dispatch)
    assert dispatch.deadline_s == 5.0
    assert [one is other for one, other in zip(there, body, strict=True)] == [True, True]
    ledger = wire.Ledger(worker="w", output_copies=2)
    scene.say(b"w", wire.Outputs(outputs=[output(dispatch, frames=2, ledger=ledger)]), *answer)
    final, back = scene.take(b"c", wire.Final)
    assert final == wire.Final(request_id="r", seq=0, ledger=ledger)
    assert back[1] is answer[1]
    assert scene.broker.bodies == {}


def test_an_answer_of_a_lost_attempt_is_discarded(scene):
    """A stale attempt's answer reaches nobody, its sender is told so, and the new attempt's answer counts."""
    scene.worker(b"1")
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    old, _ = scene.take(b"1", wire.Dispatch)
    scene.worker(b"2")
    scene.gone(b"1")
    new, _ = scene.take(b"2", wire.Dispatch)
    scene.join(b"1", "worker")
    for attempt in (old.attempt, new.attempt, new.attempt + 1):  # also one that it never had
        scene.say(b"1", wire.Outputs(outputs=[output(wire.Dispatch(request_id="r", attempt=attempt))]), b"stale")
        assert scene.take(b"1", wire.Discard)[0].attempt == attempt
    assert scene.all(b"c") == []
    scene.say(b"2", wire.Outputs(outputs=[output(new)]), b"good")
    assert scene.take(b"c", wire.Final)[1] == [b"good"]


def test_a_request_that_was_given_up_makes_way(scene):
    """Another submission of its id gets its own body run and its own answer; the body of the first is not kept."""
    scene.worker(b"w", credits=2)
    scene.client(b"c")
    scene.say(b"c", submit("r", submission=7), b"first")
    scene.take(b"w", wire.Dispatch)
    scene.say(b"c", submit("r", submission=8), b"second")
    (cancel, _), (dispatch, body) = scene.all(b"w")
    assert isinstance(cancel, wire.CancelWork)
    assert (dispatch.submission, body) == (8, [b"second"])
    scene.say(b"w", wire.Outputs(outputs=[output(dispatch)]), b"answer")
    assert scene.take(b"c", wire.Final)[0].submission == 8
    assert scene.broker.bodies == {}


def test_errors_before_the_router_tell_their_submission(scene):
    """As the router's own do: a message that is too large, and what waits for the fleet."""
    scene = Scene(Settings(max_message_bytes=100, settle_s=5.0), expects_fleet=True)
    scene.client(b"c")
    scene.say(b"c", submit("large", submission=7), bytes(200))
    assert scene.take(b"c", wire.Error)[0].submission == 7
    scene.say(b"c", submit("r", submission=8, deadline_s=1.0), b"body")
    scene.say(b"c", submit("s", submission=9), b"body")
    scene.say(b"c", wire.Cancel(request_id="s"))
    assert scene.take(b"c", wire.Error)[0].submission == 9
    scene.wait(1.0)
    assert scene.take(b"c", wire.Error)[0].submission == 8


def test_outputs_that_do_not_add_up_are_errors(scene):
    """Where frames and counts disagree, each of the requests is answered by an error of its own."""
    scene.worker(b"w")
    scene.client(b"c")
    for name in ("a", "b"):
        scene.say(b"c", submit(name), b"body")
    dispatches = [message for message, _ in scene.all(b"w")]
    scene.say(b"w", wire.Outputs(outputs=[output(dispatch) for dispatch in dispatches]), b"one frame for two")
    assert [(m.request_id, m.code) for m, _ in scene.all(b"c")] == [("a", "protocol"), ("b", "protocol")]


def test_the_wrong_role_is_refused(scene):
    """A client that plays the worker is refused, and nothing comes of it."""
    scene.client(b"c")
    scene.say(b"c", ready())
    assert "a client does not send Ready" in scene.take(b"c", wire.Refused)[0].text
    assert scene.broker.router.models == {}


def test_a_deadline_needs_no_beat():
    """`next_tick` is the first deadline where that comes before the next heartbeat."""
    scene = Scene(Settings(heartbeat_s=100.0, liveness_s=1000.0))
    scene.broker.tick(0.0)
    scene.worker(b"w", credits=1)
    scene.client(b"c")
    scene.say(b"c", submit("r", deadline_s=2.5), b"body")
    scene.take(b"w", wire.Dispatch)
    assert scene.broker.next_tick() == 2.5
    scene.wait(2.5)
    assert scene.take(b"c", wire.Error)[0].code == "expired"
    scene.take(b"w", wire.CancelWork)


def test_a_hung_worker_must_join_anew(scene):
    """A worker without progress is dismissed: the fleet hears it, and the worker that beats on is a stranger."""
    scene.join(b"f", "fleet")
    scene.worker(b"w", hang_limit_s=3.0)
    scene.client(b"c")
    scene.all(b"f")
    scene.say(b"c", submit("r"), b"body")
    for _ in range(4):
        scene.wait(1.0)
        for peer in (b"f", b"w", b"c"):
            scene.say(peer, wire.Heartbeat(progress=1, busy=True))
    assert [message.what for message, _ in scene.all(b"f")] == ["hung"]
    assert isinstance(scene.all(b"w")[-1][0], wire.Rejoin)


def test_our_own_pause_makes_no_worker_hang(scene):
    """What workers said of their progress meanwhile is yet to be read; who is silent after that hangs as ever."""
    scene.worker(b"w", hang_limit_s=3.0)
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    scene.all(b"w")
    scene.at += 100.0
    scene.broker.tick(scene.at)
    scene.act()
    scene.say(b"w", wire.Heartbeat(progress=1, busy=True))
    assert scene.all(b"w") == []
    scene.wait(2.5)
    scene.say(b"w", wire.Heartbeat(progress=1, busy=True))
    assert scene.all(b"w") == []
    scene.wait(1.0)
    scene.say(b"w", wire.Heartbeat(progress=2, busy=True))
    assert isinstance(scene.all(b"w")[-1][0], wire.Rejoin)


def test_stories_are_told(scene):
    """ASK_STORY is answered with what the router saw, and for a request nobody knows with nothing."""
    scene.client(b"c")
    for name in ("none", "unknown"):
        scene.say(b"c", wire.AskStory(request_id=name, query=3))
        report, (body,) = scene.take(b"c", wire.Report)
        assert (report.query, msgspec.msgpack.decode(body)) == (3, [])
    scene.worker(b"w")
    scene.say(b"c", submit("r"), b"body")
    scene.say(b"c", wire.AskStory(request_id="r"))
    (_, (body,)) = scene.take(b"c", wire.Report)
    assert next(line.split(" ", 1)[1] for line in msgspec.msgpack.decode(body)) == "accepted"


@pytest.mark.case(28)
def test_w_35_only_a_worker_that_speaks_windows_is_told_what_was_read(scene):
    """The others get the request with its window, which they do not know, and nothing more."""
    scene.client(b"c")
    assert "windows" in wire.FEATURES
    for peer, features in [(b"new", wire.FEATURES), (b"old", [])]:
        scene.worker(peer, features=features)
        scene.say(b"c", submit(peer.decode(), window_parts=4, window_bytes=9, consumed=1), b"body")
        dispatch, _ = scene.take(peer, wire.Dispatch)
        assert (dispatch.window_parts, dispatch.window_bytes, dispatch.consumed) == (4, 9, 1)
        for parts in (2, 2, 1):
            scene.say(b"c", wire.Consumed(request_id=peer.decode(), parts=parts))
        scene.say(b"c", wire.Consumed(request_id="nobody", parts=9))
        told = [(message.attempt, message.parts) for message, _ in scene.all(peer)]
        assert told == ([(dispatch.attempt, 2)] if features else [])
        scene.gone(peer)


def test_the_status_tells_what_is_kept():
    """Bytes of the messages of live requests, and how many requests wait for the fleet."""
    scene = Scene(expects_fleet=True)
    for peer in (b"c", b"looker"):
        scene.client(peer)
    scene.say(b"c", submit("r"), b"12345", b"678")
    found = scene.status(b"looker")
    assert (found.kept_bytes, found.waiting_for_fleet) == (0, 1)
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    found = scene.status(b"looker")
    assert (found.kept_bytes, found.waiting_for_fleet) == (8, 0)


def test_w_37_only_a_client_that_speaks_answers_gets_them(scene):
    """What one step brings for a client comes as one message, in order, with all bodies; or one by one, as before."""
    scene.worker(b"w", credits=8)
    for peer, features in [(b"new", wire.FEATURES), (b"old", [])]:
        scene.join(peer, "client", features=features)
        for number in range(3):
            scene.say(peer, submit(f"{peer.decode()}-{number}"), b"body")
    dispatched = [message for message, _ in scene.all(b"w")]
    frames = [b"%d" % number for number in range(len(dispatched))]
    scene.say(b"w", wire.Outputs(outputs=[output(d, done=d.request_id[-1] != "1") for d in dispatched]), *frames)
    answers, bodies = scene.take(b"new", wire.Answers)
    assert [(type(o), o.request_id) for o in answers.outputs] == [
        (wire.Final, "new-0"),
        (wire.Partial, "new-1"),
        (wire.Final, "new-2"),
    ]
    assert (answers.frames, bodies) == ([1, 1, 1], [b"0", b"1", b"2"])
    one_by_one = [(type(message), message.request_id, *body) for message, body in scene.all(b"old")]
    assert one_by_one == [(wire.Final, "old-0", b"3"), (wire.Partial, "old-1", b"4"), (wire.Final, "old-2", b"5")]


def test_w_50_only_a_fleet_that_speaks_loads_gets_them(scene):
    """With each beat: requests that wait and run now, and the most at once since the beat before."""
    for peer, features in [(b"new", wire.FEATURES), (b"old", [])]:
        scene.join(peer, "fleet", name=peer.decode(), features=features)
        scene.say(peer, wire.Deployments(deployments=[msgspec.structs.replace(EXPECTED, model="m")]))
    scene.worker(b"w", credits=1)
    scene.client(b"c")
    for number in range(3):
        scene.say(b"c", submit(f"r-{number}"), b"body")
    scene.say(b"c", wire.Cancel(request_id="r-2"))
    scene.wait(2 * SETTINGS.heartbeat_s)
    told = [message.loads for message, _ in scene.all(b"new") if isinstance(message, wire.Loads)]
    deployment = told[-1][0].deployment
    assert [(load.deployment, load.ongoing) for [load] in told] == [(deployment, 2)] * len(told)
    assert [load.peak for [load] in told] == [3, *[2] * (len(told) - 1)]
    assert len(told) >= 2
    assert not [message for message, _ in scene.all(b"old") if isinstance(message, wire.Loads)]


def test_an_error_keeps_its_place_among_answers(scene):
    """What a client was to get before it leaves before it, and what comes after, after."""
    scene.worker(b"w")
    scene.join(b"c", "client", features=wire.FEATURES)
    for number in range(4):
        scene.say(b"c", submit(f"{number}"), b"body")
    outputs = [output(d) for d, _ in scene.all(b"w")]
    outputs[2] = msgspec.structs.replace(outputs[2], code="pipeline_error", text="no", done=False, frames=0)
    scene.say(b"w", wire.Outputs(outputs=outputs), b"0", b"1", b"3")
    got = [(type(message), len(body)) for message, body in scene.all(b"c")]
    assert got == [(wire.Answers, 2), (wire.Error, 0), (wire.Final, 1)]


def test_welcome_tells_what_is_spoken(scene):
    """A client learns that streams have windows here."""
    assert scene.join(b"c", "client").features == wire.FEATURES


# -- fleet and shutdown -----------------------------------------------------------------------------------------------


def test_requests_wait_for_a_fleet():
    """What comes before the fleet has spoken waits; a cancel is answered at once, and who is gone waits no more."""
    scene = Scene(expects_fleet=True)
    scene.worker(b"w")
    for peer in (b"c", b"gone"):
        scene.client(peer)
    scene.say(b"c", submit("a"), b"body a")
    scene.say(b"c", submit("b"), b"body b")
    scene.say(b"gone", submit("c"), b"body c")
    assert scene.all(b"c") == scene.all(b"w") == []
    for _ in range(2):
        scene.say(b"c", wire.Cancel(request_id="a"))
    assert scene.take(b"c", wire.Error)[0].code == "cancelled"
    scene.gone(b"gone")
    scene.client(b"gone")  # again, and nothing is owed to what it was
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    assert scene.take(b"w", wire.Dispatch)[0].request_id == "b"
    assert scene.all(b"c") == scene.all(b"gone") == []


def test_what_is_read_while_a_request_waits_for_the_fleet_is_not_forgotten():
    """Of a stream that an earlier coordinator passed on, its reader may read on meanwhile."""
    scene = Scene(expects_fleet=True)
    scene.client(b"c")
    scene.say(b"c", submit("r", window_parts=4, window_bytes=9, consumed=1), b"body")
    for parts in (5, 3):
        scene.say(b"c", wire.Consumed(request_id="r", parts=parts))
    scene.say(b"c", wire.Consumed(request_id="nobody", parts=5))
    scene.worker(b"w")
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    assert scene.take(b"w", wire.Dispatch)[0].consumed == 5
    assert scene.all(b"c") == []


def test_a_fleet_does_not_hear_of_a_worker_whose_namesake_has_come(scene):
    """A fleet and its workers are killed while the coordinator is frozen; the next fleet's workers have their names.

    Told that such a one is gone, the new fleet would end the worker that it has just started.
    """
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    scene.worker(b"w", name="d-1")
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    scene.all(b"f")
    scene.worker(b"x", name="d-1")
    assert [(notice.worker, notice.what) for notice, _ in scene.all(b"f")] == [("d-1", "ready")]
    assert [message.request_id for message, _ in scene.all(b"x") if isinstance(message, wire.Dispatch)] == ["r"]
    assert not scene.broker.knows(b"w")


def test_a_fleet_that_comes_later_hears_who_is_ready(scene):
    """It may have missed the news; else it would take such a worker for one that never started, and end it."""
    scene.worker(b"w", name="d-1")
    scene.join(b"s", "worker", name="d-2")
    scene.join(b"f", "fleet")
    assert scene.all(b"f") == []
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    assert scene.take(b"f", wire.WorkerNotice)[0] == wire.WorkerNotice(worker="d-1", deployment="d", what="ready")


def test_a_deadline_passes_while_a_request_waits_for_the_fleet():
    """It is answered `expired` when its time is up, and what is taken up later has that much less time."""
    scene = Scene(expects_fleet=True)
    scene.client(b"c")
    scene.worker(b"w")
    for name, deadline_s in [("short", 0.25), ("long", 8.0)]:
        scene.say(b"c", submit(name, deadline_s=deadline_s), b"body")
    scene.broker.tick(0.0)
    assert scene.broker.next_tick() == 0.25
    scene.wait(0.25)
    error, _ = scene.take(b"c", wire.Error)
    assert (error.request_id, error.code) == ("short", "expired")
    scene.wait(1.75)
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    dispatch, _ = scene.take(b"w", wire.Dispatch)
    assert (dispatch.request_id, dispatch.deadline_s) == ("long", 6.0)


def test_a_fleet_that_does_not_come_is_not_waited_for():
    """After `settle_s` what waits is taken up without it."""
    scene = Scene(expects_fleet=True, at=100.0)
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    scene.wait(4.5)
    assert scene.all(b"c") == []
    scene.wait(1.5)
    assert scene.take(b"c", wire.Error)[0].code == "unknown_model"


def test_our_own_pause_keeps_no_fleet_from_being_waited_for():
    """A coordinator that was stopped while it waited for its fleet waits on: the fleet could not be heard."""
    scene = Scene(expects_fleet=True)
    scene.broker.tick(0.0)
    scene.client(b"c")
    scene.say(b"c", submit("r"), b"body")
    scene.at += 100.0
    scene.broker.tick(scene.at)
    scene.act()
    scene.worker(b"w")
    scene.join(b"f", "fleet")
    assert scene.all(b"c") == scene.all(b"w") == []
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    scene.take(b"w", wire.Dispatch)


def test_too_many_that_wait_are_refused(monkeypatch):
    """Beyond the bound of the waiting room a request is refused at once, with a time to try again."""
    monkeypatch.setattr(waiting_room, "MAX_LETTERS", 1)
    scene = Scene(expects_fleet=True)
    scene.client(b"c")
    scene.say(b"c", submit("a"), b"body")
    scene.say(b"c", submit("b"), b"body")
    error, _ = scene.take(b"c", wire.Error)
    assert (error.request_id, error.code) == ("b", "overloaded")
    assert error.retry_after_s > 0
    scene.say(b"c", submit("a"), b"body")  # the same again, which has its place
    assert scene.all(b"c") == []
    scene.say(b"c", wire.Cancel(request_id="a"))
    assert scene.take(b"c", wire.Error)[0].code == "cancelled"


def test_a_shutdown_waits_for_the_workers(scene):
    """SHUTDOWN without a fleet drains the workers; it is complete when the last has left."""
    scene.worker(b"w")
    scene.client(b"c")
    scene.say(b"c", wire.Shutdown())
    scene.take(b"w", wire.Drain)
    scene.wait(3.0)
    assert not scene.broker.finished
    scene.say(b"c", submit("late"))
    assert scene.take(b"c", wire.Error)[0].code == errors.ShuttingDown.code
    scene.say(b"w", wire.Disconnect())
    scene.wait(1.5)
    assert scene.broker.finished


def test_a_shutdown_is_the_fleets_where_there_is_one(scene):
    """The fleet is told, the workers are left to it, and no one is waited for longer than `drain_s`."""
    scene.join(b"f", "fleet")
    scene.worker(b"w")
    scene.all(b"f")
    scene.client(b"c")
    for _ in range(2):  # twice changes nothing
        scene.say(b"c", wire.Shutdown())
        scene.take(b"f", wire.Shutdown)
    assert scene.all(b"w") == []
    for _ in range(31):
        scene.wait(1.0)
        for peer in (b"f", b"w"):
            scene.say(peer, wire.Heartbeat())
    assert scene.broker.finished


def test_an_error_of_ours_is_not_the_senders(scene):
    """An error of the router leaves `message` as our bug, even one that looks like a peer's."""
    scene.client(b"c")
    bug = errors.DecodeError("a bug")

    def fail(_event):
        raise bug

    scene.broker.router.handle = fail
    with pytest.raises(RuntimeError) as raised:
        scene.broker.message(b"c", [wire.encode(submit("r"))], 0.0)
    assert raised.value.__cause__ is bug


# -- hostile ----------------------------------------------------------------------------------------------------------

CLIENTS, WORKERS = [b"c1", b"c2"], [b"w1", b"w2", b"w3"]
PEERS = [*CLIENTS, *WORKERS, b"fleet", b"nobody"]
REQUESTS = [f"r{number}" for number in range(6)]


class HostilePeers(RuleBasedStateMachine):
    """Peers that say anything at any time, in any role; each accepted request has at most one terminal answer."""

    def __init__(self):
        super().__init__()
        self.scene = Scene(expects_fleet=True)
        self.answers = Counter()
        self.accepted = Counter()

    def look(self):
        """Terminal answers, by client and request; those to a request that was never accepted are refusals."""
        for client in CLIENTS:
            for message, _ in self.scene.all(client):
                if isinstance(message, wire.Final | wire.Error):
                    self.answers[client, message.request_id] += 1

    @initialize()
    def begin(self):
        for peer, role in itertools.chain(
            ((peer, "client") for peer in CLIENTS), ((peer, "worker") for peer in WORKERS[:2])
        ):
            self.hello(peer, role)

    @rule(peer=st.sampled_from(PEERS), role=st.sampled_from(["client", "worker", "fleet"]))
    def hello(self, peer, role):
        if peer in CLIENTS and role != "client":
            return  # a client that plays another role would lose its requests
        self.scene.say(peer, wire.Hello(version=wire.WIRE_VERSION, role=role, name=peer[:2].hex()))

    @rule(peer=st.sampled_from(PEERS), request=st.sampled_from(REQUESTS), deadline=st.sampled_from([None, 0.0, 2.0]))
    def submits(self, peer, request, deadline):
        self.accepted[peer, request] += 1
        self.scene.say(peer, submit(request, deadline_s=deadline), b"body")

    @rule(peer=st.sampled_from(PEERS), request=st.sampled_from(REQUESTS))
    def cancels(self, peer, request):
        self.scene.say(peer, wire.Cancel(request_id=request))

    @rule(peer=st.sampled_from(PEERS), request=st.sampled_from(REQUESTS), parts=st.integers(0, 5))
    def reads(self, peer, request, parts):
        self.scene.say(peer, wire.Consumed(request_id=request, parts=parts))

    @rule(
        peer=st.sampled_from(PEERS),
        running=st.lists(st.tuples(st.sampled_from(REQUESTS), st.integers(0, 9)), max_size=3),
    )
    def readies(self, peer, running):
        told = [wire.Running(request_id=request, attempt=attempt) for request, attempt in running]
        self.scene.say(peer, ready(credits=2, hang_limit_s=3.0, running=told))

    @rule(
        peer=st.sampled_from(PEERS),
        request=st.sampled_from(REQUESTS),
        attempt=st.integers(0, 9),
        seq=st.integers(0, 2),
        done=st.booleans(),
        frames=st.integers(0, 2),
        code=st.sampled_from(["", "failed", "nonsense"]),
    )
    def answers_anything(self, peer, request, attempt, seq, done, frames, code):
        made = output(wire.Dispatch(request_id=request, attempt=attempt), seq=seq, done=done, frames=frames, code=code)
        self.scene.say(peer, wire.Outputs(outputs=[made]), b"frame")

    @rule(peer=st.sampled_from(WORKERS), done=st.booleans())
    def answers_what_it_was_given(self, peer, done):
        for message, _ in self.scene.all(peer):
            if isinstance(message, wire.Dispatch):
                self.scene.say(peer, wire.Outputs(outputs=[output(message, done=done)]), b"answer")

    @rule(peer=st.sampled_from(PEERS), served=st.booleans())
    def speaks_for_the_fleet(self, peer, served):
        self.scene.say(peer, wire.Deployments(deployments=[EXPECTED] if served else []))

    @rule(peer=st.sampled_from(PEERS), frames=st.lists(st.binary(max_size=8), max_size=3))
    def talks_nonsense(self, peer, frames):
        self.scene.say_frames(peer, *frames)

    @rule(peer=st.sampled_from(PEERS))
    def dies(self, peer):
        self.scene.gone(peer)

    @rule(peer=st.sampled_from(PEERS), message=st.sampled_from([wire.Disconnect(), wire.DrainWorker(worker="x")]))
    def leaves(self, peer, message):
        self.scene.say(peer, message)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 60.0]))
    def time_passes(self, seconds):
        self.scene.wait(seconds)

    @rule(seconds=st.sampled_from([3.0, 100.0]))
    def we_are_stopped(self, seconds):
        self.scene.at += seconds

    @invariant()
    def nobody_is_answered_more_often_than_they_asked(self):
        self.look()
        for key, count in self.answers.items():
            assert count <= self.accepted[key], f"{key} asked {self.accepted[key]} times and got {count} answers"

    def teardown(self):
        """Everything that is under way ends with its peers, and nothing of it stays."""
        for peer in PEERS:
            self.scene.gone(peer)
        assert (self.scene.broker.bodies, self.scene.broker.router.requests, self.scene.watched) == ({}, {}, {})


TestHostilePeers = HostilePeers.TestCase
TestHostilePeers.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


# -- adapters ---------------------------------------------------------------------------------------------------------


def lora(operation="load", **fields):
    path = "/x" if operation == "load" else ""
    defaults = {"operation": operation, "lora_name": "x", "timeout_s": 5.0, "lora_path": path, "model": "m", "query": 3}
    return wire.Lora(**defaults | fields)


def lora_done(work, status="success"):
    return wire.LoraDone(number=work.number, lora_name=work.lora_name, status=status, text="said")


def response(body):
    return msgspec.msgpack.decode(body[0], type=LoRAResponse)


def test_w_59_only_a_worker_that_speaks_lora_is_asked(scene):
    """An older one serves the base model alone, and a coordinator tells its clients that it takes LORA."""
    scene.client(b"c")
    assert "lora" in scene.join(b"other", "client").features
    scene.worker(b"old")
    scene.worker(b"new", features=wire.FEATURES)
    scene.say(b"c", lora())
    work, _ = scene.take(b"new", wire.LoraWork)
    assert scene.all(b"old") == []
    scene.say(b"new", lora_done(work))
    answer, body = scene.take(b"c", wire.Report)
    assert (answer.query, response(body).status) == (3, LoRAStatus.SUCCESS)
    for number in range(4):
        scene.say(b"c", submit(f"r{number}", model="x"), b"body")
    assert [message.adapter for message, _ in scene.all(b"new")] == ["x"] * 4
    assert scene.all(b"old") == []


def test_w_60_each_wish_has_one_answer_whatever_becomes_of_workers(scene):
    """One answers, one dies, one is silent; asked twice by the same number it is one wish."""
    for peer in (b"good", b"dead", b"silent"):
        scene.worker(peer, features=wire.FEATURES)
    scene.client(b"c")
    scene.say(b"c", lora())
    scene.say(b"c", lora())
    work, _ = scene.take(b"good", wire.LoraWork)
    scene.say(b"good", lora_done(work))
    scene.gone(b"dead")
    assert scene.all(b"c") == []
    scene.wait(5.0)
    answer, body = scene.take(b"c", wire.Report)
    assert (answer.query, response(body).status) == (3, LoRAStatus.UNSPECIFIED_ERROR)
    assert "no answer yet from" in response(body).message
    scene.say(b"c", lora("unload", query=4, timeout_s=2.0))
    scene.wait(2.0)
    answer, body = scene.take(b"c", wire.Report)
    assert (answer.query, response(body).status) == (4, LoRAStatus.UNSPECIFIED_ERROR)
    scene.wait(60.0)
    assert scene.all(b"c") == []


def test_a_status_that_nobody_knows_is_none_in_particular(scene):
    """A later worker may say more than we understand."""
    scene.worker(b"w", features=wire.FEATURES)
    scene.client(b"c")
    scene.say(b"c", lora())
    scene.say(b"w", lora_done(scene.take(b"w", wire.LoraWork)[0], "load_on_mars"))
    scene.say(b"w", lora_done(scene.take(b"w", wire.LoraWork)[0]))
    _, body = scene.take(b"c", wire.Report)
    assert response(body) == LoRAResponse(LoRAStatus.UNSPECIFIED_ERROR, "said")


def adapted(**fields):
    return ready(features=wire.FEATURES, adapters=[wire.LoadedAdapter(lora_name="x", lora_path="/x")], **fields)


def test_an_adapters_requests_wait_for_the_first_worker_of_a_new_coordinator():
    """Only a worker knows the name: until one of each model has come it may be an adapter's, and then it is, or not."""
    scene = Scene(expects_fleet=True)
    scene.client(b"c")
    scene.join(b"f", "fleet")
    scene.say(b"c", submit("early", model="x"), b"body")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    scene.say(b"c", submit("r", model="x"), b"body")
    scene.say(b"c", submit("nobody's", model="y"), b"body")
    scene.say(b"c", submit("unwanted", model="x"), b"body")
    scene.say(b"c", wire.Cancel(request_id="unwanted"))
    assert scene.take(b"c", wire.Error)[0].code == "cancelled"
    scene.say(b"c", lora("unload"))
    assert scene.status(b"c").waiting_for_fleet == 3
    scene.join(b"w", "worker", name="w")
    scene.say(b"w", adapted())
    assert [message.request_id for message, _ in scene.all(b"w")] == ["early", "r"]
    assert scene.take(b"c", wire.Error)[0].code == "unknown_model"
    assert scene.broker.router.adapters.named("x").state.value == "draining"
    assert scene.broker._rooms() == []


def test_a_name_that_stays_unknown_is_told_after_a_time():
    """A model whose workers take long to load does not keep a mistaken name waiting for more than the settling time."""
    scene = Scene(expects_fleet=True)
    scene.client(b"c")
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[EXPECTED]))
    scene.say(b"c", submit("r", model="x"), b"body")
    scene.say(b"c", submit("brief", model="x", deadline_s=1.0), b"body")
    scene.say(b"c", submit("other", model="x", task="pixel_generation"), b"body")
    assert scene.take(b"c", wire.Error)[0].request_id == "other", "no model of that task is to come"
    scene.say(b"c", submit("known"), b"body")
    scene.wait(1.5)
    assert scene.take(b"c", wire.Error)[0].code == "expired"
    scene.wait(SETTINGS.settle_s)
    error, _ = scene.take(b"c", wire.Error)
    assert (error.request_id, error.code) == ("r", "unknown_model")
    scene.say(b"f", wire.Deployments(deployments=[]))
    assert scene.take(b"c", wire.Error)[0].request_id == "known"


def test_early_wishes_have_a_bound(monkeypatch):
    """Beyond it one is refused; those of clients that have left are dropped."""
    monkeypatch.setattr(adapters, "MAX_ASKED", 1)
    scene = Scene(expects_fleet=True)
    for peer in (b"c", b"d"):
        scene.client(peer)
    scene.say(b"c", lora())
    scene.say(b"d", lora())
    assert scene.take(b"d", wire.Refused)[0].code == "overloaded"
    scene.gone(b"c")
    scene.join(b"f", "fleet")
    scene.say(b"f", wire.Deployments(deployments=[]))
    assert scene.broker._early == []
    assert scene.broker.router.adapters.named("x") is None
