"""What an event costs the router, from ten waiting requests to a million and from two workers to a thousand.

`python -m tensoryard.benchmarks.router_scale`: the real `coordinator.router.Router`, driven without sockets. One round
walks a fresh router up the decades of waiting requests, and another up those of workers; at each stop every kind of
event is timed by the thread's own clock, so that what else runs on the machine counts less. A growth is the ratio of
two stops of the same round. `__main__.py` prints the goals from what `measure` returns.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import Limits, Model
from tensoryard.coordinator.router import Router
from tensoryard.coordinator.story import MAX_ENDED

from . import part

MODEL, TASK, HOST = "model", "embeddings_generation", "host"
#: Requests that a worker holds at once.
CREDITS = 4
CLIENTS = 10_000
QUEUED = tuple(10**power for power in range(1, 7))
WORKERS = (2, 10, 100, 1000)
#: Where the other side stays while one side walks.
FIXED_WORKERS, FIXED_QUEUED = 1000, 100_000
#: Events of a kind timed together. The smallest yard has no more slots than this.
BLOCK = 8
#: Such blocks at every stop.
BLOCKS = 250
#: Workers that come and go at every stop.
ARRIVALS = 100


class Yard:
    """A router whose workers are all busy, with as many waiting requests as wanted."""

    def __init__(self, *, workers: int, clients: int = CLIENTS, seed: int = 1) -> None:
        self.router = Router(Limits())
        self._at = 0.0
        self._chance = random.Random(seed)  # noqa: S311 - the same walk in every run
        self._numbers, self._names = itertools.count(), itertools.count()
        self._clients = [f"client-{number:05}" for number in range(clients)]
        #: Requests that were sent, some of which wait no more, for cancelling one anywhere in the queue.
        self._sent: list[tuple[str, str]] = []
        self._workers: list[str] = []
        self.grow(workers)
        self._age()

    @property
    def model(self) -> Model:
        """The only one."""
        return self.router.models[MODEL]

    def handle(self, events: Sequence[ev.Event]) -> None:
        """Let the router take them, untimed."""
        for event in events:
            self.router.handle(event)

    def grow(self, workers: int) -> None:
        """Workers join until there are so many."""
        while len(self._workers) < workers:
            name = f"worker-{next(self._names)}"
            self._workers.append(name)
            self.handle(self.joining(name))

    def fill(self, queued: int) -> None:
        """Submit until all workers are busy and so many requests wait."""
        while self.model.free_workers.least() is not None or self.model.waiting < queued:
            self.router.handle(self.submission())

    def _age(self) -> None:
        """What is kept of requests that ended is kept up to a bound: a router that has lived a while is at it."""
        self.fill(1)
        for _ in range(MAX_ENDED + 1):
            submission = self.submission()
            gone = ev.CancelAsked(at=submission.at, client=submission.client, request_id=submission.request_id)
            self.handle([submission, gone])

    # -- events -------------------------------------------------------------------------------------------------------

    def _step(self) -> float:
        self._at += 1e-5
        return self._at

    def joining(self, name: str) -> list[ev.Event]:
        """What a worker says when it comes."""
        ready = ev.WorkerReadied(
            at=self._step(),
            worker=name,
            model=MODEL,
            task=TASK,
            deployment=MODEL,
            credits=CREDITS,
            max_queued=1 << 40,
            max_queued_bytes=1 << 60,
        )
        return [ev.WorkerJoined(at=self._at, worker=name, host=HOST), ready]

    def submission(self) -> ev.RequestArrived:
        """A request of any client; every other one has a deadline, far away."""
        number = next(self._numbers)
        request_id, client = f"request-{number:032x}", self._chance.choice(self._clients)
        self._sent.append((request_id, client))
        return ev.RequestArrived(
            at=self._step(),
            client=client,
            request_id=request_id,
            task=TASK,
            model=MODEL,
            deadline_s=1e6 + self._chance.random() if number % 2 else None,
            host=HOST,
            shared_bytes=1000,
            body_bytes=200,
        )

    def submissions(self, count: int) -> list[ev.Event]:
        """As many."""
        return [self.submission() for _ in range(count)]

    def answers(self, count: int) -> list[ev.Event]:
        """The last outputs of as many requests that run, of any workers."""
        slots: set[tuple[str, tuple[str, int]]] = set()
        while len(slots) < count:
            worker = self.router.workers[self._chance.choice(self._workers)]
            slots.add((worker.name, self._chance.choice(list(worker.slots))))
        return [
            ev.OutputArrived(at=self._step(), worker=name, request_id=key, attempt=attempt, seq=0, done=True)
            for name, (key, attempt) in sorted(slots)
        ]

    def cancellations(self, count: int) -> list[ev.Event]:
        """Of as many requests that wait, anywhere in the queue."""
        found: list[ev.Event] = []
        while len(found) < count:
            position = self._chance.randrange(len(self._sent))
            self._sent[position], self._sent[-1] = self._sent[-1], self._sent[position]
            request_id, client = self._sent.pop()
            if request_id in self.model.queue:
                found.append(ev.CancelAsked(at=self._step(), client=client, request_id=request_id))
        return found

    def ticks(self, count: int) -> list[ev.Event]:
        """Moments in which nothing is due."""
        return [ev.Ticked(at=self._step()) for _ in range(count)]

    def beats(self, count: int) -> list[ev.Event]:
        """Heartbeats of busy workers."""
        names = self._chance.choices(self._workers, k=count)
        return [ev.WorkerBeat(at=self._step(), worker=name, progress=0, busy=True) for name in names]


class Clock:
    """Microseconds per event of a kind, block by block."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._blocks: dict[str, list[float]] = {}

    def time(self, kind: str, events: Sequence[ev.Event], count: int | None = None) -> None:
        """Let the router handle them; they count as `count` events."""
        handle = self._router.handle
        began = time.thread_time()
        for event in events:
            handle(event)
        took = time.thread_time() - began
        self._blocks.setdefault(kind, []).append(took / (count or len(events)) * 1e6)

    def means(self) -> dict[str, float]:
        """Microseconds per event, without the twentieth of the blocks that took longest.

        Those are page faults, interrupts and full garbage collections, which fall where they fall; what the collections
        cost is said by `weigh`.
        """
        return {kind: statistics.fmean(sorted(took)[: len(took) * 19 // 20]) for kind, took in self._blocks.items()}


def costs(yard: Yard, *, blocks: int = BLOCKS, arrivals: int = ARRIVALS) -> dict[str, float]:
    """Microseconds per event of every kind, here; the yard is as full afterwards as before."""
    clock = Clock(yard.router)
    for _ in range(blocks):
        clock.time("submit", yard.submissions(BLOCK))
        clock.time("answer and dispatch", yard.answers(BLOCK))
        clock.time("cancel", yard.cancellations(BLOCK))
        yard.handle(yard.submissions(BLOCK))
        clock.time("tick", yard.ticks(BLOCK))
        clock.time("heartbeat", yard.beats(BLOCK))
    for number in range(arrivals):
        name = f"guest-{number}"
        clock.time("worker joins", yard.joining(name), 1)
        held = list(yard.router.workers[name].slots)
        clock.time("worker is lost", [ev.WorkerGone(at=yard._step(), worker=name, reason="died")], 1)  # noqa: SLF001
        settle(yard, held)
    return clock.means()


def settle(yard: Yard, held: Sequence[tuple[str, int]]) -> None:
    """Cancel what was lost with a worker, and put as many new requests in its place."""
    for request_id, _ in held:
        request = yard.router.requests[request_id]
        yard.handle([ev.CancelAsked(at=request.arrived, client=request.client, request_id=request_id)])
    yard.handle(yard.submissions(len(held)))


def walk_queued(stops: Sequence[int], workers: int, seed: int, *, blocks: int) -> dict[int, dict[str, float]]:
    """Costs at each number of waiting requests, with so many workers."""
    yard, found = Yard(workers=workers, seed=seed), {}
    for stop in stops:
        yard.fill(stop)
        found[stop] = costs(yard, blocks=blocks)
    return found


def walk_workers(stops: Sequence[int], queued: int, seed: int, *, blocks: int) -> dict[int, dict[str, float]]:
    """Costs at each number of workers, with so many waiting requests."""
    found = {}
    yard = Yard(workers=stops[0], seed=seed)
    for stop in stops:
        yard.grow(stop)
        yard.fill(queued)
        found[stop] = costs(yard, blocks=blocks)
    return found


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def weigh(queued: int, workers: int) -> dict[str, float]:
    """What a waiting request takes: bytes, objects that the collector visits, and what its visits cost."""
    gc.collect()
    objects, resident = len(gc.get_objects()), resident_bytes()
    yard = Yard(workers=workers)
    began = time.thread_time()
    yard.fill(queued)
    filled_s = time.thread_time() - began
    own = 8 * len(yard._sent) + sum(map(_size, yard._sent))  # noqa: SLF001 - what the driver itself remembers
    began = time.thread_time()
    gc.collect()
    full_s = time.thread_time() - began
    return {
        "bytes per request": (resident_bytes() - resident - own) / queued,
        "objects per request": (len(gc.get_objects()) - objects) / queued,
        "fill, µs per request": filled_s / queued * 1e6,
        "full collection, s": full_s,
        # CPython makes one when the young objects that survived are a quarter of the old ones.
        "its share, µs per request": full_s / (queued / 4) * 1e6,
    }


def _size(sent: tuple[str, str]) -> int:
    """A driver's tuple; the texts belong to the router as well."""
    return 56 + 8 * len(sent)


def measure(
    rounds: int,
    *,
    queued: Sequence[int] = QUEUED,
    workers: Sequence[int] = WORKERS,
    blocks: int = BLOCKS,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything, as plain data: costs per round, growths, weights."""
    tell(f"router: {queued[-1]} waiting requests on the scales")
    weight = _fresh(lambda: weigh(queued[-1], FIXED_WORKERS))  # first, while memory that was freed cannot hide any
    by_queued, by_workers = [], []
    for number in range(rounds):
        tell(f"router, round {number + 1} of {rounds}")
        by_queued.append(_fresh(lambda n=number: walk_queued(queued, FIXED_WORKERS, n, blocks=blocks)))
        by_workers.append(
            _fresh(lambda n=number: walk_workers(workers, min(FIXED_QUEUED, queued[-1]), n, blocks=blocks))
        )
    return {
        "queued": table(by_queued),
        "workers": table(by_workers),
        "growth_queued": growths(by_queued),
        "growth_workers": growths(by_workers),
        "weight": weight,
    }


def _fresh(work: Callable[[], Any]) -> Any:
    """Nothing of the last walk is left to be collected in this one."""
    gc.collect()
    return work()


def table(rounds: Sequence[dict[int, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By kind of event and stop: the median of the rounds, in microseconds."""
    kinds = list(rounds[0][min(rounds[0])])
    return {
        kind: {str(stop): statistics.median(found[stop][kind] for found in rounds) for stop in rounds[0]}
        for kind in kinds
    }


def growths(rounds: Sequence[dict[int, dict[str, float]]]) -> dict[str, list[float]]:
    """By kind of event: in each round, the cost at the last stop over that at the first."""
    first, last = min(rounds[0]), max(rounds[0])
    return {kind: [found[last][kind] / found[first][kind] for found in rounds] for kind in rounds[0][first]}


def as_text(found: dict[str, Any]) -> str:
    """The tables, for a terminal."""
    lines = []
    for side in ("queued", "workers"):
        stops = list(next(iter(found[side].values())))
        lines.append(f"{'µs per event, ' + side:24}" + "".join(f"{stop:>10}" for stop in stops) + "    growth")
        for kind, costs_ in found[side].items():
            growth = found[f"growth_{side}"][kind]
            cells = "".join(f"{costs_[stop]:10.2f}" for stop in stops)
            lines.append(f"{kind:24}{cells}{statistics.median(growth):9.2f}x ({min(growth):.2f}-{max(growth):.2f})")
    lines += [f"{name:28}{value:12.2f}" for name, value in found["weight"].items()]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = part.parser(__doc__, quick="up to 10,000 waiting requests, for a look")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found = measure(asked.rounds, queued=QUEUED[:4] if asked.quick else QUEUED, tell=print)
    part.tell({**found, "complete": not asked.quick}, as_text, asked.json)


if __name__ == "__main__":
    main()
