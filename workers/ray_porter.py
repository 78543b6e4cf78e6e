"""Porters on Ray: one actor on each node, its store as what carries bytes, and the fleet's care that none is missing.

`porter.py` is what runs inside. A porter is found by the host it runs on, which it writes into Ray's own table; Ray
makes one that died anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OutOfReach, TensoryardError
from ..logs import logger
from ..settings import Settings
from ..shm import host_name
from ..shm.courier import FETCH_S, porter_path
from .porter import Bytes, Parcel, Porter
from .porter_door import PorterDoor

log = logger(__name__)

_KV_NAMESPACE = b"tensoryard"
#: Arrays on their way from or to one node at once.
_MAX_CALLS = 64
#: How long another host's porter that has died is waited for.
_PATIENCE_S = 20.0
_RETRY_S = 0.2
#: So often the keeper looks for nodes, and for porters that are gone for good; and a porter for its own entry.
_LOOK_S = 1.0
_LOOK_CLOSELY_S = 5.0
#: How long a node keeps its porter without a worker: another may be about to come.
_LINGER_S = 10.0
#: Porters of other hosts remembered; beyond, all are looked up again.
_MAX_ACTORS = 1024
#: How long porters may take to leave.
_STOP_S = 3.0


def porter_name(node: str) -> str:
    """The name of a node's porter."""
    return f"porter-{node}"


def namespace_of(name: str) -> str:
    """Ray's namespace of a cluster's actors."""
    return f"tensoryard-{name}"


@dataclass(frozen=True, kw_only=True)
class PorterOrder:
    """What a porter's actor is made with: its cluster and its own name."""

    cluster: str
    actor: str
    settings: Settings


class PorterActor:
    """The porter of one node."""

    def __init__(self, order: PorterOrder) -> None:
        self._order = order
        self._porter = Porter(RayCarrier(order.cluster), order.settings)
        self._entry_due = 0.0
        self._register()
        self._take_over()
        path = porter_path(order.cluster, self._porter.host)
        self._door = PorterDoor(path, self._porter.fetch, self._porter.withdraw, self._tick)
        self._door.start()

    def _tick(self) -> None:
        self._porter.housekeep()
        if time.monotonic() > self._entry_due:
            self._register()

    def _register(self) -> None:
        """Be found by our host; again now and then, since another porter of the host may have been there."""
        key, name = _key(self._order.cluster, self._porter.host), self._order.actor.encode()
        if _kv().get(key) != name:
            _kv().put(key, name)
        self._entry_due = time.monotonic() + _LOOK_CLOSELY_S

    def _take_over(self) -> None:
        """Where a porter of this host died, the others learn that it will not give back what it borrowed."""
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            for name in porters(self._order.cluster):
                with contextlib.suppress(ValueError):
                    actor = ray.get_actor(name, namespace=namespace_of(self._order.cluster))
                    actor.borrower_died.remote(self._porter.host)

    def lend(self, parcel: Parcel, borrower: str) -> list[Any]:
        """See `Porter.lend`; in a list, or Ray would send the bytes instead of the reference."""
        return [self._porter.lend(parcel, borrower)]

    def take_back(self, parcel: Parcel, borrower: str) -> None:
        """See `Porter.take_back`."""
        self._porter.take_back(parcel, borrower)

    def borrower_died(self, borrower: str) -> None:
        """See `Porter.borrower_died`."""
        self._porter.borrower_died(borrower)

    def stop(self) -> None:
        """Let nobody in any more, and leave nothing behind."""
        self._door.close()
        self._porter.close()
        key = _key(self._order.cluster, self._porter.host)
        if _kv().get(key) == self._order.actor.encode():
            _kv().delete(key)

    def report(self) -> dict[str, Any]:
        """See `Porter.report`; and its process."""
        return {**self._porter.report(), "pid": os.getpid(), "actor": self._order.actor}


class RayCarrier:
    """Bytes by Ray's object store: put once, brought to each node once, spilled and limited by Ray."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._host = host_name()
        #: The porters asked lately, by host: to look one up costs two questions to the head node.
        self._actors: dict[str, Any] = {}

    def put(self, data: Bytes) -> Any:
        """Take a copy; it lives as long as its reference, and no longer than this process."""
        import ray

        return ray.put(data)

    def bring(self, parcel: Parcel) -> Bytes:
        """See `Carrier.bring`; a porter that dies meanwhile is asked again when Ray has made it anew."""
        import ray

        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._bring(parcel)
            except ray.exceptions.RayTaskError as error:
                cause = _bare(error).cause
                raise cause if isinstance(cause, TensoryardError) else _unreached(parcel, error) from error
            except (ray.exceptions.RayError, ValueError) as error:
                _bare(error)
                self._actors.pop(parcel.handle.host, None)
                if isinstance(error, ray.exceptions.GetTimeoutError) or time.monotonic() > give_up:
                    raise _unreached(parcel, error) from error
                time.sleep(_RETRY_S)

    def _bring(self, parcel: Parcel) -> Bytes:
        import ray

        actor = self._actor(parcel.handle.host)
        (reference,) = ray.get(actor.lend.remote(parcel, self._host), timeout=FETCH_S)
        data: Bytes = np.asarray(ray.get(reference, timeout=FETCH_S))
        return data

    def give_back(self, parcel: Parcel) -> None:
        """See `Carrier.give_back`."""
        with contextlib.suppress(Exception):  # it looks after itself in time
            self._actor(parcel.handle.host).take_back.remote(parcel, self._host)

    def _actor(self, host: str) -> Any:
        """The porter of a host. OutOfReach when none has ever said that it is there, ValueError when it is gone."""
        import ray

        actor = self._actors.get(host)
        if actor is None:
            name = _kv().get(_key(self._cluster, host))
            if name is None:
                raise OutOfReach(f"host {host} has no porter")
            if len(self._actors) >= _MAX_ACTORS:
                self._actors.clear()
            actor = self._actors[host] = ray.get_actor(name.decode(), namespace=namespace_of(self._cluster))
        return actor


def _bare(error: Any) -> Any:
    """An error of Ray's without its frames, of which one keeps it: all of ours, with their arrays, would stay."""
    return error.with_traceback(None)


