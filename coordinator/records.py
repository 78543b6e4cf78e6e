"""The router's books: one record per request, worker, model and client.

Only `router.py` changes them, except where a method here says what it changes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from ..proto import wire
from ..proto.lora import LoRAStatus
from . import events as ev
from .queues import LeastLoaded, RequestQueue
from .story import Lines


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that hold for the whole coordinator; those of a model come with its deployment."""

    max_in_flight_per_client: int = 4096
    #: Of one client's live requests, shared memory included.
    max_bytes_per_client: int = 4 << 30
    #: Of the bodies of all live requests.
    max_kept_bytes: int = 4 << 30


#: A refusal names no time outside these bounds: sooner is not worth a message, later is a guess.
_MIN_RETRY_S = 0.01
_MAX_RETRY_S = 60.0
#: What it takes to bring an array to another host, measured between porters (decision 0037), and the least that a
#: request is taken to take.
_MOVE_S = 0.015
_MOVE_BYTES_PER_S = 500 << 20
_SHORTEST_S = 1e-4
#: Where no worker serves yet, nobody knows.
_NO_WORKER_S = 1.0


class RequestState(Enum):
    """Where a live request is."""

    QUEUED = "queued"
    RUNNING = "running"


class WorkerState(Enum):
    """Where a live worker is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class AdapterState(Enum):
    """Where an adapter is. Requests are taken for it while it is LOADED."""

    #: Asked for, and not yet on all workers that were asked.
    LOADING = "loading"
    LOADED = "loaded"
    #: To be unloaded when the last request that was taken for it has ended.
    DRAINING = "draining"
    UNLOADING = "unloading"


class Request(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One accepted request, until its terminal answer.

    A Struct, made in a fifth of a dataclass's time, and not visited by the garbage collector: it is in no cycle, and
    there may be a million.
    """

    request_id: str
    client: str
    model: str
    priority: int
    #: In the time of the events; infinite when there is none.
    deadline: float
    #: Where its arrays lie in shared memory; "" when it has none.
    host: str
    #: Bytes it keeps waiting, in the coordinator and in shared memory; and those in the coordinator alone.
    weight_bytes: int
    body_bytes: int
    arrived: float
    #: Names it apart from others of its RequestID; 0: its client cannot tell.
    submission: int = 0
    state: RequestState = RequestState.QUEUED
    #: The worker it runs on; "" while QUEUED.
    worker: str = ""
    #: The number of its last dispatch; answers of any other (worker, attempt) are discarded.
    attempt: int = 0
    #: It runs as an attempt that a worker brought along: parts of its output may have gone to an earlier coordinator.
    adopted: bool = False
    #: Workers lost while they ran it. More than 0: it runs alone from now on.
    losses: int = 0
    #: Outputs passed on; a retry's outputs below this are repeats.
    delivered: int = 0
    #: How much of its stream may be unread, in outputs and bytes; 0 outputs: any number.
    window_parts: int = 0
    window_bytes: int = 0
    #: Outputs that its caller has read, as far as told; an earlier coordinator may have passed on more than we have.
    consumed: int = 0
    #: The adapter of its model that it runs with; "" for none.
    adapter: str = ""
    #: How its arrays can be brought to other hosts; see `wire.Submit`.
    porter: bool = False
    uses: list[wire.Use] = []
    started: float = 0.0
    #: Its story, of which `story.py` keeps the books.
    lines: Lines = msgspec.field(default_factory=list)

    @property
    def shared_bytes(self) -> int:
        """What it has in shared memory."""
        return self.weight_bytes - self.body_bytes


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
    #: What it holds, as (request_id, attempt). Includes attempts nobody wants any more, until it has answered them.
    slots: dict[tuple[str, int], None] = field(default_factory=dict)
    #: It runs suspects, on their last try one alone, and gets nothing else meanwhile.
    exclusive: bool = False
    #: Whether it can be asked to load adapters.
    takes_adapters: bool = False
    #: Its last progress count, and when anything last moved.
    progress: int = 0
    progressed: float = 0.0

    def ready(self, event: ev.WorkerReadied, at: float) -> None:
        """Take over what the worker says of itself."""
        self.state = WorkerState.READY
        self.model, self.deployment = event.model, event.deployment
        self.slots = dict.fromkeys(event.running)
        self.takes_adapters = event.takes_adapters
        self.credits, self.hang_limit_s = max(event.credits, len(self.slots)), event.hang_limit_s
        self.progressed = at

    @property
    def hangs_at(self) -> float:
        """When it counts as hung, if it still holds work and nothing moves until then."""
        return self.progressed + self.hang_limit_s


