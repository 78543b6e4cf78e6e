"""What choosing tokens costs a decode step, against a plain sampler in NumPy at the same logits.

`python -m tensoryard.benchmarks.sampling`: batches of 32 rows; in each round every kind of request is sampled by ours
and by the plain one in turns, by the thread's own clock, and a ratio compares the two of one round. The plain sampler
does what tutorials do: float64 softmax, a full sort, one row at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.tokens import TokenBuffer
from tensoryard.workers.device import select_device
from tensoryard.workers.text.sampling import Sampler, SamplingState

ROWS = 32
VOCABULARIES = (2_048, 32_000)
KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k, top-p, min-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
}

Logits = npt.NDArray[np.float32]


def peaked(vocabulary: int) -> Logits:
    """Logits as peaked as a language model's: the likeliest few hold most of the mass."""
    random = np.random.default_rng(0)
    ranks = random.permuted(np.tile(np.arange(1, vocabulary + 1), (ROWS, 1)), axis=1)
    return (-2.0 * np.log(ranks) + random.standard_normal(ranks.shape) * 0.1).astype(np.float32)


def ours(logits: Logits, wished: dict[str, float]) -> Callable[[], object]:
    """A step of our sampler, accepting its tokens."""
    states = [
        SamplingState(
            TextContext(
                tokens=TokenBuffer(np.arange(1, 100)), max_length=2**40, sampling_params=SamplingParams(**wished)
            ),
            vocab_size=logits.shape[1],
        )
        for _ in range(ROWS)
    ]
    sampler = Sampler(select_device("cpu"), vocabulary=logits.shape[1])

    def step() -> None:
        for state, token in zip(states, sampler.sample(logits, states).tokens, strict=True):
            state.accept((token,))

    return step


def plain(logits: Logits, wished: dict[str, float]) -> Callable[[], object]:
    """The same by a generator per request, row by row."""
    generators = [np.random.default_rng(row) for row in range(ROWS)]

    def step() -> list[int]:
        return [_plain_row(row, generator, wished) for row, generator in zip(logits, generators, strict=True)]

    return step


def _plain_row(row: Logits, generator: np.random.Generator, wished: dict[str, float]) -> int:
    if wished["temperature"] == 0:
        return int(row.argmax())
    scaled = row.astype(np.float64) / wished["temperature"]
    order = np.argsort(-scaled)[: int(wished.get("top_k", len(row)))]
    p = np.exp(scaled[order] - scaled[order[0]])
    p /= p.sum()
    p[np.cumsum(p) - p >= wished.get("top_p", 1)] = 0
    p[p < wished.get("min_p", 0) * p[0]] = 0
    return int(order[np.searchsorted(np.cumsum(p / p.sum()), generator.random(), side="right").clip(max=len(p) - 1)])


def microseconds(step: Callable[[], object], repeats: int) -> float:
    """Of the thread's time, per step."""
    began = time.thread_time()
    for _ in range(repeats):
        step()
    return (time.thread_time() - began) / repeats * 1e6


def measure(rounds: int, repeats: int) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """Microseconds of ours and of the plain one, by vocabulary and kind, a pair for each round."""
    steps = {
        (vocabulary, kind): (ours(peaked(vocabulary), wished), plain(peaked(vocabulary), wished))
        for vocabulary in VOCABULARIES
        for kind, wished in KINDS.items()
    }
    found: dict[tuple[int, str], list[tuple[float, float]]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, (mine, theirs) in steps.items():
            found[key].append((microseconds(mine, repeats), microseconds(theirs, max(1, repeats // 10))))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=50)
    asked = parser.parse_args()
    print(f"{'vocabulary':>10} {'kind':22}{'ours, us':>10}{'plain, us':>11}   plain / ours: median (lowest to highest)")
    for (vocabulary, kind), pairs in measure(asked.rounds, asked.repeats).items():
        ratios = sorted(theirs / mine for mine, theirs in pairs)
        mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
        middle = statistics.median(ratios)
        print(
            f"{vocabulary:>10} {kind:22}{mine:10.0f}{theirs:11.0f}   {middle:.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


if __name__ == "__main__":
    main()
