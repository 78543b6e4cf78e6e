"""The work that is asked of every contender, and how its answers are checked: outside the timed part, every one.

`host.py` does it with an adapter of `contenders/`; who can do what is the adapter's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

KIB, MIB = 1 << 10, 1 << 20
PAGE_BYTES = 4096
#: A small request: this many bytes there and back.
SMALL_BYTES = 16
#: Token streams at once, and tokens in each.
STREAMS, TOKENS = 256, 64

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One thing to do, again and again."""

    name: str
    title: str
    kind: Literal["echo", "flight", "read", "make", "shape", "stream"]
    unit: Literal["ms", "/s"]
    nbytes: int = 0
    #: Most samples in one round; a contender's time in it is bounded too.
    samples: int = 1

    @property
    def less_is_better(self) -> bool:
        """Times, as against rates."""
        return self.unit == "ms"


def _sized(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"


def _array_works(kind: Literal["read", "make", "shape"], title: str, sizes: dict[int, int]) -> list[Work]:
    return [
        Work(
            name=f"{kind}-{_sized(nbytes).replace(' ', '')}",
            title=title.format(_sized(nbytes)),
            kind=kind,
            unit="ms",
            nbytes=nbytes,
            samples=samples,
        )
        for nbytes, samples in sizes.items()
    ]


#: By size: most samples in one round.
READ_SIZES = {64 * KIB: 100, MIB: 60, 16 * MIB: 20, 64 * MIB: 9, 256 * MIB: 5}

WORKS: dict[str, Work] = {
    work.name: work
    for work in [
        Work(name="small", title="small request", kind="echo", unit="ms", nbytes=SMALL_BYTES, samples=300),
        Work(name="flight", title="64 in flight", kind="flight", unit="/s", nbytes=SMALL_BYTES, samples=3),
        *_array_works("read", "{} in", READ_SIZES),
        *_array_works("make", "{} out", {64 * MIB: 9}),
        *_array_works("shape", "shape of {}", {64 * KIB: 100, 256 * MIB: 100}),
        Work(name="streams", title=f"{STREAMS} token streams", kind="stream", unit="/s", samples=2),
    ]
}

#: Requests of one sample of throughput; fewer from those who need seconds for them.
FLIGHT_COUNT, IN_FLIGHT = 4000, 64


def page_sum(array: Array) -> int:
    """One byte of every page, added up: nobody can answer it without having every page of the array.

    What is handed over must be a flat array of bytes.
    """
    return int(array[::PAGE_BYTES].sum(dtype=np.int64))


class Letter:
    """An array to be sent again and again, a little different each time, and the sum that is to come back."""

    def __init__(self, array: Array, seed: int) -> None:
        self.array = array
        self._chance = np.random.default_rng(seed)
        array[::PAGE_BYTES] = self._chance.integers(0, 256, len(array[::PAGE_BYTES]), np.uint8)
        self.sum = page_sum(array)

    def change(self) -> None:
        """Another byte in one page: an answer that was kept from the last time is wrong now."""
        place = int(self._chance.integers(0, self.array.size // PAGE_BYTES)) * PAGE_BYTES
        old = int(self.array[place])
        new = (old + 1 + int(self._chance.integers(0, 255))) % 256
        self.array[place] = new
        self.sum += new - old


def small_messages(count: int, seed: int) -> list[bytes]:
    """As many different small requests."""
    made = np.random.default_rng(seed).integers(0, 256, (count, SMALL_BYTES), np.uint8)
    # As float32, which some contenders send them as, none may be NaN: those need not come back with the same bits.
    made[:, 3::4] &= 0x3F
    return [row.tobytes() for row in made]


def touched(nbytes: int) -> Array:
    """Zeros that lie in memory of their own. Those of `np.zeros` are one page of zeros, many times."""
    array = np.empty(nbytes, np.uint8)
    array.fill(0)
    return array


def fill(target: Array, seed: int, source: Array) -> Array:
    """What a maker of arrays writes: one memcpy of zeros, and one byte that says which request it is for."""
    np.copyto(target, source)
    target[0] = seed % 251
    return target


def is_filled(array: Array, nbytes: int, seed: int) -> bool:
    """Whether an array is what `fill` made with that seed, as far as one byte per page tells."""
    return array.nbytes == nbytes and page_sum(array) == seed % 251


def token_of(stream: int, position: int) -> int:
    """What a stream's token at a position is to be."""
    return (stream * 7919 + position * 104_729) % 32_000