@dataclass(slots=True, kw_only=True, eq=False)
class Adapter:
    """One adapter of a model, by a name that is no other's; `adapters.py` keeps its books."""

    name: str
    model: str
    path: str
    state: AdapterState = AdapterState.LOADING
    #: Workers that have it.
    on: set[str] = field(default_factory=set)
    #: Workers that were asked to load it, or unload it, and have not answered: the number of the question.
    asked: dict[str, int] = field(default_factory=dict)
    #: Workers that could not: status and text.
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Workers lost while they loaded it, since one last could.
    losses: int = 0
    #: Live requests that run with it, in order.
    live: dict[str, None] = field(default_factory=dict)
    #: What its askers are told when it is gone from all workers again; None: that it is unloaded.
    verdict: tuple[LoRAStatus, tuple[str, ...]] | None = None
    #: Who waits for an answer.
    askers: dict[str, None] = field(default_factory=dict)
    #: While some worker of the model lacks it: those that have it and are free, and requests that wait for one.
    free: LeastLoaded = field(default_factory=LeastLoaded)
    queue: RequestQueue = field(default_factory=RequestQueue)


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """One model: who waits for it and who serves it."""

    name: str
    task: str
    deployment: str
    #: A fleet means it to be served; without, it lives as long as its last worker.
    expected: bool = False
    replicas: int = 0
    #: Why its pipeline cannot start; "" while it can. Workers that started before may still serve.
    unhealthy: str = ""
    #: What its fleet waits for; "" for nothing.
    pending: str = ""
    max_queued: int = 10_000
    max_queued_bytes: int = 8 << 30
    queue: RequestQueue = field(default_factory=RequestQueue)
    #: Requests lost with a worker, in order; each runs alone.
    suspects: OrderedDict[str, None] = field(default_factory=OrderedDict)
    #: Weight of `queue` and `suspects`.
    queued_bytes: int = 0
    workers: dict[str, Worker] = field(default_factory=dict)
    #: The sum of the credits of `workers`.
    credits: int = 0
    #: What its workers held when they joined and no client has asked for again yet: (worker, attempt, submission).
    adoptable: dict[str, tuple[Worker, int, int]] = field(default_factory=dict)
    #: READY workers with a credit, by load and host; without those that are exclusive or reserved.
    free_workers: LeastLoaded = field(default_factory=LeastLoaded)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    #: Of its adapters those that only some of its workers have: their requests may have to wait apart.
    lanes: dict[str, Adapter] = field(default_factory=dict)
    #: The worker kept free for the first suspect; "" for none, always so while nothing is suspect.
    reserved: str = ""
    #: Live requests, and the most at once since somebody last asked.
    live: int = 0
    peak: int = 0
    #: Seconds a request takes on a worker, as a moving average.
    mean_s: float = 0.05
    #: When there will be room for the last of those that were refused, if things go as expected.
    room_at: float = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        waiting = len(self.queue) + len(self.suspects)
        return waiting + sum(len(lane.queue) for lane in self.lanes.values()) if self.lanes else waiting

    def waiting_ids(self) -> list[str]:
        """Which they are."""
        apart = [request_id for lane in self.lanes.values() for request_id in lane.queue.waiting()]
        return [*self.suspects, *apart, *self.queue.waiting()]

    def least(self, request: Request) -> str | None:
        """The free worker for a request: the least loaded, or one where its arrays lie if that costs less than to move.

        None when none is free that could run it.
        """
        lane = self.lanes.get(request.adapter) if request.adapter else None
        free = self.free_workers if lane is None else lane.free
        return free.near(request.host, self.worth(request.shared_bytes)) if request.host else free.least()

    def can_run(self, worker: str, request: Request) -> bool:
        """Whether a worker of the model has what the request needs."""
        lane = self.lanes.get(request.adapter) if request.adapter else None
        return lane is None or worker in lane.on

    def offer(self, worker: Worker) -> None:
        """Enter a worker among the free ones."""
        load = len(worker.slots) / worker.credits
        self.free_workers.set(worker.name, load, worker.host)
        for lane in self.lanes.values():
            if worker.name in lane.on:
                lane.free.set(worker.name, load, worker.host)

    def withdraw(self, worker: Worker) -> None:
        """Take a worker out from among them."""
        self.free_workers.remove(worker.name)
        for lane in self.lanes.values():
            lane.free.remove(worker.name)

    def count_live(self, change: int) -> None:
        """One more, or one less."""
        self.live += change
        self.peak = max(self.peak, self.live)

    def take_peak(self) -> int:
        """The most live requests at once since this was last asked."""
        peak, self.peak = self.peak, self.live
        return peak

    def worth(self, moved_bytes: int) -> float:
        """What it is worth to leave so many bytes where they are, as a difference of load between two workers.

        A full worker keeps a newcomer waiting for about as long as a request takes; moving bytes takes its own time.
        """
        return (_MOVE_S + moved_bytes / _MOVE_BYTES_PER_S) / max(self.mean_s, _SHORTEST_S)

    def learn(self, took_s: float) -> None:
        """Enter one request's time on a worker."""
        self.mean_s += 0.1 * (took_s - self.mean_s)

    def next_room_s(self, at: float, weight_bytes: int = 0) -> float:
        """In how many seconds there is likely room for one more, of that weight: whoever asks next comes after it.

        Places become free one by one, as fast as the workers answer; those who are sent away all at once must not
        come back all at once.
        """
        places = 1.0
        if self.waiting and weight_bytes:
            missing = self.queued_bytes + weight_bytes - self.max_queued_bytes
            places = max(1.0, missing * self.waiting / max(self.queued_bytes, 1))
        per_place_s = self.mean_s / self.credits if self.credits else _NO_WORKER_S
        self.room_at = min(max(self.room_at, at) + places * per_place_s, at + _MAX_RETRY_S)
        return max(self.room_at - at, _MIN_RETRY_S)


