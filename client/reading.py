"""How much of a stream its caller has read, what of that the worker is to know, and which read outputs are kept.

Kept by `reply.py`, under its lock; `conversation.py` passes on what is to be told. Pure books: no outputs, no clock.
"""

from __future__ import annotations

from collections import deque

#: What is told for a reply that is collected: all that will ever come counts as read.
ALL = 1 << 53


class Reading:
    """At most `parts` outputs, or `size_bytes` of them, come unread; at most as many again are kept after they were.

    What was read is told when it is half of that: often enough that a reader who keeps up never waits for its own
    word, seldom enough that its cost does not count.
    """

    __slots__ = (
        "_kept_bytes",
        "_parts",
        "_size_bytes",
        "_sizes",
        "_told",
        "_untold_bytes",
        "came",
        "collecting",
        "dropped",
        "read",
        "stride",
    )

    def __init__(self, *, parts: int = 256, size_bytes: int = 64 << 20) -> None:
        self._parts = parts
        self._size_bytes = size_bytes
        #: So many may be taken at once and count as read together: few of what the window holds.
        self.stride = max(1, parts // 16)
        #: Outputs that have come, that have been read, and that were read and let go of, counted from the first.
        self.came = 0
        self.read = 0
        self.dropped = 0
        #: The caller wants the whole: each output counts as read when it comes, and is kept.
        self.collecting = False
        #: Sizes of the outputs from `dropped` to `came`.
        self._sizes: deque[int] = deque()
        #: Of those, the bytes of the read ones.
        self._kept_bytes = 0
        self._told = 0
        self._untold_bytes = 0

    @property
    def consumed(self) -> int:
        """Outputs that the worker need not hold back for."""
        return ALL if self.collecting else self.read

    def add(self, size_bytes: int) -> None:
        """One more has come."""
        self.came += 1
        self._sizes.append(size_bytes)

    def read_to(self, position: int) -> None:
        """The caller has been given the outputs before this position."""
        for number in range(self.read, position):
            self._untold_bytes += self._sizes[number - self.dropped]
            self._kept_bytes += self._sizes[number - self.dropped]
        self.read = max(self.read, position)

    def tell(self, *, all_of_it: bool = False) -> int | None:
        """What the worker is to be told now, if anything; with `all_of_it`, also what is not worth a message yet."""
        if self.collecting:
            if not self.came or self._told == ALL:  # an answer of one output is never told about
                return None
            self._told = ALL
            return ALL
        untold = self.read - self._told
        if untold <= 0:
            return None
        if all_of_it or 2 * untold >= self._parts or 2 * self._untold_bytes >= self._size_bytes:
            self._told, self._untold_bytes = self.read, 0
            return self.read
        return None

    def drop(self) -> int:
        """Let go of read outputs beyond what is kept, the oldest first and never the last; returns how many."""
        before = self.dropped
        while not self.collecting and self._keeps_too_much and self.dropped < min(self.read, self.came - 1):
            self._kept_bytes -= self._sizes.popleft()
            self.dropped += 1
        return self.dropped - before

    @property
    def _keeps_too_much(self) -> bool:
        return self.read - self.dropped > self._parts or self._kept_bytes > self._size_bytes
