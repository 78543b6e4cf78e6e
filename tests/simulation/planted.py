"""Bugs to be found: each changes one rule of a production machine while it is planted.

They show that the simulation can see what it says it looks for (`test_planted.py`).
"""

from __future__ import annotations

import contextlib
from unittest.mock import patch

from tensoryard.client.conversation import Conversation as ClientConversation
from tensoryard.client.pending import PendingTable
from tensoryard.coordinator.dispatcher import Dispatcher
from tensoryard.coordinator.events import ForgetBody
from tensoryard.coordinator.records import RequestState
from tensoryard.coordinator.router import Router, _discard
from tensoryard.links.presence import Presence
from tensoryard.proto import wire
from tensoryard.shm import Pool
from tensoryard.shm.blocks import Block

_KEPT = []


def _accept_stale_answers(self, event):
    """Whoever answers a request that runs, it counts."""
    worker = self.workers.get(event.worker)
    if worker is not None:
        worker.progressed = self._at
    request = self.requests.get(event.request_id)
    if request is not None and request.state is RequestState.RUNNING:
        self._deliver(request, event)
    elif not event.code:
        self._effects.append(_discard(event))
    if worker is not None and (event.done or event.code):
        self._free_slot(worker, event.request_id, event.attempt)


def _drop_answers_after_a_restart(self, worker_name, request_id, attempt, seq, at, take=Router.take_last):
    """The last output of work that an earlier coordinator began reaches nobody."""
    request = take(self, worker_name, request_id, attempt, seq, at)
    if request is None or not request.adopted:
        return request
    self._effects.append(ForgetBody(request_id=request_id))
    return None


def _forget_what_is_under_way(self, welcome, _at, _hellos):
    """A new coordinator is not sent what the last one had."""
    self.welcome, self.refusal = welcome, None


def _keep_the_memory(self, request_id):
    """The memory of a request is not given back."""
    entry = self._entries.pop(request_id, None)
    if entry is not None:
        _KEPT.append(entry.body.loans)
    return entry


def _keep_the_body(self, effect, at, perform=Dispatcher._perform):
    """Bodies of requests that have ended stay in the coordinator."""
    if type(effect).__name__ != "ForgetBody":
        perform(self, effect, at)


def _lose_the_second_time(self, request, text, retry=Router._retry):
    """A request that loses its second worker is forgotten."""
    if request.losses == 1:
        self._end(request, "failed")
    else:
        retry(self, request, text)


def _never_mind_the_hello(self, link, frames, at, receive=Presence.receive):
    """A peer that is told to join again does not."""
    if wire.decode(self._decoder, frames[0]) != wire.Rejoin():
        receive(self, link, frames, at)


def _never_count_connections(self, at):
    """HELLO on another connection looks like the one before, said twice."""
    self._asked_at = at
    self.hellos += 1
    return [wire.encode(self._hello)]


def _keep_leases_of_the_dead(self, reader, leases):
    """What a reader that died had claimed stays claimed."""
    leases.enter_changes(self._blocks, reader)


#: Those that the project promises to find, then others.
PLANTED = {
    "a stale attempt's answer is accepted": (Router, "_on_output", _accept_stale_answers),
    "a leased block is freed": (Block, "is_free", property(lambda self: not self.holds and not self.pending)),
    "a terminal answer is dropped on restart": (Router, "take_last", _drop_answers_after_a_restart),
    "what is under way is not sent again": (ClientConversation, "welcomed", _forget_what_is_under_way),
    "a request's memory is not given back": (PendingTable, "settle", _keep_the_memory),
    "a body is kept": (Dispatcher, "_perform", _keep_the_body),
    "a second loss is forgotten": (Router, "_retry", _lose_the_second_time),
    "a peer does not join again": (Presence, "receive", _never_mind_the_hello),
    "the dead keep their leases": (Pool, "reader_gone", _keep_leases_of_the_dead),
    "a broken connection passes unnoticed": (Presence, "opening", _never_count_connections),
}
THREE = tuple(PLANTED)[:3]
#: The seed at which each is seen first: `make simulate PLANTED=1 SEEDS=10000` says them.
FOUND_AT = {
    "a stale attempt's answer is accepted": 13,
    "a leased block is freed": 1,
    "a terminal answer is dropped on restart": 73,
    "what is under way is not sent again": 0,
    "a request's memory is not given back": 0,
    "a body is kept": 0,
    "a second loss is forgotten": 4,
    "a peer does not join again": 7,
    "the dead keep their leases": 12,
    "a broken connection passes unnoticed": 4730,
}


@contextlib.contextmanager
def planted(name):
    """While inside, production has this bug."""
    owner, attribute, wrong = PLANTED[name]
    with patch.object(owner, attribute, wrong):
        yield
