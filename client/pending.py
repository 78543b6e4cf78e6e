"""The requests of one client that have no terminal answer yet: what was sent, and what has come back.

`conversation.py` adds and settles. Keeps the request's shared memory until its
answer has come, and everything needed to send it again.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from ..errors import DuplicateRequest, TensoryardError
from ..proto import wire
from ..proto.codec import Encoded
from .ledger import CopyLedger
from .reply import Reply
from .retry import Retry

#: Lines of a request's story on this side, and characters of each.
_MAX_EVENTS = 16
_MAX_CHARS = 200

#: When a worker says nothing of what it did.
_UNTOLD = wire.Ledger()


class Pending(msgspec.Struct, eq=False):
    """One request under way."""

    reply: Reply
    submit: wire.Submit
    body: Encoded
    output_type: type[Any]
    #: Monotonic seconds; the deadline is None when there is none.
    sent_at: float
    deadline: float | None
    #: How many HELLO had been said when it was last sent.
    hellos: int = 0
    #: Times it was sent again because its result was lost.
    resends: int = 0
    #: It was sent again, and what comes until output 0 is what was left of the run before.
    restarting: bool = False
    #: Its caller does not want the answer any more.
    cancelled: bool = False
    #: It has ended, and is under way no more.
    settled: bool = False
    #: Outputs taken over from the stream so far, their bytes, and those of an envelope without a ledger.
    received: int = 0
    received_bytes: int = 0
    envelope_bytes: int = 0
    #: Bytes of this attempt's outputs in shared memory, as its worker counted them.
    shared_bytes_out: int = 0
    #: Whether it is tried again, how often it was lost and how often refused.
    retry: Retry | None = None
    losses: int = 0
    refusals: int = 0
    #: It sleeps before it is tried again; changed under the table's lock.
    asleep: bool = False
    #: What this side saw of it besides its first sending: (monotonic seconds, text).
    events: list[tuple[float, str]] = []
    #: What the request itself took; 0 until it is first asked for.
    sent_bytes: int = 0

    def note(self, at: float, text: str) -> None:
        """Something has happened to it here; a long story keeps its beginning and its end."""
        if len(self.events) >= _MAX_EVENTS:
            del self.events[_MAX_EVENTS // 2]
        self.events.append((at, text[:_MAX_CHARS]))

    def story(self) -> tuple[str, ...]:
        """The steps, oldest first, with seconds since it was sent."""
        lines = [(self.sent_at, "sent"), *self.events]
        return tuple(f"+{at - self.sent_at:.3f}s client: {text}" for at, text in lines)

    def message(self, at: float) -> wire.Submit:
        """SUBMIT, to be sent again: with what is left of the deadline at that time, and what has been read."""
        left = None if self.deadline is None else max(self.deadline - at, 0.0)
        return msgspec.structs.replace(self.submit, deadline_s=left, consumed=self.reply.consumed)

    def take_size(self, message: wire.Partial | wire.Final, body: wire.Frames) -> int:
        """Enter an output's bytes; returns how many, shared memory included.

        Envelopes without a ledger are all but equally large, so only the first of them is measured.
        """
        told = message.ledger
        if told is not None:
            envelope_bytes = len(wire.encode(message))
        elif not (envelope_bytes := self.envelope_bytes):
            envelope_bytes = self.envelope_bytes = len(wire.encode(message))
        socket_bytes = envelope_bytes + wire.size_of(body)
        self.received_bytes += socket_bytes
        if told is None:
            return socket_bytes
        before, self.shared_bytes_out = self.shared_bytes_out, told.output_shared_bytes
        return socket_bytes + max(self.shared_bytes_out - before, 0)

    def ledger(self, told: wire.Ledger | None, at: float) -> CopyLedger:
        """The ledger so far, at that time."""
        told = told or _UNTOLD
        if not self.sent_bytes:
            self.sent_bytes = self.body.socket_bytes + len(wire.encode(self.submit))
        return CopyLedger(
            worker=told.worker,
            shared_bytes_in=self.body.shared_bytes,
            shared_bytes_out=told.output_shared_bytes,
            copies_in=self.body.copies,
            copies_out=told.output_copies,
            socket_bytes=self.sent_bytes + told.request_socket_bytes + told.output_socket_bytes + self.received_bytes,
            wait_s=told.wait_s,
            execute_s=told.execute_s,
            round_trip_s=at - self.sent_at,
        )


class PendingTable:
    """Every request under way, by RequestID. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Pending] = {}
        #: What they weigh: their messages and their shared memory.
        self.size_bytes = 0

    def add(self, entry: Pending) -> None:
        """Enter a request; DuplicateRequest when its id is under way already."""
        key = entry.submit.request_id
        with self._lock:
            if key in self._entries:
                raise DuplicateRequest("this client has a live request with this RequestID", request_id=key)
            self._entries[key] = entry
            self.size_bytes += _size_of(entry)

    def get(self, request_id: str) -> Pending | None:
        """The request of an id; one look at a dict, which needs no lock."""
        return self._entries.get(request_id)

    def all(self) -> list[Pending]:
        """Every request under way, oldest first."""
        with self._lock:
            return list(self._entries.values())

    def settle(self, request_id: str) -> Pending | None:
        """The request has ended: strike it off and give its shared memory back."""
        with self._lock:
            entry = self._entries.pop(request_id, None)
            self.size_bytes -= _size_of(entry) if entry is not None else 0
        if entry is not None:
            entry.settled = True
            entry.body.release()
        return entry

    def change_body(self, entry: Pending, body: Encoded) -> None:
        """Its arrays go another way from now on; what they took in shared memory is given back."""
        with self._lock:
            before, live = entry.body, self._entries.get(entry.submit.request_id) is entry
            self.size_bytes -= _size_of(entry) if live else 0
            entry.body, entry.sent_bytes = body, 0
            self.size_bytes += _size_of(entry) if live else 0
        before.release()

    def sleep(self, request_id: str) -> bool:
        """Let a request sleep; False when it has ended, or was cancelled, meanwhile."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or entry.cancelled:
                return False
            entry.asleep = True
            return True

    def wake(self, request_id: str) -> Pending | None:
        """The request of an id, if it slept; it does no more."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or not entry.asleep:
                return None
            entry.asleep = False
            return entry

    def sleeps(self, request_id: str) -> bool:
        """Whether it sleeps."""
        entry = self.get(request_id)
        return entry is not None and entry.asleep

    def fail_all(self, error: type[TensoryardError], text: str) -> None:
        """End every request with an error."""
        for entry in self.all():
            self.settle(entry.submit.request_id)
            entry.reply.fail(error(text, request_id=entry.submit.request_id, story=entry.story()))

    def __len__(self) -> int:
        return len(self._entries)


def _size_of(entry: Pending) -> int:
    return entry.body.socket_bytes + entry.body.shared_bytes


def frames_of(entry: Pending) -> wire.Frames:
    """The body's frames, to be sent (again)."""
    return entry.body.frames
