"""A client's conversation on its own: what it posts, and what callers hear."""

from __future__ import annotations

from tensoryard.client.conversation import Conversation
from tensoryard.client.pending import Pending
from tensoryard.client.reading import Reading
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
    features=wire.FEATURES,
)


class Loan:
    """Memory of a request."""

    released = 0

    def release(self):
        self.released += 1


class Scene:
    """A conversation, what it posts, and what callers heard. A body is its only frame; `faults` make it unreadable."""

    def __init__(self, *, welcome=True, **how):
        self.at = 10.0
        self.posted = []
        self.faults = {}
        self.decoded = []
        self.ends = {}
        self.alarms = []
        #: Of each submission: the memory of its body.
        self.loans = []
        self.silent_s = 0.0
        shell = {"post": self.post, "decode": self.decode, "wake": self.alarms.append}
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

    def submit(self, request_id="r", *, deadline_s=None, window=256, window_bytes=64 << 20, retry=None, hellos=0):
        """Raises what keeps it from being sent; then its memory is its caller's to give back."""
        tell = lambda key, parts: self.conversation.consumed(str(key), parts)
        cancel = lambda key: self.conversation.cancel(str(key))
        reading = Reading(parts=window, size_bytes=window_bytes)
        entry = Pending(
            reply=Reply(RequestID(request_id), cancel, consumed=tell, reading=reading),
            submit=wire.Submit(request_id=request_id, task="t", model="m", deadline_s=deadline_s),
            body=encode_body(f"body of {request_id}"),
            output_type=bytes,
            sent_at=self.at,
            deadline=self.at + deadline_s if deadline_s is not None else None,
            hellos=hellos,
            retry=retry,
        )
        entry.body.loans.append(Loan())
        self.conversation.submit(entry, 0.0)
        self.loans.append((entry.reply, *entry.body.loans))
        return entry.reply

    def beat(self, silent_s):
        """So long nothing was heard."""
        self.silent_s = silent_s
        self.conversation.beat(silent_s, self.at)

    def say(self, message, *body):
        self.silent_s = 0.0
        self.conversation.message(message, list(body), self.at)

    def partial(self, seq, body=b"part", request_id="r"):
        self.say(wire.Partial(request_id=request_id, seq=seq), body)

    def final(self, seq=0, body=b"last", request_id="r"):
        self.say(wire.Final(request_id=request_id, seq=seq), body)

    def error(self, code, request_id="r", **fields):
        self.say(wire.Error(request_id=request_id, code=code, text="text", **fields))

    def wait(self, seconds):
        """Let time pass; whoever sleeps is woken when that is due."""
        until = self.at + seconds
        while self.conversation._sleepers.next_due() <= until:
            self.at = max(self.at, self.conversation._sleepers.next_due())
            assert self.alarms, "nobody would wake it"
            self.conversation.due(self.at, self.silent_s)
        self.at = until

    def take(self):
        """What was posted since it was last asked: names, in order."""
        posted, self.posted = self.posted, []
        return [type(message).__name__ for message, _ in posted]