@dataclass(slots=True, kw_only=True, eq=False)
class Client:
    """A client with live requests."""

    live: set[str] = field(default_factory=set)
    #: What they weigh together.
    weight_bytes: int = 0


def same_submission(one: int, other: int) -> bool:
    """Whether two messages may be about the same wish of a caller; with a peer that cannot tell, they are."""
    return one == other or not one or not other


def check_request(request: Request, models: dict[str, Model], workers: dict[str, Worker]) -> None:
    """A request is in exactly one place, the one its state says."""
    model = models[request.model]
    queued = (request.request_id in model.queue) + (request.request_id in model.suspects)
    queued += sum(request.request_id in lane.queue for lane in model.lanes.values())
    if request.state is RequestState.QUEUED:
        assert queued == 1, f"{request.request_id} is QUEUED and in {queued} queues"
        assert not request.worker, f"{request.request_id} is QUEUED and has a worker"
    else:
        assert not queued, f"{request.request_id} is RUNNING and in a queue"
        slots = workers[request.worker].slots
        assert (request.request_id, request.attempt) in slots, f"{request.request_id} runs in no slot"


def check_model(model: Model, requests: dict[str, Request], workers: dict[str, Worker]) -> None:
    """What a model counts is what there is, and nothing waits that could run."""
    name, waiting = model.name, model.waiting_ids()
    assert len(waiting) == model.waiting, f"{name}: {model.waiting} requests counted, {len(waiting)} waiting"
    assert all(requests[r].state is RequestState.QUEUED for r in waiting), "a waiting request is not QUEUED"
    weight = sum(requests[r].weight_bytes for r in waiting)
    assert weight == model.queued_bytes, f"{name}: {model.queued_bytes} bytes counted, {weight} waiting"
    assert model.expected or model.workers, f"{name} is expected by nobody and has no workers"
    credit = sum(worker.credits for worker in model.workers.values())
    assert credit == model.credits, f"{name}: {model.credits} credits counted, its workers have {credit}"
    alive = sum(request.model == name for request in requests.values())
    assert alive == model.live <= model.peak, f"{name}: {model.live} live requests counted, there are {alive}"
    free = model.free_workers.least()
    assert free is None or not model.queue, f"{name}: {free} is free while requests wait"
    able = any(model.least(requests[suspect]) for suspect in model.suspects)
    assert free is None or model.reserved or not able, f"{name}: {free} is free while suspects wait"
    for request_id, (worker, attempt, _) in model.adoptable.items():
        live = requests.get(request_id)
        assert live is None or live.model != name, f"{request_id} is live and was not adopted"
        assert (request_id, attempt) in worker.slots, f"{request_id} is adoptable and in no slot"
    if model.reserved:
        assert model.suspects, f"{name}: {model.reserved} is reserved for nothing"
        reserved = workers[model.reserved]
        assert reserved.state is WorkerState.READY, f"{name} reserves a worker that leaves"
        assert reserved.slots, f"{name} reserves a worker that is idle"


