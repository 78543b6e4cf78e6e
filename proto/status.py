"""What a coordinator tells about its cluster: the answer to ASK_STATUS, for `client.status()` and the CLI.

Built by `coordinator/reports.py`; plain numbers and names of one moment.
"""

from __future__ import annotations

import msgspec


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. `state`: starting, ready or draining; `seen_s`: seconds since its last message."""

    name: str
    host: str
    pid: int
    state: str
    in_flight: int
    credits: int
    seen_s: float


class AdapterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter of a model. `state`: loading, loaded, draining or unloading; `workers`: how many have it."""

    name: str
    path: str
    state: str
    workers: int
    #: Requests that wait or run with it.
    live: int
    #: Why workers could not load it, by their names.
    failures: dict[str, str] = {}


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model. `unhealthy`: why its pipeline cannot start, "" while it can; `replicas`: workers wanted.

    `pending`: what its fleet waits for, "" for nothing: workers without a place, or of an earlier kind.
    """

    model: str
    task: str
    deployment: str
    replicas: int
    unhealthy: str
    queued: int
    queued_bytes: int
    workers: list[WorkerStatus]
    pending: str = ""
    adapters: list[AdapterStatus] = []

    @property
    def is_ready(self) -> bool:
        """As many workers are ready as are wanted."""
        return sum(worker.state == "ready" for worker in self.workers) >= self.replicas


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster. `outcomes`: requests by how they ended since `epoch` began."""

    name: str
    address: str
    epoch: str
    version: str
    uptime_s: float
    accepting: bool
    clients: int
    live_requests: int
    outcomes: dict[str, int]
    models: list[ModelStatus]
    #: Bytes of messages that the coordinator keeps for live requests.
    kept_bytes: int = 0
    #: Requests that wait until the fleet has said what it serves.
    waiting_for_fleet: int = 0
