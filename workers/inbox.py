"""Where the link's thread leaves requests and the main thread finds batches.

A lock and a condition around `batcher.py`, nothing more.
"""

from __future__ import annotations

import threading
import time

from .batcher import Batcher, Work


class Inbox:
    """Thread-safe batcher."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
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
            return self._batcher.cancel(request_id, attempt)

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
            while not self._abandoned:
                batch, wait_s = self._batcher.next_batch(time.monotonic())
                if batch:
                    return batch
                if self._batcher.draining and not len(self._batcher):
                    return None
                self._changed.wait(wait_s)
            return None

    def finish(self, work: Work) -> None:
        """See `Batcher.finish`."""
        with self._changed:
            self._batcher.finish(work)

    def held(self) -> list[Work]:
        """See `Batcher.held`."""
        with self._changed:
            return self._batcher.held()
