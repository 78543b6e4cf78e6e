"""Throughput against the number of workers, from 1 to 64, with simulated GPU time; and how soon a load is followed.

`python -m tensoryard.benchmarks.scaling [--out FILE]`: one cluster of plain processes, grown step by step; a worker
sleeps 150 ms for each request, as long as an image or a batch of tokens may take, so that two cores can stand for 64
GPUs. Ratios are within one run. `… scaling --autoscale` lets the load decide: a step up, and down again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensoryard as ty

PIPELINE = Path(__file__).with_name("scaling_pipeline.py")
MODEL = "sleeper"
WORKERS = (1, 2, 4, 8, 16, 32, 64)
SLEEP_S = 0.15
#: Of each stop; a single worker serves some 130 in that time.
MEASURE_S, WARM_UP_S = 20.0, 2.0
READY_S = 900.0
#: Skewed sizes: most requests are short, some take ten times as long; the same mean.
SKEWED = (0.1,) * 9 + (0.6,)
STEP_S = 30.0


def deployment(replicas: int | ty.Autoscale) -> ty.Deployment:
    """Each worker holds the request that it runs and the next."""
    return ty.Deployment(
        model=MODEL,
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{PIPELINE}:create",
        replicas=replicas,
        max_ongoing_requests=2,
        pool_budget_bytes=1 << 20,
    )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What so many workers did. `busy`: the share of their time that was simulated work; `efficiency`: of one worker's.

    With skewed sizes requests per second depend on which sizes came; the work done does not.
    """

    workers: int
    skewed: bool
    per_s: float
    busy: float
    efficiency: float
    #: Seconds of simulated work of the least and of the most busy worker, by the mean.
    least: float
    most: float
    worker_mib: float
    start_s: float


def requests(seconds: Sequence[float], stop_at: float, rng: random.Random) -> Iterator[ty.EmbeddingsRequest]:
    """Until that time (monotonic)."""
    while time.monotonic() < stop_at:
        yield ty.EmbeddingsRequest(model=MODEL, input="x", options={"seconds": rng.choice(seconds)})


def drive(
    client: ty.Client, *, in_flight: int, lasts_s: float, seconds: Sequence[float] = (SLEEP_S,), seed: int = 1
) -> tuple[list[tuple[float, float]], Counter[str]]:
    """Keep so many requests under way for so long: when each was answered, and how long it took its worker.

    And the work of each worker. All in seconds.
    """
    rng = random.Random(seed)  # noqa: S311 - the same sizes in every run
    under_way: deque[tuple[ty.Reply, float]] = deque()
    answered: list[tuple[float, float]] = []
    work: Counter[str] = Counter()
    for request in requests(seconds, time.monotonic() + lasts_s, rng):
        under_way.append((client.submit(request), request.options["seconds"]))
        if len(under_way) >= in_flight:
            _take(under_way, answered, work)
    while under_way:
        _take(under_way, answered, work)
    return answered, work


def _take(under_way: deque[tuple[ty.Reply, float]], answered: list[tuple[float, float]], work: Counter[str]) -> None:
    """Wait for the oldest; with it all that are answered leave."""
    under_way[0][0].result(120)
    for _ in range(len(under_way)):
        reply, seconds = under_way.popleft()
        if reply.done:
            reply.result(0)
            answered.append((time.monotonic(), seconds))
            work[reply.ledger.worker] += seconds
        else:
            under_way.append((reply, seconds))


def measure(
    counts: Sequence[int] = WORKERS, *, lasts_s: float = MEASURE_S, seconds: Sequence[float] = (SLEEP_S,)
) -> list[Stop]:
    """One cluster, grown from stop to stop."""
    stops: list[Stop] = []
    with ty.local([deployment(0)], runtime="process") as yard, yard.connect() as client:
        for count in counts:
            began = time.monotonic()
            yard.deploy([deployment(count)])
            yard.wait_ready(READY_S)
            start_s = time.monotonic() - began
            in_flight = count * (3 if len(set(seconds)) == 1 else 12)  # while the oldest is waited for, others work on
            drive(client, in_flight=in_flight, lasts_s=WARM_UP_S, seconds=seconds)
            began = time.monotonic()
            answered, work = drive(client, in_flight=in_flight, lasts_s=lasts_s, seconds=seconds)
            # The end, where workers run out of work one by one, is not counted.
            within = [took_s for at, took_s in answered if at <= began + lasts_s]
            busy = sum(within) / lasts_s / count
            stops.append(
                Stop(
                    workers=count,
                    skewed=len(set(seconds)) > 1,
                    per_s=len(within) / lasts_s,
                    busy=busy,
                    efficiency=busy / (stops[0].busy if stops else busy),
                    start_s=start_s,
                    **_workers(client, work),
                )
            )
    return stops


