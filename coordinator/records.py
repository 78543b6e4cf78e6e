"""The router's books: one record per request, worker, model and client.

Only `router.py` changes them, except where a method here says what it changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from . import events as ev
from .queues import LeastLoaded, RequestQueue


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that hold for the whole coordinator; those of a model come with its deployment."""

    max_in_flight_per_client: int = 4096


class RequestState(Enum):
    """Where a live request is."""

    QUEUED = "queued"
    RUNNING = "running"


class WorkerState(Enum):
    """Where a live worker is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One accepted request, until its terminal answer."""

    request_id: str
    client: str
    model: str
    priority: int
    #: In the time of the events; infinite when there is none.
    deadline: float
    #: Where its arrays lie in shared memory; "" when it has none.
    host: str
    #: Bytes it keeps waiting, in the coordinator and in shared memory.
    weight_bytes: int
    arrived: float
    state: RequestState = RequestState.QUEUED
    #: The worker it runs on; "" while QUEUED.
    worker: str = ""
    #: Counts dispatches; answers of any other (worker, attempt) are discarded.
    attempt: int = 0
    #: Workers lost while they ran it. More than 0: it runs alone from now on.
    losses: int = 0
    #: Outputs passed on; a retry's outputs below this are repeats.
    delivered: int = 0
    started: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One worker, from hello to its end."""

    name: str
    host: str
    state: WorkerState = WorkerState.STARTING
    model: str = ""
    deployment: str = ""
    credits: int = 0
    hang_limit_s: float = 300.0
    #: What it holds: request_id to attempt. Includes attempts nobody wants any more, until it has answered them.
    slots: dict[str, int] = field(default_factory=dict)
    #: Those of `slots` that it held when it joined and whose client has not asked again yet.
    adopted: dict[str, int] = field(default_factory=dict)
    #: It runs one suspect alone and gets nothing else meanwhile.
    exclusive: bool = False
    #: Its last progress count, and when anything last moved.
    progress: int = 0
    progressed: float = 0.0

    def ready(self, event: ev.WorkerReadied, at: float) -> None:
        """Take over what the worker says of itself."""
        self.state = WorkerState.READY
        self.model, self.deployment = event.model, event.deployment
        self.credits, self.hang_limit_s = max(event.credits, len(event.running)), event.hang_limit_s
        self.slots = dict(event.running)
        self.adopted = dict(event.running)
        self.progressed = at

    def is_hung(self, at: float) -> bool:
        """It holds work and nothing has moved for longer than its limit."""
        return bool(self.slots) and at - self.progressed > self.hang_limit_s


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """One model: who waits for it and who serves it."""

    name: str
    task: str
    deployment: str
    #: A fleet means it to be served; without, it lives as long as its last worker.
    expected: bool = False
    replicas: int = 0
    #: Why its pipeline cannot start; "" while it can.
    unhealthy: str = ""
    max_queued: int = 10_000
    max_queued_bytes: int = 8 << 30
    queue: RequestQueue = field(default_factory=RequestQueue)
    #: Requests lost with a worker, in order; each runs alone.
    suspects: dict[str, None] = field(default_factory=dict)
    #: Weight of `queue` and `suspects`.
    queued_bytes: int = 0
    workers: dict[str, Worker] = field(default_factory=dict)
    #: Workers with a credit, by load and host.
    free_workers: LeastLoaded = field(default_factory=LeastLoaded)
    #: The worker kept free for the first suspect; "" for none.
    reserved: str = ""
    #: Seconds a request takes on a worker, as a moving average.
    mean_s: float = 0.05

    def learn(self, took_s: float) -> None:
        """Enter one request's time on a worker."""
        self.mean_s += 0.1 * (took_s - self.mean_s)

    def expected_wait_s(self) -> float:
        """When a place in the queue may be free: the time to run what waits, between 50 ms and a minute."""
        credits = sum(worker.credits for worker in self.workers.values()) or 1
        return min(max(0.05, len(self.queue) * self.mean_s / credits), 60.0)


@dataclass(slots=True, kw_only=True, eq=False)
class Client:
    """A client with live requests."""

    live: set[str] = field(default_factory=set)
