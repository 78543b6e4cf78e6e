"""What adapters cost a decode step: the same 32 rows, of the base model alone and of some adapters, in one run.

`python -m tensoryard.benchmarks.adapters`: the small model, adapters of rank 16 on all seven layers of each block, rows
dealt out in turn. Each round times every mixture once by the thread's own clock; a ratio compares a mixture with the
base model of its round.
"""

# ruff: noqa: E402 - the environment comes before the libraries that read it

from __future__ import annotations

import os

# Before NumPy is imported: with threads their waiting would be measured too.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import statistics
import time

import numpy as np

from tensoryard.workers.device import select_device
from tensoryard.workers.pipelines.llama import SMALL_MODEL
from tensoryard.workers.text.lora import Adapter
from tensoryard.workers.text.lora_files import LowRank
from tensoryard.workers.text.models.cache import KVCache
from tensoryard.workers.text.models.decoder import Decoder
from tensoryard.workers.text.models.step import Span, Step, lay_out

ROWS, RANK, BLOCK, REACH = 32, 16, 16, 128
#: How many adapters the rows have among them; 0: none, all of the base model.
MIXTURES = (0, 1, 4, 16, 32)


def adapter(decoder: Decoder, number: int) -> Adapter:
    """One of random weights."""
    random = np.random.default_rng(number)
    additions = {
        layer: LowRank(*(random.normal(0, 0.02, shape).astype(np.float32) for shape in ((inputs, RANK), (RANK, out))))
        for layer, (out, inputs) in decoder.adaptable.items()
    }
    return Adapter(str(number), "", decoder.fit(additions), number, 0)


def step(adapters: list[Adapter]) -> Step:
    """One token for each row, in the midst of its text."""
    blocks = REACH // BLOCK
    spans = [
        Span(
            tokens=np.array([5 + row]),
            start=REACH - 1,
            table=np.arange(row * blocks, (row + 1) * blocks),
            adapter=adapters[row % len(adapters)] if adapters else None,
        )
        for row in range(ROWS)
    ]
    return lay_out(spans, BLOCK)


def measure(rounds: int, repeats: int) -> dict[int, list[float]]:
    """Milliseconds of a step, by mixture, one for each round."""
    decoder = Decoder.load(SMALL_MODEL, select_device("cpu"))
    cache = KVCache(decoder.config, blocks=ROWS * REACH // BLOCK, block_size=BLOCK, device=decoder.device)
    adapters = [adapter(decoder, number) for number in range(max(MIXTURES))]
    steps = {count: step(adapters[:count]) for count in MIXTURES}
    found: dict[int, list[float]] = {count: [] for count in MIXTURES}
    for _ in range(rounds):
        for count, laid_out in steps.items():
            decoder.forward(laid_out, cache)
            began = time.thread_time()
            for _ in range(repeats):
                decoder.forward(laid_out, cache)
            found[count].append((time.thread_time() - began) / repeats * 1e3)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args()
    found = measure(asked.rounds, asked.repeats)
    print(f"{'adapters':>8}{'ms':>8}   over the base model: median (lowest to highest)")
    for count, times in found.items():
        ratios = sorted(mine / base for mine, base in zip(times, found[0], strict=True))
        middle = statistics.median(ratios)
        print(f"{count:>8}{statistics.median(times):8.2f}   {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