def _unreached(parcel: Parcel, error: Exception) -> OutOfReach:
    host = parcel.handle.host
    return OutOfReach(f"the porter of host {host} did not lend an array: {type(error).__name__}: {error!s:.300}")


class PorterKeeper:
    """Sees to it that each node with a worker, and the fleet's own, has a porter; part of the fleet's actor.

    There is none elsewhere: Ray takes no node for idle, and lets none go, on which an actor lives. `workers` tells the
    node of each worker.
    """

    def __init__(
        self, cluster: str, settings: Settings, *, detached: bool, workers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._detached = detached
        self._workers = workers
        #: The porters by node, and until when those stay that are not wanted any more.
        self._actors: dict[str, Any] = {}
        self._leaving: dict[str, float] = {}
        self._look_closely_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensoryard-porters", daemon=True)

    def start(self) -> None:
        """Begin to look after them."""
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_S):
            try:
                self._look()
            except Exception:
                log.exception("the nodes' porters could not be looked after")

    def _look(self) -> None:
        import ray

        now = time.monotonic()
        alive = {found["NodeID"] for found in ray.nodes() if found["Alive"]}  # type: ignore[no-untyped-call]
        wanted = self._wanted() & alive
        for node in self._actors.keys() - wanted:
            if node not in alive or self._leaving.setdefault(node, now + _LINGER_S) < now:
                self._end(node)
        self._leaving = {node: at for node, at in self._leaving.items() if node in self._actors.keys() - wanted}
        closely = now > self._look_closely_at
        if closely:
            self._look_closely_at = now + _LOOK_CLOSELY_S
        for node in wanted if closely else wanted - self._actors.keys():
            self._actors[node] = self._make(node)

    def _wanted(self) -> set[str]:
        """The nodes that need one; none while all is on one, where everybody reads everybody's memory."""
        import ray

        nodes = {ray.get_runtime_context().get_node_id(), *self._workers().values()}
        return nodes if len(nodes) > 1 else set()

    def _end(self, node: str) -> None:
        import ray

        actor = self._actors.pop(node)
        with contextlib.suppress(Exception):
            ray.wait([actor.stop.remote()], timeout=_STOP_S)
            ray.kill(actor, no_restart=True)

    def _make(self, node: str) -> Any:
        """The porter of a node; the one that is there, if there is one."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = porter_name(node)
        kind: Any = ray.remote(PorterActor)
        return kind.options(
            name=name,
            namespace=namespace_of(self._cluster),
            get_if_exists=True,
            lifetime="detached" if self._detached else None,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(PorterOrder(cluster=self._cluster, actor=name, settings=self._settings))

    def reports(self, timeout_s: float) -> list[dict[str, Any]]:
        """What each porter says of itself; without those that do not answer in time."""
        import ray

        asked = [actor.report.remote() for actor in list(self._actors.values())]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
        reports = []
        for one in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                reports.append(ray.get(one))
        return reports

    def close(self) -> None:
        """End them all."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(10)
        end_porters(self._cluster)


def end_porters(cluster: str) -> None:
    """End every porter of a cluster, for good."""
    import ray

    actors = []
    for name in porters(cluster):
        with contextlib.suppress(ValueError):
            actors.append(ray.get_actor(name, namespace=namespace_of(cluster)))
    if actors:
        ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=_STOP_S)
    for actor in actors:
        ray.kill(actor, no_restart=True)
    for key in _kv().keys(_key(cluster, "")):
        _kv().delete(key)


def porters(cluster: str) -> list[str]:
    """The names of a cluster's porters."""
    from ray.util import list_named_actors

    found = list_named_actors(all_namespaces=True)
    mine = [entry["name"] for entry in found if entry["namespace"] == namespace_of(cluster)]
    return [name for name in mine if name.startswith(porter_name(""))]


# -- Ray's own table ---------------------------------------------------------------------------------------------------


def _key(cluster: str, host: str) -> bytes:
    return f"porter/{cluster}/{host}".encode()


class _kv:  # noqa: N801 - a place, like a module
    """Names by key, in Ray's own store, where porters that are made anew find each other."""

    @staticmethod
    def get(key: bytes) -> bytes | None:
        from ray.experimental import internal_kv

        found: bytes | None = internal_kv._internal_kv_get(key, namespace=_KV_NAMESPACE)  # noqa: SLF001
        return found

    @staticmethod
    def put(key: bytes, value: bytes) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(key, value, namespace=_KV_NAMESPACE)  # noqa: SLF001

    @staticmethod
    def delete(key: bytes) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(key, namespace=_KV_NAMESPACE)  # noqa: SLF001

    @staticmethod
    def keys(prefix: bytes) -> list[bytes]:
        from ray.experimental import internal_kv

        found: list[bytes] = internal_kv._internal_kv_list(prefix, namespace=_KV_NAMESPACE)  # noqa: SLF001
        return found
