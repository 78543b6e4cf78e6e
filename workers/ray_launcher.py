"""Workers as Ray actors: the actor, and the launcher that makes, watches and ends them.

A fleet uses it through the interface of `launchers.py`; `ray_runtime.py` has the actors of coordinator and fleet. Ray
places and ends processes, nothing else; requests never pass through it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..coordinator.connection import reachable
from ..errors import ShuttingDown
from ..logs import logger
from ..proto.deployment import Deployment
from ..settings import Settings
from .launchers import OnEnd
from .main import run_worker

log = logger(__name__)


class WorkerActor:
    """A worker in a Ray actor."""

    def run(self, addresses: Sequence[str], deployment: Deployment, name: str, settings: Settings) -> int:
        """Work until drained; see `run_worker`. Ray keeps its own signal handlers."""
        if not deployment.num_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the variable alone then, and all GPUs would be seen
        return run_worker(reachable(addresses), deployment, name=name, settings=settings, signals=False)


def bundle_of(deployment: Deployment) -> dict[str, float]:
    """What Ray reserves for one worker, in its words."""
    found = {"CPU": deployment.num_cpus, "GPU": deployment.num_gpus, **deployment.resources}
    return {name: amount for name, amount in found.items() if amount}


class RayLauncher:
    """Workers as Ray actors, with the resources that their deployment asks for."""

    def __init__(self, addresses: Sequence[str], settings: Settings) -> None:
        """`addresses`: where the coordinator listens, on its own host and, if at all, in the network."""
        self._addresses = list(addresses)
        self._settings = settings
        #: Ray's runtime environment of the workers launched next.
        self.environment: Mapping[str, Any] = {}
        #: Whether Ray's autoscaler is told what is wanted. It hears one voice in a whole cluster: the last.
        self.asks_for_nodes = False
        self._bundles: list[dict[str, float]] = []
        self._actors: dict[str, Any] = {}
        self._watchers: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.Lock()

    def plan(self, wanted: Sequence[tuple[Deployment, int]]) -> None:
        """Ask Ray's autoscaler for nodes that hold all workers wanted: it adds, and keeps, what is missing for them."""
        bundles = [bundle for deployment, count in wanted for bundle in [bundle_of(deployment)] * count if bundle]
        if not self.asks_for_nodes or bundles == self._bundles:
            return
        from ray.autoscaler.sdk import request_resources

        self._bundles = bundles
        request_resources(bundles=bundles)

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Make an actor and set it to work; a thread waits for its end."""
        import ray

        with self._lock:
            if self._closed:
                raise ShuttingDown("this launcher is closed")
            actor: Any = ray.remote(WorkerActor).options(**self._options(deployment)).remote()
            self._actors[name] = actor
            ended = actor.run.remote(self._addresses or [address], deployment, name, self._settings)
            watcher = threading.Thread(target=self._watch, args=(name, ended, on_end), daemon=True)
            self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]
            watcher.start()

    def _options(self, deployment: Deployment) -> dict[str, Any]:
        """What Ray is asked for. The fleet replaces workers, by what it knows of their deployment; so Ray does not."""
        options: dict[str, Any] = {
            "num_cpus": deployment.num_cpus,
            "num_gpus": deployment.num_gpus,
            "resources": deployment.resources or None,
            "max_restarts": 0,
        }
        if self.environment:
            options["runtime_env"] = dict(self.environment)
        return options

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
