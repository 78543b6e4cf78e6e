"""Where the link's thread leaves requests and the main thread finds batches.

A lock and a condition around `batcher.py`, nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .batcher import Batcher, Work


class Inbox:
    """Thread-safe batcher."""

    def __init__(self, batcher: Batcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._batcher = batcher
        self._clock = clock
        self._changed = threading.Condition()
        self._abandoned = False

    def put(self, work: Work) -> Work | None:
        """A request has come; see `Batcher.add`. In one of the link's threads."""
        with self._changed:
            replaced = self._batcher.add(work)
            self._changed.notify()
            return replaced

    def cancel(self, request_id: str, attempt: int) -> Work | None:
        """See `Batcher.cancel`."""
        with self._changed:
            self._changed.notify()
            return self._batcher.cancel(request_id, attempt)

    def consume(self, request_id: str, attempt: int, parts: int) -> None:
        """See `Batcher.consume`."""
        with self._changed:
            self._batcher.consume(request_id, attempt, parts)
            self._changed.notify()

    @property
    def is_stalled(self) -> bool:
        """See `Batcher.is_stalled`."""
        with self._changed:
            return self._batcher.is_stalled

    def drain(self) -> None:
        """Nothing new comes: `next_batch` gives what is left, then None."""
        with self._changed:
            self._batcher.draining = True
            self._changed.notify()

    def abandon(self) -> None:
        """Nobody wants anything of this worker any more: `next_batch` gives None at once."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()

    def next_batch(self) -> list[Work] | None:
        """Wait for a batch; None when the worker is to end. In the main thread."""
        with self._changed:
            while not self._over():
                batch, wait_s = self._batcher.next_batch(self._clock())
                if batch:
                    return batch
                self._changed.wait(wait_s)
            return None

    def poll(self) -> tuple[list[Work] | None, float | None]:
        """The next batch without waiting, or None when the worker is to end; with an empty one, how long to wait.

        None as the wait: until something comes.
        """
        with self._changed:
            return (None, None) if self._over() else self._batcher.next_batch(self._clock())

    def _over(self) -> bool:
        return self._abandoned or (self._batcher.draining and not len(self._batcher))

    def finish(self, work: Work) -> None:
        """See `Batcher.finish`."""
        with self._changed:
            self._batcher.finish(work)

    def held(self) -> list[Work]:
        """See `Batcher.held`."""
        with self._changed:
            return self._batcher.held()
