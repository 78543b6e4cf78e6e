"""Where clients' messages wait while a new coordinator does not yet know what its cluster serves.

Kept by `broker.py`: a coordinator that belongs to a fleet hears from it a moment after it starts, or starts again;
answering "unknown model" until then would be wrong.
"""

from __future__ import annotations

from ..errors import Overloaded
from ..proto import wire

#: Who sent what.
Letter = tuple[bytes, wire.Submit | wire.Cancel, wire.Frames]

MAX_LETTERS = 100_000


class WaitingRoom:
    """Messages in order of arrival, until `open_at` (monotonic seconds) or until somebody opens the door before."""

    def __init__(self, *, open_at: float, max_bytes: int) -> None:
        self.open_at = open_at
        self._max_bytes = max_bytes
        self._bytes = 0
        self._letters: list[Letter] = []

    def add(self, identity: bytes, message: wire.Submit | wire.Cancel, body: wire.Frames) -> None:
        """Let a message wait; Overloaded when there is no room for more."""
        size = sum(memoryview(frame).nbytes for frame in body)
        if len(self._letters) >= MAX_LETTERS or self._bytes + size > self._max_bytes:
            raise Overloaded(
                f"{len(self._letters)} messages wait for this cluster to come up; try again in a second",
                request_id=message.request_id,
                retry_after_s=1.0,
            )
        self._bytes += size
        self._letters.append((identity, message, body))

    def empty(self) -> list[Letter]:
        """Everything that waited, in order."""
        letters, self._letters, self._bytes = self._letters, [], 0
        return letters
