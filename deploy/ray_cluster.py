"""A cluster in Ray actors: made, found, changed and ended.

Embedded clusters (`ray_local.py`) end with the process that made them; launched ones (`launching.py`) are detached:
they outlive it, are found by their name, and are changed by launching them again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from ..coordinator.connection import reachable
from ..errors import ConfigError, NotConnected
from ..links.address import new_keys
from ..proto.deployment import Deployment
from ..settings import Settings
from ..workers.fleet import Expectation
from ..workers.ray_porter import end_porters, namespace_of, porters
from ..workers.ray_runtime import (
    COORDINATOR,
    FLEET,
    CoordinatorActor,
    CoordinatorOrder,
    FleetActor,
    FleetOrder,
)

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.1
#: A cluster that is just ending is waited for, so that its name is free.
_PATIENCE_S = 15.0
#: Both actors run on the head node: the coordinator's socket and the fleet's orders are where clients look for them.
_HEAD = {"node:__internal_head__": 0.001}


class RayCluster:
    """Coordinator and fleet of one cluster, by their actors."""

    def __init__(self, name: str, coordinator: Any, fleet: Any, addresses: Sequence[str], settings: Settings) -> None:
        self.name = name
        self.coordinator = coordinator
        self.fleet = fleet
        self.addresses = list(addresses)
        self._settings = settings

    @property
    def address(self) -> str:
        """Where this process connects."""
        return reachable(self.addresses)

    def deploy(self, deployments: Sequence[Deployment]) -> None:
        """Change what should run: the complete list."""
        import ray

        ray.get(self.fleet.deploy.remote(list(deployments)))

    def expectations(self) -> Sequence[Expectation]:
        """How far each deployment is."""
        import ray

        found: Sequence[Expectation] = ray.get(self.fleet.expectations.remote())
        return found

    def wait_ended(self) -> None:
        """Wait until a client has shut the cluster down."""
        import ray

        while True:
            try:
                if ray.get(self.coordinator.wait_ended.remote(5.0)):
                    return
            except ray.exceptions.ActorDiedError:  # for good: it has left, and taken itself away
                return
            except ray.exceptions.RayActorError:  # killed: Ray makes it anew
                time.sleep(0.5)

    def close(self) -> None:
        """Drain the fleet, then end the coordinator, and both actors."""
        import ray

        drain_s = self._settings.drain_s
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):  # dead already, or stuck: both are killed next
            ray.get(self.fleet.close.remote(drain_s), timeout=drain_s + _STOP_TIMEOUT_S)
            ray.get(self.coordinator.stop.remote(_STOP_TIMEOUT_S), timeout=2 * _STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End both actors at once, the workers with the fleet, and the porters."""
        import ray

        for actor in (self.fleet, self.coordinator):
            if actor is not None:
                ray.kill(actor)
        end_porters(self.name)


def make(
    name: str,
    deployments: Sequence[Deployment],
    settings: Settings,
    *,
    listen: Sequence[str] = (),
    environment: dict[str, Any] | None = None,
    detached: bool = False,
    asks_for_nodes: bool = False,
) -> RayCluster:
    """Start a cluster, in the Ray that this process is connected to.

    Raises ConfigError when its coordinator cannot start: the name is taken on the head node, for example.
    """
    import ray

    order = CoordinatorOrder(name=name, settings=settings, listen=tuple(listen), keys=new_keys(), detached=detached)
    coordinator = _actor(CoordinatorActor, COORDINATOR, name, detached=detached).remote(order)
    try:
        addresses = ray.get(coordinator.addresses.remote())
    except ray.exceptions.RayActorError as error:
        raise ConfigError(f"the coordinator did not start: {_last_line(error)}") from error
    fleet_order = FleetOrder(
        name=name,
        addresses=tuple(addresses),
        deployments=tuple(deployments),
        settings=settings,
        environment=environment or {},
        detached=detached,
        asks_for_nodes=asks_for_nodes,
    )
    fleet = _actor(FleetActor, FLEET, name, detached=detached).remote(fleet_order)
    return RayCluster(name, coordinator, fleet, addresses, settings)


def _actor(kind: type, role: str, name: str, *, detached: bool) -> Any:
    import ray

    return ray.remote(kind).options(
        name=role,
        namespace=namespace_of(name),
        lifetime="detached" if detached else None,
        num_cpus=0,
        resources=_HEAD,
        max_restarts=-1,
        max_concurrency=8,
    )


def find(name: str, settings: Settings) -> RayCluster | None:
    """The cluster of that name in the Ray that this process is connected to; None when there is none."""
    import ray

    actors = [_named(role, name) for role in (COORDINATOR, FLEET)]
    if actors[0] is None:
        return None
    try:
        addresses = ray.get(actors[0].addresses.remote(), timeout=_PATIENCE_S)
    except ray.exceptions.ActorDiedError:  # it was just ending
        return None
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise NotConnected(f"the coordinator of cluster {name!r} does not answer: {_last_line(error)}") from error
    return RayCluster(name, actors[0], actors[1], addresses, settings)


def _named(role: str, name: str) -> Any:
    import ray

    try:
        return ray.get_actor(role, namespace=namespace_of(name))
    except ValueError:
        return None


def launch(
    name: str,
    deployments: Sequence[Deployment],
    settings: Settings,
    *,
    listen: Sequence[str] = (),
    restart: bool = False,
    asks_for_nodes: bool = True,
) -> tuple[RayCluster, bool]:
    """Start a detached cluster, or change the one of that name to these deployments; whether it was there before.

    `listen`: where a new one's coordinator listens beside its socket; see `ray_runtime.NETWORK`.

    Its workers run in the runtime environment of this process's job, where the files of its pipelines are.
    """
    import ray

    environment = _environment()
    found = find(name, settings)
    if found is not None and found.fleet is not None:
        ray.get(found.fleet.deploy.remote(list(deployments), environment, restart=restart))
        return found, True
    if found is not None:  # half of it: whoever started it was cut off, or it is just ending
        found.kill()
        wait_gone(name, time.monotonic() + _PATIENCE_S)
    made = make(
        name,
        deployments,
        settings,
        listen=listen,
        environment=environment,
        detached=True,
        asks_for_nodes=asks_for_nodes,
    )
    return made, False


def _environment() -> dict[str, Any]:
    """The runtime environment of this job, as plain data."""
    import ray

    found: dict[str, Any] = json.loads(json.dumps(dict(ray.get_runtime_context().runtime_env), default=str))
    return found


def wait_gone(name: str, give_up: float) -> bool:
    """Wait until no actor of a cluster is left; whether that came true. `give_up` in monotonic seconds."""
    while any(_named(role, name) is not None for role in (COORDINATOR, FLEET)) or porters(name):
        if time.monotonic() > give_up:
            return False
        time.sleep(_POLL_S)
    return True


def connect_ray(address: str) -> None:
    """Join a running Ray cluster. NotConnected when there is none there."""
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise NotConnected(f"there is no Ray cluster at {address!r}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
