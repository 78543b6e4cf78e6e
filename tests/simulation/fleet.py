"""The fleet's process: the shell around `workers/fleet.py`, as `workers/fleet_runner.py` and a launcher are.

Where there is no fleet, `ByHand` starts a new worker for each that ends.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tensoryard.coordinator.records import WorkerState
from tensoryard.proto import wire
from tensoryard.workers.fleet import Announce, Drain, Finished, Fleet, Kill, Launch, MemberState
from tensoryard.workers.fleet_runner import _deployments_message

from .checks import check
from .processes import Peer
from .worker import Worker
from .world import Violation

#: How often delays and limits are looked at.
_TICK_S = 0.7
#: How soon it is known that a worker has ended, at most, in seconds.
_SEES_IN_S = 0.05
#: How long whoever starts workers by hand takes, at most, in seconds.
_BY_HAND_S = 3.0


class FleetProcess(Peer):
    """One life of the fleet, and its workers, which end with it; one that is cut off, when it is not any more."""

    role = "fleet"
    decoder = wire.TO_FLEET

    def __init__(self, site, life):
        super().__init__(site, f"fleet.{life}", "h1")
        self.fleet = Fleet(drain_s=site.plan.settings.drain_s, start_limit_s=30.0, life=life - 1)
        self.children = {}
        self.finished = False
        self.join()
        self._deployments = [serves.deployment for serves in site.plan.serves]
        self._perform(self.fleet.deploy(self._deployments, self.clock()))
        self._tick()

    def redeploy(self, pick):
        """One of the deployments gets another number of workers, or workers that wait longer for a batch."""
        number = int(pick * 100) % len(self._deployments)
        deployment = self._deployments[number]
        change = ({"replicas": 1}, {"replicas": 3}, {"max_wait_ms": deployment.max_wait_ms + 1.0})[int(pick * 1000) % 3]
        self._deployments[number] = msgspec.structs.replace(deployment, **change)
        self._perform(self.fleet.deploy(self._deployments, self.clock()))

    def _tick(self):
        if not self.finished:
            self._perform(self.fleet.tick(self.clock()))
            self.later(_TICK_S, self._tick)

    def _perform(self, effects):
        for effect in effects:
            match effect:
                case Launch():
                    self._launch(effect)
                case Drain():
                    self.post(wire.DrainWorker(worker=effect.name))
                case Kill():
                    self._kill(effect.name)
                case Announce():
                    self.post(_deployments_message(effect))
                case Finished():
                    self.finished = True
                    self.soon(self.leave)

    def _kill(self, name):
        worker = self.children.get(name)
        if worker is None:
            return
        member = next(member for member in self.fleet.members if member.name == name)
        hub = self.site.network.hub
        known = hub.broker.router.workers.get(name) if hub is not None else None
        serves = known is not None and known.state is WorkerState.READY
        if serves and member.trouble.startswith("it was starting"):
            raise Violation(f"{name} serves, and the fleet ends it as one that never started")
        worker.kill()

    def _launch(self, effect):
        serves = next(serves for serves in self.site.plan.serves if serves.deployment.name == effect.deployment.name)
        serves = replace(serves, deployment=effect.deployment)
        worker = Worker(self.site, effect.name, serves, "h1", self._on_end)
        self.children[effect.name] = worker
        self.site.workers.append(worker)

    def _on_end(self, name, text):
        self.later(self.world.rng.random() * _SEES_IN_S, self._has_ended, name, text)

    def _has_ended(self, name, text):
        worker = self.children.pop(name)
        member = next(member for member in self.fleet.members if member.name == name)
        struck = worker.struck or self.connection.partitioned
        self.site.died_starting += struck and member.state is MemberState.STARTING
        self._perform(self.fleet.worker_ended(name, text, self.clock()))

    def check_books(self):
        check(self.fleet, "the fleet's books")

    def ended(self, *, killed):
        super().ended(killed=killed)
        for worker in list(self.children.values()):
            self._end(worker, outlives=killed)

    def _end(self, worker, *, outlives):
        """Whoever keeps workers for the fleet ends them, once it reaches their host."""
        cut_off = worker.connection is not None and worker.connection.partitioned
        if outlives and cut_off and worker.alive:
            self.world.later(_SEES_IN_S, lambda: self._end(worker, outlives=True))
        else:
            worker.kill()

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, _welcome):
        self._perform([self.fleet.expected()])

    def on_message(self, message, _body):
        match message:
            case wire.WorkerNotice(worker=name, what="ready"):
                self._perform(self.fleet.worker_ready(name, self.clock()))
            case wire.WorkerNotice(worker=name, what="start_failed", text=text):
                self._perform(self.fleet.start_failed(name, text))
            case wire.WorkerNotice(worker=name, text=text):
                self._perform(self.fleet.worker_lost(name, text))
            case wire.Shutdown():
                self._perform(self.fleet.stop(self.clock()))

    def on_refused(self, error):
        raise AssertionError(f"the fleet was refused: {error}")

    def on_beat(self, silent_s):
        if silent_s >= self.site.plan.settings.heartbeat_s:
            self._perform(self.fleet.coordinator_silent())
        return wire.Heartbeat()


class ByHand:
    """Somebody who starts workers, and starts another for each that ends."""

    def __init__(self, site, served):
        self._site = site
        self._started = 0
        self.stopped = False
        for serves in served:
            for _ in range(serves.deployment.replicas):
                self._start(serves)

    def _start(self, serves):
        if not self.stopped:
            self._started += 1
            name = f"{serves.deployment.name}-{self._started}"
            on_end = lambda _name, _text: self._start_soon(serves)
            self._site.workers.append(Worker(self._site, name, serves, "h1", on_end))

    def _start_soon(self, serves):
        self._site.world.later(self._site.world.rng.random() * _BY_HAND_S, self._start, serves)
