"""The fleet at work: one thread that hears of workers, lets `fleet.py` decide, and does what it says.

Speaks with the coordinator through a session of role `fleet`; starts workers through a launcher.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..errors import TensoryardError
from ..links import Frames, Session
from ..logs import logger
from ..proto import wire
from ..proto.deployment import Deployment
from ..settings import Settings
from .answers import clean_text
from .fleet import Announce, Drain, Effect, Expectation, Finished, Fleet, Kill, Launch
from .launchers import Launcher

log = logger(__name__)

#: Delays and limits are looked at this often.
_TICK_S = 0.25
#: So often it is looked which workers wait for a place.
_PLACES_S = 1.0
#: How long the fleet's thread may take to end after the last worker.
_END_S = 10.0
#: Of a text that goes to the coordinator; its end says most.
_MAX_TEXT = 60_000
#: How long the fleet's thread may take to answer.
_ANSWER_S = 60.0


class FleetRunner:
    """Keeps deployments running at one coordinator until stopped."""

    def __init__(
        self,
        *,
        address: str,
        deployments: Sequence[Deployment],
        launcher: Launcher,
        settings: Settings,
        revision: str = "",
        life: int = 0,
    ) -> None:
        """`revision`, `life`: see `Fleet`."""
        self._address = address
        self._launcher = launcher
        self._settings = settings
        self._fleet = Fleet(drain_s=settings.drain_s, life=life)
        #: Things to do in the fleet's thread; each returns effects.
        self._inbox: queue.SimpleQueue[Callable[[], list[Effect]]] = queue.SimpleQueue()
        #: Workers without a place, as they were last seen.
        self._unplaced: dict[str, str] = {}
        self._doomed: set[str] = set()
        self.finished = threading.Event()
        self._session = Session(
            address=address,
            role="fleet",
            name="fleet",
            decoder=wire.TO_FLEET,
            callbacks=self,
            settings=settings,
        )
        self.deploy(deployments, revision=revision)
        self._thread = threading.Thread(target=self._run, name="tensoryard-fleet", daemon=True)

    def start(self) -> None:
        """Join the coordinator and start what is missing."""
        self._session.start()
        self._thread.start()

    def deploy(self, deployments: Sequence[Deployment], *, revision: str = "") -> None:
        """Change what should run: the complete list; see `Fleet.deploy`."""
        wanted = list(deployments)
        self._inbox.put(lambda: self._fleet.deploy(wanted, time.monotonic(), revision=revision))

    def expectations(self) -> tuple[Expectation, ...]:
        """How far each deployment is, after all that was asked for before. TimeoutError when the fleet has ended."""
        answer: Future[tuple[Expectation, ...]] = Future()

        def look() -> list[Effect]:
            answer.set_result(self._fleet.expected().expected)
            return []

        self._inbox.put(look)
        return answer.result(_ANSWER_S)

    def stop(self) -> None:
        """Drain every worker; `finished` is set when all have ended. Returns at once."""
        self._inbox.put(lambda: self._fleet.stop(time.monotonic()))

    def close(self, timeout_s: float | None = None) -> None:
        """Stop and wait; workers that do not finish in time are killed. Again is harmless."""
        self.stop()
        if self._thread.is_alive():
            self.finished.wait(timeout_s if timeout_s is not None else self._settings.drain_s + 5)
        self._launcher.close()
        if self._thread.is_alive():  # told by now that the last of them have ended
            self._thread.join(_END_S)
        self._session.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = look = time.monotonic()
        while not self.finished.is_set():
            effects: list[Effect] = []
            with contextlib.suppress(queue.Empty):
                effects = self._inbox.get(timeout=max(due - time.monotonic(), 0.0))()
            if time.monotonic() >= due:  # however much there is to hear
                effects += self._fleet.tick(time.monotonic())
                due = time.monotonic() + _TICK_S
            if time.monotonic() >= look:
                effects += self._look_for_places() + self._look_for_the_doomed()
                look = time.monotonic() + _PLACES_S
            for effect in effects:
                self._try(effect)

    def _look_for_places(self) -> list[Effect]:
        """Tell the fleet, and in the log, which workers wait for a place, and what is missing."""
        try:
            unplaced = self._launcher.unplaced()
        except Exception:
            log.exception("where workers wait for could not be seen")
            return []
        if unplaced == self._unplaced:
            return []
        for name in unplaced.keys() - self._unplaced.keys():
            log.warning("worker %s has no place to run: %s", name, unplaced[name])
        self._unplaced = unplaced
        return self._fleet.unplaced(unplaced, time.monotonic())

    def _look_for_the_doomed(self) -> list[Effect]:
        """Tell the fleet, and in the log, whose nodes are about to go."""
        try:
            doomed = self._launcher.doomed()
        except Exception:
            log.exception("whether nodes are about to go could not be seen")
            return []
        if doomed == self._doomed:
            return []
        for name in doomed - self._doomed:
            log.warning("the node of worker %s is about to go: another takes its place", name)
        self._doomed = doomed
        return self._fleet.doomed(doomed, time.monotonic())

    def _try(self, effect: Effect) -> None:
        """Trouble with one worker must not end the care for all."""
        try:
            self._perform(effect)
        except Exception:
            log.exception("the fleet could not do this: %r", effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Launch():
                log.info("starting worker %s", effect.name)
                self._launch(effect)
            case Drain():
                self._session.post(wire.DrainWorker(worker=effect.name))
            case Kill():
                log.info("killing worker %s", effect.name)
                self._launcher.kill(effect.name)
            case Announce():
                self._session.post(_deployments_message(effect))
                self._launcher.plan([(entry.deployment, entry.replicas) for entry in effect.expected])
            case Finished():
                # The coordinator may leave once the fleet has said goodbye.
                self._session.close()
                self.finished.set()

    def _launch(self, effect: Launch) -> None:
        try:
            self._launcher.launch(effect.name, effect.deployment, self._address, self._on_end)
        except Exception as error:
            log.exception("worker %s could not be started", effect.name)
            self._on_end(effect.name, f"it could not be started: {error}")

    def _on_end(self, name: str, text: str) -> None:
        """A worker has ended. From any thread."""
        self._inbox.put(lambda: self._fleet.worker_ended(name, text, time.monotonic()))

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, _welcome: wire.Welcome) -> None:
        """A coordinator, perhaps a new one, does not know yet what should run."""
        self._inbox.put(lambda: [self._fleet.expected()])

    def on_message(self, message: Any, _body: Frames) -> None:
        """Word about workers, or the order to end."""
        match message:
            case wire.WorkerNotice(worker=name, what="ready"):
                self._inbox.put(lambda: self._fleet.worker_ready(name, time.monotonic()))
            case wire.WorkerNotice(worker=name, what="start_failed", text=text):
                self._inbox.put(lambda: self._fleet.start_failed(name, text))
            case wire.WorkerNotice(worker=name, text=text):
                self._inbox.put(lambda: self._fleet.worker_lost(name, text))
            case wire.Loads(loads=loads):
                told = {load.deployment: (load.ongoing, load.peak) for load in loads}
                self._inbox.put(lambda: self._fleet.loads(told, time.monotonic()))
            case wire.Shutdown():
                self.stop()

    def on_refused(self, error: TensoryardError) -> None:
        """Something of ours was not understood."""
        log.error("the coordinator refused the fleet: %s", error)

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """We live; says to the fleet whether the coordinator does."""
        if silent_s >= self._settings.heartbeat_s:
            self._inbox.put(self._fleet.coordinator_silent)
        return wire.Heartbeat()

    def on_failure(self, error: Exception) -> None:
        """Without a session nothing can be told; the workers go on."""
        log.error("the fleet's session failed: %r", error)


def _deployments_message(effect: Announce) -> wire.Deployments:
    return wire.Deployments(
        deployments=[
            wire.Expected(
                deployment=expected.deployment.name,
                model=expected.deployment.model,
                task=expected.deployment.task.value,
                replicas=expected.replicas,
                unhealthy=clean_text(expected.unhealthy[-_MAX_TEXT:], _MAX_TEXT),
                max_queued=expected.deployment.max_queued,
                max_queued_bytes=expected.deployment.max_queued_bytes,
                pending=clean_text(expected.pending[:_MAX_TEXT], _MAX_TEXT),
            )
            for expected in effect.expected
        ],
    )
