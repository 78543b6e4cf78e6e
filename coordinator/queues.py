"""The order of waiting requests, and the choice among workers: small structures, each O(log n) per operation.

`router.py` keeps one of each per model. Both rest on a heap that deletes lazily and sweeps itself, so none grows beyond
a small multiple of what is live.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import OrderedDict, deque

#: Dead entries that a heap may hold besides as many as live ones.
_SLACK = 16


class LazyHeap:
    """Keys by rank, lowest first; keys of equal rank come in the order of their names."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        #: (rank, stamp, key) by key.
        self._entries: dict[str, tuple[float, int, str]] = {}
        #: The entries, and dead ones: those that are not their key's any more.
        self._heap: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def set(self, key: str, rank: float, stamp: int = 0) -> None:
        """Add a key, or move it; `stamp` decides between equal ranks."""
        entry = self._entries[key] = (rank, stamp, key)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._sweep()

    def remove(self, key: str) -> None:
        """Take a key out; unknown keys are ignored."""
        self._entries.pop(key, None)
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._sweep()

    def first(self) -> str | None:
        """The key of lowest rank, or None."""
        while self._heap:
            entry = self._heap[0]
            if self._entries.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(self._heap)
        return None

    def first_rank(self) -> float:
        """The lowest rank; infinite when there is none."""
        return math.inf if self.first() is None else self._heap[0][0]

    def pop(self) -> str | None:
        """Take out the key of lowest rank."""
        key = self.first()
        if key is not None:
            heapq.heappop(self._heap)
            del self._entries[key]
        return key

    def pop_due(self, at: float) -> str | None:
        """Take out the key of lowest rank if that is `at` or lower."""
        return self.pop() if self.first_rank() <= at else None

    def _sweep(self) -> None:
        self._heap = list(self._entries.values())
        heapq.heapify(self._heap)


#: Where a request waits: level and client. Each has one of its own, also when it comes again.
_Place = tuple[int, str]


class _Line:
    """What one client has waiting at one level. An entry is dead once `places` has another place, or none, for its key.

    Requests without a deadline stand in a row, behind all that have one: most have none, and a row is left at its end
    without looking at what stands in it. Like LazyHeap otherwise, but it leans on its queue's dictionary: among a
    million waiting requests each object that is looked at is a cache miss.
    """

    __slots__ = ("_heap", "_live", "_row")

    def __init__(self) -> None:
        #: Deadline, number of arrival, key, place: those with a deadline.
        self._heap: list[tuple[float, int, str, _Place]] = []
        #: Key and place: those without, in order of arrival.
        self._row: deque[tuple[str, _Place]] = deque()
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, key: str, place: _Place, deadline: float, arrival: int) -> None:
        self._live += 1
        if deadline < math.inf:
            heapq.heappush(self._heap, (deadline, arrival, key, place))
        else:
            self._row.append((key, place))

    def pop(self, places: dict[str, _Place]) -> str:
        """Take out the first, here and from its place."""
        while True:
            key, place = heapq.heappop(self._heap)[2:] if self._heap else self._row.popleft()
            if places.get(key) is place:
                del places[key]
                self._live -= 1
                return key

    def bury(self, places: dict[str, _Place]) -> None:
        """One more has lost its place."""
        self._live -= 1
        if len(self._heap) + len(self._row) > 2 * self._live + _SLACK:
            self._heap = [entry for entry in self._heap if places.get(entry[2]) is entry[3]]
            heapq.heapify(self._heap)
            self._row = deque(entry for entry in self._row if places.get(entry[0]) is entry[1])


