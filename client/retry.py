"""Whether a request that ended badly is sent again, and when: a policy of the caller's, and who sleeps until when.

Used by `conversation.py`. Pure: time and chance are given, and what sleeps is woken by whoever owns the clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from ..errors import InvalidRequest, Overloaded, Rejected, TensoryardError

#: Keys that may linger besides twice as many as live.
_SLACK = 64


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How patient a caller is. Raises InvalidRequest for numbers that make no sense.

    Only errors with `.retryable` are tried again, never a request that was cancelled or whose deadline would be over.
    Between two tries lies a random time of up to `first_s`, doubled with each try, at most `longest_s` (seconds); after
    `Overloaded` it is added to the time that the coordinator named. `runs` bounds how often a request may be run in
    all: being sent away is no run. `total_s` bounds the whole, from the first time it was sent.

    A stream that is tried again goes on where it was: what has been delivered is not delivered twice.
    """

    runs: int = 3
    first_s: float = 0.1
    longest_s: float = 10.0
    total_s: float = 60.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            least = 1 if entry.name == "runs" else 0
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise InvalidRequest(f"`{entry.name}` of a Retry is a number of at least {least}, not {value!r:.60}")

    def delay_s(
        self, error: TensoryardError, *, losses: int, refusals: int, elapsed_s: float, left_s: float, chance: float
    ) -> float | None:
        """How long to wait before the next try; None when there is none.

        `losses` and `refusals`: how often it was lost after it was accepted, and was not accepted, this time included.
        `elapsed_s` is since it was first sent, `left_s` until its deadline. `chance` is from 0 to 1.
        """
        if not error.retryable or losses >= self.runs:
            return None
        tries = losses + refusals
        delay_s = chance * min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, 60))
        if isinstance(error, Overloaded):
            delay_s += error.retry_after_s
        if elapsed_s + delay_s > self.total_s or delay_s >= left_s:
            return None
        return delay_s


def is_refusal(error: TensoryardError) -> bool:
    """Nothing ran: it was not accepted."""
    return isinstance(error, Rejected)


class Sleepers:
    """Keys by when they are to be woken (monotonic seconds). A key sleeps once; what ended meanwhile is passed over."""

    def __init__(self) -> None:
        #: May hold keys that do not sleep any more, until their time has come or a sweep.
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def add(self, key: str, until: float) -> None:
        """It sleeps."""
        heapq.heappush(self._heap, (until, next(self._numbers), key))

    def due(self, at: float) -> list[str]:
        """Those whose time has come; they sleep no more."""
        found = []
        while self._heap and self._heap[0][0] <= at:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def sweep(self, live: int, sleeps: Callable[[str], bool]) -> None:
        """Forget those that have ended, where they are more than the live ones."""
        if len(self._heap) > 2 * live + _SLACK:
            self._heap = [entry for entry in self._heap if sleeps(entry[2])]
            heapq.heapify(self._heap)

    def next_due(self) -> float:
        """When the first is to be woken; infinite when nobody sleeps."""
        return self._heap[0][0] if self._heap else math.inf
