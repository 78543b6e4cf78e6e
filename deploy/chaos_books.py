"""The books of `tensoryard chaos`, pure: every request sent has one answer, and that is a right one, or the run fails.

Fed with what the client processes tell (`chaos_client.py`) by `chaos.py`; knows no process, clock or socket. A client
numbers its requests from 0, so that what was answered needs no memory: only what is under way is kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import BY_CODE, PoisonRequest, ReplyTimeout, StaleHandle

#: What is told in words; of further violations only the number.
MAX_TOLD = 200

FINISHED, WRONG, LOST = "finished", "wrong", "lost"
#: Errors that a good request may end with while processes are killed: sent again, it may succeed. A request that was
#: lost with three workers is taken for their killer, innocent or not. Memory that was reused under a live request is
#: never excused, nor is silence.
EXCUSED = {code for code, error in BY_CODE.items() if error.retryable} | {PoisonRequest.code}
EXCUSED -= {ReplyTimeout.code, StaleHandle.code}

#: How a request may end besides, by what its client did with it.
MAY_END = {
    "plain": {FINISHED},
    "cancel": {FINISHED, "cancelled"},
    "deadline": {FINISHED, "expired"},
    "poison": {PoisonRequest.code},
}


@dataclass(slots=True)
class _Client:
    """One client process: how many requests it has sent, and those that have no answer yet, by number."""

    sent: int = 0
    under_way: dict[int, str] = field(default_factory=dict)


class Books:
    """What was sent and what came of it."""

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        #: Requests whose client was killed while they were under way: nobody is there to be answered.
        self.orphaned = 0
        self.slowest_s = 0.0
        self.violations: list[str] = []
        self.violation_count = 0
        self._clients: dict[str, _Client] = {}

    @property
    def answered(self) -> int:
        """Requests that have their answer; an answer that came twice counts once."""
        return sum(self.outcomes.values()) - self.outcomes[LOST]

    @property
    def under_way(self) -> int:
        """Requests that have none yet, of clients that live."""
        return sum(len(client.under_way) for client in self._clients.values())

    def numbers_under_way(self, client: str) -> list[int]:
        """The requests of one client that have no answer yet."""
        return list(self._clients.get(client, _Client()).under_way)

    def violated(self, text: str) -> None:
        """Something was broken that should never be."""
        self.violation_count += 1
        if len(self.violations) < MAX_TOLD:
            self.violations.append(text)

    def send(self, client: str, number: int, *, kind: str, manner: str = "plain") -> None:
        """A client is about to send its next request. `manner`: a key of MAY_END."""
        books = self._clients.setdefault(client, _Client())
        if number != books.sent:
            self.violated(f"{client} sent request {number} where {books.sent} was due: the books are wrong")
        books.sent = number + 1
        books.under_way[number] = manner
        self.sent += 1
        self.kinds[kind] += 1

    def end(self, client: str, number: int, outcome: str, *, detail: str = "", took_s: float = 0.0) -> None:
        """A request has its answer: an error's code, or FINISHED, WRONG or LOST."""
        books = self._clients.setdefault(client, _Client())
        name = f"request {number} of {client}"
        manner = books.under_way.pop(number, None)
        if manner is None:
            known = 0 <= number < books.sent
            self.violated(f"{name} was answered twice" if known else f"{name} was answered and never sent")
            return
        self.outcomes[outcome] += 1
        if outcome == WRONG:
            self.violated(f"{name} got a wrong answer: {detail}")
        elif outcome == LOST:
            self.violated(f"{name} got no answer: {detail}")
        elif outcome not in MAY_END[manner] | EXCUSED:
            self.violated(f"{name} ({manner}) ended as {outcome}: {detail}")
        if outcome == FINISHED:
            self.slowest_s = max(self.slowest_s, took_s)

    def answer_again(self, client: str, number: int, *, detail: str = "") -> None:
        """A second terminal answer came for a request that had its own."""
        self.violated(f"request {number} of {client} was answered twice: {detail}")

    def client_killed(self, client: str) -> None:
        """We have ended a client: what it had under way is owed to nobody."""
        books = self._clients.pop(client, _Client())
        self.orphaned += len(books.under_way)

    def client_left(self, client: str) -> None:
        """A client has said that all it sent was answered."""
        for number in self._clients.get(client, _Client()).under_way.copy():
            self.end(client, number, LOST, detail="its client ended without one")
        self._clients.pop(client, None)

    def check_balance(self) -> None:
        """At the end: requests sent = answers received + lost + orphaned."""
        total = self.answered + self.outcomes[LOST] + self.orphaned
        if self.under_way or total != self.sent:
            self.violated(
                f"{self.sent} requests were sent, {self.answered} answered, {self.outcomes[LOST]} lost, "
                f"{self.orphaned} died with their client, {self.under_way} are under way: that does not add up",
            )
