"""The Ray runtime of an embedded cluster: the Ray that it runs in, and the cluster's end with its process.

Used by `local.py`; `ray_cluster.py` makes the actors. Joins the Ray cluster this process is connected to, or that
RAY_ADDRESS names; else starts one of its own on this machine and ends it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ..proto.deployment import Deployment
from ..settings import Settings
from ..workers.ray_runtime import NETWORK
from .ray_cluster import make

#: Ray's own memory for objects; requests never pass through it.
_OBJECT_STORE_BYTES = 128 << 20


class RayRuntime:
    """A cluster in Ray actors that ends with this process."""

    def __init__(self, name: str, deployments: Sequence[Deployment], settings: Settings) -> None:
        self._own_ray = _ensure_ray(deployments)
        try:
            # A Ray that was there before may have nodes on other hosts.
            self.cluster = make(name, deployments, settings, listen=() if self._own_ray else (NETWORK,))
        except BaseException:
            self._end_ray()
            raise
        self.address = self.cluster.address
        self.deploy, self.expectations = self.cluster.deploy, self.cluster.expectations
        self.wait_ended = self.cluster.wait_ended

    def close(self) -> None:
        """Drain the fleet, then end coordinator, actors and, where it is ours, Ray."""
        self.cluster.close()
        self._end_ray()

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
    wanted = sum(deployment.num_cpus * deployment.most_replicas for deployment in deployments)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(wanted) + 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return True
