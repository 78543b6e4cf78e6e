"""Feeds the router and does what it says: bodies are kept and passed on, messages addressed, peers forgotten.

The outgoing half of `broker.py`, which makes events of what peers say; what is to be done outside collects as actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from .. import errors
from ..logs import logger
from ..proto import wire
from . import events as ev
from . import translation
from .actions import Action, Forget, Send
from .records import Limits, Request, WorkerState
from .roster import Peer, Roster
from .router import Router

log = logger(__name__)


class Dispatcher:
    """The router, the connected peers, and the bodies of live requests."""

    def __init__(self, limits: Limits) -> None:
        self.router = Router(limits)
        self.roster = Roster()
        #: Body frames of live requests, kept for a retry.
        self.bodies: dict[str, wire.Frames] = {}
        #: To be done outside, in order.
        self.actions: list[Action] = []
        #: Outputs that go with the next message to their client, by its identity, with the frames of each.
        self._gathered: dict[bytes, list[translation.Answer]] = {}
        #: Events that came up while effects were performed.
        self._pending: deque[ev.Event] = deque()
        self._handling = False
        #: The envelope and the frames of the output being handled.
        self._output: tuple[wire.Output, wire.Frames] | None = None

    def handle(self, event: ev.Event) -> None:
        """Let the router decide and do what it says; events that come up meanwhile follow in turn."""
        if self._handling:
            self._pending.append(event)
            return
        self._handling = True
        try:
            for effect in self.router.handle(event):
                self._perform(effect, event.at)
            while self._pending:
                event = self._pending.popleft()
                for effect in self.router.handle(event):
                    self._perform(effect, event.at)
        except errors.TensoryardError as error:  # not a peer's fault, as whoever called might take it for
            raise RuntimeError("a decision of the router failed") from error
        self._handling = False

    def submit(self, client: str, message: wire.Submit, body: wire.Frames, at: float) -> int:
        """A request has come; returns the bytes of its body."""
        if not self.router.knows(client, message.request_id, message.submission):
            self.bodies[message.request_id] = body
        arrived = translation.request_arrived(client, message, body, at)
        self.handle(arrived)
        return arrived.body_bytes

    def answer(self, worker: str, outputs: Sequence[wire.Output], bodies: Sequence[wire.Frames], at: float) -> None:
        """What one step of a worker has brought; by far the most of it are next parts of streams."""
        take_part = self.router.take_part
        gathered: dict[str, list[translation.Answer]] = {}
        for output, frames in zip(outputs, bodies, strict=True):
            request = None
            if not output.done and not output.code:
                request = take_part(worker, output.request_id, output.attempt, output.seq, at)
            if request is None:
                self._take_other(worker, output, frames, at)
                gathered.clear()  # some may have left by that
                continue
            part = wire.Partial(
                request_id=output.request_id,
                seq=output.seq,
                ledger=output.ledger,
                submission=request.submission,
            )
            answers = gathered.get(request.client)
            if answers is not None:
                answers.append((part, frames))
            elif (answers := self._pass_on(request.client, part, frames)) is not None:
                gathered[request.client] = answers

    def _take_other(self, worker: str, output: wire.Output, frames: wire.Frames, at: float) -> None:
        """An output that is not the next part of a stream: a last one, an error, or one that nobody expects."""
        if output.done and not output.code:
            request = self.router.take_last(worker, output.request_id, output.attempt, output.seq, at)
            if request is not None:
                self._finish(request, output, frames, at)
                return
        self._output = (output, frames)
        self.handle(translation.output_arrived(worker, output, at))
        self._output = None

    def _finish(self, request: Request, output: wire.Output, frames: wire.Frames, at: float) -> None:
        """A request has ended with this output, which is passed on; what waited for its place may start."""
        last = wire.Final(
            request_id=request.request_id,
            seq=output.seq,
            ledger=output.ledger,
            submission=request.submission,
        )
        self._pass_on(request.client, last, frames)
        del self.bodies[request.request_id]
        if self.router.has_news:
            self.handle(ev.Ticked(at=at))

    def tell_ready(self, fleet: Peer) -> None:
        """A fleet may have missed which workers serve, while it was not connected or another coordinator ran."""
        for worker in self.router.workers.values():
            if worker.state is WorkerState.READY:
                ready = ev.NotifyFleet(worker=worker.name, deployment=worker.deployment, what="ready")
                self.send(fleet.identity, translation.notice(ready))

    def lose(self, peer: Peer, reason: str, at: float) -> None:
        """A peer is gone: forget it, then tell the router. Again is harmless."""
        if not self.forget(peer):
            return
        if peer.role == "worker":
            log.info("worker %s %s", peer.name, reason)
            self.handle(ev.WorkerGone(at=at, worker=peer.name, reason=reason))
        elif peer.role == "client":
            self.handle(ev.ClientGone(at=at, client=peer.name))

    def forget(self, peer: Peer) -> bool:
        """A peer is not served any more, which whoever asks tells the router; False when it was not before."""
        if not self.roster.leave(peer):
            return False
        self._flush(peer.identity)
        self.actions.append(Forget(peer.identity))
        return True

    def send(self, identity: bytes, message: wire.Message, body: wire.Frames | None = None) -> None:
        """Send to whoever has this identity."""
        if identity in self._gathered:
            self._flush(identity)
        if body and (peer := self.roster.get(identity)) is not None:
            peer.unheard_bytes += wire.size_of(body)
        self.actions.append(Send(identity, [wire.encode(message), *(body or ())]))

    def _perform(self, effect: ev.Effect, at: float) -> None:
        match effect:
            case ev.SendOutput():
                assert self._output is not None, "an output is passed on while it is being handled"
                output, frames = self._output
                self._pass_on(effect.client, translation.output_message(effect, output.ledger), frames)
            case ev.SendRequest():
                self._send_request(effect)
            case ev.ForgetBody():
                self.bodies.pop(effect.request_id, None)
            case ev.SendError():
                self._to("client", effect.client, translation.error_message(effect))
            case ev.SendConsumed():
                self._tell_consumed(effect)
            case ev.SendCancel() | ev.SendDiscard() | ev.SendDrain():
                self._to("worker", effect.worker, translation.word_to_worker(effect))
            case ev.SendAdapter() | ev.AnswerAdapter():
                self._tell_of_adapter(effect)
            case ev.NotifyFleet():
                self._dismiss_hung(effect, at)
                for fleet in self.roster.all("fleet"):
                    self.send(fleet.identity, translation.notice(effect))

    def _tell_consumed(self, effect: ev.SendConsumed) -> None:
        peer = self.roster.named("worker", effect.worker)
        if peer is not None and "windows" in peer.features:
            self.send(peer.identity, translation.word_to_worker(effect))

    def _tell_of_adapter(self, effect: ev.SendAdapter | ev.AnswerAdapter) -> None:
        if isinstance(effect, ev.SendAdapter):
            self._to("worker", effect.worker, translation.adapter_work(effect))
        else:
            body = [msgspec.msgpack.encode(translation.adapter_answer(effect))]
            self._to("client", effect.client, wire.Report(query=effect.query), body)

    def _send_request(self, effect: ev.SendRequest) -> None:
        """A request leaves; a worker on another host than its client is told how arrays get from one to the other."""
        worker = self.roster.named("worker", effect.worker)
        if worker is None:
            return
        request = self.router.requests[effect.request_id]
        client = self.roster.named("client", request.client)
        if client is None or client.host == worker.host:
            message = translation.request_message(effect)
        else:
            message = translation.request_message(
                effect, reader_host=client.host, porter=request.porter, uses=request.uses
            )
        self.send(worker.identity, message, self.bodies[effect.request_id])

    def _dismiss_hung(self, effect: ev.NotifyFleet, at: float) -> None:
        """A worker that hung and comes to itself again must join anew: the router has forgotten it."""
        peer = self.roster.named("worker", effect.worker)
        if effect.what == "hung" and peer is not None:
            self.lose(peer, "hung", at)

    def _pass_on(
        self, client: str, message: wire.Partial | wire.Final, frames: wire.Frames
    ) -> list[translation.Answer] | None:
        """An output leaves for its client; returns those that it leaves with, if it may take more along."""
        peer = self.roster.named("client", client)
        if peer is None:
            return None
        if "answers" not in peer.features:
            self.send(peer.identity, message, frames)
            return None
        gathered = self._gathered.get(peer.identity)
        if gathered is None:
            gathered = self._gathered[peer.identity] = []
        gathered.append((message, frames))
        return gathered

    def take_actions(self) -> list[Action]:
        """What is to be done since it was last asked, in order; of each peer, that is, what it is sent."""
        for identity in list(self._gathered):
            self._flush(identity)
        actions, self.actions = self.actions, []
        return actions

    def _flush(self, identity: bytes) -> None:
        """What was gathered for a client leaves, in messages within the limits: all of it came in such ones."""
        gathered = self._gathered.pop(identity, None)
        if gathered is None:
            return
        if len(gathered) == 1:
            self.send(identity, *gathered[0])
            return
        for answers, frames in translation.in_messages(gathered):
            self.send(identity, answers, frames)

    def _to(self, role: str, name: str, message: wire.Message, body: wire.Frames | None = None) -> None:
        peer = self.roster.named(role, name)
        if peer is not None:
            self.send(peer.identity, message, body)

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance, the router's included; O(everything), for tests."""
        self.router.check_invariants()
        assert not self._pending, "an event was not handled"
        assert self.bodies.keys() == self.router.requests.keys(), "the bodies kept are not those of the live requests"
        clients = {peer.name for peer in self.roster.all("client")}
        assert self.router.clients.keys() <= clients, "a client that is gone has live requests"
        workers = {peer.name for peer in self.roster.all("worker")}
        assert self.router.workers.keys() <= workers, "a worker that is gone is on the router's books"
