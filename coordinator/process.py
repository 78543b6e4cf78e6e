"""The coordinator's process: receives, decodes, lets the router decide, and does what it says.

One thread owns the link, the clock, the bodies of live requests and the pidfds; `router.py` owns every decision about
requests, `roster.py` knows which peers there are. Bodies and tensors are never opened here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from .. import errors
from ..links import Frames, HubLink, make_hub
from ..proto import wire
from ..proto.status import ClusterStatus, ModelStatus, WorkerStatus
from ..settings import Settings
from ..shm import host_name
from ..version import __version__
from . import events as ev
from .connection import ConnectionFile
from .records import Limits
from .roster import Peer, Roster
from .router import Router
from .waiting_room import WaitingRoom

log = logging.getLogger(__name__)

#: Messages taken per turn before timers and dead processes are looked at again.
_MESSAGES_PER_TURN = 256
#: A peer's unreadable messages are answered and logged up to this many times, then only counted.
_COMPLAINTS_PER_PEER = 8
#: How long a flood of messages may keep us from seeing that a peer is gone.
_LAST_WORDS_S = 0.5
_UNREACHABLE = "cannot be reached, or does not read what it is sent"


class Coordinator:
    """One coordinator. `run` serves until `stop`, or until a shutdown that a client asked for is complete.

    `name` registers a connection file; `addresses` are bound besides the one that goes with the name. With
    `expects_fleet`, requests wait for the fleet's list of deployments, for at most `settle_s`.

    Peers may connect once it is made. Crash-only: whatever is wrong with a message is its sender's alone, but an error
    of our own ends `run` without a goodbye, as SIGKILL would, and peers wait for the next coordinator.
    """

    def __init__(
        self,
        *,
        name: str,
        addresses: Sequence[str] = (),
        settings: Settings | None = None,
        expects_fleet: bool = False,
    ) -> None:
        self.settings = settings or Settings()
        self.name = name
        self.epoch = secrets.token_hex(8)
        self.router = Router(Limits(max_in_flight_per_client=self.settings.max_in_flight))
        with contextlib.ExitStack() as undo:
            self._connection = ConnectionFile(name)
            undo.callback(self._connection.close)
            self._hub: HubLink = make_hub(
                [self._connection.hub_address, *addresses],
                max_frame_bytes=self.settings.max_frame_bytes,
                # A message a little over the limit is read, so that the request it names gets an error.
                max_message_bytes=self.settings.max_message_bytes + self.settings.max_frame_bytes,
                peer_backlog=self.settings.peer_backlog,
            )
            undo.callback(self._hub.close)
            self.addresses: list[str] = list(self._hub.addresses)
            #: Ends a wait of `run`; -1 once closed. The lock, which a signal handler may meet held by its own thread,
            #: keeps a late `stop` from writing to whatever has the number next.
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._stop_lock = threading.RLock()
            undo.callback(self._close_stop_fd)
            self._connection.publish(self.address, __version__)
            undo.pop_all()
        self._host = host_name()
        self._roster = Roster(self._host)
        self._poller = zmq.Poller()
        for pollable in self._hub.pollables:
            self._poller.register(pollable, zmq.POLLIN)
        self._poller.register(self._stop_fd, zmq.POLLIN)
        #: Body frames of live requests, kept for a retry.
        self._bodies: dict[str, Frames] = {}
        #: Events that came up while effects were performed.
        self._pending: deque[ev.Event] = deque()
        self._handling = False
        #: The frames and envelope of the output being handled.
        self._output: tuple[wire.Output, Frames] | None = None
        self._started = time.monotonic()
        self._next_beat = self._started
        #: Until the fleet has spoken; None from then on.
        self._room: WaitingRoom | None = None
        if expects_fleet:
            self._room = WaitingRoom(
                open_at=self._started + self.settings.settle_s,
                max_bytes=self.settings.max_message_bytes,
            )
        #: Peers to which something could not be sent.
        self._unreachable: list[Peer] = []
        #: Until when they, and those that died, may have last words in our queue.
        self._bury_by: float | None = None
        self._leaving_at: float | None = None
        self._stopped = False

    @property
    def address(self) -> str:
        """Where clients and workers connect."""
        return self.addresses[0]

    def run(self) -> None:
        """Serve. Ends after `stop`, from any thread or a signal handler."""
        log.info("coordinator %s of cluster %s listens on %s", self.epoch, self.name, ", ".join(self.addresses))
        try:
            while not self._stopped:
                self._turn()
            self._say_goodbye()
        finally:
            self._close()

    def stop(self) -> None:
        """End `run` soon; harmless when it has ended."""
        with self._stop_lock:
            if self._stop_fd >= 0:
                os.eventfd_write(self._stop_fd, 1)

    # -- one turn of the loop -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        ready = dict(self._poller.poll(self._sleep_ms()))
        died = self._roster.ended(ready)  # now: what messages bring about may give these numbers to others
        drained = self._take_messages()
        if died or self._unreachable:
            self._bury_by = self._bury_by or time.monotonic() + _LAST_WORDS_S
            if drained or time.monotonic() > self._bury_by:
                self._bury(died)
        if self._stop_fd in ready:
            self._stopped = True
        self._timers(time.monotonic())

    def _take_messages(self) -> bool:
        """Serve some messages; True when none is left."""
        for _ in range(_MESSAGES_PER_TURN):
            received = self._hub.receive()
            if received is None:
                return True
            identity, frames = received
            if frames is None:
                self._connection_ended(identity)
            else:
                self._receive(identity, frames)
        return False

    def _connection_ended(self, identity: bytes) -> None:
        """The link says so, after all that came before: the peer has died, or closed, or was cut off by the link."""
        peer = self._roster.get(identity)
        if peer is not None:
            self._lose(peer, _UNREACHABLE if peer in self._unreachable else "ended without a goodbye")

    def _bury(self, died: list[Peer]) -> None:
        """Peers that died or cannot be reached, once everything they sent before has been served: last words count."""
        unreachable, self._unreachable, self._bury_by = self._unreachable, [], None
        for peer in died:
            self._lose(peer, "died")
        for peer in unreachable:
            self._lose(peer, _UNREACHABLE)

    def _sleep_ms(self) -> int:
        if self._unreachable:
            return 0
        now = time.monotonic()
        wake = min(self._next_beat, self.router.next_deadline() or self._next_beat)
        return math.ceil(max(wake - now, 0) * 1000)

    def _timers(self, now: float) -> None:
        due = self.router.next_deadline()
        if due is not None and due <= now:
            self._handle(ev.Ticked(at=now))
        if now < self._next_beat:
            return
        late_s = now - self._next_beat
        if late_s > self.settings.heartbeat_s:  # this process was stopped: what peers sent meanwhile is yet to be read
            self._roster.excuse(late_s, now)
        self._next_beat = now + self.settings.heartbeat_s
        if self._room is not None and now >= self._room.open_at:
            self._open_doors(now)
        self._handle(ev.Ticked(at=now))
        for peer in self._roster.silent_since(now - self.settings.liveness_s):
            self._lose(peer, f"was silent for {self.settings.liveness_s} s")
        for peer in self._roster.all():
            self._send(peer, wire.Heartbeat())
        self._leave_when_empty(now)

    def _leave_when_empty(self, now: float) -> None:
        """During a shutdown: go when no worker and no fleet is left, or when they take too long."""
        if self._leaving_at is not None:
            busy = self._roster.count("worker") + self._roster.count("fleet")
            self._stopped = self._stopped or not busy or now > self._leaving_at + self.settings.drain_s

    # -- messages in --------------------------------------------------------------------------------------------------

    def _receive(self, identity: bytes, frames: Frames) -> None:
        """One message; whatever is wrong with it is its sender's alone."""
        try:
            message = wire.decode(wire.TO_COORDINATOR, frames[0] if frames else b"")
            if not isinstance(message, wire.Outputs):  # those are refused one by one
                self._check_size(message, frames)
            self._serve(identity, message, frames[1:])
        except errors.TensoryardError as error:
            self._complain(identity, error)

    def _check_size(self, message: wire.ToCoordinator, frames: Frames) -> None:
        size = sum(memoryview(frame).nbytes for frame in frames)
        if size > self.settings.max_message_bytes or len(frames) > wire.MAX_FRAMES:
            raise errors.MessageTooLarge(
                f"a message of {size} bytes in {len(frames)} frames is over the limits of "
                f"{self.settings.max_message_bytes} bytes (max_message_bytes) and {wire.MAX_FRAMES} frames",
                request_id=message.request_id if isinstance(message, wire.Submit) else None,
            )

    def _complain(self, identity: bytes, error: errors.TensoryardError) -> None:
        peer = self._roster.get(identity)
        complaints = self._roster.complain(identity)
        if error.request_id is not None and peer is not None:
            retry_after_s = getattr(error, "retry_after_s", 0.0)
            answer = wire.Error(
                request_id=error.request_id,
                code=error.code,
                text=error.text,
                retry_after_s=retry_after_s,
            )
            self._send(peer, answer)
        elif complaints <= _COMPLAINTS_PER_PEER:
            log.warning("a message of peer %s was refused: %s", identity.hex()[:12], error.text)
            self._hub.send(identity, [wire.encode(wire.Refused(code=error.code, text=error.text))])

    def _serve(self, identity: bytes, message: wire.ToCoordinator, body: Frames) -> None:
        now = time.monotonic()
        if isinstance(message, wire.Hello):
            self._welcome(identity, message, now)
            return
        peer = self._roster.get(identity)
        if peer is None:
            if not isinstance(message, wire.Disconnect):
                self._hub.send(identity, [wire.encode(wire.Rejoin())])
            return
        peer.seen = now
        match message:
            case wire.Heartbeat():
                if peer.role == "worker":
                    beat = ev.WorkerBeat(at=now, worker=peer.name, progress=message.progress, busy=message.busy)
                    self._handle(beat)
            case wire.Disconnect():
                self._lose(peer, "left")
            case _:
                _SERVES[peer.role](self, peer, message, body, now)

    def _welcome(self, identity: bytes, hello: wire.Hello, now: float) -> None:
        wire.check_version(hello.version, f"{hello.role} {hello.name!r}")
        if hello.role not in _SERVES:
            raise errors.ProtocolError(f"a peer is one of {sorted(_SERVES)}, not {hello.role!r}")
        known = self._roster.get(identity)
        if known is not None and known.role == hello.role:  # asked twice: nothing has changed
            known.seen = now
            self._send_welcome(known)
            return
        for old in self._roster.replaced_by(identity, hello):
            self._lose(old, "joined anew")
        peer, pidfd = self._roster.join(identity, hello, now)
        if pidfd is not None:
            self._poller.register(pidfd, zmq.POLLIN)
        if hello.role == "worker":
            self._handle(ev.WorkerJoined(at=now, worker=peer.name, host=peer.host))
        self._send_welcome(peer)

    def _send_welcome(self, peer: Peer) -> None:
        self._send(
            peer,
            wire.Welcome(
                version=wire.WIRE_VERSION,
                epoch=self.epoch,
                host=self._host,
                heartbeat_s=self.settings.heartbeat_s,
                liveness_s=self.settings.liveness_s,
                max_frame_bytes=self.settings.max_frame_bytes,
                max_message_bytes=self.settings.max_message_bytes,
                max_in_flight=self.settings.max_in_flight,
            ),
        )

    def _serve_client(self, peer: Peer, message: Any, body: Frames, now: float) -> None:
        if self._room is not None and isinstance(message, wire.Submit | wire.Cancel):
            self._room.add(peer.identity, message, body)
            return
        match message:
            case wire.Submit():
                self._submit(peer, message, body, now)
            case wire.Cancel():
                self._handle(ev.CancelAsked(at=now, client=peer.name, request_id=message.request_id))
            case wire.AskStatus():
                self._send(peer, wire.Report(query=message.query), [msgspec.msgpack.encode(self.status())])
            case wire.AskStory():
                story = self.router.story(message.request_id)
                self._send(peer, wire.Report(query=message.query), [msgspec.msgpack.encode(story)])
            case wire.Shutdown():
                self._begin_shutdown(now)
            case _:
                raise errors.ProtocolError(f"a client does not send {type(message).__name__}")

    def _submit(self, peer: Peer, message: wire.Submit, body: Frames, now: float) -> None:
        if message.request_id not in self.router.requests:
            self._bodies[message.request_id] = body
        self._handle(
            ev.RequestArrived(
                at=now,
                client=peer.name,
                request_id=message.request_id,
                task=message.task,
                model=message.model,
                priority=message.priority,
                deadline_s=message.deadline_s,
                host=message.host,
                shared_bytes=message.shared_bytes,
                body_bytes=sum(memoryview(frame).nbytes for frame in body),
            ),
        )

    def _serve_worker(self, peer: Peer, message: Any, body: Frames, now: float) -> None:
        match message:
            case wire.Outputs():
                self._take_outputs(peer, message, body, now)
            case wire.Ready():
                self._handle(
                    ev.WorkerReadied(
                        at=now,
                        worker=peer.name,
                        model=message.model,
                        task=message.task,
                        deployment=message.deployment,
                        credits=message.credits,
                        hang_limit_s=message.hang_limit_s,
                        max_queued=message.max_queued,
                        max_queued_bytes=message.max_queued_bytes,
                        running=tuple((entry.request_id, entry.attempt) for entry in message.running),
                    ),
                )
            case wire.DrainWorker():
                self._handle(ev.DrainAsked(at=now, worker=peer.name))
            case wire.StartFailed():
                failed = ev.WorkerStartFailed(
                    at=now, worker=peer.name, deployment=message.deployment, text=message.text
                )
                self._handle(failed)
            case _:
                raise errors.ProtocolError(f"a worker does not send {type(message).__name__}")

    def _take_outputs(self, peer: Peer, message: wire.Outputs, body: Frames, now: float) -> None:
        """Split what one step produced. Where that is impossible, each of its requests still gets an answer."""
        outputs = message.outputs
        try:
            self._check_size(message, [b"", *body])
            parts = wire.split_frames(outputs, body)
        except errors.TensoryardError as error:
            log.warning("outputs of worker %s cannot be passed on: %s", peer.name, error.text)
            replaced = {"done": False, "frames": 0, "code": error.code, "text": error.text}
            outputs = [msgspec.structs.replace(output, **replaced) for output in outputs]
            parts = [[] for _ in outputs]
        for output, frames in zip(outputs, parts, strict=True):
            self._answer(peer, output, frames, now)

    def _answer(self, peer: Peer, output: wire.Output, frames: Frames, now: float) -> None:
        self._output = (output, frames)
        self._handle(
            ev.OutputArrived(
                at=now,
                worker=peer.name,
                request_id=output.request_id,
                attempt=output.attempt,
                seq=output.seq,
                done=output.done,
                code=output.code,
                text=output.text,
            ),
        )
        self._output = None

    def _serve_fleet(self, _peer: Peer, message: Any, _body: Frames, now: float) -> None:
        match message:
            case wire.Deployments():
                expected = tuple(
                    ev.DeploymentExpected(**{name: getattr(entry, name) for name in entry.__struct_fields__})
                    for entry in message.deployments
                )
                self._handle(ev.DeploymentsChanged(at=now, deployments=expected))
                self._open_doors(now)
            case wire.DrainWorker():
                self._handle(ev.DrainAsked(at=now, worker=message.worker))
            case _:
                raise errors.ProtocolError(f"a fleet does not send {type(message).__name__}")

    def _open_doors(self, now: float) -> None:
        """What the cluster serves is known, or will not become known soon: take up what has waited."""
        room, self._room = self._room, None
        for identity, message, body in room.empty() if room is not None else ():
            peer = self._roster.get(identity)
            if peer is not None:
                self._serve_client(peer, message, body, now)

    def _begin_shutdown(self, now: float) -> None:
        """Tell the fleet, or where there is none the workers, to finish; the loop ends when they have left."""
        log.info("cluster %s is asked to shut down", self.name)
        self._leaving_at = self._leaving_at or now
        self._handle(ev.ShutdownAsked(at=now))
        fleets = self._roster.all("fleet")
        for fleet in fleets:
            self._send(fleet, wire.Shutdown())
        if not fleets:
            for worker in self._roster.all("worker"):
                self._handle(ev.DrainAsked(at=now, worker=worker.name))

    # -- decisions out ------------------------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        """Let the router decide and do what it says; events that come up meanwhile follow in turn."""
        self._pending.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._pending:
                for effect in self.router.handle(self._pending.popleft()):
                    self._perform(effect)
        except errors.TensoryardError as error:  # not the sender's fault, as `_receive` would take it for
            raise RuntimeError("a decision of the router failed") from error
        self._handling = False

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.SendOutput():
                self._pass_on(effect)
            case ev.SendRequest():
                dispatch = wire.Dispatch(
                    request_id=effect.request_id, attempt=effect.attempt, deadline_s=effect.deadline_s
                )
                self._to("worker", effect.worker, dispatch, self._bodies[effect.request_id])
            case ev.ForgetBody():
                self._bodies.pop(effect.request_id, None)
            case ev.SendError():
                error = wire.Error(
                    request_id=effect.request_id,
                    code=effect.code,
                    text=effect.text,
                    retry_after_s=effect.retry_after_s,
                    story=list(effect.story),
                )
                self._to("client", effect.client, error)
            case ev.SendDiscard():
                discard = wire.Discard(request_id=effect.request_id, attempt=effect.attempt, seq=effect.seq)
                self._to("worker", effect.worker, discard)
            case ev.SendCancel():
                cancel = wire.CancelWork(request_id=effect.request_id, attempt=effect.attempt)
                self._to("worker", effect.worker, cancel)
            case ev.SendDrain():
                self._to("worker", effect.worker, wire.Drain())
            case ev.NotifyFleet():
                self._dismiss_hung(effect)
                notice = wire.WorkerNotice(
                    worker=effect.worker, deployment=effect.deployment, what=effect.what, text=effect.text
                )
                for fleet in self._roster.all("fleet"):
                    self._send(fleet, notice)

    def _dismiss_hung(self, effect: ev.NotifyFleet) -> None:
        """A worker that hung and comes to itself again must join anew: the router has forgotten it."""
        peer = self._roster.named("worker", effect.worker)
        if effect.what == "hung" and peer is not None:
            self._lose(peer, "hung")

    def _pass_on(self, effect: ev.SendOutput) -> None:
        assert self._output is not None, "an output is passed on while it is being handled"
        output, frames = self._output
        kind = wire.Final if effect.done else wire.Partial
        message = kind(request_id=effect.request_id, seq=effect.seq, ledger=output.ledger)
        self._to("client", effect.client, message, frames)

    def _to(self, role: str, name: str, message: wire.Message, body: Frames | None = None) -> None:
        peer = self._roster.named(role, name)
        if peer is not None:
            self._send(peer, message, body)

    def _send(self, peer: Peer, message: wire.Message, body: Frames | None = None) -> None:
        if not self._hub.send(peer.identity, [wire.encode(message), *(body or ())]):
            self._unreachable.append(peer)

    def _lose(self, peer: Peer, reason: str) -> None:
        """A peer is gone: forget it, then tell the router."""
        pidfd = peer.pidfd
        if not self._roster.leave(peer):
            return
        if pidfd is not None:
            self._poller.unregister(pidfd)
            os.close(pidfd)
        now = time.monotonic()
        if peer.role == "worker":
            log.info("worker %s %s", peer.name, reason)
            self._handle(ev.WorkerGone(at=now, worker=peer.name, reason=reason))
        elif peer.role == "client":
            self._handle(ev.ClientGone(at=now, client=peer.name))

    # -- looking and leaving ------------------------------------------------------------------------------------------

    def status(self) -> ClusterStatus:
        """The cluster at this moment. In the coordinator's own thread."""
        return ClusterStatus(
            name=self.name,
            address=self.address,
            epoch=self.epoch,
            version=__version__,
            uptime_s=time.monotonic() - self._started,
            accepting=self.router.accepting,
            clients=self._roster.count("client"),
            live_requests=len(self.router.requests),
            outcomes=dict(self.router.outcomes),
            models=[self._model_status(name) for name in sorted(self.router.models)],
        )

    def _model_status(self, name: str) -> ModelStatus:
        model = self.router.models[name]
        mine = [w for w in self.router.workers.values() if w.model == name]
        return ModelStatus(
            model=name,
            task=model.task,
            deployment=model.deployment,
            replicas=model.replicas,
            unhealthy=model.unhealthy,
            queued=len(model.queue) + len(model.suspects),
            queued_bytes=model.queued_bytes,
            workers=[self._worker_status(worker.name) for worker in mine],
        )

    def _worker_status(self, name: str) -> WorkerStatus:
        worker = self.router.workers[name]
        peer = self._roster.named("worker", name)
        return WorkerStatus(
            name=name,
            host=worker.host,
            pid=peer.pid if peer else 0,
            state=worker.state.value,
            in_flight=len(worker.slots),
            credits=worker.credits,
            seen_s=time.monotonic() - peer.seen if peer else 0.0,
        )

    def _say_goodbye(self) -> None:
        for peer in self._roster.all():
            self._hub.send(peer.identity, [wire.encode(wire.Disconnect())])

    def _close(self) -> None:
        """Let go of everything; the name last, when its socket is free for the next coordinator."""
        for peer in self._roster.all():
            if peer.pidfd is not None:
                os.close(peer.pidfd)
        self._hub.close()
        self._connection.close()
        self._close_stop_fd()
        log.info("coordinator %s has ended", self.epoch)

    def _close_stop_fd(self) -> None:
        with self._stop_lock:
            fd, self._stop_fd = self._stop_fd, -1
            if fd >= 0:
                os.close(fd)


_SERVES = {
    "client": Coordinator._serve_client,  # noqa: SLF001 - this module's own class
    "worker": Coordinator._serve_worker,  # noqa: SLF001
    "fleet": Coordinator._serve_fleet,  # noqa: SLF001
}
