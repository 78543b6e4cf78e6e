"""A client's side of the dialogue, a pure machine: what is under way, and what each message or loss means for it.

`connection.py` is the shell around it, with the session, the memory and the threads; `pending.py` holds the books and
`reply.py` what callers wait for. Time comes in with the events, decoding and sending are given to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from .. import errors
from ..logs import logger
from ..proto import wire
from ..proto.codec import Encoded
from .abroad import Abroad, Letter, Parked, Unreached
from .gate import Gate
from .pending import Pending, PendingTable, frames_of
from .retry import Sleepers, is_refusal

log = logger(__name__)

#: A request whose result's memory was lost with its worker is sent again so many times.
_MAX_RESENDS = 3
#: Questions that may wait for their answers at once.
_MAX_QUERIES = 256
_LOST_MEMORY = (errors.StaleHandle, errors.SegmentGone)

#: Reads an output of a type from its frames, and takes over the lease of its memory, which ends with the value. Raises
#: Abroad for one that takes a while.
Decode = Callable[[wire.Frames, Any], Any]
#: Reads it aside: `fetched` is to be told of the request's RequestID, and of the output or why it cannot be read.
Fetch = Callable[[str, wire.Frames, Any], None]


class Post(Protocol):
    """Sends a message some time; what is posted first arrives first."""

    def __call__(self, message: wire.Message, body: wire.Frames | tuple[()] = ()) -> None:
        """`body`: further frames."""


class Query(NamedTuple):
    """A question under way; `answer` gets the body of its REPORT, or None when there will be none."""

    message: wire.AskStatus | wire.AskStory | wire.Lora
    answer: Callable[[bytes | None], None]


class Conversation:
    """Everything between a client and its coordinator, whichever that is at the time.

    The methods of the first half may be called from any thread, the others, which tell what happened, from one. Times,
    `at`, are monotonic seconds; `silent_s` is for how long the coordinator has not been heard.

    Requests that are to be tried again sleep until `due` is called; `wake` is told when that should be, `chance` gives
    numbers from 0 to 1. Submissions are numbered from `first_submission` on, which no other client should use.

    `as_buffers` makes of a body that names shared memory one that carries its arrays along.
    """

    def __init__(
        self,
        *,
        address: str,
        reconnect_s: float,
        post: Post,
        decode: Decode,
        wake: Callable[[float], None] = lambda _at: None,
        chance: Callable[[], float] = lambda: 1.0,
        first_submission: int = 1,
        fetch: Fetch = lambda _request_id, _body, _type: None,
        as_buffers: Callable[[Encoded], Encoded] = lambda body: body,
    ) -> None:
        self._fetch = fetch
        self._as_buffers = as_buffers
        self.parked = Parked()
        self.unreached = Unreached()
        self.pending = PendingTable()
        self.queries: dict[int, Query] = {}
        #: The last greeting of a coordinator; None before the first.
        self.welcome: wire.Welcome | None = None
        #: Why nothing can be sent, until a coordinator welcomes us (again).
        self.refusal: errors.TensoryardError | None = None
        self.closed = False
        self.gate = Gate()
        self._address = address
        self._reconnect_s = reconnect_s
        self._post = post
        self._decode = decode
        self._wake = wake
        self.chance = chance
        self._sleepers = Sleepers()
        self._silent_s = 0.0
        #: The time last told.
        self._at = -math.inf
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

    def overload(self, model: str, at: float) -> errors.Overloaded | None:
        """Why one more request would be refused, so that it need not be made; None when it may be sent."""
        assert self.welcome is not None, "an open connection was welcomed"
        live, live_bytes = len(self.pending), self.pending.size_bytes
        return self.gate.refusal(model, live=live, live_bytes=live_bytes, welcome=self.welcome, at=at)

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
        """Tell the coordinator that an answer is not wanted; its ERROR, or what came first, ends the request.

        One that sleeps ends here: nobody else knows of it.
        """
        entry = self.pending.get(request_id)
        if entry is None or entry.cancelled:
            return
        entry.cancelled = True
        if self.pending.wake(request_id) is not None:
            self._end(entry, errors.RequestCancelled("cancelled by its client"))
        else:
            self._post(wire.Cancel(request_id=request_id))

    def consumed(self, request_id: str, parts: int) -> None:
        """The caller has read so many outputs of a stream: its worker may go on."""
        if self.pending.get(request_id) is not None and self.speaks("windows"):
            self._post(wire.Consumed(request_id=request_id, parts=parts))

    def speaks(self, feature: str) -> bool:
        """Whether the coordinator knows what came after the first messages; see `wire.FEATURES`."""
        return self.welcome is not None and feature in self.welcome.features

    def ask(self, make: Callable[..., Any], answer: Callable[[bytes | None], None], silent_s: float) -> int:
        """Send a question made by `make(query=number)`; returns the number. Raises like `require_open`."""
        if len(self.queries) >= _MAX_QUERIES:
            text = f"this client waits for the answers to {_MAX_QUERIES} questions; ask again when they have come"
            raise errors.Overloaded(text, retry_after_s=1.0)
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
        self.parked.clear()
        self._end_queries()

    def failed(self, error: Exception) -> None:
        """Our own session broke: nothing will ever be answered."""
        self.refusal = error if isinstance(error, errors.TensoryardError) else errors.NotConnected(f"{error!r}")
        self.pending.fail_all(errors.CoordinatorLost, f"this client's session failed: {error!r}")
        self._end_queries()

    def welcomed(self, welcome: wire.Welcome, at: float, hellos: float = math.inf) -> None:
        """Known to a coordinator; if not for the first time, it may not know what is under way or was cancelled.

        What was sent when so many HELLO had been said, `hellos`, came after the one that is answered here: sent again,
        it might run twice. Without the number all is sent again.
        """
        before = self.welcome
        self.welcome, self.refusal, self._silent_s = welcome, None, 0.0
        if before is None:
            return
        for entry in self.pending.all():
            if entry.cancelled:
                self._end(entry, errors.RequestCancelled("cancelled by its client"))
            elif not entry.asleep and entry.hellos < hellos:
                if welcome.epoch != before.epoch:
                    entry.note(at, "the coordinator was replaced; sent to the new one")
                entry.restarting = False
                entry.hellos = entry.hellos if hellos == math.inf else int(hellos)
                self._send_again(entry, at)
        for query in list(self.queries.values()):
            self._post(query.message)

    def refused(self, error: errors.TensoryardError) -> None:
        """Not admitted; or one message was not understood, which its own reply's timeout will show."""
        log.error("the coordinator refused this client: %s", error)
        if self.welcome is None or isinstance(error, errors.VersionMismatch):
            self.refusal = error
            self.pending.fail_all(type(error), error.text)

    def due(self, at: float, silent_s: float) -> None:
        """Try those again whose time has come; about when `wake` was told, and with each beat."""
        self._silent_s = silent_s
        for request_id in self._sleepers.due(at):
            entry = self.pending.wake(request_id)
            if entry is None:
                continue
            if self._silent_s > self._reconnect_s:
                self._fail(entry, self._lost(), at)
                continue
            self._send_again(entry, at)
            if entry.cancelled:  # at this very moment, and its CANCEL may have left before
                self._post(wire.Cancel(request_id=request_id))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if (next_due := self._sleepers.next_due()) < math.inf:
            self._wake(next_due)

    def beat(self, silent_s: float, at: float = -math.inf) -> None:
        """About once a heartbeat: tell what little was read; give up on a coordinator that does not come back.

        Whatever the two sides make of an output's size, no reader waits for long for its own word.
        """
        for entry in self.pending.all():
            if entry.received:
                entry.reply.tell_all()
        self._silent_s = silent_s
        if silent_s > self._reconnect_s:
            self._fail_awake(self._lost, at)
        self.due(self._latest(at), silent_s)
        self._sleepers.sweep(len(self.pending), self.pending.sleeps)

    def message(self, message: Any, body: wire.Frames, at: float) -> None:
        """A message of `wire.ToClient`; those that keep the session alive mean nothing here."""
        self._latest(at)
        self._silent_s = 0.0
        match message:  # the most frequent first
            case wire.Partial() | wire.Final():
                self._on_output(message, body, at)
            case wire.Answers():
                self._on_answers(message, body, at)
            case wire.Error():
                self._on_error(message, at)
            case wire.Report():
                query = self.queries.get(message.query)
                if query is not None and body:
                    query.answer(bytes(body[0]))
            case wire.Disconnect():
                text = "the cluster has shut down; it is safe to send again"
                self._fail_awake(lambda: errors.CoordinatorLost(text), at)

    def _lost(self) -> errors.CoordinatorLost:
        return errors.CoordinatorLost(
            f"the coordinator at {self._address} has not been heard for {self._silent_s:.0f} s; "
            "it is safe to send again",
        )

    def _latest(self, at: float) -> float:
        """Time does not go back; a beat need not know it."""
        self._at = max(self._at, at)
        return self._at

    def _end_queries(self) -> None:
        """Nobody will answer."""
        for query in list(self.queries.values()):
            query.answer(None)

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _on_answers(self, answers: wire.Answers, frames: wire.Frames, at: float) -> None:
        try:
            bodies = wire.split_answers(answers, frames)
        except errors.ProtocolError as error:
            log.warning("a message from the coordinator was dropped: %s", error)
            return
        for message, body in zip(answers.outputs, bodies, strict=True):
            self._on_output(message, body, at)

    def _on_output(self, message: wire.Partial | wire.Final, body: wire.Frames, at: float) -> None:
        """One output. One that nobody waits for is decoded too: that takes its lease, which ends with it."""
        request_id = message.request_id
        if self.parked.letters and self.parked.waits(request_id, (message, body)):
            return
        entry = self._meant(message)
        try:
            output = self._decode(body, entry.output_type if entry else Any)
        except Abroad:
            if entry is not None:
                self.parked.park(request_id, (message, body))
                self._fetch(request_id, body, entry.output_type)
            return
        except Exception as error:
            self._on_unreadable(message, error, at)  # by no other name: its frames would keep it for ever
            return
        if entry is not None and not entry.settled:  # meanwhile, by its caller
            self._take(entry, message, body, output, at)

    def fetched(self, request_id: str, output: Any, at: float) -> None:
        """An output has been read aside, or cannot be (an exception): it comes now, and what waited behind it."""
        letters = self.parked.fetched(request_id)
        if letters:
            first, body = _of_output(letters.popleft())
            self._latest(at)
            if isinstance(output, Exception):
                self._on_unreadable(first, output, self._at)
            elif (entry := self._meant(first)) is not None:
                self._take(entry, first, body, output, self._at)
        for message, body in letters:
            self.message(message, body, at)

    def _take(
        self, entry: Pending, message: wire.Partial | wire.Final, body: wire.Frames, output: Any, at: float
    ) -> None:
        """An output that has been read is passed on, if it is the next one."""
        if entry.restarting and self._is_left_over(entry, message):
            return
        if message.seq != entry.received:
            self._out_of_step(entry, message, at)
            return
        entry.received += 1
        ledger, size_bytes = message.ledger, entry.take_size(message, body)
        done = isinstance(message, wire.Final)
        if done:
            self.pending.settle(message.request_id)
        told = entry.ledger(ledger, at) if done or ledger is not None else None
        entry.reply.add_output(output, told, done=done, size_bytes=size_bytes)

    def _is_left_over(self, entry: Pending, message: wire.Partial | wire.Final) -> bool:
        """Whether it is of a run that was given up: the one that was asked for instead begins with part 0."""
        entry.restarting = message.seq > 0
        return entry.restarting

    def _out_of_step(self, entry: Pending, message: wire.Partial | wire.Final, at: float) -> None:
        """A part that has come before changes nothing; one too early means that others are lost."""
        if message.seq > entry.received:
            gap = f"part {message.seq} came where part {entry.received} was due"
            self._resend(entry, errors.ProtocolError(gap), at)

    def _on_unreadable(self, message: wire.Partial | wire.Final, error: Exception, at: float) -> None:
        """Its memory is lost, and to run it again may help; or it is not what it should be, and this request fails."""
        entry = self._meant(message)
        if entry is None or (entry.restarting and self._is_left_over(entry, message)):
            return
        if isinstance(error, _LOST_MEMORY):
            if isinstance(error, errors.OutOfReach):
                entry.submit = msgspec.structs.replace(entry.submit, porter=False)
            self._resend(entry, error, at)
            return
        if not isinstance(error, errors.TensoryardError):
            log.error("an output of request %s cannot be read", message.request_id, exc_info=error)
        if isinstance(message, wire.Partial):  # it still runs
            self._post(wire.Cancel(request_id=message.request_id))
        self._end(entry, errors.DecodeError(errors.to_wire(error)[1]))

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, entry: Pending, error: errors.TensoryardError, at: float) -> None:
        """This try has ended with an error: sleep before the next, or end the request."""
        delay_s = self._delay_s(entry, error, at)
        if delay_s is None or not self.pending.sleep(entry.submit.request_id):
            self._end(entry, _after(entry.losses + entry.refusals, error))
            return
        entry.note(at, f"{error.code}: {error.text}"[:120] + f"; tried again in {delay_s:.2f} s")
        self._sleepers.add(entry.submit.request_id, at + delay_s)
        self._set_alarm()

    def _delay_s(self, entry: Pending, error: errors.TensoryardError, at: float) -> float | None:
        """How long to wait before it is tried again; None when that is not wanted."""
        if entry.retry is None or entry.cancelled or self.closed:
            return None
        if is_refusal(error):
            entry.refusals += 1
        else:
            entry.losses += 1
        return entry.retry.delay_s(
            error,
            losses=entry.losses,
            refusals=entry.refusals,
            elapsed_s=at - entry.sent_at,
            left_s=math.inf if entry.deadline is None else entry.deadline - at,
            chance=self.chance(),
        )

    def _end(self, entry: Pending, error: errors.TensoryardError) -> None:
        """End a request with an error, which gets its story."""
        error.request_id = entry.submit.request_id
        if entry.events or not error.story:
            error.story = entry.story() + error.story
        if self.pending.settle(entry.submit.request_id) is not None:
            entry.reply.fail(error)

    def _fail_awake(self, make: Callable[[], errors.TensoryardError], at: float) -> None:
        """Every try that is under way has ended with an error of its own."""
        for entry in self.pending.all():
            if not entry.asleep:
                self._fail(entry, make(), self._latest(at))

    def _send_again(self, entry: Pending, at: float) -> None:
        self._post(entry.message(at), frames_of(entry))

    def _resend(self, entry: Pending, error: errors.TensoryardError, at: float) -> None:
        """A result was lost: its memory went away with its worker before it was read.

        The request runs again; parts of the stream that have arrived are not taken twice.
        """
        entry.resends += 1
        entry.restarting = True
        entry.note(at, f"its result was lost, to be run again: {error}")
        # If this was a PARTIAL the request still runs: end that run first, or SUBMIT would change nothing.
        self._post(wire.Cancel(request_id=entry.submit.request_id))
        if entry.cancelled:
            self._end(entry, errors.RequestCancelled("cancelled by its client"))
        elif entry.resends > _MAX_RESENDS:
            self._fail(entry, errors.WorkerLost(f"its result was lost {entry.resends} times: {error}"), at)
        else:
            self._send_again(entry, at)

    def _meant(self, message: wire.Partial | wire.Final | wire.Error) -> Pending | None:
        """The request that an answer is for: not one that has the same name and came after it."""
        entry, submission = self.pending.get(message.request_id), message.submission
        if entry is not None and (not submission or submission == entry.submit.submission):
            return entry
        return None

    def _carry(self, entry: Pending, text: str, at: float) -> None:
        """Its worker cannot reach our memory: its arrays go in the message now, and those of others for a while."""
        self.unreached.note(entry.submit.model, at)
        try:
            body = self._as_buffers(entry.body)
        except errors.TensoryardError as error:
            self._end(entry, error)
            return
        entry.note(at, f"sent again with its arrays in the message: {text}")
        self.pending.change_body(entry, body)
        entry.submit = msgspec.structs.replace(entry.submit, host="", shared_bytes=0, uses=[])
        self._send_again(entry, at)

    def _on_error(self, message: wire.Error, at: float) -> None:
        if self.parked.letters and self.parked.waits(message.request_id, (message, [])):
            return
        entry = self._meant(message)
        if entry is None:
            return
        if message.code == errors.Overloaded.code:
            self.gate.close(entry.submit.model, message.retry_after_s, at)
        if entry.asleep or (entry.restarting and not entry.cancelled and message.code == errors.RequestCancelled.code):
            return  # of a try that is over: the answer to our own CANCEL in `_resend`
        entry.restarting = False
        if message.code == errors.OutOfReach.code and entry.body.shared_bytes and not entry.cancelled:
            self._carry(entry, message.text, at)
            return
        error = errors.from_wire(
            message.code,
            message.text,
            story=tuple(message.story),
            retry_after_s=message.retry_after_s,
            outcome=message.outcome,
        )
        self._fail(entry, error, at)


def _of_output(letter: Letter) -> tuple[wire.Partial | wire.Final, wire.Frames]:
    message, body = letter
    assert not isinstance(message, wire.Error), "only outputs are fetched"
    return message, body


def _after(tries: int, error: errors.TensoryardError) -> errors.TensoryardError:
    """The same error, where it was not the first: its text says so."""
    if tries < 2:
        return error
    text = f"{error.text} (given up after {tries} tries)"
    retry_after_s = getattr(error, "retry_after_s", 0.0)
    return errors.from_wire(error.code, text, story=error.story, retry_after_s=retry_after_s, outcome=error.outcome)
