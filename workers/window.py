"""How much of one stream may be on its way and unread: what keeps a slow reader from filling a worker.

One per request, kept by `batcher.py`, which leaves a request out of its batches while its window is full. Pure books:
counts come from the client through `conversation.py`, sizes from `engine.py`.
"""

from __future__ import annotations

from collections import deque


class Window:
    """At most `parts` outputs, or `size_bytes` of them, are unread; one may always be. With 0 parts: any number."""

    __slots__ = ("_parts", "_size_bytes", "_unread", "_unread_bytes", "consumed", "sent")

    def __init__(self, *, parts: int = 0, size_bytes: int = 0, consumed: int = 0) -> None:
        self._parts = parts
        self._size_bytes = size_bytes
        #: Outputs that have left, and those that have been read. Of a request that runs again, the reader may be ahead.
        self.sent = 0
        self.consumed = consumed
        #: Sizes of the outputs from `consumed` to `sent`, and their sum.
        self._unread: deque[int] = deque()
        self._unread_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether one more output may leave."""
        if not self._parts or not self._unread:
            return True
        return len(self._unread) < self._parts and self._unread_bytes < self._size_bytes

    def send(self, size_bytes: int) -> None:
        """An output of this size leaves."""
        self.sent += 1
        if self._parts and self.sent > self.consumed:
            self._unread.append(size_bytes)
            self._unread_bytes += size_bytes

    def consume(self, parts: int) -> bool:
        """So many outputs, counted from the first, have been read. False when that is no news."""
        if parts <= self.consumed:
            return False
        for _ in range(min(parts - self.consumed, len(self._unread))):
            self._unread_bytes -= self._unread.popleft()
        self.consumed = parts
        return True
