"""Where the link leaves requests and the main thread finds batches.

A lock and a condition around `batcher.py`, nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .batcher import Batcher, Work

#: Waits on a condition until something is so, for so many seconds at most.
Wait = Callable[[threading.Condition, Callable[[], bool], float | None], bool]


def _wait_idly(condition: threading.Condition, done: Callable[[], bool], timeout_s: float | None) -> bool:
    with condition:
        return condition.wait_for(done, timeout_s)


class Inbox:
    """Thread-safe batcher."""

    def __init__(self, batcher: Batcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._batcher = batcher
        self._clock = clock
        self._changed = threading.Condition()
        self._abandoned = False
        #: Something has been told since `next_batch` last looked.
        self._news = False
        self._wait: Wait = _wait_idly
        self._nudge: Callable[[], None] = lambda: None

    def wait_by(self, wait: Wait, nudge: Callable[[], None]) -> None:
        """Have the main thread wait so, and be called so when something came about elsewhere: see `Session.wait`."""
        self._wait, self._nudge = wait, nudge

    def put(self, work: Work) -> Work | None:
        """A request has come; see `Batcher.add`. In one of the link's threads."""
        with self._changed:
            replaced = self._batcher.add(work)
        self._tell()
        return replaced

    def cancel(self, request_id: str, attempt: int) -> Work | None:
        """See `Batcher.cancel`."""
        with self._changed:
            cancelled = self._batcher.cancel(request_id, attempt)
        self._tell()
        return cancelled

    def consume(self, request_id: str, attempt: int, parts: int) -> None:
        """See `Batcher.consume`."""
        with self._changed:
            self._batcher.consume(request_id, attempt, parts)
        self._tell()

    @property
    def is_stalled(self) -> bool:
        """See `Batcher.is_stalled`."""
        with self._changed:
            return self._batcher.is_stalled

    def drain(self) -> None:
        """Nothing new comes: `next_batch` gives what is left, then None."""
        with self._changed:
            self._batcher.draining = True
        self._tell()

    def abandon(self) -> None:
        """Nobody wants anything of this worker any more: `next_batch` gives None at once."""
        with self._changed:
            self._abandoned = True
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify()
        self._nudge()

    def next_batch(self) -> list[Work] | None:
        """Wait for a batch; None when the worker is to end. In the main thread."""
        while True:
            self._news = False
            batch, wait_s = self.poll()
            if batch is None or batch:
                return batch
            self._wait(self._changed, lambda: self._news, wait_s)

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
