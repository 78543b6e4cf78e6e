"""What a tensor costs on its way into shared memory: pooled copy, lending in place, fresh segments, against memcpy.

`python benchmarks/memory.py`: all contestants take turns within one run; the table gives medians and, for ratios, the
10th to 90th percentile over the rounds. Figures of different runs are not to be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from tensoryard.shm import Pool, Reader
from tensoryard.shm.os_memory import create_sealed

ROUNDS = 25
SIZES = (64 << 10, 1 << 20, 8 << 20, 64 << 20)


def timed(work: Callable[[], object]) -> float:
    """Microseconds of one call; what it returns is dropped after the clock has stopped."""
    begin = time.perf_counter()
    kept = work()
    took = (time.perf_counter() - begin) * 1e6
    del kept
    return took


def fresh_segment(source: np.ndarray) -> np.ndarray:
    """A new sealed segment for one array, as systems without a pool do."""
    import os

    fd, mapping = create_sealed(source.nbytes)
    os.close(fd)
    target = mapping.bytes_at(0, source.nbytes)
    np.copyto(target, source)
    return target


def hand_over(pool: Pool, reader: Reader, lent: np.ndarray) -> np.ndarray:
    """A result on its way: published, claimed by its reader, seen."""
    loan, _ = pool.publish(lent)
    handle = loan.handle
    assert handle is not None
    pool.send(loan)
    return reader.claim(handle)


def measure(size: int) -> None:
    """One row of the table."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    with Pool(budget_bytes=1 << 30) as pool:
        reader = Reader()
        lent = pool.empty((size,), np.uint8)
        contestants: dict[str, Callable[[], object]] = {
            "memcpy": lambda: np.copyto(target, source),
            "pooled copy": lambda: pool.place(source),
            "fresh segment": lambda: fresh_segment(source),
            "hand over, no copy": lambda: hand_over(pool, reader, lent),
        }
        for work in contestants.values():
            timed(work)
        rounds = [{name: timed(work) for name, work in contestants.items()} for _ in range(ROUNDS)]
        reader.close()
    cells = [f"{size >> 10:>7} KiB"]
    for name in contestants:
        ratios = sorted(r[name] / r["memcpy"] for r in rounds)
        median = statistics.median(r[name] for r in rounds)
        low, mid, high = ratios[ROUNDS // 10], statistics.median(ratios), ratios[-1 - ROUNDS // 10]
        cells.append(f"{name} {median:9.1f} µs ({mid:6.2f}; {low:.2f}-{high:.2f})")
    print(" | ".join(cells))


if __name__ == "__main__":
    print("medians; in brackets x memcpy of the same round: median; 10th-90th percentile")
    for size in SIZES:
        measure(size)