def check_adapters(model: Model, requests: dict[str, Request]) -> None:
    """An adapter's live requests are those of its name, and its lane is there when, and only when, it is needed."""
    for name, adapter in model.adapters.items():
        assert adapter.on <= model.workers.keys(), f"{name} is on workers that are gone"
        assert adapter.asked.keys() <= model.workers.keys(), f"{name} is asked of workers that are gone"
        live = {r.request_id for r in requests.values() if (r.model, r.adapter) == (model.name, name)}
        assert live == adapter.live.keys(), f"the live requests of {name} are miscounted"
        serving = adapter.state in (AdapterState.LOADED, AdapterState.DRAINING)
        assert serving or not adapter.live, f"{name} is {adapter.state.value} and has live requests"
        partial = serving and len(adapter.on) < len(model.workers)
        assert (model.lanes.get(name) is adapter) == partial, f"{name} has a lane, or none, and should not"
        assert partial or not adapter.queue, f"requests wait apart for {name}, which every worker has"
        free = {worker for worker in model.workers if worker in model.free_workers and worker in adapter.on}
        assert not partial or free == {w for w in model.workers if w in adapter.free}, f"{name}: wrong ones are free"
        assert not partial or not free or not adapter.queue, f"{name}: {free} are free while requests wait"
    assert model.lanes.keys() <= model.adapters.keys(), "a lane of no adapter"


def check_worker(worker: Worker, models: dict[str, Model], requests: dict[str, Request]) -> None:
    """A worker holds what it may, and is on offer when it may hold more."""
    name, model = worker.name, models.get(worker.model)
    assert len(worker.slots) <= worker.credits, f"{name} holds more than its credits"
    assert not worker.exclusive or worker.slots, f"{name} is exclusive and holds nothing"
    for request_id, attempt in worker.slots if worker.exclusive else ():
        request = requests.get(request_id)
        mine = request is not None and (request.worker, request.attempt) == (name, attempt)
        assert not mine or requests[request_id].losses, f"{name} is exclusive and holds {request_id}, no suspect"
    if model is None:
        assert not worker.model, f"{name} is ready for a model that is not there"
        return
    assert model.workers.get(name) is worker, f"{name} is not among its model's workers"
    usable = worker.state is WorkerState.READY and not worker.exclusive and model.reserved != name
    free = usable and len(worker.slots) < worker.credits
    assert (name in model.free_workers) == free, f"{name} is wrongly among the free workers, or wrongly not"


def check_clients(clients: dict[str, Client], requests: dict[str, Request]) -> None:
    """Each client's live requests are those of its name."""
    live: dict[str, set[str]] = {}
    weights: dict[str, int] = {}
    for request in requests.values():
        live.setdefault(request.client, set()).add(request.request_id)
        weights[request.client] = weights.get(request.client, 0) + request.weight_bytes
    assert live == {name: client.live for name, client in clients.items()}, "a client's live requests are miscounted"
    assert weights == {name: client.weight_bytes for name, client in clients.items()}, "a client's bytes are miscounted"
