"""Ray's part: the actors in which coordinator, fleet and workers run, and the launcher that makes worker actors.

Ray places and ends processes, nothing else; requests never pass through it. The only module, with `deploy/local.py`,
that imports ray, and only when it is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from ..coordinator import Coordinator
from ..errors import ShuttingDown, TensoryardError
from ..logs import logger
from ..proto.deployment import Deployment
from ..settings import Settings
from .fleet_runner import FleetRunner
from .launchers import OnEnd
from .main import run_worker

log = logger(__name__)

_READY_TIMEOUT_S = 30.0


class CoordinatorActor:
    """A coordinator in a Ray actor: serves from the moment it is made; Ray makes it anew when it dies."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._coordinator: Coordinator | None = None
        self._error: BaseException | None = None
        self._bound = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(name, settings), daemon=True).start()
        if not self._bound.wait(_READY_TIMEOUT_S) or self._error is not None:
            raise self._error or TimeoutError("the coordinator did not begin to listen")

    def _run(self, name: str, settings: Settings) -> None:
        """Make the sockets in the thread that uses them, and serve."""
        try:
            self._coordinator = Coordinator(name=name, settings=settings, expects_fleet=True)
        except BaseException as error:
            self._error = error
            return
        finally:
            self._bound.set()
        try:
            self._coordinator.run()
        except BaseException:
            log.exception("the coordinator failed")
            os._exit(1)  # crash-only: Ray starts a fresh one
        self._ended.set()

    def address(self) -> str:
        """Where it listens."""
        assert self._coordinator is not None, "a made actor listens"
        return self._coordinator.address

    def pid(self) -> int:
        """Its process, for people and tests."""
        return os.getpid()

    def stop(self, timeout_s: float) -> bool:
        """End it; True when it has ended in time."""
        assert self._coordinator is not None, "a made actor listens"
        if not self._ended.is_set():
            self._coordinator.stop()
        return self._ended.wait(timeout_s)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until a shutdown that a client asked for is complete."""
        return self._ended.wait(timeout_s)


class FleetActor:
    """The fleet in a Ray actor; its workers are actors too."""

    def __init__(self, address: str, deployments: Sequence[Deployment], settings: Settings) -> None:
        self._runner = FleetRunner(
            address=address,
            deployments=deployments,
            launcher=RayLauncher(settings),
            settings=settings,
        )
        self._runner.start()

    def deploy(self, deployments: Sequence[Deployment]) -> None:
        """Change what should run."""
        self._runner.deploy(deployments)

    def pid(self) -> int:
        """Its process, for people and tests."""
        return os.getpid()

    def close(self, timeout_s: float) -> None:
        """Drain every worker, then end."""
        self._runner.close(timeout_s)


class WorkerActor:
    """A worker in a Ray actor."""

    def run(self, address: str, deployment: Deployment, name: str, settings: Settings) -> int:
        """Work until drained; see `run_worker`. Ray keeps its own signal handlers."""
        if not deployment.num_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the variable alone then, and all GPUs would be seen
        return run_worker(address, deployment, name=name, settings=settings, signals=False)


class RayLauncher:
    """Workers as Ray actors, with the resources that their deployment asks for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._actors: dict[str, Any] = {}
        self._watchers: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.Lock()

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Make an actor and set it to work; a thread waits for its end."""
        import ray

        with self._lock:
            if self._closed:
                raise ShuttingDown("this launcher is closed")
            actor: Any = (
                ray.remote(WorkerActor)
                .options(
                    num_cpus=deployment.num_cpus,
                    num_gpus=deployment.num_gpus,
                    resources=deployment.resources or None,
                    max_restarts=0,  # the fleet replaces workers, by what it knows of their deployment
                )
                .remote()
            )
            self._actors[name] = actor
            ended = actor.run.remote(address, deployment, name, self._settings)
            watcher = threading.Thread(target=self._watch, args=(name, ended, on_end), daemon=True)
            self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]
            watcher.start()

    def _watch(self, name: str, ended: Any, on_end: OnEnd) -> None:
        import ray

        try:
            text = f"its worker returned {ray.get(ended)}"
        except Exception as error:  # whatever it was, the fleet must know that this worker is no more
            text = f"its actor died: {(str(error).splitlines() or [type(error).__name__])[0]}"
        try:
            self.kill(name)
        finally:
            on_end(name, text)

    def kill(self, name: str) -> None:
        """End an actor's process."""
        import ray

        with self._lock:
            actor = self._actors.pop(name, None)
        if actor is not None:
            ray.kill(actor)

    def close(self) -> None:
        """End all, and wait until Ray says so."""
        with self._lock:
            self._closed = True
            names = list(self._actors)
        for name in names:
            self.kill(name)
        for watcher in self._watchers:
            watcher.join(timeout=10)


def as_ray_error(error: Exception) -> TensoryardError | Exception:
    """The error of ours inside one of Ray's, where there is one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TensoryardError) else error
