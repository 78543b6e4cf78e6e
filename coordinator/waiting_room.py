"""Where requests wait while a new coordinator does not yet know what its cluster serves.

Kept by `broker.py`: a coordinator that belongs to a fleet hears from it a moment after it starts, or starts again, and
which adapters there are from the first worker of each model; answering "unknown model" until then would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ..errors import Overloaded
from ..proto import wire
from .queues import LazyHeap
from .records import same_submission

MAX_LETTERS = 100_000


class Letter(NamedTuple):
    """A request that waits, and who sent it."""

    identity: bytes
    message: wire.Submit
    body: wire.Frames
    size: int
    #: Monotonic seconds; infinite when it has none.
    deadline: float

    @property
    def key(self) -> str:
        """Unique among those that wait."""
        return f"{self.identity.hex()} {self.message.request_id}"


class WaitingRoom:
    """Requests in order of arrival, until `open_at` (monotonic seconds) or until somebody opens the door before."""

    def __init__(self, *, open_at: float, max_bytes: int, max_per_client: int = MAX_LETTERS) -> None:
        self.open_at = open_at
        self._max_bytes = max_bytes
        self._max_per_client = max_per_client
        self._bytes = 0
        #: In order of arrival.
        self._letters: dict[str, Letter] = {}
        #: Keys of what each client has here.
        self._by_client: dict[bytes, dict[str, None]] = {}
        self._deadlines = LazyHeap()

    def __len__(self) -> int:
        return len(self._letters)

    def add(self, identity: bytes, message: wire.Submit, body: wire.Frames, at: float) -> None:
        """Let a request wait; the same again changes nothing, another of its name takes its place.

        Raises Overloaded when there is no room for more.
        """
        size = sum(memoryview(frame).nbytes for frame in body)
        deadline = math.inf if message.deadline_s is None else at + message.deadline_s
        letter = Letter(identity, message, body, size, deadline)
        waiting = self._letters.get(letter.key)
        if waiting is not None:
            if same_submission(waiting.message.submission, message.submission):
                return
            self._remove(letter.key)
        mine = len(self._by_client.get(identity, ()))
        over = len(self._letters) >= MAX_LETTERS or mine >= self._max_per_client
        if over or self._bytes + size > self._max_bytes:
            raise Overloaded(
                f"{len(self._letters)} requests wait for this cluster to come up; try again in a second",
                request_id=message.request_id,
                retry_after_s=1.0,
            )
        self._bytes += size
        self._letters[letter.key] = letter
        self._by_client.setdefault(identity, {})[letter.key] = None
        if deadline < math.inf:
            self._deadlines.set(letter.key, deadline)

    def cancel(self, identity: bytes, request_id: str) -> Letter | None:
        """A client's request, if it waited; it does no more."""
        return self._remove(f"{identity.hex()} {request_id}")

    def consume(self, identity: bytes, told: wire.Consumed) -> None:
        """More of a waiting request's stream, which an earlier coordinator passed on, has been read."""
        letter = self._letters.get(f"{identity.hex()} {told.request_id}")
        if letter is not None and told.parts > letter.message.consumed:
            message = msgspec.structs.replace(letter.message, consumed=told.parts)
            self._letters[letter.key] = letter._replace(message=message)

    def leave(self, identity: bytes) -> None:
        """A client is gone, and its requests with it."""
        for key in list(self._by_client.get(identity, ())):
            self._remove(key)

    def next_deadline(self) -> float:
        """When the first deadline passes, or the door opens."""
        return min(self._deadlines.first_rank(), self.open_at)

    def expired(self, at: float) -> list[Letter]:
        """Requests whose deadline has passed; they wait no more."""
        found = []
        while (key := self._deadlines.pop_due(at)) is not None:
            letter = self._remove(key)
            assert letter is not None, "a deadline belongs to a request that waits"
            found.append(letter)
        return found

    def holds(self, identity: bytes, request_id: str) -> bool:
        """Whether a client's request waits here."""
        return f"{identity.hex()} {request_id}" in self._letters

    def empty(self, at: float, wanted: Callable[[Letter], bool] = lambda _: True) -> list[Letter]:
        """Everything that waited, or what is wanted of it, in order, with what is left of its deadline."""
        keys = [key for key, letter in self._letters.items() if wanted(letter)]
        return [_with_time_left(letter, at) for key in keys if (letter := self._remove(key))]

    def _remove(self, key: str) -> Letter | None:
        letter = self._letters.pop(key, None)
        if letter is not None:
            self._bytes -= letter.size
            self._deadlines.remove(key)
            mine = self._by_client[letter.identity]
            del mine[key]
            if not mine:
                del self._by_client[letter.identity]
        return letter


def _with_time_left(letter: Letter, at: float) -> Letter:
    if letter.deadline == math.inf:
        return letter
    left_s = max(letter.deadline - at, 0.0)
    return letter._replace(message=msgspec.structs.replace(letter.message, deadline_s=left_s))
