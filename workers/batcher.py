"""Which requests go into the next batch, and how long to wait for more: a pure machine.

`inbox.py` puts a lock around it, `engine.py` runs what it hands out. Requests whose output was not their last stay
active and are in the next batch again; newcomers join them as long as there is room.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ..proto.context import GenerationStatus
from ..proto.one_shot import OneShotContext


@dataclass(slots=True, eq=False)
class Work:
    """One attempt of one request inside a worker."""

    request_id: str
    attempt: int
    context: OneShotContext
    #: Monotonic seconds.
    arrived: float
    #: As in REQUEST; 0: not known.
    submission: int = 0
    #: Outputs sent so far: the number of the next.
    seq: int = 0
    #: What the ledger will say.
    request_socket_bytes: int = 0
    output_socket_bytes: int = 0
    output_shared_bytes: int = 0
    output_copies: int = 0
    wait_s: float = 0.0
    execute_s: float = 0.0
    #: Whether `pipeline.release` is owed.
    started: bool = field(default=False)


class Batcher:
    """Batches of at most `max_batch_size`; an incomplete first batch waits at most `max_wait_s`."""

    def __init__(self, *, max_batch_size: int, max_wait_s: float) -> None:
        self.max_batch_size = max_batch_size
        self.max_wait_s = max_wait_s
        #: No more requests come, so waiting for them is pointless.
        self.draining = False
        #: By RequestID, in the order of arrival; one whose older attempt is at work waits beside it.
        self._waiting: OrderedDict[str, Work] = OrderedDict()
        self._active: dict[str, Work] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def add(self, work: Work) -> Work | None:
        """One request more. Returns an older attempt of it that still waited, which is to be answered and not run.

        An older attempt that is at work is told to stop, and the newer one waits until it has ended. The same attempt
        a second time changes nothing.
        """
        active, waiting = self._active.get(work.request_id), self._waiting.get(work.request_id)
        if any(held is not None and held.attempt == work.attempt for held in (active, waiting)):
            return None
        if active is not None:
            active.context.status = GenerationStatus.CANCELLED
        self._waiting.pop(work.request_id, None)
        self._waiting[work.request_id] = work
        return waiting

    def next_batch(self, at: float) -> tuple[list[Work], float | None]:
        """The next batch; or an empty one and how many seconds to wait for it (None: until something is added)."""
        if not self._active:
            wait_s = self._wait_s(at)
            if wait_s is None or wait_s > 0:
                return [], wait_s
        held_back = []
        while self._waiting and len(self._active) < self.max_batch_size:
            request_id, work = self._waiting.popitem(last=False)
            if request_id in self._active:
                held_back.append(work)
                continue
            work.wait_s = at - work.arrived
            self._active[request_id] = work
        for work in reversed(held_back):
            self._waiting[work.request_id] = work
            self._waiting.move_to_end(work.request_id, last=False)
        return list(self._active.values()), None

    def _wait_s(self, at: float) -> float | None:
        if not self._waiting:
            return None
        if len(self._waiting) >= self.max_batch_size or self.draining:
            return 0.0
        oldest = next(iter(self._waiting.values()))
        return max(oldest.arrived + self.max_wait_s - at, 0.0)

    def finish(self, work: Work) -> None:
        """A request of the last batch has had its last output."""
        if self._active.get(work.request_id) is work:
            del self._active[work.request_id]

    def cancel(self, request_id: str, attempt: int) -> Work | None:
        """Nobody wants this attempt. One that waits is taken out and returned; one at work is told by its status."""
        work = self._waiting.get(request_id)
        if work is not None and work.attempt == attempt:
            return self._waiting.pop(request_id)
        work = self._active.get(request_id)
        if work is not None and work.attempt == attempt:
            work.context.status = GenerationStatus.CANCELLED
        return None

    def held(self) -> list[Work]:
        """Everything not finished."""
        return [*self._active.values(), *self._waiting.values()]
