"""The coordinator's side of every dialogue: a pure machine between peers and the router.

Messages come in with their sender and time, `take_actions` says what is to be sent and watched. `router.py` owns every
decision about requests, `dispatcher.py` does what it says, `translation.py` knows both languages; `process.py` has the
sockets, the clock and the processes. Bodies and tensors are never opened here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .. import errors
from ..logs import logger
from ..proto import wire
from ..proto.status import ClusterStatus
from ..settings import Settings
from ..version import __version__
from . import adapters, translation
from . import events as ev
from .actions import Action, Watch
from .dispatcher import Dispatcher
from .records import Limits, Model
from .reports import model_statuses, take_loads
from .roster import Peer
from .waiting_room import Letter, WaitingRoom

log = logger(__name__)

#: What a client says of one request.
_OfRequest = wire.Submit | wire.Cancel | wire.Consumed
#: A peer's unreadable messages are answered and logged up to this many times, then only counted.
_COMPLAINTS_PER_PEER = 8


class Broker:
    """One coordinator's dialogues. Times, `at`, are monotonic seconds that never go back.

    `epoch` names this life of the coordinator, `host` is where it runs, `address` what its status tells. With
    `expects_fleet`, requests wait for the fleet's list of deployments, for at most `settle_s`.

    Whatever is wrong with a message is its sender's alone; any exception that leaves a method is a bug of ours, and
    this broker is not to be used any more.
    """

    def __init__(
        self,
        *,
        name: str,
        address: str,
        epoch: str,
        host: str,
        settings: Settings,
        at: float,
        expects_fleet: bool = False,
    ) -> None:
        self.name = name
        self.address = address
        self.epoch = epoch
        self.host = host
        self.settings = settings
        limits = Limits(
            max_in_flight_per_client=settings.max_in_flight,
            max_bytes_per_client=settings.max_in_flight_bytes,
            max_kept_bytes=settings.max_kept_bytes,
        )
        self._dispatcher = Dispatcher(limits)
        self._handle = self._dispatcher.handle
        self._send = self._dispatcher.send
        self.router = self._dispatcher.router
        self.roster = self._dispatcher.roster
        self.bodies = self._dispatcher.bodies
        #: A shutdown that a client asked for is complete.
        self.finished = False
        #: Bytes of bodies, of requests and of outputs, that came through here.
        self.carried_bytes = 0
        self._started = at
        self._next_beat = at
        #: Until the fleet has spoken; None from then on.
        self._room: WaitingRoom | None = None
        #: From then on, until each model that is to be served has a worker: requests for names that nobody serves yet.
        self._strangers: WaitingRoom | None = None
        #: Wishes about adapters that came before either was over.
        self._early: list[tuple[bytes, wire.Lora]] = []
        if expects_fleet:
            self._room = self._new_room(at)
        self._leaving_at: float | None = None

    # -- what happens -------------------------------------------------------------------------------------------------

    def message(self, identity: bytes, frames: wire.Frames, at: float) -> None:
        """A message has come. `identity`: the link's name for its sender, known or not."""
        submission = 0
        try:
            message = wire.decode(wire.TO_COORDINATOR, frames[0] if frames else b"")
            submission = message.submission if isinstance(message, wire.Submit) else 0
            if not isinstance(message, wire.Outputs):  # those are refused one by one
                self._check_size(message, frames)
            self._serve(identity, message, frames[1:], at)
        except errors.TensoryardError as error:
            self._complain(identity, error, submission)

    def peer_gone(self, identity: bytes, reason: str, at: float) -> None:
        """A peer died, or cannot be reached. All that it sent before is to be passed on first: last words count."""
        peer = self.roster.get(identity)
        if peer is not None:
            self._lose(peer, reason, at)

    def tick(self, at: float) -> None:
        """Time has passed. Due at `next_tick`; earlier and later are harmless."""
        late_s = at - self._next_beat
        if late_s > self.settings.heartbeat_s:  # this process was stopped: what peers sent meanwhile is yet to be read
            self._excuse(late_s, at)
        due = self.router.next_deadline()
        if due is not None and due <= at:
            self._handle(ev.Ticked(at=at))
        for room in self._rooms():
            self._look_into(room, at)
        if at >= self._next_beat:
            self._beat(at)

    def next_tick(self) -> float:
        """When `tick` is due."""
        due = [self._next_beat]
        if (deadline := self.router.next_deadline()) is not None:
            due.append(deadline)
        due += [room.next_deadline() for room in self._rooms()]
        return min(due)

    def goodbye(self) -> None:
        """The coordinator leaves: tell everybody."""
        for peer in self.roster.all():
            self._send(peer.identity, wire.Disconnect())

    def take_actions(self) -> list[Action]:
        """What is to be done since it was last asked, in order."""
        return self._dispatcher.take_actions()

    def knows(self, identity: bytes) -> bool:
        """Whether this is a peer, rather than a stranger or one that was given up."""
        return self.roster.get(identity) is not None

    # -- time ---------------------------------------------------------------------------------------------------------

    def _excuse(self, late_s: float, at: float) -> None:
        """For so long nobody could be heard: neither that a peer lives, nor that work moves, nor what is served."""
        self.roster.excuse(late_s, at)
        self._handle(ev.TimeLost(at=at, seconds=late_s))
        for room in self._rooms():
            room.open_at += late_s

    def _beat(self, at: float) -> None:
        self._next_beat = at + self.settings.heartbeat_s
        self._handle(ev.Ticked(at=at))
        for peer in self.roster.silent_since(at - self.settings.liveness_s):
            self._lose(peer, f"was silent for {self.settings.liveness_s} s", at)
        for peer in self.roster.silent_since(at - 2 * self.settings.heartbeat_s):
            if peer.unheard_bytes > self.settings.peer_backlog_bytes:
                self._lose(peer, f"does not read: {peer.unheard_bytes} bytes wait for it (peer_backlog_bytes)", at)
        for peer in self.roster.all():
            self._send(peer.identity, wire.Heartbeat())
        if fleets := [fleet for fleet in self.roster.all("fleet") if "loads" in fleet.features]:
            loads = take_loads(self.router)
            for fleet in fleets:
                self._send(fleet.identity, loads)
        self._leave_when_empty(at)

    def _leave_when_empty(self, at: float) -> None:
        """During a shutdown: go when no worker and no fleet is left, or when they take too long."""
        if self._leaving_at is not None:
            busy = self.roster.count("worker") + self.roster.count("fleet")
            self.finished = self.finished or not busy or at > self._leaving_at + self.settings.drain_s

    # -- messages in --------------------------------------------------------------------------------------------------

    def _check_size(self, message: wire.ToCoordinator, frames: wire.Frames) -> int:
        """Bytes of a message that is not too large."""
        size = wire.size_of(frames)
        if size > self.settings.max_message_bytes or len(frames) > wire.MAX_FRAMES:
            raise errors.MessageTooLarge(
                f"a message of {size} bytes in {len(frames)} frames is over the limits of "
                f"{self.settings.max_message_bytes} bytes (max_message_bytes) and {wire.MAX_FRAMES} frames",
                request_id=message.request_id if isinstance(message, wire.Submit) else None,
            )
        return size

    def _complain(self, identity: bytes, error: errors.TensoryardError, submission: int) -> None:
        complaints = self.roster.complain(identity)
        if error.request_id is not None and self.knows(identity):
            self._end(identity, error.request_id, submission, error)
        elif complaints <= _COMPLAINTS_PER_PEER:
            log.warning("a message of peer %s was refused: %s", identity.hex()[:12], error.text)
            self._send(identity, wire.Refused(code=error.code, text=error.text))

    def _end(self, identity: bytes, request_id: str, submission: int, error: errors.TensoryardError) -> None:
        """End a request that the router has not seen."""
        self.router.count(error.outcome)
        self._send(identity, translation.error_of(error, request_id, submission))

    def _serve(self, identity: bytes, message: wire.ToCoordinator, body: wire.Frames, at: float) -> None:
        if isinstance(message, wire.Hello):
            self._welcome(identity, message, at)
            return
        peer = self.roster.get(identity)
        if peer is None:
            if not isinstance(message, wire.Disconnect):
                self._send(identity, wire.Rejoin())
            return
        peer.hear(at)
        match message:
            case wire.Heartbeat():
                if peer.role == "worker":
                    beat = ev.WorkerBeat(at=at, worker=peer.name, progress=message.progress, busy=message.busy)
                    self._handle(beat)
            case wire.Disconnect():
                self._lose(peer, "left", at)
            case _:
                _SERVES[peer.role](self, peer, message, body, at)

    def _welcome(self, identity: bytes, hello: wire.Hello, at: float) -> None:
        self._check_version(hello)
        if hello.role not in _SERVES:
            raise errors.ProtocolError(f"a peer is one of {sorted(_SERVES)}, not {hello.role!r}")
        known = self.roster.get(identity)
        if known is not None and (known.role, known.connection) == (hello.role, hello.connection):  # asked twice
            known.hear(at)
            self._send_welcome(known)
            return
        if hello.role == "client" and self.roster.count("client") >= self.settings.max_clients:
            raise errors.Overloaded(
                f"{self.settings.max_clients} clients are connected, the most that may (max_clients); let several "
                "threads share one client, and close those that are not used",
                retry_after_s=1.0,
            )
        for old in self.roster.replaced_by(identity, hello):
            if (old.role, old.name) == ("worker", hello.name) and hello.role == "worker":
                self._dispatcher.forget(old)  # the router hears of it by the newcomer
            else:
                self._lose(old, "joined anew", at)
        peer = self.roster.join(identity, hello, at)
        self._dispatcher.actions.append(
            Watch(identity, pid=hello.pid, host=hello.host, pid_namespace=hello.pid_namespace)
        )
        if hello.role == "worker":
            self._handle(ev.WorkerJoined(at=at, worker=peer.name, host=peer.host))
        self._send_welcome(peer)

    def _check_version(self, hello: wire.Hello) -> None:
        """VersionMismatch, with both packages' versions too. A worker's fleet hears of it: it started that worker."""
        peer = f"{hello.role} {hello.name!r}" + (f" ({hello.software})" if hello.software else "")
        try:
            wire.check_version(hello.version, peer, own=f"this side (tensoryard {__version__})")
        except errors.VersionMismatch as error:
            for fleet in self.roster.all("fleet") if hello.role == "worker" else ():
                notice = wire.WorkerNotice(worker=hello.name, deployment="", what="start_failed", text=error.text)
                self._send(fleet.identity, notice)
            raise

    def _send_welcome(self, peer: Peer) -> None:
        welcome = wire.Welcome(
            version=wire.WIRE_VERSION,
            epoch=self.epoch,
            host=self.host,
            heartbeat_s=self.settings.heartbeat_s,
            liveness_s=self.settings.liveness_s,
            max_frame_bytes=self.settings.max_frame_bytes,
            max_message_bytes=self.settings.max_message_bytes,
            max_in_flight=self.settings.max_in_flight,
            features=wire.FEATURES,
            max_in_flight_bytes=self.settings.max_in_flight_bytes,
            cluster=self.name,
        )
        self._send(peer.identity, welcome)

    def _serve_client(self, peer: Peer, message: Any, body: wire.Frames, at: float) -> None:
        match message:
            case wire.Submit() if self._room is None and self._strangers is None:
                self.carried_bytes += self._dispatcher.submit(peer.name, message, body, at)
            case wire.Submit() | wire.Cancel() | wire.Consumed():
                if (room := self._room_for(peer, message)) is not None:
                    self._serve_waiting(room, peer, message, body, at)
                else:
                    self._serve_request(peer, message, body, at)
            case wire.Lora():
                self._serve_lora(peer, message, at)
            case wire.AskStatus():
                self._report(peer, message.query, self.status(at))
            case wire.AskStory():
                self._report(peer, message.query, self.router.story(message.request_id))
            case wire.Shutdown():
                self._begin_shutdown(at)
            case _:
                raise errors.ProtocolError(f"a client does not send {type(message).__name__}")

    def _serve_request(self, peer: Peer, message: _OfRequest, body: wire.Frames, at: float) -> None:
        match message:
            case wire.Submit():
                self.carried_bytes += self._dispatcher.submit(peer.name, message, body, at)
            case wire.Cancel(request_id=request_id):
                self._handle(ev.CancelAsked(at=at, client=peer.name, request_id=request_id))
            case wire.Consumed(request_id=request_id, parts=parts):
                self._handle(ev.PartsConsumed(at=at, client=peer.name, request_id=request_id, parts=parts))

    def _serve_lora(self, peer: Peer, message: wire.Lora, at: float) -> None:
        """A wish about an adapter: at once, or when it is known which models and adapters there are."""
        if not self._rooms():
            self._handle(translation.adapter_asked(peer.name, message, at))
        elif len(self._early) < adapters.MAX_ASKED:
            self._early.append((peer.identity, message))
        else:
            raise errors.Overloaded("too many wait for this cluster to come up; try again in a second")

    def _serve_waiting(self, room: WaitingRoom, peer: Peer, message: _OfRequest, body: wire.Frames, at: float) -> None:
        """The same, while the fleet has not spoken."""
        match message:
            case wire.Submit():
                room.add(peer.identity, message, body, at)
            case wire.Cancel(request_id=request_id):
                if letter := room.cancel(peer.identity, request_id):
                    cancelled = errors.RequestCancelled("cancelled by its client")
                    self._end(peer.identity, request_id, letter.message.submission, cancelled)
            case wire.Consumed():
                room.consume(peer.identity, message)

    def _serve_worker(self, peer: Peer, message: Any, body: wire.Frames, at: float) -> None:
        match message:
            case wire.Outputs():
                self._take_outputs(peer, message, body, at)
            case wire.Ready():
                peer.features = frozenset(message.features)
                self._handle(translation.worker_readied(peer.name, message, at))
                self._greet_strangers(at)
            case wire.LoraDone():
                self._handle(translation.adapter_done(peer.name, message, at))
            case wire.DrainWorker():
                self._handle(ev.DrainAsked(at=at, worker=peer.name))
            case wire.StartFailed(deployment=deployment, text=text):
                self._handle(ev.WorkerStartFailed(at=at, worker=peer.name, deployment=deployment, text=text))
            case _:
                raise errors.ProtocolError(f"a worker does not send {type(message).__name__}")

    def _take_outputs(self, peer: Peer, message: wire.Outputs, body: wire.Frames, at: float) -> None:
        """Split what one step produced. Where that is impossible, each of its requests still gets an answer."""
        outputs = message.outputs
        try:
            self.carried_bytes += self._check_size(message, [b"", *body])
            parts = wire.split_frames(outputs, body)
        except errors.TensoryardError as error:
            log.warning("outputs of worker %s cannot be passed on: %s", peer.name, error.text)
            outputs = translation.as_errors(outputs, error)
            parts = [[] for _ in outputs]
        self._dispatcher.answer(peer.name, outputs, parts, at)

    def _serve_fleet(self, peer: Peer, message: Any, _body: wire.Frames, at: float) -> None:
        match message:
            case wire.Deployments():
                self._handle(translation.deployments_changed(message, at))
                self._dispatcher.tell_ready(peer)
                self._open_doors(at)
            case wire.DrainWorker():
                self._handle(ev.DrainAsked(at=at, worker=message.worker))
            case _:
                raise errors.ProtocolError(f"a fleet does not send {type(message).__name__}")

    # -- until it is known what the cluster serves --------------------------------------------------------------------

    def _new_room(self, at: float) -> WaitingRoom:
        settings = self.settings
        return WaitingRoom(
            open_at=at + settings.settle_s, max_bytes=settings.max_kept_bytes, max_per_client=settings.max_in_flight
        )

    def _rooms(self) -> list[WaitingRoom]:
        """Where requests wait now: nowhere, before long."""
        return [room for room in (self._room, self._strangers) if room is not None]

    def _room_for(self, peer: Peer, message: _OfRequest) -> WaitingRoom | None:
        """Where a request, or word about one that waits, belongs; None when it can be served."""
        if self._room is not None or self._strangers is None:
            return self._room
        if isinstance(message, wire.Submit):
            return self._strangers if self._is_to_come(message) else None
        return self._strangers if self._strangers.holds(peer.identity, message.request_id) else None

    def _is_to_come(self, message: wire.Submit) -> bool:
        """The name may be that of an adapter, which only a worker that is still to come has told to a coordinator."""
        comes = any(model.task == message.task and _comes_up(model) for model in self.router.models.values())
        return comes and self.router.served(message.model) is None

    def _look_into(self, room: WaitingRoom, at: float) -> None:
        for letter in room.expired(at):
            expired = errors.DeadlineExpired("its deadline passed while the cluster came up")
            self._end(letter.identity, letter.message.request_id, letter.message.submission, expired)
        if at >= room.open_at:
            if room is self._room:
                self._open_doors(at)
            else:
                self._strangers = None
                self._admit(room.empty(at), at)

    def _open_doors(self, at: float) -> None:
        """What the cluster serves is known, or will not become known soon: take up what has waited."""
        room, self._room = self._room, None
        if room is not None:
            self._strangers = self._new_room(at)
            self._admit(room.empty(at), at)
            self._greet_strangers(at)

    def _greet_strangers(self, at: float) -> None:
        """A model has a worker: the names of its adapters are known now."""
        room = self._strangers
        if room is None:
            return
        if not any(map(_comes_up, self.router.models.values())):
            self._strangers = None
        self._admit(room.empty(at, lambda letter: self._strangers is None or not self._is_to_come(letter.message)), at)

    def _admit(self, letters: list[Letter], at: float) -> None:
        for letter in letters:
            peer = self.roster.get(letter.identity)
            assert peer is not None, "requests of clients that are gone do not wait"
            self._serve_client(peer, letter.message, letter.body, at)
        if not self._rooms():
            early, self._early = self._early, []
            for identity, message in early:
                if (peer := self.roster.get(identity)) is not None:
                    self._serve_lora(peer, message, at)

    def _begin_shutdown(self, at: float) -> None:
        """Tell the fleet, or where there is none the workers, to finish; `finished` when they have left."""
        log.info("cluster %s is asked to shut down", self.name)
        if self._leaving_at is None:
            self._leaving_at = at
        self._handle(ev.ShutdownAsked(at=at))
        fleets = self.roster.all("fleet")
        for fleet in fleets:
            self._send(fleet.identity, wire.Shutdown())
        if not fleets:
            for worker in self.roster.all("worker"):
                self._handle(ev.DrainAsked(at=at, worker=worker.name))

    def _lose(self, peer: Peer, reason: str, at: float) -> None:
        for room in self._rooms():
            room.leave(peer.identity)
        self._dispatcher.lose(peer, reason, at)

    def _report(self, peer: Peer, query: int, answer: Any) -> None:
        self._send(peer.identity, wire.Report(query=query), [msgspec.msgpack.encode(answer)])

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self, at: float) -> ClusterStatus:
        """The cluster at this moment."""
        return ClusterStatus(
            name=self.name,
            address=self.address,
            epoch=self.epoch,
            version=__version__,
            uptime_s=at - self._started,
            accepting=self.router.accepting,
            clients=self.roster.count("client"),
            live_requests=len(self.router.requests),
            outcomes=dict(self.router.outcomes),
            models=model_statuses(self.router, self.roster, at),
            kept_bytes=self.router.kept_bytes,
            waiting_for_fleet=sum(map(len, self._rooms())),
            carried_bytes=self.carried_bytes,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance, the router's included; O(everything), for tests."""
        self._dispatcher.check_invariants()


def _comes_up(model: Model) -> bool:
    """It is to be served, and may be, and no worker has said so yet."""
    return model.expected and model.replicas > 0 and not model.workers and not model.unhealthy


_SERVES = {
    "client": Broker._serve_client,  # noqa: SLF001 - this module's own class
    "worker": Broker._serve_worker,  # noqa: SLF001
    "fleet": Broker._serve_fleet,  # noqa: SLF001
}
