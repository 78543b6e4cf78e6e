"""How many workers the load asks for, pure: from reports of a deployment's load to a number that does not flap.

`squad.py` has one scaler for each deployment that says how it scales (`proto/autoscale.py`).
"""

from __future__ import annotations

import math
from collections import deque

from ..proto.autoscale import Autoscale

#: No report for so long: what was known of the load before says nothing of what it is.
STALE_S = 15.0


class Window:
    """The largest value of the last so many seconds; O(1) for each on average.

    Only what may still be the largest is kept: values in falling order. Reports come about once a heartbeat, so that
    there are at most `span_s` by that of them.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._values: deque[tuple[float, int]] = deque()
        #: When the first was entered, of an unbroken row.
        self._since = math.inf

    def add(self, value: int, at: float) -> None:
        """Enter what is so now."""
        self._since = min(self._since, at)
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((at, value))
        while self._values[0][0] < at - self._span_s:
            self._values.popleft()

    def largest(self, at: float) -> int | None:
        """The largest that was entered within the span; None while the row is shorter than that."""
        return self._values[0][1] if self._values and at - self._since >= self._span_s else None

    def clear(self) -> None:
        """A new row begins."""
        self._values.clear()
        self._since = math.inf


class Scaler:
    """The target of one deployment. Times are monotonic seconds.

    More workers only when the load has asked for more all through `upscale_delay_s`, and then as many as the least that
    it asked for; fewer only when it has asked for fewer all through `downscale_delay_s`, and then as many as the most.
    So a load that goes to and fro within these spans changes nothing, whatever its size.
    """

    def __init__(self, policy: Autoscale, target: int = 0) -> None:
        self.policy = policy
        #: Workers wanted.
        self.target = min(max(target, policy.min), policy.max)
        # The least of a span is the largest of the negative values.
        self._ups = Window(policy.upscale_delay_s)
        self._downs = Window(policy.downscale_delay_s)
        self._seen = -math.inf

    def observe(self, *, ongoing: int, peak: int, at: float) -> int:
        """Requests that wait or run now, and the most at once since the last report; the target that follows."""
        if at - self._seen > STALE_S:
            self.forget()
        self._seen = at
        self._ups.add(-self.asked(ongoing), at)
        self._downs.add(self.asked(max(peak, ongoing)), at)
        least, most = self._ups.largest(at), self._downs.largest(at)
        if self.target == 0 and max(peak, ongoing) > 0:
            self.target = 1
        elif least is not None and -least > self.target:
            self.target = -least
        elif most is not None and most < self.target:
            self.target = most
        return self.target

    def asked(self, ongoing: int) -> int:
        """Workers that so many requests ask for, while there are as many as there are."""
        share = ongoing / self.policy.target_ongoing_requests
        if self.target and abs(share / self.target - 1) <= self.policy.tolerance:
            return self.target
        return min(max(math.ceil(share), self.policy.min), self.policy.max)

    def forget(self) -> None:
        """Nothing was heard of the load for a while, or by another coordinator: begin to watch it anew."""
        self._ups.clear()
        self._downs.clear()