class RequestQueue:
    """Waiting requests of one model: by priority, then clients in turn, then by deadline, then by arrival.

    Clients of one priority stand in a ring: the first gives one request and goes to its end, and so does one that
    comes (back). So each is served once per round, whatever the others have waiting.
    """

    def __init__(self) -> None:
        #: By negated priority: the ring of clients, each with what it has waiting.
        self._levels: dict[int, OrderedDict[str, _Line]] = {}
        #: The keys of `_levels`, ascending: the most urgent first.
        self._order: list[int] = []
        #: The place of each waiting request, in order of arrival.
        self._places: dict[str, _Place] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._places

    def push(self, request_id: str, *, client: str, priority: int, deadline: float = math.inf) -> None:
        """Add a request; it must not be waiting already."""
        assert request_id not in self._places, f"{request_id} waits twice"
        self._arrivals += 1
        place = self._places[request_id] = (-priority, client)
        ring = self._levels.get(-priority)
        if ring is None:
            ring = self._levels[-priority] = OrderedDict()
            bisect.insort(self._order, -priority)
        line = ring.get(client)
        if line is None:
            line = ring[client] = _Line()
        line.push(request_id, place, deadline, self._arrivals)

    def pop(self) -> str | None:
        """Take the next request, or None."""
        if not self._order:
            return None
        level = self._order[0]
        ring = self._levels[level]
        client, line = next(iter(ring.items()))
        request_id = line.pop(self._places)
        ring.move_to_end(client)
        self._tidy(level, client)
        return request_id

    def remove(self, request_id: str) -> None:
        """Take a request out of turn; unknown ones are ignored."""
        place = self._places.pop(request_id, None)
        if place is not None:
            level, client = place
            self._levels[level][client].bury(self._places)
            self._tidy(level, client)

    def _tidy(self, level: int, client: str) -> None:
        """A client with nothing waiting leaves the ring, and an empty ring goes."""
        ring = self._levels[level]
        if not ring[client]:
            del ring[client]
        if not ring:
            del self._levels[level]
            del self._order[bisect.bisect_left(self._order, level)]

    def waiting(self) -> list[str]:
        """Every waiting request, in order of arrival."""
        return list(self._places)


class LeastLoaded:
    """Keys with a load, found by least load; those added under a group can be asked for first."""

    def __init__(self) -> None:
        self._all = LazyHeap()
        self._groups: dict[str, LazyHeap] = {}
        #: The group of each key; "" for none.
        self._group_of: dict[str, str] = {}
        #: Keys set since somebody last asked, with load and stamp: loads change more often than they are asked for.
        self._moved: dict[str, tuple[float, int]] = {}
        self._stamp = 0

    def __contains__(self, key: object) -> bool:
        return key in self._group_of

    def set(self, key: str, load: float, group: str) -> None:
        """Add a key, or change its load and group. Among equal loads, the one set longest ago is first."""
        if self._group_of.get(key, group) != group:
            self.remove(key)
        self._stamp += 1
        self._group_of[key] = group
        self._moved[key] = (load, self._stamp)

    def _settle(self) -> None:
        """Enter what has moved."""
        for key, (load, stamp) in self._moved.items():
            self._all.set(key, load, stamp)
            if group := self._group_of[key]:
                members = self._groups.get(group)
                if members is None:
                    members = self._groups[group] = LazyHeap()
                members.set(key, load, stamp)
        self._moved.clear()

    def remove(self, key: str) -> None:
        """Take a key out; unknown keys are ignored."""
        group = self._group_of.pop(key, None)
        if group is None:
            return
        self._moved.pop(key, None)
        self._all.remove(key)
        members = self._groups.get(group)
        if members is not None:
            members.remove(key)
            if not members:
                del self._groups[group]

    def near(self, group: str, worth: float) -> str | None:
        """The least loaded key of a group, unless one outside of it has less load by more than `worth`."""
        if self._moved:
            self._settle()
        members = self._groups.get(group)
        if not members or len(members) == len(self._all):
            return self._all.first()
        if members.first_rank() - self._all.first_rank() > worth:
            return self._all.first()
        return members.first()

    def least(self) -> str | None:
        """The least loaded key of all; None when there is none."""
        if self._moved:
            self._settle()
        return self._all.first()
