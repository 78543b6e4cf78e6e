"""Workers as Ray actors: the actor, and the launcher that makes, watches and ends them.

A fleet uses it through the interface of `launchers.py`; `ray_runtime.py` has the actors of coordinator and fleet. Ray
places and ends processes, nothing else; requests never pass through it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..coordinator.connection import reachable
from ..errors import ShuttingDown
from ..logs import logger
from ..proto.deployment import Deployment
from ..settings import Settings
from .launchers import OnEnd
from .main import run_worker
from .placement import Node, Pin, missing, needs, pin

log = logger(__name__)

#: An actor that has no node for so long is waited for aloud.
_PATIENCE_S = 5.0
_GCS_TIMEOUT_S = 5.0


class WorkerActor:
    """A worker in a Ray actor."""

    def place(self) -> str:
        """The node that it runs on: answered as soon as there is one."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def run(self, addresses: Sequence[str], deployment: Deployment, name: str, settings: Settings) -> int:
        """Work until drained; see `run_worker`. Ray keeps its own signal handlers."""
        if not deployment.num_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the variable alone then, and all GPUs would be seen
        return run_worker(reachable(addresses), deployment, name=name, settings=settings, signals=False)


@dataclass(slots=True)
class _Launched:
    """One worker's actor."""

    deployment: Deployment
    actor: Any
    #: Monotonic seconds.
    at: float
    #: The node that it was asked for, and the one that it runs on; "" for none, or none yet.
    pinned: str = ""
    node: str = ""


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
        #: How many workers of each deployment are wanted.
        self._counts: dict[str, int] = {}
        self._workers: dict[str, _Launched] = {}
        #: The actor class as Ray knows it, told once.
        self._kind: Any = None
        self._watchers: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.Lock()

    def plan(self, wanted: Sequence[tuple[Deployment, int]]) -> None:
        """Ask Ray's autoscaler for nodes that hold all workers wanted: it adds, and keeps, what is missing for them."""
        self._counts = {deployment.name: count for deployment, count in wanted}
        bundles = [bundle for deployment, count in wanted for bundle in [needs(deployment)] * count if bundle]
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
            pinned = self._pin(deployment)
            if self._kind is None:
                self._kind = ray.remote(WorkerActor)
            actor: Any = self._kind.options(**self._options(deployment, pinned)).remote()
            self._workers[name] = _Launched(
                deployment, actor, time.monotonic(), pinned.node if pinned and not pinned.soft else ""
            )
            place = actor.place.remote()
            ended = actor.run.remote(self._addresses or [address], deployment, name, self._settings)
            watcher = threading.Thread(target=self._watch, args=(name, place, ended, on_end), daemon=True)
            self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]
            watcher.start()

    def _pin(self, deployment: Deployment) -> Pin | None:
        if not deployment.placement.endswith("PACK"):
            return None
        siblings = [w.node or w.pinned for w in self._workers.values() if w.deployment.name == deployment.name]
        return pin(deployment, self._counts.get(deployment.name, 1), list(filter(None, siblings)), nodes())

    def _options(self, deployment: Deployment, pinned: Pin | None) -> dict[str, Any]:
        """What Ray is asked for. The fleet replaces workers, by what it knows of their deployment; so Ray does not."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {
            "num_cpus": deployment.num_cpus,
            "num_gpus": deployment.num_gpus,
            "resources": deployment.resources or None,
            "max_restarts": 0,
        }
        if pinned is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(pinned.node, soft=pinned.soft)
        elif deployment.placement == "SPREAD":
            options["scheduling_strategy"] = "SPREAD"
        if deployment.node_labels and pinned is None:  # a pinned one's node was chosen by them
            options["label_selector"] = dict(deployment.node_labels)
        if self.environment:
            options["runtime_env"] = dict(self.environment)
        return options

    def _watch(self, name: str, place: Any, ended: Any, on_end: OnEnd) -> None:
        import ray

        try:
            node = ray.get(place)
            with self._lock:
                if name in self._workers:
                    self._workers[name].node = node
            text = f"its worker returned {ray.get(ended)}"
        except Exception as error:  # whatever it was, the fleet must know that this worker is no more
            text = f"its actor died: {(str(error).splitlines() or [type(error).__name__])[0]}"
        try:
            self.kill(name)
        finally:
            on_end(name, text)

    def places(self) -> dict[str, str]:
        """The node of each worker that has one."""
        with self._lock:
            return {name: worker.node for name, worker in self._workers.items() if worker.node}

    def unplaced(self) -> dict[str, str]:
        """Workers that were launched a while ago and have no place yet, and what is missing for them."""
        late = time.monotonic() - _PATIENCE_S
        with self._lock:
            waiting = {name: worker for name, worker in self._workers.items() if not worker.node and worker.at < late}
        if not waiting:
            return {}
        seen = nodes()
        found = {name: missing(worker.deployment, seen, worker.pinned) for name, worker in waiting.items()}
        return {name: text for name, text in found.items() if text}

    def doomed(self) -> set[str]:
        """Workers on nodes that Ray drains: for an autoscaler, or because their machine is taken away."""
        places = self.places()
        leaving = draining() if places else set()
        return {name for name, node in places.items() if node in leaving}

    def kill(self, name: str) -> None:
        """End an actor's process."""
        import ray

        with self._lock:
            worker = self._workers.pop(name, None)
        if worker is not None:
            ray.kill(worker.actor)

    def close(self) -> None:
        """End all, and wait until Ray says so."""
        with self._lock:
            self._closed = True
            names = list(self._workers)
        for name in names:
            self.kill(name)
        for watcher in self._watchers:
            watcher.join(timeout=10)


def draining() -> set[str]:
    """The nodes that take nothing new and are about to go."""
    from ray._private.worker import global_worker

    return set(global_worker.gcs_client.get_draining_nodes(timeout=_GCS_TIMEOUT_S))  # type: ignore[attr-defined]


def nodes() -> list[Node]:
    """The living nodes of the cluster, as Ray sees them now."""
    import ray
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Node(
            id=found["NodeID"],
            total=found["Resources"],
            free=free.get(found["NodeID"], {}),
            labels=found.get("Labels") or {},
        )
        for found in ray.nodes()  # type: ignore[no-untyped-call]
        if found["Alive"]
    ]
