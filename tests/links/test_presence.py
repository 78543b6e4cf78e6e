"""A peer stays known: it says hello until it is welcome, beats, counts the silence, and says hello again when told."""

from __future__ import annotations

import itertools

import pytest

from tensoryard.errors import VersionMismatch
from tensoryard.links.presence import Presence
from tensoryard.proto import wire
from tensoryard.settings import Settings

HELLO = wire.Hello(version=wire.WIRE_VERSION, role="worker", name="w")
WELCOME = wire.Welcome(
    version=wire.WIRE_VERSION,
    epoch="e1",
    host="h",
    heartbeat_s=1.0,
    liveness_s=10.0,
    max_frame_bytes=1,
    max_message_bytes=1,
    max_in_flight=1,
)
BEAT = wire.Heartbeat(progress=3, busy=True)


class Scene:
    """A presence, what it sends, and what it tells; it is its own link and owner."""

    def __init__(self):
        self.sent = []
        self.told = []
        self.silences = []
        self.presence = Presence(
            hello=HELLO,
            decoder=wire.TO_WORKER,
            callbacks=self,
            settings=Settings(heartbeat_s=1.0, liveness_s=10.0),
            at=100.0,
        )

    def send(self, frames):
        (frame,) = frames
        self.sent.append(wire.decode(wire.TO_COORDINATOR, frame))

    def on_welcome(self, welcome):
        self.told.append(welcome)

    def on_message(self, message, body):
        self.told.append((message, body))

    def on_refused(self, error):
        self.told.append(error)

    def on_beat(self, silent_s):
        self.silences.append(silent_s)
        return BEAT

    def say(self, message, *body, at=100.0):
        self.presence.receive(self, [wire.encode(message), *body], at)

    def beats(self, count):
        """So many beats, each when it is due; returns when each was."""
        times = []
        for _ in range(count):
            times.append(self.presence.next_beat)
            self.presence.beat(self, times[-1])
        return times


@pytest.fixture
def scene():
    return Scene()


def test_one_hello_at_a_time(scene):
    """However often it is told to rejoin, it asks once per heartbeat, until it is welcomed; then at once again."""
    scene.presence.greet(scene, 100.0)
    for _ in range(5):
        scene.say(wire.Rejoin(), at=100.9)
    assert scene.sent == [HELLO]
    scene.say(wire.Rejoin(), at=101.0)
    assert scene.sent == [HELLO] * 2
    scene.say(WELCOME, at=101.1)
    scene.say(wire.Rejoin(), at=101.2)
    assert scene.sent == [HELLO] * 3
    assert scene.told == [WELCOME]


def test_silence_is_counted_by_what_was_planned(scene):
    """Each beat without a word adds its interval; any message, even an unreadable one, ends the silence."""
    scene.beats(4)
    assert scene.silences == [0.0, 1.0, 2.0, 3.0]
    scene.presence.receive(scene, [b"\xc1"], 103.5)
    assert scene.presence.silent_s == 0.0
    scene.beats(2)
    assert scene.silences[4:] == [0.0, 1.0]
    assert scene.told == []


def test_time_in_which_we_slept_is_nobodys_silence(scene):
    """A beat that comes a thousand seconds late counts as the one second that was planned."""
    scene.beats(2)
    scene.presence.beat(scene, 1100.0)
    assert scene.presence.silent_s == 2.0
    assert scene.presence.next_beat == 1101.0


def test_a_lost_coordinator_is_called_less_often(scene):
    """Beyond `liveness_s` of silence only every fifth heartbeat is sent; back to all of them when it is heard."""
    times = scene.beats(14)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == [1.0] * 11 + [5.0] * 2
    scene.say(wire.Heartbeat())
    scene.presence.beat(scene, scene.presence.next_beat)
    assert scene.presence.next_beat - scene.presence._last_beat == 1.0
    assert set(scene.sent) == {BEAT}


def test_what_concerns_the_owner_reaches_it(scene):
    """Refusals as the error they name, messages with their bodies; beats, rejoins and nonsense go no further."""
    scene.say(wire.Refused(code="version_mismatch", text="speak up"))
    scene.say(wire.Drain(), b"body")
    scene.say(wire.Heartbeat())
    scene.say(wire.Final(request_id="r", seq=0))  # for clients
    scene.presence.receive(scene, [], 100.0)
    refusal, message = scene.told
    assert (type(refusal), refusal.text) == (VersionMismatch, "speak up")
    assert message == (wire.Drain(), [b"body"])


def test_w_55_hello_says_which_connection_it_begins(scene):
    """Each connection that the link makes has the next number, from 0 on; asked for again on the same one, the same."""
    said = [scene.presence.opening(100.0) for _ in range(3)]
    scene.presence.greet(scene, 102.0)
    hellos = [wire.decode(wire.TO_COORDINATOR, frame) for (frame,) in said] + scene.sent
    assert [hello.connection for hello in hellos] == [0, 1, 2, 2]
    assert {hello.name for hello in hellos} == {"w"}


def test_a_hello_counts_once_nothing_can_get_before_it():
    """Who posts when so many have been said comes after the last of them: counted when it is queued, not before."""
    scene = Scene()
    counts = []
    scene.presence.opening(100.0)  # the link puts it before all that waits
    assert scene.presence.hellos == 1
    scene.send = lambda _frames: counts.append(scene.presence.hellos)
    scene.presence.greet(scene, 102.0)
    assert (counts, scene.presence.hellos) == ([1], 2)
