"""The order of waiting requests, and the choice among workers: two small structures, each O(log n) per operation.

`router.py` keeps one of each per model. Both delete lazily: an entry that no longer counts is skipped when it surfaces,
and swept when such entries are the majority, so neither grows beyond twice what is live.
"""

from __future__ import annotations

import bisect
import heapq
import math
from typing import NamedTuple


class _Ticket(NamedTuple):
    """A waiting request; tuples order by deadline, then arrival."""

    deadline: float
    arrival: int
    request_id: str


class _FairQueue:
    """Requests of one priority: clients take turns, and within a client the earliest deadline is first.

    Turns are start-time fair queueing with unit cost: each client has a virtual time that grows by one per request
    taken, and one that returns from idleness does not get the turns it did not use.
    """

    def __init__(self) -> None:
        self.tickets: dict[str, list[_Ticket]] = {}
        self._turns: list[tuple[float, str]] = []
        self._virtual: dict[str, float] = {}
        self._now = 0.0

    def push(self, client: str, ticket: _Ticket) -> None:
        waiting = self.tickets.get(client)
        if waiting is None:
            self.tickets[client] = [ticket]
            turn = max(self._virtual.get(client, 0.0), self._now)
            heapq.heappush(self._turns, (turn, client))
        else:
            heapq.heappush(waiting, ticket)

    def pop(self) -> _Ticket | None:
        if not self._turns:
            return None
        turn, client = heapq.heappop(self._turns)
        self._now = turn
        waiting = self.tickets[client]
        ticket = heapq.heappop(waiting)
        if waiting:
            heapq.heappush(self._turns, (turn + 1, client))
        else:
            del self.tickets[client]
            self._remember(client, turn + 1)
        return ticket

    def drop_idle_turns(self) -> None:
        """After tickets were taken out: clients without one have no turn."""
        self._turns = [turn for turn in self._turns if turn[1] in self.tickets]
        heapq.heapify(self._turns)

    def _remember(self, client: str, turn: float) -> None:
        """Keep the virtual time of an idle client only while it lies ahead of the queue's own."""
        self._virtual[client] = turn
        if len(self._virtual) > 2 * len(self.tickets) + 64:
            self._virtual = {key: value for key, value in self._virtual.items() if value > self._now}


class RequestQueue:
    """Waiting requests of one model: by priority, then fair among clients, then by deadline, then by arrival."""

    def __init__(self) -> None:
        self._levels: dict[int, _FairQueue] = {}
        #: Negated priorities that have had entries, ascending: the most urgent first.
        self._order: list[int] = []
        #: Where each waiting request's live ticket is; a ticket whose arrival differs is dead.
        self._live: dict[str, int] = {}
        self._dead = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._live

    def push(self, request_id: str, *, client: str, priority: int, deadline: float = math.inf) -> None:
        """Add a request; it must not be waiting already."""
        assert request_id not in self._live, f"{request_id} waits twice"
        self._arrivals += 1
        self._live[request_id] = self._arrivals
        level = self._levels.get(-priority)
        if level is None:
            level = self._levels[-priority] = _FairQueue()
            bisect.insort(self._order, -priority)
        level.push(client, _Ticket(deadline, self._arrivals, request_id))

    def pop(self) -> str | None:
        """Take the next request, or None."""
        while self._order:
            ticket = self._levels[self._order[0]].pop()
            if ticket is None:
                del self._levels[self._order.pop(0)]
            elif self._live.get(ticket.request_id) == ticket.arrival:
                del self._live[ticket.request_id]
                return ticket.request_id
            else:
                self._dead -= 1
        return None

    def remove(self, request_id: str) -> None:
        """Take a request out of turn."""
        if self._live.pop(request_id, None) is not None:
            self._dead += 1
            if self._dead > len(self._live) + 64:
                self._sweep()

    def _sweep(self) -> None:
        """Drop dead tickets and keep everybody's turn."""
        for level in self._levels.values():
            for client, waiting in list(level.tickets.items()):
                waiting[:] = [t for t in waiting if self._live.get(t.request_id) == t.arrival]
                heapq.heapify(waiting)
                if not waiting:
                    del level.tickets[client]
            level.drop_idle_turns()
        self._dead = 0

    def waiting(self) -> list[str]:
        """Every waiting request, in order of arrival."""
        return list(self._live)


class LeastLoaded:
    """Keys with a load, found by least load; those added under a group can be asked for first."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[float, int, str]] = {}
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}
        self._stamp = 0

    def set(self, key: str, load: float, group: str) -> None:
        """Add a key, or change its load. Among equal loads, the one set longest ago is first."""
        self._stamp += 1
        self._entries[key] = (load, self._stamp, group)
        for name in ("", group) if group else ("",):
            heap = self._heaps.setdefault(name, [])
            heapq.heappush(heap, (load, self._stamp, key))
            if len(heap) > 2 * len(self._entries) + 64:
                self._sweep(name)

    def remove(self, key: str) -> None:
        """Take a key out; unknown keys are ignored."""
        self._entries.pop(key, None)

    def least(self, group: str = "") -> str | None:
        """The least loaded key of a group, else of all; None when there is none."""
        found = self._top(group) if group else None
        return found if found is not None else self._top("")

    def _top(self, name: str) -> str | None:
        heap = self._heaps.get(name)
        while heap:
            _load, stamp, key = heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry[1] == stamp:
                return key
            heapq.heappop(heap)
        self._heaps.pop(name, None)
        return None

    def _sweep(self, name: str) -> None:
        self._heaps[name] = [
            (load, stamp, key)
            for key, (load, stamp, group) in self._entries.items()
            if not name or group == name
        ]
        heapq.heapify(self._heaps[name])
