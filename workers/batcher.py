"""Which requests go into the next batch, and how long to wait for more: a pure machine.

`inbox.py` puts a lock around it, `engine.py` runs what it hands out. Requests whose output was not their last stay
active and are in the next batch again; newcomers join them as long as there is room. A stream whose reader does not
keep up (`window.py`) pauses: it stays active and in no batch until there is room in its window again.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import msgspec

from ..errors import DeadlineExpired
from ..proto.context import GenerationStatus
from ..proto.one_shot import OneShotContext
from ..proto.text_context import TextContext
from .window import Window


class Work(msgspec.Struct, eq=False):
    """One attempt of one request inside a worker."""

    request_id: str
    attempt: int
    context: OneShotContext | TextContext
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
    started: bool = False
    #: How much of its stream may be unread.
    window: Window = msgspec.field(default_factory=Window)
    #: Since when it pauses, in monotonic seconds, with nothing read meanwhile; None while it does not.
    paused: float | None = None
    #: Whether who reads its answer can reach our memory; else arrays go in messages.
    by_handle: bool = True
    #: Why it ends before its last output, when that is not its caller's wish.
    failure: DeadlineExpired | None = None


class Batcher:
    """Batches of at most `max_batch_size`; an incomplete first batch waits at most `max_wait_s`.

    What pauses for `unread_s` without anything of it being read is ended.
    """

    def __init__(self, *, max_batch_size: int, max_wait_s: float, unread_s: float = math.inf) -> None:
        self.max_batch_size = max_batch_size
        self.max_wait_s = max_wait_s
        self.unread_s = unread_s
        #: No more requests come, so waiting for them is pointless.
        self.draining = False
        #: By RequestID, in the order of arrival; one whose older attempt is at work waits beside it.
        self._waiting: OrderedDict[str, Work] = OrderedDict()
        #: Begun and not finished, in the order of their beginning; more than a batch holds where some pause.
        self._active: dict[str, Work] = {}
        #: The last batch has not been asked to be followed by another: it may be at work.
        self._at_work = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    @property
    def is_stalled(self) -> bool:
        """All there is pauses: that nothing moves is its readers' doing, not the pipeline's."""
        idle = bool(self._active) and not self._waiting and not self._at_work
        return idle and not any(work.context.cancelled or work.window.is_open for work in self._active.values())

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
        """The next batch; or an empty one and how many seconds to wait for it (None: until something is added).

        What is cancelled comes besides the `max_batch_size` that are to be run.
        """
        self._at_work = False
        batch, room, patience_s = self._look_at_active(at)
        if not batch:
            wait_s = self._wait_s(at)
            if wait_s is None or wait_s > 0:
                waits = [seconds for seconds in (wait_s, patience_s) if seconds is not None]
                return [], min(waits, default=None)
        self._begin(batch, room, at)
        self._at_work = True
        return batch, None

    def _look_at_active(self, at: float) -> tuple[list[Work], int, float | None]:
        """What is cancelled or can be run, room for more, and how long the rest, which pauses, may go on pausing."""
        batch: list[Work] = []
        room = self.max_batch_size
        patience_s = math.inf
        for work in self._active.values():
            if not work.context.cancelled:
                if work.window.is_open:
                    batch += [work] if room > 0 else []
                    room -= 1
                    continue
                left_s = self._pause(work, at)
                if left_s > 0:
                    patience_s = min(patience_s, left_s)
                    continue
            batch.append(work)
        return batch, room, patience_s if patience_s < math.inf else None

    def _pause(self, work: Work, at: float) -> float:
        """How long this one may still pause; when that is no more, it is ended."""
        if work.paused is None:
            work.paused = at
        left_s = work.paused + self.unread_s - at
        if left_s <= 0:
            text = f"nothing of its stream was read for {self.unread_s:g} s (unread_s), after {work.seq} outputs"
            work.failure = DeadlineExpired(text)
            work.context.status = GenerationStatus.CANCELLED
        return left_s

    def _begin(self, batch: list[Work], room: int, at: float) -> None:
        """Let newcomers join as long as there is room."""
        held_back = []
        while self._waiting and room > 0:
            request_id, work = self._waiting.popitem(last=False)
            if request_id in self._active:
                held_back.append(work)
                continue
            work.wait_s = at - work.arrived
            self._active[request_id] = work
            batch.append(work)
            room -= 1
        for work in reversed(held_back):
            self._waiting[work.request_id] = work
            self._waiting.move_to_end(work.request_id, last=False)

    def _wait_s(self, at: float) -> float | None:
        if not self._waiting:
            return None
        if len(self._waiting) >= self.max_batch_size or self.draining:
            return 0.0
        oldest = next(iter(self._waiting.values()))
        return max(oldest.arrived + self.max_wait_s - at, 0.0)

    def consume(self, request_id: str, attempt: int, parts: int) -> None:
        """So many outputs of a stream have been read: it may go on."""
        for work in (self._active.get(request_id), self._waiting.get(request_id)):
            if work is not None and work.attempt == attempt and work.window.consume(parts):
                work.paused = None

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
