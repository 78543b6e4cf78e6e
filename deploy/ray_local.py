"""The Ray runtime of an embedded cluster: coordinator and fleet as actors, workers as actors of the fleet.

Used by `local.py`. Joins the Ray cluster this process is connected to, or that RAY_ADDRESS names; else starts one of
its own on this machine and ends it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..proto.deployment import Deployment
from ..settings import Settings
from ..workers.ray_runtime import CoordinatorActor, FleetActor

#: Ray's own memory for objects; requests never pass through it.
_OBJECT_STORE_BYTES = 128 << 20
_STOP_TIMEOUT_S = 10.0


class RayRuntime:
    """A cluster in Ray actors."""

    def __init__(self, name: str, deployments: Sequence[Deployment], settings: Settings) -> None:
        self._own_ray = _ensure_ray(deployments)
        self._settings = settings
        try:
            self._make_actors(name, deployments, settings)
        except BaseException:
            self._end_ray()
            raise

    def _make_actors(self, name: str, deployments: Sequence[Deployment], settings: Settings) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 4}
        namespace = f"tensoryard-{name}"
        coordinator: Any = (
            ray.remote(CoordinatorActor)
            .options(name="coordinator", namespace=namespace, **options)
            .remote(name, settings)
        )
        try:
            self.address: str = ray.get(coordinator.address.remote())
        except ray.exceptions.RayActorError as error:
            raise ConfigError(f"the coordinator did not start: {_last_line(error)}") from error
        self.coordinator = coordinator
        self.fleet: Any = (
            ray.remote(FleetActor)
            .options(name="fleet", namespace=namespace, **options)
            .remote(self.address, list(deployments), settings)
        )

    def close(self) -> None:
        """Drain the fleet, then end coordinator, actors and, where it is ours, Ray."""
        import ray

        try:
            ray.get(self.fleet.close.remote(self._settings.drain_s), timeout=self._settings.drain_s + _STOP_TIMEOUT_S)
            ray.get(self.coordinator.stop.remote(_STOP_TIMEOUT_S), timeout=2 * _STOP_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError):
            pass  # dead already, or stuck: both are killed next
        for actor in (self.fleet, self.coordinator):
            ray.kill(actor)
        self._end_ray()

    def wait_ended(self) -> None:
        """Wait until a client has shut the cluster down."""
        import ray

        while True:
            try:
                if ray.get(self.coordinator.wait_ended.remote(5.0)):
                    return
            except ray.exceptions.RayActorError:  # killed: Ray makes it anew
                time.sleep(0.5)

    def _end_ray(self) -> None:
        import ray

        if self._own_ray:
            ray.shutdown()


def _ensure_ray(deployments: Sequence[Deployment]) -> bool:
    """Connect to Ray; True when a cluster was started for us."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's children must not find a folder `proto` in the working folder before the package of that name.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    import ray

    if ray.is_initialized():
        return False
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return False
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # When this process is killed, what is left of Ray is to end soon after; by itself it waits a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    wanted = sum(deployment.num_cpus * deployment.replicas for deployment in deployments)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(wanted) + 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return True


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