def _workers(client: ty.Client, work: Counter[str]) -> dict[str, float]:
    """How work and memory lie over the workers."""
    workers = client.status().models[0].workers
    shares = [work[worker.name] for worker in workers]
    mean = statistics.mean(shares) or 1.0
    return {
        "least": min(shares) / mean,
        "most": max(shares) / mean,
        "worker_mib": statistics.mean(_own_mib(worker.pid) for worker in workers),
    }


def _own_mib(pid: int) -> float:
    """Memory of a process, what it shares counted in shares."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@dataclass(frozen=True, kw_only=True)
class Followed:
    """How the number of workers followed a step of load, in seconds after it; and what it cost."""

    up_s: float
    down_s: float
    turns: int
    sent: int
    answered: int
    targets: list[int]


def follow(policy: ty.Autoscale, *, step_s: float = STEP_S, high: int, low: int = 1) -> Followed:
    """A low load, a high one, a low one: when as many workers serve as it asks for, and when no more are left."""
    seen: list[tuple[float, int, int]] = []
    done = threading.Event()
    with ty.local([deployment(policy)], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready(READY_S)
        watcher = threading.Thread(target=_watch, args=(client, seen, done))
        watcher.start()
        began = time.monotonic()
        counts = [drive(client, in_flight=load, lasts_s=step_s)[0] for load in (low, high)]
        counts.append(drive(client, in_flight=low, lasts_s=step_s + policy.downscale_delay_s)[0])
        done.set()
        watcher.join()
        outcomes = client.status().outcomes
    up_at, down_at = began + step_s, began + 2 * step_s
    targets = [target for _, target, _ in seen]
    most = max(targets)
    signs = [after > before for before, after in itertools.pairwise(targets) if after != before]
    return Followed(
        up_s=next((at - up_at for at, _, ready in seen if ready >= most and at > up_at), float("nan")),
        down_s=next((at - down_at for at, target, _ in seen if target == policy.min and at > down_at), float("nan")),
        turns=sum(one != other for one, other in itertools.pairwise(signs)),
        sent=sum(outcomes.values()),
        answered=sum(map(len, counts)),
        targets=[target for n, target in enumerate(targets) if n == 0 or target != targets[n - 1]],
    )


def _watch(client: ty.Client, seen: list[tuple[float, int, int]], done: threading.Event) -> None:
    while not done.wait(0.1):
        [model] = client.status().models
        ready = sum(worker.state == "ready" for worker in model.workers)
        seen.append((time.monotonic(), model.replicas, ready))


HEAD = "| workers | sizes | requests/s | busy | of so many times one worker | least - most work | MiB each | more in |"


def table(stops: Sequence[Stop]) -> str:
    """The stops as Markdown."""
    lines = [
        f"| {stop.workers} | {'skewed' if stop.skewed else 'equal'} | {stop.per_s:.1f} | {stop.busy:.3f} | "
        f"{stop.efficiency:.3f} | {stop.least:.2f} - {stop.most:.2f} | {stop.worker_mib:.0f} | {stop.start_s:.0f} s |"
        for stop in stops
    ]
    return "\n".join([HEAD, "|--:|---|--:|--:|--:|---|--:|--:|", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where that is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=lambda text: tuple(map(int, text.split(","))), default=WORKERS)
    parser.add_argument("--seconds", type=float, default=MEASURE_S, help=f"of each stop ({MEASURE_S:g})")
    parser.add_argument("--autoscale", action="store_true", help="follow a step of load instead")
    parser.add_argument("--out", type=Path, help="write JSON here")
    asked = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; simulated GPU time {SLEEP_S * 1000:g} ms")
    found: Any
    if asked.autoscale:
        policy = ty.Autoscale(min=1, max=8, target_ongoing_requests=2, upscale_delay_s=2, downscale_delay_s=10)
        found = asdict(follow(policy, high=16))
        print(json.dumps(found))
    else:
        stops = measure(asked.workers, lasts_s=asked.seconds)
        stops += measure([stop for stop in asked.workers if stop in (1, 16)], lasts_s=asked.seconds, seconds=SKEWED)
        print(table(stops))
        found = [asdict(stop) for stop in stops]
    if asked.out is not None:
        asked.out.write_text(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg(), "found": found}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
