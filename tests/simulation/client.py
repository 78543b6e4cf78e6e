"""A client's process and its callers: the shell around `client/conversation.py`, as `client/connection.py` is.

Callers ask what the plan says, keep answers for a while and look at them again, cancel, ask again.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from tensoryard import errors
from tensoryard.client.conversation import Conversation
from tensoryard.client.pending import Pending
from tensoryard.client.reading import Reading
from tensoryard.client.reply import Reply
from tensoryard.client.retry import Retry
from tensoryard.client.wish import Wish
from tensoryard.proto import RequestID, wire
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.outputs import task_types

from .checks import Asked, check
from .plan import EMBED, SPEAK, THRESHOLD_BYTES
from .processes import Peer
from .requests import request_of
from .world import Violation

#: How long a caller that is told to try again waits at least.
_RETRY_S = 0.3
#: How often `connect` looks whether a coordinator has answered.
_CONNECT_S = 0.3
#: What a patient client's requests are tried again by.
_PATIENCE = Retry(runs=3, first_s=0.1, longest_s=4.0, total_s=40.0)


class _Model(NamedTuple):
    """What a wish needs to know of its request."""

    model: str


class _Reply(Reply):
    """A reply that tells when it is ended twice, or goes on after its end."""

    def __init__(self, asked, cancel, **how):
        super().__init__(RequestID(asked.request_id), cancel, **how)
        self._asked = asked

    def add_output(self, output, ledger, *, done, size_bytes=0):
        if self.done:
            raise Violation("an output came after the end", self._asked.request_id)
        super().add_output(output, ledger, done=done, size_bytes=size_bytes)

    def fail(self, error):
        if self.done:
            raise Violation(f"a second end: {error!r}", self._asked.request_id)
        super().fail(error)


class Client(Peer):
    """One life of a client."""

    role = "client"
    decoder = wire.TO_CLIENT

    def __init__(self, site, number, life):
        plan = site.plan
        super().__init__(site, f"client-{number}.{life}", "h2" if plan.far[number] else "h1", seen=plan.seen[number])
        self.number = number
        self.features = wire.FEATURES if plan.modern[number] else []
        self._alarm_at = None
        self._pool = None
        self.reader = site.memory.make_reader(self)
        self.conversation = Conversation(
            address="sim",
            reconnect_s=plan.settings.reconnect_s,
            post=self.post,
            decode=self._decode,
            wake=self._set_alarm,
            chance=self.world.rng.random,
            first_submission=1 + self.world.rng.getrandbits(52),
        )
        #: Results that were gone when they came.
        self.results_lost = 0
        #: It leaves, or has left, of its own accord.
        self.closing = False
        self.join()

    @property
    def pool(self):
        """Made when it is first needed."""
        if self._pool is None:
            plan = self.site.plan
            budget = plan.client_pool_segments * 3 * 4096
            self._pool = self.site.memory.make_pool(self, budget_bytes=budget, settings=plan.settings)
        return self._pool

    # -- the callers --------------------------------------------------------------------------------------------------

    def ask(self, ask, request_id, number, retries):
        """A caller makes a request; before the first welcome it still waits for `connect`."""
        if self.conversation.welcome is None:
            self.later(_CONNECT_S, self.ask, ask, request_id, number, retries)
            return
        asked = Asked(self, ask, request_id, number, retries)
        self.site.ledger.add(asked)
        if ask.cancel_s is not None:
            self.later(ask.cancel_s, self._cancel, asked)
        self._go_on(asked, self._wish(asked))

    def _wish(self, asked):
        ask = asked.ask
        serves = self.site.plan.serves[ask.deployment].deployment
        task = serves.task if ask.kind != "wrong_task" else {EMBED: SPEAK, SPEAK: EMBED}[serves.task]
        model = serves.model if ask.kind != "stranger" else "nobody's"
        return Wish(
            request=_Model(model),
            task=task,
            deadline_s=ask.deadline_s,
            priority=ask.priority,
            retry=_PATIENCE if ask.patient else None,
            began=self.clock(),
        )

    def _go_on(self, asked, wish):
        """As `Connection.submit` does it: wait while it would be refused, then send."""
        if asked.abandoned:
            return
        try:
            welcome = self.conversation.require_open(self.presence.silent_s)
            wait_s = wish.wait_s(self.conversation, self.clock())
            if wait_s > 0:
                asked.held_back = True
                self.later(wait_s, self._go_on, asked, wish)
                return
            asked.held_back = False
            if wish.refusal is not None:
                raise wish.refusal
            self._send(asked, wish, welcome)
        except errors.TensoryardError as error:
            asked.end(error)
            self._perhaps_again(asked, error)

    def _send(self, asked, wish, welcome):
        """As `Connection.send` does it."""
        ask = asked.ask
        local = welcome.host == self.host
        body = encode_body(
            request_of(ask, asked.request_id, asked.number, wish.request.model, wish.task, lambda: self.pool),
            place=self._place if local else None,
            out_of_band=not local,
            threshold_bytes=THRESHOLD_BYTES,
        )
        try:
            entry = self._entry(asked, body, wish)
            self.conversation.submit(entry, self.presence.silent_s)
        except BaseException:
            body.release()
            raise
        asked.begin(entry.reply)

    def _place(self, array):
        loan = self._pool.lend(array) if self._pool is not None else None
        return (loan, False) if loan is not None else (self.pool.place(array), True)

    def _entry(self, asked, body, wish):
        settings, now = self.site.plan.settings, self.clock()
        submit = wire.Submit(
            request_id=asked.request_id,
            task=wish.task.value,
            model=wish.request.model,
            priority=wish.priority,
            deadline_s=wish.left_s(),
            host=self.host if body.shared_bytes else "",
            shared_bytes=body.shared_bytes,
            window_parts=settings.stream_window_parts,
            window_bytes=settings.stream_window_bytes,
        )
        reply = _Reply(
            asked,
            lambda key: self.conversation.cancel(str(key)),
            consumed=lambda key, parts: self.conversation.consumed(str(key), parts),
            reading=Reading(parts=submit.window_parts, size_bytes=submit.window_bytes),
        )
        return Pending(
            reply=reply,
            submit=submit,
            body=body,
            output_type=task_types(wish.task).output,
            sent_at=now,
            deadline=now + submit.deadline_s if submit.deadline_s is not None else None,
            hellos=self.presence.hellos,
            retry=wish.retry,
        )

    def _cancel(self, asked):
        if asked.reply is not None and not asked.reply.done:
            asked.cancelled = True
            asked.reply.cancel()

    def ended(self, *, killed):
        super().ended(killed=killed)
        self.site.ledger.client_ended(self)

    def answered(self, asked, error):
        """A caller's request has ended."""
        self.later(asked.ask.hold_s, asked.let_go)
        if error is not None:
            self._perhaps_again(asked, error)

    def _perhaps_again(self, asked, error):
        if error.retryable and asked.retries and not self.closing:
            wait_s = max(getattr(error, "retry_after_s", 0.0), _RETRY_S)
            self.later(wait_s, self.ask, asked.ask, asked.request_id, asked.number, asked.retries - 1)

    def ask_status(self):
        """A caller wants to know how the cluster is."""
        numbers = []

        def answered(_body):
            self.conversation.forget(numbers[0])

        if self.conversation.welcome is not None:
            with contextlib.suppress(errors.NotConnected):
                numbers.append(self.conversation.ask(wire.AskStatus, answered, self.presence.silent_s))

    def shut_down(self):
        """A caller wants the whole cluster to end; whether there was one to tell."""
        if self.conversation.welcome is not None:
            self.post(wire.Shutdown())
        return self.conversation.welcome is not None

    def close(self):
        """The program closes it."""
        self.closing = True
        self.conversation.close()
        self._flush()
        self.connection.send([wire.encode(wire.Disconnect())])
        self.conversation.ended()
        self.reader.close()
        self.kill("ended")

    def check_books(self):
        """What is under way is what callers wait for."""
        if self._pool is not None:
            check(self._pool, f"the pool of {self.name}")
        under_way = {entry.submit.request_id for entry in self.conversation.pending.all()}
        mine = self.site.ledger.sent_by(self)
        if under_way != mine:
            raise Violation(f"{self.name} has {under_way ^ mine} under way, or not", min(under_way ^ mine))

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, welcome):
        self.conversation.welcomed(welcome, self.clock(), self.presence.hellos)

    def on_message(self, message, body):
        self.conversation.message(message, body, self.clock())

    def on_refused(self, error):
        self.conversation.refused(error)

    def on_beat(self, silent_s):
        self.reader.housekeep()
        self.conversation.beat(silent_s, self.clock())
        return wire.Heartbeat()

    def _set_alarm(self, at):
        self._alarm_at = at
        self.later(max(at - self.clock(), 0.0), self._ring, at)

    def _ring(self, at):
        if at == self._alarm_at:
            self._alarm_at = None
            self.conversation.due(self.clock(), self.presence.silent_s)

    def _decode(self, body, type_):
        try:
            return decode_body(body, type_, resolve=self.reader.claim)
        except (errors.StaleHandle, errors.SegmentGone):
            self.results_lost += 1
            raise
