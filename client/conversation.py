"""A client's side of the dialogue, a pure machine: what is under way, and what each message or loss means for it.

`connection.py` is the shell around it, with the session, the memory and the threads; `pending.py` holds the books and
`reply.py` what callers wait for. Time comes in with the events, decoding and sending are given to it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from .. import errors
from ..proto import wire
from .pending import Pending, PendingTable, frames_of

log = logging.getLogger(__name__)

#: A request whose result's memory was lost with its worker is sent again so many times.
_MAX_RESENDS = 3
_LOST_MEMORY = (errors.StaleHandle, errors.SegmentGone)

#: Reads an output of a type from its frames, and takes over the lease of its memory, which ends with the value.
Decode = Callable[[wire.Frames, Any], Any]


class Post(Protocol):
    """Sends a message some time; what is posted first arrives first."""

    def __call__(self, message: wire.Message, body: wire.Frames | tuple[()] = ()) -> None:
        """`body`: further frames."""


class Query(NamedTuple):
    """A question under way; `answer` gets the body of its REPORT, or None when there will be none."""

    message: wire.AskStatus | wire.AskStory
    answer: Callable[[bytes | None], None]


class Conversation:
    """Everything between a client and its coordinator, whichever that is at the time.

    The methods of the first half may be called from any thread, the others, which tell what happened, from one. Times,
    `at`, are monotonic seconds; `silent_s` is for how long the coordinator has not been heard. Requests are told apart
    by numbers from `first_submission` on, which no other client should use.
    """

    def __init__(
        self, *, address: str, reconnect_s: float, post: Post, decode: Decode, first_submission: int = 1
    ) -> None:
        self.pending = PendingTable()
        self.queries: dict[int, Query] = {}
        #: The last greeting of a coordinator; None before the first.
        self.welcome: wire.Welcome | None = None
        #: Why nothing can be sent, until a coordinator welcomes us (again).
        self.refusal: errors.TensoryardError | None = None
        self.closed = False
        self._address = address
        self._reconnect_s = reconnect_s
        self._post = post
        self._decode = decode
        self._query_numbers = itertools.count(1)
        self._submissions = itertools.count(first_submission)

    # -- the caller's wishes ------------------------------------------------------------------------------------------

    def require_open(self, silent_s: float) -> wire.Welcome:
        """The coordinator's greeting; raises why nothing can be sent: NotConnected, or the refusal."""
        if self.closed:
            raise errors.NotConnected("this client is closed")
        if self.refusal is not None:
            raise self.refusal
        assert self.welcome is not None, "an open connection was welcomed"
        if silent_s > self._reconnect_s:
            raise errors.NotConnected(
                f"the coordinator at {self._address} has not been heard for {silent_s:.0f} s; "
                "this client goes on by itself when it comes back",
            )
        return self.welcome

    def submit(self, entry: Pending, silent_s: float) -> None:
        """Send a request, which is under way from now on. Raises like `require_open`, and DuplicateRequest.

        The conversation may have ended since the caller looked: then nobody would settle it.
        """
        entry.submit = msgspec.structs.replace(entry.submit, submission=next(self._submissions))
        self.pending.add(entry)
        try:
            self.require_open(silent_s)
        except errors.TensoryardError:
            self.pending.settle(entry.submit.request_id)
            raise
        self._post(entry.submit, frames_of(entry))

    def cancel(self, request_id: str) -> None:
        """Tell the coordinator that an answer is not wanted; its ERROR, or what came first, ends the request."""
        entry = self.pending.get(request_id)
        if entry is not None:
            entry.cancelled = True
            self._post(wire.Cancel(request_id=request_id))

    def ask(self, make: Callable[..., Any], answer: Callable[[bytes | None], None], silent_s: float) -> int:
        """Send a question made by `make(query=number)`; returns the number. Raises like `require_open`."""
        number = next(self._query_numbers)
        query = self.queries[number] = Query(make(query=number), answer)
        try:
            self.require_open(silent_s)
        except errors.TensoryardError:
            self.forget(number)
            raise
        self._post(query.message)
        return number

    def forget(self, number: int) -> None:
        """The answer to a question has come, or is waited for no longer."""
        self.queries.pop(number, None)

    def close(self) -> None:
        """Send nothing new. What is under way ends with `ended`, once the session has said goodbye."""
        self.closed = True

    # -- what happens -------------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """The session of a closed client is over: what is under way is cancelled."""
        self.pending.fail_all(errors.RequestCancelled, "its client was closed")
        self._end_queries()

    def failed(self, error: Exception) -> None:
        """Our own session broke: nothing will ever be answered."""
        self.refusal = error if isinstance(error, errors.TensoryardError) else errors.NotConnected(f"{error!r}")
        self.pending.fail_all(errors.CoordinatorLost, f"this client's session failed: {error!r}")
        self._end_queries()

    def welcomed(self, welcome: wire.Welcome, at: float) -> None:
        """Known to a coordinator; if not for the first time, it may not know what is under way or was cancelled."""
        again = self.welcome is not None
        self.welcome, self.refusal = welcome, None
        if not again:
            return
        for entry in self.pending.all():
            if entry.cancelled:
                self._fail(entry, errors.RequestCancelled("cancelled by its client"))
            else:
                entry.restarting = False
                self._post(entry.message(at), frames_of(entry))
        for query in list(self.queries.values()):
            self._post(query.message)

    def refused(self, error: errors.TensoryardError) -> None:
        """Not admitted; or one message was not understood, which its own reply's timeout will show."""
        log.error("the coordinator refused this client: %s", error)
        if self.welcome is None or isinstance(error, errors.VersionMismatch):
            self.refusal = error
            self.pending.fail_all(type(error), error.text)

    def beat(self, silent_s: float) -> None:
        """About once a heartbeat: give up on a coordinator that does not come back."""
        if silent_s > self._reconnect_s:
            self.pending.fail_all(
                errors.CoordinatorLost,
                f"the coordinator at {self._address} has not been heard for {silent_s:.0f} s; it is safe to send again",
            )

    def message(self, message: Any, body: wire.Frames, at: float) -> None:
        """A message of `wire.ToClient`; those that keep the session alive mean nothing here."""
        match message:
            case wire.Partial() | wire.Final():
                self._on_output(message, body, at)
            case wire.Error():
                self._on_error(message)
            case wire.Report():
                query = self.queries.get(message.query)
                if query is not None and body:
                    query.answer(bytes(body[0]))
            case wire.Disconnect():
                self.pending.fail_all(errors.CoordinatorLost, "the cluster has shut down; it is safe to send again")

    def _end_queries(self) -> None:
        """Nobody will answer."""
        for query in list(self.queries.values()):
            query.answer(None)

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _on_output(self, message: wire.Partial | wire.Final, body: wire.Frames, at: float) -> None:
        """One output. One that nobody waits for is decoded too: that takes its lease, which ends with it."""
        entry = self._meant(message)
        if entry is not None and message.seq == 0:
            entry.restarting = False
        wanted = entry is not None and not entry.restarting
        try:
            output = self._decode(body, entry.output_type if entry else Any)
        except Exception as error:
            if entry is not None and wanted:
                self._on_unreadable(entry, message, error, at)
            return
        if entry is None or not wanted:
            return
        if message.seq == entry.received:
            self._deliver(entry, message, output, body, at)
        elif message.seq > entry.received:
            gap = f"part {message.seq} came where part {entry.received} was due"
            self._resend(entry, errors.ProtocolError(gap), at)

    def _on_unreadable(self, entry: Pending, message: wire.Partial | wire.Final, error: Exception, at: float) -> None:
        """Its memory is lost, and to run it again may help; or it is not what it should be, and this request fails."""
        if isinstance(error, _LOST_MEMORY):
            self._resend(entry, error, at)
            return
        if not isinstance(error, errors.TensoryardError):
            log.error("an output of request %s cannot be read", message.request_id, exc_info=error)
        if isinstance(message, wire.Partial):  # it still runs
            self._post(wire.Cancel(request_id=message.request_id))
        self._fail(entry, errors.DecodeError(errors.to_wire(error)[1]))

    def _deliver(
        self, entry: Pending, message: wire.Partial | wire.Final, output: Any, body: wire.Frames, at: float
    ) -> None:
        entry.received += 1
        entry.received_bytes += len(wire.encode(message)) + sum(memoryview(frame).nbytes for frame in body)
        done = isinstance(message, wire.Final)
        if done:
            self.pending.settle(message.request_id)
        entry.reply.add_output(output, entry.ledger(message.ledger, at), done=done)

    def _fail(self, entry: Pending, error: errors.TensoryardError) -> None:
        """End a request with an error."""
        error.request_id = entry.submit.request_id
        self.pending.settle(entry.submit.request_id)
        entry.reply.fail(error)

    def _resend(self, entry: Pending, error: errors.TensoryardError, at: float) -> None:
        """A result was lost: its memory went away with its worker before it was read.

        The request runs again; parts of the stream that have arrived are not taken twice.
        """
        entry.resends += 1
        entry.restarting = True
        # If this was a PARTIAL the request still runs: end that run first, or SUBMIT would change nothing.
        self._post(wire.Cancel(request_id=entry.submit.request_id))
        if entry.cancelled:
            self._fail(entry, errors.RequestCancelled("cancelled by its client"))
        elif entry.resends > _MAX_RESENDS:
            self._fail(entry, errors.WorkerLost(f"its result was lost {entry.resends} times: {error}"))
        else:
            self._post(entry.message(at), frames_of(entry))

    def _meant(self, message: wire.Partial | wire.Final | wire.Error) -> Pending | None:
        """The request that an answer is for: not one that has the same name and came after it."""
        entry = self.pending.get(message.request_id)
        if entry is None or message.submission not in (0, entry.submit.submission):
            return None
        return entry

    def _on_error(self, message: wire.Error) -> None:
        entry = self._meant(message)
        if entry is None:
            return
        if entry.restarting and not entry.cancelled and message.code == errors.RequestCancelled.code:
            return  # the answer to our own CANCEL in `_resend`
        story, retry_after_s = tuple(message.story), message.retry_after_s
        self._fail(entry, errors.from_wire(message.code, message.text, story=story, retry_after_s=retry_after_s))
