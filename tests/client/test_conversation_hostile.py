"""A coordinator that says anything, and a link that breaks at any moment: each reply ends once, and nothing is kept."""

from __future__ import annotations

import itertools
import math

import msgspec
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensoryard import errors
from tensoryard.client.reading import ALL
from tensoryard.client.retry import Retry
from tensoryard.proto import wire

from .scene import WELCOME, Scene

REQUESTS = [f"r{number}" for number in range(3)]
requests = st.sampled_from(REQUESTS)
#: 0: it does not say; 1: of something else by that name, before or after.
submissions = st.sampled_from(["right", "right", "right", "none", "other"])
faults = st.sampled_from([b"", b"", b"", b"lost", b"bad", b"bug"])
CODES = ["cancelled", "overloaded", "worker_lost", "expired", "shutting_down", "unheard of"]
RETRY = Retry(runs=2, first_s=1.0, longest_s=2.0, total_s=20.0)


class HostileCoordinator(RuleBasedStateMachine):
    """Whatever is said: a reply ends at most once, with its parts in order, and gives its memory back when it does."""

    def __init__(self):
        super().__init__()
        self.scene = Scene()
        self.conversation = self.scene.conversation
        self.scene.faults = {
            b"lost": errors.SegmentGone("gone"),
            b"bad": errors.DecodeError("bad"),
            b"bug": KeyError(1),
        }
        self.replies = []
        #: Of each reply, by its place: what it gave so far, whether it had ended and how.
        self.before = {}
        #: Outputs that each caller has taken.
        self.taken = {}
        self.epochs = itertools.count(2)
        self.over = False
        self.answers = {}

    # -- callers ------------------------------------------------------------------------------------------------------

    @rule(request=requests, retry=st.sampled_from([None, RETRY]), window=st.sampled_from([1, 2, 256]))
    def submit(self, request, retry, window):
        live = self.conversation.pending.get(request)
        try:
            self.replies.append(self.scene.submit(request, retry=retry, window=window, deadline_s=100.0))
        except errors.DuplicateRequest:
            assert live is not None
        except errors.TensoryardError:
            assert self.conversation.refusal or self.conversation.closed
        else:
            assert live is None, "two requests of one name"

    @rule(data=st.data())
    def cancel(self, data):
        if self.replies:
            data.draw(st.sampled_from(self.replies)).cancel()

    @rule(data=st.data(), count=st.integers(1, 3))
    def read(self, data, count):
        """A caller takes what has come, which moves the window."""
        if not self.replies:
            return
        place = data.draw(st.integers(0, len(self.replies) - 1))
        position = self.taken.get(place, 0)
        try:
            outputs, last = self.replies[place].outputs_from(position, count)
        except errors.TensoryardError:
            assert self.replies[place].done
            return
        assert outputs == [b"%d" % number for number in range(position, position + len(outputs))]
        assert not last or self.replies[place].outcome == "finished"
        self.taken[place] = position + len(outputs)

    @rule(data=st.data())
    def collect(self, data):
        if self.replies:
            data.draw(st.sampled_from(self.replies)).collect()

    @rule()
    def ask(self):
        told = []
        try:
            number = self.conversation.ask(wire.AskStatus, told.append, self.scene.silent_s)
        except errors.TensoryardError:
            assert self.conversation.refusal or self.conversation.closed or self.scene.silent_s > 15.0
        else:
            self.answers[number] = told

    # -- what the coordinator says ------------------------------------------------------------------------------------

    def submission(self, request, which):
        entry = self.conversation.pending.get(request)
        mine = entry.submit.submission if entry is not None else 5
        return {"right": mine, "none": 0, "other": mine + 1}[which]

    def envelope(self, request, seq, which, *, last):
        kind = wire.Final if last else wire.Partial
        return kind(request_id=request, seq=seq, submission=self.submission(request, which))

    @rule(request=requests, seq=st.integers(0, 3), last=st.booleans(), which=submissions, fault=faults)
    def output(self, request, seq, last, which, fault):
        before = self.conversation.pending.get(request)
        self.scene.say(self.envelope(request, seq, which, last=last), fault or b"%d" % seq)
        if which == "other":
            assert self.conversation.pending.get(request) is before, "an answer to something else ended it"

    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 0, 1, -1]))
    def answers_together(self, data, wrong):
        """Several in one message, which may not add up."""
        picked = data.draw(st.lists(st.tuples(requests, st.integers(0, 3), st.booleans(), submissions), max_size=4))
        outputs = [self.envelope(request, seq, which, last=last) for request, seq, last, which in picked]
        frames = [1] * len(outputs)
        if frames:
            frames[-1] += wrong
        self.scene.say(wire.Answers(outputs=outputs, frames=frames), *(b"%d" % seq for _, seq, _, _ in picked))

    @rule(seq=st.integers(0, 3), fault=faults)
    def output_for_a_stranger(self, seq, fault):
        """It is read all the same, which takes over its memory."""
        read = len(self.scene.decoded)
        self.scene.say(wire.Final(request_id="nobody's", seq=seq), fault or b"%d" % seq)
        assert len(self.scene.decoded) == read + 1

    @rule(request=requests, code=st.sampled_from(CODES), which=submissions)
    def error(self, request, code, which):
        before = self.conversation.pending.get(request)
        submission = self.submission(request, which)
        self.scene.error(code, request, submission=submission, retry_after_s=3.0 * (code == "overloaded"))
        if which == "other":
            assert self.conversation.pending.get(request) is before, "an answer to something else ended it"

    @rule(query=st.integers(0, 3))
    def report(self, query):
        self.scene.say(wire.Report(query=query), b"told")

    @rule(error=st.sampled_from([errors.ProtocolError("x"), errors.VersionMismatch("y")]))
    def refuse(self, error):
        self.conversation.refused(error)

    @rule()
    def goodbye(self):
        self.scene.say(wire.Disconnect())

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(anew=st.booleans(), features=st.sampled_from([wire.FEATURES, []]))
    def welcome_again(self, anew, features):
        """The same coordinator after a broken connection, or another one: all that still matters is said again."""
        if self.conversation.closed:
            return
        epoch = f"e{next(self.epochs)}" if anew else self.conversation.welcome.epoch
        self.scene.posted.clear()
        self.scene.silent_s = 0.0
        self.conversation.welcomed(msgspec.structs.replace(WELCOME, epoch=epoch, features=features), self.scene.at)
        said = [message for message, _ in self.scene.posted if isinstance(message, wire.Submit)]
        awake = {e.submit.request_id: e.submit.submission for e in self.conversation.pending.all() if not e.asleep}
        assert {message.request_id: message.submission for message in said} == awake
        assert not any(entry.cancelled for entry in self.conversation.pending.all())

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0]))
    def time_passes(self, seconds):
        self.scene.wait(seconds)

    @rule(silent_s=st.sampled_from([0.0, 20.0]))
    def beat(self, silent_s):
        self.scene.beat(silent_s)
        live = self.conversation.pending.all()
        assert silent_s == 0.0 or all(entry.asleep for entry in live), "the silence was too long for it"

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def replies_are_what_they_were(self):
        """What a reply has given, and how it ended, never changes."""
        for place, reply in enumerate(self.replies):
            now = (reply._reading.came, reply.done, reply._error)
            came, done, error = self.before.get(place, (0, False, None))
            assert now[0] >= came
            assert not done or now == (came, done, error), "a reply changed after its end"
            self.before[place] = now

    @invariant()
    def what_is_under_way_is_what_has_not_ended(self):
        live = [reply for reply in self.replies if not reply.done]
        assert [entry.reply for entry in self.conversation.pending.all()] == live
        assert bool(self.conversation.pending.size_bytes) == bool(live)

    @invariant()
    def memory_is_kept_until_the_end_and_no_longer(self):
        for reply, loan in self.scene.loans:
            assert loan.released == reply.done, "given back early, late, or twice"

    @invariant()
    def whoever_sleeps_will_be_woken(self):
        sleepers = self.conversation._sleepers
        keys = {key for _, _, key in sleepers._heap}
        assert {entry.submit.request_id for entry in self.conversation.pending.all() if entry.asleep} <= keys
        assert sleepers.next_due() == math.inf or min(self.scene.alarms[-3:]) <= sleepers.next_due() + 1e-9

    @invariant()
    def the_worker_is_told_what_was_read(self):
        """No more than came, and never less than before."""
        for message, _ in self.scene.posted:
            if isinstance(message, wire.Consumed):
                assert 0 < message.parts
                mine = [reply for reply in self.replies if str(reply.request_id) == message.request_id]
                assert message.parts == ALL or message.parts <= max(reply._reading.came for reply in mine)

    def teardown(self):
        self.conversation.close()
        self.conversation.ended()
        assert all(reply.done for reply in self.replies)
        assert all(loan.released == 1 for _, loan in self.scene.loans)
        assert all(self.answers[number] for number in self.conversation.queries), "a question got no answer"
        sent = itertools.chain.from_iterable(frames for _, frames in self.scene.posted)
        assert all(isinstance(frame, bytes | memoryview | bytearray) for frame in sent)


TestHostileCoordinator = HostileCoordinator.TestCase
TestHostileCoordinator.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
