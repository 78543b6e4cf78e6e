"""What a request costs from client to worker and back, on a cluster of plain processes on this machine.

`python benchmarks/round_trip.py`: latency one at a time, throughput with 64 under way, for small arrays and for 64 MiB
by handle; with the bytes that crossed sockets. Peers are not measured here.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

import tensoryard as ty

PIPELINE = Path(__file__).with_name("echo_shape.py")


def latencies(client: ty.Client, image: np.ndarray, count: int) -> list[float]:
    """Milliseconds of each of `count` requests, one at a time."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        client.submit(ty.EmbeddingsRequest(model="shape", input=image)).result()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def show(name: str, times: list[float]) -> None:
    """One row."""
    times = sorted(times)
    p99 = times[int(len(times) * 0.99)]
    print(f"{name:36} p50 {statistics.median(times):8.3f} ms   p99 {p99:8.3f} ms   n {len(times)}")


def main() -> None:
    """Print the table."""
    deployment = ty.Deployment(
        model="shape",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{PIPELINE}:create",
        replicas=2,
        max_wait_ms=0,
    )
    with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        small = np.zeros(16, np.float32)
        latencies(client, small, 200)
        show("64 B inline", latencies(client, small, 1000))
        for size in (64 << 10, 64 << 20):
            lent = client.empty((size,), np.uint8)
            lent[:] = 1
            latencies(client, lent, 10)
            show(f"{size >> 10} KiB lent, no copy", latencies(client, lent, 300))
            plain = np.ones(size, np.uint8)
            show(f"{size >> 10} KiB plain, one copy", latencies(client, plain, 60))
        begin = time.perf_counter()
        requests = (ty.EmbeddingsRequest(model="shape", input=small) for _ in range(10_000))
        count = sum(1 for _ in client.map(requests, max_in_flight=64))
        print(f"throughput, 64 in flight: {count / (time.perf_counter() - begin):.0f} requests/s")


if __name__ == "__main__":
    main()
