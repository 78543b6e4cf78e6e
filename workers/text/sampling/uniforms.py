"""Chance as a function: the random number of a seed at a position, whoever asks and however often.

`sampler.py` draws one number per token. There is no state to keep or to move: after a preemption, on another worker
and in another batch the same position gets the same number.

Source: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

#: What a number is for; draws for different purposes at one position are independent.
SAMPLE, ACCEPT = 0, 1

#: Numbers kept of a stream, from the position last asked for on.
_WINDOW = 64

Words = npt.NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Four random words for each counter; all words are uint64 arrays of one shape that hold 32 bits each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 by 32 bits: the product fits 64, so nothing overflows.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: Words, positions: Words, purpose: int = SAMPLE) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), one for each pair of a seed and a position; both uint64, shapes broadcast.

    53 random bits each: every float64 that is a multiple of 2**-53 is equally likely.
    """
    seeds, positions = np.broadcast_arrays(seeds, positions)
    zeros = np.zeros(seeds.shape, np.uint64)
    counter = (positions & _LOW, positions >> _HALF, zeros + np.uint64(purpose), zeros)
    high, low, *_ = philox4x32(counter, (seeds & _LOW, seeds >> _HALF))
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits * 2.0**-53


class Stream:
    """The numbers of one seed, by position; a few are kept so that most are only looked up.

    `seed`: any of those that `SamplingParams` takes, -2**63 to 2**64 - 1.
    """

    __slots__ = ("seed", "start", "window")

    seed: int
    #: The numbers of the positions from `start` on.
    window: list[float]
    start: int

    def __init__(self, seed: int) -> None:
        self.seed, self.window, self.start = seed % 2**64, [], 0

    def at(self, position: int, purpose: int = SAMPLE) -> float:
        """The number of one position."""
        return float(uniforms(np.array([self.seed], np.uint64), np.array([position], np.uint64), purpose)[0])


def numbers_at(streams: Sequence[Stream], positions: Sequence[int]) -> list[float]:
    """The number of each stream at its position, to draw a token by.

    A stream may come several times, a few positions apart. Those that have run out get their next numbers all at once,
    which costs little more than one.
    """
    pairs = list(zip(streams, positions, strict=True))
    if not all(0 <= position - stream.start < len(stream.window) for stream, position in pairs):
        _fill(pairs)
    return [stream.window[position - stream.start] for stream, position in pairs]


def _fill(pairs: Sequence[tuple[Stream, int]]) -> None:
    """Give every stream the numbers from its first position here on."""
    first: dict[Stream, int] = {}
    last: dict[Stream, int] = {}
    for stream, position in pairs:
        first[stream] = min(position, first.get(stream, position))
        last[stream] = max(position, last.get(stream, position))
    span = max(last[stream] - first[stream] for stream in first)
    seeds = np.array([stream.seed for stream in first], np.uint64)[:, None]
    starts = np.array(list(first.values()), np.uint64)[:, None]
    steps: Words = np.arange(span + _WINDOW, dtype=np.uint64)
    windows = uniforms(seeds, starts + steps).tolist()
    for stream, window in zip(first, windows, strict=True):
        stream.window, stream.start = window, first[stream]
